"""Verbs that search a folder of pictures: index, search, app."""

import logging
import os
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goal import config
from goal.cli.extras import needed
from goal.cli.models import MODEL, REGISTERED
from goal.errors import UserError

if TYPE_CHECKING:
    from goal.search.query import Search

PLACE = Path("work/index")
PAGE = Path("work/search.html")
Index = Annotated[Path, typer.Option(help="the index's folder")]
IndexModel = Annotated[str, typer.Option(help=f"{MODEL}; default: the one of the index")]


def index(
    folder: Annotated[Path, typer.Argument(help="a folder of pictures, with its subfolders")],
    index: Index = PLACE,
    model: Annotated[str, typer.Option(help=REGISTERED)] = "",
) -> None:
    """Embed a folder of pictures for `goal search`; run again, it embeds only new and changed ones."""
    params = config.load()
    from goal.cli import named

    _quieten()
    with needed("search"):
        from goal.search import index as indexing

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    model = model or params.register_.model
    indexing.run(params, folder, index, named.find(model), model)


def search(
    text: Annotated[str, typer.Argument(help="a text of any length")] = "",
    image: Annotated[Path | None, typer.Option(help="a picture, instead of a text")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="pictures to print")] = 10,
    show: Annotated[
        bool, typer.Option("--show", help="also write a page with the pictures, and open it in the browser")
    ] = False,
    index: Index = PLACE,
    model: IndexModel = "",
) -> None:
    """Print the pictures nearest to a text or a picture, with their cosines."""
    params = config.load()
    if bool(text.strip()) == (image is not None):
        raise UserError("give a text, or a picture with --image")
    from goal.datasets import images
    from goal.search import store

    most = params.data.max_megapixels
    engine = _search(params, index, model)
    if image is not None:
        hits = engine.by_picture(images.open_image(image, most), count)
    else:
        reading = engine.reading(text)
        if reading.read < reading.tokens:
            read = f"of which {reading.read} are read: up to {reading.head[-40:]!r}"
            typer.echo(f"{reading.tokens} tokens, {read}", err=True)
        hits = engine.by_text(text, count)
    for hit in hits:
        typer.echo(f"{hit.score:.3f}  {store.shown(hit.path)}")
    if show:
        from goal.search import answer

        asked = answer.text(reading) if image is None else answer.picture(image, most)
        answer.write(PAGE, asked, hits, most)
        opened = webbrowser.open(PAGE.resolve().as_uri())
        typer.echo(f"{PAGE}{'' if opened else ': open it in a browser'}", err=True)


def app(
    index: Index = PLACE,
    model: IndexModel = "",
    port: Annotated[int, typer.Option(help="on 127.0.0.1; 0: a free one")] = 0,
) -> None:
    """Open a page to search with long texts, and to see which sentence matches which region."""
    params = config.load()
    _quieten()
    # Uploaded files are deleted however the page ends.
    with tempfile.TemporaryDirectory(prefix="goal-app-") as folder:
        # gradio reads these when it is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        with needed("search"):
            from goal.search import app as page

        page.serve(params, _search(params, index, model), port)


def _quieten() -> None:
    """Silence libraries that log every file they load and every request they make."""
    for name in ("faiss", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _search(params: config.Params, index: Path, model: str) -> "Search":
    from goal.cli import named
    from goal.config import paths
    from goal.search import store

    _quieten()
    with needed("search"):
        from goal.search.query import Search

    card = store.opened(index).card
    name = model or card.model
    kept = paths.registered_dir(card.digest) / paths.WEIGHTS
    # An alias may name another version by now; an index needs the model that made it.
    path = kept if not model and kept.exists() else named.find(name)
    return Search(params, index, path, name)
