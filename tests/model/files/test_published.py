"""The four backbones of the paper (Table 8), abstractly: sizes, layouts, and nothing allocated.

The numbers are those of the published `config.json` files, copied; the parameter counts those
of the model cards' safetensors metadata.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from alignuser_jax.model import abstract_decoder, count_parameters, read_config, split
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.sampling.engine.forward import page_bytes
from tests.xla import simulated

LLAMA_3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
}
STRETCH = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED = {
    "Qwen3-8B": (
        8_190_735_360,
        {
            "model_type": "qwen3",
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_theta": 1_000_000,
            "rope_scaling": None,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "max_position_embeddings": 40960,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 36,
        },
    ),
    "Qwen2.5-7B": (
        7_615_616_512,
        {
            "model_type": "qwen2",
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "max_position_embeddings": 131072,
            "use_sliding_window": False,
            "sliding_window": 131072,
            "max_window_layers": 28,
        },
    ),
    "Llama-3.2-3B": (
        3_212_749_824,
        LLAMA_3
        | {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "tie_word_embeddings": True,
            "rope_scaling": STRETCH | {"factor": 32.0},
        },
    ),
    "Llama-3.1-8B": (
        8_030_261_248,
        LLAMA_3
        | {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
            "rope_scaling": STRETCH | {"factor": 8.0},
        },
    ),
}


CONFIGS = {
    "Qwen3-8B": "qwen3_8b",
    "Qwen2.5-7B": "qwen25_7b",
    "Llama-3.2-3B": "llama32_3b",
    "Llama-3.1-8B": "llama31_8b",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    count, content = PUBLISHED[name]
    root = Path(__file__).parents[3]
    experiment = load_experiment(root / "configs" / f"{CONFIGS[name]}.py")
    assert name in experiment.backbone
    dtype = jnp.dtype(experiment.dtype)
    model = abstract_decoder(read_config(content), experiment.lora, param_dtype=dtype)
    _, lora, base = split(model)
    assert count_parameters(base) == count
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((lora, base)))
    if name == "Qwen3-8B":
        assert count_parameters(lora) == 43_646_976

    engine = experiment.engine
    cache = engine.all_pages * page_bytes(model.config, engine.chunk, dtype)
    assert cache + count * dtype.itemsize < 64e9  # of the 80 GB that the config asks for


LAYOUTS = """
import jax
from flax import nnx
from tests.model.files.test_published import PUBLISHED
from alignuser_jax.model import LoraConfig, abstract_decoder, read_config, split
from alignuser_jax.parallel import RULES, make_mesh, shardings

devices = jax.devices()
for name, (count, content) in PUBLISHED.items():
    model = abstract_decoder(read_config(content), LoraConfig(rank=16))
    state = nnx.state(model)
    for data, fsdp, tensor in ((1, 8, 1), (1, 1, 8), (1, 4, 2), (1, 1, 4)):
        mesh = make_mesh(data, fsdp, tensor, devices=devices[: data * fsdp * tensor])
        if name == "Qwen2.5-7B" and tensor == 8:
            try:
                shardings(state, mesh)
            except ValueError as error:
                assert "layers.q.kernel: axis 'heads' of 28 into 8" in str(error), error
                assert "layers.k.kernel: axis 'heads' of 4 into 8" in str(error), error
                continue
            raise AssertionError("28 heads were cut into 8")
        layout = shardings(state, mesh)
        is_variable = lambda x: isinstance(x, nnx.Variable)
        for (path, weight), where in zip(
            jax.tree.leaves_with_path(state, is_leaf=is_variable),
            jax.tree.leaves(layout, is_leaf=is_variable), strict=True,
        ):
            shape, spec = weight.get_value().shape, where.get_value().spec
            names = weight.get_metadata("axes")
            used = {axis for axis in jax.tree.leaves(tuple(spec)) if axis}
            key = jax.tree_util.keystr(path)
            if len(names) == 2 and shape[-1] * shape[-2] >= 1_000_000:
                assert used == {RULES[n] for n in names if n}, (key, spec)
                assert used == {"fsdp", "tensor"}, (key, spec)
                cut = where.get_value().shard_shape(shape)
                assert shape[-1] * shape[-2] == fsdp * tensor * cut[-1] * cut[-2], (key, cut)
            if "norm" in key:
                assert not used, (key, spec)
print("fine")
"""


def test_layouts_on_eight_devices():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LAYOUTS)],
        env=os.environ | simulated(8),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0 and "fine" in done.stdout, done.stderr[-3000:]
