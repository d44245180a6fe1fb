"""The benchmarks of the training step run on a tiny case and report the ratios that they measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.step_cases import captions
from tests.imports import ROOT

CAPTIONS = [
    f"A red ball lies here. Beside it stands tree number {n}. " + "It is tall. " * n for n in range(5)
]
RATIOS = {
    "train_step": {"plain over ours, time", "ours over plain, memory"},
    "memory": {"plain", "ours", "ours, chunks of 2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_step", "stages", "memory", "scaling"])
def test_a_benchmark_measures_a_tiny_case(name: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps([{"caption": one} for one in CAPTIONS]))
    words = ["--captions", str(tmp_path / "captions.json"), "--network", "scenes-vit", "--batch", "2"]
    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words, "--steps", "1", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        check=True,
        timeout=500,
    )
    found = json.loads((tmp_path / "out").read_text())
    assert found["settings"]["network"] == "scenes-vit"
    assert RATIOS.get(name, set()) <= found.get("ratios", {}).keys()
    if name == "stages":
        assert sum(found["shares"].values()) == pytest.approx(1)
        assert 0 < found["share_of_matrix_rate"] < 1


def test_captions_are_repeated_where_there_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps([*CAPTIONS, "Only one sentence."]))
    found = captions(tmp_path / "captions.json", 12)
    # The first is left out: two sentences are too few.
    assert found == [CAPTIONS[1 + number % 4] for number in range(12)]
