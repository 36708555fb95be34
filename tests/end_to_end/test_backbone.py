"""A pretrained backbone with a byte-level vocabulary and a chat template of its own, from
shards to a simulation: its actions share tokens and branch where ours do not."""

from dataclasses import replace
from pathlib import Path

import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.driver.backend import Backend
from alignuser_jax.language import TextTokenizer, prompts
from alignuser_jax.model import DecoderConfig, export_merged, init_decoder, save_pretrained
from alignuser_jax.recommenders import Random
from alignuser_jax.runs import simulate as simulation
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.folder import open_run
from alignuser_jax.runs.policy import load_policy, make_engine
from alignuser_jax.runs.simulate import SimulationSettings
from alignuser_jax.runs.stages import build_stage, train_stage
from alignuser_jax.sampling import EngineConfig
from alignuser_jax.views import policy_and_agent_users, simulation_view

pytestmark = pytest.mark.slow  # two minutes
TINY = Path(__file__).parents[2] / "configs" / "tiny.py"
LENGTH = 1024
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="module")
def dataset():
    return synthetic.generate(
        synthetic.SyntheticConfig(users=30, items=60, ratings_per_user=20)
    )


@pytest.fixture(scope="module")
def experiment(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    titles = [f"{item.title} {' '.join(item.genres)}" for item in dataset.items.values()]
    page = "PAGE 1\n[1] <- The -> <- History ratings: 3.87 -> <- Summary: Drama ->"
    system = prompts.system_prompt("movies", recall=True)
    tokenizer = byte_level([*titles, *[page, system] * 5])
    shape = DecoderConfig(len(tokenizer), 32, 64, 2, 4, 2, 8, eos_token_ids=(1,))
    save_pretrained(init_decoder(shape), folder)
    tokenizer.save_pretrained(folder)
    tiny = load_experiment(
        TINY, ["agents=4", "lora.rank=4", "align.steps=3", "align.batch_size=4"]
    )
    shards = replace(
        tiny.align_shards,
        session=replace(tiny.session, context_tokens=LENGTH, reasoning_tokens=8),
        rollouts=replace(tiny.align_shards.rollouts, episodes=6),
    )
    return replace(
        tiny, name="backbone", backbone=str(folder), decoder=None, pretrain=None,
        pretrain_shards=None, align_shards=shards,
        align=replace(tiny.align, seq_len=LENGTH, packing=False, length_buckets=2),
        engine=EngineConfig(slots=8, context=LENGTH + 128, chunk=64),
    )  # fmt: skip


def test_from_shards_to_events(experiment, dataset, tmp_path):
    run = open_run(experiment, dataset, tmp_path / "run")
    build_stage(experiment, dataset, run, "align")
    result = train_stage(experiment, dataset, run, "align")
    for task, held in result.held_out.items():
        assert held["loss"] < result.first_held_out[task]["loss"], task
    assert all(count.refused == 0 < count.read for count in result.counts.values())

    decoder, tokenizer, policy_id = load_policy(experiment, run)
    assert len(tokenizer.encode("[1]")) > 1  # no symbol of its own, as with us
    arms = {"random": Random(dataset.item_ids)}
    users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]
    events = simulation.simulate(
        experiment, dataset, simulation_view(dataset), arms,
        Backend(make_engine(experiment, decoder, tokenizer), tokenizer.count, policy_id),
        tmp_path / "simulation", SimulationSettings(users, horizon=2, progress=False),
    )  # fmt: skip
    assert simulation.failures(events) == 0
    kinds = events["kind"].to_pylist()
    assert kinds.count("page") == len(users) * 2 * 4 and kinds.count("rate") > 0

    merged = tmp_path / "merged"
    export_merged(experiment.backbone, result.result_dir, merged)
    again = TextTokenizer.load(merged)
    assert again.fingerprint == tokenizer.fingerprint
