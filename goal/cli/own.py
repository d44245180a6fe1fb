"""The verbs that begin with a user's own data: `goal look` shows what they hold, `goal use` sets them up."""

from pathlib import Path
from typing import Annotated, Any

import typer

Image = Annotated[str, typer.Option("--image-column", help="The column of the pictures.")]
Caption = Annotated[
    list[str] | None,
    typer.Option("--caption-column", help="The column of the long captions; several: give it again."),
]
Short = Annotated[
    list[str] | None, typer.Option("--short-column", help="A column of short captions; several as well.")
]
Separator = Annotated[
    str, typer.Option("--separator", help=r"What stands between the cells of a table; \t is a tab.")
]
Images = Annotated[
    Path | None, typer.Option("--images", help="Where the pictures lie, if not beside the captions.")
]


def use(
    preset: Annotated[str, typer.Argument(help="its name; in your folder presets/ you can add some")],
    path: Annotated[
        Path | None, typer.Option(help="Your data, of any shape of docs/data.md: becomes data.path.")
    ] = None,
    images: Images = None,
    image_column: Image = "",
    caption_column: Caption = None,
    short_column: Short = None,
    separator: Separator = "",
) -> None:
    """Write params.yaml from a preset, comments included; keeps your data, register and tracking settings."""
    from goal import config
    from goal.config import drawn, presets

    kept = presets.use(preset, path, data(images, image_column, caption_column, short_column, separator))
    typer.echo(f"params.yaml is now {preset}; next: goal check, then dvc repro")
    params = config.load()
    if drawn.unfit(params.model.name, params.data.source):
        typer.echo(f"note: {drawn.ADVICE}")
    for field, value in kept.items():
        typer.echo(f"kept, as you set it: {field}: {value}")


def look(
    path: Annotated[Path, typer.Argument(help="Your data, of any shape of docs/data.md.")],
    images: Images = None,
    image_column: Image = "",
    caption_column: Caption = None,
    short_column: Short = None,
    separator: Separator = "",
) -> None:
    """Show what a data set holds, and what of it would be rejected; writes nothing."""
    from goal.config import presets
    from goal.datasets import look

    given = data(images, image_column, caption_column, short_column, separator)
    given["path"] = str(path.expanduser())
    for line in look.lines(presets.load("own-data", {"data": given})):
        typer.echo(line)


def data(
    images: Path | None, image: str, captions: list[str] | None, short: list[str] | None, separator: str
) -> dict[str, Any]:
    """The values of the section `data` that the options give."""
    folder = {
        "image_column": image,
        "caption_column": _one_or_more(captions),
        "short_column": _one_or_more(short),
        "separator": separator.replace("\\t", "\t"),
    }
    folder = {name: value for name, value in folder.items() if value}
    found = {"images": images and str(images.expanduser().absolute()), "folder": folder}
    return {name: value for name, value in found.items() if value}


def _one_or_more(names: list[str] | None) -> str | list[str]:
    return names[0] if names and len(names) == 1 else names or ""
