"""Imports point downwards only, and each engine is named by its owner alone."""

from pathlib import Path

import pytest

from tests.imports import ROOT, files, modules

GOAL = ROOT / "goal"
SOURCES = sorted(GOAL.rglob("*.py"))
MLFLOW_OWNERS = {"tracking.py", "registry.py", "served_model.py"}
PURE = {
    "errors",
    "config",
    "fields",
    "layout",
    "text/__init__",
    "text/sentences",
    "text/punkt",
    "text/cleaning",
    "boxes",
    "positions",
    "losses",
    "metrics",
    "model/packing",
    "evaluation/statistics",
    "record/promotion",
}
STAGES = {"base", "pairs", "train", "evaluate", "report", "registry", "promote"}


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in modules(file)}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_the_method_knows_no_scheduler(file: Path) -> None:
    assert not roots(file) & {"prefect", "dvc"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_mlflow_is_named_by_the_record_alone(file: Path) -> None:
    assert "mlflow" not in roots(file) or file.name in MLFLOW_OWNERS


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_import_only_pure_modules(name: str) -> None:
    below = {str(path.relative_to(GOAL).with_suffix("")) for path in files(GOAL / f"{name}.py")}
    # A package's __init__ on the way, where it holds only words.
    assert below - {"__init__", "model/__init__", "evaluation/__init__", "record/__init__"} <= PURE


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_only_the_command_line_knows_the_stages(file: Path) -> None:
    if file.stem in {"cli", "__main__"} | STAGES or file.parent == GOAL / "commands":
        return
    assert not {f"goal.{name}" for name in STAGES} & modules(file)


@pytest.mark.parametrize("file", sorted((ROOT / "flows").rglob("*.py")), ids=lambda f: f.name)
def test_flows_never_touch_tensors(file: Path) -> None:
    assert not roots(file) & {"torch", "open_clip", "numpy"}


def test_the_reader_of_imports_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from mlflow import tracking\n    import goal.text\n")
    assert {"mlflow", "mlflow.tracking", "goal.text"} <= modules(file)
