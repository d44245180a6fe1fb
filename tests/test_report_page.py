"""The report in a real browser, opened from its file: light and dark, desk and phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from goal import evaluate, pairs, report
from goal.regions import stage
from tests import browser as browsers
from tests import tiny

MODELS = ("zero-shot", "stage2", "global")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all of its sections."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        tiny.make(root, patch, MODELS)
        rows = Path("data/tiny/test.parquet").read_bytes()
        Path("data/tiny/train.parquet").write_bytes(rows)
        stage.run(tiny.params())
        pairs.run(tiny.params())
        evaluate.run_many(tiny.params(), MODELS)
        for model in MODELS[1:]:
            Path(f"metrics/{model}/loss.csv").write_text("step,lr,global,total\n10,0.1,2.5,3.5\n20,0,1.5,2\n")
        report.run(tiny.params())
    return root / "reports/index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [browsers.DESK, browsers.PHONE], ids=["desk", "phone"])
def test_the_page_fits_and_needs_nothing(
    index: Path, browser: Browser, size: dict, scheme: str, tmp_path: Path
) -> None:
    address = index.as_uri()
    options = {"viewport": size, "color_scheme": scheme, "offline": True}
    with browsers.page(browser, address, **options) as (page, seen):
        page.goto(address)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
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
