import pytest

from alignuser_jax.records import Action, NextPageRequest, Slate, State
from alignuser_jax.world import advance, fill

NEXT, EXIT = Action("next_page"), Action("exit")


def test_one_batch_for_all_that_is_open(make_site, first):
    site = make_site()
    pages = fill(site, first, [site.reset("u", 0), site.reset("v", 0)])
    assert [state.user_id for state in pages] == ["u", "v"]
    after = advance(site, first, [(pages[0], EXIT), (pages[1], NEXT), (pages[0], NEXT)])
    assert [len(call) for call in first.calls] == [2, 2]
    assert [state.kind for state in after] == ["end", "page", "page"]
    assert [state.user_id for state in after] == ["u", "v", "u"]
    assert all(state.needs is None for state in after)


def test_nothing_open_nothing_asked(make_site, first):
    page = fill(make_site(), first, [make_site().reset("u", 0)])
    calls = len(first.calls)
    assert fill(make_site(), first, page) == page
    assert len(first.calls) == calls


def test_imagined_pages_say_so(make_site, first):
    site = make_site()
    (page,) = fill(site, first, [site.reset("u", 0)])
    real = advance(site, first, [(page, NEXT)])
    imagined = advance(site, first, [(page, NEXT)], purpose="counterfactual")
    assert [call[0].purpose for call in first.calls] == ["browse", "browse", "counterfactual"]
    assert imagined == real


def test_a_recommender_with_state_imagines_nothing(make_site, first):
    first.stateful = True
    site = make_site()
    (page,) = fill(site, first, [site.reset("u", 0)])
    with pytest.raises(ValueError, match="First keeps state"):
        advance(site, first, [(page, NEXT)], purpose="counterfactual")


def test_a_slate_per_request(make_site):
    class Short:
        def recommend(self, requests):
            return [Slate(("0", "1", "2", "3"))]

    site = make_site()
    with pytest.raises(ValueError, match="Short gave 1 slates for 2 requests"):
        fill(site, Short(), [site.reset("u", 0), site.reset("v", 0)])


def test_questions_for_others_are_refused(make_site, first):
    needs = NextPageRequest("u", "PAGE 1", NEXT)
    with pytest.raises(ValueError, match="needs a NextPageRequest"):
        fill(make_site(), first, [State("u", 0, "page", 1, needs=needs)])
