import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignuser_jax.world import CatalogueConfig, GeneratedShop, make_catalogue
from alignuser_jax.world.generated_shop.goals import read_shop_goals
from alignuser_jax.world.generated_shop.session_shapes import (
    compare_shapes,
    read_online_shoppers,
)
from alignuser_jax.world.generated_shop.sessions import (
    KIND_OF_PLACE,
    session_record,
    shapes_of,
    simulate_session,
    simulate_sessions,
    write_sessions,
)
from alignuser_jax.world.generated_shop.shopper import ShopperConfig, begin_shopper
from alignuser_jax.world.shop.actions import from_json

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def shop():
    return GeneratedShop(make_catalogue(config=CatalogueConfig(goals=40)))


def test_a_session_is_a_chain_of_valid_actions(shop):
    for session in simulate_sessions(shop, 12, seed=1):
        state = shop.reset(session.user_id, 1)
        loads = 1
        for t in session.transitions:
            assert t.state == state and t.action in state.actions and t.source == "rollout"
            assert shop.step(state, t.action) == t.next_state
            assert not t.next_state.feedback
            loads += t.next_state.inside.loads > state.inside.loads
            state = t.next_state
        assert state.terminal
        assert sum(session.pages.values()) == loads == state.inside.loads
        assert session.purchase == ("ORDER PLACED" in state.text)
        assert session.shopper.pages_loaded >= session.shopper.patience


def test_the_same_seed_the_same_session(shop):
    one, two = (simulate_session(shop, "u", 7) for _ in range(2))
    assert one == two
    assert simulate_session(shop, "u", 8) != one


def test_patience_is_the_length_and_buyers_buy_what_convinces_them(shop):
    eager = ShopperConfig(
        patience_spread=0, patience_pages=15, convinced=1, buyers=1, wanderers=0, take_from=0.2
    )
    sessions = list(simulate_sessions(shop, 15, 0, eager))
    assert np.mean([s.purchase for s in sessions]) > 0.9
    # 15 pages, then cart, checkout and the confirmation
    assert {sum(s.pages.values()) for s in sessions if s.purchase} == {18}
    for session in sessions:
        if session.purchase:
            (line,) = session.transitions[-1].next_state.inside.ordered
            assert line.quantity >= 1
            wanted = dict(session.shopper.goal.options)
            offered = dict(shop.catalogue.products[line.product].options)
            for name, value in line.options:
                assert value == wanted.get(name, value) or wanted[name] not in offered[name]
    never = ShopperConfig(patience_spread=0, patience_pages=15, buyers=0, wanderers=0)
    sessions = list(simulate_sessions(shop, 10, 0, never))
    assert not any(s.purchase for s in sessions)
    assert {sum(s.pages.values()) for s in sessions} == {15}
    assert all(set(s.pages) == {"ProductRelated"} or s.shopper.has_cart for s in sessions)


def test_an_impatient_shopper_bounces(shop):
    config = ShopperConfig(patience_pages=1, patience_spread=0)
    session = simulate_session(shop, "u", 0, config)
    assert [t.action.token for t in session.transitions] == ["[TERMINATE]"]
    assert session.shape == ((0, 0, 1), False)


def test_patience_is_log_normal(shop):
    goal = shop.catalogue.goals[0]
    config = ShopperConfig(patience_pages=50, patience_spread=0.5)
    drawn = np.log([begin_shopper(goal, key, config).patience for key in range(3_000)])
    assert np.exp(np.median(drawn)) == pytest.approx(50, rel=0.05)
    assert drawn.std() == pytest.approx(0.5, rel=0.05)


def test_a_record_is_plain_json(shop):
    session = simulate_session(shop, "u", 3)
    record = json.loads(json.dumps(session_record(session)))
    assert record["synthetic"] is True and record["goal"] == session.shopper.goal.text
    assert [from_json(s["action"]) for s in record["steps"]] == [
        t.action for t in session.transitions
    ]
    assert record["steps"][0]["page"].startswith("PAGE 1\nCONTEXT: Home page")
    assert record["end"].endswith("SESSION ENDED")


def test_shapes(shop):
    shapes = shapes_of([((1, 0, 3), True), ((0, 0, 1), False)])
    assert shapes.total.tolist() == [4, 1] and shapes.purchase.tolist() == [True, False]
    with pytest.raises(ValueError, match="no sessions"):
        shapes_of([])
    places = {"browse", "search", "detail", "cart", "checkout", "account", "help", "end"}
    assert set(KIND_OF_PLACE) == places


def test_a_file_of_sessions_goes_on_where_it_was(shop, tmp_path):
    whole = write_sessions(shop, tmp_path / "a", 6, 2)
    wanted = (tmp_path / "a" / "sessions.jsonl").read_bytes()
    torn = tmp_path / "b"
    write_sessions(shop, torn, 4, 2)
    path = torn / "sessions.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    left = []

    def progress(sessions, done):
        left.append(done)
        return sessions

    again = write_sessions(shop, torn, 6, 2, progress)
    assert path.read_bytes() == wanted and left == [3]
    assert again.pages.tolist() == whole.pages.tolist()
    assert write_sessions(shop, torn, 2, 2).pages.tolist() == whole.pages[:2].tolist()
    assert path.read_bytes() == wanted
    with pytest.raises(ValueError, match="made with another seed"):
        write_sessions(shop, torn, 6, 3)
    other = GeneratedShop(make_catalogue(config=CatalogueConfig(goals=5)))
    with pytest.raises(ValueError, match="made with another catalogue"):
        write_sessions(other, torn, 6, 2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"patience_pages": 0}, "expected 1 page or more"),
        ({"noise": -1}, "spreads of 0 or more"),
        ({"buyers": 1.5}, "buyers is 1.5, expected 0 to 1"),
    ],
)
def test_bad_config(bad, message):
    with pytest.raises(ValueError, match=message):
        ShopperConfig(**bad)


def run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "data_prep.simulate_shop", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_the_program(tmp_path):
    human = tmp_path / "human.csv"
    human.write_text(
        "Administrative,Informational,ProductRelated,Revenue\n"
        + "1,0,9,FALSE\n2,1,30,TRUE\n" * 15
    )
    done = run(f"--out={tmp_path / 'o'}", "--sessions=4", f"--compare={human}", "--noprogress")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "o" / "sessions.jsonl").read_text().splitlines()
    assert len(lines) == 4 and all(json.loads(line)["synthetic"] for line in lines)
    assert "4 synthetic sessions (synthetic goals)" in done.stdout
    assert "30 human sessions, 4 simulated" in done.stdout
    bad = run(f"--out={tmp_path / 'o'}", f"--goals={tmp_path}")
    assert bad.returncode == 2 and "error: no human_goals.json" in bad.stderr
    same = run(f"--out={tmp_path / 'o'}", f"--shards={tmp_path / 'x' / '..' / 'o'}")
    assert same.returncode == 2 and "is also --out: give another folder" in same.stderr


@pytest.mark.slow
def test_shoppers_are_about_as_long_and_buy_about_as_often_as_people(shared_data):
    path = shared_data / "sessions" / "online_shoppers_intention.csv.gz"
    if not path.is_file() or not (shared_data / "webshop").is_dir():
        pytest.skip("no UCI sessions or WebShop goals in ../shared/data")
    human = read_online_shoppers(path)
    held_out = human.part(np.arange(len(human.purchase)) % 2 == 1)  # not calibrated on
    shop = GeneratedShop(make_catalogue(read_shop_goals(shared_data / "webshop")))
    simulated = shapes_of(s.shape for s in simulate_sessions(shop, 600, seed=11))
    compared = compare_shapes(held_out, simulated)
    everything, administrative, informational, product = compared.pages
    assert everything.ks < 0.1 and product.ks < 0.1
    assert administrative.ks < 0.15 and informational.ks < 0.1
    assert abs(compared.simulated_purchase - compared.human_purchase) < 0.05


def test_a_page_that_was_cut_off_is_not_counted(shop):
    short = GeneratedShop(shop.catalogue, max_pages=5)
    patient = ShopperConfig(patience_pages=50, patience_spread=0)
    for session in simulate_sessions(short, 5, 0, patient):
        assert sum(session.pages.values()) == 5


def test_what_chance_replaces_the_shopper_does_not_believe(shop):
    with pytest.raises(ValueError, match="epsilon is 1.5"):
        simulate_session(shop, "u", 0, epsilon=1.5)
    all_chance = simulate_session(shop, "u", 0, epsilon=1.0, max_actions=60)
    last = all_chance.transitions[-1].next_state.inside
    assert (all_chance.shopper.pages_loaded, all_chance.shopper.has_cart) == (
        last.loads,
        bool(last.cart),
    )
    assert not all_chance.shopper.searched


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("manifest.json", b"[]"),
        ("manifest.json", b"{"),
        ("manifest.json", b"\xff"),
        ("sessions.jsonl", b'{"pages": {}}\n'),
        ("sessions.jsonl", b"1\n"),
    ],
)
def test_files_that_are_not_ours_are_refused(shop, tmp_path, name, data):
    write_sessions(shop, tmp_path, 2, 0)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} was not written by this program"):
        write_sessions(shop, tmp_path, 2, 0)
    assert (tmp_path / name).read_bytes() == data
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="exists without its manifest"):
        write_sessions(shop, tmp_path, 2, 0)
