"""Imports point downwards only, and each engine (DVC, Prefect, MLflow) is imported by its owner only."""

from pathlib import Path

import pytest

from goal.runtime import code
from tests.imports import ROOT

GOAL = ROOT / "goal"
SOURCES = sorted(GOAL.rglob("*.py"))
MLFLOW_OWNERS = {"mlflow_store.py", "sync.py", "registry.py", "register.py", "served_model.py"}
PURE = {
    "errors",
    "config/__init__",
    "config/schema",
    "config/fields",
    "config/paths",
    "text/__init__",
    "text/sentences",
    "text/punkt",
    "cleaning",
    "boxes",
    "positions",
    "losses",
    "metrics",
    "evaluation/statistics",
    "tracking/gates",
}
# From bottom to top: a package imports only from its own and earlier lines. Root modules count as `model`.
LAYERS = (
    "runtime config text",
    "datasets model",
    "regions mining",
    "training evaluation",
    "exports search reporting tracking",
    "stages",
    "cli",
)


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in code.modules(file)}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_goal_imports_neither_prefect_nor_dvc(file: Path) -> None:
    assert not roots(file) & {"prefect", "dvc"}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_mlflow_is_imported_by_its_owners_only(file: Path) -> None:
    assert "mlflow" not in roots(file) or file.name in MLFLOW_OWNERS


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_import_only_pure_modules(name: str) -> None:
    below = {str(path.relative_to(GOAL).with_suffix("")) for path in code.imported_files(GOAL / f"{name}.py")}
    # The __init__ of a package on the path, where it holds only a docstring.
    assert below - {"__init__", "model/__init__", "evaluation/__init__", "tracking/__init__"} <= PURE


def layer(file: Path) -> int:
    """The index of a file's package in LAYERS; root modules count as `model`."""
    parts = file.relative_to(GOAL).parts
    package = parts[0] if len(parts) > 1 else "model"
    return next(place for place, names in enumerate(LAYERS) if package in names.split())


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_downwards(file: Path) -> None:
    if file.name in ("__main__.py", "errors.py") or file == GOAL / "__init__.py":
        return
    above = {
        str(other.relative_to(GOAL))
        for other in code.imported_files(file)
        if other.parent != GOAL and layer(other) > layer(file)
    }
    assert above == set()


@pytest.mark.parametrize("file", sorted((ROOT / "flows").rglob("*.py")), ids=lambda f: f.name)
def test_flows_never_touch_tensors(file: Path) -> None:
    assert not roots(file) & {"torch", "open_clip", "numpy"}


@pytest.mark.parametrize("folder", ["benchmarks", "flows", "goal", "infra"])
def test_only_tests_import_tests(folder: str) -> None:
    assert [str(file) for file in sorted((ROOT / folder).rglob("*.py")) if "tests" in roots(file)] == []


def test_the_reader_of_imports_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from mlflow import tracking\n    import goal.text\n")
    assert {"mlflow", "mlflow.tracking", "goal.text"} <= code.modules(file)
