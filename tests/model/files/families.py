"""Small random checkpoints that `transformers` wrote itself, every number off its default."""

import pytest

SHARED = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 777.0,
    "factor": 6.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 5.0,
    "original_max_position_embeddings": 24,
}


def heads(queries, keys, size):
    return {"num_attention_heads": queries, "num_key_value_heads": keys, "head_dim": size}


CASES = {
    "qwen3": ("Qwen3", heads(4, 2, 20) | {"rope_theta": 777.0, "tie_word_embeddings": True}),
    "qwen3-biased": (
        "Qwen3",
        heads(8, 1, 10) | {"rope_theta": 33.0, "attention_bias": True},
    ),
    "qwen2": ("Qwen2", heads(8, 1, 10) | {"rope_theta": 5e4}),
    "qwen2-tied": ("Qwen2", heads(3, 3, 16) | {"tie_word_embeddings": True}),
    "qwen2-some-slide": (
        "Qwen2",
        heads(4, 2, 12)
        | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    ),
    "qwen3-all-slide": (
        "Qwen3",
        heads(4, 4, 8)
        | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    ),
    "llama3": ("Llama", heads(4, 2, 20) | {"rope_parameters": LLAMA3}),
    "llama3-tied": (
        "Llama",
        heads(6, 6, 8) | {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    ),
    "llama-biased": (
        "Llama",
        heads(8, 1, 12) | {"rope_theta": 99.0, "attention_bias": True, "mlp_bias": True},
    ),
}
"""name -> (family, settings): GQA of 1, 2 and 8, tied and not, biases, windows."""


def make_checkpoint(name, directory, base_model=False, seed=0):
    """The torch model, also saved to `directory`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, settings = CASES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**SHARED | settings)
    kind = "Model" if base_model else "ForCausalLM"
    model = getattr(transformers, family + kind)(config)
    draw_norms_and_biases(model)
    model.save_pretrained(directory)
    return model.eval()


def draw_norms_and_biases(model):
    """Put norms and biases off the values that they begin with, so that both are tested."""
    import torch

    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path:
                parameter.uniform_(0.5, 1.5)
            elif path.endswith("bias"):
                parameter.normal_(0, 0.3)


def torch_logits(model, tokens):
    import numpy as np
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens)).long()).logits.float().numpy()
