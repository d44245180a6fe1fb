"""Downloads from a real server that drops connections, ignores ranges, changes files, sends wrong bytes."""

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from goal.datasets import dci, docci, karpathy, sharegpt4v, urban1k
from goal.errors import Unavailable, UserError
from goal.runtime import download
from goal.runtime.download import CHUNK, Remote, fetch
from tests.datasets.server import Served, serve
from tests.imports import ROOT
from tests.servers import until

CONTENT = random.Random(0).randbytes(3_000_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few retries, and short pauses before them."""
    monkeypatch.setattr(download, "TRIES", 3)
    monkeypatch.setattr(download, "PAUSE", 0.01)


def get(address: str, folder: Path, size: int | None = len(CONTENT), sha256: str = SHA) -> Path:
    (path,) = fetch([Remote(f"{address}/a.tar", size, sha256)], folder, "test")
    return path


def visible(folder: Path) -> set[str]:
    """What lies in a folder beside hidden lock files."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_file_comes_whole_and_leaves_no_parts(tmp_path: Path) -> None:
    with serve({"a.tar": Served(CONTENT)}) as address:
        assert get(address, tmp_path / "new" / "folder").read_bytes() == CONTENT
    assert visible(tmp_path / "new" / "folder") == {"a.tar"}


def test_a_dropped_connection_is_resumed_where_it_ended(tmp_path: Path) -> None:
    file = Served(CONTENT, ["drop"] * 9, drop_after=10 * CHUNK)
    with serve({"a.tar": file}) as address:
        assert get(address, tmp_path).read_bytes() == CONTENT
    assert file.asked == ["", *(f"bytes={n}-" for n in range(10 * CHUNK, len(CONTENT), 10 * CHUNK))]


def test_the_next_run_goes_on_where_the_last_one_gave_up(tmp_path: Path) -> None:
    file = Served(CONTENT, ["drop", "503", "503", "503"], drop_after=16 * CHUNK)
    with serve({"a.tar": file}) as address:
        with pytest.raises(
            Unavailable, match=r"a\.tar: cannot be downloaded \(503.*goes on at 1,048,576 bytes"
        ):
            get(address, tmp_path)
        assert visible(tmp_path) == {"a.tar.part", "a.tar.part.json"}
        assert get(address, tmp_path).read_bytes() == CONTENT
    assert file.asked[-1] == "bytes=1048576-"


@pytest.mark.parametrize("served", [{"ranges": False}, {"weak": True}])
def test_without_ranges_or_validator_a_broken_file_of_unknown_content_starts_again(
    tmp_path: Path, served
) -> None:
    file = Served(CONTENT, ["drop", "drop"], drop_after=16 * CHUNK, **served)
    with serve({"a.tar": file}) as address:
        assert get(address, tmp_path, sha256="").read_bytes() == CONTENT
    assert len(file.asked) == 3


def test_a_server_that_never_gets_further_is_given_up(tmp_path: Path) -> None:
    """Each try brings bytes, none brings the file further than the first: that is no progress."""
    file = Served(CONTENT, ["drop"] * 1000, drop_after=16 * CHUNK, ranges=False)
    with serve({"a.tar": file}) as address, pytest.raises(Unavailable, match="1048576 bytes read"):
        get(address, tmp_path)
    assert len(file.asked) == 1 + download.TRIES


def test_a_file_that_changes_between_two_tries_is_not_mixed(tmp_path: Path) -> None:
    file = Served(CONTENT, ["drop", "503", "503", "503"], drop_after=16 * CHUNK)
    with serve({"a.tar": file}) as address:
        with pytest.raises(UserError):
            get(address, tmp_path, None, "")
        file.content = CONTENT[::-1]
        assert get(address, tmp_path, None, "").read_bytes() == file.content


def test_another_range_than_asked_for_is_not_used(tmp_path: Path) -> None:
    file = Served(CONTENT, ["drop", "shifted"], drop_after=16 * CHUNK)
    with serve({"a.tar": file}) as address:
        assert get(address, tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_fetched_again(tmp_path: Path) -> None:
    with serve({"a.tar": Served(CONTENT, ["wrong"])}) as address:
        assert get(address, tmp_path).read_bytes() == CONTENT


def test_a_wrong_beginning_is_not_kept_for_the_next_run(tmp_path: Path) -> None:
    (tmp_path / "a.tar.part").write_bytes(bytes(1000))
    file = Served(CONTENT)
    with serve({"a.tar": file}) as address:
        assert get(address, tmp_path).read_bytes() == CONTENT
    assert file.asked == ["bytes=1000-", ""]


def test_bytes_that_stay_wrong_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    with serve({"a.tar": Served(CONTENT, ["wrong"] * 9)}) as address:
        with pytest.raises(UserError, match=r"a\.tar: sha256 .* instead of .*, 3 times") as caught:
            get(address, tmp_path)
        assert "\n" not in str(caught.value)
        assert visible(tmp_path) == set()
        with pytest.raises(UserError, match=r"3,000,000 bytes instead of 5"):
            get(address, tmp_path, size=5)


@pytest.mark.parametrize("length", [True, False])
def test_a_file_without_known_size_is_complete_too(tmp_path: Path, length: bool) -> None:
    with serve({"a.tar": Served(CONTENT, length=length)}) as address:
        assert get(address, tmp_path, size=None).read_bytes() == CONTENT


def test_a_refusal_is_not_tried_again(tmp_path: Path) -> None:
    file = Served(CONTENT, ["403"])
    with (
        serve({"a.tar": file}) as address,
        pytest.raises(UserError, match=r"a\.tar: 403 Forbidden") as caught,
    ):
        get(address, tmp_path)
    assert len(file.asked) == 1
    # Nor would a scheduler that tries again what is unavailable.
    assert not isinstance(caught.value, Unavailable)


def test_no_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9/a\.tar: cannot be downloaded") as caught:
        get("http://127.0.0.1:9", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_finished_part_needs_no_server(tmp_path: Path) -> None:
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    assert get("http://127.0.0.1:9", tmp_path).read_bytes() == CONTENT


def test_what_is_there_is_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    assert get("http://127.0.0.1:9", tmp_path).read_bytes() == CONTENT
    assert get("http://127.0.0.1:9", tmp_path, size=None).read_bytes() == CONTENT


@pytest.mark.parametrize(("size", "message"), [(5, "3,000,000 bytes, expected 5"), (None, "sha256")])
def test_another_file_of_the_name_is_refused_and_left_alone(tmp_path: Path, size, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    with pytest.raises(UserError, match=message):
        get("http://127.0.0.1:9", tmp_path, size, "0" * 64)
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_a_disk_too_small_is_said_before_the_first_byte(tmp_path: Path) -> None:
    file = Served(CONTENT)
    with (
        serve({"a.tar": file}) as address,
        pytest.raises(UserError, match=r"1000000000\.0 GB are still to come"),
    ):
        get(address, tmp_path, size=10**18)
    assert file.asked == []


def test_several_files_come_at_once_and_one_refusal_keeps_the_others(tmp_path: Path) -> None:
    contents = {f"{n}.bin": random.Random(n).randbytes(200_000) for n in range(6)}
    served = {name: Served(content, ["drop"], drop_after=50_000) for name, content in contents.items()}
    with serve(served) as address:
        remotes = [Remote(f"{address}/{name}", len(content)) for name, content in contents.items()]
        paths = fetch(remotes, tmp_path, "test")
        assert {path.name: path.read_bytes() for path in paths} == contents
        with pytest.raises(UserError, match="404"):
            fetch([*remotes, Remote(f"{address}/gone.bin")], tmp_path, "test")
    assert visible(tmp_path) == set(contents)


def test_a_refusal_ends_the_others_where_they_are(tmp_path: Path) -> None:
    served = {"long.bin": Served(CONTENT, ["endless"])}
    with serve(served) as address:
        remotes = [Remote(f"{address}/{name}") for name in ("long.bin", "gone.bin")]
        with pytest.raises(UserError, match=r"gone\.bin: 404"):
            fetch(remotes, tmp_path, "test")
    assert visible(tmp_path) <= {"long.bin.part", "long.bin.part.json"}


def test_ctrl_c_ends_a_download_and_keeps_what_came(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from goal.runtime.download import Remote, fetch;"
        "fetch([Remote(sys.argv[1])], Path(sys.argv[2]), 'test')"
    )
    with serve({"a.tar": Served(CONTENT, ["endless"])}) as address:
        process = subprocess.Popen(
            [sys.executable, "-c", program, f"{address}/a.tar", tmp_path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
        )
        part = tmp_path / "a.tar.part"
        until(lambda: part.exists() and part.stat().st_size > CHUNK)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in error
    assert part.read_bytes()[:CHUNK] == CONTENT[:CHUNK]


def test_a_disk_that_fills_up_keeps_the_part_and_a_rerun_completes(tmp_path: Path, small_disk) -> None:
    disk = small_disk(2000)
    with serve({"a.tar": Served(CONTENT, length=False)}) as address:
        with pytest.raises(UserError, match=r"a\.tar\.part: cannot be written: No space left on device"):
            get(address, disk.path, size=None)
        assert visible(disk.path) == {"a.tar.part", "a.tar.part.json"}
        disk.grow(8000)
        assert get(address, disk.path, size=None).read_bytes() == CONTENT


def _fetch_in_a_process(address: str, folder: Path) -> None:
    get(address, folder)


def test_two_processes_fetch_a_file_once(tmp_path: Path) -> None:
    file = Served(CONTENT)
    with serve({"a.tar": file}) as address:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_fetch_in_a_process, args=(address, tmp_path)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert file.asked == [""]
    assert (tmp_path / "a.tar").read_bytes() == CONTENT


def test_every_set_s_files_have_a_size_or_a_checksum() -> None:
    for module in (dci, docci, karpathy, sharegpt4v, urban1k):
        for remote in (value for value in vars(module).values() if isinstance(value, Remote)):
            # Of one neither is known; its file says so.
            assert remote.size or len(remote.sha256) == 64 or remote is sharegpt4v.CAPTIONS, remote.url


def test_the_name_is_the_last_part_of_the_address_unless_given() -> None:
    assert Remote("https://x.org/a/b%20c.tar?download=1").file == "b c.tar"
    assert Remote("https://x.org/a", name="n.zip").file == "n.zip"
