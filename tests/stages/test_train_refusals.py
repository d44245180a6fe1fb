"""Trainings that cannot run: a UserError of one line names the field or file, and nothing is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from goal.config import Params, paths
from goal.datasets import manifest
from goal.errors import UserError
from goal.runtime import devices
from goal.stages import train
from goal.training import trainer
from goal.training.plan import Plan
from goal.training.progress import Silent
from tests import trainings


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.project(without={1, 4})


def _refused(params: Params, name: str = "stage2") -> str:
    with pytest.raises(UserError) as error:
        train.run(params, name, Silent())
    text = str(error.value)
    assert "\n" not in text
    assert not Path(f"models/{name}").exists()
    assert not list(Path("metrics").glob(f"{name}/*"))
    return text


def test_a_loss_that_is_not_finite_stops_with_step_term_and_batch() -> None:
    text = _refused(trainings.params(stage2__lr=1e30, stage2__clip_norm=0.0, stage2__epochs=5))
    assert "not finite at step" in text
    assert "stage2.lr" in text
    named = text.rsplit(": ", 1)[1].split(", ")
    assert len(named) == 4
    assert {name.startswith("0-") for name in named} == {True}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage2__batch_size": 11}, "stage2.batch_size 11: data/tiny/train.parquet has only 10 pictures"),
        ({"train__processes": 3}, "does not divide among train.processes 3"),
        ({"stage2__warmup_steps": 4}, "stage2.warmup_steps 4: the training has only 4 steps"),
        ({"stage2__pairs__min_similarity": 0.99}, "no pair can be used"),
        (
            {f"stage2__loss__{name}": 0.0 for name in ("global", "local", "tsl_image", "tsl_text")},
            "stage2.loss: every term of stage2 has the weight 0",
        ),
    ],
)
def test_bad_parameters_are_named(changes: dict[str, Any], words: str) -> None:
    assert words in _refused(trainings.params(**changes))


def test_a_missing_gpu_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "train.device" in _refused(trainings.params(train__device="cuda"))


def test_bf16_is_refused_where_the_cpu_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "cpuinfo"
    monkeypatch.setattr(devices, "CPU", other)
    other.write_text("flags\t\t: fpu sse2 avx2 avx512f\n")
    assert "train.precision bf16: this CPU has no" in _refused(trainings.params(train__precision="bf16"))
    assert not Plan.of(trainings.params(train__precision="auto"), "stage2").bf16
    other.write_text("flags\t\t: fpu sse2 avx2 avx512f avx512_bf16\n")
    train.run(trainings.params(train__precision="bf16"), "stage2", Silent())
    assert not Plan.of(trainings.params(train__precision="auto"), "stage2").bf16


@pytest.mark.parametrize(("chunk", "pairs"), [(0, 4), (3, 3)])
def test_out_of_gpu_memory_is_a_user_error(chunk: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        # As torch does; this test needs no GPU.
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ...")

    monkeypatch.setattr(trainer.step, "backward", refuse)
    text = _refused(trainings.params(train__chunk_size=chunk))
    assert f"train.chunk_size to fewer than {pairs} pairs" in text
    assert "`goal fit-batch stage2`" in text


def test_missing_inputs_are_named() -> None:
    Path("pairs/train/shard-00000.parquet").unlink()
    assert "pairs/train: no mined pairs" in _refused(trainings.params())
    Path("data/tiny/train.parquet").unlink()
    assert "data/tiny/train.parquet: not found" in _refused(trainings.params())


def test_a_missing_picture_is_named() -> None:
    next(iter(Path("data/tiny/images").glob("0-003*"))).unlink()
    assert "0-003" in _refused(trainings.params())


def test_keep_best_needs_validation_pictures() -> None:
    manifest.write([], paths.manifest("tiny", "val"))
    assert "need validation pictures" in _refused(trainings.params(stage2__keep="best"))
    train.run(trainings.params(), "stage2", Silent())
    assert json.loads(Path("metrics/stage2/train.json").read_text())["validation"] == {}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="one of stage1, stage2, global, global"):
        train.run(trainings.params(), "stage3", Silent())
