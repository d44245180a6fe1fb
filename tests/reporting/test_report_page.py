"""The report in a real browser, opened from its file: light and dark, desk and phone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, expect

from goal import weights
from goal.stages import evaluate, report
from tests import browser as browsers
from tests import measured, registered, tiny
from tests.measured import MODELS
from tests.servers import Server


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all of its sections, and with published numbers beside ours."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        measured.make(root, patch)
        shutil.copytree("data/tiny", "data/other")
        evaluate.run(tiny.params(), MODELS, "other")
        for model in MODELS:
            measured.change(model, "other/test", network="ViT-B-16", data_set="docci", images=5100)
        report.run(tiny.params())
    return root / "reports/index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [browsers.DESK, browsers.PHONE], ids=["desk", "phone"])
def test_the_page_fits_and_needs_nothing(index: Path, browser: Browser, size: dict, scheme: str) -> None:
    address = index.as_uri()
    options = {"viewport": size, "color_scheme": scheme, "offline": True}
    with browsers.page(browser, address, **options) as (page, seen):
        page.goto(address)
        browsers.keep(page, f"report-{'desk' if size is browsers.DESK else 'phone'}-{scheme}")
        assert browsers.overflow(page) == 0
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
        assert dark == (scheme == "dark")
        # Every picture of the page is there.
        broken = "[...document.images].filter(one => one.complete && one.naturalWidth === 0).length"
        assert page.evaluate(broken) == 0
        for section in page.locator("nav a").all():
            section.click()
            assert page.locator(section.get_attribute("href")).is_visible()
    assert seen.faults == []
    assert seen.fetched == []


@pytest.mark.parametrize("size", [browsers.DESK, browsers.PHONE], ids=["desk", "phone"])
def test_numbers_stand_beside_their_names_also_where_sources_are_long(
    index: Path, browser: Browser, size: dict
) -> None:
    with browsers.page(browser, index.as_uri(), viewport=size) as (page, _):
        page.goto(index.as_uri())
        table = page.locator("#benchmarks table").first
        published = table.locator("tr.published")
        expect(published.filter(has_text="GOAL project page")).to_have_count(4)
        for row in (table.locator("tbody tr").first, published.first):
            name, number = (row.locator("td").nth(place).bounding_box() for place in (0, 1))
            assert name["x"] + name["width"] <= number["x"] + 1
            assert number["x"] + number["width"] <= size["width"]
        # The name stays while the last number is looked at.
        last = published.first.locator("td").last
        last.scroll_into_view_if_needed()
        assert published.first.locator("td").first.bounding_box()["x"] >= 0
        assert 0 < last.bounding_box()["x"] < size["width"]


@pytest.mark.parametrize("size", [browsers.DESK, browsers.PHONE], ids=["desk", "phone"])
def test_the_words_of_a_figure_can_be_read(index: Path, browser: Browser, size: dict) -> None:
    """As tall as on a desk: a figure is not scaled to the phone but scrolls."""
    with browsers.page(browser, index.as_uri(), viewport=size) as (page, _):
        page.goto(index.as_uri())
        # Points of the figure to pixels of the page; its words are 10 points.
        scales = page.evaluate(
            "[...document.querySelectorAll('.chart svg')]"
            ".map(one => one.getBoundingClientRect().width / one.viewBox.baseVal.width)"
        )
        assert len(scales) > 5
        assert min(scales) * 10 >= 12


@pytest.mark.slow
def test_a_model_s_link_leads_to_its_run_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Browser
) -> None:
    registered.make(tmp_path, monkeypatch)
    values = registered.params("any").model_dump(by_alias=True, mode="json")
    # Its pairs are none.
    values["report"]["gallery"] = 0
    Path("params.yaml").write_text(yaml.safe_dump(values))
    server = Server(tmp_path)
    server.start()
    try:
        address = f"http://127.0.0.1:{server.port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        for seed, model in enumerate(("stage2", "global")):
            registered.train(seed, model)
        environment = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
        subprocess.run([sys.executable, "-m", "goal", "report"], check=True, env=environment)
        index = (tmp_path / "reports/index.html").as_uri()
        with browsers.page(browser, address, viewport=browsers.DESK) as (page, _):
            page.goto(index)
            row = page.locator("#origin tr").filter(has_text=weights.digest("models/global"))
            row.get_by_text("runs").click()
            expect(page.get_by_text("1 matching run")).to_be_visible()
            expect(page.get_by_text("global", exact=True).first).to_be_visible()
            assert page.url.startswith(address)
            browsers.keep(page, "report-to-mlflow")
    finally:
        server.stop()
