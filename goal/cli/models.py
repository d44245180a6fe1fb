"""Verbs that use a trained model: embed, export."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from goal import config
from goal.cli.extras import needed

# The names that `goal.cli.named` accepts.
MODEL = "champion or challenger of the registry, a model of the pipeline, or a path"
REGISTERED = f"{MODEL}; default: register.model of params.yaml"


class Library(StrEnum):
    """Libraries that `goal export` writes for."""

    open_clip = "open_clip"
    transformers = "transformers"
    onnx = "onnx"


def embed(
    output: Annotated[Path, typer.Argument(help="a .parquet file: input, kind, embedding")],
    model: Annotated[str, typer.Option(help=REGISTERED)] = "",
    image: Annotated[list[Path] | None, typer.Option(help="a picture, or a folder of pictures")] = None,
    text: Annotated[list[str] | None, typer.Option(help="a text of any length")] = None,
) -> None:
    """Embed pictures and texts with a model; rows are L2-normalised, so that dot products are cosines."""
    params = config.load()
    from goal.cli import named
    from goal.exports import predict

    predict.run(params, named.find(model or params.register_.model), image or [], text or [], output)


def export(
    model: Annotated[str, typer.Argument(help=MODEL)],
    folder: Annotated[Path, typer.Argument(help="a new or empty folder")],
    library: Annotated[
        Library, typer.Option("--for", help="the library to load it with")
    ] = Library.open_clip,
) -> None:
    """Write a model for open_clip, Hugging Face transformers or ONNX, with a model card."""
    from goal import exports
    from goal.cli import named

    if library is Library.onnx:
        with needed("export"):
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    exports.run(named.find(model), folder, library.value)
