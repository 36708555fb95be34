import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alignuser_jax.model import (
    DecoderConfig,
    LoraConfig,
    init_decoder,
    load_decoder,
    merge_lora,
    save_pretrained,
    split,
)
from alignuser_jax.model.files.tensors import find_tensors
from tests.model.model_helpers import logits


def reference(directory, tokens):
    """Logits of `transformers`' torch model of the checkpoint, f32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens)).long()).logits.numpy()


@pytest.mark.parametrize("tied", [False, True])
def test_parity_with_transformers(tmp_path, tokens, tied):
    """A checkpoint that transformers made, with every number away from its default."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    hf = transformers.Qwen3Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,
        rope_theta=777.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = transformers.Qwen3ForCausalLM(hf)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path)
    assert decoder.config.rope_theta == 777.0 and decoder.config.head_dim == 20
    expected = reference(tmp_path, tokens)
    difference = np.abs(logits(decoder, tokens) - expected).max()
    assert difference <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_what_we_save(tmp_path, config, tokens, tied):
    fields = {name: getattr(config, name) for name in DecoderConfig.__slots__}
    config = DecoderConfig(**fields | {"tie_word_embeddings": tied})
    decoder = init_decoder(config, seed=3)
    save_pretrained(decoder, tmp_path)
    expected, ours = reference(tmp_path, tokens), logits(decoder, tokens)
    assert np.abs(ours - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("shard_bytes", [20_000, 5 << 30])
def test_saved_weights_come_back_bit_for_bit(tmp_path, config, shard_bytes):
    decoder = init_decoder(config, seed=3)
    save_pretrained(decoder, tmp_path, shard_bytes=shard_bytes)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert ("model.safetensors" in files) == (shard_bytes > 20_000) == (len(files) == 1)
    again = load_decoder(tmp_path)
    assert again.config == config and split(again)[0] == split(decoder)[0]
    for a, b in zip(
        jax.tree.leaves(split(decoder)), jax.tree.leaves(split(again)), strict=True
    ):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_files_and_parameters(tmp_path, config, tokens, kind):
    decoder = init_decoder(config, seed=3, param_dtype=jnp.dtype(kind))
    save_pretrained(decoder, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {kind}
    same = load_decoder(tmp_path, param_dtype=jnp.dtype(kind))
    wider = load_decoder(tmp_path)
    assert same.embedding[...].dtype == kind and wider.embedding[...].dtype == jnp.float32
    np.testing.assert_allclose(logits(same, tokens), logits(wider, tokens), atol=1e-5)


def test_fresh_adapters_join_a_loaded_base(tmp_path, config, tokens):
    decoder = init_decoder(config, seed=3)
    save_pretrained(decoder, tmp_path)
    adapted = load_decoder(tmp_path, LoraConfig(rank=2), seed=7)
    assert np.array_equal(logits(adapted, tokens), logits(decoder, tokens))
    drawn = init_decoder(config, LoraConfig(rank=2), seed=7)
    for a, b in zip(
        jax.tree.leaves(split(adapted)[1]), jax.tree.leaves(split(drawn)[1]), strict=True
    ):
        assert np.array_equal(a, b)


def test_what_adapters_learned_is_saved_merged_only(tmp_path, decoder, tokens):
    with pytest.raises(ValueError, match="adapters of rank 3"):
        save_pretrained(decoder, tmp_path)
    save_pretrained(merge_lora(decoder), tmp_path)
    again = logits(load_decoder(tmp_path), tokens)
    np.testing.assert_allclose(again, logits(decoder, tokens), atol=3e-5)


def test_all_wrong_tensors_are_named_at_once(tmp_path, config):
    save_pretrained(init_decoder(config), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 4), np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(3, np.float32)
    tensors["model.layers.1.mlp.gate_proj.weight"] = np.zeros((48, 32), np.int8)
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-100])  # cuts what lies last in the file
    with pytest.raises(ValueError) as error:
        load_decoder(tmp_path)
    for part in (
        "missing model.layers.1.self_attn.q_norm.weight",
        "unexpected model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.mlp.up_proj.weight has shape [3, 4], expected [48, 32]",
        "model.layers.1.mlp.gate_proj.weight is I8, expected one of F32, F16, BF16",
        "is truncated: it ends at byte",
    ):
        assert part in str(error.value)


def test_absent_files_are_named(tmp_path, config):
    save_pretrained(init_decoder(config), tmp_path, shard_bytes=20_000)
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        load_decoder(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model.safetensors"):
        load_decoder(tmp_path)


def test_slices_are_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("alignuser_jax.model.files.tensors.PIECE", 100)
    random = np.random.default_rng(0)
    stored = {
        "matrix": random.normal(size=(37, 11)).astype(np.float32),
        "vector": random.normal(size=53).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(stored, tmp_path / "model.safetensors")
    found = find_tensors(tmp_path)
    for name, values in stored.items():
        assert np.array_equal(found[name].read(), values)
    part = found["matrix"].read((slice(3, 30), slice(2, 9)))
    assert np.array_equal(part, stored["matrix"][3:30, 2:9])
    assert np.array_equal(found["vector"].read((slice(5, 50),)), stored["vector"][5:50])
