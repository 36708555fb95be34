"""RecBole itself, where it is installed: it needs other versions than ours, so an environment
of its own, whose Python ALIGNUSER_RECBOLE_PYTHON names (data_prep/README.md says how to make
one)."""

import json
import os
import subprocess

import numpy as np
import pytest

from alignuser_jax.recommenders import check_contract, from_recbole
from alignuser_jax.records import Interaction, RecommendationRequest
from data_prep import recbole_side

PYTHON = os.environ.get("ALIGNUSER_RECBOLE_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="ALIGNUSER_RECBOLE_PYTHON names no Python that has RecBole"
)
TRAIN = """
import json, sys
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils.case_study import full_sort_topk
model = sys.argv[1]
config = dict(
    data_path=".", checkpoint_dir=f"saved-{model}", epochs=2, show_progress=False,
    state="ERROR", load_col={"inter": ["user_id", "item_id", "timestamp"]}, use_gpu=False,
    TIME_FIELD="timestamp", metrics=["Recall"], topk=[10], valid_metric="Recall@10",
    eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user",
               "mode": "full"},
)
if model == "SASRec":
    config["train_neg_sample_args"] = None
run_recbole(model=model, dataset="toy", config_dict=config)
from pathlib import Path
(saved,) = Path(f"saved-{model}").glob("*.pth")
saved.rename(f"{model}.pth")
_, trained, dataset, _, _, test = load_data_and_model(model_file=f"{model}.pth")
trained.eval()
users = dataset.token2id("user_id", [f"u{n}" for n in range(30)])
_, best = full_sort_topk(users, trained, test, k=40, device="cpu")
json.dump(dataset.id2token("item_id", best.cpu()).tolist(), open(f"{model}.json", "w"))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a log of two tastes and RecBole's own models and top items."""
    folder = tmp_path_factory.mktemp("recbole")
    draw = np.random.default_rng(0)
    (folder / "toy").mkdir()
    histories = {}
    with open(folder / "toy" / "toy.inter", "w") as out:
        out.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(30):
            items = 2 * draw.permutation(25)[:12] + user % 2
            histories[f"u{user}"] = [f"i{item:02d}" for item in items]
            for time, item in enumerate(histories[f"u{user}"]):
                out.write(f"u{user}\t{item}\t{1000 + time}\n")
    (folder / "train.py").write_text(TRAIN)
    for model in ("BPR", "SASRec"):
        run(folder, "train.py", model)
    return folder, histories


def run(folder, *arguments):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PYTHON, *arguments], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def requests(histories, count=-1, k=6):
    """What every user did but for the last `-count` items, and all of it excluded."""
    return [
        RecommendationRequest(
            user, tuple(Interaction(i, 5.0) for i in items[:count]), k=k,
            exclude=frozenset(items[:count]),
        )
        for user, items in histories.items()
    ]  # fmt: skip


def ranking(folder, model, histories, count=-1):
    """RecBole's own ranking for its test, which knows all but the last item as `requests` does,
    without what is excluded there (RecBole masks it for BPR, not for sequential models)."""
    best = json.loads((folder / f"{model}.json").read_text())
    return [
        [item for item in own if item not in items[:count]][:6]
        for own, items in zip(best, histories.values(), strict=True)
    ]


def slates_of(slates):
    return [list(slate.item_ids) for slate in slates]


def test_an_exported_file_is_recboles_ranking(place):
    folder, histories = place
    run(folder, recbole_side.__file__, "export", "BPR.pth", "recs.tsv", "--k=40")
    slates = from_recbole(folder / "recs.tsv").recommend(requests(histories))
    assert slates_of(slates) == ranking(folder, "BPR", histories)


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_a_served_model_is_recboles_ranking_and_keeps_the_contract(place, model):
    folder, histories = place
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [PYTHON, recbole_side.__file__, "serve", f"{model}.pth", "--port=0"]
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            line = next(line for line in process.stdout if line.startswith("serving "))
            served = from_recbole(line.split()[-1])
            slates = served.recommend(requests(histories))
            assert slates_of(slates) == ranking(folder, model, histories)
            moved = served.recommend(requests(histories, count=4))
            seen_live = slates_of(moved) != ranking(folder, model, histories, count=4)
            assert seen_live == (model == "SASRec")
            interactions = {
                u: tuple(Interaction(i, 5.0) for i in h) for u, h in histories.items()
            }
            items = sorted({item for own in histories.values() for item in own})
            report = check_contract(served, items, interactions, rounds=1)
            assert report.passed, str(report)
        finally:
            process.kill()
