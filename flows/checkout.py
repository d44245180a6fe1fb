"""A checkout of its own for a flow run: the user's files stay untouched and the result is a branch."""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from goal import config
from goal.errors import UserError

BRANCHES = "runs"


def overridden(params: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`params` with each `section.field=value` put in; the value is read as YAML and the whole is validated.

    Raises UserError for a field that does not exist or a value of the wrong type.
    """
    for text in overrides:
        field, sign, value = text.partition("=")
        *path, last = field.strip().split(".")
        section: Any = params
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not sign or not isinstance(section, dict) or last not in section:
            raise UserError(f"override {text!r}: expected section.field=value with a field of params.yaml")
        section[last] = yaml.safe_load(value)
    config.parse(params, "overrides")
    return params


def prepare(home: Path, preset: str | None, overrides: list[str]) -> Path:
    """A worktree of the current commit with the chosen parameters, under .dvc/tmp, sharing DVC's cache.

    The same commit, preset and overrides give the same worktree, so that a run that died is resumed in it.
    """
    commit = _git(home, "rev-parse", "HEAD")
    source = f"presets/{preset}.yaml" if preset else "params.yaml"
    try:
        text = _git(home, "show", f"{commit}:{source}")
    except subprocess.CalledProcessError as error:
        raise UserError(f"{source} is not in commit {commit[:10]}") from error
    values = overridden(yaml.safe_load(text), overrides)
    content = yaml.safe_dump(values, sort_keys=False) if overrides else text + "\n"
    name = hashlib.sha256(f"{commit}\n{content}".encode()).hexdigest()[:12]
    root = home / ".dvc" / "tmp" / "flows" / name
    if not root.exists():
        _git(home, "worktree", "prune")
        _git(home, "worktree", "add", "--force", "-B", f"{BRANCHES}/{name}", str(root), commit)
        _dvc(root, "cache", "dir", "--local", str(home / ".dvc" / "cache"))
    (root / "params.yaml").write_text(content, encoding="utf-8")
    return root


def keep(root: Path, message: str) -> str | None:
    """Commit parameters, dvc.lock and metrics on the worktree's branch; the branch, None if nothing is new."""
    _git(root, "add", "--all")
    changed = _git(root, "status", "--porcelain")
    if changed:
        _git(root, "commit", "--quiet", "--no-verify", "-m", message)
    return f"{BRANCHES}/{root.name}" if changed else None


def drop(home: Path, root: Path) -> None:
    """Remove a worktree; its branch and what DVC cached stay."""
    _git(home, "worktree", "remove", "--force", str(root))


def _git(folder: Path, *words: str) -> str:
    return _run(folder, "git", *words)


def _dvc(folder: Path, *words: str) -> str:
    return _run(folder, "dvc", *words)


def _run(folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return result.stdout.strip()
