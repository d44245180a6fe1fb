"""Shards under fire: kills, full disks, faults and clusters end in the same bytes, or in one clear line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from goal.errors import Interrupted, UserError
from goal.mining import shards
from goal.runtime import pool
from tests.imports import ROOT
from tests.mining.squares import ROWS, SIZE, Fails, Numbered, Squares, calls, content, run
from tests.servers import until


def test_every_row_lands_in_its_shard_once(tmp_path, log):
    paths = run(Squares(str(log)), tmp_path / "out")
    assert [path.name for path in paths] == [f"shard-{number:05d}.parquet" for number in range(6)]
    assert [row for path in paths for row in pq.read_table(path)["row"].to_pylist()] == list(range(ROWS))
    assert [shards.read_notes(path)["rows"] for path in paths] == [4, 4, 4, 4, 4, 3]


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, log, expected, workers):
    run(Squares(str(log)), tmp_path / "out", workers)
    assert content(tmp_path / "out") == expected
    assert calls(log) == [0, 4, 8, 12, 16, 20]


def test_no_rows_make_no_shards(tmp_path, log):
    assert shards.run(Squares(str(log)), 0, SIZE, tmp_path / "out", 2, "squares") == []


def test_finished_shards_are_not_made_again_and_damaged_ones_are(tmp_path, log, expected):
    paths = run(Squares(str(log)), tmp_path / "out")
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    paths[4].unlink()
    run(Squares(str(log)), tmp_path / "out")
    assert content(tmp_path / "out") == expected
    assert calls(log) == [0, 4, 4, 8, 12, 16, 16, 20]


def test_a_users_fault_in_a_worker_is_its_line_and_keeps_what_is_done(tmp_path, log, expected):
    with pytest.raises(UserError, match=r"^p8\.png: its fault$"):
        run(Fails(str(log), "fault"), tmp_path / "out", workers=2)
    assert content(tmp_path / "out").items() <= expected.items()


def test_a_bug_in_a_worker_is_not_hidden(tmp_path, log):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(Fails(str(log), "bug"), tmp_path / "out", workers=2)


def test_a_killed_workers_shard_is_made_anew(tmp_path, log, expected):
    run(Fails(str(log), "killed", times=2), tmp_path / "out", workers=2)
    assert content(tmp_path / "out") == expected
    assert calls(log) == [0, 4, 8, 8, 8, 12, 16, 20]


def test_workers_are_numbered_and_one_that_is_killed_leaves_its_number_to_the_next(tmp_path, log):
    """By its number a worker takes one of the machine's GPUs."""
    run(Numbered(str(log)), tmp_path / "out", workers=2)
    by_process = {tuple(path.name.split("-")[1::2]) for path in log.glob("*-by-*")}
    # Two workers, and the one that took the place of the killed.
    assert len({process for process, _ in by_process}) == 3
    assert sorted(number for _, number in by_process) in (["0", "0", "1"], ["0", "1", "1"])
    assert pool.number() == 0


def test_a_shard_that_keeps_killing_its_workers_stops_the_run(tmp_path, log):
    with pytest.raises(UserError, match=r"shard-00002\.parquet, rows 8 to 11: its worker was killed 3 times"):
        run(Fails(str(log), "killed"), tmp_path / "out", workers=2)


PROGRAM = """
import logging, sys
from pathlib import Path
from goal.mining import shards
from goal.errors import UserError, Interrupted
from tests.mining.squares import ROWS, SIZE, Fails, Squares
out, log, workers, pause, limit, how = sys.argv[1:]
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    try:
        with shards.held(Path(out), "squares"):
            work = Fails(log, how) if how else Squares(log, float(pause), int(limit))
            shards.run(work, ROWS, SIZE, Path(out), int(workers), "squares")
    except (UserError, Interrupted) as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def start(
    tmp_path: Path, log: Path, workers: int, pause: float = 0.0, limit: int = 0, how: str = ""
) -> subprocess.Popen:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = [tmp_path / "out", log, workers, pause, limit, how]
    return subprocess.Popen(
        [sys.executable, program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(tmp_path: Path) -> int:
    return len(list((tmp_path / "out").glob("shard-*.parquet")))


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_redoes_at_most_one_shard_a_worker(tmp_path, log, expected, workers):
    process = start(tmp_path, log, workers, pause=0.05)
    until(lambda: finished(tmp_path) >= 2)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(family, timeout=20)
    assert not [one for one in family if one.is_running()]
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*.parquet")}
    # What a kill in the middle of writing leaves.
    (tmp_path / "out" / ".shard-00005.parquet.0123.tmp").write_bytes(b"half")
    run(Squares(str(log)), tmp_path / "out")
    assert content(tmp_path / "out") == expected
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept
    assert len(calls(log)) <= 6 + workers


def test_of_two_equal_runs_the_second_waits_and_makes_nothing(tmp_path, log, expected):
    """Two experiments with the same mining share what is kept of it."""
    running = [start(tmp_path, log, 2, pause=0.05) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert content(tmp_path / "out") == expected
    assert calls(log) == [0, 4, 8, 12, 16, 20]
    assert sum("another process makes the same; waiting until it ends" in words for words in said) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_stops_at_once_and_says_how_to_go_on(tmp_path, log, expected, workers):
    process = start(tmp_path, log, workers, pause=0.3)
    until(lambda: finished(tmp_path) >= 1)
    process.terminate()
    _, error = process.communicate(timeout=20)
    assert error.splitlines()[-1].startswith("Interrupted: squares: stopped;")
    # Also where a worker was ended in the middle of a draft.
    assert content(tmp_path / "out").items() <= expected.items()
    run(Squares(str(log)), tmp_path / "out")
    assert content(tmp_path / "out") == expected


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_stuck_worker_holds_up_its_own_shard_only_and_no_stop(tmp_path, log, expected, asked):
    process = start(tmp_path, log, 2, how="stopped")
    until(lambda: finished(tmp_path) == 5)
    process.send_signal(asked)
    _, error = process.communicate(timeout=20)
    assert error.splitlines()[-1].startswith("Interrupted: squares: stopped;")
    run(Squares(str(log)), tmp_path / "out")
    assert content(tmp_path / "out") == expected
    assert calls(log) == [0, 4, 8, 8, 12, 16, 20]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_a_rerun_completes(tmp_path, log, expected, workers):
    """The limit of a file's size stands for the disk's: the write is refused half-way in the same manner."""
    _, error = start(tmp_path, log, workers, limit=600).communicate(timeout=60)
    (line,) = [line for line in error.splitlines() if line.startswith("UserError")]
    assert "shard-0000" in line
    assert "cannot be written: File too large" in line
    assert content(tmp_path / "out").items() <= expected.items()
    run(Squares(str(log)), tmp_path / "out")
    assert content(tmp_path / "out") == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_keeps_the_finished_shards(small_disk, log, expected, workers):
    disk = small_disk(16)
    out = disk.path / "out"
    with pytest.raises(UserError, match=r"shard-0000\d\.parquet: cannot be written: No space left on device"):
        run(Squares(str(log)), out, workers)
    kept = content(out)
    assert 1 <= len(kept) < 6
    assert kept.items() <= expected.items()
    disk.grow(1024)
    run(Squares(str(log)), out, workers)
    assert content(out) == expected


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, log):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/out: cannot be written: Not a directory; "):
        run(Squares(str(log)), tmp_path / "file" / "out")


def test_an_interrupt_in_this_process_is_told_as_such(tmp_path, log):
    def stop(start: int, stop: int) -> pa.Table:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="run the command again"):
        run(stop, tmp_path / "out")
