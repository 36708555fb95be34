"""Adapters and merged models through the real `peft` and `transformers`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alignuser_jax.model import (
    LoraConfig,
    export_merged,
    init_decoder,
    load_decoder,
    load_pretrained,
    merge_lora,
    named_arrays,
    read_adapter,
    read_config,
    save_adapter,
    save_pretrained,
    split,
)
from tests.model.files.families import make_checkpoint, torch_logits
from tests.model.model_helpers import with_random_b

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(5).integers(0, 97, (4, 20))


def peft_adapter(base, directory, seed=1, **settings):
    """An adapter that `peft` made and wrote, with a busy B; its logits as a function."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"target_modules": list(PROJECTIONS), "lora_dropout": 0.1} | settings
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(directory)
    return model.eval()


def assert_close(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    make_checkpoint("qwen2", directory)
    return directory


@pytest.fixture(scope="module")
def theirs(base, tmp_path_factory):
    """Two adapters of different rank, alpha, scaling and targets, with peft's logits."""
    made = {}
    for name, settings in {
        "wide": {"r": 5, "lora_alpha": 12},
        "narrow": {
            **{"r": 3, "lora_alpha": 2, "use_rslora": True},
            "target_modules": ["q_proj", "down_proj"],
        },
    }.items():
        directory = tmp_path_factory.mktemp("adapters") / name
        made[name] = directory, peft_adapter(base, directory, **settings)
    return made


@pytest.mark.parametrize("name", ["wide", "narrow"])
def test_an_adapter_that_peft_wrote(base, theirs, tokens, name):
    directory, model = theirs[name]
    ours = load_pretrained(base, dtype=jnp.float32, adapters=directory)
    assert ours.adapters == (name,)
    assert_close(ours.logits(tokens), torch_logits(model, tokens))
    plain = load_pretrained(base, dtype=jnp.float32).logits(tokens)
    assert np.array_equal(ours.logits(tokens, adapter=None), plain)
    assert np.abs(ours.logits(tokens) - plain).max() > 0.1


def test_several_adapters_share_one_base(base, theirs, tokens):
    folders = {name: directory for name, (directory, _) in theirs.items()}
    ours = load_pretrained(base, dtype=jnp.float32, adapters=folders)
    alone = {name: torch_logits(model, tokens) for name, (_, model) in theirs.items()}
    alone[None] = np.asarray(load_pretrained(base, dtype=jnp.float32).logits(tokens))
    chosen = ["narrow", None, "wide", "narrow"]
    got = np.asarray(ours.logits(tokens, adapter=chosen))
    for row, name in enumerate(chosen):
        assert_close(got[row], alone[name][row])
    assert_close(ours.logits(tokens, adapter="wide"), alone["wide"])
    with pytest.raises(ValueError, match=r"several adapters are loaded, \['wide', 'narrow'\]"):
        ours.logits(tokens)
    with pytest.raises(ValueError, match="adapter='other': expected one of"):
        ours.logits(tokens, adapter="other")
    kernels = jax.tree.leaves(split(ours.decoder)[2])
    alone = jax.tree.leaves(split(load_decoder(base))[2])
    assert sum(a.nbytes for a in kernels) == sum(a.nbytes for a in alone)  # one base


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_reads_what_we_save(tmp_path, base, tokens, rslora):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    lora = LoraConfig(3, 7.0, 0.1, ("q", "o", "up"), rslora)
    decoder = with_random_b(load_decoder(base, lora, seed=4))
    save_adapter(tmp_path / "adapter", named_arrays(split(decoder)[1]), lora, str(base))
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert model.peft_config["default"].base_model_name_or_path == str(base)
    ours = load_pretrained(base, dtype=jnp.float32, adapters=tmp_path / "adapter")
    assert_close(ours.logits(tokens), torch_logits(model, tokens))
    again, arrays = read_adapter(tmp_path / "adapter")
    assert again == lora
    for name, values in named_arrays(split(decoder)[1]).items():
        assert np.array_equal(arrays[name], values)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A base of four layers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(2)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.LlamaConfig(vocab_size=97, **shape, **heads)
    directory = tmp_path_factory.mktemp("deep")
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("layers", [[3], [2, 3], [0, 1, 2, 3], 3])
def test_upper_layers_that_peft_adapted(deep, tmp_path, tokens, layers):
    model = peft_adapter(
        deep, tmp_path / "theirs", r=3, lora_alpha=9, layers_to_transform=layers
    )
    ours = load_pretrained(deep, dtype=jnp.float32, adapters=tmp_path / "theirs")
    assert ours.decoder.lora.layers == (len(layers) if isinstance(layers, list) else 1)
    expected = torch_logits(model, tokens)
    assert_close(ours.logits(tokens), expected)
    assert np.abs(ours.logits(tokens) - ours.logits(tokens, adapter=None)).max() > 0.1
    export_merged(deep, tmp_path / "theirs", tmp_path / "merged")
    assert_close(
        load_pretrained(tmp_path / "merged", dtype=jnp.float32).logits(tokens), expected
    )


def test_peft_reads_the_upper_layers_that_we_save(deep, tmp_path, tokens):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    lora = LoraConfig(3, 7.0, 0.1, ("q", "o", "up"), layers=2)
    decoder = with_random_b(load_decoder(deep, lora, seed=4))
    arrays = named_arrays(split(decoder)[1])
    save_adapter(tmp_path, arrays, lora, str(deep), num_layers=4)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["layers_to_transform"] == [2, 3]
    model = transformers.AutoModelForCausalLM.from_pretrained(deep, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    adapted = {name for name, _ in model.named_parameters() if "lora_B" in name}
    assert len(adapted) == 2 * 3 and not any(".layers.1." in name for name in adapted)
    ours = load_pretrained(deep, dtype=jnp.float32, adapters=tmp_path)
    assert_close(ours.logits(tokens), torch_logits(model, tokens))
    assert read_adapter(tmp_path)[0] == read_adapter(tmp_path, ours.config)[0] == lora
    for wrong in ({}, {"num_layers": 1}):
        with pytest.raises(ValueError, match=r"lora.layers=2|lora.layers is 2"):
            save_adapter(tmp_path / "never", arrays, lora, **wrong)


def test_adapters_of_different_layers_share_one_base(deep, tmp_path, tokens):
    made = {"top": {"layers_to_transform": [3], "target_modules": ["down_proj"]}}
    made |= {"upper": {"layers_to_transform": [1, 2, 3], "target_modules": ["q_proj"]}}
    theirs = {
        name: torch_logits(
            peft_adapter(deep, tmp_path / name, r=2, lora_alpha=5, **settings), tokens
        )
        for name, settings in made.items()
    }
    folders = {name: tmp_path / name for name in made}
    ours = load_pretrained(deep, dtype=jnp.float32, adapters=folders)
    assert ours.decoder.lora.layers == 3
    for name, expected in theirs.items():
        assert_close(ours.logits(tokens, adapter=name), expected)


@pytest.mark.parametrize("layers", [[0, 1], [0, 3], [-1], ["3"], 1.5, [2, 3, 4]])
def test_layers_that_are_not_the_upper_ones_are_refused(deep, tmp_path, layers):
    lora = LoraConfig(2, layers=2)
    arrays = named_arrays(split(init_decoder(read_config(deep), lora))[1])
    save_adapter(tmp_path, arrays, lora, num_layers=4)
    path = tmp_path / "adapter_config.json"
    content = json.loads(path.read_text()) | {"layers_to_transform": layers}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="layers_to_transform"):
        read_adapter(tmp_path, read_config(deep))


@pytest.mark.parametrize("shards", [1, 3])
def test_transformers_reads_the_merged_model(tmp_path, tokens, shards):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    base, out = tmp_path / "base", tmp_path / "out"
    model = make_checkpoint("llama-biased", base)
    if shards > 1:
        (base / "model.safetensors").unlink()
        model.save_pretrained(base, max_shard_size="150KB")
        assert len(list(base.glob("*.safetensors"))) >= shards
    (base / "tokenizer_config.json").write_text('{"a": 1}')
    adapted = peft_adapter(base, tmp_path / "adapter", r=4, lora_alpha=9)
    export_merged(base, tmp_path / "adapter", out)
    merged = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert_close(torch_logits(merged, tokens), torch_logits(adapted, tokens))
    assert (out / "tokenizer_config.json").read_bytes() == b'{"a": 1}'
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    ours = load_decoder(base, adapters={"policy": tmp_path / "adapter"})
    save_pretrained(merge_lora(ours), tmp_path / "ours")
    for a, b in zip(
        jax.tree.leaves(split(load_decoder(out))),
        jax.tree.leaves(split(load_decoder(tmp_path / "ours"))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_merged_model_of_another_type_that_was_interrupted(tmp_path, base, theirs):
    directory, _ = theirs["wide"]
    export_merged(base, directory, tmp_path / "straight", dtype="bfloat16")
    config = json.loads((tmp_path / "straight" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and read_config(tmp_path / "straight")
    tensors = load_file(tmp_path / "straight" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}

    def stop(text):
        raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        export_merged(base, directory, again, dtype="bfloat16", say=stop)
    with pytest.raises(FileExistsError, match="is not empty"):
        export_merged(base, directory, again, dtype="float16")
    said = []
    export_merged(base, directory, again, dtype="bfloat16", say=said.append)
    assert said[0] == "model.safetensors: already written"
    for path in (tmp_path / "straight").iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()
    assert len(list(again.iterdir())) == len(list((tmp_path / "straight").iterdir()))
    (tmp_path / "file").touch()
    for taken in (again, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="give another folder"):
            export_merged(base, directory, taken, dtype="bfloat16")
    tensors["odd"] = np.array(3, np.float32)
    save_file(tensors, again / "model.safetensors")
    with pytest.raises(ValueError, match="unexpected odd"):
        export_merged(again, directory, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_all_that_is_wrong_with_an_adapter_is_named(tmp_path, config):
    decoder = init_decoder(config, LoraConfig(rank=2))
    save_adapter(tmp_path, named_arrays(split(decoder)[1]), decoder.lora)
    path = tmp_path / "adapter_model.safetensors"
    good = load_file(path)
    prefix = "base_model.model.model."
    tensors = dict(good)
    del tensors[f"{prefix}layers.1.self_attn.q_proj.lora_B.weight"]
    tensors[f"{prefix}layers.0.mlp.up_proj.lora_A.weight"] = np.zeros((2, 5), np.float32)
    tensors[f"{prefix}layers.0.mlp.down_proj.lora_A.weight"] = np.zeros((2, 48), np.int8)
    tensors[f"{prefix}layers.7.mlp.down_proj.lora_A.weight"] = np.zeros((2, 48), np.float32)
    tensors[f"{prefix}lm_head.lora_A.weight"] = np.zeros((2, 5), np.float32)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        read_adapter(tmp_path, config)
    for part in (
        f"missing {prefix}layers.1.self_attn.q_proj.lora_B.weight",
        f"{prefix}layers.0.mlp.up_proj.lora_A.weight has shape [2, 5], expected [2, 32]",
        f"{prefix}layers.0.mlp.down_proj.lora_A.weight is I8",
        f"unexpected {prefix}layers.7.mlp.down_proj.lora_A.weight",
        f"unexpected {prefix}lm_head.lora_A.weight",
    ):
        assert part in str(error.value)
    save_file(good, path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    settings |= {"use_dora": True, "r": 0, "lora_alpha": "8", "init_lora_weights": "pissa"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError) as error:
        read_adapter(tmp_path, config)
    for part in ("use_dora=True", "r=0", "lora_alpha='8'", "init_lora_weights='pissa'"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        read_adapter(tmp_path / "nothing")
    with pytest.raises(ValueError, match="not both"):
        load_decoder(tmp_path, LoraConfig(rank=1), adapters={"a": tmp_path})
