"""Search: a closed list of queries, pages of the site's own, and nothing else changed by it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignuser_jax.agents import AgentUser, SessionConfig, session
from alignuser_jax.alignment import RolloutConfig, collect_rollouts
from alignuser_jax.records import Action, Item, Persona
from alignuser_jax.text import one_line
from alignuser_jax.world import advance, fill
from alignuser_jax.world.site.search import SearchIndex, genre_terms, word_terms
from tests.agents import visits

NEXT, BACK = Action("next_page"), Action("previous_page")
FILMS = {
    "a": Item("a", "Star Wars: Episode IV (1977)", ("Sci-Fi", "War")),
    "b": Item("b", "Star Trek", ("Sci-Fi",)),
    "c": Item("c", "A Star is Born", ("Drama",)),
    "d": Item("d", "War", ("War", "Drama")),
    "e": Item("e", "The Wars of the Roses", ("Comedy",)),
}


def searches(state):
    return [action for action in state.actions if action.kind == "search"]


def test_the_index_ranks_what_few_terms_describe_first():
    index = SearchIndex.of(FILMS)
    # terms: a: sci-fi war star wars episode; b: sci-fi star trek; c: drama star born; d: war
    # drama (three letters are no title word); e: comedy wars roses
    assert index.find("STAR", 9) == ("b", "c", "a")
    assert index.find("sci-fi", 1) == ("b",)
    assert index.find("war", 9) == ("d", "a")
    assert index.find("star", 9, exclude={"b"}) == ("c", "a")
    assert index.find("nothing", 9) == () == index.find("star", 0)


def test_offered_are_genres_then_rare_words_that_lead_on():
    index = SearchIndex.of(FILMS)
    page_items = [FILMS["a"], FILMS["c"]]
    # "episode" and "born" find only what is excluded; "wars" (2 items) is rarer than "star" (3)
    assert index.queries_of(page_items, {"a", "c"}, 9) == (
        "Sci-Fi",
        "War",
        "Drama",
        "wars",
        "star",
    )
    # with room for four, half of it is the words'
    assert index.queries_of(page_items, {"a", "c"}, 4) == ("Sci-Fi", "War", "wars", "star")
    assert index.queries_of(page_items, {"a", "c"}, 1) == ("Sci-Fi",)
    assert index.queries_of([FILMS["d"]], {"d"}, 4) == ("War", "Drama")
    assert index.queries_of(page_items, set(FILMS), 9) == ()


@given(st.text(alphabet="ab[]<>- \n1é") | st.text(), st.text())
def test_terms_fit_a_token(genre, title):
    item = Item("x", title, (genre,))
    for query in (*genre_terms(item).values(), *word_terms(item).values()):
        assert query and "[" not in query and "]" not in query
        assert one_line(query) == query
        assert len(query) <= 40


def test_off_by_default_and_refused_then(make_site, first):
    (page,) = fill(make_site(), first, [make_site().reset("u", 0)])
    assert not searches(page)
    (after,) = advance(make_site(), first, [(page, Action("search", "Drama"))])
    assert after.feedback == "Invalid action: [SEARCH:Drama]"
    assert after.pages == page.pages


def test_pages_are_the_same_but_for_the_queries_offered(make_site, first):
    on, off = make_site(search=True), make_site()
    one = fill(on, first, [on.reset("u", 0)])[0]
    two = fill(off, first, [off.reset("u", 0)])[0]
    for action in (Action("click", "1"), Action("rate", "2", 3), NEXT, BACK):
        assert replace(one, actions=()) == replace(two, actions=())
        assert [a for a in one.actions if a.kind != "search"] == list(two.actions)
        (one,) = advance(on, first, [(one, action)])
        (two,) = advance(off, first, [(two, action)])


def test_a_search_opens_a_page_of_its_own(make_site, first):
    site = make_site(search=True)
    (page,) = fill(site, first, [site.reset("u", 0)])
    assert [a.token for a in searches(page)] == [
        "[SEARCH:Comedy]", "[SEARCH:Drama]", "[SEARCH:Crime]",
    ]  # fmt: skip
    (results,) = advance(site, first, [(page, Action("search", "Drama"))])
    assert len(first.calls) == 1  # no recommender was asked
    assert (results.kind, results.page, results.query) == ("page", 2, "Drama")
    assert results.text.splitlines()[0] == "PAGE 2 | Search: Drama"
    # 5 has no title, so the fewest terms; 1 and 3 were on page 1
    assert results.slate == ("5", "7", "9", "11")
    assert all("Drama" in site.items[i].genres for i in results.slate)
    (clicked,) = advance(site, first, [(results, Action("click", "1"))])
    assert clicked.text.startswith(results.text + "\nDETAILS 1: ")
    (again,) = advance(site, first, [(results, Action("search", "Drama"))])
    assert again.page == 3 and again.slate == ("13", "15", "17", "19")
    (on,) = advance(site, first, [(again, NEXT)])
    assert on.page == 4 and not on.query
    assert first.calls[-1][0].exclude >= {*page.slate, *results.slate, *again.slate}
    (back,) = advance(site, first, [(on, BACK)])
    assert back.text == again.text and back.query == "Drama"


def test_a_short_page_where_little_is_found(make_site, first):
    site = make_site(search=True, items_per_page=10)
    (page,) = fill(site, first, [site.reset("u", 0)])
    (results,) = advance(site, first, [(page, Action("search", "Drama"))])
    assert len(results.slate) == 6  # 12 dramas, 5 of them on page 1, one in the history
    assert Action("search", "Drama") not in results.actions


@pytest.mark.parametrize("config", [{"max_pages": 2}, {"horizon": 2}])
def test_no_search_where_no_page_is_left(make_site, first, config):
    site = make_site(search=True, **config)
    (one,) = fill(site, first, [site.reset("u", 0)])
    assert searches(one)
    (two,) = advance(site, first, [(one, NEXT)])
    (back,) = advance(site, first, [(two, BACK)])
    assert not searches(two) and not searches(back)
    (after,) = advance(site, first, [(back, searches(one)[0])])
    assert after.feedback.startswith("Invalid action: [SEARCH:")


def test_how_many_queries(make_site, first):
    site = make_site(search=True, queries_per_page=1)
    (page,) = fill(site, first, [site.reset("u", 0)])
    assert searches(page) == [Action("search", "Comedy")]
    with pytest.raises(ValueError, match="queries_per_page is 0"):
        make_site(search=True, queries_per_page=0)


def test_agents_search(make_site, first):
    """A session needs to know nothing of it: a search page is looked at as any new page is."""
    site = make_site(search=True, items_per_page=3)
    user = AgentUser(Persona("u"), site.histories["u"])
    coroutine = session(user, site, SessionConfig(), arm="a", number=0, seed=0)
    requests, outcome = visits.drive(
        coroutine,
        visits.actions_script("[SEARCH:Drama]", "[CLICK_ITEM:2]", "[EXIT]"),
        lambda request: first.recommend([request])[0],
    )
    page_items = [
        (event.page, event.item_id) for event in outcome.events if event.kind == "page"
    ]
    assert [item for page, item in page_items if page == 2] == ["3", "5", "7"]
    assert [event.text for event in outcome.events if event.kind == "act"] == [
        "[SEARCH:Drama]", "[CLICK_ITEM:2]", "[EXIT]",
    ]  # fmt: skip
    acts = [request for request in requests if request.purpose == "act"]
    assert "BEST-ACTION: [SEARCH:Crime]" in acts[0].answer[0]
    assert any("PAGE 2 | Search: Drama" in m.content for m in acts[1].messages)
    assert len(outcome.state.session) == 4 and not outcome.extra["failures"]


def test_rollouts_search(make_site, first):
    """The experience that a world model learns from holds searches where the site has them."""
    config = RolloutConfig(episodes=6)
    for search in (False, True):
        site = make_site(search=search, max_pages=6)
        steps = collect_rollouts(site, first, ["u"], config, seed=1)
        after = [s.next_state.text for s in steps if s.action.kind == "search"]
        assert bool(after) == search
        assert all(text.startswith("PAGE ") and " | Search: " in text for text in after)
