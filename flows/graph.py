"""DVC's graph, read from DVC: which stages a target needs, in an order that works."""

from pathlib import Path

import networkx
from dvc.repo import Repo
from dvc.stage import PipelineStage, Stage


def stages(root: Path, targets: list[str]) -> list[str]:
    """Names of the stages that `targets` need, the targets included, each after those it depends on.

    A target is a stage or a group of stages (`train` means train@stage1, train@stage2 ...).
    Raises ValueError for a target that is not in the graph.
    """
    with Repo(str(root)) as repo:
        graph = networkx.relabel_nodes(repo.index.graph, _name)
    wanted: set[str] = set()
    for target in targets:
        found = {name for name in graph if name == target or name.startswith(f"{target}@")}
        if not found:
            raise ValueError(f"no stage {target!r} in dvc.yaml; there are: {', '.join(sorted(graph))}")
        wanted |= found
    # An edge of DVC's graph points from a stage to what it needs.
    needed = wanted.union(*(networkx.descendants(graph, name) for name in wanted))
    order = networkx.lexicographical_topological_sort(graph.subgraph(needed).reverse())
    return list(order)


def _name(stage: Stage) -> str:
    # Not `stage.addressing`: that one is relative to the folder this process is in.
    return stage.name if isinstance(stage, PipelineStage) else stage.path_in_repo
