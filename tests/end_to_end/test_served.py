"""A server that this project did not write (`transformers serve`) answers 20 agents; it is
killed in the middle, the run stops by name, and the same command goes on when it is back.

The served model is a tiny Qwen3 that has learned the form of the answers, as that server
constrains nothing; what cannot be read all the same is counted.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.driver.backend import Backend
from alignuser_jax.durable.answers import unpack
from alignuser_jax.durable.frames import records_in
from alignuser_jax.language.parsing import answer_text
from alignuser_jax.randomness import stable_key
from alignuser_jax.recommenders import Random
from alignuser_jax.runs import simulate as simulation
from alignuser_jax.runs.backend import with_context
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.simulate import SimulationSettings
from alignuser_jax.sampling import ScriptedGenerator
from alignuser_jax.views import policy_and_agent_users, simulation_view
from tests.end_to_end.test_backbone import byte_level

pytestmark = pytest.mark.slow  # two minutes on a quiet machine
ROOT = Path(__file__).parents[2]
AGENTS = 20
WINDOW = 64
"""The model attends to so many tokens: it learns on short texts and answers after long ones."""


@pytest.fixture(scope="module")
def torch():
    for needed in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(
            needed, reason=f"`transformers serve` needs {needed}: pip install it"
        )
    return pytest.importorskip("torch", reason="transformers serve needs torch")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    dataset = synthetic.generate(
        synthetic.SyntheticConfig(users=60, items=40, ratings_per_user=16)
    )
    dataset.save(folder / "data")
    Random(dataset.item_ids).save(folder / "random")
    return folder, dataset


def asked_and_answered(place):
    """(messages, reply) of agents that answer at random."""
    folder, dataset = place
    experiment = with_context(load_experiment(ROOT / "configs" / "tiny.py"), 8192)
    replies = []

    def reply(request):
        choices = [stable_key(request.key, n) % len(a) for n, a in enumerate(request.answer)]
        text = answer_text(choices, request.answer)
        replies.append(
            ([{"role": m.role, "content": m.content} for m in request.messages], text)
        )
        return text

    users = policy_and_agent_users(dataset, AGENTS, experiment.seed)[0]
    simulation.simulate(
        experiment, dataset, simulation_view(dataset), {"a": Random(dataset.item_ids)},
        Backend(ScriptedGenerator(reply), len, "random"), folder / "scripted",
        SimulationSettings(users, horizon=1, progress=False),
    )  # fmt: skip
    return replies


@pytest.fixture(scope="module")
def model(place, torch):
    """A tiny Qwen3 in hub format that has learned to answer in the right form."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    pairs = asked_and_answered(place)
    texts = [m["content"] for messages, _ in pairs for m in messages[-1:]]
    tokenizer = byte_level([*texts, *(reply for _, reply in pairs)])
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, bos_token_id=None,
        eos_token_id=1, pad_token_id=1, max_position_embeddings=8192,
        use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0,
    )  # fmt: skip
    net = Qwen3ForCausalLM(config)
    rows = {}  # by the kind of answer
    for messages, reply in pairs:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer.encode(text)[-2 * WINDOW :]
        rows.setdefault(reply[:4], []).append((prompt, tokenizer.encode(reply) + [1]))
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    draw = random.Random(0)
    for _ in range(160):
        batch = [draw.choice(of_kind) for of_kind in rows.values() for _ in range(2)]
        length = max(len(p) + len(r) for p, r in batch)
        ids = torch.ones(len(batch), length, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for n, (prompt, reply) in enumerate(batch):
            end = len(prompt) + len(reply)
            ids[n, :end] = torch.tensor(prompt + reply)
            labels[n, len(prompt) : end] = torch.tensor(reply)
        net(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    net.generation_config.do_sample = True
    folder = place[0] / "tiny-qwen3"
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Serve:
    """`transformers serve` of one model at one port; `log` tells every call that it took."""

    def __init__(self, model, place):
        self.model, self.folder = model, place[0]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log, self.process = None, None

    def start(self, name):
        self.log = self.folder / f"{name}.log"
        home = {"HF_HOME": str(self.folder / "hub"), "HF_HUB_OFFLINE": "1"}
        (self.folder / "hub" / "hub").mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [
                Path(sys.executable).with_name("transformers"), "serve", self.model,
                "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu",
            ],
            env=os.environ | home | {"OMP_NUM_THREADS": "1"},
            stdout=self.log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"no health of the server: {self.log.read_text()[-2000:]}")

    def kill(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def calls(self):
        return self.log.read_text().count("[Request received]")


@pytest.fixture
def serve(model, place):
    made = Serve(model, place)
    yield made
    made.kill()


def simulate(place, serve):
    folder = place[0]
    arms = ",".join(f"{name}={folder / 'random'}" for name in ("a", "b@1"))
    return subprocess.Popen(
        [
            sys.executable, "-m", "launch.cli", "simulate", "--config=configs/tiny.py",
            f"--set=agents={AGENTS}", f"--dataset={folder / 'data'}", f"--arms={arms}",
            "--horizon=1", f"--out={folder / 'out'}", "--server_concurrency=4",
            f"--server=http://127.0.0.1:{serve.port}/v1", f"--model={serve.model}",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def answered(place):
    """How the requests that the journal holds were answered."""
    reasons = Counter()
    for path in sorted((place[0] / "out" / "journal").glob("segment-*.bin")):
        for _, payload in records_in(path.read_bytes(), path):
            kind, fields = unpack(payload)[-1]
            if kind == "Completion":
                reasons[fields.get("finish_reason", "stop")] += 1
    return reasons


def test_killed_in_the_middle_and_resumed(place, serve):
    serve.start("first")
    run = simulate(place, serve)
    for _ in range(1200):
        if answered(place).total() >= 40 or run.poll() is not None:
            break
        time.sleep(0.1)
    assert run.poll() is None, run.communicate()
    serve.kill()
    killed = time.monotonic()
    out, err = run.communicate(timeout=90)
    seconds = time.monotonic() - killed
    assert run.returncode == 2 and "Traceback" not in err, err
    assert f"no answer from http://127.0.0.1:{serve.port}/v1 after 5 retries" in err
    assert "run the same command again when the server is back" in err
    assert seconds < 60
    assert not (place[0] / "out" / "events.parquet").exists()
    before = answered(place)
    assert before.total() >= 40

    serve.start("second")
    run = simulate(place, serve)
    out, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    after = answered(place)
    events = pq.read_table(place[0] / "out" / "events.parquet")
    print(f"\nstopped {seconds:.1f} s after the kill; {before} then {after}\n{out}")
    assert "constrains no answers" in err
    once_more = int(out.split(" asked once more")[0].rsplit(" ", 1)[1])
    at_the_start = 2  # a word, and the one try at a constraint that it does not refuse unread
    assert serve.calls() == after.total() - before.total() + once_more + at_the_start
    assert simulation.failures(events) == after["error"]
    assert (
        after["stop"] + after["error"] == after.total() and after["error"] < after["stop"] / 3
    )
    visits = events.group_by(["arm", "user_id"]).aggregate([])
    assert len(visits) == AGENTS * 2
    assert events["kind"].to_pylist().count("page") == AGENTS * 2 * 4
