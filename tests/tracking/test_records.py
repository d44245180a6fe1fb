"""The record of a run on disk: one owner, and no line lost but the torn one."""

import shutil
from pathlib import Path

import pytest

from goal import config
from goal.tracking import lineage, records
from goal.tracking.records import Record
from tests.servers import beside


def test_a_record_survives_a_torn_line_and_has_one_owner(project: Path) -> None:
    run = lineage.training(config.load(), "stage1")
    with records.lock(run["work"]):
        record = records.of_training(run)
        record.log_metrics({"loss": 0.5}, 1)
        assert records.pending() == []
        with pytest.raises(records.Busy), records.lock(run["work"]):
            pass
    with (record.folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"metrics": {"loss')
    (left,) = records.pending()
    assert (left.run["id"], left.run["status"]) == (run["id"], "KILLED")
    again = records.of_training(lineage.training(config.load(), "stage1"))
    assert again.run["id"] == run["id"]
    again.log_metrics({"loss": 0.7, "recall": 3.0}, 1)
    again.log_metrics({"loss": 0.4}, 2)
    ((points, _),) = Record(record.folder).points()
    assert [(name, value, step) for name, value, _, step in points] == [
        ("loss", 0.5, 1), ("recall", 3.0, 1), ("loss", 0.4, 2),
    ]  # fmt: skip


def test_records_may_go_while_they_are_looked_for(project: Path) -> None:
    """Two commands at once: the other one sends them."""
    run = lineage.evaluation(config.load(), "zero-shot", {})

    def come_and_go() -> None:
        made = [run | {"id": str(number)} for number in range(20)]
        for one in made:
            records.write(one, [])
        for folder in records.root().iterdir():
            shutil.rmtree(folder)

    with beside(come_and_go):
        seen = [records.pending() for _ in range(500)]
    assert any(seen)


def test_a_record_that_cannot_be_ended_keeps_no_other_back(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = lineage.training(config.load(), "stage1")
    with records.lock(run["work"]):
        records.of_training(run)
    lock = records.root() / f"{run['work']}.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    records.write(lineage.evaluation(config.load(), "zero-shot", {}), [])
    assert [record.run["name"] for record in records.pending()] == ["zero-shot"]
    assert f"{run['work']}: not sent: {lock}: cannot be written: Is a directory; make room" in caplog.text
