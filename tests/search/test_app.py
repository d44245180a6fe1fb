"""The page of `goal app` in a real browser: its own server, chromium, drawn scenes, the embedded network."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from goal import clip, config, weights
from goal.config import Params
from goal.datasets import images, manifest, scenes
from goal.evaluation import grounding
from goal.search import index
from goal.search.captions import Captions
from goal.search.query import Search
from tests import browser as browsers
from tests import tiny

PICTURES = 24
ODD = b'two\nlines "<b>\xff.png'
HOSTILE = '<script>alert(1)</script> {{ 7 * 7 }} ${7 * 7} & "quoted".'
TAIL = " And one sentence more." * 60


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Drawn scenes with their captions, indexed by the embedded network."""
    root = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("DVC_ROOT", raising=False)
        params = config.load(tiny.ROOT / "params.yaml")
        folder = Path("data/scenes")
        (folder / "images").mkdir(parents=True)
        drawn = [
            scenes.draw(params, folder, scenes.SceneKey("test", number, False)) for number in range(PICTURES)
        ]
        *known, odd = (row for tables in drawn for row in tables["test"])
        manifest.write(known, folder / "test.parquet")
        shutil.copy(odd.image, "odd.png")
        os.rename(odd.image, os.fsencode(folder / "images") + b"/" + ODD)
        weights.save(clip.load("scenes-vit/embedded"), Path("models/stage2"))
        index.run(params, folder / "images", Path("work/index"), Path("models/stage2"), "stage2")
        Path("params.yaml").write_text((tiny.ROOT / "params.yaml").read_text())
        yield root


@pytest.fixture(scope="module")
def params(project: Path) -> Params:
    return config.load()


@pytest.fixture(scope="module")
def search(project: Path, params: Params) -> Search:
    return Search(params, Path("work/index"), Path("models/stage2"), "stage2")


@pytest.fixture(scope="module")
def caption(project: Path) -> str:
    return manifest.read(Path("data/scenes/test.parquet"))[7].captions[0]


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[tuple[str, psutil.Process]]:
    """`goal app` as a user starts it: its address and process."""
    temporary = project / "temporary"
    temporary.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(tiny.ROOT),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "goal", "app"], stderr=subprocess.PIPE, text=True, env=environment
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("open http"):
            break
    else:
        pytest.fail(f"the page did not start: {''.join(said)}")
    yield line.split()[1], psutil.Process(process.pid)
    process.terminate()
    process.wait()
    assert list(temporary.iterdir()) == [], "what was uploaded is gone"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.chromium() as found:
        yield found


def ask(page: Page, words: str) -> None:
    page.locator("#words textarea").fill(words)
    page.locator("#search").click()


@pytest.mark.parametrize(
    ("size", "scheme"),
    [(browsers.DESK, "light"), (browsers.PHONE, "dark")],
    ids=["desk, light", "phone, dark"],
)
def test_a_long_text_finds_pictures_and_each_sentence_its_place(
    server: tuple,
    browser: Browser,
    search: Search,
    caption: str,
    size: dict,
    scheme: str,
) -> None:
    address, _ = server
    words = f"{caption} {HOSTILE}{TAIL}"
    with browsers.page(browser, address, viewport=size, color_scheme=scheme) as (page, seen):
        page.goto(address)
        ask(page, words)
        pictures = page.locator("#pictures .thumbnail-item")
        expect(pictures).to_have_count(12)
        hits = search.by_text(words, 12)
        expect(pictures).to_have_text([f"{hit.score:.3f}" for hit in hits])
        reading = search.reading(words)
        expect(page.locator("#reading")).to_contain_text(
            f"{reading.tokens} tokens, the model reads {search.network.spec.context_length}."
        )
        expect(page.locator("#reading mark")).to_have_text(reading.rest)
        browsers.keep(page, f"app-found-{scheme}")
        for picture in pictures.all():
            box = picture.bounding_box()
            assert 0 <= box["x"] < box["x"] + box["width"] <= size["width"]

        pictures.nth(1).locator("img").click()
        panel = page.locator("#grounded")
        expect(panel.locator("h3")).to_have_text(os.fsdecode(hits[1].path))
        found = grounding.ground(search.network, images.open_image(os.fsdecode(hits[1].path), 200), words)
        told = [
            (sentence.text, f"{score:.2f}")
            for sentence, score in zip(found.sentences, found.scores.tolist(), strict=True)
            if score == score
        ]
        assert any("<script>" in sentence for sentence, _ in told)
        side = search.network.spec.image_size
        expect(panel.locator("figcaption")).to_have_text(
            [
                f"What the model sees, drawn sharp: it reads {side} x {side} pixels",
                *(s + text for text, s in told),
            ]
        )
        expect(panel.locator("svg image.heat")).to_have_count(len(told))
        unread = len(found.sentences) - len(told)
        expect(panel).to_contain_text(f"Beyond the context, not read: {unread} sentences.")
        browsers.keep(page, f"app-grounded-{scheme}")
        assert browsers.overflow(page) == 0
    assert seen.faults == []
    assert seen.fetched == []


def test_a_dropped_picture_finds_pictures_and_captions(
    server: tuple, browser: Browser, project: Path
) -> None:
    address, _ = server
    rows = manifest.read(Path("data/scenes/test.parquet"))
    with browsers.page(browser, address, viewport=browsers.DESK) as (page, seen):
        page.goto(address)
        page.locator("#dropped input[type=file]").set_input_files(rows[3].image)
        captions = page.locator("#captions li")
        expect(captions).to_have_count(5)
        # The picture itself is the nearest; a gallery shows no names.
        expect(page.locator("#pictures .thumbnail-item").first).to_have_text("1.000")
        shown = [text[len("0.000") :] for text in captions.all_inner_texts()]
        assert {text.strip() for text in shown} <= {row.captions[0] for row in rows}
        browsers.keep(page, "app-dropped")
    assert seen.faults == []


def test_the_captions_are_read_by_the_network_that_is_there(params: Params, project: Path) -> None:
    """No second copy of it: its file may even be gone."""
    shutil.copytree("models/stage2", "models/moving")
    search = Search(params, Path("work/index"), Path("models/moving"), "stage2")
    shutil.rmtree("models/moving")
    row = manifest.read(Path("data/scenes/test.parquet"))[3]
    vector = search.of_picture(images.open_image(row.image, 200))
    found = Captions(params, search).nearest(vector, 5)
    told = {text: float(search.of_text(text) @ vector.T) for text in (one.text for one in found)}
    assert {one.text: one.score for one in found} == pytest.approx(told, abs=1e-5)


def test_a_picture_of_an_odd_name(server: tuple, browser: Browser, project: Path) -> None:
    address, _ = server
    with browsers.page(browser, address, viewport=browsers.DESK) as (page, seen):
        page.goto(address)
        page.locator("#words textarea").fill("A red circle.")
        page.locator("#dropped input[type=file]").set_input_files(project / "odd.png")
        first = page.locator("#pictures .thumbnail-item").first
        expect(first).to_have_text("1.000")
        first.locator("img").click()
        name = f'{project}/data/scenes/images/two\\nlines "<b>\\xff.png'
        expect(page.locator("#grounded h3")).to_have_text(name)
    assert seen.faults == []


def test_ten_thousand_words(server: tuple, browser: Browser, search: Search) -> None:
    address, _ = server
    words = "A green square lies left of it. " * 1430
    with browsers.page(browser, address, viewport=browsers.PHONE) as (page, seen):
        page.goto(address)
        ask(page, words)
        pictures = page.locator("#pictures .thumbnail-item")
        expect(pictures).to_have_text([f"{hit.score:.3f}" for hit in search.by_text(words, 12)])
        expect(page.locator("#reading")).to_contain_text(
            f"{search.reading(words).tokens} tokens, the model reads"
        )
        pictures.first.locator("img").click()
        expect(page.locator("#grounded")).to_contain_text("Beyond the context, not read:")
        browsers.keep(page, "app-ten-thousand-words")
        assert browsers.overflow(page) == 0
    assert seen.faults == []


@pytest.mark.parametrize("megabytes", [21, 500])
def test_a_large_file_is_refused_in_words(
    server: tuple, browser: Browser, project: Path, tmp_path: Path, megabytes: int
) -> None:
    address, _ = server
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(megabytes * 2**20)
    with browsers.page(browser, address, viewport=browsers.DESK) as (page, _):
        page.goto(address)
        page.locator("#dropped input[type=file]").set_input_files(tmp_path / "large.jpg")
        words = 'File(s) exceed the maximum allowed size of 20.0 Mb: "large.jpg"'
        expect(page.get_by_text(words)).to_be_visible()
        # The page takes another one.
        page.locator("#dropped input[type=file]").set_input_files(project / "odd.png")
        expect(page.locator("#pictures .thumbnail-item")).to_have_count(12)


def test_what_cannot_be_done_is_said(server: tuple, browser: Browser, tmp_path: Path) -> None:
    address, _ = server
    (tmp_path / "archive.jpg").write_bytes(b"PK\x03\x04" + bytes(1000))
    with browsers.page(browser, address, viewport=browsers.DESK) as (page, _):
        page.goto(address)
        ask(page, "   ")
        expect(page.get_by_text("the text is empty; describe a picture")).to_be_visible()
        page.locator("#dropped input[type=file]").set_input_files(tmp_path / "archive.jpg")
        expect(page.get_by_text("archive.jpg: not a picture")).to_be_visible()


def test_it_listens_on_loopback_alone(server: tuple) -> None:
    _, process = server
    listening = [one.laddr.ip for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


@pytest.mark.parametrize("megabytes", [21, 500])
def test_it_takes_no_large_file(server: tuple, megabytes: int) -> None:
    address, process = server
    before = process.memory_info().rss

    def body() -> Iterator[bytes]:
        yield b'--cut\r\nContent-Disposition: form-data; name="files"; filename="large.jpg"\r\n\r\n'
        for _ in range(megabytes):
            yield bytes(2**20)
        yield b"\r\n--cut--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=cut"}
    try:
        answer = requests.post(f"{address}gradio_api/upload", data=body(), headers=kind, timeout=60)
    except requests.ConnectionError:
        # It hangs up before all of it was sent.
        pass
    else:
        assert answer.status_code == 413
        assert "maximum allowed size" in answer.text
    assert process.memory_info().rss - before < 100 * 2**20
    assert requests.get(address, timeout=60).ok
