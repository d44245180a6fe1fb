"""`goal check` reports what a preset needs and what cannot work, without a download."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from goal import config, weights
from goal.cli import check, main
from goal.config import drawn, paths, presets
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.exports import folders
from goal.model import architectures, embedded
from goal.stages import base, data
from tests import networks
from tests.disks import Disk
from tests.imports import ROOT

DETECTOR = yaml.safe_load((ROOT / "params.yaml").read_text())["regions"]["detector"]


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name in ("scenes", "docci", "dci"):
        (tmp_path / "goal/datasets").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"goal/datasets/{name}.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(name: str, **sections: dict) -> tuple[dict[str, str], list[str]]:
    """Facts by topic (the last of each), and the faults, except that this disk is too small."""
    values = presets.load(name).model_dump(by_alias=True)
    for section, fields in sections.items():
        values[section] |= fields
    found = check.facts(config.parse(values, name))
    return {fact.topic: fact.text for fact in found}, [
        fact.text for fact in found if fact.fault and fact.topic != "disk"
    ]


def test_the_papers_run_on_docci() -> None:
    facts, faults = texts("docci-b16")
    assert not faults
    # The known size of OpenAI's ViT-B/16, with 77 positions.
    assert check.parameters(architectures.spec_of("ViT-B-16")) == 149_620_737
    assert facts["stage1"] == "0 epochs: passes its weights on"
    assert facts["stage2"].startswith(f"{10 * (9647 // 16):,} steps, {10 * (9647 // 16) * 16:,} samples")


def test_counted_parameters_are_those_of_the_weights() -> None:
    model = embedded.load(embedded.ASSET)
    assert check.parameters(model.spec) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"name": "RN50"}}, "RN50"),
        ({"model": {"pretrained": "opanai"}}, "neither a file nor a tag of ViT-B-16"),
        ({"model": {"context_length": 249}}, "model.context_length 249 is over 248"),
        ({"data": {"source": "goal_lists", "path": "nowhere"}}, "data.path nowhere does not exist"),
        ({"data": {"source": "folder", "path": "presets"}}, "presets: no captions.jsonl or captions.csv"),
        ({"stage2": {"batch_size": 10_000}}, "stage2.batch_size 10000: docci has only 9647 pictures"),
        (
            {"stage2": {"batch_size": 30}, "train": {"processes": 4}},
            "does not divide among train.processes 4",
        ),
        ({"train": {"device": "cuda"}}, "params.yaml: train.device: cuda"),
        ({"regions": {"device": "cuda"}}, "params.yaml: regions.device: cuda"),
        ({"pairs": {"device": "cuda"}}, "params.yaml: pairs.device: cuda"),
        ({"pairs": {"matcher": "ViT-L-14/opanai"}}, "pairs.matcher ViT-L-14/opanai: neither base, nor"),
        ({"pairs": {"sentences": "punkt_tab/klingon"}}, "'punkt_tab/klingon' is not installed"),
        ({"model": {"pretrained": "embedded"}}, "only scenes-vit comes with the package"),
        ({"stage2": {"warmup_steps": 6020}}, "stage2.warmup_steps 6020: the training has only 6020 steps"),
        (
            {"regions": {"sources": ["detector"], "detector": DETECTOR | {"model": "yolo"}}},
            "regions.detector.model: yolo is unknown",
        ),
        (
            {"regions": {"sources": ["detector"], "detector": DETECTOR | {"checkpoint": "lost.pth"}}},
            "regions.detector.checkpoint lost.pth does not exist",
        ),
    ],
)
def test_what_cannot_work_is_named(sections: dict, words: str) -> None:
    _, faults = texts("docci-b16", **sections)
    assert any(words in fault for fault in faults)


def own(folder: Path, header: str = "image,caption") -> dict[str, dict]:
    """Params of a folder of 30 pictures, and the folder."""
    (folder / "own").mkdir()
    draw = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(draw.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f"own/{number}.png")
    lines = [header, *(f"{number}.png,A caption of {number}." for number in range(30))]
    (folder / "own/captions.csv").write_text("\n".join(lines))
    return {"data": {"source": "folder", "path": str(folder / "own"), "name": "mine"}}


def test_the_first_rows_of_a_captions_file_and_their_pictures_are_read(tmp_path: Path) -> None:
    sections = own(tmp_path)
    found = check.facts(changed(sections))
    text = (
        "captions.csv: read as a file of CSV; pictures: 'image'; captions: 'caption'; fields caption, image; "
    )
    text += "the first 20 rows give 20 usable pictures"
    assert any(fact.text.endswith(text) for fact in found)
    for number in range(3):
        (tmp_path / f"own/{number}.png").unlink()
    (fact,) = (fact for fact in check.facts(changed(sections)) if "the first 20 rows" in fact.text)
    assert fact.text.endswith(
        "17 usable pictures; rejected: 3 x not found; the first: captions.csv:2: 0.png: not found"
    )
    for number in range(3, 30):
        (tmp_path / f"own/{number}.png").unlink()
    _, faults = texts("own-data", **sections)
    assert any(
        "none of 20 rows can be used; the first, captions.csv:2: 0.png: not found" in one for one in faults
    )


def test_numbers_that_are_small_are_not_nothing(tmp_path: Path) -> None:
    facts, _ = texts("own-data", **own(tmp_path))
    data.run(changed({"data": {"source": "folder", "path": str(tmp_path / "own"), "name": "mine"}}))
    facts, _ = texts("own-data", data={"source": "folder", "path": str(tmp_path / "own"), "name": "mine"})
    assert " thousand tokens" in facts["stage1"]


def test_goal_data_goes_on_with_unusable_rows_where_a_flag_accepts_them(tmp_path: Path) -> None:
    sections = own(tmp_path)
    for number in range(5):
        (tmp_path / f"own/{number}.png").unlink()
    Path("params.yaml").write_text(yaml.safe_dump(changed(sections).model_dump(by_alias=True)))
    runner = CliRunner()
    refused = runner.invoke(main.app, ["data"])
    assert isinstance(refused.exception, UserError)
    assert "5 of 30 rows cannot be used (5 x not found); data.max_rejected allows 5%" in str(
        refused.exception
    )
    assert not Path("data/mine").exists()
    assert runner.invoke(main.app, ["data", "--accept-rejected"]).exit_code == 0
    assert len(manifest.read_table(Path("data/mine/rejected.parquet"), manifest.REJECTED)) == 5


def test_a_captions_file_that_the_stage_refuses_is_a_fault(tmp_path: Path) -> None:
    _, faults = texts("own-data", **own(tmp_path, "picture,caption"))
    assert any("no row has a field image" in fault for fault in faults)
    (tmp_path / "own/captions.csv").write_bytes(b"image\n1.png")
    _, faults = texts("own-data", data={"source": "folder", "path": str(tmp_path / "own")})
    assert any("captions.csv: one column" in fault for fault in faults)


def test_numbers_of_another_data_set_of_that_name_are_not_shown(tmp_path: Path) -> None:
    sections = own(tmp_path)
    params = changed(sections)
    (fact,) = (fact for fact in check.facts(params) if "training pictures" in fact.text)
    assert fact.text == "folder: training pictures: known after `goal data`"
    data.run(params)
    count = len(manifest.read(Path("data/mine/train.parquet")))
    assert any(fact.text == f"folder: training pictures: {count}" for fact in check.facts(params))
    shutil.copytree(tmp_path / "own", tmp_path / "other")
    other = changed({"data": sections["data"] | {"path": str(tmp_path / "other")}})
    assert any("known after `goal data`" in fact.text for fact in check.facts(other))


def changed(sections: dict[str, dict]) -> config.Params:
    values = presets.load("own-data").model_dump(by_alias=True)
    for section, fields in sections.items():
        values[section] |= fields
    return config.parse(values, "test")


def test_a_warm_up_as_long_as_the_training_is_named_for_the_user_s_own_pictures() -> None:
    """Once `goal data` has counted them; and a model that is chosen by validation needs pictures for it."""
    presets.use("scenes")
    params = config.load()
    rows = [Row(str(number), "a.png", 8, 8, ("A caption.",), "folder") for number in range(40)]
    paths.data_dir(params.data.name).mkdir(parents=True)
    manifest.write(rows, paths.manifest(params.data.name, "train"))
    manifest.write([], paths.manifest(params.data.name, "val"))
    made = {"source": params.data.source, "path": params.data.path}
    (paths.data_dir(params.data.name) / "summary.json").write_text(json.dumps(made))
    _, faults = texts("scenes", stage2={"epochs": 4, "warmup_steps": 1000, "keep": "best"})
    assert any("stage2.keep best" in fault for fault in faults)
    _, faults = texts("scenes", stage2={"epochs": 4, "warmup_steps": 1000})
    assert any("stage2.warmup_steps 1000: the training has only 4 steps" in fault for fault in faults)
    fitting = {"stage2": {"epochs": 4, "warmup_steps": 3}, "stage1": {"warmup_steps": 1}}
    _, faults = texts("scenes", **fitting)
    (fault,) = faults
    assert "by which one of several is chosen" in fault
    assert not texts("scenes", mix={"alphas": [0.5]}, **fitting)[1]


def test_relative_paths_are_named() -> None:
    """`dvc exp run --temp` works in a copy of the project, where they name nothing."""
    facts, _ = texts("scenes")
    assert "paths" not in facts
    facts, _ = texts("scenes", data={"source": "folder", "path": "presets"})
    assert facts["paths"].endswith(f"write {Path.cwd() / 'presets'}")


def test_the_verb_s_last_line_names_every_fault() -> None:
    """It is all that a flow shows of it."""
    values = presets.load("scenes").model_dump(by_alias=True)
    values["stage1"]["warmup_steps"] = values["stage2"]["warmup_steps"] = 1000
    Path("params.yaml").write_text(yaml.safe_dump(values))
    refused = CliRunner().invoke(main.app, ["check"])
    assert isinstance(refused.exception, UserError)
    assert "stage1: stage1.warmup_steps 1000" in str(refused.exception)
    assert "global: stage2.warmup_steps 1000" in str(refused.exception)


def test_the_verbs() -> None:
    runner = CliRunner()
    used = runner.invoke(main.app, ["use", "docci-l14"])
    assert used.exit_code == 0
    assert config.load().model.name == "ViT-L-14"
    assert "ViT-L-14, 427.6 M parameters" in runner.invoke(main.app, ["check"]).output
    assert runner.invoke(main.app, ["check", "scenes"]).exit_code == 0


@pytest.mark.parametrize(
    ("preset", "noted"), [("own-data", True), ("own-data-b16", False), ("scenes", False)]
)
def test_photographs_for_the_small_network_are_commented(preset: str, noted: bool) -> None:
    runner = CliRunner()
    assert (drawn.ADVICE in runner.invoke(main.app, ["use", preset]).output) is noted
    assert (drawn.ADVICE in runner.invoke(main.app, ["check"]).output) is noted


def test_what_is_advised_for_photographs_works_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two lines of the note, with a folder that transformers would read and a network of its shapes."""
    name = networks.register(monkeypatch)
    folders.transformers(networks.tiny(quick_gelu=True), tmp_path / "weights")
    output = CliRunner().invoke(main.app, ["use", "own-data", "--path", str(tmp_path)]).output
    use, run = re.findall("`(goal use [^`]*|dvc exp run [^`]*)`", output)
    assert CliRunner().invoke(main.app, use.split()[1:]).exit_code == 0
    *_, changes = run.partition("-S ")
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["model"]["name"] = name
    field, _, path = changes.partition("=")
    assert (field, path) == ("model.pretrained", "/path/to/weights")
    values["model"]["pretrained"] = str(tmp_path / "weights")
    params = config.parse(values, "test")
    assert [fact.text for fact in check.facts(params) if fact.topic == "weights"] == [
        f"the file {tmp_path / 'weights'}"
    ]
    base.run(params)
    assert weights.load(paths.model_dir("zero-shot")).spec.quick_gelu


def test_a_repository_of_the_hub_is_a_fact_of_the_check() -> None:
    model = presets.load("own-data-b16").model_dump()["model"] | {
        "pretrained": "openai/clip-vit-base-patch16"
    }
    facts, _ = texts("own-data-b16", model=model)
    assert facts["weights"].startswith("Hugging Face's hub has openai/clip-vit-base-patch16, unless")


@pytest.mark.parametrize("preset", ["own-data", "own-data-b16"])
def test_the_gates_of_own_data_depend_on_its_gallery(preset: str) -> None:
    """40 percent is nothing for ten pictures and a lot for ten thousand."""
    rules = {gate.rule for gate in presets.load(preset).promote.gates}
    assert "above_chance" in rules
    assert "minimum" not in rules


def test_counting_the_training_pictures_does_not_read_them(checkout: Path) -> None:
    """A million rows take seconds and gigabytes; their number is in the file's footer."""
    path = paths.manifest("scenes", "train")
    path.parent.mkdir(parents=True)
    manifest.write([Row(str(number), "a.png", 8, 8, ("A.",), "scenes") for number in range(1000)], path)
    data = presets.load("scenes").data
    made = {"source": data.source, "path": data.path}
    path.with_name("summary.json").write_text(json.dumps(made))
    content = bytearray(path.read_bytes())
    # The rows are damaged, the footer is not.
    content[4 : len(content) // 3] = bytes(len(content) // 3 - 4)
    path.write_bytes(content)
    with pytest.raises(UserError):
        manifest.read(path)
    assert texts("scenes")[0]["data"] == "scenes: training pictures: 1,000"


def test_a_disk_that_is_too_small_is_named(
    small_disk: Callable[[int], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = config.load()
    (wide,) = (fact for fact in check.facts(params) if fact.topic == "disk")
    assert not wide.fault
    monkeypatch.chdir(small_disk(1024).path)
    (narrow,) = (fact for fact in check.facts(params) if fact.topic == "disk")
    assert narrow.fault
    assert narrow.text.endswith("free 0 GB")
