import gzip
import json
import re

import pytest

from alignuser_jax.datasets.sessions import CLICK_TYPES
from alignuser_jax.records import Action
from alignuser_jax.world import CatalogueConfig, GeneratedShop, make_catalogue
from alignuser_jax.world.generated_shop.catalogue import (
    content_words,
    facets,
    keeps,
    ranked,
    results,
)
from alignuser_jax.world.generated_shop.goals import (
    ShopGoals,
    read_shop_goals,
    synthetic_shop_goals,
)
from alignuser_jax.world.generated_shop.views import ViewConfig, generated_click_type, subtotal
from alignuser_jax.world.shop.actions import TERMINATE, click, type_text
from alignuser_jax.world.shop.page import read_page

FIELD = "nav_bar.search_input"


@pytest.fixture(scope="module")
def shop():
    return GeneratedShop(make_catalogue(config=CatalogueConfig(goals=30)))


def walk(shop, *actions, user="u", seed=0):
    state = shop.reset(user, seed)
    for action in actions:
        if isinstance(action, str):
            (name,) = [a.target for a in state.actions if re.fullmatch(action, a.target)][
                :1
            ] or [action]
            action = click(name)
        state = shop.step(state, action)
        assert not state.feedback, state.feedback
    return state


def to_product(shop, **kwargs):
    """The page of the product that the goal was made of, its options chosen as it says."""
    state = shop.reset("u", 0)
    goal = shop.goal(state)
    product = shop.catalogue.products[goal.product]
    state = walk(shop, type_text(FIELD, product.title), f"search_results\\.{product.slug}\\..*")
    wanted = dict(goal.options)
    for name, values in product.options:
        state = shop.step(
            state,
            click(f"product_options.{name}.{wanted.get(name, values[0]).replace('-', '_')}"),
        )
        assert not state.feedback
    return state, product


# --- the catalogue ---


def test_the_catalogue_is_a_function_of_goals_and_seed():
    config = CatalogueConfig(goals=10, seed=1)
    one, two = make_catalogue(config=config), make_catalogue(config=config)
    assert (one.products, one.goals, one.source) == (two.products, two.goals, "synthetic goals")
    other = make_catalogue(config=CatalogueConfig(goals=10, seed=2))
    assert other.products != one.products
    assert len({p.slug for p in one.products}) == len(one.products) == 60
    for product in one.products:
        assert product.price_cents >= 199 and 1 <= product.rating <= 5 and product.stock >= 0


def test_a_product_has_all_that_its_goal_asks_for():
    text = "i want a red easy clean water bottle in size large, up to 30 dollars"
    goals = ShopGoals(
        (text,), {text: ("red easy clean water bottle",)}, {"1": ("easy clean",)}, "webshop"
    )
    catalogue = make_catalogue(goals, CatalogueConfig(goals=5, per_goal=4))
    (goal,) = catalogue.goals
    product = catalogue.products[goal.product]
    assert goal.limit_cents == 3000 and product.price_cents < 3000
    assert goal.options == (("color", "red"), ("size", "large"))
    assert all(value in dict(product.options)[name] for name, value in goal.options)
    assert "easy clean" in product.attributes and product.stock > 0
    assert set(content_words("red easy clean water bottle")) <= set(
        content_words(product.title)
    )
    assert catalogue.source == "webshop goals" and len(catalogue.products) == 4


def test_search_ranks_by_rare_words():
    catalogue = make_catalogue(config=CatalogueConfig(goals=30))
    for goal in catalogue.goals[:10]:
        order = ranked(catalogue, goal.queries[0])
        assert goal.product in order[:6]
        wanted = set(content_words(goal.queries[0]))
        for n in order:
            p = catalogue.products[n]
            values = [v for _, options in p.options for v in options]
            assert wanted & set(content_words(" ".join([p.title, *p.attributes, *values])))
    assert ranked(catalogue, "zzz") == () and ranked(catalogue, "the of") == ()


def test_filters_and_sorting():
    catalogue = make_catalogue(config=CatalogueConfig(goals=30))
    query = catalogue.goals[0].queries[-1]
    everything = ranked(catalogue, query)
    offered = facets(catalogue, query)
    assert offered
    for name in offered:
        filtered = results(catalogue, query, (name,), "relevance")
        assert 0 < len(filtered) < len(everything)
        assert filtered == tuple(n for n in everything if keeps(name, catalogue.products[n]))
    cheap = results(catalogue, query, (), "price_low_to_high")
    prices = [catalogue.products[n].price_cents for n in cheap]
    assert prices == sorted(prices) and sorted(cheap) == sorted(everything)
    dear = results(catalogue, query, (), "price_high_to_low")
    assert [catalogue.products[n].price_cents for n in dear] == prices[::-1]


# --- the shop ---


def test_home(shop):
    state = shop.reset("u", 0)
    assert (state.place, state.source, state.kind, state.needs) == (
        *("browse", "generated", "page"),
        None,
    )
    assert state.text.startswith(
        "PAGE 1\nCONTEXT: Home page | featured products\nPRODUCTS:\n<- "
    )
    goal = shop.goal(state)
    texts = [a.text for a in state.actions if a.kind == "input"]
    assert texts[0] == goal.queries[0] and len(texts) == len(set(texts)) <= 6
    assert goal.text not in state.text
    assert state.actions[-1] == TERMINATE
    goals = {shop.reset(f"u{n}", 0).inside.goal for n in range(60)}
    assert len(goals) > 20


def test_results_pages_filters_and_sorting(shop):
    goal = shop.goal(shop.reset("u", 0))
    query = goal.queries[-1]
    order = ranked(shop.catalogue, query)
    one = walk(shop, type_text(FIELD, query))
    pages = -(-len(order) // 4)
    assert (
        f'Search results for "{query}" | page 1 of {pages} | {len(order)} results' in one.text
    )
    two = walk(shop, type_text(FIELD, query), "pagination.next")
    assert two.page == 2 and two.text.startswith("PAGE 2\n")
    titles = [p.title for s in (one, two) for p in read_page(s.text).products]
    assert titles == [shop.catalogue.products[n].title for n in order[:8]]
    assert click("pagination.previous") in two.actions
    assert click("pagination.previous") not in one.actions
    facet = facets(shop.catalogue, query)[0]
    less = walk(shop, type_text(FIELD, query), "pagination.next", f"refinements.{facet}")
    assert less.page == 1 and f"filters: {facet}" in less.text
    back = shop.step(less, click(f"refinements.{facet}"))
    assert back.text == one.text
    cheap = walk(shop, type_text(FIELD, query), "sort.price_low_to_high")
    prices = [float(p.price[1:]) for p in read_page(cheap.text).products]
    assert prices == sorted(prices)
    nothing = walk(shop, type_text(FIELD, "zzz"))
    assert "| no results |" in nothing.text and not read_page(nothing.text).products


def test_suggested_terms_and_the_search_button(shop):
    goal = shop.goal(shop.reset("u", 0))
    state = walk(shop, type_text(FIELD, goal.queries[-1]), r"related_searches\..*")
    assert state.place == "search" and f'"{goal.queries[-1]}"' not in state.text
    home = walk(shop, type_text(FIELD, goal.queries[-1]), "nav_bar.homepage")
    again = shop.step(home, click("nav_bar.search_button"))
    assert again.text == walk(shop, type_text(FIELD, goal.queries[-1])).text


def test_options_come_before_the_cart(shop):
    state, product = to_product(shop)
    assert click("buybox.add_to_cart") in state.actions
    opened = walk(
        shop, type_text(FIELD, product.title), f"search_results\\.{product.slug}\\..*"
    )
    assert product.options and click("buybox.add_to_cart") not in opened.actions
    for name, values in product.options:
        assert f"{name}: choose one of {', '.join(values)}" in opened.text
        assert f"{name}: choose" not in state.text
    assert opened.inside.loads == state.inside.loads == 3


def test_reviews(shop):
    state, product = to_product(shop)
    opened = shop.step(state, click("reviews.see_reviews"))
    assert re.search(r"reviews 1: \d/5 \w+", opened.text)
    closed = shop.step(opened, click("reviews.close"))
    assert closed.text == state.text


def test_from_cart_to_order(shop):
    state, product = to_product(shop)
    state = shop.step(state, click("buybox.quantity.2"))
    assert "quantity: 2" in state.text
    state = shop.step(state, click("buybox.add_to_cart"))
    assert state.place == "detail" and "| cart: 2 items" in state.text
    side = [a.target for a in state.actions if a.target.startswith("cart_side_bar.")]
    assert side == ["cart_side_bar.go_to_cart", f"cart_side_bar.{product.slug}.remove"]
    removed = shop.step(state, click(side[1]))
    assert removed.inside.cart == () and "cart:" not in removed.text
    cart = shop.step(state, click(side[0]))
    total = f"${2 * product.price_cents / 100:.2f}"
    assert f"Shopping cart | 2 items selected | subtotal: {total}" in cart.text
    item = f"active_item_list.{product.slug}"
    off = shop.step(cart, click(f"{item}.checkbox"))
    assert "0 items selected | subtotal: $0.00" in off.text
    assert click("cart.proceed_to_checkout") not in off.actions
    assert shop.step(off, click(f"{item}.checkbox")).text == cart.text
    one = shop.step(cart, click(f"{item}.decrease"))
    assert click(f"{item}.decrease") not in one.actions and "quantity: 1" in one.text
    assert shop.step(one, click(f"{item}.increase")).text == cart.text
    assert "it is empty" in shop.step(cart, click(f"{item}.delete")).text
    assert shop.step(cart, click(f"{item}.product_link")).place == "detail"
    checkout = shop.step(cart, click("cart.proceed_to_checkout"))
    assert f"Checkout | 2 items | total: {total}" in checkout.text
    assert shop.step(checkout, click("checkout.back_to_cart")).text == cart.text
    end = shop.step(checkout, click("checkout.place_order"))
    assert end.terminal and end.text == f"ORDER PLACED: 2 items, {total}\nSESSION ENDED"
    assert subtotal(shop.catalogue, end.inside.ordered) == 2 * product.price_cents
    assert shop.step(end, TERMINATE) == end


def test_buy_now_buys_this_alone(shop):
    state, product = to_product(shop)
    state = shop.step(state, click("buybox.add_to_cart"))
    other = next(a for a in state.actions if a.target.startswith("similar_items."))
    page = shop.step(state, other)
    while missing := re.search(r"(\w+): choose one of", page.text):
        prefix = f"product_options.{missing[1]}."
        page = shop.step(page, next(a for a in page.actions if a.target.startswith(prefix)))
    checkout = shop.step(page, click("buybox.buy_now"))
    if checkout.feedback:
        pytest.skip("the similar product is out of stock")
    assert "Checkout | 1 item |" in checkout.text and product.title not in checkout.text
    assert len(checkout.inside.cart) == 2


def test_account_and_help(shop):
    state = walk(shop, "nav_bar.orders")
    assert state.place == "account" and "Your account | orders" in state.text
    state = walk(shop, "footer.returns", "help.returns.was_this_helpful")
    assert state.place == "help" and state.inside.loads == 2
    assert walk(shop, "nav_bar.cart").text.count("it is empty") == 1


def test_all_thirteen_click_types_occur(shop):
    state, _ = to_product(shop)
    results_page = walk(shop, type_text(FIELD, shop.goal(state).queries[-1]))
    carted = shop.step(state, click("buybox.add_to_cart"))
    cart = shop.step(carted, click("nav_bar.cart"))
    states = (shop.reset("u", 0), results_page, state, carted, cart)
    names = {a.target for s in states for a in s.actions if a.kind == "click_element"}
    assert {generated_click_type(name) for name in names} == set(CLICK_TYPES)
    for name, kind in (
        ("nav_bar.search_button", "search"),
        ("nav_bar.cart", "nav_bar"),
        ("buybox.add_to_cart", "purchase"),
        ("active_item_list.x.checkbox", "cart_page_select"),
        ("active_item_list.x.increase", "quantity"),
        ("search_results.x.product_link", "product_link"),
        ("footer.about", "other"),
        ("nobody.knows", "other"),
    ):
        assert shop.click_type(click(name)) == kind
    assert shop.click_type(TERMINATE) == ""


@pytest.mark.parametrize(
    "action",
    [
        click("buybox.add_to_cart"),
        click("pagination.next"),
        click("checkout.place_order"),
        click(FIELD),
        click("active_item_list.x.delete"),
        Action("click", "nav_bar.cart"),
        Action("input", "nav_bar.cart", text="x"),
        Action("input", FIELD, text=" "),
        Action("input", FIELD, text="x\x1b[2J"),
        Action("next_page"),
        Action("terminate", text="x"),
    ],
)
def test_an_invalid_action_leaves_the_page_and_says_so(shop, action):
    home = shop.reset("u", 0)
    assert not shop.valid_action(home, action)
    after = shop.step(home, action)
    (line,) = after.text.removeprefix(home.text + "\n").splitlines()
    assert line == after.feedback and line.startswith("Invalid action: [")
    assert (after.inside, after.actions) == (home.inside, home.actions)


def test_caps_and_misuse(shop):
    short = GeneratedShop(shop.catalogue, max_pages=2)
    assert walk(short, "nav_bar.account").kind == "page"
    assert walk(short, "nav_bar.account", "nav_bar.orders").terminal
    assert walk(GeneratedShop(shop.catalogue, max_steps=1), "nav_bar.account").terminal
    for bad in ({"max_pages": 0}, {"max_steps": -1}):
        with pytest.raises(ValueError, match="expected 1 or more"):
            GeneratedShop(shop.catalogue, **bad)
    with pytest.raises(ValueError, match="makes its own pages"):
        shop.resolve(shop.reset("u", 0), "x")
    for bad in ({"per_page": 0}, {"texts": -1}, {"quantities": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is"):
            ViewConfig(**bad)
    with pytest.raises(ValueError, match="goals=0"):
        CatalogueConfig(goals=0)
    no_texts = GeneratedShop(shop.catalogue, ViewConfig(texts=0)).reset("u", 0)
    assert not [a for a in no_texts.actions if a.kind == "input"]


def test_only_what_can_be_typed_is_offered():
    text = "red water bottle"
    goals = ShopGoals(
        (text,), {text: ("red \x1b[2Jbottle", "red bottle", "x" * 500)}, {}, "own"
    )
    shop = GeneratedShop(make_catalogue(goals, CatalogueConfig(goals=1)))
    typed = [a.text for a in shop.reset("u", 0).actions if a.kind == "input"]
    assert typed == ["red bottle"]


def test_names_are_different_whatever_the_titles():
    texts = tuple(f"{color} cable {n}" for color in ("red", "blue") for n in (2, 3, 2, 3))
    goals = ShopGoals(texts, {text: ("cable", "cable 2") for text in texts}, {}, "own")
    for seed in range(20):
        products = make_catalogue(
            goals, CatalogueConfig(goals=8, per_goal=40, seed=seed)
        ).products
        assert (
            len({p.slug for p in products}) == len({p.title for p in products}) == len(products)
        )


def test_goals_without_a_word_are_refused():
    with pytest.raises(ValueError, match="none of the 1 own goals has a word"):
        make_catalogue(ShopGoals(("千",), {}, {}, "own"))


# --- goals from files ---


def write(folder, name, value, zipped=False):
    data = json.dumps(value).encode()
    path = folder / f"{name}.json{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(data) if zipped else data)


def test_goals_are_read(tmp_path):
    write(tmp_path, "human_goals", ["a  goal\n", "a goal", "other", " "], zipped=True)
    write(tmp_path, "goal_query_map", {"a  goal\n": ["goal\tquery"]})
    write(
        tmp_path,
        "items_ins_v2_1000",
        {"1": {"attributes": ["x", "y"]}, "2": {"attributes": ["y"]}},
    )
    goals = read_shop_goals(tmp_path)
    assert goals.goals == ("a goal", "other") and goals.queries == {"a goal": ("goal query",)}
    assert goals.attributes == ("y", "x") and goals.source == "webshop"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("human_goals", {}, "holds a dict, expected a list"),
        ("human_goals", [1], "must hold texts only"),
        ("human_goals", [" "], "holds no goal"),
        ("goal_query_map", {"a": "q"}, "expected texts"),
        ("items_ins_v2_1000", {"1": []}, "expected attributes"),
        ("items_ins_v2_1000", {"1": {"attributes": [None]}}, "expected attributes"),
    ],
)
def test_other_files_are_refused(tmp_path, name, value, message):
    good = {
        "human_goals": ["a"],
        "goal_query_map": {},
        "items_ins_v2_1000": {},
    }
    for other, content in (good | {name: value}).items():
        write(tmp_path, other, content)
    with pytest.raises(ValueError, match=message):
        read_shop_goals(tmp_path)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no human_goals.json"):
        read_shop_goals(tmp_path)
    (tmp_path / "human_goals.json.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_shop_goals(tmp_path)


def test_synthetic_goals_have_the_same_form():
    goals = synthetic_shop_goals(40, 3)
    assert goals == synthetic_shop_goals(40, 3) and goals.source == "synthetic"
    assert all(goals.queries[goal] for goal in goals.goals)


def test_the_real_goals(shared_data):
    if not (shared_data / "webshop").is_dir():
        pytest.skip("no WebShop goals in ../shared/data/webshop")
    goals = read_shop_goals(shared_data / "webshop")
    assert len(goals.goals) == 11_562  # of 12,087 lines, the rest repeat
    assert len(goals.queries) == 1_506 and len(goals.items) == 1_000
    assert goals.attributes[:3] == ("living room", "machine wash", "high quality")
    catalogue = make_catalogue(goals)
    assert catalogue.source == "webshop goals" and len(catalogue.products) == 720
    assert all(goal.text in goals.goals for goal in catalogue.goals)
