"""Checkpoints on a real disk: whole or absent, checked when read, refused by name, safe on a full disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from goal.errors import UserError
from goal.training import checkpoint
from goal.training.checkpoint import TENSORS, VALUES, Checkpoints, Saved
from tests.servers import beside

IDENTITY = {"seed": 0, "stage2.lr": 3e-4, "data/x/train.parquet": "a" * 64}


def saved(step: int) -> Saved:
    return Saved(step, {"w": torch.arange(1000.0) * step, "rng": torch.get_rng_state()}, {"best": [step]})


def test_what_is_saved_comes_back_bit_by_bit(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path, IDENTITY, 2)
    with saves.held():
        assert saves.restore() is None
        state = saved(3)
        saves.save(state)
        found = Checkpoints(tmp_path, dict(reversed(IDENTITY.items())), 2).restore()
    assert found.step == 3
    assert found.values == {"best": [3]}
    assert all(torch.equal(found.tensors[name], value) for name, value in state.tensors.items())


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path, IDENTITY, 2)
    with saves.held():
        for step in (5, 100, 20000, 20001):
            saves.save(saved(step))
        assert [path.name for path in sorted(saves.folder.glob("step-*"))] == [
            "step-00020000",
            "step-00020001",
        ]
        assert saves.restore().step == 20001


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [TENSORS, VALUES])
@pytest.mark.parametrize("harm", [_cut, _flip, lambda file: file.write_bytes(b""), Path.unlink])
def test_a_damaged_last_one_falls_back_to_the_one_before(tmp_path, name, harm, caplog) -> None:
    saves = Checkpoints(tmp_path, IDENTITY, 3)
    with saves.held():
        for step in (1, 2):
            saves.save(saved(step))
        if name == VALUES and harm is _flip:
            (saves.folder / "step-00000002" / name).write_text('{"identity": {}}')
        else:
            harm(saves.folder / "step-00000002" / name)
        assert saves.restore().step == 1
    assert "step-00000002: damaged" in caplog.text
    assert "going back to the one before" in caplog.text


def test_nothing_whole_means_from_the_start(tmp_path: Path, caplog) -> None:
    saves = Checkpoints(tmp_path, IDENTITY, 3)
    with saves.held():
        saves.save(saved(1))
        _cut(saves.folder / "step-00000001" / TENSORS)
        assert saves.restore() is None
        saves.save(saved(1))
        assert saves.restore().step == 1
    assert "damaged" in caplog.text


def test_another_run_is_refused_by_name_of_what_differs(tmp_path: Path) -> None:
    mine = Checkpoints(tmp_path, IDENTITY, 2)
    with mine.held():
        mine.save(saved(1))
    other = Checkpoints(tmp_path, IDENTITY | {"stage2.lr": 1e-4, "data/x/train.parquet": "b" * 64}, 2)
    assert other.folder != mine.folder
    other.folder.mkdir()
    os.rename(mine.folder / "step-00000001", other.folder / "step-00000001")
    with pytest.raises(UserError) as error:
        other.restore()
    text = str(error.value)
    assert "stage2.lr: 0.0003 -> 0.0001" in text
    assert "data/x/train.parquet: aaaaaaaaaaaa... -> bbbbbbbbbbbb..." in text
    assert "seed" not in text
    assert "\n" not in text


def test_other_parameters_start_afresh_and_say_what_lies_there(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    first = Checkpoints(tmp_path, IDENTITY, 2)
    with first.held():
        first.save(saved(1))
    second = Checkpoints(tmp_path, IDENTITY | {"seed": 1}, 2)
    with second.held():
        assert second.restore() is None
    assert "seed: 0 -> 1" in caplog.text
    assert first.restore().step == 1


def test_another_training_may_end_while_one_begins(tmp_path: Path) -> None:
    mine = Checkpoints(tmp_path, IDENTITY, 2)
    others = [Checkpoints(tmp_path, IDENTITY | {"seed": seed}, 2) for seed in range(1, 20)]

    def come_and_go() -> None:
        for other in others:
            (other.folder / "step-00000001").mkdir(parents=True)
        for other in others:
            other.clear()

    with beside(come_and_go):
        for _ in range(200):
            with mine.held():
                assert mine.restore() is None


def test_a_draft_that_a_kill_left_is_no_checkpoint(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path, IDENTITY, 2)
    with saves.held():
        saves.save(saved(1))
        draft = saves.folder / ".draft-2"
        draft.mkdir()
        (draft / TENSORS).write_bytes(b"half")
    with saves.held():
        assert saves.restore().step == 1
        assert not draft.exists()


def test_the_same_step_again_leaves_what_is_there(tmp_path: Path) -> None:
    """A signal right after a restart: at no moment is there no checkpoint, also where only one is kept."""
    saves = Checkpoints(tmp_path, IDENTITY, 1)
    with saves.held():
        saves.save(saved(3))
        folder = saves.folder / "step-00000003"
        before = folder.stat().st_ino
        saves.save(saved(3))
        assert folder.stat().st_ino == before
        (folder / "state.safetensors").write_bytes(b"damaged")
        saves.save(saved(3))
        assert saves.restore().step == 3


def test_two_processes_do_not_train_the_same_at_once(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path, IDENTITY, 2)
    with saves.held(), pytest.raises(UserError, match="another process trains this"), saves.held():
        pass
    with saves.held():
        pass


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.training import test_checkpoint as case
from goal.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
saves = case.Checkpoints(Path(sys.argv[1]), case.IDENTITY, 2)
with saves.held():
    saves.save(case.saved(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    try:
        saves.save(case.saved(2))
    except UserError as error:
        sys.stdout.write(str(error))
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A real refusal: files of this process may not grow past 3,000 bytes."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be saved" in done.stdout
    assert "the checkpoint before it is kept" in done.stdout
    assert "\n" not in done.stdout
    saves = Checkpoints(tmp_path, IDENTITY, 2)
    assert saves.restore().step == 1
    assert not list(saves.folder.glob(".draft*"))


def test_an_old_checkpoint_that_cannot_be_removed_is_told_of_and_ends_nothing(
    tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    saves = Checkpoints(tmp_path, IDENTITY, 1)
    with saves.held():
        saves.save(saved(1))
        # As a network file system may, whose files another machine still reads.
        monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
        saves.save(saved(2))
        assert saves.restore().step == 2
        saves.clear()
    assert "step-00000001: cannot be removed: Device or resource busy" in caplog.text


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    saves = Checkpoints(tmp_path / "file", IDENTITY, 2)
    with pytest.raises(UserError, match="cannot be written"), saves.held():
        pass


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path, IDENTITY, 2)
    with saves.held():
        saves.save(saved(1))
    files = {path.name for path in (saves.folder / "step-00000001").iterdir()}
    assert files == {TENSORS, VALUES}
    assert json.loads((saves.folder / "step-00000001" / VALUES).read_text())["identity"] == IDENTITY


def test_digest_does_not_hang_on_order() -> None:
    assert checkpoint.digest({"a": 1, "b": 2}) == checkpoint.digest({"b": 2, "a": 1})
    assert checkpoint.digest({"a": 1}) != checkpoint.digest({"a": 2})
