"""A run that learns, stops and goes on as if it had never stopped."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from alignuser_jax.model import named_arrays, read_adapter, split
from alignuser_jax.parallel import Hosts, make_mesh
from alignuser_jax.shards import write_shards
from alignuser_jax.training.checkpoint import Checkpoints, adapter_at, rooted
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.held_out import HeldOut
from alignuser_jax.training.loop import RunOptions, train_decoder
from alignuser_jax.training.metrics import METRICS_FILE, RunLog, read_metrics
from alignuser_jax.training.step import trainable_parts
from tests.training.tiny_task import SOURCE, examples

ONE = make_mesh(devices=jax.devices()[:1])


def config(**changes):
    given = {"steps": 6, "batch_size": 4, "seq_len": 64, "learning_rate": 1e-2, "save_every": 2}
    return TrainConfig(**{**given, **changes})


def untimed(out_dir):
    lines = read_metrics(out_dir)
    return [{k: v for k, v in line.items() if k != "timing"} for line in lines]


def assert_same_weights(a, b):
    jax.tree.map(np.testing.assert_array_equal, split(a)[1:], split(b)[1:])


def interrupt_at(step, number):
    def on_step(current):
        if current == step:
            os.kill(os.getpid(), number)

    return on_step


def test_both_losses_fall_and_a_stopped_run_ends_the_same(
    tmp_path, make_decoder, shards, validation, tokenizer
):
    settings = config(
        steps=30, trainable="full", learning_rate=2e-2, save_every=100, eval_every=15
    )
    arguments = (settings, make_decoder(), shards, tokenizer)
    straight = train_decoder(*arguments, tmp_path / "a", RunOptions(validation_dir=validation))
    for task in ("world_model", "reflection"):
        before, after = straight.first_held_out[task], straight.held_out[task]
        assert after["loss"] < 0.5 * before["loss"]
        assert after["weight"] == before["weight"] > 0
    steps = [line for line in straight.metrics if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert {line["timing"]["compilations"] for line in steps} == {1}
    assert all(0 < line["tokens"] <= line["padded_tokens"] == 256 for line in steps)
    assert straight.counts["reflection"].read > 0
    assert list((tmp_path / "a" / "tensorboard").iterdir())
    assert (straight.result_dir / "config.json").is_file()
    with pytest.raises(ValueError, match="has no adapter, it updated every parameter"):
        adapter_at(tmp_path / "a" / "checkpoints", 30)

    with pytest.raises(SystemExit) as left:
        train_decoder(
            *arguments,
            tmp_path / "b",
            RunOptions(validation_dir=validation, on_step=interrupt_at(17, signal.SIGTERM)),
        )  # fmt: skip
    assert left.value.code == 85
    resumed = train_decoder(*arguments, tmp_path / "b", RunOptions(validation_dir=validation))
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    assert_same_weights(straight.decoder, resumed.decoder)
    assert resumed.held_out == straight.held_out

    again = train_decoder(
        *arguments, tmp_path / "b", RunOptions(validation_dir=validation)
    )  # nothing left to do
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    assert again.held_out == straight.held_out
    assert_same_weights(straight.decoder, again.decoder)


def test_lora_resumes_and_exports_its_adapter(tmp_path, make_decoder, shards, tokenizer):
    decoder = make_decoder(rank=2, dropout=0.1)
    arguments = (config(accumulation=2), decoder, shards, tokenizer)
    straight = train_decoder(*arguments, tmp_path / "a")
    with pytest.raises(SystemExit) as left:
        train_decoder(
            *arguments, tmp_path / "b", RunOptions(on_step=interrupt_at(3, signal.SIGINT))
        )
    assert left.value.code == 130
    resumed = train_decoder(*arguments, tmp_path / "b")
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    names = ("adapter_model.safetensors", "adapter_config.json")
    for name in names:
        assert (straight.result_dir / name).read_bytes() == (
            resumed.result_dir / name
        ).read_bytes()
    lora, loaded = read_adapter(straight.result_dir, decoder.config)
    assert lora == decoder.lora
    trained = named_arrays(split(straight.decoder)[1])
    assert loaded.keys() == trained.keys()
    for name, values in loaded.items():
        np.testing.assert_array_equal(values, trained[name])
    checkpoints = tmp_path / "a" / "checkpoints"  # the last two stay, of steps 4 and 6
    last = adapter_at(checkpoints, 6)
    assert (last.lora, last.num_layers) == (decoder.lora, decoder.config.num_layers)
    assert last.arrays.keys() == trained.keys()
    earlier = adapter_at(checkpoints, 4).arrays
    for name, values in last.arrays.items():
        np.testing.assert_array_equal(values, trained[name])
        assert not np.array_equal(values, earlier[name])
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5; it has \[4, 6\]"):
        adapter_at(checkpoints, 5)

    with pytest.raises(ValueError, match=r"config.learning_rate was 0.01, now 0.5"):
        train_decoder(config(accumulation=2, learning_rate=0.5), *arguments[1:], tmp_path / "a")
    with pytest.raises(ValueError, match=r"lora.rank was 2, now 3"):
        train_decoder(arguments[0], make_decoder(rank=3), *arguments[2:], tmp_path / "a")
    graphdef, state = nnx.split(decoder)
    another_base = nnx.merge(graphdef, jax.tree.map(lambda x: 1.01 * x, state))
    with pytest.raises(ValueError, match=r"start_weights was "):
        train_decoder(arguments[0], another_base, *arguments[2:], tmp_path / "a")
    another = type(tokenizer)(tokenizer.model)
    another.fingerprint = "of another vocabulary, or another chat template"
    with pytest.raises(ValueError, match=r"tokenizer was .*, now 'of another"):
        train_decoder(*arguments[:3], another, tmp_path / "a")
    other = tmp_path / "other"
    write_shards(examples(4), other, manifest=SOURCE)
    with pytest.raises(ValueError, match=r"shards was "):
        train_decoder(*arguments[:2], other, tokenizer, tmp_path / "a")


def test_the_best_checkpoint_stays_and_can_be_the_result(
    tmp_path, make_decoder, shards, validation, tokenizer
):
    # A rate far too high for every weight: each step makes the logits larger and more wrong.
    settings = config(
        steps=3, trainable="full", learning_rate=1.0, warmup_ratio=0.5, schedule="constant",
        save_every=100, keep_checkpoints=1, keep_best=1, result="best", packing=False,
        eval_every=1, spike_nats=0,
    )  # fmt: skip
    found = train_decoder(
        settings,
        make_decoder(),
        shards,
        tokenizer,
        tmp_path,
        RunOptions(validation_dir=validation),
    )
    held = {
        line["step"]: sum(task["loss"] for task in line["held_out"].values())
        for line in found.metrics
        if "held_out" in line and line["step"]
    }
    best = min(held, key=held.get)
    assert held[3] > 1.02 * held[best]
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir()} == {best, 3}
    parts, tasks = trainable_parts(found.decoder, "full"), sorted(found.held_out)
    held_out = HeldOut(tokenizer, tasks, settings.on("cpu"), parts, validation, Hosts(ONE))
    with jax.set_mesh(ONE):
        again = held_out.measure(parts.params)
    assert held_out.total(again) == pytest.approx(held[best], rel=1e-5)
    lengths = {line["padded_tokens"] // 4 for line in found.metrics if "padded_tokens" in line}
    assert len(lengths) > 1  # length buckets, each compiled once
    assert found.metrics[-2]["timing"]["compilations"] == len(lengths)
    told = json.loads((tmp_path / "train.json").read_text())
    assert told["train"]["result"] == "best" and told["versions"]["jax"] == jax.__version__


def test_adapters_on_the_upper_layer_train_resume_and_are_saved(
    tmp_path, make_decoder, shards, tokenizer
):
    decoder = make_decoder(rank=2, adapted=1)
    arguments = (config(), decoder, shards, tokenizer, tmp_path)
    found = train_decoder(*arguments)
    again = train_decoder(*arguments)  # the last checkpoint is read back
    lora, arrays = read_adapter(found.result_dir, decoder.config)
    assert lora.layers == 1
    for name, values in named_arrays(split(again.decoder)[1]).items():
        assert values.shape[0] == 1 and np.array_equal(values, arrays[name])
        assert np.abs(values - named_arrays(split(decoder)[1])[name]).max() > 0
    content = json.loads((found.result_dir / "adapter_config.json").read_text())
    assert content["layers_to_transform"] == [1]
    other = make_decoder(rank=2)
    with pytest.raises(ValueError, match="lora.layers was 1, now None"):
        train_decoder(config(), other, *arguments[2:])


def test_a_profile_of_some_steps(tmp_path, make_decoder, shards, tokenizer):
    train_decoder(
        config(), make_decoder(rank=2), shards, tokenizer, tmp_path, RunOptions(profile=(2, 3))
    )
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_half_written_checkpoints_are_not_taken(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"a": 1}, keep=2)
    state = {"x": np.arange(3.0, dtype=np.float32)}
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": state["x"] + step}, {"next": step})
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    half = tmp_path / "4.orbax-checkpoint-tmp-0"
    (half / "state").mkdir(parents=True)
    (half / "state" / "junk").write_text("")
    checkpoints = Checkpoints(tmp_path, {"a": 1}, keep=2)
    assert checkpoints.latest() == 3
    restored, data = checkpoints.restore(jax.tree.map(jax.numpy.asarray, state))
    np.testing.assert_array_equal(restored["x"], [3, 4, 5])
    assert data == {"next": 3}
    checkpoints.close()
    other = Checkpoints(tmp_path, {"a": 1, "b": {"c": "new"}}, keep=2)
    with pytest.raises(
        ValueError, match=r"(?s)by alignuser_jax \d.*b.c was .*absent.*, now 'new'"
    ):
        other.restore(state)
    other.close()


def test_checkpoints_may_lie_in_other_file_systems(tmp_path, monkeypatch):
    assert str(rooted("gs://bucket/run")) == "gs://bucket/run"
    monkeypatch.chdir(tmp_path)
    assert str(rooted("run")) == str(tmp_path / "run")


def test_record_drops_what_comes_after_the_checkpoint_and_torn_lines(tmp_path):
    log = RunLog(tmp_path, -1)
    for step in range(4):
        log.write({"step": step, "loss": 1 / 3})
    log.close()
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"step": 4, "lo')
    log = RunLog(tmp_path, 2)
    assert [line["step"] for line in log.lines] == [0, 1, 2]
    log.write({"step": 3, "loss": 0.5})
    log.close()
    assert read_metrics(tmp_path)[-2:] == [{"step": 2, "loss": 1 / 3}, {"step": 3, "loss": 0.5}]


def test_tokenizer_must_fit_the_decoder(tmp_path, make_decoder, shards, tokenizer):
    class Larger:
        vocab_size = tokenizer.vocab_size + 1

    with pytest.raises(ValueError, match="do not belong together"):
        train_decoder(config(), make_decoder(rank=1), shards, Larger(), tmp_path)
