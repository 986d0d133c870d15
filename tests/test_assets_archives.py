"""One member out of an archive: the right bytes, and nothing else on the disk."""

import io
import random
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from assets_builders import sha256_of, tar_of, zip_of

from llm_neo.assets.archives import extract_member
from llm_neo.errors import InputError

CONTENT = b"a line\n" * 1000


def archive(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "archive"
    path.write_bytes(content)
    return path


def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    return folder / "target"


@pytest.mark.parametrize(
    "content",
    [
        zip_of({"other": b"x", "pkg/data.txt": CONTENT}),
        tar_of({"other": b"x", "pkg/data.txt": CONTENT}),
        tar_of({"other": b"x", "./pkg/data.txt": CONTENT}, mode="w:xz"),
        tar_of({"pkg/data.txt": CONTENT}, mode="w:bz2"),
        tar_of({"pkg/data.txt": CONTENT}, mode="w"),
    ],
    ids=["zip", "tar.gz", "tar.xz with ./", "tar.bz2", "tar"],
)
def test_the_bytes_of_one_file_come_out(tmp_path: Path, content: bytes) -> None:
    target = out(tmp_path)
    assert extract_member(archive(tmp_path, content), "pkg/data.txt", target) == sha256_of(CONTENT)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("inner", [zip_of({"d/f": CONTENT}), tar_of({"d/f": CONTENT})], ids=["zip", "tar"])
@pytest.mark.parametrize("outer", [zip_of, tar_of])
def test_an_archive_inside_an_archive(tmp_path: Path, inner: bytes, outer: object) -> None:
    content = outer({"p/inner.bin": inner})  # type: ignore[operator]
    assert extract_member(archive(tmp_path, content), "p/inner.bin", out(tmp_path), nested="d/f") == sha256_of(CONTENT)


def test_the_top_folder_of_a_source_archive_may_be_left_out(tmp_path: Path) -> None:
    content = tar_of({"My_Pkg-1.0/data/f": CONTENT, "Other-1.0/data/g": b"x"})
    path = archive(tmp_path, content)
    for member in ("data/f", "My_Pkg-1.0/data/f"):
        extract_member(path, member, out(tmp_path), top_folder="my.pkg-1.0")
        assert out(tmp_path).read_bytes() == CONTENT
    for member, top in (("data/g", "my-pkg-1.0"), ("data/f", None)):
        with pytest.raises(InputError, match="holds no file"):
            extract_member(path, member, out(tmp_path), top_folder=top)


def test_an_absent_file_is_named_with_its_nearest_names(tmp_path: Path) -> None:
    path = archive(tmp_path, zip_of({"pkg/reviews.txt": b"x", "zzz": b"x"}))
    with pytest.raises(InputError, match=r"^archive holds no file 'pkg/review.txt'; it holds pkg/reviews.txt$"):
        extract_member(path, "pkg/review.txt", out(tmp_path))
    with pytest.raises(InputError, match="it holds nothing"):
        extract_member(archive(tmp_path, zip_of({})), "pkg/review.txt", out(tmp_path))


def zip_with_symlink() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        entry = zipfile.ZipInfo("f")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def tar_with(kind: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        entry = tarfile.TarInfo("f")
        entry.type, entry.linkname = kind, "/etc/passwd"
        opened.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        zip_with_symlink(),
        zip_of({"f/": b""}),
        tar_with(tarfile.SYMTYPE),
        tar_with(tarfile.LNKTYPE),
        tar_with(tarfile.CHRTYPE),
        tar_with(tarfile.FIFOTYPE),
        tar_with(tarfile.DIRTYPE),
    ],
    ids=["zip link", "zip folder", "link", "hard link", "device", "pipe", "folder"],
)
def test_only_a_regular_file_comes_out(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="f in archive is a link, a folder or a device"):
        extract_member(archive(tmp_path, content), "f", out(tmp_path))
    assert list(out(tmp_path).parent.iterdir()) == []


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_entries_that_point_elsewhere_are_not_touched(tmp_path: Path, make: object) -> None:
    evil = {"../evil": b"x", "/tmp/llm-neo-evil": b"x", "a/../../evil": b"x", "f": CONTENT}
    path = archive(tmp_path, make(evil))  # type: ignore[operator]
    extract_member(path, "f", out(tmp_path))
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["archive", "out", "target"]
    assert not Path("/tmp/llm-neo-evil").exists()


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_a_file_beyond_the_limit_is_refused(tmp_path: Path, make: object) -> None:
    path = archive(tmp_path, make({"f": CONTENT}))  # type: ignore[operator]
    assert extract_member(path, "f", out(tmp_path), limit_bytes=len(CONTENT)) == sha256_of(CONTENT)
    with pytest.raises(InputError, match="f unpacks to more than the 6,999 bytes"):
        extract_member(path, "f", out(tmp_path), limit_bytes=len(CONTENT) - 1)


def test_a_bomb_before_the_wanted_file_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, tar_of({"zeros": bytes(1_000_000), "f": b"x"}))
    with pytest.raises(InputError, match="archive unpacks to more than the 10,000 bytes"):
        extract_member(path, "f", out(tmp_path), limit_bytes=10_000)


def test_a_lie_about_the_size_is_caught_while_streaming(tmp_path: Path) -> None:
    content = bytearray(zip_of({"f": CONTENT}))
    at = content.index(b"PK\x01\x02") + 24
    assert struct.unpack_from("<I", content, at) == (len(CONTENT),)
    struct.pack_into("<I", content, at, 10)
    with pytest.raises(InputError):
        extract_member(archive(tmp_path, bytes(content)), "f", out(tmp_path), limit_bytes=100)
    inner = tar_of({"f": CONTENT})
    path = archive(tmp_path, zip_of({"inner": inner}))
    with pytest.raises(InputError, match="more than the 100 bytes"):
        extract_member(path, "inner", out(tmp_path), nested="f", limit_bytes=100)


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of({"f": CONTENT}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(InputError, match="f in archive is encrypted"):
        extract_member(archive(tmp_path, bytes(content)), "f", out(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"no archive at all",
        b"",
        zip_of({"f": CONTENT})[:-30],
        tar_of({"f": CONTENT})[:60],
        tar_of({"f": bytes(range(256)) * 4000}, mode="w:bz2")[:-200],
    ],
    ids=["text", "empty", "cut zip", "cut tar.gz", "cut tar.bz2"],
)
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="the archive archive is damaged or of an unknown kind"):
        extract_member(archive(tmp_path, content), "f", out(tmp_path))


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_damage_in_the_middle_is_noticed(tmp_path: Path, mode: str) -> None:
    noise = random.Random(0).randbytes(2_000_000)
    content = bytearray(tar_of({"f": noise}, mode=mode))
    middle = len(content) * 3 // 4
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    with pytest.raises(InputError, match="damaged"):
        extract_member(archive(tmp_path, bytes(content)), "f", out(tmp_path))


def test_the_disks_own_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        extract_member(tmp_path / "absent", "f", out(tmp_path))
