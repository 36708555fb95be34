"""Files are whole or not there; a folder of other settings is refused by name."""

import pytest

from alignuser_jax.durable.whole import (
    MOST_DIFFERENCES,
    SOFTWARE,
    JournalError,
    differences,
    refuse_other,
    replacing,
    write_whole,
)


def test_a_block_that_raises_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "table.npz"
    write_whole(path, "old")
    with pytest.raises(RuntimeError, match="halfway"), replacing(path) as partial:
        assert partial == tmp_path / "table.npz.partial"
        partial.write_text("ne")
        raise RuntimeError("halfway")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_succeeds_replaces_the_file(tmp_path):
    path = tmp_path / "names.txt"
    write_whole(path, "old")
    write_whole(path, "Ærøskøbing\n")
    assert path.read_bytes() == "Ærøskøbing\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass


def test_differences_name_nested_settings():
    before = {"engine": {"slots": 4, "pages": {}}, "seed": 0}
    now = {"engine": {"slots": 8, "pages": {}}, "policy": "p", "seed": 0}
    assert differences(before, now) == [
        "engine.slots was 4, now 8",
        "policy was '(absent)', now 'p'",
    ]
    assert differences(before, before) == []


def test_an_empty_group_differs_from_a_missing_one():
    assert differences({"limits": {}}, {}) == ["limits was {}, now '(absent)'"]
    assert differences({}, {}) == []


def test_a_setting_that_is_new_and_off_is_not_a_difference():
    old, new = {"lora": {"rank": 4}}, {"lora": {"rank": 4, "layers": None}}
    assert differences(old, new) == differences(new, old) == []
    new["lora"]["layers"] = 2
    assert differences(old, new) == ["lora.layers was '(absent)', now 2"]
    assert differences(new, old) == ["lora.layers was 2, now '(absent)'"]


def test_other_settings_are_refused_with_what_to_do():
    refuse_other({"seed": 1}, {"seed": 1}, "runs/a")
    old, new = {"written_by": "alignuser_jax 0.0.9", "seed": 1}, {"written_by": SOFTWARE}
    refuse_other(old, new | {"seed": 1}, "runs/a")
    with pytest.raises(JournalError) as error:
        refuse_other(old, new | {"seed": 2}, "runs/a", option="--out folder")
    assert str(error.value) == (
        "runs/a was made with other settings, by alignuser_jax 0.0.9:\n  seed was 1, now 2\n"
        "Give the same settings to go on, or use another --out folder"
    )


def test_a_long_list_of_differences_is_cut_and_counted():
    now = {f"setting {n:02d}": n for n in range(MOST_DIFFERENCES + 3)}
    with pytest.raises(ValueError, match="and 3 more") as error:
        refuse_other({}, now, "runs/a", error=ValueError)
    assert str(error.value).count("was '(absent)'") == MOST_DIFFERENCES
