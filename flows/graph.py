"""Read DVC's graph from DVC: which stages a target needs, in which order, and which are up to date."""

import contextlib
from pathlib import Path

import networkx
from dvc.repo import Repo
from dvc.stage import PipelineStage, Stage

CODE = "code"  # the stage that lists the code of each other stage; it runs first
DATA = "data"  # the stage that writes the manifests


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


def up_to_date(root: Path, names: list[str]) -> set[str]:
    """Those of `names` that neither changed nor depend on a changed stage, and whose outs exist.

    Outs that are missing, as in a new checkout, are first restored from DVC's cache. A stage that always runs
    does not count as changed for the stages that depend on it: run `code` before.
    """
    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        graph = networkx.relabel_nodes(repo.index.graph, _name)
        stages = [stage for stage in repo.index.stages if _name(stage) in names]
        for out in (out for stage in stages for out in stage.outs if out.hash_info and not out.exists):
            # If the cache lacks it too: `allow_missing` ignores that only for files in a folder.
            with contextlib.suppress(FileNotFoundError):
                out.checkout(allow_missing=True)
        states = {_name(stage): stage.status() for stage in stages}
    changed = {name for name, state in states.items() if state}
    always = {name for name, state in states.items() if list(state.values()) == [["always changed"]]}
    # An edge of DVC's graph points from a stage to what it needs.
    affected = changed.union(*(networkx.ancestors(graph, name) for name in changed - always))
    return set(names) - affected


def _name(stage: Stage) -> str:
    # Not `stage.addressing`: that one is relative to the folder this process is in.
    return stage.name if isinstance(stage, PipelineStage) else stage.path_in_repo
