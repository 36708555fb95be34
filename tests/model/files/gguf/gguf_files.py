"""Small GGUF files, written with the package's writer as llama.cpp's converter writes them."""

import numpy as np
import pytest

from tests.language.conftest import CHATML
from tests.model.files.families import draw_norms_and_biases

TOKEN_TYPE = {"normal": 1, "unknown": 2, "control": 3, "user": 4, "unused": 5, "byte": 6}

LLAMA_3_SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

SHARED = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 777.0,
}

CASES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "head_dim": 20}),
    "llama-scaled": ("Llama", {"rope_parameters": LLAMA_3_SCALED}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": False}),
}
"""name -> (family of transformers, settings beside SHARED)."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def torch_model(case, vocabulary, seed=0):
    """A random model of transformers whose norms and biases are off their defaults."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, settings = CASES[case]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocabulary, **SHARED | settings
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    draw_norms_and_biases(model)
    return model.eval()


def gguf_name(name):
    module, _, part = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, inner = module.split(".", 3)
        return f"blk.{layer}.{NAMES[inner]}.{part}"
    return f"{NAMES[module]}.{part}"


def side_by_side(values, heads):
    """Llama.cpp's order of the rows of q and k: the two numbers of a pair follow each other."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def tensors_of(model):
    """GGUF name to float32 values, in llama.cpp's layout."""
    config, tied = model.config, model.config.tie_word_embeddings
    tensors = {}
    for name, parameter in model.state_dict().items():
        if tied and name.startswith("lm_head"):
            continue
        values = parameter.numpy().astype(np.float32)
        heads = {
            "q_proj": config.num_attention_heads,
            "k_proj": config.num_key_value_heads,
        }.get(name.split(".")[-2])
        if config.model_type == "llama" and heads:
            values = side_by_side(values, heads)
        tensors[gguf_name(name)] = values
    return tensors


def architecture_keys(config):
    """The metadata of the model's shape: list of (method of the writer, value)."""
    keys = [
        ("add_block_count", config.num_hidden_layers),
        ("add_context_length", config.max_position_embeddings),
        ("add_embedding_length", config.hidden_size),
        ("add_feed_forward_length", config.intermediate_size),
        ("add_head_count", config.num_attention_heads),
        ("add_head_count_kv", config.num_key_value_heads),
        ("add_layer_norm_rms_eps", config.rms_norm_eps),
        ("add_rope_freq_base", config.rope_parameters["rope_theta"]),
    ]
    size = getattr(config, "head_dim", None)
    if size and size * config.num_attention_heads != config.hidden_size:
        keys += [("add_key_length", size), ("add_value_length", size)]
        if config.model_type == "llama":
            keys.append(("add_rope_dimension_count", size))
    return keys


def rope_factors(config):
    """What llama.cpp's converter writes as rope_freqs for Llama 3, by its published rule."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    base, old = rope["rope_theta"], rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for n in range(0, size, 2):
        wavelength = 2 * np.pi * base ** (n / size)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def byte_pair_vocabulary(tokenizer):
    """Metadata of the vocabulary of a fast byte-level tokenizer: key to value."""
    import json

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = tokenizer.get_vocab()
    tokens = [token for token, _ in sorted(ids.items(), key=lambda pair: pair[1])]
    added = tokenizer.added_tokens_decoder
    kinds = {
        str(token): TOKEN_TYPE["control" if token.special else "user"]
        for token in added.values()
    }
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    return {
        "add_tokenizer_model": "gpt2",
        "add_token_list": tokens,
        "add_token_types": [kinds.get(token, TOKEN_TYPE["normal"]) for token in tokens],
        "add_token_merges": merges,
        "add_eos_token_id": tokenizer.eos_token_id,
    }


def sentence_piece_vocabulary(model):
    """The same of a SentencePiece model, given as bytes."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    numbers = range(pieces.get_piece_size())

    def kind(n):
        if pieces.is_unknown(n):
            return TOKEN_TYPE["unknown"]
        if pieces.is_control(n):
            return TOKEN_TYPE["control"]
        return TOKEN_TYPE["byte" if pieces.is_byte(n) else "normal"]

    return {
        "add_tokenizer_model": "llama",
        "add_token_list": [pieces.id_to_piece(n) for n in numbers],
        "add_token_scores": [pieces.get_score(n) for n in numbers],
        "add_token_types": [kind(n) for n in numbers],
        "add_bos_token_id": pieces.bos_id(),
        "add_eos_token_id": pieces.eos_id(),
        "add_unk_token_id": pieces.unk_id(),
    }


def write_gguf(path, model, vocabulary, pre="gpt-2", quantize=None, template=CHATML, more=()):
    """Write `model` (of transformers) and its vocabulary as one GGUF file.

    `quantize`: GGUF name -> GGMLQuantizationType, for some tensors. `more`: further calls of
    the writer, `(method, *arguments)`.
    """
    import gguf
    from gguf.quants import quantize as quantized

    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    for method, value in architecture_keys(config):
        getattr(writer, method)(value)
    for method, value in vocabulary.items():
        getattr(writer, method)(value)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    if template:
        writer.add_chat_template(template)
    for method, *arguments in more:
        getattr(writer, method)(*arguments)
    tensors = tensors_of(model)
    factors = rope_factors(config)
    if factors is not None:
        tensors["rope_freqs.weight"] = factors
    for name, values in tensors.items():
        kind = (quantize or (lambda name: None))(name)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantized(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
