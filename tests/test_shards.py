"""Shards keep every byte of an example and refuse what they cannot read."""

import json

import msgpack
import pytest

from alignuser_jax import shards
from alignuser_jax.records import Example, Message, Span
from alignuser_jax.shards import (
    MANIFEST,
    ShardError,
    TaskRecords,
    decode_example,
    encode_example,
    manifest_hash,
    read_examples,
    read_manifest,
    write_shards,
)

SOURCE = {"dataset_hash": "d0", "policy_id": "human"}


def example(number: int, task: str = "world_model") -> Example:
    return Example(
        task=task,
        messages=(
            Message.of("system", "Platform\n"),
            Message.of("user", f"É page {number}\r\n\n  "),
            Message(
                "assistant",
                (Span("why\n", trained=True), Span("[EXIT]", trained=True, action=True)),
            ),
        ),
        example_id=f"{task}/{number}",
        user_id=str(number),
    )


def test_round_trip_in_order_over_several_files(tmp_path):
    written = [example(n, task) for n in range(7) for task in ("world_model", "visit")]
    manifest = write_shards(written, tmp_path, manifest=SOURCE, shard_size=3)
    assert manifest["tasks"]["visit"]["count"] == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        MANIFEST,
        *(f"visit-{i:05d}-of-00003.arrayrecord" for i in range(3)),
        *(f"world_model-{i:05d}-of-00003.arrayrecord" for i in range(3)),
    ]
    assert list(read_examples(tmp_path, "visit")) == [e for e in written if e.task == "visit"]
    assert sorted(read_examples(tmp_path), key=str) == sorted(written, key=str)
    assert read_manifest(tmp_path) == manifest


def test_manifest_hash_follows_the_records(tmp_path):
    first = write_shards([example(1)], tmp_path / "a", manifest=SOURCE)
    same = write_shards([example(1)], tmp_path / "b", manifest=SOURCE)
    other = write_shards([example(2)], tmp_path / "c", manifest=SOURCE)
    assert manifest_hash(first) == manifest_hash(same) != manifest_hash(other)


def test_another_version_is_refused_by_name(tmp_path):
    write_shards([example(1)], tmp_path, manifest=SOURCE)
    for field, name in (
        ("record_version", "record version"),
        ("prompt_layout_version", "prompt-layout version"),
    ):
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        (tmp_path / MANIFEST).write_text(json.dumps({**manifest, field: 99}))
        with pytest.raises(ShardError, match=f"{name} 99.*build the shards again"):
            read_manifest(tmp_path)
        (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    other = msgpack.packb([99, *msgpack.unpackb(encode_example(example(1)))[1:]])
    with pytest.raises(ShardError, match="record version 99"):
        decode_example(other)
    with pytest.raises(ShardError, match="damaged"):
        decode_example(b"\x07")


def test_interrupted_write_is_not_taken_and_a_new_one_replaces_it(tmp_path):
    write_shards([example(n) for n in range(4)], tmp_path, manifest=SOURCE, shard_size=2)

    def failing():
        yield example(9)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_shards(failing(), tmp_path, manifest=SOURCE)
    assert len(list(read_examples(tmp_path))) == 4  # the earlier shards are whole
    write_shards([example(9)], tmp_path, manifest=SOURCE)
    assert list(read_examples(tmp_path)) == [example(9)]
    assert len(list(tmp_path.glob("*.arrayrecord*"))) == 1
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ShardError, match="interrupted"):
        read_manifest(tmp_path)


def test_a_missing_file_and_a_missing_task_are_named(tmp_path):
    write_shards([example(1)], tmp_path, manifest=SOURCE)
    with pytest.raises(ShardError, match="no task 'visit'.*world_model"):
        list(read_examples(tmp_path, "visit"))
    next(tmp_path.glob("*.arrayrecord")).unlink()
    with pytest.raises(ShardError, match="lacks world_model-00000-of-00001"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([Example("visit", (Message.of("user", "no reply"),), "a")], "no trained span"),
        ([example(1), example(1)], "another example has this id"),
        ([Example("../x", example(1).messages, "a")], "letters, digits"),
    ],
)
def test_bad_examples_are_refused(tmp_path, examples, message):
    with pytest.raises(ShardError, match=message):
        write_shards(examples, tmp_path, manifest=SOURCE)
    assert not list(tmp_path.iterdir())


def test_manifest_must_say_where_the_data_came_from(tmp_path):
    with pytest.raises(ShardError, match="policy_id"):
        write_shards([example(1)], tmp_path, manifest={"dataset_hash": "x"})
    assert shards.RECORD_VERSION == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    write_shards([example(n) for n in range(400)], tmp_path, manifest=SOURCE, shard_size=300)
    path = tmp_path / "world_model-00001-of-00002.arrayrecord"
    whole = path.read_bytes()
    half = len(whole) // 2  # what comes after the records is padding
    flipped = bytes(255 - byte for byte in whole[2000:2500])
    damaged = {
        "cut": whole[:half],
        "empty": b"",
        "flipped": whole[:2000] + flipped + whole[2500:],
        "other": (tmp_path / "world_model-00000-of-00002.arrayrecord").read_bytes(),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(ShardError, match="build the shards again") as refused:
        records = TaskRecords(tmp_path, "world_model")
        for n in range(len(records)):
            records[n]
    expected = "600 records" if damage == "other" else path.name
    assert expected in str(refused.value)


def test_records_by_number(tmp_path):
    write_shards([example(n) for n in range(7)], tmp_path, manifest=SOURCE, shard_size=3)
    records = TaskRecords(tmp_path, "world_model")
    assert [decode_example(record).example_id for record in records] == [
        f"world_model/{n}" for n in range(7)
    ]
    assert records[2:4] == [records[2], records[3]] and len(records[:]) == 7
    with pytest.raises(IndexError, match="record 7 of 7"):
        records[7]
