"""The reference of one who sees colours only, worked by hand and on drawn scenes."""

from pathlib import Path

import pyarrow as pa
import pytest

from goal.datasets import manifest
from goal.evaluation import colours
from goal.evaluation.galleries import Gallery, Picture

KS = {"text_to_image": [1, 2], "image_to_text": [1, 2]}


def gallery(benchmark: str, names: list[str], attributes: list[str] = ()) -> Gallery:
    return Gallery(
        benchmark=benchmark,
        pictures=tuple(Picture(f"{name}.png") for name in names),
        ids=tuple(names),
        texts=tuple(names),
        text_to_picture=tuple(range(len(names))),
        attributes=tuple(attributes),
    )


def write(rows: list[tuple[str, str, list[str]]]) -> None:
    table = pa.Table.from_pylist(
        [dict(zip(manifest.COLOURS.names, row, strict=True)) for row in rows], manifest.COLOURS
    )
    Path("data/scenes").mkdir(parents=True, exist_ok=True)
    manifest.write_table(table, Path("data/scenes/colours.parquet"))


def test_pictures_of_the_same_colours_are_ordered_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Three of the same colours in any order, one of another background, one of other colours.
    write(
        [
            ("a", "grey", ["red", "blue"]),
            ("b", "grey", ["blue", "red"]),
            ("c", "grey", ["red", "blue"]),
            ("d", "white", ["red", "blue"]),
            ("e", "grey", ["red", "red"]),
        ]
    )
    found = colours.only("scenes", gallery("test", list("abcde")), KS)
    assert found["text_to_image_r1"] == pytest.approx(100 * (3 * (1 / 3) + 2) / 5)
    assert found["image_to_text_r2"] == pytest.approx(100 * (3 * (2 / 3) + 2) / 5)
    twins = gallery("twins", list("ab"), ["colour", "shape"])
    assert colours.only("scenes", twins, {})["text_to_image_accuracy"] == pytest.approx(75)


def test_other_benchmarks_and_sets_have_no_such_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert colours.only("scenes", gallery("test", ["a"]), KS) == {}
    write([("a", "grey", ["red"])])
    assert colours.only("scenes", gallery("short", ["a"]), KS) == {}
