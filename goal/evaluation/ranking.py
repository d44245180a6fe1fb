"""Rank a benchmark's gallery for every picture and every text: one row of results per query."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from goal import metrics, text
from goal.evaluation.embed import EmbeddingTable
from goal.evaluation.galleries import Gallery
from goal.evaluation.query_metrics import AVERAGE_PRECISION, CORRECT, JOINT_K, QUERY, RANK

# The galleries that have two halves of equal length, and what each half holds.
PARTS = {"twins": ("picture", "twin"), "joint": ("whole", "crop")}


def measure(gallery: Gallery, embeddings: EmbeddingTable, chunk: int) -> pa.Table:
    """Query with every picture and every text of a gallery: the columns of QUERY and the result."""
    outcome = {"twins": _twins, "joint": _joint}.get(gallery.benchmark, _ranks)
    field, values = outcome(gallery, embeddings, chunk)
    rows = pa.Table.from_pylist(list(_queries(gallery, embeddings)), QUERY)
    return rows.append_column(field, pa.array(values, field.type))


def _ranks(gallery: Gallery, embeddings: EmbeddingTable, chunk: int) -> tuple[pa.Field, np.ndarray]:
    found = metrics.ranks(
        embeddings.of_pictures(gallery.pictures),
        embeddings.of_texts(gallery.texts),
        torch.tensor(gallery.text_to_picture),
        chunk,
    )
    # A picture without a text is in the gallery but is no query.
    asked = found.image_to_text[found.image_to_text > 0]
    return RANK, torch.cat([asked, found.text_to_image]).numpy()


def _joint(gallery: Gallery, embeddings: EmbeddingTable, chunk: int) -> tuple[pa.Field, np.ndarray]:
    """The caption and the crop's sentence are relevant to a picture, and the same two to its crop."""
    count = len(gallery.pictures)
    relevant = [[number, (number + count // 2) % count] for number in range(count)]
    image, texts = embeddings.of_pictures(gallery.pictures), embeddings.of_texts(gallery.texts)
    found = [
        metrics.average_precision_at_k(query, items, relevant, JOINT_K, chunk)
        for query, items in ((image, texts), (texts, image))
    ]
    return AVERAGE_PRECISION, torch.cat(found).numpy()


def _twins(gallery: Gallery, embeddings: EmbeddingTable, chunk: int) -> tuple[pa.Field, np.ndarray]:
    image, twin = embeddings.of_pictures(gallery.pictures).chunk(2)
    own, other = embeddings.of_texts(gallery.texts).chunk(2)
    found = metrics.twins(image, own, twin, other)
    return CORRECT, torch.cat([found.image_to_text.T.flatten(), found.text_to_image.T.flatten()]).numpy()


def _queries(gallery: Gallery, embeddings: EmbeddingTable) -> Iterator[dict[str, object]]:
    """The columns of QUERY for all pictures that have a text, then for all texts."""
    tokens = embeddings.lengths(gallery.texts)
    sentences = [len(text.split_sentences(one)) for one in gallery.texts]
    texts_of: list[list[int]] = [[] for _ in gallery.pictures]
    for number, picture in enumerate(gallery.text_to_picture):
        texts_of[picture].append(number)
    parts, half = PARTS.get(gallery.benchmark), len(gallery.pictures) // 2

    def query(direction: str, picture: int, caption: int, number: int) -> dict[str, object]:
        """number: of the text whose length counts."""
        return {
            "direction": direction,
            "id": gallery.ids[picture],
            "part": parts[picture // half] if parts else "",
            "caption": caption,
            "tokens": tokens[number],
            "sentences": sentences[number],
            "attribute": gallery.attributes[picture % half] if gallery.attributes else "",
        }

    for picture, texts in enumerate(texts_of):
        if texts:
            yield query("image_to_text", picture, -1, max(texts, key=tokens.__getitem__))
    for number, picture in enumerate(gallery.text_to_picture):
        yield query("text_to_image", picture, number - texts_of[picture][0], number)
