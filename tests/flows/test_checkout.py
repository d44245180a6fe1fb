"""A flow's own checkout: typed parameters, no shell, the user's files untouched, the result a branch."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import yaml
from dvc.repo import Repo

from flows import checkout, clean
from goal.errors import UserError
from tests.imports import ROOT
from tests.servers import holder

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project under git and DVC."""
    root = tmp_path_factory.mktemp("made") / "project"
    (root / "presets").mkdir(parents=True)
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    shutil.copy(ROOT / "presets" / "scenes.yaml", root / "presets")
    (root / "presets" / "small.yaml").write_text("# A small one.\nseed: 7\n")
    (root / "dvc.yaml").write_text("stages:\n  seed:\n    cmd: cp params.yaml out\n    outs:\n      - out\n")
    git(root, "init", "--quiet", "--initial-branch", "main")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "start")
    return root


@pytest.fixture
def home(project: Path, tmp_path: Path) -> Path:
    """A copy of it, with something of the user's own lying about."""
    root = tmp_path / "mein Projekt [ü]"
    shutil.copytree(project, root)
    (root / "dvc.yaml").write_text("the user is in the middle of something\n")
    (root / "notes.txt").write_text("mine\n")
    return root


def user_files(home: Path) -> dict[str, str]:
    paths = [home / "params.yaml", home / "dvc.yaml", home / "notes.txt"]
    return {str(path): path.read_text() for path in paths}


def test_values_are_typed_as_in_the_file() -> None:
    found = checkout.overridden(
        PARAMS, ["stage2.lr=5e-6", "regions.sources=[fixed]", "tracking.enabled=false"]
    )
    assert float(found["stage2"]["lr"]) == 5e-6
    assert found["regions"]["sources"] == ["fixed"]
    assert found["tracking"]["enabled"] is False
    assert PARAMS["tracking"]["enabled"] is True, "the caller's parameters must stay"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage2.speed=3", "with a field of params.yaml"),
        ("nothing.at.all=3", "with a field of params.yaml"),
        ("seed", "expected section.field=value"),
        ("seed.deeper=1", "with a field of params.yaml"),
        ("stage2.epochs=many", "stage2.epochs"),
        ("stage2.epochs=1.5", "stage2.epochs"),
        ("regions.sources=[fixed", "not YAML"),
        ("data.name=../../etc", "data.name"),
        ("register.name=a; touch b", "register.name"),
        ("tracking={}", "tracking.enabled: missing"),
    ],
)
def test_what_cannot_be_is_refused(override: str, words: str) -> None:
    with pytest.raises(UserError, match="override") as error:
        checkout.overridden(PARAMS, [override])
    assert words in str(error.value)


def made(home: Path, preset: str | None, overrides: list[str]) -> Path:
    """The checkout of a run that ended at once without a result."""
    with checkout.held(home, preset, overrides, print) as root:
        return root


def test_no_shell_reads_an_override(home: Path) -> None:
    text = "$(touch broken); `touch broken` && touch broken"
    root = made(home, None, [f"tracking.experiment={text}"])
    assert yaml.safe_load((root / "params.yaml").read_text())["tracking"]["experiment"] == text
    assert not [*home.rglob("broken"), *root.rglob("broken")]


@pytest.mark.parametrize("preset", ["../params", "absent", "--help", "a b"])
def test_a_preset_is_a_committed_file_of_presets(home: Path, preset: str) -> None:
    with pytest.raises(UserError, match="preset"):
        made(home, preset, [])


def test_a_preset_is_written_whole(home: Path) -> None:
    text = (made(home, "small", []) / "params.yaml").read_text()
    assert text.startswith("# A small one.\n")
    assert yaml.safe_load(text) == {**PARAMS, "seed": 7}
    assert "# pixels, square" in text


def test_a_run_has_a_checkout_and_a_branch_of_its_own(home: Path) -> None:
    before = user_files(home)
    status = git(home, "status", "--porcelain")
    root = made(home, "small", ["stage2.epochs=1"])
    assert made(home, "small", ["stage2.epochs=1"]) == root, "the same inputs resume"
    assert made(home, "small", ["stage2.epochs=2"]) != root

    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=root, check=True)
    branch = checkout.branch(root)
    checkout.keep(root, "a run")
    checkout.drop(home, root)

    assert not root.exists()
    assert user_files(home) == before
    assert git(home, "status", "--porcelain") == status
    assert git(home, "branch", "--show-current") == "main"
    kept = yaml.safe_load(git(home, "show", f"{branch}:params.yaml"))
    assert kept["seed"] == 7
    assert kept["stage2"]["epochs"] == 1
    lock = yaml.safe_load(git(home, "show", f"{branch}:dvc.lock"))
    md5 = lock["stages"]["seed"]["outs"][0]["md5"]
    assert (home / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).exists(), "one cache for all"

    again = made(home, "small", ["stage2.epochs=1"])
    assert again == root
    assert (again / "dvc.lock").exists(), "a finished run is found again"
    checkout.keep(again, "nothing new")
    assert git(home, "log", "-1", "--format=%s", branch) == "a run"


def test_the_user_s_own_settings_of_the_cache_hold_in_a_checkout(home: Path, tmp_path: Path) -> None:
    for name, value in (("dir", str(tmp_path / "large disk")), ("type", "hardlink,copy")):
        config = ["config", "--local", f"cache.{name}", value]
        subprocess.run([sys.executable, "-m", "dvc", *config], cwd=home, check=True)
    root = made(home, None, [])
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=root, check=True)
    assert (root / "out").stat().st_nlink == 2
    assert list((tmp_path / "large disk").rglob("??/*"))


def test_a_preset_leaves_what_is_the_user_s(home: Path) -> None:
    """As `goal use` does: a run with a preset keeps the user's pictures, model name and experiment."""
    own = yaml.safe_load((home / "params.yaml").read_text())
    own["data"] |= {"source": "folder", "path": "pictures", "name": "catalogue"}
    own["register"]["name"], own["tracking"]["experiment"], own["seed"] = "ours", "spring", 3
    (home / "params.yaml").write_text(yaml.safe_dump(own))
    (home / "presets" / "folder.yaml").write_text("data: {source: folder, path: my-data}\nseed: 9\n")
    git(home, "add", "params.yaml", "presets")
    git(home, "commit", "--quiet", "-m", "mine")
    values = yaml.safe_load((made(home, "folder", []) / "params.yaml").read_text())
    assert values["data"]["path"] == str(home / "pictures"), "a checkout is in another folder"
    assert (values["data"]["name"], values["register"]["name"]) == ("catalogue", "ours")
    assert (values["tracking"]["experiment"], values["seed"]) == ("spring", 9)
    values = yaml.safe_load((made(home, "scenes", []) / "params.yaml").read_text())
    assert values["data"]["path"] == PARAMS["data"]["path"], "scenes reads no folder"


@pytest.mark.parametrize("overrides", [[], ["data.path=../photos", "seed=4"]])
def test_the_pictures_of_a_relative_path_are_found(home: Path, overrides: list[str]) -> None:
    own = yaml.safe_load((home / "params.yaml").read_text())
    own["data"] |= {"source": "folder", "path": "../pictures"}
    (home / "params.yaml").write_text(yaml.safe_dump(own))
    git(home, "commit", "--quiet", "-m", "mine", "params.yaml")
    found = yaml.safe_load((made(home, None, overrides) / "params.yaml").read_text())
    assert found["data"]["path"] == str(home.parent / ("photos" if overrides else "pictures"))


def test_overrides_leave_the_comments(home: Path) -> None:
    text = (made(home, None, ["stage2.epochs=7"]) / "params.yaml").read_text()
    before = (home / "params.yaml").read_text()
    assert text == before.replace("  epochs: 2\n  batch_size: 32\n", "  epochs: 7\n  batch_size: 32\n")


@pytest.mark.parametrize("folder", ["partial", "lost", "not configured"])
def test_a_checkout_that_a_kill_left_unfinished_is_made_anew(home: Path, folder: str) -> None:
    root = made(home, None, [])
    # What `git worktree add` leaves when it is killed: its entry locked, some files or no folder at all.
    if folder == "lost":
        git(home, "worktree", "lock", "--reason", "initializing", str(root))
        shutil.rmtree(root)
    elif folder == "partial":
        git(home, "worktree", "lock", "--reason", "initializing", str(root))
        for name in ("dvc.yaml", checkout.MADE):
            (root / name).unlink()
    else:
        # DVC creates this file before it writes it.
        (root / checkout.CONFIG).write_text("")
    assert made(home, None, []) == root
    is_whole(home, root)


def is_whole(home: Path, root: Path) -> None:
    """The checkout has all files, and its results come to the project's cache."""
    assert (root / "dvc.yaml").read_text() == git(home, "show", "HEAD:dvc.yaml") + "\n"
    assert git(root, "status", "--porcelain") == ""
    with Repo(str(home)) as mine, Repo(str(root)) as its:
        assert its.cache.local.path == mine.cache.local.path
        assert its.config["core"]["autostage"]


def test_results_outside_the_project_s_cache_are_not_dropped(home: Path, tmp_path: Path) -> None:
    root = made(home, None, [])
    config = ["config", "--local", "cache.dir", str(tmp_path / "elsewhere")]
    subprocess.run([sys.executable, "-m", "dvc", *config], cwd=root, check=True)
    with pytest.raises(UserError, match="elsewhere, not in the project's cache"):
        checkout.drop(home, root)
    assert (root / "dvc.yaml").exists()
    assert made(home, None, []) == root
    checkout.drop(home, root)
    assert not root.exists()


MAKE = """
import sys
from pathlib import Path
from flows import checkout, clean
print("ready", flush=True)
sys.stdin.readline()
with checkout.held(Path(sys.argv[1]), None, [], print):
    print("made", flush=True)
"""


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_a_checkout_whose_making_was_killed_is_made_whole(home: Path, kills: int) -> None:
    """Killed with all that it started, or alone, so that git outlives it, at points all over the making."""
    command = [sys.executable, "-c", MAKE, str(home)]
    began = time.monotonic()
    root = made(home, None, [])
    seconds = time.monotonic() - began
    random = Random(kills)
    for number in range(kills):
        if number % 3:  # else it begins from what the last kill left
            checkout.drop(home, made(home, None, []))
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(random.uniform(0, seconds))
        with suppress(ProcessLookupError):
            (os.killpg if number % 2 else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        assert made(home, None, []) == root
        is_whole(home, root)


RUN = """
import sys, time
from pathlib import Path
from flows import checkout, clean
with checkout.held(Path(sys.argv[1]), None, [], lambda line: print(line, flush=True)) as root:
    others = list(root.glob("*.busy"))
    assert not others, others
    (root / f"{sys.argv[2]}.busy").touch()
    time.sleep(1)
    (root / f"{sys.argv[2]}.busy").unlink()
    checkout.drop(Path(sys.argv[1]), root)
"""


def test_equal_runs_take_turns(home: Path) -> None:
    """Their checkout is made once at a time, and who waits says so."""
    command = [sys.executable, "-c", RUN, str(home)]
    runs = [
        subprocess.Popen(
            [*command, str(number)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    ends = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], ends
    assert sum("another flow run has the same commit" in told for told, _ in ends) >= 1, ends


def test_clean_runs_removes_what_failed_runs_left_and_keeps_results(home: Path) -> None:
    failed, lost, running, finished, merged, looked_at = (
        made(home, None, [f"seed={seed}"]) for seed in range(11, 17)
    )
    # A folder that git does not know as a worktree any more, and an entry without its folder.
    git(home, "worktree", "lock", "--reason", "initializing", str(lost))
    shutil.rmtree(lost)
    (failed / ".git").unlink()
    for root in (finished, merged):
        (root / "result").write_text(root.name)
        checkout.keep(root, "a result")
    git(home, "branch", "mine", checkout.branch(merged))
    checkout.drop(home, finished)
    checkout.drop(home, looked_at)
    git(home, "worktree", "add", "--quiet", str(home.parent / "a look"), checkout.branch(looked_at))
    before = user_files(home)
    said: list[str] = []
    run = holder(running.with_suffix(".lock"))
    try:
        clean.clean(home, said.append)
    finally:
        run.kill()
        run.wait()
    left = git(home, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()
    kept = [checkout.branch(root) for root in (running, finished, looked_at)]
    assert sorted(left) == sorted(["main", "mine", *kept])
    assert [root.exists() for root in (failed, running, merged)] == [False, True, False]
    assert user_files(home) == before
    lines = {line.split(":")[0]: line for line in said}
    assert "a run is using" in lines[f"kept the checkout {running.name} and its branch"]
    assert "it holds a result" in lines[f"kept the branch {checkout.branch(finished)}"]
    assert "a look" in lines[f"kept the branch {checkout.branch(looked_at)}"]
    for root in (failed, lost, merged):
        assert f"removed the branch {checkout.branch(root)}" in lines
    assert f"removed the checkout {failed.name}" in lines
    assert f"removed the checkout {lost.name}" not in lines
    assert len(said) == 8

    clean.clean(home, said.append)
    assert f"removed the checkout {running.name}" in said
    assert made(home, None, ["seed=11"]) == failed, "a run with its parameters begins anew"
    assert (failed / "dvc.yaml").exists()
