"""Small disks that fill up, where this user may mount one."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest


class Disk:
    """A disk in memory, at `path`; sizes in KiB."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", path], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("no small disk to fill: mounting one is not allowed here")

    def grow(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}k", self.path], check=True)

    def forbid_writing(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)

    def remove(self) -> None:
        # Lazily: a process that was just ended may still hold it.
        subprocess.run(["umount", "--lazy", self.path], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Disk]]:
    """Makes a disk of so many KiB."""
    with ExitStack() as stack:

        def make(size: int) -> Disk:
            disk = Disk(tmp_path / "disk", size)
            stack.callback(disk.remove)
            return disk

        yield make
