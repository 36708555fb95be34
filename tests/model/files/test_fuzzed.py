"""500 damaged checkpoints: each is refused with a message that names what is wrong."""

import json
import random
import shutil
import struct

import jax
import pytest

from alignuser_jax.model import (
    DecoderConfig,
    init_decoder,
    load_decoder,
    read_config,
    save_pretrained,
)
from alignuser_jax.model.files.tensors import WHOLE, find_tensors

VALUES = [None, True, -1, 0, 1.5, 10**30, "8", "", [], [1], {}, {"a": 1}, 7, 2**40, 1e308]
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
SIZES += ("num_attention_heads", "num_key_value_heads", "head_dim")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    directory = tmp_path_factory.mktemp("good")
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_layers": 2, "num_heads": 2}
    config = DecoderConfig(vocab_size=11, num_kv_heads=1, head_dim=6, **shape)
    save_pretrained(init_decoder(config), directory)
    return directory


def damage_config(draw, content):
    """The text of a config that is wrong, and what a message may name."""
    name = draw.choice(
        SIZES + ("rms_norm_eps", "model_type", "hidden_act", "use_sliding_window")
    )
    kind = draw.randrange(6)
    if kind == 0:
        name = draw.choice([s for s in SIZES if s != "num_key_value_heads"])
        del content[name]  # qwen3's default head_dim would not fit either
    elif kind == 1:
        wrong = [v for v in VALUES if v is not None and v != content[name]]
        wrong = [v for v in wrong if not (name == "rms_norm_eps" and v == 0)]
        wrong = [v for v in wrong if not (name == "use_sliding_window" and v is True)]
        content[name] = draw.choice(wrong)
    elif kind == 2:
        content[name + draw.choice("sx_")] = content.pop(name)
    elif kind == 3:
        name = f"{draw.choice(['num_experts', 'mamba', 'qk_clip'])}_{draw.randrange(99)}"
        content[name] = draw.choice(VALUES)
    elif kind == 4:
        name = draw.choice(SIZES)
        content[name] += draw.choice([-1, 1, 2, 10, 2**20])
    else:
        text = json.dumps(content)
        return text[: draw.randrange(len(text))], "config.json"
    return json.dumps(content), name


def damage_header(draw, header, data):
    """A file that is wrong in its header, its length or its data."""
    names = [name for name in header if name != "__metadata__"]
    name = draw.choice(names)
    entry = header[name]
    kind = draw.randrange(8)
    if kind == 0:
        entry["dtype"] = draw.choice(["F64", "I8", "Q4", "", "f32", 3, None, "BOOL"])
    elif kind == 1:
        entry["shape"] = draw.choice(
            [[], [-1], entry["shape"] + [2], ["8"], [2**62, 4], 5, None]
        )
    elif kind == 2:
        which = draw.randrange(2)
        entry["data_offsets"][which] += draw.choice([-1, 1, 4, 10**12, -(10**6)])
    elif kind == 3:
        del entry[draw.choice(list(entry))]
    elif kind == 4:
        header[name + "_"] = header.pop(name)
    elif kind == 5:
        del header[name]
    elif kind == 6:
        data = data[: draw.randrange(len(data))]
    text = json.dumps(header).encode()
    length = len(text)
    if kind == 7:
        length = draw.choice([0, 1, length - 3, length + 9, 2**62, 2**64 - 1])
    return struct.pack("<Q", length) + text + data


@pytest.mark.parametrize("block", range(10))
def test_damaged_checkpoints_are_refused_by_name(good, tmp_path, block):
    raw = (good / WHOLE).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    directory = tmp_path / "damaged"
    for number in range(50):
        draw = random.Random(1000 * block + number)
        shutil.copytree(good, directory, dirs_exist_ok=True)
        if number % 2:
            text, named = damage_config(draw, json.loads((good / "config.json").read_text()))
            (directory / "config.json").write_text(text)
        else:
            header, named = json.loads(raw[8 : 8 + length]), ""
            (directory / WHOLE).write_bytes(damage_header(draw, header, raw[8 + length :]))
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load_decoder(directory)
        message = str(error.value)
        assert str(directory) in message or WHOLE in message, message
        assert not isinstance(error.value, UnicodeError)
        if named:
            spelled = {
                "num_attention_heads": "num_heads",
                "num_key_value_heads": "num_kv_heads",
            }
            fits = (
                named,
                spelled.get(named, named),
                "has shape",
                "missing",
                "unexpected",
                "hold",
            )
            assert any(part in message for part in fits), (named, message)


def test_flipped_bytes_never_change_a_checkpoint_silently(good, tmp_path):
    """A flip that still loads changed nothing that is computed, or is what the file says."""
    directory = tmp_path / "flipped"
    expected = {n: (t.dtype, t.shape, t.offset) for n, t in find_tensors(good).items()}
    raw, config_text = (good / WHOLE).read_bytes(), (good / "config.json").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    refused = 0
    for number in range(400):
        draw = random.Random(number)
        shutil.copytree(good, directory, dirs_exist_ok=True)
        name, whole, end = (
            (WHOLE, raw, 8 + length) if number % 2 else ("config.json", config_text, None)
        )
        damaged = bytearray(whole)
        damaged[draw.randrange(end or len(whole))] = draw.randrange(256)
        (directory / name).write_bytes(damaged)
        try:
            config = read_config(directory)
            found = find_tensors(directory)
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert str(directory) in str(error) or WHOLE in str(error)
            continue
        content = json.loads((directory / "config.json").read_text())
        for field, value in {
            "hidden_size": config.hidden_size,
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.rms_norm_eps,
            "tie_word_embeddings": config.tie_word_embeddings,
        }.items():
            assert content[field] == value
        same = {n: (t.dtype, t.shape, t.offset) for n, t in found.items()} == expected
        if not same:  # another name: the tensors no longer fit the config
            with pytest.raises(ValueError, match="do not fit"):
                load_decoder(directory)
    assert refused > 200


def test_the_good_one_loads(good):
    assert jax.tree.leaves(load_decoder(good).embedding[...])
