"""`goal search` on the command line: what it prints, and the page that `--show` writes, in a real browser."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from goal import weights
from goal.search import index, store
from tests import browser as browsers
from tests import tiny

PLACE = Path("index")
MODEL = Path("models/base")
ODD = b'two\nli\xffnes "<b>.png'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures, one of an odd name, and a browser that notes what it is to open."""
    tiny.make(tmp_path, monkeypatch)
    Path("params.yaml").write_text((tiny.ROOT / "params.yaml").read_text())
    os.rename("data/tiny/images/2.png", b"data/tiny/images/" + ODD)
    index.run(tiny.params(), Path("data/tiny/images"), PLACE, MODEL, "zero-shot")
    program = tmp_path / "browser.sh"
    program.write_text(f'#!/bin/sh\nprintf "%s" "$1" > {tmp_path}/opened\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("BROWSER", str(program))
    return tmp_path


def search(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "goal", "search", *words, "--index", "index", "--count", "6"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(tiny.ROOT), "OMP_NUM_THREADS": "1"},
    )


def test_a_text_prints_scores_and_paths(project: Path) -> None:
    done = search("A man reads. " * 90)
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all(re.fullmatch(r"-?\d\.\d{3}  /.*/data/tiny/images/.*\.png", line) for line in lines)
    assert any(line.endswith('two\\nli\\xffnes "<b>.png') for line in lines)
    assert "362 tokens, of which 77 are read" in done.stderr
    assert weights.digest(MODEL) == store.opened(PLACE).card.digest
    assert not (project / "opened").exists()


def test_a_picture_is_shown_with_those_like_it(project: Path) -> None:
    done = search("--image", "data/tiny/images/3.png", "--show")
    first, *others = done.stdout.splitlines()
    assert first == f"1.000  {project}/data/tiny/images/3.png"
    page = project / "work/search.html"
    assert (project / "opened").read_text() == page.as_uri()
    with (
        browsers.chromium() as browser,
        browsers.page(browser, page.as_uri(), offline=True) as (opened, seen),
    ):
        opened.goto(page.as_uri())
        found = opened.locator("li")
        assert found.count() == 1 + len(others) == 6
        shown = [text.split(maxsplit=1) for text in found.all_inner_texts()]
        assert [f"{score}  {name}" for score, name in shown] == done.stdout.splitlines()
        addresses = [link.get_attribute("href") for link in found.locator("a").all()]
        broken = "[...document.images].filter(one => one.naturalWidth === 0).length"
        assert opened.evaluate(broken) == 0
        browsers.keep(opened, "search-show")
        # Each leads to the file itself, whatever its name.
        for address in addresses:
            opened.goto(address)
            assert opened.evaluate(broken) == 0
    assert seen.faults == []


def test_a_long_text_is_shown_with_what_is_not_read(project: Path) -> None:
    search("<script>alert(1)</script> " + "A man reads. " * 90, "--show")
    text = (project / "work/search.html").read_text()
    assert "&lt;script&gt;alert(1)" in text
    assert "<script" not in text
    assert text.count("<mark>") == 1
    assert text[text.index("<mark>") :].count("A man reads.") > 60
