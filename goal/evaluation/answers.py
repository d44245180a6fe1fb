"""How every query of a benchmark was answered, one row a query, and the metrics that follow from these rows.

Letters: Q queries, K metrics.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from goal import metrics, text
from goal.evaluation import statistics
from goal.evaluation.embed import EmbeddingTable
from goal.evaluation.galleries import DIRECTIONS, Gallery

JOINT_K = 10
# The two halves of a gallery that pairs each test picture with another one.
PARTS = {"twins": ("picture", "twin"), "joint": ("whole", "crop")}
# Upper ends, in tokens with BOS and EOS: OpenAI's context, twice that, the stretched context.
TOKEN_BINS = (77, 154, 248)
SENTENCE_BINS = (1, 3, 5, 8, 12)
# One row a query. id: the test picture; part: whole, crop, picture or twin; caption: number of the text among
# its picture's, -1 for a picture; tokens, sentences: of the text, or of the picture's longest text.
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
# What makes a query the same one in two files.
KEY = ("direction", "id", "part", "caption")
# What a benchmark measures of a query: one of these columns.
RANK = pa.field("rank", pa.int32())
AVERAGE_PRECISION = pa.field("average_precision", pa.float64())
CORRECT = pa.field("correct", pa.bool_())


def answer(gallery: Gallery, embeddings: EmbeddingTable, chunk: int) -> pa.Table:
    """Ask every picture and every text of a gallery; QUERY's columns and the benchmark's own."""
    measure = {"twins": _twins, "joint": _joint}.get(gallery.benchmark, _ranks)
    field, values = measure(gallery, embeddings, chunk)
    rows = pa.Table.from_pylist(list(_queries(gallery, embeddings)), QUERY)
    return rows.append_column(field, pa.array(values, field.type))


def columns(answers: pa.Table, ks: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Names of the metrics these answers give and their values (Q, K) in percent; a metric is their mean."""
    if RANK.name in answers.column_names:
        # Rank 0 is that of a picture without a text (goal.metrics): nothing was found.
        ranks = answers[RANK.name].to_numpy()[:, None]
        return [f"r{k}" for k in ks], 100.0 * ((ranks > 0) & (ranks <= np.array(ks)))
    if AVERAGE_PRECISION.name in answers.column_names:
        return [f"map{JOINT_K}"], 100.0 * answers[AVERAGE_PRECISION.name].to_numpy()[:, None]
    return ["accuracy"], 100.0 * answers[CORRECT.name].to_numpy(zero_copy_only=False)[:, None].astype(float)


def by_direction(answers: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    for direction in DIRECTIONS:
        yield direction, answers.filter(pc.equal(answers["direction"], direction))


def summarise(answers: pa.Table, ks: Sequence[int], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Every metric both ways with its 95 % interval, in percent, and the number of queries behind it."""
    summary = {}
    for direction, rows in by_direction(answers):
        names, values = columns(rows, ks)
        found = statistics.intervals(values, rows["id"].to_numpy(), resamples, seed)
        for name, interval in zip(names, found, strict=True):
            summary[f"{direction}_{name}"] = rounded(asdict(interval)) | {"queries": len(rows)}
    return summary


def breakdowns(
    answers: pa.Table, ks: Sequence[int], resamples: int, seed: int
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The summary of each group of queries: by tokens, sentences, attribute of the twin, part of the pair."""
    groups = {
        "tokens": [_bin(count, TOKEN_BINS) for count in answers["tokens"].to_pylist()],
        "sentences": [_bin(count, SENTENCE_BINS) for count in answers["sentences"].to_pylist()],
        "attribute": answers["attribute"].to_pylist(),
        "part": answers["part"].to_pylist(),
    }
    result = {}
    for name, keys in groups.items():
        present = sorted(set(keys), key=_order) if any(keys) else []
        result[name] = {
            key: summarise(answers.filter(pa.array([one == key for one in keys])), ks, resamples, seed)
            for key in present
        }
    return {name: found for name, found in result.items() if found}


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Four decimals: a hundredth of what one query more or less changes in a set of ten thousand."""
    return {name: round(value, 4) for name, value in values.items()}


def _ranks(gallery: Gallery, embeddings: EmbeddingTable, chunk: int) -> tuple[pa.Field, np.ndarray]:
    found = metrics.ranks(
        embeddings.of_pictures(gallery.pictures),
        embeddings.of_texts(gallery.texts),
        torch.tensor(gallery.text_to_picture),
        chunk,
    )
    return RANK, torch.cat([found.image_to_text, found.text_to_image]).numpy()


def _joint(gallery: Gallery, embeddings: EmbeddingTable, chunk: int) -> tuple[pa.Field, np.ndarray]:
    """To a whole picture belong its caption and its crop's sentence, to the crop the same two."""
    count = len(gallery.pictures)
    relevant = [[number, (number + count // 2) % count] for number in range(count)]
    image, texts = embeddings.of_pictures(gallery.pictures), embeddings.of_texts(gallery.texts)
    ways = [
        metrics.average_precision_at_k(query, items, relevant, JOINT_K, chunk)
        for query, items in ((image, texts), (texts, image))
    ]
    return AVERAGE_PRECISION, torch.cat(ways).numpy()


def _twins(gallery: Gallery, embeddings: EmbeddingTable, chunk: int) -> tuple[pa.Field, np.ndarray]:
    image, twin = embeddings.of_pictures(gallery.pictures).chunk(2)
    own, other = embeddings.of_texts(gallery.texts).chunk(2)
    found = metrics.twins(image, own, twin, other)
    return CORRECT, torch.cat([found.image_to_text.T.flatten(), found.text_to_image.T.flatten()]).numpy()


def _queries(gallery: Gallery, embeddings: EmbeddingTable) -> Iterator[dict[str, object]]:
    """All pictures, then all texts."""
    tokens = embeddings.lengths(gallery.texts)
    sentences = [len(text.split_sentences(one)) for one in gallery.texts]
    texts_of: list[list[int]] = [[] for _ in gallery.pictures]
    for number, picture in enumerate(gallery.text_to_picture):
        texts_of[picture].append(number)
    described = [_described(gallery, picture) for picture in range(len(gallery.pictures))]
    for picture, texts in enumerate(texts_of):
        longest = max(texts, key=tokens.__getitem__)
        length = {"tokens": tokens[longest], "sentences": sentences[longest]}
        yield {"direction": "image_to_text", **described[picture], "caption": -1, **length}
    for number, picture in enumerate(gallery.text_to_picture):
        length = {"tokens": tokens[number], "sentences": sentences[number]}
        caption = number - texts_of[picture][0]
        yield {"direction": "text_to_image", **described[picture], "caption": caption, **length}


def _described(gallery: Gallery, picture: int) -> dict[str, str]:
    half = len(gallery.pictures) // 2
    parts = PARTS.get(gallery.benchmark)
    return {
        "id": gallery.ids[picture],
        "part": parts[picture // half] if parts else "",
        "attribute": gallery.attributes[picture % half] if gallery.attributes else "",
    }


def _bin(count: int, ends: Sequence[int]) -> str:
    for start, end in zip((0, *ends), ends, strict=False):
        if count <= end:
            return f"<= {end}" if start == 0 else f"{start + 1}-{end}"
    return f"> {ends[-1]}"


def _order(key: str) -> tuple[bool, list[int], str]:
    """Bins in the order of their numbers, the open one last; names by the alphabet."""
    return key.startswith(">"), [int(part) for part in key.strip("<=> ").split("-") if part.isdigit()], key
