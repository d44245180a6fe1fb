"""What a scene is: things with five attributes on a 3 x 3 grid over a pale background, drawn from a seed.

Scenes come in families of look-alikes with the same background and colours: who sees colours only cannot tell
them apart, and their captions differ in details.
"""

from dataclasses import dataclass, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black")
SIZES = ("small", "medium", "large")
PATTERNS = ("plain", "striped", "dotted", "checkered")
PLACES = (
    *("in the upper left corner", "at the top", "in the upper right corner"),
    *("on the left side", "in the middle", "on the right side"),
    *("in the lower left corner", "at the bottom", "in the lower right corner"),
)
GRID = 3
FAMILY = 4  # look-alikes in a row
REDRAWN = 0.5  # share of the shapes, sizes, patterns and places in which a look-alike may differ
DETAILS = 2  # in which it differs at least
ATTRIBUTES = ("colour", "shape", "size", "pattern", "place")
LOOKS = ("shape", "size", "pattern", "place")
BACKGROUNDS = ("white", "grey", "blue", "green", "beige", "lilac")
FADES = ("even", "down", "right")
# One random stream per split and purpose, so that the sizes of the splits and the wording change no picture.
SPLIT_STREAMS = {"train": 0, "val": 1, "test": 2, "pretrain": 3}
PURPOSES = {"layout": 0, "words": 1, "short": 2, "twin": 3, "crop": 4}


@dataclass(frozen=True)
class Thing:
    """One object; `place` counts the cells row by row, `jitter` (x, y, size; -1 to 1) varies the rest."""

    shape: str
    colour: str
    size: str
    pattern: str
    place: int
    jitter: tuple[float, float, float]

    @property
    def name(self) -> str:
        """Colour and shape: unique in a scene."""
        return f"{self.colour} {self.shape}"

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column of its place."""
        return divmod(self.place, GRID)


@dataclass(frozen=True)
class Scene:
    """Things in the order in which the caption names them, on a background that may darken to one side."""

    things: tuple[Thing, ...]
    background: str
    fade: str


def stream(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """The random numbers of one scene for one purpose."""
    return np.random.default_rng([seed, SPLIT_STREAMS[split], index, PURPOSES[purpose]])


def scene_of(seed: int, split: str, index: int, fewest: int, most: int) -> Scene:
    """Scene number `index` of a split; every FAMILY scenes in a row look alike."""
    first = index - index % FAMILY
    found = draw(stream(seed, split, first, "layout"), fewest, most)
    return found if index == first else look_alike(found, stream(seed, split, index, "layout"))


def look_alike(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene of the same background, colours and number of things, with DETAILS other details at least."""
    while True:
        found = _redrawn(scene, rng)
        pairs = list(zip(scene.things, found.things, strict=True))
        changed = [getattr(one, name) != getattr(other, name) for one, other in pairs for name in LOOKS]
        if sum(changed) >= DETAILS:
            return found


def _redrawn(scene: Scene, rng: np.random.Generator) -> Scene:
    things = []
    names, places = {thing.name for thing in scene.things}, {thing.place for thing in scene.things}
    for thing in scene.things:
        names.remove(thing.name)
        places.remove(thing.place)
        shapes = [shape for shape in SHAPES if f"{thing.colour} {shape}" not in names]
        free = [place for place in range(GRID * GRID) if place not in places]
        for attribute, values in {"shape": shapes, "size": SIZES, "pattern": PATTERNS, "place": free}.items():
            value, redrawn = pick(rng, values), rng.random() < REDRAWN
            thing = replace(thing, **{attribute: value}) if redrawn else thing
        thing = replace(thing, jitter=_jitter(rng))
        names.add(thing.name)
        places.add(thing.place)
        things.append(thing)
    return replace(scene, things=tuple(things))


def draw(rng: np.random.Generator, fewest: int, most: int) -> Scene:
    """A random scene of fewest..most things: no two of one colour and shape, each in a cell of its own."""
    count = int(rng.integers(fewest, most + 1))
    places = rng.permutation(GRID * GRID)[:count]
    looks = rng.permutation(len(COLOURS) * len(SHAPES))[:count]
    things = []
    for place, look in zip(places, looks, strict=True):
        colour, shape = divmod(int(look), len(SHAPES))
        size, pattern = pick(rng, SIZES), pick(rng, PATTERNS)
        things.append(Thing(SHAPES[shape], COLOURS[colour], size, pattern, int(place), _jitter(rng)))
    return Scene(tuple(things), pick(rng, BACKGROUNDS), pick(rng, FADES))


def change(scene: Scene, rng: np.random.Generator) -> tuple[Scene, str]:
    """The same scene with one attribute of one thing changed, and which attribute."""
    index = int(rng.integers(len(scene.things)))
    attribute = pick(rng, ATTRIBUTES)
    thing = scene.things[index]
    others = [other for other in scene.things if other is not thing]
    names, places = {other.name for other in others}, {other.place for other in others}
    values = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "pattern": PATTERNS, "place": range(GRID**2)}
    candidates = [replace(thing, **{attribute: value}) for value in values[attribute]]
    free = [one for one in candidates if one != thing and one.name not in names and one.place not in places]
    changed = pick(rng, free)
    return replace(scene, things=(*scene.things[:index], changed, *scene.things[index + 1 :])), attribute


def pick(rng: np.random.Generator, values):
    """One of a sequence; always one number of the stream, so that wording and layout stay in step."""
    return values[int(rng.random() * len(values))]


def _jitter(rng: np.random.Generator) -> tuple[float, float, float]:
    return tuple(round(float(value), 4) for value in rng.uniform(-1, 1, 3))
