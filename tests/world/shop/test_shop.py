import re
from dataclasses import replace
from functools import partial

import pytest

from alignuser_jax.records import Action, NextPageRequest, Slate
from alignuser_jax.world import WebShop, WebShopConfig, advance, build_index, fill, logged_steps
from alignuser_jax.world.shop.actions import TERMINATE, click, type_text
from alignuser_jax.world.shop.page import ShopPage
from alignuser_jax.world.shop.rules import rule_page
from alignuser_jax.world.shop.shop import guess_place
from tests.world.shop import shop_toy as toy

FIELD = "nav_bar.search_input"
RED = "search_results.red_usb_cable.product_title"


@pytest.fixture(scope="module")
def index():
    return build_index(toy.STEPS)


@pytest.fixture(scope="module")
def shop(index):
    return WebShop(index)


def at(shop, session, order):
    (step,) = [
        s for s in toy.STEPS + toy.TEST_STEPS if (s.session_id, s.order) == (session, order)
    ]
    return shop.at(step)


def test_the_adapter_keeps_what_people_did():
    first, button, scroll, *_ = toy.STEPS
    assert first.action == type_text(FIELD, "usb cable") and first.rationale == "because"
    assert (first.typed_text, button.typed_text) == ("", "usb cable")
    assert button.click_type == "search" and scroll.action is None
    assert toy.STEPS[5].action == TERMINATE
    assert [s.split for s in toy.TEST_STEPS] == ["test"] * 3


def test_ids_that_would_break_a_page_are_left_out():
    page = ("browse", "x", (), ("a", "b\nc", "", "a", "d\x1b"))
    (step,) = logged_steps([toy.session("s", "u", (page, "terminate", "", ""))])
    assert step.page.elements == ("a",)


def test_reset_starts_where_the_user_started(shop):
    state = shop.reset("bob", 3)
    assert (state.place, state.source, state.inside.session_id) == ("browse", "log", "bob-1")
    assert state.text.startswith("PAGE 1\nCONTEXT: Home page\nPRODUCTS:\nINTERACTIVE")
    assert shop.reset("stranger", 0).inside.session_id in ("ann-1", "bob-1")
    empty = WebShop().reset("u", 0)
    assert empty.source == "rule" and TERMINATE in empty.actions


def test_texts_are_offered_own_first_and_any_is_taken(index):
    shop = WebShop(index, {"bob": ("oolong tea",)})
    state = shop.reset("bob", 0)
    offered = [a.text for a in state.actions if a.kind == "input"]
    assert offered == ["oolong tea", "tea", "usb cable"]
    other = type_text(FIELD, "Anything | else]")
    assert other not in state.actions and shop.valid_action(state, other)
    after = shop.step(state, other)
    assert after.source == "rule"
    assert after.inside.page.context == 'Search results for "Anything | else]"'
    few = WebShop(index, config=WebShopConfig(texts=1)).reset("bob", 0)
    assert [a.text for a in few.actions if a.kind == "input"] == ["tea"]


# --- log replay ---


def test_the_same_session_first(shop):
    state = at(shop, "ann-1", 3)
    after = shop.step(state, click(RED))
    assert (after.source, after.place) == ("log", "detail")
    assert after.inside.page == toy.STEPS[4].page
    assert (after.inside.session_id, after.inside.order) == ("ann-1", 4)


def test_then_the_same_user_then_any(index):
    more = logged_steps(
        [
            toy.session(
                "ann-0", "ann", (toy.CABLES, "click", RED, ""), (toy.HOME, "terminate", "", "")
            ),
            toy.session(
                "cy-1", "cy", (toy.CABLES, "click", RED, ""), (toy.TEAS, "terminate", "", "")
            ),
        ]
    )
    shop = WebShop(build_index([*toy.STEPS[6:], *more]))
    held_out = at(shop, "ann-2", 0)
    assert shop.step(held_out, click(RED)).inside.session_id == "ann-0"
    cy = shop.at(more[2])
    assert shop.step(cy, click(RED)).inside.session_id == "cy-1"
    bob = shop.reset("bob", 0)
    cables = shop.step(bob, type_text(FIELD, "nothing logged"))
    assert cables.source == "rule"
    bob_at_cables = shop.at(replace(more[0], user_id="bob", session_id="bob-9"))
    sessions = {
        shop.step(replace(bob_at_cables, seed=seed), click(RED)).inside.session_id
        for seed in range(20)
    }
    assert sessions == {"ann-0", "cy-1"}


def test_what_was_typed_decides_what_a_search_button_shows(shop):
    typed = shop.step(at(shop, "ann-1", 0), type_text(FIELD, "USB  cable"))
    assert (typed.source, typed.place) == ("log", "browse")
    results = shop.step(typed, click("nav_bar.search_button"))
    assert (results.source, results.place) == ("log", "search")
    other = shop.step(at(shop, "ann-1", 0), type_text(FIELD, "green cable"))
    assert (other.source, other.place) == ("rule", "search")
    again = shop.step(other, click("nav_bar.search_button"))
    assert again.source == "rule" and "green cable" in again.text


def test_the_product_list_is_kept_where_another_session_is_replayed(shop):
    # only bob used the filter, on teas: ann still looks at cables
    after = shop.step(at(shop, "ann-1", 3), click("refinements.brand.acme"))
    assert after.source == "log" and after.inside.session_id == "bob-1"
    assert after.inside.page.products == toy.STEPS[3].page.products
    assert after.inside.page.context == ('Search results for "usb cable" | filter: brand acme')
    # and bob's own filter is replayed as it was
    own = shop.step(at(shop, "bob-1", 1), click("refinements.brand.acme"))
    assert own.inside.page == toy.STEPS[8].page
    cart = shop.step(at(shop, "bob-1", 3), click("buybox.add_to_cart"))
    assert (cart.source, cart.place) == ("log", "cart")
    assert [p.title for p in cart.inside.page.products] == ["Green Tea"]


def test_test_sessions_never_enter_the_index(index):
    with pytest.raises(ValueError, match="session 'ann-2' is of the 'test' split"):
        build_index([*toy.STEPS, *toy.TEST_STEPS])
    with pytest.raises(ValueError, match="two steps 0"):
        build_index([*toy.STEPS, toy.STEPS[0]])
    assert index.session_ids == {"ann-1", "bob-1"}
    shop = WebShop(index)
    state = at(shop, "ann-2", 1)  # a test state: only what it shows itself is known of it
    offered = [a.text for a in state.actions if a.kind == "input"]
    assert offered == ["usb cable", "tea"]
    seen = [state]
    for action in state.actions:
        after = shop.step(state, action)
        assert (
            after.needs is not None
            or after.inside.session_id != "ann-2"
            or (after.source == "rule")
        )
        seen.append(after)
    assert not any("secret of the test" in s.text for s in seen)


# --- rules ---


@pytest.mark.parametrize(
    ("session", "order", "action", "place", "context"),
    [
        ("ann-1", 3, type_text(FIELD, "green tea"), "search", 'Search results for "green tea"'),
        ("ann-1", 3, click("nav_bar.cart"), "cart", "Shopping cart"),
        ("ann-1", 3, click("nav_bar.homepage"), "browse", "Home page"),
        ("ann-1", 4, click("buybox.buy_now"), "checkout", "Checkout"),
        ("ann-1", 5, click("cart.proceed_to_checkout"), "checkout", "Checkout"),
        ("ann-1", 3, click("pagination.next"), "search", 'Search results for "usb cable"'),
        (
            "ann-1",
            3,
            click("search_results.blue_usb_cable.product_title"),
            "detail",
            "Product page: Blue USB Cable",
        ),
    ],
)
def test_rules(shop, session, order, action, place, context):
    state = at(shop, session, order)
    assert action in state.actions or action.kind == "input"
    after = shop.step(state, action)
    assert (after.source, after.place) == ("rule", place)
    assert after.inside.page.context == context
    assert after.inside.page.elements and after.needs is None


def test_the_id_that_was_clicked_opens_a_product():
    wide = (*toy.CABLES[:3], ("search_results.red_usb_cable", RED))
    steps = [(wide, "click", RED, ""), (toy.RED_PAGE, "terminate", "", "")]
    index = build_index(logged_steps([toy.session("s", "u", *steps)]))
    assert index.product_links["red_usb_cable"] == RED
    steps = [(wide, "terminate", "", "")]
    index = build_index(logged_steps([toy.session("s", "u", *steps)]))
    assert index.product_links["red_usb_cable"] == "search_results.red_usb_cable"


def test_what_rules_know(shop):
    teas = shop.step(at(shop, "ann-1", 3), type_text(FIELD, "green tea"))
    assert [p.title for p in teas.inside.page.products] == ["Green Tea"]
    assert click("search_results.green_tea.product_title") in teas.actions  # its logged link
    paged = shop.step(at(shop, "ann-1", 3), click("pagination.next"))
    assert paged.page == 2 and paged.text.startswith("PAGE 2\n")
    bought = shop.step(at(shop, "ann-1", 4), click("buybox.buy_now"))
    assert [p.title for p in bought.inside.page.products] == ["Red USB Cable"]


def test_rules_that_look_alike():
    ids = (*toy.CABLES[3], "related_searches.2.green_tea", "checkout.back_to_cart")
    page = (*toy.CABLES[:3], ids)
    steps = [(page, "input", FIELD, "usb cable"), (page, "terminate", "", "")]
    log = [toy.session("s", "u", *steps)]
    shop = WebShop(build_index(logged_steps(log)), config=WebShopConfig(sources=("rule",)))
    state = shop.at(logged_steps(log)[0])
    rule = partial(rule_page, state.inside.page, index=shop.index, typed_text="usb cable")
    suggested = rule(click("related_searches.2.green_tea"), "suggested_term")
    assert suggested.context == 'Search results for "green tea"'
    assert rule(click("checkout.back_to_cart"), "other").place == "cart"
    assert rule(click(FIELD), "search") == state.inside.page  # no search, only the focus
    paged = rule(click("pagination.next"), "page_related")
    assert not paged.products and RED not in paged.elements and FIELD in paged.elements


def test_terminate_and_after(shop):
    end = shop.step(at(shop, "ann-1", 3), TERMINATE)
    assert end.terminal and end.text == "SESSION ENDED" and end.actions == ()
    assert (end.source, end.place) == ("rule", "end")
    assert shop.step(end, TERMINATE) == end
    assert not shop.valid_action(end, TERMINATE)
    short = WebShop(shop.index, config=WebShopConfig(max_steps=1))
    assert short.step(at(short, "ann-1", 3), click(RED)).terminal


# --- the model ---


def test_what_no_log_and_no_rule_knows_is_asked_for(shop):
    state = at(shop, "ann-1", 4)
    open_state = shop.step(state, click("footer.legal"))
    request = open_state.needs
    assert isinstance(request, NextPageRequest)
    assert request.state_text == state.text and request.action == click("footer.legal")
    assert (open_state.text, open_state.actions) == ("", ())
    with pytest.raises(RuntimeError, match="answer state.needs"):
        shop.step(open_state, TERMINATE)
    page = (
        "<think>hm PAGE 9</think>```\n[NEXT STATE]\nPAGE 1\nCONTEXT: Legal notice\nPRODUCTS:\n"
    )
    page += "INTERACTIVE ELEMENTS (semantic IDs):\nnav_bar.cart, legal.accept\n```"
    after = shop.resolve(open_state, page)
    assert (after.source, after.place, after.needs) == ("model", "browse", None)
    assert after.text == (
        "PAGE 1\nCONTEXT: Legal notice\nPRODUCTS:\nINTERACTIVE ELEMENTS (semantic IDs):\n"
        "nav_bar.cart, legal.accept"
    )
    assert click("legal.accept") in after.actions
    ended = shop.resolve(open_state, "[NEXT STATE]\nSESSION ENDED")
    assert ended.terminal and ended.source == "model"


def test_a_page_without_ids_gets_those_of_its_kind(shop):
    open_state = shop.step(at(shop, "ann-1", 4), click("footer.legal"))
    page = "CONTEXT: Shopping cart\nPRODUCTS:\n<- Red USB Cable -> <- Price: $5.00 ->"
    after = shop.resolve(open_state, page)
    assert after.place == "cart"
    assert click("cart.proceed_to_checkout") in after.actions


@pytest.mark.parametrize(
    ("context", "action", "click_type", "place"),
    [
        ("search results page | search term: tea | cart: soap", click("x"), "other", "search"),
        ("Shopping Cart (2)", click("x"), "other", "cart"),
        ("Secure checkout", click("x"), "purchase", "checkout"),
        ('Search results for "laundry basket"', click("x"), "search", "search"),
        ("Product page: Wire Basket", click("x"), "product_link", "detail"),
        ("Product page: Homedics Research set", click("x"), "product_link", "detail"),
        ("nothing to go by", type_text(FIELD, "tea"), "", "search"),
        ("nothing to go by", click("refinements.a"), "filter", "search"),
        ("nothing to go by", click("nav_bar.cart"), "nav_bar", "cart"),
        ("nothing to go by", click("a.b"), "product_link", "browse"),
    ],
)
def test_the_kind_of_a_written_page(context, action, click_type, place):
    assert guess_place(ShopPage(context=context), action, click_type) == place


@pytest.mark.parametrize("text", ["", "I cannot do that.", "<think>CONTEXT: lost"])
def test_a_model_that_writes_no_page_is_an_error(shop, text):
    open_state = shop.step(at(shop, "ann-1", 4), click("footer.legal"))
    with pytest.raises(ValueError, match="no line begins with 'CONTEXT: '"):
        shop.resolve(open_state, text)


def test_misuse(shop):
    state = at(shop, "ann-1", 4)
    with pytest.raises(ValueError, match="needs no page"):
        shop.resolve(state, "PAGE 1")
    with pytest.raises(ValueError, match="expected the text of a page"):
        shop.resolve(shop.step(state, click("footer.legal")), Slate(("1",)))
    with pytest.raises(ValueError, match=re.escape("sources holds ['magic']")):
        WebShopConfig(sources=("magic",))
    with pytest.raises(ValueError, match="max_steps is 0"):
        WebShopConfig(max_steps=0)


def test_sources_can_be_left_out(index):
    closed = WebShop(index, config=WebShopConfig(sources=("log", "rule")))
    state = at(closed, "ann-1", 4)
    after = closed.step(state, click("footer.legal"))
    assert after.needs is None and after.feedback == "Nothing happened: [CLICK:footer.legal]"
    assert after.text == f"{state.text}\n{after.feedback}" and after.actions == state.actions
    ruled = WebShop(index, config=WebShopConfig(sources=("rule",)))
    assert ruled.step(at(ruled, "ann-1", 4), click("buybox.add_to_cart")).source == "rule"


# --- what is valid ---


@pytest.mark.parametrize(
    "action",
    [
        click("nav_bar.nowhere"),
        click(""),
        Action("click", "nav_bar.cart"),
        Action("click_element", "nav_bar.cart", value=1),
        Action("click_element", "nav_bar.cart", text="x"),
        Action("input", "nav_bar.cart", text="x"),
        Action("input", FIELD, text=""),
        Action("input", FIELD, text="  "),
        Action("input", FIELD, text="a\nb"),
        Action("input", FIELD, text="x" * 401),
        Action("input", FIELD, 3, "x"),
        Action("terminate", "x"),
        Action("next_page"),
        Action("exit"),
    ],
)
def test_an_invalid_action_leaves_the_page_and_says_so(shop, action):
    state = at(shop, "ann-1", 3)
    assert not shop.valid_action(state, action)
    after = shop.step(state, action)
    (line,) = after.text.removeprefix(state.text + "\n").splitlines()
    assert line == after.feedback and line.startswith("Invalid action: [")
    assert (after.inside, after.actions, after.source) == (
        state.inside,
        state.actions,
        state.source,
    )
    assert shop.step(after, action) == after


def test_a_field_is_known_by_its_use_or_by_its_name(index):
    assert index.is_field(FIELD) and index.is_field("reviews.search_box")
    assert not index.is_field("nav_bar.cart") and not index.is_field("a|b.search_input")


# --- driven ---


def test_pages_are_written_by_a_callable_in_one_batch(shop):
    batches = []

    def write(requests):
        batches.append(list(requests))
        return [
            f"CONTEXT: {r.action.target}\nPRODUCTS:\n<- x -> <- Price: 1 ->" for r in requests
        ]

    state = at(shop, "ann-1", 4)
    pairs = [(state, click("footer.legal")), (state, TERMINATE), (state, click("footer.legal"))]
    after = advance(shop, None, pairs, "counterfactual", write)
    assert [s.source for s in after] == ["model", "rule", "model"]
    (batch,) = batches
    assert [r.purpose for r in batch] == ["counterfactual"] * 2
    with pytest.raises(ValueError, match="needs a NextPageRequest"):
        advance(shop, None, pairs)
    with pytest.raises(ValueError, match="write_pages gave 1 pages for 2 requests"):
        advance(shop, None, pairs, write_pages=lambda requests: ["x"])


def test_a_slate_needs_a_recommender(make_site):
    site = make_site()
    with pytest.raises(ValueError, match="pass a recommender"):
        fill(site, None, [site.reset("u", 0)])
