"""Checkpoints on a real disk: complete or absent, verified when read, safe on a full disk."""

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
from goal.training.checkpoint import TENSORS, VALUES, Checkpoints, State
from tests.servers import beside

IDENTITY = {"seed": 0, "stage2.lr": 3e-4, "data/x/train.parquet": "a" * 64}


def state_at(step: int) -> State:
    return State(step, {"w": torch.arange(1000.0) * step, "rng": torch.get_rng_state()}, {"best": [step]})


def test_a_restored_state_has_the_saved_bits(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 2)
    with checkpoints.locked():
        assert checkpoints.restore() is None
        state = state_at(3)
        checkpoints.save(state)
        found = Checkpoints(tmp_path, dict(reversed(IDENTITY.items())), 2).restore()
    assert found.step == 3
    assert found.values == {"best": [3]}
    assert all(torch.equal(found.tensors[name], value) for name, value in state.tensors.items())


def test_the_last_k_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 2)
    with checkpoints.locked():
        for step in (5, 100, 20000, 20001):
            checkpoints.save(state_at(step))
        assert [path.name for path in sorted(checkpoints.folder.glob("step-*"))] == [
            "step-00020000",
            "step-00020001",
        ]
        assert checkpoints.restore().step == 20001


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", [TENSORS, VALUES])
@pytest.mark.parametrize("harm", [_cut, _flip, lambda file: file.write_bytes(b""), Path.unlink])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path, name, harm, caplog) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 3)
    with checkpoints.locked():
        for step in (1, 2):
            checkpoints.save(state_at(step))
        if name == VALUES and harm is _flip:
            (checkpoints.folder / "step-00000002" / name).write_text('{"identity": {}}')
        else:
            harm(checkpoints.folder / "step-00000002" / name)
        assert checkpoints.restore().step == 1
    assert "step-00000002: damaged" in caplog.text
    assert "using the checkpoint before it" in caplog.text


def test_without_a_complete_checkpoint_training_starts_afresh(tmp_path: Path, caplog) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 3)
    with checkpoints.locked():
        checkpoints.save(state_at(1))
        _cut(checkpoints.folder / "step-00000001" / TENSORS)
        assert checkpoints.restore() is None
        checkpoints.save(state_at(1))
        assert checkpoints.restore().step == 1
    assert "damaged" in caplog.text


def test_a_checkpoint_of_another_run_is_refused_with_the_differences(tmp_path: Path) -> None:
    mine = Checkpoints(tmp_path, IDENTITY, 2)
    with mine.locked():
        mine.save(state_at(1))
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


def test_other_parameters_start_afresh_and_log_the_unfinished_run(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    first = Checkpoints(tmp_path, IDENTITY, 2)
    with first.locked():
        first.save(state_at(1))
    second = Checkpoints(tmp_path, IDENTITY | {"seed": 1}, 2)
    with second.locked():
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
            with mine.locked():
                assert mine.restore() is None


def test_a_draft_left_by_a_kill_is_not_used(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 2)
    with checkpoints.locked():
        checkpoints.save(state_at(1))
        draft = checkpoints.folder / ".draft-2"
        draft.mkdir()
        (draft / TENSORS).write_bytes(b"half")
    with checkpoints.locked():
        assert checkpoints.restore().step == 1
        assert not draft.exists()


def test_saving_the_same_step_again_keeps_the_existing_checkpoint(tmp_path: Path) -> None:
    """A signal right after a restart: the only checkpoint is never removed, not even for a moment."""
    checkpoints = Checkpoints(tmp_path, IDENTITY, 1)
    with checkpoints.locked():
        checkpoints.save(state_at(3))
        folder = checkpoints.folder / "step-00000003"
        before = folder.stat().st_ino
        checkpoints.save(state_at(3))
        assert folder.stat().st_ino == before
        (folder / "state.safetensors").write_bytes(b"damaged")
        checkpoints.save(state_at(3))
        assert checkpoints.restore().step == 3


def test_a_second_process_cannot_train_the_same_run(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 2)
    with (
        checkpoints.locked(),
        pytest.raises(UserError, match="another process trains this"),
        checkpoints.locked(),
    ):
        pass
    with checkpoints.locked():
        pass


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.training import test_checkpoint as case
from goal.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = case.Checkpoints(Path(sys.argv[1]), case.IDENTITY, 2)
with checkpoints.locked():
    checkpoints.save(case.state_at(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    try:
        checkpoints.save(case.state_at(2))
    except UserError as error:
        sys.stdout.write(str(error))
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A real error from the disk: files of this process may not exceed 3,000 bytes."""
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
    checkpoints = Checkpoints(tmp_path, IDENTITY, 2)
    assert checkpoints.restore().step == 1
    assert not list(checkpoints.folder.glob(".draft*"))


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    checkpoints = Checkpoints(tmp_path, IDENTITY, 1)
    with checkpoints.locked():
        checkpoints.save(state_at(1))
        # As on a network file system while another machine reads the files.
        monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
        checkpoints.save(state_at(2))
        assert checkpoints.restore().step == 2
        checkpoints.clear()
    assert "step-00000001: cannot be removed: Device or resource busy" in caplog.text


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file", IDENTITY, 2)
    with pytest.raises(UserError, match="cannot be written"), checkpoints.locked():
        pass


def test_checkpoints_hold_only_tensors_and_json(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY, 2)
    with checkpoints.locked():
        checkpoints.save(state_at(1))
    files = {path.name for path in (checkpoints.folder / "step-00000001").iterdir()}
    assert files == {TENSORS, VALUES}
    assert json.loads((checkpoints.folder / "step-00000001" / VALUES).read_text())["identity"] == IDENTITY


def test_the_digest_does_not_depend_on_the_order() -> None:
    assert checkpoint.digest({"a": 1, "b": 2}) == checkpoint.digest({"b": 2, "a": 1})
    assert checkpoint.digest({"a": 1}) != checkpoint.digest({"a": 2})
