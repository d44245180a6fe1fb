"""What a file of the package imports, read from its text: for the tests of layers and of dvc.yaml."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules(file: Path) -> set[str]:
    """Every module named by an import anywhere in the file, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def files(file: Path, package: str = "goal") -> set[Path]:
    """The package's own files behind those modules, the packages' __init__ on the way included."""
    found: set[Path] = set()
    for name in modules(file):
        parts = name.split(".")
        if parts[0] != package:
            continue
        for end in range(1, len(parts) + 1):
            path = ROOT.joinpath(*parts[:end])
            found.update(p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists())
    return found


def closure(start: list[Path], skip: frozenset[Path] = frozenset()) -> set[Path]:
    """All files that running `start` can reach by imports, without those in `skip`."""
    seen: set[Path] = set()
    todo = list(start)
    while todo:
        file = todo.pop()
        if file not in seen and file not in skip:
            seen.add(file)
            todo.extend(files(file))
    return seen
