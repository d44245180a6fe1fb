"""The documents: links lead somewhere, and the site builds strictly."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.imports import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *DOCS.glob("*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_sites_navigation() -> None:
    def listed(entry: object) -> list[str]:
        parts = entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else None
        return [str(entry)] if parts is None else [name for part in parts for name in listed(part)]

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(listed(site["nav"])) == sorted(path.name for path in DOCS.glob("*.md"))


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("mkdocstrings"), reason="needs mkdocs (pip install .[docs])")
def test_the_site_builds_strictly_and_needs_no_other_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "index.html").read_text()
    for name in ("losses.contrastive", "boxes.patch_mask", "text.tokenize", "clip.load", "weights.save"):
        assert f'id="goal.{name}"' in reference
    assert (tmp_path / "search" / "search_index.json").exists()
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+', text)
        # A table or a block of code that Markdown took for a paragraph.
        assert not re.search(r"^(\| |```)", re.sub(r"<pre.*?</pre>", "", text, flags=re.S), re.M), (
            page.parent.name
        )
