"""The pictures of a shard, or why one cannot be read."""

from pathlib import Path

from PIL import Image

from goal.datasets.images import ImageError, open_image
from goal.datasets.manifest import Row


def picture(row: Row, root: Path, max_megapixels: float) -> Image.Image | ImageError:
    """The picture of a row, RGB in the image frame, or why there is none; `root` is the project's folder."""
    try:
        image = open_image(root / row.image, max_megapixels)
    except ImageError as error:
        return error
    if image.size != (row.width, row.height):
        width, height = image.size
        return ImageError(row.image, f"not of the manifest's size ({width} x {height} pixels)")
    return image


def kind(error: ImageError) -> str:
    """Why a picture cannot be read, without the details that differ from one to the next: to be counted."""
    return error.reason.partition(" (")[0].partition(":")[0]
