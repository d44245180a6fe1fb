"""`make pictures`: the pictures of the README, from what `make demo` left behind.

Needs Debian's chromium (`make test-tools`). Each picture is a page photographed by the browser, light and
dark where the page has both.
"""

import contextlib
import html
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from goal import config
from goal.config import paths
from goal.datasets import manifest
from goal.reporting import cards, pictures
from goal.runtime import proxies

OUT = Path(__file__).parent
WIDTH, QUALITY = 1200, 82
SIDE = 330
STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1f2328, #e6edf3); --dim: light-dark(#59636e, #9198a1);
  --ground: light-dark(#ffffff, #0d1117); }
body { margin: 0; background: var(--ground); color: var(--ink); font: 17px/1.5 system-ui, sans-serif; }
main { display: grid; grid-template-columns: 330px 1fr; gap: 32px; padding: 24px; width: 1152px; }
figure { margin: 0; } img { display: block; border-radius: 6px; }
p { margin: 0 0 10px; }
.key { color: #fff; border-radius: 4px; padding: 0 6px; font-weight: 600; margin-right: 4px; }
.dim { color: var(--dim); }
"""


def main() -> None:
    params = config.load()
    for needed in (paths.reports_dir() / "index.html", paths.weights_file(params.register_.model)):
        if not needed.exists():
            sys.exit(f"{needed}: not found; run `make demo` first")
    os.environ |= proxies.bypassing(os.environ)
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("no chromium; `make test-tools` installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page, report = explained(params), (paths.reports_dir() / "index.html").resolve().as_uri()
        for scheme in ("light", "dark"):
            take(browser, f"method-{scheme}", scheme, lambda opened: opened.set_content(page), whole=True)
            take(browser, f"report-{scheme}", scheme, lambda opened: opened.goto(report))
        with searching(params) as address:
            take(browser, "search", "light", lambda opened: asked(opened, address))
        with mlflow() as address:
            take(browser, "mlflow", "light", lambda opened: listed(opened, address))
        browser.close()
    sizes = {file.name: file.stat().st_size for file in sorted(OUT.glob("*.webp"))}
    sys.stdout.write("".join(f"{name}: {size / 1000:.0f} kB\n" for name, size in sizes.items()))


def explained(params: config.Params) -> str:
    """A picture and its caption, sentences and regions in the same colours, as LISM matched them."""
    name, most = params.data.name, params.data.max_megapixels
    shards = sorted(paths.pairs_dir("test").glob("shard-*.parquet"))
    card = max(
        cards.drawn(shards, paths.manifest(name, "test"), 12, most),
        key=lambda card: sum(1 for one in card.sentences if one.number),
    )
    words = [
        f'<span class="key" style="background:{one.colour}">{one.number}</span>'
        f'<span style="border-bottom:3px solid {one.colour}">{html.escape(one.text)}</span>'
        if one.number
        else html.escape(one.text)
        for one in card.sentences
    ]
    return (
        f"<!doctype html><style>{STYLE}</style><main>"
        f'<figure><img width="{SIDE}" height="{SIDE}" src="{pictures.small(card.picture, SIDE)}"></figure>'
        f"<div><p>{' '.join(words)}</p><p class=dim>Which sentence describes which part of the picture, as "
        "the pipeline matched them, without labels. GOAL trains CLIP on such pairs beside whole captions."
        "</p></div></main>"
    )


def take(browser: Browser, name: str, scheme: str, go: Callable[[Page], object], whole: bool = False) -> None:
    """Photograph a page as WebP; whole: all of it, else what a window shows."""
    context = browser.new_context(viewport={"width": WIDTH, "height": 760}, color_scheme=scheme)
    context.set_default_timeout(120_000)
    page = context.new_page()
    go(page)
    data = page.locator("main").screenshot() if whole else page.screenshot()
    Image.open(BytesIO(data)).convert("RGB").save(OUT / f"{name}.webp", quality=QUALITY, method=6)
    context.close()


def asked(page: Page, address: str) -> None:
    """The search page with the answer to a long text."""
    page.goto(address)
    rows = manifest.read(paths.manifest(config.load().data.name, "test"))
    page.get_by_role("textbox").first.fill(rows[0].captions[0])
    page.get_by_role("button", name="Search").first.click()
    page.locator("img").nth(3).wait_for()


def listed(page: Page, address: str) -> None:
    """MLflow's list of runs, without its welcome."""
    wanted = f"get-by-name?experiment_name={config.load().tracking.experiment}"
    with urllib.request.urlopen(f"{address}/api/2.0/mlflow/experiments/{wanted}") as found:
        number = json.load(found)["experiment"]["experiment_id"]
    page.goto(f"{address}/#/experiments/{number}/runs?workflowType=machine_learning")
    page.get_by_text("balanced").first.wait_for()


@contextlib.contextmanager
def searching(params: config.Params) -> Iterator[str]:
    """`goal app` over the test pictures, on a free port."""
    index, number = Path("work/pictures-index"), port()
    folder = paths.data_dir(params.data.name) / "images"
    model = params.register_.model
    own = ["--index", str(index), "--model", model]
    subprocess.run([sys.executable, "-m", "goal", "index", str(folder), *own], check=True)
    words = ["app", *own, "--port", str(number)]
    with serving([sys.executable, "-m", "goal", *words], f"http://127.0.0.1:{number}"):
        yield f"http://127.0.0.1:{number}"


@contextlib.contextmanager
def mlflow() -> Iterator[str]:
    """MLflow's own page over this project's store, on a free port."""
    number = port()
    words = ["-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", "sqlite:///mlflow.db"]
    command = [sys.executable, *words, "--host", "127.0.0.1", "--port", str(number)]
    with serving(command, f"http://127.0.0.1:{number}"):
        yield f"http://127.0.0.1:{number}"


@contextlib.contextmanager
def serving(command: list[str], address: str) -> Iterator[None]:
    """A server while it is needed; RuntimeError where it does not answer within two minutes."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(240):
                with contextlib.suppress(OSError), urllib.request.urlopen(address):
                    break
                time.sleep(0.5)
            else:
                raise RuntimeError(f"{command}: does not answer")
            yield
        finally:
            process.terminate()


def port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    main()
