"""Pages are shared by those who begin alike, and the least recently used go first."""

from hypothesis import given, settings
from hypothesis import strategies as st

from alignuser_jax.sampling.engine.pages import PagePool


def names(*tokens):
    """The names of growing prefixes."""
    return tuple(bytes(tokens[: i + 1]) for i in range(len(tokens)))


def test_a_prefix_is_found_and_what_is_new_is_not():
    pool = PagePool(8)
    first, cached = pool.allocate(names(1, 2, 3), 4)
    assert cached == 0 and len(set(first)) == 4 and 0 not in first
    second, cached = pool.allocate(names(1, 2, 9), 4)
    assert cached == 2 and second[:2] == first[:2]
    assert len({*first, *second}) == 6 and pool.shared(first[0]) and not pool.shared(first[2])
    pool.release(first)
    pool.release(second)
    assert pool.available == 8 and pool.resident == 4  # (1), (1, 2), (1, 2, 3), (1, 2, 9)
    assert [pool.cached_prefix(names(*n)) for n in ((1,), (1, 2, 3), (1, 2, 9, 4), (2,))] == [
        1,
        3,
        3,
        0,
    ]


def test_no_room_takes_nothing():
    pool = PagePool(4)
    held, _ = pool.allocate(names(1, 2), 3)
    assert pool.allocate(names(1, 7), 4) is None
    pool.release(held)
    assert pool.available == 4 and pool.allocate(names(1, 2), 4)[1] == 2


def test_the_least_recently_used_goes_first_and_from_its_end():
    pool = PagePool(6)
    for tokens in ((1, 2, 3), (4, 5, 6)):
        pool.release(pool.allocate(names(*tokens), 3)[0])
    pool.release(pool.allocate(names(1), 1)[0])  # the first beginning is used again
    pool.release(pool.allocate(names(7, 8), 2)[0])
    assert pool.evicted == 2
    assert [pool.cached_prefix(names(*n)) for n in ((1, 2, 3), (4, 5, 6), (7, 8))] == [1, 3, 2]


def test_names_of_pages_that_were_never_filled_are_taken_back():
    pool = PagePool(4)
    pages, _ = pool.allocate(names(1, 2, 3), 4)
    pool.forget(pages[1:3])
    pool.release(pages)
    assert pool.cached_prefix(names(1, 2, 3)) == 1 and pool.available == 4


step = st.tuples(st.lists(st.integers(0, 2), max_size=5), st.integers(1, 3), st.booleans())


@settings(max_examples=200, deadline=None)
@given(st.lists(step, max_size=40), st.integers(6, 14))
def test_pages_hold_what_their_names_say(steps, count):
    """Whatever comes and goes: a page that is cached holds what its name says, no
    page is given out twice, none is lost."""
    pool, content, held = PagePool(count), {}, []
    for tokens, more, leave in steps:
        prefix_names = names(*tokens)
        allocation = pool.allocate(prefix_names, len(prefix_names) + more)
        if allocation is None:
            assert held or len(prefix_names) + more > count
        else:
            pages, cached = allocation
            assert [content[page] for page in pages[:cached]] == list(prefix_names[:cached])
            used = {page for row in held for page in row}
            assert not used & set(pages[cached:]) and len(set(pages)) == len(pages)
            for page, name in zip(pages[cached:], prefix_names[cached:], strict=False):
                content[page] = name
            for page in pages[len(prefix_names) :]:
                content[page] = None
            held.append(pages)
        if held and (leave or allocation is None):
            pool.release(held.pop(0))
    for row in held:
        pool.release(row)
    assert pool.available == count
