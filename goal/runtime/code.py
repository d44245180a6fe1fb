"""What a stage runs: the files of this package that it can import, and a digest that only their code decides.

DVC's first stage writes one listing per stage; the identity of unfinished work and of caches uses the same
digests, so that there is one definition of "the code".
"""

import ast
import hashlib
import io
import threading
import tokenize
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE.parent
# The command line only calls a stage, and configuration acts through values, which DVC watches as params.
NOT_RUN = ("cli", "config")
# Files beside the code that a stage reads.
ASSETS = {"stages/base": ("scenes-vit.safetensors",), "stages/report": ("overlay.html", "report.html")}
# Packages whose version can change a result, by the name that code imports.
RESULT_PACKAGES = {
    "PIL": "pillow",
    "ftfy": "ftfy",
    "matplotlib": "matplotlib",
    "nltk": "nltk",
    "numpy": "numpy",
    "open_clip": "open_clip_torch",
    "pyarrow": "pyarrow",
    "regex": "regex",
    "scipy": "scipy",
    "segment_anything": "segment-anything",
    "simplejpeg": "simplejpeg",
    "skimage": "scikit-image",
    "torch": "torch",
    "torchvision": "torchvision",
}


def stages() -> list[str]:
    """The names of the stages, each with a file in goal/stages/."""
    return sorted(path.stem for path in (PACKAGE / "stages").glob("*.py") if path.stem != "__init__")


def listing(module: str = "") -> str:
    """What `module` (a path in the package, such as stages/train) can run; without one, the whole package.

    One line per file with its digest, then one per package that decides results with its version.
    """
    files = closure([PACKAGE / f"{module}.py"]) if module else set(PACKAGE.rglob("*.py"))
    lines = [f"{name(file)} {_digest_of_code(file.read_text(encoding='utf-8'))}" for file in sorted(files)]
    for asset in ASSETS.get(module, ()):
        file = PACKAGE / "assets" / asset
        lines.append(f"{name(file)} {hashlib.sha256(file.read_bytes()).hexdigest()}")
    imported = {module.partition(".")[0] for file in files for module in modules(file)}
    for package in sorted(RESULT_PACKAGES[module] for module in imported & RESULT_PACKAGES.keys()):
        lines.append(f"{package} {_version(package)}")
    return "\n".join(lines) + "\n"


@cache
def digest(module: str = "") -> str:
    """sha256 of that listing, as this process first saw it: an edit does not reach code that is loaded."""
    return hashlib.sha256(listing(module).encode()).hexdigest()


def closure(start: Iterable[Path], skip: Iterable[str] = NOT_RUN) -> set[Path]:
    """All files of the package that running `start` can reach by imports, without those in folders `skip`."""
    left_out = [PACKAGE / folder for folder in skip]
    seen: set[Path] = set()
    todo = list(start)
    while todo:
        file = todo.pop()
        if file not in seen and not any(file.is_relative_to(folder) for folder in left_out):
            seen.add(file)
            todo.extend(imported_files(file))
            todo.extend(folder / "__init__.py" for folder in file.parents if folder.is_relative_to(PACKAGE))
    return seen


def imported_files(file: Path) -> set[Path]:
    """The package's own files that a file imports, the packages' __init__ on the way included."""
    found: set[Path] = set()
    for module in modules(file):
        parts = module.split(".")
        if parts[0] != PACKAGE.name:
            continue
        for end in range(1, len(parts) + 1):
            path = ROOT.joinpath(*parts[:end])
            found.update(one for one in (path.with_suffix(".py"), path / "__init__.py") if one.exists())
    return found


def modules(file: Path) -> frozenset[str]:
    """Every module named by an import anywhere in a file, also inside functions."""
    return _modules(file.read_text(encoding="utf-8"))


# By content, so that a second look sees an edit.
@cache
def _modules(source: str) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def bare(source: str) -> str:
    """Python code without comments, docstrings and blank lines; the same text on every version of Python."""
    lines = source.splitlines()
    cuts = [
        (token.start, token.end)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(_tree(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                cuts.append(((first.lineno, first.col_offset), (first.end_lineno, first.end_col_offset)))
    for (row, column), (last, end) in sorted(cuts, reverse=True):
        # The columns of syntax trees count bytes; a docstring's line holds nothing else that could be cut.
        rest = lines[last - 1].encode()[end:].decode() if last > row else ""
        lines[row - 1 : last] = [lines[row - 1][:column] + rest]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def name(file: Path) -> str:
    """A file of the package as it is listed: goal/..., whichever folder the package lies in."""
    return file.relative_to(ROOT).as_posix()


_PARSING = threading.Lock()


def _tree(source: str) -> ast.Module:
    # Python 3.11 raises SystemError where two threads parse at once.
    with _PARSING:
        return ast.parse(source)


@cache
def _digest_of_code(source: str) -> str:
    return hashlib.sha256(bare(source).encode()).hexdigest()


def _version(package: str) -> str:
    """An installed version without its build (+cpu, +cu130); `absent` where an extra is not installed."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "absent"
