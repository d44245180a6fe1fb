"""The order in which a flow runs DVC's stages, on the project's own dvc.yaml."""

from pathlib import Path

import pytest
import yaml

from flows import graph
from tests.imports import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.fixture(scope="module")
def whole() -> list[str]:
    return graph.stages(ROOT, ["report", "register"])


def test_the_whole_graph_is_walked_once(whole: list[str]) -> None:
    every = {
        f"{name}@{key}" if "foreach" in body else name
        for name, body in STAGES.items()
        for key in body.get("foreach", [""])
    }
    assert set(whole) == every
    assert len(whole) == len(every)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("data", "regions"),
        ("regions", "pairs"),
        ("base", "pairs"),
        ("pairs", "train@stage2"),
        ("train@stage1", "train@stage2"),
        ("train@stage1", "train@global"),
        ("train@stage2", "evaluate@stage2"),
        ("evaluate@zero-shot", "report"),
        ("evaluate@stage2", "register"),
    ],
)
def test_what_a_stage_needs_comes_first(whole: list[str], first: str, then: str) -> None:
    assert whole.index(first) < whole.index(then)


def test_only_what_the_target_needs() -> None:
    assert sorted(graph.stages(ROOT, ["pairs"])) == ["base", "data", "pairs", "regions"]


def test_a_group_is_all_its_stages() -> None:
    found = graph.stages(ROOT, ["train"])
    assert {f"train@{name}" for name in STAGES["train"]["foreach"]} <= set(found)
    assert not [name for name in found if name.startswith("evaluate")]


def test_names_do_not_hang_on_where_the_process_is(
    whole: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert graph.stages(ROOT, ["report", "register"]) == whole


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="no stage 'pear' in dvc.yaml; there are: base, data"):
        graph.stages(ROOT, ["pear"])
