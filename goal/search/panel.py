"""What the page shows as HTML: how much of a text is read, sentences on a picture, captions."""

import math
from collections.abc import Sequence

from PIL import Image

from goal.evaluation import grounding
from goal.model.network import GoalClip
from goal.reporting import pictures, templates
from goal.search.captions import Caption
from goal.search.query import Reading

# Characters of the text before the cut that the page repeats.
BEFORE = 160


def reading(words: str, found: Reading, context: int) -> str:
    """The count of tokens, and the part of the text that the context does not hold."""
    if not words.strip():
        return ""
    return templates.render(
        "reading.html",
        tokens=found.tokens,
        read=found.read,
        context=context,
        cut=len(found.head) > BEFORE,
        before=found.head[-BEFORE:],
        beyond=found.rest,
    )


def grounded(model: GoalClip, image: Image.Image, name: str, words: str) -> str:
    """A heat map and a score for every sentence of a text on a picture (RGB, image frame)."""
    found = grounding.ground(model, image, words)
    read = [
        {"text": sentence.text, "map": pictures.heat(map), "score": f"{score:.2f}"}
        for sentence, map, score in zip(found.sentences, found.maps, found.scores.tolist(), strict=True)
        if not math.isnan(score)
    ]
    one = {"view": pictures.viewed(image, model.spec.view), "size": model.spec.image_size, "sentences": read}
    return templates.render("grounding.html", name=name, one=one, unread=len(found.sentences) - len(read))


def captions(found: Sequence[Caption], title: str) -> str:
    """Captions with their scores."""
    return templates.render("captions.html", title=title, captions=found)
