"""`goal look` shows what a data set holds and writes nothing; `goal use` takes its columns."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from typer.testing import CliRunner

from goal import config
from goal.cli import main
from goal.datasets import look
from tests.imports import ROOT


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "project").mkdir()
    shutil.copytree(ROOT / "presets", tmp_path / "project/presets")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def data(folder: Path, count: int = 12) -> Path:
    """Semicolons, columns that no one knows, a picture twice, one that is not there."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{number}.png")
    shutil.copy(folder / "0.png", folder / "copy.png")
    names = [*(f"{number}.png" for number in range(count)), "copy.png", "0.png", "lost.png"]
    texts = [f"The {'very ' * number}red ball of number {number}." for number in range(count)]
    table = {"Datei": names, "Text": [*texts, texts[0], "Another.", "Lost."], "alt": ["A ball."] * len(names)}
    pandas.DataFrame(table).to_csv(folder / "list.csv", index=False, sep=";")
    return folder


def shown(*arguments: str) -> list[str]:
    found = CliRunner().invoke(main.app, ["look", *arguments])
    assert found.exit_code == 0, (found.output, found.exception)
    return found.stdout.splitlines()


def test_what_it_shows_of_a_data_set(checkout: Path) -> None:
    folder = data(checkout.parent / "own")
    before = {path: path.stat().st_mtime_ns for path in checkout.parent.rglob("*")}
    lines = shown(str(folder), "--image-column", "datei", "--caption-column", "text")
    assert lines[:3] == [
        f"{folder / 'list.csv'}: read as a file of CSV; pictures: 'Datei'; captions: 'Text'",
        "columns: Datei, Text, alt",
        "  0.png: 30 x 20 pixels: The red ball of number 0.",
    ]
    assert lines[5] == "the first 15 rows: 13 usable pictures; rejected rows: 1 x not found"
    assert lines[6] == "  list.csv:16: lost.png: not found"
    assert lines[7] == "  pictures that show the same as another: 1; language: English"
    assert lines[8:10] == ["rows: 15", "  pictures named again: 1; captions said again: 1"]
    counted = [line.split() for line in lines[10:]]
    assert [(line[0], line[2]) for line in counted] == [("1-5", "2"), ("6-10", "6"), ("11-20", "7")]
    assert counted[2][3] == "#" * look.BAR
    assert {path: path.stat().st_mtime_ns for path in checkout.parent.rglob("*")} == before


def test_it_stops_counting_when_its_time_is_up(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data(checkout.parent / "own")
    monkeypatch.setattr(look, "SECONDS", 0.0)
    monkeypatch.setattr(look, "BETWEEN", 4)
    lines = shown(str(folder), "--image-column", "Datei", "--caption-column", "Text")
    assert "the first 4 rows, which took 0 seconds:" in lines


def test_pictures_inside_a_file(checkout: Path) -> None:
    lines = shown(str(ROOT / "tests/fixtures/shapes/parquet"))
    assert "read as Parquet, 2 files, the first test-00000-of-00001.parquet" in lines[0]
    assert lines[2] == "  data/test-00000-of-00001.parquet#0: 12 x 8 pixels: Caption 6."


def test_a_fault_is_one_line(checkout: Path) -> None:
    folder = data(checkout.parent / "own")
    found = CliRunner().invoke(main.app, ["look", str(folder)])
    assert "no row has a field image" in str(found.exception)
    assert "--image-column" in str(found.exception) or "image_column" in str(found.exception)


def test_use_takes_the_columns_and_keeps_them(checkout: Path) -> None:
    folder = data(checkout.parent / "own")
    options = ["--path", str(folder), "--images", str(folder), "--image-column", "Datei", "--separator", ";"]
    options += ["--caption-column", "Text", "--caption-column", "alt", "--short-column", "alt"]
    used = CliRunner().invoke(main.app, ["use", "own-data", *options])
    assert used.exit_code == 0, used.output
    params = config.load()
    assert (params.data.path, params.data.images) == (str(folder), str(folder))
    given = params.data.folder
    assert (given.image_column, given.separator, given.short_column) == ("Datei", ";", "alt")
    assert given.caption_column == ["Text", "alt"]
    assert given.near_copies == 10
    assert "# several: [one, other]" in Path("params.yaml").read_text()
    # Another preset for the same data leaves them; one option alone changes only its own.
    CliRunner().invoke(main.app, ["use", "own-data-b16", "--separator", "\\t"])
    assert config.load().data.folder == given.model_copy(update={"separator": "\t"})
    refused = CliRunner().invoke(main.app, ["use", "docci-b16", "--image-column", "x"])
    assert "data.source docci does not read data of yours" in str(refused.exception)


def test_a_list_of_llava(checkout: Path) -> None:
    folder = data(checkout.parent / "own")
    (folder / "list.csv").unlink()
    entries = [
        {
            "image": f"{number}.png",
            "conversations": [{"from": "gpt", "value": f"The picture of the {number}."}],
        }
        for number in range(12)
    ]
    (folder / "list.json").write_text(json.dumps(entries))
    lines = shown(str(folder))
    assert lines[-1].split()[:3] == ["1-5", "words", "12"]
