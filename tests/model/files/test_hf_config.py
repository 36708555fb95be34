"""`config.json` is read strictly: what is not understood is refused by name."""

import dataclasses
import json

import pytest

from alignuser_jax.model import DecoderConfig, RopeScaling, read_config
from alignuser_jax.model.files.hf_config import to_hf

QWEN25_7B = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def llama(**changes):
    content = {
        "model_type": "llama",
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
    }
    return {k: v for k, v in (content | changes).items() if v is not ...}


def test_a_published_file():
    config = read_config(QWEN25_7B)
    assert config.head_dim == 128 and config.rope_theta == 1e6 and config.num_kv_heads == 4
    assert set(config.windows()) == {None} and config.eos_token_ids == (151645,)
    assert [config.has_bias(p) for p in ("q", "k", "v", "o", "up")] == [True] * 3 + [False] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_type": "qwen2", "num_heads": 8, "num_kv_heads": 1, "head_dim": 12},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "llama", "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)},
        {"sliding_window": 9, "sliding_layers": (False, True, False, True)},
        {"headless": True, "tie_word_embeddings": False, "eos_token_ids": (3, 7)},
    ],
)
def test_round_trip(changes):
    config = DecoderConfig(vocab_size=97, rope_theta=123.0, **changes)
    assert read_config(json.loads(json.dumps(to_hf(config)))) == config
    old = {k: v for k, v in to_hf(config).items() if k != "rope_parameters"}
    assert read_config(old) == config  # transformers 4 had rope_theta and rope_scaling


def test_old_llama_files():
    config = read_config(llama(num_key_value_heads=None, rope_scaling=None, pretraining_tp=1))
    assert config.num_kv_heads == 4 and config.head_dim == 8 and not config.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'"),
        ({"model_type": ...}, "model_type=None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures="),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "32"}, "hidden_size='32'"),
        ({"hidden_size": True}, "hidden_size=True"),
        ({"hidden_size": 32.5}, "hidden_size=32.5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers=1000"),
        ({"hidden_size": 30}, "hidden_size=30 (supported: a multiple of num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3"),
        ({"head_dim": 7}, "even head_dim, got 7"),
        ({"rope_theta": ...}, "rope_theta is missing"),
        ({"rope_theta": -1.0}, "positive rope_theta"),
        ({"rms_norm_eps": ...}, "rms_norm_eps is missing"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling.rope_type='yarn'",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor is missing"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1.0}},
            "rope_parameters.rope_theta=1.0 (supported: the same as rope_theta=500000.0)",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "mrope_section": [1]}},
            "rope_parameters.mrope_section=[1]",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"sliding_window": 64}, "sliding_window=64"),
        ({"attention_bias": 1}, "attention_bias=1"),
        ({"eos_token_id": [1, "x"]}, "eos_token_id=[1, 'x']"),
        ({"eos_token_id": 999}, "eos_token_ids [999]"),
        ({"num_experts": 8}, "num_experts=8 (supported: a decoder without this field)"),
    ],
)
def test_refusals_name_the_field(changes, named):
    with pytest.raises(ValueError) as error:
        read_config(llama(**changes))
    assert named in str(error.value), str(error.value)


def test_windows_that_do_not_add_up():
    base = QWEN25_7B | {"num_hidden_layers": 2, "max_window_layers": 1}
    slides = read_config(base | {"use_sliding_window": True, "sliding_window": 8})
    assert slides.windows() == (None, 8)
    for changes in (
        {"use_sliding_window": True, "sliding_window": None},
        {"use_sliding_window": True, "layer_types": ["full_attention"]},
        {"layer_types": ["sliding_attention"] * 2},
        {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 2},
        {"use_sliding_window": True, "max_window_layers": -1},
    ):
        with pytest.raises(ValueError, match="sliding_window=|layer_types=|max_window_layers="):
            read_config(base | changes)


def test_all_problems_at_once():
    with pytest.raises(ValueError) as error:
        read_config(llama(hidden_act="relu", vocab_size=-5, num_experts=2))
    for part in ("hidden_act='relu'", "vocab_size=-5", "num_experts=2"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '"\\ud800', "\xff"]
)
def test_files_that_are_not_json_objects(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="config.json"):
        read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a Hugging Face model directory"):
        read_config(tmp_path / "nowhere")


def test_shapes_that_cannot_be():
    good = DecoderConfig(vocab_size=5)
    for changes, named in (
        ({"num_heads": 3}, "num_heads=3 must be a multiple"),
        ({"num_layers": 0}, "'num_layers': 0"),
        ({"model_type": "gpt"}, "model_type 'gpt'"),
        ({"mlp_bias": True}, "qwen3 has no"),
        ({"sliding_layers": (True,) * 4}, "window of 1 or more"),
        ({"sliding_layers": (True,), "sliding_window": 3}, "1 entries for 4 layers"),
    ):
        with pytest.raises(ValueError, match=named):
            dataclasses.replace(good, **changes)
    with pytest.raises(ValueError, match="low_freq_factor < high_freq_factor"):
        RopeScaling(2.0, 4.0, 1.0, 100)
