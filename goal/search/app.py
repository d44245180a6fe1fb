"""The page of `goal app`: pictures for a long text, sentences on a picture, captions for a picture."""

import functools
import html
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from goal.datasets import images
from goal.errors import UserError
from goal.runtime import signals
from goal.search import panel, store
from goal.search.captions import Captions
from goal.search.query import Hit, Search

if TYPE_CHECKING:
    from goal.config import Params

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
MAX_UPLOAD = "20mb"
MAX_CHARACTERS = 200_000
WAITING = 16  # requests
SHOWN = 12  # pictures
CAPTIONS = 5
THUMBNAIL = 384  # pixels
KEPT = 3600  # seconds that a file of the page stays
CSS = """
.gradio-container > main { max-width: 80rem !important; width: 100%; margin: 0 auto; }
#pictures .thumbnail-item { background: var(--background-fill-secondary); }
#pictures .grid-wrap { height: auto !important; max-height: none !important; }
#pictures .grid-container { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
.heading { overflow-wrap: anywhere; }
.hint { color: var(--body-text-color-subdued); }
footer { display: none !important; }
"""


def serve(params: "Params", search: Search, port: int) -> None:
    """Answer on 127.0.0.1 until interrupted; port 0 takes a free one."""
    page = build(params, search)
    try:
        _, address, _ = page.launch(
            server_name=ADDRESS,
            server_port=port or None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            footer_links=[],
            theme=theme(),
            css=CSS,
        )
    except OSError as error:
        raise UserError(f"--port {port}: cannot be had on {ADDRESS}: {error}; leave it out") from error
    with signals.at_once("stopped"):
        log.info("open %s (Ctrl-C ends it)", address)
        page.block_thread()


def theme() -> gr.Theme:
    """Fonts of the reader's machine: the page fetches nothing from elsewhere."""
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    fonts = gr.themes.Default(primary_hue="orange", neutral_hue="slate", font=sans, font_mono=mono)
    # A shade darker than gradio's, which is hard to read on white.
    return fonts.set(body_text_color_subdued="*neutral_500")


def build(params: "Params", search: Search) -> gr.Blocks:
    """The page over an index with its model."""
    handlers = Handlers(params, search)
    card = search.index.card
    with gr.Blocks(title="goal", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        where = html.escape(store.shown(search.index.root))
        about = f"{len(search.index):,} pictures · {html.escape(card.model)}"
        gr.HTML(f"<h2>Search {where}</h2>{about}", elem_classes="heading")
        shown = gr.State([])
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                words = gr.Textbox(
                    label="Describe the picture",
                    placeholder="As long as you like: every sentence is looked for.",
                    lines=7,
                    max_lines=16,
                    max_length=MAX_CHARACTERS,
                    elem_id="words",
                )
                reading = gr.HTML(elem_id="reading")
                button = gr.Button("Search", variant="primary", elem_id="search")
                captioned = f", and captions of {params.data.name} for it" if handlers.captions.texts else ""
                gr.HTML(f"… or drop a picture: pictures like it{captioned}.", elem_classes="hint")
                dropped = gr.File(file_types=["image"], show_label=False, height=120, elem_id="dropped")
            with gr.Column(scale=3, min_width=320):
                gr.HTML("Nearest first, with the cosine; click one to see what is where", elem_classes="hint")
                gallery = gr.Gallery(
                    show_label=False,
                    columns=4,
                    height="auto",
                    object_fit="contain",
                    format="jpeg",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    elem_id="pictures",
                )
                captions = gr.HTML(elem_id="captions")
        grounded = gr.HTML(elem_id="grounded")
        found = [gallery, shown, grounded, captions]
        words.change(
            handlers.reading,
            words,
            reading,
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_limit=None,
            api_visibility="private",
        )
        # All of them one at a time: the model takes all cores.
        alone = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        for asked in (button.click, words.submit):
            asked(handlers.by_text, words, found, show_progress_on=gallery, **alone)
        dropped.upload(handlers.by_picture, dropped, found, show_progress_on=gallery, **alone)
        gallery.select(handlers.grounded, [words, shown], grounded, scroll_to_output=True, **alone)
    return page.queue(max_size=WAITING)


def told(work: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Show the user's faults on the page."""

    @functools.wraps(work)
    def tell(*arguments: Any) -> Iterator[Any]:
        try:
            yield from work(*arguments)
        except UserError as error:
            gr.Warning(html.escape(str(error)), title="Not possible")
            yield gr.skip()

    return tell


class Handlers:
    """What the page does when asked."""

    def __init__(self, params: "Params", search: Search) -> None:
        self._params, self._search = params, search
        self.captions = Captions(params, search)

    def reading(self, words: str) -> str:
        return panel.reading(words, self._search.reading(words), self._search.network.spec.context_length)

    @told
    def by_text(self, words: str) -> Iterator[tuple]:
        yield *self._shown(self._search.by_text(words, SHOWN)), "", ""

    @told
    def by_picture(self, file: str) -> Iterator[tuple]:
        # Its folder is the server's, not the user's.
        image = self._open(os.fsencode(file), os.fsencode(Path(file).name))
        vector, name = self._search.of_picture(image), self._params.data.name
        shown = self._shown(self._search.nearest(vector, SHOWN))
        count = len(self.captions.texts)
        # The first picture waits until all captions are embedded; what is found already need not.
        yield *shown, "", panel.captions([], f"Reading {count:,} captions of {name} …") if count else ""
        if count:
            found = self.captions.nearest(vector, CAPTIONS)
            title = f"Captions of {name} nearest to this picture"
            yield gr.skip(), gr.skip(), gr.skip(), panel.captions(found, title)

    @told
    def grounded(self, words: str, shown: list[bytes], chosen: gr.SelectData) -> Iterator[str]:
        if not words.strip():
            raise UserError("type a text to see which of its sentences is where")
        path = shown[chosen.index]
        yield panel.grounded(self._search.network, self._open(path, path), store.shown(path), words)

    def _shown(self, hits: list[Hit]) -> tuple[list[tuple[Image.Image, str]], list[bytes]]:
        """Small pictures for the gallery, and the files behind them; what vanished since is left out."""
        found, paths = [], []
        for hit in hits:
            try:
                image = self._open(hit.path, hit.path)
            except UserError as error:
                gr.Warning(html.escape(f"left out: {error}"))
                continue
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            found.append((image, f"{hit.score:.3f}"))
            paths.append(hit.path)
        return found, paths

    def _open(self, path: bytes, name: bytes) -> Image.Image:
        """The picture; raises UserError that calls it by `name`, as text that every page can show."""
        try:
            return images.open_image(os.fsdecode(path), self._params.data.max_megapixels)
        except images.ImageError as error:
            raise UserError(f"{store.shown(name)}: {error.reason}") from error
