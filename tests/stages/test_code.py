"""The listing of a stage: weights that a parameter names by path."""

import os
from pathlib import Path

import pytest

from goal import config
from goal.stages import code
from tests import tiny


def listed(params, stage: str) -> str:
    code.run(params)
    return Path("code", stage).read_text()


def test_weights_replaced_at_the_same_path_make_their_stage_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    values = tiny.params().model_dump(by_alias=True, mode="json")
    values["model"]["pretrained"] = "own.safetensors"
    values["regions"]["sources"] = ["sam", "detector"]
    values["regions"]["sam"]["checkpoint"] = values["pairs"]["matcher"] = "folder"
    params = config.parse(values, "test")
    Path("folder").mkdir()
    files = {"base": Path("own.safetensors"), "regions": Path("folder/a.pth"), "pairs": Path("folder/a.pth")}
    for file in files.values():
        file.write_bytes(b"one")
    before = {stage: listed(params, stage) for stage in (*files, "train")}
    assert {stage: listed(params, stage) for stage in before} == before
    for file in files.values():
        time_before = file.stat().st_mtime_ns
        file.write_bytes(b"two")
        # As a copy that keeps times leaves it.
        os.utime(file, ns=(time_before, time_before))
    after = {stage: listed(params, stage) for stage in before}
    assert {stage for stage in before if after[stage] != before[stage]} == set(files)


def test_weights_that_are_no_file_add_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "model.pretrained" not in listed(tiny.params(), "base")
