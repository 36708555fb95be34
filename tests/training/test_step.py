"""One step: the global weighted loss, accumulation, what changes and what does not."""

import jax
import numpy as np
import pytest

from alignuser_jax.model import split
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import training_batches
from alignuser_jax.training.optimizer import decayed, learning_rate
from alignuser_jax.training.step import (
    init_state,
    make_eval_step,
    make_train_step,
    trainable_parts,
)

TASKS = ["reflection", "world_model"]


def config(**changes):
    given = {"batch_size": 8, "seq_len": 64, "learning_rate": 1e-2, "loss_chunk": 64}
    return TrainConfig(**{"steps": 10, **given, **changes})


@pytest.fixture(scope="module")
def batch(shards, tokenizer):
    quotas = dict.fromkeys(TASKS, 4)
    return next(iter(training_batches(str(shards), tokenizer, quotas, config())))


def one_step(decoder, batch, config, steps=1):
    parts = trainable_parts(decoder, config.trainable)
    step, state = make_train_step(parts, TASKS, config), init_state(parts, config)
    for _ in range(steps):
        state, output = step(state, parts.frozen, batch)
    assert step._cache_size() == 1
    return parts, state, output


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_loss_is_the_sum_over_tasks_and_equal_for_any_accumulation(
    make_decoder, batch, trainable
):
    decoder = make_decoder(rank=2 if trainable == "lora" else 0, layers=1)
    lambdas = {"reflection": 0.25}
    outputs, states = [], []
    for accumulation in (1, 2, 4) if trainable == "lora" else (1, 4):
        settings = config(
            trainable=trainable, accumulation=accumulation, task_weights=lambdas
        )
        _, state, output = one_step(decoder, batch, settings)
        outputs.append(output)
        states.append(state)
    hidden, _ = decoder(batch.tokens, batch.positions, batch.segment_ids)
    nll = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(decoder.logits(hidden))), batch.targets[..., None], -1
    )[..., 0]
    means = [
        (nll * batch.weights)[batch.task == k].sum() / batch.weights[batch.task == k].sum()
        for k in range(2)
    ]
    for output, state in zip(outputs, states, strict=True):
        np.testing.assert_allclose(output.nll / output.weight, means, rtol=1e-5)
        np.testing.assert_allclose(output.loss, 0.25 * means[0] + means[1], rtol=1e-5)
        np.testing.assert_allclose(output.grad_norm, outputs[0].grad_norm, rtol=1e-4)
        assert output.tokens == (batch.segment_ids > 0).sum()
        # Adam's first step is a sign: where a gradient is rounding noise it may flip.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3),
            state.opt_state[1][0].mu,
            states[0].opt_state[1][0].mu,
        )


def test_only_the_adapter_changes_and_the_caller_keeps_its_decoder(make_decoder, batch):
    decoder = make_decoder(rank=2, dropout=0.1)
    before = jax.tree.map(np.array, split(decoder)[1:])
    parts, state, _ = one_step(decoder, batch, config(), steps=3)
    trained = split(parts.join(state.params, parts.frozen))
    jax.tree.map(np.testing.assert_array_equal, trained[2], before[1])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), trained[1], before[0])
    assert all(jax.tree.leaves(changed))
    jax.tree.map(np.testing.assert_array_equal, split(decoder)[1:], before)


@pytest.mark.parametrize("tied", [True, False])
def test_full_training_changes_every_leaf(make_decoder, batch, tied):
    decoder = make_decoder(tied=tied)
    before = jax.tree.map(np.array, split(decoder)[2])
    _, state, _ = one_step(decoder, batch, config(trainable="full"), steps=2)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, before)
    assert all(jax.tree.leaves(changed))


def test_a_task_of_weight_zero_gives_no_gradient(make_decoder, batch):
    decoder = make_decoder(rank=2, layers=1)
    only = batch._replace(weights=np.where(batch.task == 1, batch.weights, 0))
    settings = config(task_weights={"reflection": 0.0})
    _, with_zero, _ = one_step(decoder, batch, settings)
    _, without, output = one_step(decoder, only, settings)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        with_zero.opt_state[1][0].mu, without.opt_state[1][0].mu,
    )  # fmt: skip
    assert output.weight[0] == 0


def test_eval_step_measures_both_tasks(make_decoder, batch):
    decoder = make_decoder(layers=1)
    settings = config(trainable="full", task_weights={"reflection": 0.0})
    parts, _, output = one_step(decoder, batch, settings)
    sums, weights = make_eval_step(parts, TASKS, settings)(parts.params, parts.frozen, batch)
    np.testing.assert_allclose(weights, output.weight)
    np.testing.assert_allclose(sums[1], output.nll[1], rtol=1e-5)
    assert sums[0] > 0


def test_structure_and_setting_must_agree(make_decoder):
    with pytest.raises(ValueError, match="'lora' needs a rank"):
        trainable_parts(make_decoder(), "lora")
    with pytest.raises(ValueError, match="'full' needs rank 0"):
        trainable_parts(make_decoder(rank=2), "full")


def test_schedule_warms_up_and_decays():
    rate = learning_rate(config(steps=100, warmup_ratio=0.1, final_lr_ratio=0.1))
    values = [float(rate(step)) for step in range(101)]
    assert values[0] == 0 and max(values) == pytest.approx(1e-2) == values[10]
    assert np.all(np.diff(values[10:]) < 0) and values[100] == pytest.approx(1e-3)
    assert float(learning_rate(config(steps=1))(0)) == pytest.approx(1e-2)


def test_norms_do_not_decay(make_decoder):
    marks = decayed(split(make_decoder())[2])
    assert marks["layers"]["q"]["kernel"].get_value() is True
    assert marks["norm"]["scale"].get_value() is False
    assert marks["layers"]["q_norm"]["scale"].get_value() is False
