"""The file that runs in RecBole's environment, against a stand-in with the interface of RecBole
1.2.1 (`load_data_and_model`, `full_sort_scores`, `Interaction`); RecBole itself, which pins
other versions than ours, is not installed here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignuser_jax.recommenders import check_contract, from_recbole
from alignuser_jax.recommenders.http import protocol
from alignuser_jax.records import Interaction, RecommendationRequest
from data_prep import recbole_side

pytest.importorskip("torch", reason="RecBole's side needs torch, as RecBole does")

USERS, ITEMS = 5, 30


def test_the_copy_of_the_protocols_name_is_up_to_date():
    """The file imports nothing of ours, so the name stands in it a second time."""
    assert recbole_side.PROTOCOL == protocol.PROTOCOL
    text = Path(recbole_side.__file__).read_text()
    imports = [
        line for line in text.splitlines() if line.lstrip().startswith(("import", "from"))
    ]
    assert not any("alignuser" in line or "data_prep" in line for line in imports)


STAND_IN = {
    "recbole/__init__.py": "",
    "recbole/data/__init__.py": "",
    "recbole/data/interaction.py": """
class Interaction(dict):
    def to(self, device):
        return self
""",
    "recbole/utils/__init__.py": "",
    "recbole/utils/case_study.py": """
import torch

def full_sort_scores(users, model, test, device=None):
    scores = model.table[torch.tensor(users)].clone()
    scores[:, 0] = -float("inf")
    for row, user in enumerate(users):
        scores[row, list(test.seen[user])] = -float("inf")
    return scores
""",
    "recbole/quick_start/__init__.py": """
from types import SimpleNamespace
import torch

class General(torch.nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = table

class Sequential(General):
    ITEM_SEQ, ITEM_SEQ_LEN, max_seq_length = "item_list", "item_length", 3

    def full_sort_predict(self, asked):
        rows, lengths = asked["item_list"], asked["item_length"]
        last = rows.gather(1, lengths[:, None] - 1)[:, 0]
        return -(torch.arange(31)[None] - last[:, None] - 1).abs().float()

def load_data_and_model(model_file):
    kind, table = torch.load(model_file)
    tokens = {"user_id": {"[PAD]": 0}, "item_id": {"[PAD]": 0}}
    tokens["user_id"] |= {f"u{n}": n + 1 for n in range(5)}
    tokens["item_id"] |= {f"i{n:02d}": n + 1 for n in range(30)}
    inter = torch.tensor([(u, i) for u in range(1, 6) for i in (1, u + 1)])
    dataset = SimpleNamespace(
        uid_field="user_id", iid_field="item_id", field2token_id=tokens,
        inter_feat={"user_id": inter[:, 0], "item_id": inter[:, 1]},
    )
    seen = {u: {1, u + 1} for u in range(1, 6)}
    model = {"general": General, "sequential": Sequential}[kind](table)
    return {"device": "cpu"}, model, dataset, None, None, SimpleNamespace(seen=seen)
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("recbole")
    for name, text in STAND_IN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(recbole_side.__file__, folder / "recbole_side.py")
    table = torch.tensor(np.random.default_rng(0).normal(size=(6, 31)), dtype=torch.float32)
    for kind in ("general", "sequential"):
        torch.save((kind, table), folder / f"{kind}.pth")
    return folder, table.numpy()


def start(folder, *arguments):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "recbole_side.py", *arguments],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(params=["general", "sequential"])
def served(place, request):
    process = start(place[0], "serve", f"{request.param}.pth", "--port=0")
    line = process.stdout.readline()
    assert line.startswith("serving "), process.communicate()
    yield request.param, from_recbole(line.split()[-1])
    process.kill()
    process.communicate()


def item(code):
    return f"i{code - 1:02d}"


def test_served(served, place):
    kind, ours = served
    assert ours.name.lower() == kind and len(ours.version) == 12 and not ours.stateful
    history = (Interaction("i00", 4.0), Interaction("i04", 4.0))
    request = RecommendationRequest("u3", history, exclude=frozenset({"i00", "i04"}))
    [slate] = ours.recommend([request])
    if kind == "general":
        scores = place[1][4].copy()
        scores[[0, 1, 5]] = -np.inf
        assert slate.item_ids == tuple(item(c) for c in np.argsort(-scores)[:4].tolist())
    else:  # after i04 come i05 and its neighbours; the session counts
        assert slate.item_ids[0] == "i05"
        live = RecommendationRequest("u3", history, (Interaction("i20", 5.0),))
        assert ours.recommend([live])[0].item_ids[0] == "i21"
    [stranger] = ours.recommend([RecommendationRequest("new", ())])
    assert stranger.item_ids == ("i00", "i01", "i02", "i03")  # the most popular
    histories = {f"u{n}": (Interaction("i00", 4.0),) for n in range(USERS)}
    items = [f"i{n:02d}" for n in range(ITEMS)]
    report = check_contract(ours, items, histories, rounds=1)
    assert report.passed, str(report)


def test_exported(place):
    folder, table = place
    process = start(folder, "export", "general.pth", "recs.tsv", "--k=10")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == "5 users: recs.tsv\n", err
    ours = from_recbole(folder / "recs.tsv")
    scores = table[4].copy()
    scores[[0, 1, 5]] = -np.inf
    best = tuple(item(c) for c in np.argsort(-scores)[:8].tolist())
    assert ours.recommend([RecommendationRequest("u3", (), k=8)])[0].item_ids == best
