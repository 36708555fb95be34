"""Files that are broken on purpose: refused by name, in bounded time and memory."""

import random
import resource
import struct
import time

import pytest

from alignuser_jax.model.files.gguf import header
from alignuser_jax.model.files.gguf.header import GgufError, check_header
from alignuser_jax.model.files.gguf.importing import import_gguf
from alignuser_jax.model.files.gguf.reading import GgufModel
from tests.language.conftest import fast
from tests.model.files.gguf.gguf_files import byte_pair_vocabulary, torch_model, write_gguf

gguf = pytest.importorskip("gguf")

__all__ = ["fast"]  # the fixture


@pytest.fixture(scope="module")
def whole(tmp_path_factory, fast):
    vocabulary = byte_pair_vocabulary(fast.tokenizer)
    model = torch_model("llama", len(vocabulary["add_token_list"]))
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, model, vocabulary)
    return path.read_bytes()


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def headed(keys=b"", count=0, tensors=b"", tensor_count=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, count) + keys + tensors


HUGE = 1 << 60
STATED = {
    "nothing": (b"", "too short"),
    "another format": (b"PK\x03\x04" + bytes(40), "begins with b'PK"),
    "version 1": (headed(version=1), "version 1"),
    "version 77": (headed(version=77), "version 77"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (headed(tensor_count=HUGE), "tensors and 0 keys"),
    "many keys": (headed(count=HUGE), "keys: at most"),
    "a long key": (headed(struct.pack("<Q", HUGE), 1), "a text of 1,152,921,504,606,846,976"),
    "a key past the end": (headed(struct.pack("<Q", 1000), 1), "the file ends before"),
    "a key of no UTF-8": (headed(text(b"\xff\xfe") + struct.pack("<I", 4), 1), "not UTF-8"),
    "an unknown type": (headed(text("a") + struct.pack("<I", 99), 1), "unknown type 99"),
    "a long array": (
        headed(text("a") + struct.pack("<IIQ", 9, 4, HUGE), 1), "entries: at most 4,000,000"),
    "an array past the end": (
        headed(text("a") + struct.pack("<IIQ", 9, 4, 10**6), 1), "asks for 4,000,000 bytes"),
    "an array of arrays": (
        headed(text("a") + struct.pack("<IIQ", 9, 9, 4), 1), "array of the unread type 9"),
    "a key twice": (
        headed((text("a") + struct.pack("<IB", 0, 1)) * 2, 2), "'a' stands there twice"),
    "nine dimensions": (
        headed(tensors=text("t") + struct.pack("<I", 9), tensor_count=1), "9 dimensions"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_what_a_header_states_is_not_believed(tmp_path, name):
    data, message = STATED[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data.ljust(24 if data else 0, b"\0"))
    started = time.monotonic()
    with pytest.raises(GgufError, match=message):
        check_header(path)
    assert time.monotonic() - started < 5


def tensor_at(offset, shape=(4, 4), kind=0):
    sizes = b"".join(struct.pack("<Q", size) for size in shape)
    info = text("t") + struct.pack("<I", len(shape)) + sizes
    return headed(tensors=info + struct.pack("<IQ", kind, offset), tensor_count=1)


TENSORS = {
    "an offset past the end": (tensor_at(1 << 40), "t|cannot be read"),
    "an offset that wraps": (tensor_at((1 << 64) - 32), "t|cannot be read"),
    "terabytes": (tensor_at(0, (1 << 40, 4)), "t|cannot be read"),
    "a product that wraps": (tensor_at(0, (1 << 32, 1 << 32)), "t|cannot be read"),
    "no values": (tensor_at(0, (0, 4)), "shape"),
    "an unknown quantization": (tensor_at(0, kind=250), "cannot be read"),
    "numbers that are no weights": (tensor_at(0, kind=26), "type I32"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_lie_in_the_file(tmp_path, name):
    data, message = TENSORS[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data.ljust(128, b"\0") + bytes(64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GgufError, match=message):
        GgufModel(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10  # KiB


def test_500_mutated_headers(tmp_path, whole, monkeypatch):
    """Each is refused by name or read; none raises anything else, takes long or much memory."""
    from alignuser_jax.model.files.gguf import importing

    monkeypatch.setattr(importing, "_check_template", lambda model, vocabulary: None)
    draw = random.Random(2026)
    size = whole.index(b"blk.1.ffn_down") + 60  # the header, to its last tensors
    path, refused = tmp_path / "m.gguf", 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(500):
        data = bytearray(whole)
        kind = draw.randrange(4)
        at = draw.randrange(4, size)
        if kind == 0:  # a byte
            data[at] = draw.randrange(256)
        elif kind == 1:  # a number of 8 bytes
            data[at : at + 8] = struct.pack("<Q", draw.choice([0, 1, 2**31, 2**63, HUGE]))
        elif kind == 2:  # bytes missing
            del data[at : at + draw.randrange(1, 40)]
        else:  # cut short
            del data[draw.randrange(0, len(data)) :]
        path.write_bytes(data)
        started = time.monotonic()
        try:
            import_gguf(path, tmp_path / f"hf{n}")
        except (GgufError, FileNotFoundError):
            refused += 1
        assert time.monotonic() - started < 10
    assert 200 < refused < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB: 1 GiB


def test_limits_are_above_what_models_have():
    """The largest published vocabularies have 300,000 tokens, the models 1,200 tensors."""
    assert header.MOST_ENTRIES > 10 * 300_000 and header.MOST_TENSORS > 10 * 1_200
