"""`goal init` and the wheel: a project without a clone of this repository."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from goal import config
from goal.cli import main, project
from goal.config import presets
from tests.imports import ROOT

BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
# Small enough for minutes, large enough for every stage.
SMALL = {"train": 32, "val": 8, "test": 24, "twins": 8}


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project, whose folder has a space in its name, as the current folder."""
    folder = tmp_path / "my project"
    result = CliRunner().invoke(main.app, ["init", str(folder)])
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(folder)
    return folder


def test_it_writes_the_graph_of_this_repository_and_nothing_else(made: Path) -> None:
    assert sorted(git(made, "ls-files").splitlines()) == sorted(project.FILES)
    assert git(made, "status", "--porcelain", "--ignored") == ""
    assert Path("dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
    assert Path("prefect.yaml").read_text() == (ROOT / "prefect.yaml").read_text()
    assert config.load() == presets.load(presets.DEFAULT)


def test_dvc_and_make_read_it(made: Path) -> None:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools}
    listed = subprocess.run(
        ["dvc", "stage", "list", "--name-only"], env=environment, capture_output=True, text=True, check=True
    )
    assert "train@stage2" in listed.stdout.split()
    for target in ("demo", "up", "down", "ui", "clean"):
        subprocess.run(["make", "-n", target], capture_output=True, check=True)


def test_presets_are_there_without_a_folder_of_presets(made: Path) -> None:
    assert "own-data" in presets.names()
    Path("photos").mkdir()
    presets.use("own-data", Path("photos"))
    assert config.load().data.path == str(made / "photos")


def test_a_preset_of_the_projects_folder_takes_precedence(made: Path) -> None:
    Path("presets").mkdir()
    Path("presets/own-data.yaml").write_text("seed: 7\n")
    assert presets.load("own-data").seed == 7


def test_it_overwrites_nothing(made: Path) -> None:
    Path("dvc.yaml").write_text("stages: {}\n")
    result = CliRunner().invoke(main.app, ["init", "."])
    assert "exists; `goal init` writes a project only where there is none" in str(result.exception)
    assert Path("dvc.yaml").read_text() == "stages: {}\n"


def test_a_git_repository_that_is_there_gets_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert CliRunner().invoke(main.app, ["init", str(tmp_path)]).exit_code == 0
    assert "?? dvc.yaml" in git(tmp_path, "status", "--porcelain")


def test_all_files_beside_the_code_are_packaged() -> None:
    patterns = BUILD["package-data"]["goal"]
    assets = {path for path in (ROOT / "goal").rglob("*") if path.is_file() and "assets" in path.parts}
    assets |= set(presets.PACKAGED.iterdir())  # a link, which rglob does not follow
    packaged = {path for pattern in patterns for path in (ROOT / "goal").glob(pattern) if path.is_file()}
    assert {path.resolve() for path in assets} == {path.resolve() for path in packaged}
    assert set(project.FILES.values()) <= packaged
    assert BUILD["packages"]["find"]["include"] == ["goal*", "flows", "infra"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a virtual environment with the wheel; all other packages are those of this Python."""
    root = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.split("\0")[:-1]:
        # A copy: building writes into the folder of the sources.
        if not name.startswith(("tests/", "benchmarks/", "metrics/")) and (ROOT / name).exists():
            (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / "source" / name, follow_symlinks=False)
    build = [
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(root),
        str(root / "source"),
    ]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = root.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"goal", "flows", "infra", f"{wheel.stem.rsplit('-', 3)[0]}.dist-info"}
    python = root / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
    install = ["-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(python)]
    subprocess.run([sys.executable, *install, str(wheel)], check=True)
    (site,) = (root / "venv" / "lib").glob("python*/site-packages")
    (site / "locked.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return python.parent


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_runs_the_graph_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # `dvc` itself is that of this environment; what it runs is `python -m goal`.
    tools = [str(installed), str(Path(sys.executable).parent), environment["PATH"]]
    environment["PATH"] = os.pathsep.join(tools)

    def run(folder: Path, *command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(tmp_path, "goal", "init", "my project")
    folder = tmp_path / "my project"
    where = run(folder, "python", "-c", "import goal, flows, infra; print(goal.__file__, flows.__file__)")
    assert str(ROOT) not in where
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["data"]["scenes"] |= SMALL
    for stage in ("stage1", "stage2"):
        values[stage] |= {"epochs": 1, "batch_size": 8, "warmup_steps": 0}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    assert "scenes" in run(folder, "goal", "check")
    table = run(folder, "make", "demo")
    assert "zero-shot" in table
    assert "stage2" in table
    assert (folder / "reports" / "index.html").exists()
    listing = (folder / "code" / "train").read_text().splitlines()
    assert [line for line in listing if line.startswith("goal/stages/train.py ")]
    # Installed, the code has the digests that it has in a clone: DVC's cache can be shared.
    clone = "import goal.runtime.code as code; print(code.listing('stages/train'))"
    here = subprocess.run([sys.executable, "-c", clone], cwd=ROOT, capture_output=True, text=True, check=True)
    assert here.stdout.splitlines()[:-1] == listing
    # The servers and a flow run, in a checkout of its own, need no clone either.
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@localhost", "commit", "--quiet", "-m", "demo")
    try:
        run(folder, "make", "up")
        output = run(folder, "python", "-m", "prefect", "deployment", "run", "goal/mine", "--watch")
    finally:
        run(folder, "make", "down")
    assert "Flow run finished successfully in 'Completed'" in output
    assert "runs/" in run(folder, "git", "branch", "--list", "runs/*")
