"""`make clean-runs`: remove the checkouts of failed and cancelled runs, and the branches without a result."""

import sys
from collections.abc import Callable
from pathlib import Path

from flows import checkout
from goal.errors import UserError
from goal.runtime import locks

HOME = Path(__file__).parents[1]


class _Busy(Exception):
    """A flow run is in the checkout."""


def clean(home: Path, say: Callable[[str], object]) -> None:
    """Remove what runs left in `home`; `say` gets a line for each checkout and branch, removed or kept.

    Kept are a checkout that a run is using, and a branch with commits that no branch of the user has.
    """
    left = {root.name for root in (home / checkout.PLACE).glob("*/")}
    names = ("--format=%(refname:lstrip=3)", f"refs/heads/{checkout.BRANCHES}")
    for name in sorted(left.union(checkout.git(home, "for-each-ref", *names).split())):
        root = home / checkout.PLACE / name
        branch = checkout.branch(root)
        try:
            with locks.held(root.with_suffix(".lock"), _refuse):
                checkout.discard(home, root)
                if name in left:
                    say(f"removed the checkout {name}")
                if checkout.git(home, "branch", "--list", branch):
                    say(_remove(home, branch))
        except _Busy:
            say(f"kept the checkout {name} and its branch: a run is using them")


def _refuse() -> None:
    raise _Busy


def _remove(home: Path, branch: str) -> str:
    """Remove a branch unless it holds commits of its own; what was done."""
    others = ("--not", f"--exclude={checkout.BRANCHES}/*", "--branches")
    own = checkout.git(home, "rev-list", "--count", branch, *others)
    if own != "0":
        return f"kept the branch {branch}: it holds a result; `git branch -D {branch}` removes it"
    try:
        checkout.git(home, "branch", "-D", branch)
    except UserError as error:
        return f"kept the branch {branch}: {error}"
    return f"removed the branch {branch}: it holds no result that your branches lack"


def main() -> None:
    """`python -m flows.clean`."""
    try:
        clean(HOME, lambda line: sys.stdout.write(f"{line}\n"))
    except UserError as error:
        sys.exit(f"goal: {error}")


if __name__ == "__main__":
    main()
