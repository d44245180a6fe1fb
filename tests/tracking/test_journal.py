"""The journal of a run: one owner, and no line lost but the torn one."""

from pathlib import Path

import pytest

from goal.tracking.journal import Journal, leftovers, owned
from tests.servers import beside


def test_a_journal_survives_a_torn_line_and_has_one_owner(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "one")
    journal.write({"tags": {"a": "b"}})
    assert owned(tmp_path / "one")
    assert leftovers(tmp_path) == []
    with pytest.raises(BlockingIOError):
        Journal(tmp_path / "one")
    journal.close()
    with (tmp_path / "one" / "lines.jsonl").open("a") as lines:
        lines.write('{"metrics": {"loss')
    assert leftovers(tmp_path) == [tmp_path / "one"]
    again = Journal(tmp_path / "one")
    assert again.read() == [{"tags": {"a": "b"}}]
    again.write({"tags": {"c": "d"}})
    assert again.read() == [{"tags": {"a": "b"}}, {"tags": {"c": "d"}}]
    again.remove()
    assert not (tmp_path / "one").exists()


def test_leftovers_may_go_while_they_are_looked_for(tmp_path: Path) -> None:
    """Two commands at once: the other one delivers them."""

    def come_and_go() -> None:
        made = [Journal(tmp_path / str(number)) for number in range(20)]
        for journal in made:
            journal.close()
        for journal in made:
            journal.remove()

    with beside(come_and_go):
        seen = [leftovers(tmp_path) for _ in range(500)]
    assert any(seen)
