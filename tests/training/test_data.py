"""Batches are a function of (shards, seed, step); rows keep every trained token once."""

import json
from collections import Counter

import numpy as np
import pytest
from tiny_task import SOURCE, conversation, examples

from alignuser_jax.language.render import render
from alignuser_jax.records import Example, Message, Span
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import (
    Counts,
    _Epochs,
    sequence,
    split_replies,
    training_batches,
    validation_batches,
)
from alignuser_jax.training.records_io import ShardError, write_shards

QUOTAS = {"reflection": 1, "world_model": 3}


def config(**changes):
    return TrainConfig(**{"steps": 1, "batch_size": 4, "seq_len": 96, "seed": 3, **changes})


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        for left, right in zip(x, y, strict=True):
            np.testing.assert_array_equal(left, right)


def segments(batch):
    """(task, tokens, targets, weights) of every example in a batch, positions checked."""
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
    batches = iter(training_batches(str(shards), tokenizer, QUOTAS, config(packing=packing)))
    for batch in take(batches, 3):
        assert all(field.shape == (4, 96) for field in batch)
        assert batch.tokens.dtype == np.int32 and batch.weights.dtype == np.float32
        assert [int(row[0]) for row in batch.task] == [0, 1, 1, 1]
        assert (batch.task == batch.task[:, :1]).all()
        assert (batch.weights[batch.segment_ids == 0] == 0).all()
        assert (batch.segment_ids.max(axis=1) > 1).any() == packing


def test_packed_rows_hold_the_examples_of_an_epoch_and_no_others(shards, tokenizer):
    expected = Counter()
    for example in examples(24):
        row = sequence(tokenizer, example, config())
        index = sorted(QUOTAS).index(example.task)
        expected[(index, *(tuple(row[k]) for k in ("tokens", "targets", "weights")))] += 1
    seen = Counter()
    for batch in take(iter(training_batches(str(shards), tokenizer, QUOTAS, config())), 40):
        seen.update(segments(batch))
    assert set(seen) == set(expected)


def test_resume_is_bit_identical_and_the_state_is_json(shards, tokenizer):
    dataset = training_batches(str(shards), tokenizer, QUOTAS, config())
    whole = take(iter(dataset), 9)
    first = iter(dataset)
    take(first, 4)
    state = json.loads(json.dumps(first.get_state()))
    again = iter(training_batches(str(shards), tokenizer, QUOTAS, config()))
    again.set_state(state)
    assert_same(take(again, 5), whole[4:])
    for number in (1, 2, 3):
        first, again = iter(dataset), iter(dataset)
        take(first, number)
        again.set_state(first.get_state())
        assert_same(take(again, 2), whole[number : number + 2])


def test_seed_decides_the_order(shards, tokenizer):
    one, same, other = (
        take(iter(training_batches(str(shards), tokenizer, QUOTAS, config(seed=s))), 1)
        for s in (1, 1, 2)
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


def test_too_long_is_cut_on_the_left_only_where_the_reply_survives(tokenizer):
    padding = Message.of("user", "say red, " * 40)
    reply = conversation("visit", 1).messages[-1]
    example = Example("visit", (padding, reply), "long")
    counts = Counts()
    row = sequence(tokenizer, example, config(seq_len=40), counts)
    whole = sequence(tokenizer, example, config(seq_len=4000))
    assert counts == Counts(left_truncated=1)
    for name in row:
        np.testing.assert_array_equal(row[name], whole[name][-40:])
    early = Example("visit", (reply, padding, reply), "early")
    assert sequence(tokenizer, early, config(seq_len=40), counts) is None
    assert counts == Counts(left_truncated=1, refused=1)


def test_nothing_that_fits_is_an_error_not_a_hang(tmp_path, tokenizer):
    write_shards([conversation("visit", 1)], tmp_path, manifest=SOURCE)
    batches = training_batches(str(tmp_path), tokenizer, {"visit": 4}, config(seq_len=4))
    with pytest.raises(ShardError, match="none of the first .*'visit'.*seq_len=4"):
        next(iter(batches))


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
    assert all(batch.tokens.shape == (4, 96) for batch in batches[0])
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


def test_each_epoch_is_another_permutation():
    source = [bytes([n]) for n in range(20)]
    records = _Epochs(source, 0, "visit")
    epochs = [[records[20 * epoch + n] for n in range(20)] for epoch in range(3)]
    assert all(sorted(epoch) == source for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[2] == [_Epochs(source, 0, "visit")[40 + n] for n in range(20)]
    assert epochs[0] != [_Epochs(source, 1, "visit")[n] for n in range(20)]
