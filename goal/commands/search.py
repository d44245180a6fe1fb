"""Verbs for search over one's own pictures: index, search, app."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goal import config
from goal.commands.extras import needed
from goal.commands.models import MODEL
from goal.errors import UserError

if TYPE_CHECKING:
    from goal.search.query import Search

PLACE = Path("work/index")
Index = Annotated[Path, typer.Option(help="the index's folder")]
IndexModel = Annotated[str, typer.Option(help=f"{MODEL}; default: the one that the index names")]


def index(
    folder: Annotated[Path, typer.Argument(help="a folder of pictures, read with all below it")],
    index: Index = PLACE,
    model: Annotated[str, typer.Option(help=MODEL)] = "stage2",
) -> None:
    """Embed a folder of pictures for `goal search`; again, only what is new or changed."""
    params = config.load()
    from goal.commands import named

    _quieten()
    with needed("search"):
        from goal.search import index as indexing

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    indexing.run(params, folder, index, named.find(model), model)


def search(
    text: Annotated[str, typer.Argument(help="a text of any length")] = "",
    image: Annotated[Path | None, typer.Option(help="a picture, instead of a text")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="pictures to print")] = 10,
    index: Index = PLACE,
    model: IndexModel = "",
) -> None:
    """Print the pictures nearest to a text or a picture, with their cosines."""
    params = config.load()
    if bool(text.strip()) == (image is not None):
        raise UserError("give a text, or a picture with --image")
    from goal import images
    from goal.search import store

    found = _search(params, index, model)
    if image is not None:
        hits = found.by_picture(images.open_image(image, params.data.max_megapixels), count)
    else:
        reading = found.reading(text)
        if reading.read < reading.tokens:
            end = text[: reading.end][-40:]
            typer.echo(f"{reading.tokens} tokens, of which {reading.read} are read: up to {end!r}", err=True)
        hits = found.by_text(text, count)
    for hit in hits:
        typer.echo(f"{hit.score:.3f}  {store.shown(hit.path)}")


def app(
    index: Index = PLACE,
    model: IndexModel = "",
    port: Annotated[int, typer.Option(help="on 127.0.0.1; 0: a free one")] = 0,
) -> None:
    """Open a page to search with long texts, and to see which sentence matches which region."""
    params = config.load()
    _quieten()
    # Read when gradio is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with needed("search"):
        from goal.search import app as page

    page.serve(params, _search(params, index, model), port)


def _quieten() -> None:
    """Libraries that tell of every file they load and every request they make."""
    for name in ("faiss", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _search(params: config.Params, index: Path, model: str) -> "Search":
    from goal import layout, weights
    from goal.commands import named
    from goal.search import store

    _quieten()
    with needed("search"):
        from goal.search.query import Search

    card = store.opened(index).card
    name = model or card.model
    kept = layout.registered_dir(card.digest) / weights.FILE
    # The champion may be another one by now; the index goes with the one that made it.
    path = kept if not model and kept.exists() else named.find(name)
    return Search(params, index, path, name)
