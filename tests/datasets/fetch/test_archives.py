"""Archives that mean harm are refused before a byte is written; good ones come out whole."""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile

import pytest

from alignuser_jax.datasets.fetch.archives import (
    HostileArchive,
    check_gzip,
    gunzip,
    unpack_archive,
)

LIMIT = 100_000
GOOD = {"ml/README": b"read me", "ml/deep/ratings.dat": b"1::2::3\n" * 100}
ESCAPES = [
    "../evil",
    "ml/../../evil",
    "/tmp/evil",
    "..\\evil",
    "C:\\evil",
    "c:evil",
    "ml/a\\..\\evil",
    "..",
    "ml/" + "n" * 300,
]


def write_zip(path, files, **attributes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is: the constructor would clean it
            info.compress_type = zipfile.ZIP_DEFLATED
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            file.writestr(info, data)
    return path


def write_tar(path, files, mode="w:gz", **attributes):
    with tarfile.open(path, mode) as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            file.addfile(info, io.BytesIO(data))
    return path


def refused(archive, folder, message, **limits):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(HostileArchive, match=message):
        unpack_archive(archive, folder, **{"max_bytes": LIMIT, **limits})
    assert sorted(folder.parent.rglob("*")) == before


WRITERS = [(write_zip, "a.zip"), (write_tar, "a.tar.gz"), (write_tar, "a.tgz")]


@pytest.mark.parametrize("write, name", [*WRITERS, (write_tar, "a.tar")])
def test_a_good_archive(tmp_path, write, name):
    options = {"mode": "w"} if name.endswith(".tar") else {}
    archive = write(tmp_path / name, GOOD, **options)
    folder = unpack_archive(archive, tmp_path / "out" / "ml", max_bytes=LIMIT)
    assert (folder / "README").read_bytes() == GOOD["ml/README"]  # one top folder is the folder
    assert (folder / "deep" / "ratings.dat").read_bytes() == GOOD["ml/deep/ratings.dat"]
    assert os.listdir(tmp_path / "out") == ["ml"]
    with pytest.raises(FileExistsError, match="exists: move it away"):
        unpack_archive(archive, folder, max_bytes=LIMIT)
    flat = write(tmp_path / f"flat{name[1:]}", {"a": b"1", "b/c": b"2"}, **options)
    folder = unpack_archive(flat, tmp_path / "flat", max_bytes=LIMIT)
    assert (folder / "a").read_bytes() == b"1" and (folder / "b" / "c").read_bytes() == b"2"


@pytest.mark.parametrize("write, name", WRITERS)
@pytest.mark.parametrize("evil", ESCAPES)
def test_paths_that_leave(tmp_path, write, name, evil):
    folder = tmp_path / "in" / "out"
    folder.parent.mkdir()
    archive = write(tmp_path / "in" / name, {"ml/a": b"fine", evil: b"evil"})
    refused(archive, folder, "does not stay inside its folder: nothing was unpacked")
    assert not (tmp_path / "evil").exists()


def test_a_zero_byte_in_a_name(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"ml/a_../../b": b"x"})
    data = archive.read_bytes().replace(b"ml/a_../../b", b"ml/a\0../../b")
    archive.write_bytes(data)
    refused(archive, tmp_path / "out", "does not stay inside")


def test_links_and_devices_in_a_tar(tmp_path):
    kinds = {
        "symlink": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        "relative": {"type": tarfile.SYMTYPE, "linkname": "../.."},
        "hardlink": {"type": tarfile.LNKTYPE, "linkname": "ml/a"},
        "device": {"type": tarfile.CHRTYPE},
        "block": {"type": tarfile.BLKTYPE},
        "fifo": {"type": tarfile.FIFOTYPE},
    }
    for kind, attributes in kinds.items():
        archive = write_tar(tmp_path / f"{kind}.tar.gz", {"ml/b": b""}, **attributes)
        refused(archive, tmp_path / "out", "a link, a device or sparse: nothing")


def test_links_and_devices_in_a_zip(tmp_path):
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK):
        archive = write_zip(
            tmp_path / f"{kind}.zip", {"ml/b": b"/etc"}, external_attr=(kind | 0o777) << 16
        )
        refused(archive, tmp_path / "out", "a link or a device: nothing was unpacked")


def test_an_executable_does_not_stay_one(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"x.sh": b"#!"}, external_attr=0o100777 << 16)
    folder = unpack_archive(archive, tmp_path / "out", max_bytes=LIMIT)
    assert not (folder / "x.sh").stat().st_mode & 0o111
    archive = write_tar(tmp_path / "a.tar.gz", {"x.sh": b"#!"}, mode="w:gz", uid=0)
    folder = unpack_archive(archive, tmp_path / "out2", max_bytes=LIMIT)
    assert not (folder / "x.sh").stat().st_mode & 0o7111


@pytest.mark.parametrize("write, name", WRITERS)
def test_bombs(tmp_path, write, name):
    zeros = bytes(LIMIT + 1)
    archive = write(tmp_path / name, {"ml/zeros": zeros})
    assert archive.stat().st_size < 1000
    refused(archive, tmp_path / "out", "more than the 100,000 bytes expected")
    halves = write(tmp_path / f"b{name}", {"ml/1": zeros[:60_000], "ml/2": zeros[:60_000]})
    refused(halves, tmp_path / "out", "more than the 100,000 bytes expected")
    many = write(tmp_path / f"c{name}", {f"ml/{n}": b"" for n in range(21)})
    refused(many, tmp_path / "out", "more than 20 files", max_files=20)


def test_a_zip_that_lies_about_its_sizes(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"ml/zeros": bytes(LIMIT * 20)})
    data = archive.read_bytes()
    size, small = struct.pack("<I", LIMIT * 20), struct.pack("<I", 10)
    assert data.count(size) == 2  # in the local and the central header
    archive.write_bytes(data.replace(size, small))
    refused(archive, tmp_path / "out", "is damaged|is cut off")


def test_a_tar_with_a_header_that_fills_the_memory(tmp_path):
    archive = tmp_path / "a.tar.gz"
    with gzip.open(archive, "wb") as file:
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XHDTYPE, 1 << 30
        file.write(info.tobuf())
        for _ in range(8):
            file.write(bytes(1 << 20))
    refused(archive, tmp_path / "out", "has a header of 1073741824 bytes")


@pytest.mark.parametrize("write, name", WRITERS)
def test_a_file_that_is_also_a_folder_and_a_path_twice(tmp_path, write, name):
    archive = write(tmp_path / name, {"ml/a": b"1", "ml/a/b": b"2"})
    refused(archive, tmp_path / "out", "is inside what is also a file")
    archive = write(tmp_path / f"b{name}", {"ml/a": b"1", "ml//a": b"2"})
    refused(archive, tmp_path / "out", "names a path twice")
    archive = write(tmp_path / f"c{name}", {"ml/a": b"1", "ml/A": b"2"})
    refused(archive, tmp_path / "out", "names a path twice")


def test_an_encrypted_zip(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"ml/a": b"secret"})
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    refused(archive, tmp_path / "out", "is encrypted")


@pytest.mark.parametrize("write, name", WRITERS)
def test_damage(tmp_path, write, name):
    noise = os.urandom(5000)
    archive = write(tmp_path / name, {"ml/a": noise, "ml/b": noise})
    whole = archive.read_bytes()
    for place in range(40, len(whole), 997):
        data = bytearray(whole)
        data[place] ^= 0xFF
        archive.write_bytes(data)
        refused(archive, tmp_path / "out", "a\\.")
    for end in (0, 10, 400, len(whole) // 2, len(whole) - 9):
        archive.write_bytes(whole[:end])
        refused(archive, tmp_path / "out", "a\\.")
    archive.write_bytes(b"<html>Moved</html>")
    refused(archive, tmp_path / "out", "a\\.")
    empty = write(tmp_path / f"b{name}", {})
    refused(empty, tmp_path / "out", "holds no file")


def test_gzip(tmp_path):
    archive, data = tmp_path / "log.json.gz", b"{}\n" * 20_000
    archive.write_bytes(gzip.compress(data))
    assert check_gzip(archive, max_bytes=LIMIT) == len(data)
    assert gunzip(archive, tmp_path / "log.json", max_bytes=LIMIT).read_bytes() == data
    (tmp_path / "log.json").unlink()
    whole = archive.read_bytes()
    damaged = whole[:50] + b"?" + whole[51:]
    for broken in (whole[:-4], whole[: len(whole) // 2], b"<html>", damaged):
        archive.write_bytes(broken)
        with pytest.raises(HostileArchive, match="is not a complete gzip file"):
            check_gzip(archive, max_bytes=LIMIT)
        with pytest.raises(HostileArchive, match="is not a complete gzip file"):
            gunzip(archive, tmp_path / "log.json", max_bytes=LIMIT)
    archive.write_bytes(gzip.compress(bytes(LIMIT + 1)))
    for call in (
        lambda: check_gzip(archive, max_bytes=LIMIT),
        lambda: gunzip(archive, tmp_path / "log.json", max_bytes=LIMIT),
    ):
        with pytest.raises(HostileArchive, match="more than the 100,000 bytes"):
            call()
    assert os.listdir(tmp_path) == ["log.json.gz"]
