"""Batches are a function of (shards, seed, step); rows keep every trained token once."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from alignuser_jax.language.render import render
from alignuser_jax.records import Example, Message, Span
from alignuser_jax.shards import ShardError, write_shards
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import (
    Batches,
    Counts,
    _Stream,
    sequence,
    split_replies,
    validation_batches,
)
from tests.training.tiny_task import SOURCE, conversation, examples

QUOTAS = {"reflection": 1, "world_model": 3}


def config(**changes):
    given = {"steps": 1, "batch_size": 4, "seq_len": 96, "seed": 3, **changes}
    return TrainConfig(**given).on("cpu")


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        for left, right in zip(x, y, strict=True):
            np.testing.assert_array_equal(left, right)


def segments(batch):
    """(task, tokens, targets, weights) of every example in a batch, positions checked."""
    batch = batch._replace(
        **{name: x.reshape(-1, x.shape[-1]) for name, x in batch._asdict().items()}
    )
    for row in range(len(batch.tokens)):
        for segment in sorted(set(batch.segment_ids[row]) - {0}):
            at = batch.segment_ids[row] == segment
            assert list(batch.positions[row][at]) == list(range(at.sum()))
            yield (
                int(batch.task[row][at][0]),
                tuple(batch.tokens[row][at]),
                tuple(batch.targets[row][at]),
                tuple(batch.weights[row][at]),
            )


@pytest.mark.parametrize("packing", [True, False])
def test_shapes_quotas_and_types(shards, tokenizer, packing):
    settings = config(packing=packing, accumulation=2)
    lengths = set()
    for batch in take(Batches(str(shards), tokenizer, QUOTAS, settings), 30):
        lengths.add(batch.tokens.shape[-1])
        assert all(field.shape == (2, 2, batch.tokens.shape[-1]) for field in batch)
        assert batch.tokens.dtype == np.int32 and batch.weights.dtype == np.float32
        assert batch.task[:, :, 0].tolist() == [[0, 1], [1, 1]]
        assert (batch.task == batch.task[:, :, :1]).all()
        assert (batch.weights[batch.segment_ids == 0] == 0).all()
        assert (batch.segment_ids.max(axis=-1) > 1).any() == packing
    assert lengths <= set(settings.lengths)
    assert settings.lengths == ((96,) if packing else (12, 24, 48, 96))
    assert (len(lengths) == 1) == packing


def test_a_batch_without_packing_has_the_shortest_length_that_holds_it(shards, tokenizer):
    for batch in take(Batches(str(shards), tokenizer, QUOTAS, config(packing=False)), 10):
        assert batch.tokens.shape[-1] < 2 * (batch.segment_ids != 0).sum(axis=-1).max()


def test_longer_rows_hold_more_of_the_same_examples(shards, tokenizer):
    short = take(Batches(str(shards), tokenizer, QUOTAS, config()), 20)
    settings = config(row_len=300)
    assert settings.lengths == (300,)
    long = take(Batches(str(shards), tokenizer, QUOTAS, settings), 20)
    assert long[0].tokens.shape == (1, 4, 300)

    def most(batches):
        return max(len(tokens) for b in batches for _, tokens, *_ in segments(b))

    def filled(batches):
        return np.mean([(b.segment_ids != 0).mean() for b in batches])

    assert most(long) <= 96 and most(short) <= 96
    assert filled(long) > filled(short)
    with pytest.raises(ValueError, match="row_len is 95: expected seq_len=96 or more"):
        config(row_len=95)
    with pytest.raises(ValueError, match="row_len is 300: expected None, since packing=False"):
        config(row_len=300, packing=False)
    on_gpu = TrainConfig(steps=1, row_len=1024).on("gpu")
    assert on_gpu.row_len is None and on_gpu.lengths[-1] == 512


def test_packing_must_be_decided(shards, tokenizer):
    undecided = TrainConfig(steps=1, batch_size=4)
    with pytest.raises(ValueError, match=r"config\.on\(platform\)"):
        Batches(str(shards), tokenizer, QUOTAS, undecided)
    assert undecided.on("cpu").packing and undecided.on("tpu").packing
    assert undecided.on("gpu").packing is False and undecided.on("gpu").attention == "cudnn"
    # what a back end does not take is left to XLA
    assert undecided.on("gpu", "float32") == undecided.on("cpu")
    assert undecided.on("gpu", head_dim=12).attention == "xla"
    assert undecided.on("tpu", head_dim=12).attention == "xla"
    assert replace(undecided, packing=True).on("gpu").attention == "xla"
    with pytest.raises(ValueError, match="look across the examples"):
        config(packing=True, attention="cudnn")


@pytest.mark.parametrize("packing", [True, False])
def test_a_process_reads_its_rows_of_the_same_batch(shards, tokenizer, packing):
    settings = config(packing=packing, accumulation=2)
    whole = take(Batches(str(shards), tokenizer, QUOTAS, settings), 6)
    for rows, places in (([0, 2], [0]), ([1, 3], [1]), ([0, 1, 2, 3], [0, 1])):
        part = Batches(str(shards), tokenizer, QUOTAS, settings, rows=rows)
        assert_same(take(part, 6), [[x[:, places] for x in batch] for batch in whole])
    # other processes go on where these stopped: the states of all rows together
    halves = [
        Batches(str(shards), tokenizer, QUOTAS, settings, rows=r) for r in ([0, 2], [1, 3])
    ]
    for half in halves:
        take(half, 3)
    together = json.loads(json.dumps(halves[0].get_state() | halves[1].get_state()))
    alone = Batches(str(shards), tokenizer, QUOTAS, settings)
    alone.set_state(together)
    assert_same(take(alone, 3), whole[3:])
    other = Batches(str(shards), tokenizer, QUOTAS, settings, rows=[0, 1])
    other.set_state(together)
    assert next(other).tokens.shape[:2] == (2, 1)


def test_packed_rows_hold_the_examples_of_an_epoch_and_no_others(shards, tokenizer):
    expected = Counter()
    for example in examples(24):
        row = sequence(tokenizer, example, config())
        index = sorted(QUOTAS).index(example.task)
        expected[(index, *(tuple(row[k]) for k in ("tokens", "targets", "weights")))] += 1
    seen = Counter()
    for batch in take(Batches(str(shards), tokenizer, QUOTAS, config()), 40):
        seen.update(segments(batch))
    assert set(seen) == set(expected)


@pytest.mark.parametrize("packing", [True, False])
def test_resume_is_bit_identical_and_the_state_is_json(shards, tokenizer, packing):
    def batches():
        return Batches(str(shards), tokenizer, QUOTAS, config(packing=packing))

    whole = take(batches(), 9)
    for number in (1, 2, 3, 4):
        first, again = batches(), batches()
        take(first, number)
        again.set_state(json.loads(json.dumps(first.get_state())))
        assert_same(take(again, 5), whole[number : number + 5])


def test_seed_decides_the_order(shards, tokenizer):
    one, same, other = (
        take(Batches(str(shards), tokenizer, QUOTAS, config(seed=s)), 1) for s in (1, 1, 2)
    )
    assert_same(one, same)
    assert (one[0].tokens != other[0].tokens).any()


def test_targets_and_weights_are_the_rendered_ones_shifted(tokenizer):
    example = conversation("world_model", 7, turns=2)
    rendered = render(tokenizer, example.messages)
    row = sequence(tokenizer, example, config(action_weight=3.0))
    n = len(row["tokens"])
    np.testing.assert_array_equal(row["tokens"], rendered.tokens[:n])
    np.testing.assert_array_equal(row["targets"], rendered.tokens[1 : n + 1])
    weights = rendered.weights * np.where(rendered.is_action, 3, 1)
    np.testing.assert_array_equal(row["weights"], weights[1 : n + 1])
    assert set(row["weights"]) == {0, 1, 3}
    means = sequence(tokenizer, example, config(action_weight=3.0, normalize="task_examples"))
    np.testing.assert_allclose(means["weights"], row["weights"] / row["weights"].sum())


def test_too_long_is_refused_and_never_cut(tokenizer):
    """Cut on its left, an example lost its system prompt and persona, which no prompt lacks."""
    padding = Message.of("user", "say red, " * 40)
    reply = conversation("visit", 1).messages[-1]
    example = Example("visit", (padding, reply), "long")
    counts = Counts()
    whole = sequence(tokenizer, example, config(seq_len=4000), counts)
    assert counts == Counts()
    n = len(whole["tokens"])
    exact = sequence(tokenizer, example, config(seq_len=n), counts)
    np.testing.assert_array_equal(exact["tokens"], whole["tokens"])
    assert sequence(tokenizer, example, config(seq_len=n - 1), counts) is None
    assert counts == Counts(too_long=1)
    assert sequence(tokenizer, Example("visit", (padding,), "x"), config(), counts) is None
    assert counts == Counts(too_long=1, untrained=1) and counts.refused == 2


def test_nothing_that_fits_is_an_error_not_a_hang(tmp_path, tokenizer):
    write_shards([conversation("visit", 1)], tmp_path, manifest=SOURCE)
    batches = Batches(str(tmp_path), tokenizer, {"visit": 4}, config(seq_len=4))
    with pytest.raises(ShardError, match="none of the first .*'visit'.*seq_len=4"):
        next(batches)


def test_one_example_per_reply_where_the_template_rewrites_replies(shards, tokenizer):
    example = conversation("visit", 2, turns=3)
    parts = split_replies(example)
    assert [len(p.messages) for p in parts] == [3, 5, 7]
    for part in parts:
        assert part.messages[-1] == example.messages[len(part.messages) - 1]
        assert not any(s.trained or s.action for m in part.messages[:-1] for s in m.spans)

    unstable = type(tokenizer)(tokenizer.model)
    unstable.prefix_stable = False
    count = lambda t: sum(  # noqa: E731
        (segment[3].count(0.0) > 0)
        for batch in validation_batches(str(shards), t, ["reflection"], "reflection", config())
        for segment in segments(batch)
    )
    assert (count(tokenizer), count(unstable)) == (24, 8 * (1 + 2 + 3))


def test_validation_has_every_example_once_in_whole_batches(validation, tokenizer):
    tasks = ["reflection", "world_model"]
    batches = [
        list(validation_batches(str(validation), tokenizer, tasks, "world_model", config()))
        for _ in range(2)
    ]
    assert_same(*batches)
    assert all(batch.tokens.shape == (1, 4, 96) for batch in batches[0])
    found = Counter(s for batch in batches[0] for s in segments(batch))
    assert found.total() == 5 and {task for task, *_ in found} == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": {"visit": 1}}, "no example of"),
        ({"mix": {"reflection": 1, "world_model": 2}}, "not a multiple of 3"),
        ({"task_weights": {"visit": 1.0}}, "names"),
    ],
)
def test_impossible_mixes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes).quotas({"reflection": 5, "world_model": 5, "visit": 0})


def test_mix_and_default_quotas():
    available = {"world_model": 9, "reflection": 1, "visit": 0}
    assert config().quotas(available) == {"reflection": 2, "world_model": 2}
    assert config(mix={"world_model": 3, "reflection": 1}).quotas(available) == QUOTAS


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"accumulation": 3}, {"trainable": "all"}, {"normalize": "x"}]
)
def test_bad_settings_name_themselves(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        config(**changes)


def test_messages_without_trained_weight_are_refused(tokenizer):
    untrained = Example("visit", (Message("assistant", (Span("hello"),)),), "x")
    counts = Counts()
    assert sequence(tokenizer, untrained, config(), counts) is None
    assert counts.refused == 1


def test_each_epoch_is_another_permutation_that_streams_share_out():
    source = [bytes([n]) for n in range(20)]
    records = _Stream(source, 0, "visit")
    epochs = [[records[20 * epoch + n] for n in range(20)] for epoch in range(3)]
    assert all(sorted(epoch) == source for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[2] == [_Stream(source, 0, "visit")[40 + n] for n in range(20)]
    assert epochs[0] != [_Stream(source, 1, "visit")[n] for n in range(20)]
    thirds = [_Stream(source, 0, "visit", start, 3) for start in range(3)]
    assert [thirds[n % 3][n // 3] for n in range(60)] == [r for epoch in epochs for r in epoch]


def test_the_first_reply_has_a_weight_of_its_own(tokenizer):
    example = conversation("visit", 7, turns=3)
    plain = sequence(tokenizer, example, config())["weights"]
    heavy = sequence(tokenizer, example, config(first_reply_weight=4.0))["weights"]
    trained = np.flatnonzero(plain)
    first = trained[: np.flatnonzero(np.diff(trained) > 1)[0] + 1]
    expected = plain.copy()
    expected[first] *= 4
    np.testing.assert_array_equal(heavy, expected)
    alone = conversation("visit", 7, turns=1)
    rows = [sequence(tokenizer, alone, config(first_reply_weight=w)) for w in (1.0, 4.0)]
    np.testing.assert_array_equal(rows[0]["weights"], rows[1]["weights"])
    with pytest.raises(ValueError, match="first_reply_weight is 0"):
        config(first_reply_weight=0)
