"""Personas of a whole dataset: what they may be matched by, where they go, and the engine."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from alignuser_jax.alignment import BuildConfig, ShardSource, build_shards
from alignuser_jax.datasets.dataset import content_hash
from alignuser_jax.driver import Backend
from alignuser_jax.language.parsing import answer_text
from alignuser_jax.language.prompts import persona_block
from alignuser_jax.personas import GivenPersonas, MatchConfig
from alignuser_jax.personas.match_dataset import (
    MatchPlan,
    closed_lists,
    match_dataset,
    matching_part,
)
from alignuser_jax.randomness import stable_key
from alignuser_jax.sampling import ScriptedGenerator
from alignuser_jax.shards import read_examples, read_manifest
from alignuser_jax.views import simulation_view, test_view, training_view
from tests.alignment.alignment_toy import Listed, toy
from tests.hostile_server import HostileServer, obedient

ROOT = Path(__file__).parents[2]
AGES = ("18-24", "25-34", "56 or older")
CONFIG = MatchConfig(AGES, ("artist", "farmer"), candidates=3, subsets=2, subset_items=8)


def reply(request):
    choices = [stable_key(request.key, n) % len(line) for n, line in enumerate(request.answer)]
    return answer_text(choices, request.answer)


def matched(dataset, folder, config=CONFIG, users=None, generator=None, **plan):
    generator = generator or ScriptedGenerator(reply)
    backend = Backend(generator, lambda text: len(text.split()), "scripted")
    lines = []
    result = match_dataset(
        dataset, users or dataset.user_ids[:6], config, backend, folder, MatchPlan(**plan),
        lines.append,
    )  # fmt: skip
    return result, generator, lines


def with_demographics(dataset, age, occupation):
    table = pa.table(
        {
            "user_id": dataset.user_table["user_id"],
            "age": [age] * len(dataset.user_ids),
            "occupation": [occupation] * len(dataset.user_ids),
        }
    )
    tables = (table, dataset.item_table, dataset.interaction_table)
    return type(dataset)(*tables, {**dataset.manifest, "hash": content_hash(*tables)})


@pytest.mark.parametrize(
    ("part", "place", "changes"),
    [
        ("profile", 3, True),  # of 40 ratings the first 24 are the profile, 32 train
        ("profile", 27, False),
        ("profile", 34, False),
        ("train", 27, True),
        ("train", 34, False),
        ("train", 38, False),
    ],
)
def test_ratings_that_are_to_be_predicted_are_in_no_request(tmp_path, part, place, changes):
    asked = []
    for name, rating in (("a", 1.0), ("b", 5.0)):
        dataset = toy(change=("u01", place, rating))
        config = MatchConfig(AGES, ("artist",), subset_items=50)
        _, generator, _ = matched(dataset, tmp_path / name, config, part=part)
        asked.append(sorted(generator.requests, key=lambda r: r.key))
    assert (asked[0] != asked[1]) == changes


def test_the_true_demographics_are_in_no_request(dataset, tmp_path):
    asked = []
    for name, truth in (("a", ("AGE-X", "JOB-X")), ("b", ("AGE-Y", "JOB-Y"))):
        _, generator, _ = matched(with_demographics(dataset, *truth), tmp_path / name)
        asked.append(sorted(generator.requests, key=lambda r: r.key))
    assert asked[0] == asked[1]
    text = "\n".join(m.content for r in asked[0] for m in r.messages)
    assert "-X" not in text and "Rating" not in text.replace("RATING", "")


def test_the_parts_that_may_be_seen(dataset):
    profile, train = (matching_part(dataset, part) for part in ("profile", "train"))
    assert len(profile) == 24 * 24 and len(train) == 24 * 32
    assert set(profile.split.tolist()) == set(train.split.tolist()) == {0}
    with pytest.raises(ValueError, match="part is 'test'"):
        matching_part(dataset, "test")


def test_closed_lists(dataset):
    assert closed_lists(dataset) == (("25-34",), ("artist",))
    nothing = closed_lists(with_demographics(dataset, "", ""))
    assert tuple(map(len, nothing)) == (7, 21), "MovieLens-1M's"
    assert closed_lists(with_demographics(dataset, "z ", "nurse")) == (("z",), ("nurse",))


def test_the_folder_and_what_is_said(dataset, tmp_path):
    (matches, given), generator, said = matched(dataset, tmp_path, sample=2)
    assert [m.user_id for m in matches] == list(dataset.user_ids[:6])
    assert said[0].startswith("6 users: 90 requests, ") and "per user, as measured" in said[1]
    before = (tmp_path / "personas.jsonl").read_bytes()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["policy"] == "scripted" and manifest["part"] == "profile"
    assert manifest["config"]["subset_items"] == 8 and manifest["matched"] == 6
    _, again, said = matched(dataset, tmp_path, sample=2)
    assert again.requests == [] and "no time is measured" in said[1]
    assert (tmp_path / "personas.jsonl").read_bytes() == before
    (more, _), generator, _ = matched(dataset, tmp_path, users=dataset.user_ids[:8])
    assert more[:6] == matches and {r.purpose for r in generator.requests} == {"propose", "fit"}
    assert len(generator.requests) <= 2 * (15 + 12), "only the two new users are asked about"
    for plan, message in (
        ({"sample": -1}, "sample is -1"),
        ({"part": "test"}, "part is 'test'"),
        ({"profile_share": 1.5}, "profile_share is 1.5"),
        ({"prices": (-1.0, 0.0)}, "prices are"),
    ):
        with pytest.raises(ValueError, match=message):
            matched(dataset, tmp_path, **plan)
    with pytest.raises(ValueError, match="1 unknown users, the first is 'nobody'"):
        matched(dataset, tmp_path, users=("nobody",))
    with pytest.raises(RuntimeError, match="config.seed was 0, now 1"):
        matched(dataset, tmp_path, MatchConfig(**{**manifest["config"], "seed": 1}))


def test_users_without_ratings_are_neither_timed_nor_lost(dataset, tmp_path):
    seen = dataset.interaction_table
    first, others = dataset.user_ids[0], dataset.user_ids[1:4]
    seen = seen.filter(pc.not_equal(seen["user_id"], first))
    quiet = type(dataset)(dataset.user_table, dataset.item_table, seen, dataset.manifest)
    (matches, _), _, said = matched(quiet, tmp_path, users=(first, *others), sample=1)
    assert [m.user_id for m in matches] == [first, *others]
    assert [m.persona is None for m in matches] == [True, False, False, False]
    assert said[0].startswith("3 users: 45 requests, ") and "1 more have no" in said[0]
    assert "per user, as measured" in said[1]


def test_only_the_estimate(dataset, tmp_path):
    result, generator, said = matched(dataset, tmp_path, sample=1, only_estimate=True)
    assert result is None and len(said) == 2 and not (tmp_path / "personas.jsonl").exists()
    assert 0 < len(generator.requests) <= 2 * 27, "two users, to measure the time"
    result, generator, said = matched(dataset, tmp_path / "b", only_estimate=True)
    assert result is None and generator.requests == [] and len(said) == 1


# --- where they go ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(dataset, tmp_path_factory):
    (_, given), *_ = matched(
        dataset, tmp_path_factory.mktemp("given"), users=dataset.user_ids[:20]
    )
    return given


def test_views_show_matched_personas_in_place_of_the_true_ones(dataset, given):
    views = (training_view(dataset, personas=given), simulation_view(dataset, given))
    for view in (*views, test_view(dataset, given)):
        row, persona = given.rows["u03"], view.personas["u03"]
        assert (persona.age, persona.occupation) == (row["age"], row["occupation"])
        assert persona.big_five == row["big_five"] and persona.pickiness > 0
        assert (
            "Personality traits" in persona_block(persona)
            and view.persona_source == given.label
        )
        absent = view.personas["u22"]  # not in the file: never the data's true ones
        assert (absent.age, absent.occupation, absent.big_five) == ("", "", ())
        assert absent.pickiness > 0
    assert training_view(dataset).persona_source == ""
    of_train = GivenPersonas(given.rows, "x", "h", {**given.about, "part": "train"})
    simulation_view(dataset, of_train)
    with pytest.raises(ValueError, match="--part=profile"):
        training_view(dataset, personas=of_train)
    with pytest.raises(ValueError, match="another dataset"):
        simulation_view(toy(seed=5), given)


def test_shards_hold_them_and_say_so(dataset, given, tmp_path):
    config = BuildConfig(tasks=("imitation",), limits={"imitation": 9}, validation_share=0)
    plain = ShardSource(dataset, dataset.user_ids[:6], recommender=Listed(dataset.item_ids))
    build_shards(replace(plain, personas=given), tmp_path / "a", config)
    build_shards(plain, tmp_path / "b", config)
    assert read_manifest(tmp_path / "a")["labels"]["personas"] == given.label
    assert "personas" not in read_manifest(tmp_path / "b")["labels"]
    for example, plain in zip(
        *(read_examples(tmp_path / name) for name in ("a", "b")), strict=True
    ):
        assert example.example_id == plain.example_id
        block = f"Occupation: {given.rows[example.user_id]['occupation']}\nAge: "
        assert block in example.messages[1].content
        assert "Personality traits" in example.messages[1].content
        assert "Personality traits" not in plain.messages[1].content


# --- the engine ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(dataset, tmp_path_factory):
    from alignuser_jax.language import train_sentencepiece
    from alignuser_jax.model import DecoderConfig, init_decoder
    from alignuser_jax.sampling import Engine, EngineConfig

    generator = ScriptedGenerator(reply)
    matched(dataset, tmp_path_factory.mktemp("texts"), generator=generator)
    texts = [m.content for r in generator.requests for m in r.messages]
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_sentencepiece(texts, 900, folder)
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_layers=1,
        num_heads=2, num_kv_heads=1, head_dim=16,
    )  # fmt: skip
    geometry = EngineConfig(slots=8, context=768, chunk=32, group=8)
    return Engine(init_decoder(config, seed=0), tokenizer, geometry), tokenizer


def test_the_engine_answers_and_shares_beginnings(engine, dataset, tmp_path):
    engine, tokenizer = engine
    config = MatchConfig(
        AGES, ("artist", "farmer"), candidates=3, subsets=2, subset_items=8, taste_items=8,
        propose_reasoning_tokens=8, context_tokens=768,
    )  # fmt: skip
    usage = []

    class Counted:
        submit, cancel = engine.submit, engine.cancel

        def collect(self):
            done = engine.collect()
            usage.extend(c.usage for _, c in done)
            return done

    users = dataset.user_ids[:4]
    backend = Backend(Counted(), tokenizer.count, "tiny")
    matches, _ = match_dataset(dataset, users, config, backend, tmp_path / "a")
    assert all(m.persona and not m.failures for m in matches)
    for m in matches:
        assert m.persona.age in AGES and set(m.persona.big_five) <= {1, 2, 3}
        for fits, total in zip(m.fits, m.scores, strict=True):
            assert len(fits) == 4 and all(1 < fit < 10 for fit in fits), "expected values"
            assert total == pytest.approx(sum(fits[:2]) - sum(fits[2:]))
        assert m.chosen == int(np.argmax(m.scores))
    prompt, cached = (
        sum(getattr(u, n) for u in usage) for n in ("prompt_tokens", "cached_tokens")
    )
    assert cached > 0.4 * prompt
    alone, _ = match_dataset(dataset, users[2:3], config, backend, tmp_path / "b")
    assert alone == matches[2:3], "bit for bit the same without the others"


# --- the program --------------------------------------------------------------------------


def command(folder, *flags):
    program = [sys.executable, "-m", "launch.cli", "match-personas", *flags]
    return [*program, "--config=configs/tiny.py", f"--dataset={folder}", "--set=agents=6"]


def alignuser(folder, *flags):
    done = subprocess.run(
        command(folder, *flags), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def test_the_program_without_a_model(dataset, tmp_path):
    dataset.save(tmp_path / "data")
    code, text = alignuser(tmp_path / "data", "--baselines")
    assert code == 0 and "| occupation | logistic regression | 24 " in text, text
    with_demographics(dataset, "", "").save(tmp_path / "none")
    code, text = alignuser(tmp_path / "none", "--baselines", "--set=agents=999")
    assert code == 2 and "nothing to compare --baselines with" in text, text
    code, text = alignuser(tmp_path / "data", f"--output={tmp_path}/out")
    assert code == 2 and "--run must be given" in text and "Traceback" not in text


@pytest.mark.slow
def test_the_program_killed_in_the_middle(dataset, tmp_path, monkeypatch):
    """A server whose answers depend on the request alone; SIGKILL, and the same command."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    dataset.save(tmp_path / "data")
    server = HostileServer(obedient)
    flags = [f"--server={server.url}", "--model=m", "--structured=vllm", "--users=policy"]
    flags += ["--limit=9", "--prices=1,2", "--sample=1"]
    try:  # a reply that may begin with reasoning is not constrained, and this server babbles
        code, text = alignuser(tmp_path / "data", *flags, f"--output={tmp_path}/bad")
        assert code == 2 and "no user was matched" in text and "expected at least 7" in text
        server.bodies.clear()
        flags += ["--reasoning_tokens=0"]
        code, text = alignuser(tmp_path / "data", *flags, f"--output={tmp_path}/whole")
        assert code == 0 and "9 of 9 users matched" in text, text
        assert "9 users: 315 requests, " in text and "price: 0." in text
        assert "matched by server: m" in text and "| age        | matched " in text, text
        asked = len(server.bodies)

        process = subprocess.Popen(
            command(tmp_path / "data", *flags, f"--output={tmp_path}/killed"),
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while len(server.bodies) < asked + 60 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (tmp_path / "killed" / "personas.jsonl").exists()
        server.bodies.clear()
        code, text = alignuser(tmp_path / "data", *flags, f"--output={tmp_path}/killed")
        assert code == 0 and "answers are there already" in text, text
        assert len(server.bodies) < asked - 30, "what was on disk is not asked again"
    finally:
        server.stop()
    for name in ("personas.jsonl", "matches.jsonl", "manifest.json"):
        first, second = ((tmp_path / d / name).read_bytes() for d in ("whole", "killed"))
        assert first == second, name
