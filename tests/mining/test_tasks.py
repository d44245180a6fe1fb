"""Shards on a real dask cluster, a scheduler and workers as processes, give the bytes of one process."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from goal.errors import Unavailable, UserError
from goal.runtime import cluster as engine
from tests.mining.squares import Fails, Squares, calls, content, run
from tests.servers import until


def test_a_cluster_that_loses_a_worker_writes_the_same_bytes(tmp_path, cluster, log, expected):
    cluster.add_worker()
    cluster.add_worker()

    def kill_one_in_the_middle() -> None:
        victim = cluster.workers[0]
        until(lambda: any(log.glob(f"*-{victim.pid}-*")))
        victim.kill()

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_one_in_the_middle)
        run(Squares(str(log), pause=0.2), tmp_path / "out")
        killed.result()
    assert content(tmp_path / "out") == expected
    # Six shards, and the one that the killed worker had begun once more.
    assert len(calls(log)) == 7
    run(Squares(str(log)), tmp_path / "out")
    assert len(calls(log)) == 7


def test_a_users_fault_on_the_cluster_is_its_line(tmp_path, cluster, log, expected):
    cluster.add_worker()
    with pytest.raises(UserError, match=r"^p8\.png: its fault$"):
        run(Fails(str(log), "fault"), tmp_path / "out")
    assert content(tmp_path / "out").items() <= expected.items()


def test_a_worker_with_other_code_is_refused(tmp_path, cluster, log, monkeypatch):
    cluster.add_worker()
    monkeypatch.setattr("goal.runtime.code.digest", lambda module="": "other")
    with pytest.raises(UserError, match="runs other code"):
        run(Squares(str(log)), tmp_path / "out")


def test_a_worker_of_several_threads_is_refused(tmp_path, cluster, log):
    cluster.add_worker(threads=2)
    with pytest.raises(
        UserError, match=r"^tcp://127\.0\.0\.1:\d+: this worker has 2 threads: start it with --nth"
    ):
        run(Squares(str(log)), tmp_path / "out")


def test_a_cluster_without_workers_is_one_line(tmp_path, cluster, log, monkeypatch):
    monkeypatch.setattr(engine, "WORKER_SECONDS", 1)
    with pytest.raises(
        Unavailable, match=r"it has no worker: start some, `dask worker tcp://127.*--nthreads 1`$"
    ):
        run(Squares(str(log)), tmp_path / "out")


def test_a_scheduler_that_ends_is_one_line(tmp_path, cluster, log, expected):
    cluster.add_worker()

    def end_it_in_the_middle() -> None:
        until(lambda: len(calls(log)) >= 2)
        cluster.scheduler.kill()

    with ThreadPoolExecutor() as pool:
        ended = pool.submit(end_it_in_the_middle)
        with pytest.raises(Unavailable, match=r"^tcp://127\.0\.0\.1:\d+: the scheduler is gone"):
            run(Squares(str(log), pause=0.2), tmp_path / "out")
        ended.result()
    assert content(tmp_path / "out").items() <= expected.items()


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path, log, monkeypatch):
    monkeypatch.setenv(engine.SCHEDULER, "tcp://127.0.0.1:9")
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1)
    with pytest.raises(
        Unavailable, match=r"^DASK_SCHEDULER_ADDRESS=tcp://127\.0\.0\.1:9: no scheduler answers"
    ):
        run(Squares(str(log)), tmp_path / "out")
