"""Every shipped preset is a valid, complete parameter file, and `use` writes it wholly or not at all."""

import shutil
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml

from goal import config
from goal.config import presets
from goal.errors import UserError
from tests.imports import ROOT

NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
PAPER = ("docci-b16", "docci-l14", "dci-b16", "dci-l14")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_valid(name: str) -> None:
    config.load(ROOT / "presets" / f"{name}.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_dvc_reads_the_same_in_a_preset(name: str) -> None:
    """Its reader is another one, which refuses what ours takes: a key that is given twice."""
    path = ROOT / "presets" / f"{name}.yaml"
    assert config.parse(load_yaml(str(path)), "DVC") == config.load(path)


def test_the_default_is_the_preset_scenes() -> None:
    assert config.load(ROOT / "params.yaml") == config.load(ROOT / "presets/scenes.yaml")


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipe(name: str) -> None:
    """The paper's recipe: one stage from OpenAI's weights, full objective."""
    params = config.load(ROOT / "presets" / f"{name}.yaml")
    stage, loss = params.stage2, params.stage2.loss
    assert params.stage1.epochs == 0
    assert (stage.epochs, stage.batch_size, stage.lr, stage.weight_decay) == (10, 16, 5e-6, 0.05)
    assert (stage.warmup_steps, stage.clip_norm) == (0, 0)
    assert (loss.global_, loss.local, loss.tsl_image, loss.tsl_text) == (1, 0.5, 1, 1)
    assert (params.model.pretrained, params.model.context_length) == ("openai", 248)
    assert (params.regions.min_area, params.regions.max_area, params.regions.sources) == (0.01, 0.8, ["sam"])
    assert params.pairs.matcher == "ViT-L-14-336/openai"


def test_use_writes_the_preset(checkout: Path) -> None:
    params = presets.use("docci-b16")
    assert config.load() == params
    assert params.data.name == "docci"


def test_use_of_an_unknown_or_broken_preset_changes_nothing(checkout: Path) -> None:
    before = (checkout / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=r"no preset 'docci'; there are: .*docci-b16"):
        presets.use("docci")
    (checkout / "presets" / "mine.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"presets/mine.yaml: data: missing"):
        presets.use("mine")
    assert (checkout / "params.yaml").read_bytes() == before
