"""Per-query results of a benchmark, one row per query, and the metrics: their means.

Letters: Q queries, K metrics.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from goal import metrics, text
from goal.evaluation import statistics
from goal.evaluation.embed import Embeddings
from goal.evaluation.galleries import DIRECTIONS, Gallery

JOINT_K = 10
# The galleries that have two halves of equal length, and what each half holds.
PARTS = {"twins": ("picture", "twin"), "joint": ("whole", "crop")}
# Upper ends, in tokens with BOS and EOS: OpenAI's context, twice that, the stretched context.
TOKEN_BINS = (77, 154, 248)
SENTENCE_BINS = (1, 3, 5, 8, 12)
# One row per query. id: the test picture; part: see PARTS; caption: number of the text among its picture's
# texts, -1 for a picture; tokens, sentences: of the text, for a picture of its longest text; attribute: what
# differs between the twins.
QUERY = pa.schema(
    [
        ("direction", pa.string()),
        ("id", pa.string()),
        ("part", pa.string()),
        ("caption", pa.int32()),
        ("tokens", pa.int32()),
        ("sentences", pa.int32()),
        ("attribute", pa.string()),
    ]
)
# The columns that identify a query, to pair the rows of two models.
KEY = ("direction", "id", "part", "caption")
# The result of a query: each benchmark has one of these columns.
RANK = pa.field("rank", pa.int32())
AVERAGE_PRECISION = pa.field("average_precision", pa.float64())
CORRECT = pa.field("correct", pa.bool_())


def measure(gallery: Gallery, embeddings: Embeddings, chunk: int) -> pa.Table:
    """Query with every picture and every text of a gallery: the columns of QUERY and the result."""
    outcome = {"twins": _twins, "joint": _joint}.get(gallery.benchmark, _ranks)
    field, values = outcome(gallery, embeddings, chunk)
    rows = pa.Table.from_pylist(list(_queries(gallery, embeddings)), QUERY)
    return rows.append_column(field, pa.array(values, field.type))


def metric_values(rows: pa.Table, ks: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Names of the metrics of these rows, and their values per query (Q, K) in percent."""
    if RANK.name in rows.column_names:
        # A picture without a text has rank 0 (goal.metrics): nothing was found.
        ranks = rows[RANK.name].to_numpy()[:, None]
        return [f"r{k}" for k in ks], 100.0 * ((ranks > 0) & (ranks <= np.array(ks)))
    if AVERAGE_PRECISION.name in rows.column_names:
        return [f"map{JOINT_K}"], 100.0 * rows[AVERAGE_PRECISION.name].to_numpy()[:, None]
    return ["accuracy"], 100.0 * rows[CORRECT.name].to_numpy(zero_copy_only=False)[:, None].astype(float)


def by_direction(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each direction."""
    for direction in DIRECTIONS:
        yield direction, rows.filter(pc.equal(rows["direction"], direction))


def summarise(rows: pa.Table, ks: Sequence[int], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Every metric in both directions: mean and 95 % interval in percent, and the number of queries."""
    summary = {}
    for direction, own in by_direction(rows):
        names, values = metric_values(own, ks)
        found = statistics.intervals(values, own["id"].to_numpy(), resamples, seed)
        for name, interval in zip(names, found, strict=True):
            # Four decimals: in a set of ten thousand, one query changes a metric by 0.01.
            rounded = {key: round(value, 4) for key, value in asdict(interval).items()}
            summary[f"{direction}_{name}"] = rounded | {"queries": len(own)}
    return summary


def breakdowns(
    rows: pa.Table, ks: Sequence[int], resamples: int, seed: int
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The summary of each group of queries: by tokens, by sentences, by twins' attribute and by part."""
    groups = {
        "tokens": [_bin(count, TOKEN_BINS) for count in rows["tokens"].to_pylist()],
        "sentences": [_bin(count, SENTENCE_BINS) for count in rows["sentences"].to_pylist()],
        "attribute": rows["attribute"].to_pylist(),
        "part": rows["part"].to_pylist(),
    }
    return {
        name: {
            key: summarise(rows.filter(pa.array([one == key for one in keys])), ks, resamples, seed)
            for key in sorted(set(keys), key=_order)
        }
        for name, keys in groups.items()
        if any(keys)
    }


def _ranks(gallery: Gallery, embeddings: Embeddings, chunk: int) -> tuple[pa.Field, np.ndarray]:
    found = metrics.ranks(
        embeddings.of_pictures(gallery.pictures),
        embeddings.of_texts(gallery.texts),
        torch.tensor(gallery.text_to_picture),
        chunk,
    )
    return RANK, torch.cat([found.image_to_text, found.text_to_image]).numpy()


def _joint(gallery: Gallery, embeddings: Embeddings, chunk: int) -> tuple[pa.Field, np.ndarray]:
    """The caption and the crop's sentence are relevant to a picture, and the same two to its crop."""
    count = len(gallery.pictures)
    relevant = [[number, (number + count // 2) % count] for number in range(count)]
    image, texts = embeddings.of_pictures(gallery.pictures), embeddings.of_texts(gallery.texts)
    found = [
        metrics.average_precision_at_k(query, items, relevant, JOINT_K, chunk)
        for query, items in ((image, texts), (texts, image))
    ]
    return AVERAGE_PRECISION, torch.cat(found).numpy()


def _twins(gallery: Gallery, embeddings: Embeddings, chunk: int) -> tuple[pa.Field, np.ndarray]:
    image, twin = embeddings.of_pictures(gallery.pictures).chunk(2)
    own, other = embeddings.of_texts(gallery.texts).chunk(2)
    found = metrics.twins(image, own, twin, other)
    return CORRECT, torch.cat([found.image_to_text.T.flatten(), found.text_to_image.T.flatten()]).numpy()


def _queries(gallery: Gallery, embeddings: Embeddings) -> Iterator[dict[str, object]]:
    """The columns of QUERY for all pictures, then for all texts."""
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
        yield query("image_to_text", picture, -1, max(texts, key=tokens.__getitem__))
    for number, picture in enumerate(gallery.text_to_picture):
        yield query("text_to_image", picture, number - texts_of[picture][0], number)


def _bin(count: int, ends: Sequence[int]) -> str:
    place = bisect_left(ends, count)
    if 0 < place < len(ends):
        return f"{ends[place - 1] + 1}-{ends[place]}"
    return f"> {ends[-1]}" if place else f"<= {ends[0]}"


def _order(key: str) -> tuple[bool, list[int], str]:
    """Sort key: bins by their numbers, the open one last; names by the alphabet."""
    return key.startswith(">"), [int(part) for part in key.strip("<=> ").split("-") if part.isdigit()], key
