"""Every preset is a valid overlay; `use` writes a whole file, comments included, and keeps the user's own."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import load_yaml
from typer.testing import CliRunner

from goal import config
from goal.cli import main
from goal.config import presets
from goal.errors import UserError
from tests.disks import Disk
from tests.imports import ROOT

NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
OVERLAYS = [name for name in NAMES if name != presets.DEFAULT]
PAPER = ("docci-b16", "docci-l14", "dci-b16", "dci-l14")
PARAMS = Path("params.yaml")


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def flat(section: Any, name: str = "") -> dict[str, Any]:
    """Values by dotted field; a list is one value."""
    if not isinstance(section, dict):
        return {name: section}
    parts = [flat(value, f"{name}.{key}".lstrip(".")) for key, value in section.items()]
    return {key: value for part in parts for key, value in part.items()}


def comments(text: str) -> list[str]:
    return [found.group().strip() for found in re.finditer(r"(^|\s)#.*$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", NAMES)
def test_use_writes_what_the_preset_says_as_dvc_reads_it_too(name: str) -> None:
    """DVC's reader is another one, which refuses what ours takes: a key that is given twice."""
    expected = yaml.safe_load(presets.absolute(presets.load(name).model_dump_json(by_alias=True), Path.cwd()))
    params = config.parse(expected, name)
    assert presets.use(name) == {}
    assert config.load() == params
    assert config.parse(load_yaml(str(PARAMS)), "DVC") == params


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_holds_only_what_differs_from_the_default(name: str) -> None:
    default = flat(values(presets.path_of(presets.DEFAULT)))
    overlay = flat(values(presets.path_of(name)))
    assert {field: value for field, value in overlay.items() if default[field] == value} == {}
    presets.use(name)
    if "data.path" in overlay:
        overlay["data.path"] = str(Path(overlay["data.path"]).absolute())
    assert flat(values(PARAMS)) == default | overlay


@pytest.mark.parametrize("name", NAMES)
def test_the_written_file_keeps_the_comments_of_the_default_and_says_what_it_is_for(name: str) -> None:
    presets.use(name)
    text = PARAMS.read_text()
    overlay = presets.path_of(name).read_text()
    assert text.startswith(overlay[: overlay.index("\ndata:")] if name in OVERLAYS else overlay)
    missing = set(comments(presets.path_of(presets.DEFAULT).read_text())) - set(comments(text))
    assert missing == set()


def test_params_yaml_is_the_default() -> None:
    assert (ROOT / PARAMS).read_bytes() == presets.path_of(presets.DEFAULT).read_bytes()


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipe(name: str) -> None:
    """The paper's recipe: one stage from OpenAI's weights, full objective."""
    params = presets.load(name)
    stage, loss = params.stage2, params.stage2.loss
    assert params.stage1.epochs == 0
    assert (stage.epochs, stage.batch_size, stage.lr, stage.weight_decay) == (10, 16, 5e-6, 0.05)
    assert (stage.warmup_steps, stage.clip_norm) == (0, 0)
    assert (loss.global_, loss.local, loss.tsl_image, loss.tsl_text) == (1, 0.5, 1, 1)
    assert (params.model.pretrained, params.model.context_length) == ("openai", 248)
    assert (params.regions.min_area, params.regions.max_area, params.regions.sources) == (0.01, 0.8, ["sam"])
    assert params.pairs.matcher == "ViT-L-14-336/openai"


def edit(**sections: dict[str, Any]) -> None:
    """Change params.yaml as a user would."""
    changed = values(PARAMS)
    for section, fields in sections.items():
        changed[section] |= fields
    PARAMS.write_text(yaml.safe_dump(changed))


def test_use_keeps_what_is_the_user_s_and_says_so() -> None:
    presets.use("own-data")
    edit(
        data={"path": "/data/catalogue: summer"},
        register={"name": "ours"},
        tracking={"enabled": False},
        stage2={"epochs": 7},
    )
    said = CliRunner().invoke(main.app, ["use", "own-data-b16"]).output
    params = config.load()
    assert (params.data.name, params.data.path) == ("own-data", "/data/catalogue: summer")
    assert (params.register_.name, params.tracking.enabled) == ("ours", False)
    assert params.stage2.epochs == 5
    lines = ("data.path: /data/catalogue: summer", "register.name: ours", "tracking.enabled: False")
    assert [line.partition("set it: ")[2] for line in said.splitlines()[1:]] == list(lines)
    # What another preset wrote is not the user's.
    assert "data.name" not in presets.use("scenes")
    assert config.load().data.name == "scenes"


def test_a_path_that_the_source_does_not_read_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    """DVC watches data.path: the user's pictures would make the stage `data` of scenes stale."""
    presets.use("own-data")
    edit(data={"path": "/data/catalogue"})
    assert presets.use("scenes") == {}
    assert PARAMS.read_bytes() == presets.path_of("scenes").read_bytes()
    assert "not kept: data.path: /data/catalogue: the source scenes does not read it" in caplog.text


def test_the_path_of_the_user_s_folder_is_absolute() -> None:
    """A flow and `dvc exp run --temp` run in a copy of the project elsewhere."""
    presets.use("own-data")
    assert config.load().data.path == str(Path("my-data").absolute())
    assert presets.use("own-data-b16") == {}, "what a preset wrote is not the user's"
    edit(data={"path": "../photos"})
    assert presets.use("own-data") == {"data.path": "../photos"}
    assert config.load().data.path == str(Path.cwd().parent / "photos")


def test_a_preset_for_the_same_source_leaves_everything_about_the_data() -> None:
    presets.use("own-data")
    # Even a value that some preset has, such as one that a user wrote into a preset.
    own = Path("presets/own-data.yaml")
    own.write_text(own.read_text().replace("path: my-data", "path: /data/catalogue"))
    mine = {"path": "/data/catalogue", "name": "docci", "max_rejected": 0.2}
    folder = {"split_column": "part", "caption_column": "text", "near_copies": 0}
    edit(data=mine | {"folder": values(PARAMS)["data"]["folder"] | folder})
    before = config.load().data
    kept = presets.use("own-data-b16")
    assert config.load().model.name == "ViT-B-16"
    assert config.load().data == before
    assert mine == {field: kept[f"data.{field}"] for field in mine}
    presets.use("docci-b16")
    assert config.load().data.source == "docci"
    edit(data={"download": {"root": "/big", "accept_terms": "docci", "gallery": 5100}})
    presets.use("docci-l14")
    download = config.load().data.download
    assert (download.root, download.accept_terms) == ("/big", "docci")


def test_use_takes_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home/pictures of mine").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    whole = str(tmp_path / "home/pictures of mine")
    for given in (whole, "home/pictures of mine", "~/pictures of mine"):
        presets.use("scenes")
        used = CliRunner().invoke(main.app, ["use", "own-data", "--path", given])
        assert used.exit_code == 0, used.output
        assert config.load().data.path == whole
    presets.use("own-data-b16")
    assert config.load().data.path == whole
    before = PARAMS.read_bytes()
    for name, path, words in (
        ("own-data", "nowhere", r"--path .*/nowhere: not found"),
        ("docci-b16", "home", r"--path home: data.source docci does not read a folder"),
    ):
        with pytest.raises(UserError, match=words):
            presets.use(name, Path(path))
    assert PARAMS.read_bytes() == before


@pytest.mark.parametrize(
    ("section", "field"),
    [("data", "path"), ("model", "pretrained"), ("pairs", "matcher")],
)
def test_a_path_that_only_a_shell_understands_is_refused(section: str, field: str) -> None:
    edit(**{section: {field: "~/mine"}})
    with pytest.raises(UserError, match=f"params.yaml: {section}.{field}: .*~ is not expanded here; write /"):
        config.load()


def test_use_in_a_project_that_cannot_be_written(
    small_disk: Callable[[int], Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(1024)
    shutil.copytree("presets", disk.path / "presets")
    monkeypatch.chdir(disk.path)
    presets.use("scenes")
    disk.forbid_writing()
    with pytest.raises(UserError, match="^params.yaml: cannot be written: Read-only file system"):
        presets.use("own-data")


@pytest.mark.parametrize("text", ["", "seed: 0\n", "- 1\n", "data: 3\ntracking: {experiment: goal}\n"])
def test_use_replaces_a_file_that_has_nothing_to_keep(text: str) -> None:
    PARAMS.write_text(text)
    assert presets.use("scenes") == {}
    assert PARAMS.read_bytes() == presets.path_of("scenes").read_bytes()
    PARAMS.unlink()
    assert presets.use("scenes") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stage2: {epoch: 3}\n", "presets/mine.yaml: stage2.epoch: unknown parameter"),
        ("stage3: {epochs: 3}\n", "presets/mine.yaml: stage3: unknown parameter"),
        ("stage2: {epochs: many}\n", "presets/mine.yaml: stage2.epochs: Input should be"),
        ("stage2: 3\n", "presets/mine.yaml: stage2: "),
        ("# nothing\n", "presets/mine.yaml: expected sections"),
        ("stage2: [", "presets/mine.yaml: not YAML"),
        ("seed: 1\nseed: 2\n", 'found duplicate key "seed"'),
    ],
)
def test_use_of_a_broken_preset_names_the_key_and_changes_nothing(text: str, words: str) -> None:
    before = PARAMS.read_bytes()
    Path("presets/mine.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        presets.use("mine")
    assert words in str(refused.value)
    assert PARAMS.read_bytes() == before


def test_use_of_an_unknown_preset_or_over_a_fault_of_the_user_s_changes_nothing() -> None:
    with pytest.raises(UserError, match=r"no preset 'docci'; there are: .*docci-b16"):
        presets.use("docci")
    assert PARAMS.read_bytes() == presets.path_of("scenes").read_bytes()
    for text, words in (("data: {name: ../data}\n", "params.yaml: data.name: String"), ("a: [", "not YAML")):
        PARAMS.write_text(text)
        with pytest.raises(UserError, match=words):
            presets.use("scenes")
        assert PARAMS.read_text() == text
