"""Qwen3, Qwen2 and Llama 3 against `transformers`, and a trained Llama against plain NumPy."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from alignuser_jax.model import load_decoder, load_pretrained, read_config
from alignuser_jax.sampling.engine.forward import TokenBlock, forward, init_pages
from tests.model.files.families import CASES, make_checkpoint, torch_logits


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(5).integers(0, 97, (3, 40))


@pytest.mark.parametrize("name", CASES)
def test_logits_of_transformers(tmp_path, tokens, name):
    torch_model = make_checkpoint(name, tmp_path)
    expected = torch_logits(torch_model, tokens)
    got = np.asarray(load_pretrained(tmp_path, dtype=jnp.float32).logits(tokens))
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()
    assert np.abs(expected).max() > 1  # there is something to agree on


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama3"])
def test_bf16_is_no_further_from_f32_than_torch_is(tmp_path, name):
    torch = pytest.importorskip("torch")
    model = make_checkpoint(name, tmp_path)
    prompts = np.random.default_rng(6).integers(0, 97, (64, 24))
    exact = torch_logits(model, prompts)
    theirs = torch_logits(model.to(torch.bfloat16), prompts)
    ours = np.asarray(load_pretrained(tmp_path, dtype=jnp.bfloat16).logits(prompts))

    def distance(logits):
        return np.sqrt(np.mean((logits - exact) ** 2))

    assert 0 < distance(ours) <= 1.1 * distance(theirs)


@pytest.mark.parametrize("name", ["qwen2-some-slide", "llama3"])
def test_the_engines_forward_pass_is_the_same_model(tmp_path, tokens, name):
    """Windows, biases and scaled positions hold over the cache too, in two pieces."""
    make_checkpoint(name, tmp_path)
    model = load_pretrained(tmp_path, dtype=jnp.float32)
    decoder, rows = model.decoder, len(tokens)
    pages = init_pages(decoder.config, 2 * rows, 32, decoder.dtype)
    table = 1 + np.arange(2 * rows).reshape(rows, 2)

    @jax.jit
    def step(pages, tokens, at):
        valid = jnp.ones(tokens.shape, bool)
        adapter = jnp.zeros(rows, jnp.int32)
        hidden, pages = forward(decoder, TokenBlock(tokens, at, valid, adapter), table, pages)
        return decoder.logits(hidden), pages

    expected = np.asarray(model.logits(tokens))
    for begin, end in ((0, 25), (25, 40)):
        at = jnp.broadcast_to(jnp.arange(begin, end), (rows, end - begin))
        got, pages = step(pages, tokens[:, begin:end], at)
        want = expected[:, begin:end]
        assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", ["qwen2-some-slide", "llama3"])
def test_packed_rows_equal_separate_rows_and_feel_no_neighbour(tmp_path, tokens, name):
    make_checkpoint(name, tmp_path)
    model = load_pretrained(tmp_path, dtype=jnp.float32)
    a, b, c = tokens[0, :13], tokens[1, :22], tokens[2, :5]
    packed = np.concatenate([a, b, c])[None]
    segments = np.repeat([1, 2, 3], [13, 22, 5])[None]
    together = np.asarray(model.logits(packed, segments))[0]
    scale = np.abs(together).max()
    for part, begin in ((a, 0), (b, 13), (c, 35)):
        alone = np.asarray(model.logits(part[None]))[0]
        assert np.abs(together[begin : begin + len(part)] - alone).max() <= 2e-5 * scale
    packed[0, 13:35] = 3
    after = np.asarray(model.logits(packed, segments))[0]
    changed = np.abs(after - together).max(axis=1) > 0
    assert not changed[:13].any() and not changed[35:].any() and changed[13:35].all()


def test_embeddings_are_the_last_tokens_hidden_state(tmp_path, tokens):
    """As Qwen3-Embedding is published: a causal LM's config over a bare backbone's tensors."""
    torch = pytest.importorskip("torch")
    torch_model = make_checkpoint("qwen3", tmp_path, base_model=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen3Model"]
    config["architectures"] = ["Qwen3ForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_pretrained(tmp_path, dtype=jnp.float32)
    lengths = np.array([40, 17, 1])
    got = np.asarray(model.embed(tokens, lengths))
    with torch.no_grad():
        hidden = torch_model(torch.tensor(tokens)).last_hidden_state.numpy()
    assert np.abs(model.hidden(tokens) - hidden).max() <= 2e-5 * np.abs(hidden).max()
    for row, length in enumerate(lengths):
        alone = hidden[row, length - 1]
        np.testing.assert_allclose(got[row], alone / np.linalg.norm(alone), atol=1e-5)
    with pytest.raises(ValueError, match="embedding model without a head"):
        model.logits(tokens)
    with pytest.raises(ValueError, match="expected one number of 1 to 40"):
        model.embed(tokens, [40, 41, 0])


def test_end_ids_come_from_the_generation_config(tmp_path):
    make_checkpoint("llama3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").unlink()
    assert read_config(tmp_path).eos_token_ids == (2,)
    generation = {"eos_token_id": [3, 8, 9], "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_config(tmp_path).eos_token_ids == (3, 8, 9)


# --- a trained model -------------------------------------------------------------------------


class Stories:
    """llama2.c's `stories260K.bin`: seven sizes, then f32 arrays one after the other."""

    def __init__(self, path):
        data = path.read_bytes()
        sizes = struct.unpack("7i", data[:28])
        self.dim, self.inner, self.layers, self.heads, self.kv, self.vocab, _ = sizes
        self.size = self.dim // self.heads
        values, at = np.frombuffer(data, np.float32, offset=28), 0

        def take(*shape):
            nonlocal at
            at += (count := int(np.prod(shape)))
            return values[at - count : at].reshape(shape)

        many, d, kv = self.layers, self.dim, self.kv * self.size
        self.table = take(self.vocab, d)
        self.attention_norm = take(many, d)
        self.q, self.k, self.v = take(many, d, d), take(many, kv, d), take(many, kv, d)
        self.o, self.mlp_norm = take(many, d, d), take(many, d)
        self.gate = take(many, self.inner, d)
        self.down = take(many, d, self.inner)
        self.up = take(many, self.inner, d)
        self.norm = take(d)

    def logits(self, ids):
        """Of the last token; rotates neighbouring pairs, as llama2.c does."""

        def normed(x, scale):
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale

        def rotated(x):
            pairs = x.reshape(*x.shape[:-1], -1, 2)
            turn = np.arange(len(ids))[:, None] * 10000.0 ** (
                -np.arange(0, self.size, 2) / self.size
            )
            c, s = np.cos(turn)[:, None], np.sin(turn)[:, None]
            a, b = pairs[..., 0], pairs[..., 1]
            return np.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)

        x, n = self.table[ids].astype(np.float64), len(ids)
        future = np.triu(np.ones((n, n), bool), 1)
        for i in range(self.layers):
            y = normed(x, self.attention_norm[i])
            q = rotated((y @ self.q[i].T).reshape(n, self.heads, self.size))
            k = rotated((y @ self.k[i].T).reshape(n, self.kv, self.size))
            v = (y @ self.v[i].T).reshape(n, self.kv, self.size)
            k, v = (np.repeat(a, self.heads // self.kv, axis=1) for a in (k, v))
            scores = np.einsum("qhd,khd->hqk", q, k) / self.size**0.5
            scores = np.exp(np.where(future, -np.inf, scores - scores.max(-1, keepdims=True)))
            weights = scores / scores.sum(-1, keepdims=True)
            x = x + np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1) @ self.o[i].T
            y = normed(x, self.mlp_norm[i])
            gate = y @ self.gate[i].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ self.up[i].T)) @ self.down[i].T
        return normed(x[-1], self.norm) @ self.table.T

    def save(self, directory):
        """As a Hugging Face directory, whose rotation takes halves instead of pairs."""

        def halves(w):
            return w.reshape(-1, self.size // 2, 2, self.dim).swapaxes(1, 2).reshape(w.shape)

        tensors = {"model.embed_tokens.weight": self.table, "model.norm.weight": self.norm}
        for i in range(self.layers):
            layer, mlp = f"model.layers.{i}.", f"model.layers.{i}.mlp."
            tensors |= {
                f"{layer}input_layernorm.weight": self.attention_norm[i],
                f"{layer}post_attention_layernorm.weight": self.mlp_norm[i],
                f"{layer}self_attn.q_proj.weight": halves(self.q[i]),
                f"{layer}self_attn.k_proj.weight": halves(self.k[i]),
                f"{layer}self_attn.v_proj.weight": self.v[i],
                f"{layer}self_attn.o_proj.weight": self.o[i],
                f"{mlp}gate_proj.weight": self.gate[i],
                f"{mlp}up_proj.weight": self.up[i],
                f"{mlp}down_proj.weight": self.down[i],
            }
        tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        save_file(tensors, directory / "model.safetensors")
        config = {
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.dim,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv,
            "max_position_embeddings": 512,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        }
        (directory / "config.json").write_text(json.dumps(config))


def test_a_trained_llama_writes_what_numpy_writes(shared_data, tmp_path):
    path = shared_data / "checkpoints" / "stories260K.bin"
    if not path.is_file():
        pytest.skip(f"no {path.name} in ../shared/data/checkpoints")
    stories = Stories(path)
    assert (stories.heads, stories.kv, stories.vocab) == (8, 4, 512)
    stories.save(tmp_path)
    decoder = load_decoder(tmp_path)
    pages = init_pages(decoder.config, 4, 32, decoder.dtype)
    table, adapter = np.array([[1, 2, 3, 4]]), jnp.zeros(1, jnp.int32)

    @jax.jit
    def step(pages, token, at):
        token, at, valid = token.reshape(1, 1), at.reshape(1, 1), jnp.ones((1, 1), bool)
        hidden, pages = forward(decoder, TokenBlock(token, at, valid, adapter), table, pages)
        return decoder.logits(hidden)[0, 0], pages

    ids, ours = [1], [1]
    while len(ids) < 96:
        ids.append(int(stories.logits(ids).argmax()))
    for at in range(95):
        logits, pages = step(pages, jnp.int32(ours[-1]), jnp.int32(at))
        ours.append(int(logits.argmax()))
    assert ours == ids
    assert len(set(ids)) > 30  # a text, not a loop of one token
