"""Captions of a scene: long ones (one sentence per thing, offsets known, then relations) and short ones."""

import numpy as np

from goal.datasets.scenes_layout import PLACES, Scene, Thing, pick

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
TONES = ("white", "pale grey", "pale blue", "pale green", "beige", "lilac")
TONE_OF = dict(zip(("white", "grey", "blue", "green", "beige", "lilac"), TONES, strict=True))
FADE_WORDS = {
    "even": ("evenly coloured", "the same everywhere"),
    "down": ("darker towards the bottom", "slowly darkening from top to bottom"),
    "right": ("darker towards the right", "slowly darkening from left to right"),
}
SIZE_WORDS = {
    "small": ("small", "little"),
    "medium": ("medium-sized", "middle-sized"),
    "large": ("large", "big"),
}
PATTERN_WORDS = {
    "plain": ("plain", "without any pattern"),
    "striped": ("striped", "with a pattern of stripes"),
    "dotted": ("dotted", "with a pattern of dots"),
    "checkered": ("checkered", "with a pattern of checks"),
}
OPENINGS = (
    "This picture shows {count} objects on a {tone} background that is {fade}.",
    "There are {count} objects here, drawn on a {tone} background which is {fade}.",
    "On a {tone} background, {fade}, one can see {count} objects.",
)
SENTENCES = (
    "{a_size} {colour} {shape} {pattern_clause} is placed {place} of the picture.",
    "{place} of the picture there is {a_size} {pattern} {shape} painted in {colour}.",
    "{place} stands {a_size} {colour} {shape} {pattern_clause}.",
    "{a_size} and {pattern} {colour} {shape} can be seen {place}.",
    "We find {a_size} {colour} {shape} {place}, its surface being {pattern}.",
    "Painted in {colour}, {a_size} {shape} {pattern_clause} lies {place}.",
)
RELATIONS = (
    "The {one} is {relation} the {other}.",
    "Seen from the {other}, the {one} lies {direction}.",
    "One has to look {relation} the {other} to find the {one}.",
)
CLOSINGS = (
    "Of all the objects {alike} {are} {colour}, and nothing else is drawn on the {tone} ground.",
    "Counting the colours, {alike} of the objects {are} {colour}; the rest of the {tone} ground is empty.",
)
# Of a whole scene: several things, as a photograph's caption names what distinguishes it; the first two need
# no third.
SHORTS = (
    "{a_one} and {a_other} on a {tone} background",
    "{a_one} {relation} {a_other}",
    "{a_one}, {a_other} and {a_third}",
    "{a_size} {one}, {a_pattern} {other} and {a_third}",
    "{a_one} {place}, {a_other} and {a_third}",
    "{a_one}, {a_other} and {a_third} on a {tone} background",
)
# Of one thing in close-up; size and place are those in the scene, since pictures are cropped later.
CLOSE_UPS = (
    "{a_name}",
    "{a_pattern} {name}",
    "{a_name} {pattern_clause}",
    "{a_pattern} {shape} painted in {colour}",
    "{a_name} {place}",
    "{a_size} {pattern} {name} {place}",
    "there is {a_pattern} {name} {place} of the picture",
    "we find {a_name}, its surface is {pattern}",
)
# Of one thing in close-up, by what they name: as a web page's "heart" or "striped" does.
SINGLE = {
    "shape": ("a {shape}", "the shape of a {shape}", "something like a {shape}"),
    "colour": ("something {colour}", "a {colour} thing"),
    "pattern": ("something {pattern}", "{a_pattern} thing", "a thing {pattern_clause}"),
    "shape and pattern": ("{a_pattern} {shape}", "a {shape} {pattern_clause}"),
}


def long_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, list[tuple[int, int]]]:
    """The caption and, for each thing, the offsets (start, end) of its sentence.

    The same stream gives scenes of as many things the same wording: twins differ only in what was changed.
    """
    tone, count = TONE_OF[scene.background], NUMBERS[len(scene.things)]
    fade = pick(rng, FADE_WORDS[scene.fade])
    sentences = [pick(rng, OPENINGS).format(count=count, tone=tone, fade=fade)]
    sentences += [_sentence(thing, rng) for thing in scene.things]
    sentences += [_relation(scene, rng) for _ in range(max(2, 6 - len(scene.things)))]
    colour = pick(rng, scene.things).colour
    alike = sum(thing.colour == colour for thing in scene.things)
    are = "is" if alike == 1 else "are"
    sentences.append(pick(rng, CLOSINGS).format(alike=NUMBERS[alike], are=are, colour=colour, tone=tone))
    starts = np.cumsum([0, *(len(sentence) + 1 for sentence in sentences)])
    spans = [(int(start), int(start) + len(text)) for start, text in zip(starts, sentences, strict=False)]
    return " ".join(sentences), spans[1 : 1 + len(scene.things)]


def short_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the sort the small CLIP was pretrained on: two or three things, few attributes."""
    one, other, *more = (scene.things[index] for index in rng.permutation(len(scene.things)))
    return pick(rng, SHORTS if more else SHORTS[:2]).format(
        one=one.name,
        other=other.name,
        a_one=article(one.name),
        a_other=article(other.name),
        a_third=article(more[0].name) if more else "",
        relation=direction(one, other)[0],
        a_size=article(pick(rng, SIZE_WORDS[one.size])),
        a_pattern=article(other.pattern),
        place=PLACES[one.place],
        tone=TONE_OF[scene.background],
    )


def close_caption(thing: Thing, rng: np.random.Generator) -> str:
    """A short caption of one thing."""
    template = pick(rng, CLOSE_UPS)
    return template.format(**_words(thing, rng))


def single_caption(thing: Thing, name: str, number: int) -> str:
    """Wording `number` of SINGLE[name] for a thing; the same for all things that share what it names."""
    pattern, clause = thing.pattern, PATTERN_WORDS[thing.pattern][1]
    return SINGLE[name][number].format(
        shape=thing.shape,
        colour=thing.colour,
        pattern=pattern,
        a_pattern=article(pattern),
        pattern_clause=clause,
    )


def direction(one: Thing, other: Thing) -> tuple[str, str]:
    """Where `one` is from `other`: as a preposition ("to the left of") and alone ("to the left")."""
    (row, column), (other_row, other_column) = one.cell, other.cell
    across = "left" if column < other_column else "right"
    down = "above" if row < other_row else "below"
    if row == other_row:
        return f"to the {across} of", f"to the {across}"
    if column == other_column:
        return down, f"further {'up' if down == 'above' else 'down'}"
    return f"{down} and to the {across} of", f"{'up' if down == 'above' else 'down'} and to the {across}"


def article(words: str) -> str:
    """The words behind "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _sentence(thing: Thing, rng: np.random.Generator) -> str:
    words = _words(thing, rng)
    text = pick(rng, SENTENCES).format(**words)
    return text[0].upper() + text[1:]


def _words(thing: Thing, rng: np.random.Generator) -> dict[str, str]:
    pattern, clause = PATTERN_WORDS[thing.pattern]
    return {
        "name": thing.name,
        "a_name": article(thing.name),
        "colour": thing.colour,
        "shape": thing.shape,
        "a_size": article(pick(rng, SIZE_WORDS[thing.size])),
        "pattern": pattern,
        "a_pattern": article(pattern),
        "pattern_clause": clause,
        "place": PLACES[thing.place],
    }


def _relation(scene: Scene, rng: np.random.Generator) -> str:
    one, other = _two(scene, rng)
    relation, alone = direction(one, other)
    return pick(rng, RELATIONS).format(one=one.name, other=other.name, relation=relation, direction=alone)


def _two(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Thing]:
    first = int(rng.random() * len(scene.things))
    second = int(rng.random() * (len(scene.things) - 1))
    return scene.things[first], scene.things[second + (second >= first)]
