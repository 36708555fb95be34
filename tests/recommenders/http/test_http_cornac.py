"""Cornac's own server: what is sent, users that it does not know, answers of other users."""

import os
import subprocess
import sys

import pytest

from alignuser_jax.recommenders import (
    Popularity,
    Random,
    RequestRefused,
    check_contract,
    from_http,
    load_recommender,
)
from alignuser_jax.records import RecommenderUnavailable
from tests.recommenders.http.hostile_recommender import (
    HISTORIES,
    ITEMS,
    QUICK,
    CornacLike,
    request,
)


def test_a_cornac_server_as_it_is(hostile):
    server = hostile(kind=CornacLike)
    ours = load_recommender("cornac+" + server.url)
    requests = [request("u1", exclude=frozenset(ITEMS[1:4])), request("u0")]
    assert [s.item_ids for s in ours.recommend(requests)] == [ITEMS[4:8], ITEMS[1:5]]
    assert "/rec/recommend?uid=u1&k=7&remove_seen=false" in server.gets
    nearly = request("u0", exclude=frozenset(ITEMS[:-2]))  # k + excluded are more than all
    assert ours.recommend([nearly])[0].item_ids == ITEMS[-2:]
    with pytest.raises(RequestRefused, match="user 'new' may be one"):
        ours.recommend([request("new")])
    again = from_http(server.url, cornac=True, fallback=Random(ITEMS), config=QUICK)
    assert again.recommend([request("new")]) == Random(ITEMS).recommend([request("new")])
    again.recommend([request("u0")])
    for n in range(9):  # users that are unknown are no broken server
        assert again.recommend([request(f"new{n}")])[0].item_ids
    histories = {user: HISTORIES[user] for user in server.users}
    report = check_contract(again, ITEMS, histories, rounds=1)
    assert report.passed, str(report)
    with pytest.raises(ValueError, match="unknown users of a Cornac server only"):
        from_http(server.url, fallback=Popularity())


def test_a_cornac_server_that_mixes_users_up(hostile):
    class Mixed(CornacLike):
        def get(self, path):
            return super().get(path.replace("uid=u0", "uid=u1"))

    ours = from_http(hostile(kind=Mixed).url, cornac=True, config=QUICK)
    with pytest.raises(RecommenderUnavailable, match="the list of user 'u1' for user 'u0'"):
        ours.recommend([request("u0")])


def test_the_cornac_server_itself(tmp_path):
    """`cornac.serving` in a process of its own, as its manual starts it."""
    pytest.importorskip("flask", reason="Cornac's server needs Flask: pip install it")
    make = (
        "import cornac\n"
        "pairs = [(u, i) for u in range(3) for i in range(40) if (u + i) % 3]\n"
        "rows = [(f'u{u}', f'i{i:02d}', 4.0) for u, i in pairs]\n"
        "data = cornac.data.Dataset.from_uir(rows, seed=0)\n"
        "model = cornac.models.MostPop().fit(data)\n"
        "model.save('m', save_trainset=True)\n"
        "import os, glob\n"
        "os.environ['MODEL_PATH'] = os.path.abspath(glob.glob('m/*/*.pkl')[0])\n"
        "os.environ['MODEL_CLASS'] = 'cornac.models.MostPop'\n"
        "from cornac.serving.app import app\n"
        "from werkzeug.serving import make_server\n"
        "server = make_server('127.0.0.1', 0, app, threaded=True)\n"
        "print('PORT', server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", make],
        cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port = next((line.split()[1] for line in process.stdout if "PORT" in line), None)
        ours = load_recommender(f"cornac+http://127.0.0.1:{port}")
        [slate] = ours.recommend([request("u1", exclude=frozenset(ITEMS[:9]))])
        assert len(slate.item_ids) == 4 and not set(slate.item_ids) & set(ITEMS[:9])
        with pytest.raises(RequestRefused, match="answers 500"):
            ours.recommend([request("nobody")])
    finally:
        process.kill()
        process.wait()
