"""A visit to a web shop by hand: what is asked, what is done, what is noted."""

import pytest

from alignuser_jax.agents import AgentUser, SessionConfig, shop_session
from alignuser_jax.agents.shop_session import _whole_parts
from alignuser_jax.language.prompts import NEXT_STATE
from alignuser_jax.records import Completion, Persona
from alignuser_jax.world import (
    CatalogueConfig,
    GeneratedShop,
    WebShop,
    WebShopConfig,
    build_index,
    make_catalogue,
)
from alignuser_jax.world.shop.page import ShopPage
from tests.agents.visits import completion
from tests.world.shop import shop_toy

USER = AgentUser(Persona("ann", age="25-34", occupation="Nurse", pickiness=3))
BUYING = (
    *("place_order", "proceed_to_checkout", "go_to_cart", "add_to_cart", "product_options"),
    "product_link",
)


@pytest.fixture(scope="module")
def shop():
    return GeneratedShop(make_catalogue(config=CatalogueConfig(goals=10)))


def chooses(*wanted):
    """The first action that a word of `wanted` names, else the first text, else to leave."""

    def reply(request):
        lines = request.answer[0]
        for word in (*wanted, "[INPUT:"):
            for number, line in enumerate(lines):
                if word in line:
                    return completion(request, number)
        return completion(request, lines.index("BEST-ACTION: [TERMINATE]"))

    return reply


def drive(shop, reply, user=USER, seed=0, count_tokens=None, **options):
    coroutine = shop_session(
        user, shop, SessionConfig(**options), arm="shop", number=0, seed=seed,
        count_tokens=count_tokens,
    )  # fmt: skip
    requests, answer = [], None
    while True:
        try:
            requests.append(coroutine.send(answer))
        except StopIteration as end:
            return requests, end.value
        answer = reply(requests[-1])


def kinds(outcome):
    return [event.kind for event in outcome.events]


def test_a_visit_that_buys(shop):
    requests, outcome = drive(shop, chooses(*BUYING), max_actions=30)
    assert outcome.state.terminal and shop.has_purchase(outcome.state)
    acts = [event for event in outcome.events if event.kind == "act"]
    assert [event.text for event in acts][-1] == "[CLICK:checkout.place_order]"
    assert acts[0].probability == 0.5 and "purchase" in {event.item_id for event in acts}
    assert kinds(outcome)[-2:] == ["purchase", "exit"]
    pages = [event for event in outcome.events if event.kind == "page"]
    assert outcome.events[-1].value == len(pages) == pages[-1].page
    assert {event.item_id for event in pages} == {"generated"}
    # what is asked: system, persona and goal, then pages, each answer kept
    system, first = requests[0].messages
    assert "a shopper in a web shop" in system.content
    state = shop.reset("ann", outcome.state.seed)
    assert f"Looking for: {shop.goal(state).text}" in first.content
    assert "Occupation: Nurse" in first.content and "extremely picky about products" in (
        first.content
    )
    assert state.text in first.content and "Done so far:\nNothing yet." in first.content
    assert first.content.endswith("What do you do?")
    for before, after in zip(requests, requests[1:], strict=False):
        assert after.messages[: len(before.messages)] == before.messages
    assert len({request.key for request in requests}) == len(requests)


def test_the_answers_are_what_the_page_allows(shop):
    requests, outcome = drive(shop, chooses(), max_actions=5)
    state = shop.reset("ann", outcome.state.seed)
    tokens = tuple(f"BEST-ACTION: {action.token}" for action in state.actions)
    assert requests[0].answer == (tokens,)
    texts = [action.token for action in state.actions if action.kind == "input"]
    assert f"Texts to type: {' '.join(texts)}" in requests[0].messages[-1].content


def test_it_starts_anew_where_a_page_would_not_fit(shop):
    def count(text):
        return len(text) // 4

    requests, outcome = drive(
        shop, chooses("product_link", "back_to_results"), count_tokens=count,
        max_actions=12, memory_items=3, context_tokens=1200, page_reserve_tokens=50,
    )  # fmt: skip
    anew = [request for request in requests[1:] if len(request.messages) == 2]
    assert anew
    acts = [event.text for event in outcome.events if event.kind == "act"]
    number = requests.index(anew[-1])
    told = "\n".join(acts[max(number - 3, 0) : number])
    assert f"Done so far:\n{told}\n" in anew[-1].messages[1].content
    for request in requests:
        assert sum(count(m.content) + 5 for m in request.messages) <= 1150 + 60
    with pytest.raises(ValueError, match="persona and one page do not fit"):
        drive(shop, chooses(), count_tokens=count, context_tokens=100)


def test_without_a_persona(shop):
    requests, _ = drive(shop, chooses(), persona=False, max_actions=1)
    assert "Nurse" not in requests[0].messages[1].content


def test_max_actions_and_the_same_visit_again(shop):
    one, outcome = drive(shop, chooses("nav_bar.account"), max_actions=4)
    assert kinds(outcome).count("act") == 4 and not outcome.state.terminal
    again, other = drive(shop, chooses("nav_bar.account"), max_actions=4)
    assert again == one and other.events == outcome.events
    assert drive(shop, chooses("nav_bar.account"), seed=1, max_actions=4)[0] != one


def test_unreadable_replies_are_asked_for_once_more_and_then_it_leaves(shop):
    requests, outcome = drive(shop, lambda request: Completion("no idea"))
    assert len(requests) == 2 and requests[1].messages[-1].content.startswith("You have one")
    assert kinds(outcome) == ["page", "failure", "act", "exit"]
    assert outcome.events[2].text == "[TERMINATE]" and outcome.extra["failures"] == 1


def test_a_model_that_fails(shop):
    broken = Completion("", finish_reason="error", error="away")
    _, outcome = drive(shop, lambda request: broken, fail_fast=True)
    assert kinds(outcome) == ["page", "failure", "exit"]
    assert outcome.events[1].text == "act: away"


# --- the shop of a log --------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged():
    return WebShop(build_index(shop_toy.STEPS))


PAGE = ShopPage("browse", 1, "Legal notice", (), ("nav_bar.homepage", "nav_bar.cart"))


CANNOT = Completion("I cannot.")
FOUND = ("|usb cable]", "search_button", "red_usb_cable.product_title")


def in_turn(*words, page=CANNOT):
    """The action that the next of `words` names, then leaving; `page` is what is written."""
    left = list(words)

    def reply(request):
        if request.purpose == "next_page":
            return page
        return chooses(left.pop(0) if left else "TERMINATE")(request)

    return reply


def test_a_page_that_nobody_logged_is_written_by_the_model(logged):
    page = Completion(f"{NEXT_STATE}\n{PAGE.text()}")
    requests, outcome = drive(logged, in_turn(*FOUND, "footer.legal", page=page))
    (written,) = [request for request in requests if request.purpose == "next_page"]
    system, question = written.messages
    assert "You simulate a web shop." in system.content
    assert question.content.endswith("ACTION: [CLICK:footer.legal]")
    assert "Product page: Red USB Cable" in question.content
    pages = [(event.text, event.item_id) for event in outcome.events if event.kind == "page"]
    assert pages[-1] == ("browse", "model") and ("search", "log") in pages
    after = requests[requests.index(written) + 1]
    assert PAGE.text() in after.messages[-1].content
    assert "Looking for" not in requests[0].messages[1].content  # a log does not say
    assert outcome.state.terminal and "failure" not in kinds(outcome)


def test_a_page_that_cannot_be_had_ends_the_visit(logged):
    for page, why in (
        (CANNOT, "next_page: no line begins with"),
        (Completion("", finish_reason="error", error="away"), "next_page: away"),
    ):
        _, outcome = drive(logged, in_turn(*FOUND, "footer.legal", "homepage", page=page))
        assert kinds(outcome)[-2:] == ["failure", "exit"]
        assert outcome.events[-2].text.startswith(why)
        assert [event.text for event in outcome.events if event.kind == "act"][-1] == (
            "[CLICK:footer.legal]"
        )


def test_a_purchase_click_of_a_log_is_a_purchase(logged):
    _, outcome = drive(logged, in_turn(*FOUND, "add_to_cart"))
    assert "purchase" in kinds(outcome) and logged.has_purchase(outcome.state)
    _, outcome = drive(logged, in_turn(*FOUND, "nav_bar.cart"))
    assert "purchase" not in kinds(outcome)


def test_a_page_too_long_for_the_context_keeps_what_was_before(shop):
    def count(text):
        return 5_000 if "Your account" in text else len(text) // 4

    _, outcome = drive(
        shop, chooses("nav_bar.account"), count_tokens=count, context_tokens=4_000,
        page_reserve_tokens=50,
    )  # fmt: skip
    assert kinds(outcome) == ["page", "act", "page", "failure", "exit"]
    assert "persona and one page do not fit" in outcome.events[3].text
    assert outcome.extra["failures"] == 1


@pytest.mark.parametrize(
    ("cut", "ids"),
    [("nav_bar.cart, footer.leg", ("nav_bar.cart",)), ("nav_bar.cart, nav_bar.home, x", 2)],
)
def test_a_written_page_that_was_cut_off_has_whole_ids_only(cut, ids):
    page = (
        "PAGE 1\nCONTEXT: Product page: Red USB Cable\nPRODUCTS:\n<- Red USB Cable -> "
        f"<- Price: $1 ->\nINTERACTIVE ELEMENTS (semantic IDs):\n{cut}"
    )
    shop = WebShop(build_index(shop_toy.STEPS), config=WebShopConfig(sources=("model",)))

    def reply(request):
        if request.purpose == "next_page":
            return Completion(page, finish_reason="length")
        return chooses("nav_bar.cart")(request)

    _, outcome = drive(shop, reply, max_actions=2)
    assert outcome.extra["failures"] == 0
    assert outcome.state.source == "model"
    elements = outcome.state.inside.page.elements
    assert elements == ids or len(elements) == ids
    cut_in_products = page[: page.index("Price") + 9]
    shop_page = _whole_parts(cut_in_products)
    assert shop_page.endswith("PRODUCTS:")
