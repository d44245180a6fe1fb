"""Archives unpacked safely: nothing leaves the folder, and a folder is there whole or not at all."""

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from goal.errors import UserError
from goal.runtime import files

# What readers of archives raise on damaged ones; those of gzip and bzip2 also an OSError without a number.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError)
BLOCK = 1 << 20  # bytes


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar (compressed or not) or a zip into `folder` and return it; a folder that is there is kept.

    Raises UserError, and leaves no folder, for a damaged archive, for a member that is not a plain file or
    folder, or whose path leads out of the folder, and where the disk refuses or has no room for it.
    """
    if folder.exists():
        return folder
    if not archive.is_file():
        raise UserError(f"{archive}: not found")
    draft = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
        for _ in tqdm(members(archive, draft), archive.name, unit=" files"):
            pass
        os.replace(draft, folder)
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise files.unwritable(folder, error) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{archive}: damaged archive ({reason}); delete it to have it fetched again"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _tar_members(archive: Path, draft: Path) -> Iterator[None]:
    """Unpack one member after the other."""
    # At least as much as the archive: a tar does not say how large it will be; pictures hardly compress.
    files.check_space(draft, archive.stat().st_size)
    with tarfile.open(archive) as tar:
        for member in tar:
            _check(archive, member.name, member.isreg() or member.isdir())
            target = draft / member.name
            (target if member.isdir() else target.parent).mkdir(parents=True, exist_ok=True)
            if member.isreg():
                # Not `extract`, whose filters Python has from 3.11.4 on: here only contents are taken over.
                with tar.extractfile(member) as content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)
            yield
        # The tar ends before its file does: a checksum over all of it comes last, and a damaged header passes
        # for the end, with members behind it.
        while rest := tar.fileobj.read(BLOCK):
            if rest.count(0) < len(rest):
                raise tarfile.ReadError(f"something follows its end at {tar.offset:,} bytes")


def _zip_members(archive: Path, draft: Path) -> Iterator[None]:
    with zipfile.ZipFile(archive) as box:
        files.check_space(draft, sum(member.file_size for member in box.infolist()))
        for member in box.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if member.flag_bits & 1:
                raise UserError(f"{archive}: {member.filename}: encrypted; unpack it yourself")
            box.extract(member, draft)
            yield


def _check(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise UserError(f"{archive}: {name!r} leads out of the folder; the archive is not to be trusted")
    if not plain:
        raise UserError(f"{archive}: {name!r} is a link or a device; the archive is not to be trusted")
