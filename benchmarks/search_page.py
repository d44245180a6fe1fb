"""The page of `goal app` over 10,000 pictures: seconds from the click on Search to the first picture shown.

    python -m benchmarks.search_page

Pictures: 10,000 names of 100 JPEG files, 1024 x 768. Model: ViT-B-16 with random weights, context 248; the
index holds random vectors, since what an answer costs does not depend on what it says. The text has 220
words; the browser is chromium, headless.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from goal import weights
from goal.model.architectures import spec_of
from goal.model.network import GoalClip
from goal.search import store
from goal.search.store import Card, Entry, Stamp

ROOT = Path(__file__).parents[1]
PICTURES, FILES = 10_000, 100
WORDS = "A brown dog lies on the grass beside a red ball. " * 20


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copy(ROOT / "params.yaml", root)
        make(root)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "goal", "app", "--model", "model"]
        start = time.perf_counter()
        page = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            address = next(line.split()[1] for line in page.stderr if line.startswith("open http"))
            print(f"start of the page: {time.perf_counter() - start:.1f} s")
            first, *others = asked(address)
            print(f"first result: {first:.2f} s; later ones, median of {len(others)}: ", end="")
            print(f"{statistics.median(others):.2f} s")
        finally:
            page.terminate()
            page.wait()


def make(root: Path) -> None:
    """Model, pictures and index."""
    draw = np.random.default_rng(0)
    torch.manual_seed(0)
    model = GoalClip(replace(spec_of("ViT-B-16"), context_length=248))
    weights.save(model, root / "model")
    (root / "photos").mkdir()
    for number in range(FILES):
        small = Image.fromarray(draw.integers(0, 255, (24, 32, 3), np.uint8))
        small.resize((1024, 768), Image.Resampling.BICUBIC).save(root / f"photos/{number}.jpg", quality=90)
    for number in range(FILES, PICTURES):
        os.link(root / f"photos/{number % FILES}.jpg", root / f"photos/{number}.jpg")
    vectors = draw.standard_normal((PICTURES, 512), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    card = Card(str(root / "photos"), "model", weights.digest(root / "model"), "ViT-B-16", 512)
    names = (f"{number}.jpg".encode() for number in range(PICTURES))
    entries = [Entry(name, Stamp(1, 1), vector) for name, vector in zip(names, vectors, strict=True)]
    store.create(root / "work/index", card).change(entries, [])


def asked(address: str, times: int = 6) -> list[float]:
    """Seconds of each request."""
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"], timeout=60_000
        )
        for number in range(times):
            # A fresh page each time: what is shown is what was asked for.
            page = browser.new_page()
            page.goto(address)
            page.locator("#words textarea").fill(f"{number}. {WORDS}")
            start = time.perf_counter()
            page.locator("#search").click()
            page.locator("#pictures img").first.wait_for()
            found.append(time.perf_counter() - start)
            page.close()
        browser.close()
    return found


if __name__ == "__main__":
    main()
