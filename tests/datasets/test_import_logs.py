"""The program, run as a person would run it."""

import os
import subprocess
import sys
from pathlib import Path

from alignuser_jax.datasets import load_dataset
from alignuser_jax.datasets.sessions import sessions
from tests.datasets.formats.movielens_files import write_1m
from tests.datasets.formats.opera_files import write_opera
from tests.datasets.formats.test_amazon import META_2014, REVIEWS_2014
from tests.datasets.formats.test_recbole import write as write_recbole
from tests.datasets.formats.test_steam import KANG_MCAULEY
from tests.datasets.formats.test_usermirrorer import ML_1M
from tests.datasets.formats.test_usermirrorer import write as write_usermirrorer

ROOT = Path(__file__).parents[2]


def run(*arguments, code="", cwd=ROOT):
    program = "from alignuser_jax.runs.flags import run; from data_prep import import_logs; "
    command = [sys.executable, "-c", f"{program}{code}\nrun(import_logs.main)"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def forked(tmp_path, commands):
    """(exit code, what was printed) of each: one process, as imports take longest, that forks
    for every command."""
    fork = (
        "import os, sys\n"
        f"for n, arguments in enumerate({commands!r}):\n"
        "    if not os.fork():\n"
        "        sys.stdout = sys.stderr = open(f'{n}.txt', 'w')\n"
        "        sys.argv = ['import_logs', *arguments]\n"
        "        break\n"
        "    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)\n"
        "else:\n"
        "    sys.exit()\n"
    )
    code, codes, error = run(code=f"\n{fork}", cwd=tmp_path)
    assert code == 0, error
    texts = [(tmp_path / f"{n}.txt").read_text() for n in range(len(commands))]
    return [int(text) for text in codes.split()], texts


def test_movielens_with_dirt_then_strict(tmp_path):
    lines = [f"{user}::{item}::4::{item}" for user in (1, 2) for item in range(10)]
    movies = [f"{n}::M{n}::Drama" for n in range(10)]
    folder = write_1m(tmp_path / "ml", [*lines, "1::77::4::5", "2::1"], movies)
    (tmp_path / "text.csv").write_text("item_id,description\n3,Three.\n")
    out = tmp_path / "out"
    common = (f"--input={folder}", f"--output={out}", "--format=movielens")
    code, text, error = run(*common, "--name=mine", f"--descriptions={tmp_path / 'text.csv'}")
    assert code == 0, error
    table = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.split("\n") if "|" in line
    ]
    assert table[0] == ["part", "interactions", "users", "rated items", "mean rating"]
    assert table[2:] == [
        ["all", "20", "2", "10", "4.000"],
        ["train", "16", "2", "8", "4.000"],
        ["validation", "2", "2", "1", "4.000"],
        ["test", "2", "2", "1", "4.000"],
    ]
    assert "unknown item id: 1 (ratings.dat:21)" in text
    assert "truncated or too long line: 1 (ratings.dat:22)" in text
    assert "no leak found" in text and text.strip().endswith(str(out))
    assert "SYNTHETIC" not in text
    dataset = load_dataset(out)
    assert dataset.name == "mine" and dataset.items["3"].description == "Three."

    code, text, error = run(*common, "--strict")
    assert code == 2 and "Traceback" not in error and not text
    assert (
        error.startswith("error: ") and "ratings.dat:21" in error and "ratings.dat:22" in error
    )
    assert load_dataset(out).name == "mine"  # what was there stays


def test_tabular_with_mappings(tmp_path):
    (tmp_path / "log.csv").write_text("ts,uid,iid,stars\n5,a,x,4\n6,a,y,3\n7,b,x,2\n")
    (tmp_path / "items.csv").write_text("asin,title,genres\nx,Ex,War\ny,Why,Drama|War\n")
    (tmp_path / "users.csv").write_text("id,name,age\na,Ann,30\n")
    code, text, error = run(
        "--format=tabular",
        "--input=log.csv",
        "--output=out",
        "--columns=user=uid,item=iid,rating=stars,timestamp=ts",
        "--items=items.csv",
        "--item_columns=item=asin",
        "--users=users.csv",
        "--user_columns=user=id",
        "--split=global",
        cwd=tmp_path,
    )
    assert code == 0, error
    dataset = load_dataset(tmp_path / "out")
    assert dataset.items["y"].genres == ("Drama", "War")
    assert dataset.demographics["a"]["age"] == "30"
    assert dataset.manifest["split"]["kind"] == "global"


def test_the_other_formats(tmp_path):
    write_opera(tmp_path / "opera")
    write_recbole(tmp_path / "rb")
    write_usermirrorer(tmp_path / "um", "ml-1m", ML_1M)
    for name, lines in (("b.json", REVIEWS_2014), ("m.json", META_2014)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "steam_reviews.json").write_text("".join(f"{r}\n" for r in KANG_MCAULEY))
    expected = [
        (["--format=opera", "--input=opera"], "13 of 18 actions with a target are on their",
         "opera-filtered: 1 items, sessions split"),
        (["--format=recbole", "--input=rb"], "unknown item id: 1", "ml: 2 items"),
        (["--format=usermirrorer", "--input=um"], "bad rating: 1", "ml-1m: 2 items"),
        (["--format=amazon", "--input=b.json", "--items=m.json"], "unknown item id: 1",
         "amazon: 2 items"),
        (["--format=steam", "--input=steam_reviews.json", "--steam_rating=playtime"],
         "bad rating: 1", "steam: 2 items"),
    ]  # fmt: skip
    out = [[*flags, f"--output=out{n}"] for n, (flags, *_) in enumerate(expected)]
    codes, texts = forked(tmp_path, out)
    for (flags, *parts), code, text in zip(expected, codes, texts, strict=True):
        assert code == 0 and "no leak found" in text, (flags, text)
        assert all(part in text for part in parts), (flags, text)
    row = next(line for line in texts[0].split("\n") if line.startswith("| all"))
    assert row.split()[3:12:2] == ["5", "23", "2", "5", "3"]
    assert len(list(sessions(load_dataset(tmp_path / "out0")))) == 5


def test_synthetic_says_so(tmp_path):
    out = tmp_path / "out"
    sizes = (
        "--synthetic_users=8",
        "--synthetic_items=30",
        "--synthetic_ratings=10",
        "--seed=5",
    )
    code, text, error = run("--format=synthetic", f"--output={out}", *sizes)
    assert code == 0, error
    assert "SYNTHETIC" in text
    dataset = load_dataset(out)
    assert dataset.synthetic and dataset.manifest["source"]["config"]["seed"] == 5
    assert (len(dataset.user_ids), len(dataset.item_ids)) == (8, 30)


def test_core_sample_and_shares(tmp_path):
    out = tmp_path / "out"
    code, text, error = run(
        "--format=synthetic",
        f"--output={out}",
        "--synthetic_users=40",
        "--synthetic_items=60",
        "--k_core=12",
        "--sample_users=20",
        "--shares=0.6,0.2,0.2",
        "--split=global",
    )
    assert code == 0, error
    dataset = load_dataset(out)
    core, sample = dataset.manifest["filters"]
    assert core["k_core"] == 12 and sample["sample"] == {"users": 20, "seed": 101}
    assert f"12-core: {core['left_interactions']} interactions, " in text
    assert f"sample of users, seed 101: {len(dataset.log)} interactions, 20 users" in text
    assert dataset.manifest["split"]["shares"] == [0.6, 0.2, 0.2]
    assert len(dataset.user_ids) == 20 and "no leak found" in text
    assert dataset.manifest["source"]["config"]["seed"] == 0


def test_a_leak_exits_with_1_and_writes_nothing(tmp_path):
    code, text, error = run(
        "--format=synthetic",
        f"--output={tmp_path / 'out'}",
        code="import_logs.split_faults = lambda dataset: ['item 3 is in train and test']",
    )
    assert code == 1 and "item 3 is in train and test" in text, error
    assert "no leak found" not in text and not (tmp_path / "out").exists()


REFUSED = [
    (["--format=movielens", "--input=missing"], "no MovieLens layout in missing"),
    (["--format=movielens"], "--format=movielens needs --input"),
    (["--format=movielens", "--input=a", "--items=a.csv"], "has no use for --items"),
    (["--format=tabular", "--input=a.csv"], "a.csv lacks the columns user=user_id"),
    (["--format=tabular", "--input=a.csv", "--columns=usr=a"], "expected role=column"),
    (["--format=tabular", "--input=a.csv", "--columns=user"], "expected role=column"),
    (["--format=tabular", "--input=a.parquet"], "not a parquet file"),
    (["--format=synthetic", "--input=a.csv"], "--format=synthetic has no use for --input"),
    (["--format=synthetic", "--synthetic_users=1"], "expected 2 users or more"),
    (["--format=synthetic", "--k_core=500"], "use a smaller --k_core"),
    (["--format=synthetic", "--k_core=-1"], "expected 0 (no filter) or more"),
    (["--format=synthetic", "--sample_users=500"], "500 users are asked for"),
    (["--format=synthetic", "--shares=0.8,0.1"], "three that add up to 1"),
    (["--format=synthetic", "--shares=0.8,0.1,nan"], "three that add up to 1"),
    (["--format=synthetic", "--shares=most,some,few"], "expected three numbers"),
    (["--format=synthetic", "extra"], "unexpected arguments"),
    (["--format=opera", "--input=missing"], "no OPeRA tables in missing"),
    (["--format=opera", "--input=a", "--split=global"], "has no use for --split"),
    (["--format=opera", "--input=a", "--items=b"], "has no use for --items"),
    (["--format=steam", "--input=missing"], "missing is neither a file nor a folder"),
    (["--format=movielens", "--input=a", "--crawl_year=2016"], "no use for --crawl_year"),
    (["--format=amazon", "--input=full"], "no reviews in full"),
    (["--format=usermirrorer", "--input=full"], "no _interaction file in full"),
    (["--format=recbole", "--input=full"], "no .inter file in full"),
    (["--format=recbole", "--input=full", "--columns=who=x"], "expected role=column"),
    (["--format=synthetic", "--output=full"], "choose another output folder"),
]


def test_bad_input_is_one_clear_message(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a.parquet").write_text("a,b\n1,2\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    codes, texts = forked(tmp_path, [["--output=out", *flags] for flags, _ in REFUSED])
    for (arguments, message), text in zip(REFUSED, texts, strict=True):
        assert message in text and "Traceback" not in text, (arguments, text)
    assert codes == [2] * len(REFUSED)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "letter.txt").read_text() == "dear"
