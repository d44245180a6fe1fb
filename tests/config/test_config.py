"""Parameters are typed, complete and refused in one line that names file and field."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from goal import config
from goal.errors import UserError
from tests.imports import ROOT

Edit = Callable[[dict], None]


def values() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def refusal(edit: Edit) -> str:
    params = values()
    edit(params)
    with pytest.raises(UserError) as caught:
        config.parse(params, "params.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda p: p["stage2"].update(epoch=3), "params.yaml: stage2.epoch: unknown parameter"),
        (lambda p: p["stage2"].pop("epochs"), "params.yaml: stage2.epochs: missing"),
        (
            lambda p: p["stage1"].update(epochs="2"),
            "params.yaml: stage1.epochs: Input should be a valid integer",
        ),
        (lambda p: p["stage1"].update(lr="fast"), "params.yaml: stage1.lr: Input should be a valid number"),
        (lambda p: p["stage1"].update(lr=-1.0), "params.yaml: stage1.lr: Input should be greater than 0"),
        (
            lambda p: p["stage1"].update(lr=float("nan")),
            "params.yaml: stage1.lr: Input should be a finite number",
        ),
        (lambda p: p["model"].update(view="crop"), "params.yaml: model.view: Input should be"),
        (lambda p: p["regions"].update(sources=["fixed", "fixed"]), "sources names one twice"),
        (lambda p: p["regions"].update(min_area=0.9), "min_area must be below max_area"),
        (lambda p: p["data"].update(name="../data"), "params.yaml: data.name: String should match pattern"),
    ],
)
def test_faults_are_one_line(edit: Edit, words: str) -> None:
    text = refusal(edit)
    assert words in text
    assert "\n" not in text


def test_several_faults_are_a_line_each() -> None:
    def edit(params: dict) -> None:
        params["seed"] = -1
        params["sead"] = 0

    assert len(refusal(edit).split("\n")) == 2


def test_a_rate_that_yaml_reads_as_text_is_a_number() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["stage1"]["lr"] = yaml.safe_load("5e-6")
    assert params["stage1"]["lr"] == "5e-6"
    assert config.parse(params, "params.yaml").stage1.lr == 5e-6


@pytest.mark.parametrize(
    ("text", "words"), [("[1, 2]", "expected sections"), ("a: [", "not YAML"), ("", "NoneType")]
)
def test_files_that_are_no_parameters(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        config.load(file)


def test_a_mistyped_parameter_fails_before_anything_is_loaded(tmp_path: Path) -> None:
    """No tensor library, tracker or scheduler is imported on the way to the message."""
    params = values()
    params["stage2"]["epoch"] = 3
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    program = (
        "import sys; sys.argv = ['goal', 'train', 'stage2']\n"
        "from goal.cli import main\n"
        "try:\n    main.main()\n"
        "except SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'open_clip', 'mlflow', 'prefect', 'dvc', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == "goal: params.yaml: stage2.epoch: unknown parameter\n"
    assert done.returncode == 2
