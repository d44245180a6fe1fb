"""Unpacking: honest archives come out whole, hostile and damaged ones leave nothing anywhere."""

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from goal.datasets.unpack import unpack
from goal.errors import UserError

FILES = {"images/a.jpg": b"a" * 70_000, "images/deep/b.jpg": b"b", "list.json": b"[]"}


def tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o6777
    return info


def everything(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_an_archive_comes_out_whole_and_only_once(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as box:
            for name, content in FILES.items():
                box.writestr(name, content)
    else:
        tar(archive, [(member(n), c) for n, c in FILES.items()], "w:gz" if suffix == "tar.gz" else "w")
    folder = unpack(archive, tmp_path / "out")
    assert everything(folder) == FILES
    assert not (folder / "list.json").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    (folder / "list.json").write_bytes(b"mine")
    archive.unlink()
    assert everything(unpack(archive, tmp_path / "out"))["list.json"] == b"mine"


@pytest.mark.parametrize(
    "hostile",
    [
        [(member("../evil"), b"x")],
        [(member("images/../../evil"), b"x")],
        [(member("/tmp/goal-evil"), b"x")],
        [(member("C:\\evil"), b"x")],
        [(member("..\\evil"), b"x")],
        [(member("link", tarfile.SYMTYPE, ".."), b""), (member("link/evil"), b"x")],
        [(member("link", tarfile.SYMTYPE, "/etc/passwd"), b"")],
        [(member("hard", tarfile.LNKTYPE, "../../secret"), b"")],
        [(member("pipe", tarfile.FIFOTYPE), b"")],
        [(member("disk", tarfile.BLKTYPE), b"")],
    ],
)
def test_a_hostile_tar_leaves_nothing_behind(tmp_path: Path, hostile) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = tar(tmp_path / "a.tar", [(member("good"), b"good"), *hostile])
    with pytest.raises(UserError, match=r"a\.tar: .* the archive is not to be trusted") as caught:
        unpack(archive, inner / "out")
    assert "\n" not in str(caught.value)
    assert os.listdir(inner) == []
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "inner"]
    assert not Path("/tmp/goal-evil").exists()


@pytest.mark.parametrize(("name", "mode"), [("../evil", 0o100644), ("/evil", 0o100644), ("link", 0o120777)])
def test_a_hostile_zip_leaves_nothing_behind(tmp_path: Path, name: str, mode: int) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as box:
        box.writestr("good", b"good")
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        box.writestr(info, b"/etc")
    with pytest.raises(UserError, match="not to be trusted"):
        unpack(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_a_cut_archive_is_one_line_and_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"a.{suffix}"
    noise = os.urandom(400_000)
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w") as box:
            box.writestr("a.bin", noise)
    else:
        tar(archive, [(member("a.bin"), noise)], "w:gz" if suffix == "tar.gz" else "w")
    archive.write_bytes(archive.read_bytes()[:200_000])
    with pytest.raises(UserError, match="damaged archive") as caught:
        unpack(archive, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [archive.name]


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz", "tar.bz2"])
def test_what_only_the_checksum_at_the_end_tells_is_found(tmp_path: Path, suffix: str) -> None:
    """All members come out of such a file, and the tar within it ends well."""
    archive = tar(tmp_path / f"a.{suffix}", [(member("a.bin"), b"a" * 9000)], f"w:{suffix[4:]}")
    content = bytearray(archive.read_bytes())
    # Of gzip and bzip2 the last bytes are the checksum; xz has its own before the index and the footer.
    place = {"tar.gz": -8, "tar.xz": -36, "tar.bz2": -3}[suffix]
    content[place] ^= 16
    archive.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.{suffix}: damaged archive") as caught:
        unpack(archive, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [archive.name]


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz"])
def test_a_stream_cut_behind_the_last_member_is_found(tmp_path: Path, suffix: str) -> None:
    archive = tar(tmp_path / f"a.{suffix}", [(member("a.bin"), b"a" * 9000)], f"w:{suffix[4:]}")
    archive.write_bytes(archive.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged archive"):
        unpack(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == [archive.name]


def test_a_damaged_header_does_not_pass_for_the_end(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar", [(member("a"), b"a"), (member("b"), b"b"), (member("c"), b"c")])
    content = bytearray(archive.read_bytes())
    content[1024] ^= 1  # the name of b, which its header's checksum covers
    archive.write_bytes(content)
    with pytest.raises(
        UserError, match=r"a\.tar: damaged archive \(something follows its end at 1,024 bytes"
    ):
        unpack(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_a_disk_too_small_is_said_before_the_first_file(tmp_path: Path, small_disk, suffix: str) -> None:
    archive, content = tmp_path / f"a.{suffix}", bytes(200_000)
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as box:
            box.writestr("a.bin", content)
    else:
        tar(archive, [(member("a.bin"), content)])
    disk = small_disk(100)
    with pytest.raises(UserError, match=r"0\.0 GB are still to come, 0\.0 GB are free; make room"):
        unpack(archive, disk.path / "out")
    assert os.listdir(disk.path) == []


def test_a_disk_that_fills_up_is_one_line_and_keeps_nothing(tmp_path: Path, small_disk) -> None:
    """Zeros in a tar.gz take hundreds of times what the archive does: only the disk can tell."""
    archive = tar(tmp_path / "a.tar.gz", [(member(f"{n}.bin"), bytes(50_000)) for n in range(9)], "w:gz")
    disk = small_disk(200)
    with pytest.raises(UserError, match=r"disk/out: cannot be written: No space left on device; make room"):
        unpack(archive, disk.path / "out")
    assert os.listdir(disk.path) == []
    disk.grow(2000)
    assert len(everything(unpack(archive, disk.path / "out"))) == 9


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>"])
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar: damaged archive"):
        unpack(archive, tmp_path / "out")


def test_a_wrong_byte_in_a_zip_is_found(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as box:
        box.writestr("a.bin", bytes(1000))
    content = bytearray(archive.read_bytes())
    content[500] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match="damaged archive"):
        unpack(archive, tmp_path / "out")


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.tar"):
        unpack(tmp_path / "gone.tar", tmp_path / "out")
