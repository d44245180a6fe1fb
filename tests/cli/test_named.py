"""Models that a command names by an alias of the registry."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from goal import exports, weights
from goal.cli import named
from goal.cli import search as commands
from goal.datasets import manifest
from goal.errors import UserError
from goal.stages import register
from tests import registered


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered.make(tmp_path, monkeypatch)
    values = registered.params("names")
    Path("params.yaml").write_text(yaml.safe_dump(values.model_dump(by_alias=True, mode="json")))


def test_an_alias_is_fetched_once(project: None) -> None:
    with pytest.raises(UserError, match="names: no challenger yet"):
        named.find("challenger")
    registered.train(0)
    register.run(registered.params("names"))
    found = named.find("challenger")
    assert weights.digest(found) == weights.digest("models/stage2")
    written = found.stat().st_mtime_ns
    assert named.find("challenger") == found
    assert found.stat().st_mtime_ns == written
    # Another version behind the alias is another file.
    registered.train(1)
    register.run(registered.params("names"))
    assert named.find("challenger") != found
    assert weights.digest(named.find("challenger")) == weights.digest("models/stage2")


def test_an_index_keeps_the_model_that_made_it(
    project: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if another model is the challenger by now, or the registry is down."""
    pictures, place = Path("data/tiny/images"), Path("index")
    registered.train(0)
    register.run(registered.params("names"))
    commands.index(pictures, index=place, model="challenger")
    commands.search("A red ball.", count=6, index=place)
    before = capsys.readouterr().out
    registered.train(1)
    register.run(registered.params("names"))
    with pytest.raises(
        UserError, match="index: challenger changed since .*; index again with another --index"
    ):
        commands.index(pictures, index=place, model="challenger")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    commands.search("A red ball.", count=6, index=place)
    assert capsys.readouterr().out == before


def test_the_export_of_an_alias_has_the_card_and_the_numbers_of_its_version(project: None) -> None:
    """Even if the project has trained another model since."""
    registered.train(0)
    made = {"name": "stage2", "data": "tiny", "source": "docci", "pretrained": "openai", "seed": 7}
    weights.publish(weights.load("models/stage2"), Path("models/stage2"), made)
    register.run(registered.params("names"))
    measured = json.loads(Path("metrics/stage2/details/test.json").read_text())["metrics"]
    registered.train(1)
    exports.run(named.find("challenger"), Path("out"), "open_clip")
    text = Path("out/README.md").read_text()
    assert "Training data: tiny, CC BY 4.0" in text
    assert "| seed | 7 |" in text
    recall = measured["text_to_image_r1"]
    assert f"| tiny/test | 6 / 12 | text_to_image_r1 | {recall['mean']:.2f} | {recall['low']:.2f} to" in text


def test_a_version_that_was_measured_again_brings_the_new_numbers(project: None) -> None:
    registered.train(0)
    register.run(registered.params("names"))
    named.find("challenger")
    rows = manifest.read(Path("data/tiny/test.parquet"))
    manifest.write(rows[:4], Path("data/tiny/test.parquet"))
    registered.measure()
    register.run(registered.params("names"))
    shutil.rmtree("metrics")
    exports.run(named.find("challenger"), Path("out"), "open_clip")
    assert "| tiny/test | 4 / 8 |" in Path("out/README.md").read_text()
