"""Draw a scene: smooth-edged things with faint patterns on a pale background, and the true box of each."""

import numpy as np
from PIL import Image

from goal.datasets.scenes_layout import GRID, Scene, Thing

# Red, green, blue of 0..255. Patterns differ less from their thing than any thing from any background.
PAINT = {
    "red": (214, 40, 40),
    "orange": (243, 128, 20),
    "yellow": (240, 205, 20),
    "green": (40, 150, 65),
    "blue": (35, 85, 205),
    "purple": (130, 50, 170),
    "pink": (240, 105, 175),
    "brown": (125, 75, 35),
    "black": (30, 30, 30),
}
PAPER = {
    "white": (252, 252, 252),
    "grey": (214, 214, 214),
    "blue": (203, 222, 245),
    "green": (208, 238, 208),
    "beige": (240, 228, 200),
    "lilac": (228, 214, 242),
}
RADIUS = {"small": 0.085, "medium": 0.118, "large": 0.15}  # of the picture's side, half of the thing's width
RADIUS_JITTER = 0.06
CELL_MARGIN = 0.008  # of the picture's side, kept free inside each cell
FADE = 0.12  # how much darker a fading background ends
PATTERN_TINT = 0.55  # how far a pattern goes from the thing's colour to white
OVERSAMPLE = 3  # samples per pixel and side


def render(scene: Scene, size: int) -> tuple[np.ndarray, list[tuple[float, float, float, float]]]:
    """The picture (size, size, 3) uint8, and each thing's box (x1, y1, x2, y2), half open, in it."""
    canvas = _background(scene, size)
    boxes = []
    for thing in scene.things:
        left, top, cover, colour = _draw(thing, size)
        height, width = cover.shape
        window = canvas[top : top + height, left : left + width]
        window += cover[..., None] * (colour - window)
        ys, xs = np.nonzero(cover >= 0.5)
        box = (left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1)
        boxes.append(tuple(float(side) for side in box))
    return canvas.round().astype(np.uint8), boxes


def save(picture: np.ndarray, path) -> None:
    """Write a picture as PNG."""
    Image.fromarray(picture).save(path, compress_level=1)


def _background(scene: Scene, size: int) -> np.ndarray:
    ramp = np.linspace(0, FADE, size)
    shade = {"even": np.zeros((1, 1)), "down": ramp[:, None], "right": ramp[None, :]}[scene.fade]
    light = np.broadcast_to(1 - shade, (size, size))[..., None]
    return np.array(PAPER[scene.background], dtype=np.float64) * light


def _draw(thing: Thing, size: int) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Left and top of a window (pixels), the share of each pixel that the thing covers, and its colours."""
    x, y, scale = thing.jitter
    radius = RADIUS[thing.size] * (1 + RADIUS_JITTER * scale)
    slack = max(0.5 / GRID - radius - CELL_MARGIN, 0.0)
    row, column = thing.cell
    centre_x = ((column + 0.5) / GRID + slack * x) * size
    centre_y = ((row + 0.5) / GRID + slack * y) * size
    radius *= size
    left, top = max(int(centre_x - radius), 0), max(int(centre_y - radius), 0)
    right, bottom = min(int(centre_x + radius) + 1, size), min(int(centre_y + radius) + 1, size)
    steps = (np.arange((max(right - left, bottom - top)) * OVERSAMPLE) + 0.5) / OVERSAMPLE
    u = ((left + steps[: (right - left) * OVERSAMPLE] - centre_x) / radius)[None, :]
    v = ((top + steps[: (bottom - top) * OVERSAMPLE] - centre_y) / radius)[:, None]
    inside = _shape(thing.shape, u, v)
    cover = _shrink(inside.astype(np.float64))
    tint = _shrink(_pattern(thing.pattern, u * radius / size, v * radius / size).astype(np.float64))
    paint = np.array(PAINT[thing.colour], dtype=np.float64)
    return left, top, cover, paint + PATTERN_TINT * tint[..., None] * (255 - paint)


def _shrink(samples: np.ndarray) -> np.ndarray:
    height, width = (side // OVERSAMPLE for side in samples.shape)
    return samples.reshape(height, OVERSAMPLE, width, OVERSAMPLE).mean(axis=(1, 3))


def _shape(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points of [-1, 1] x [-1, 1] (v down) lie in the shape: (Y, X) from u (1, X) and v (Y, 1)."""
    distance = np.hypot(u, v)
    if shape == "circle":
        return distance <= 1
    if shape == "ring":
        return (distance <= 1) & (distance >= 0.5)
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.88
    if shape == "diamond":
        return abs(u) + abs(v) <= 1
    if shape == "triangle":
        return (v <= 0.85) & (abs(u) <= (v + 0.95) * 0.55)
    if shape == "cross":
        return (np.minimum(abs(u), abs(v)) <= 0.34) & (np.maximum(abs(u), abs(v)) <= 0.98)
    if shape == "star":
        # Five points: the radius runs linearly between tips (1) and notches (0.45) in the folded angle.
        angle = abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        tip, notch = np.array([1.0, 0.0]), 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        along, across = distance * np.cos(angle), distance * np.sin(angle)
        edge = notch - tip
        return edge[0] * (across - tip[1]) - edge[1] * (along - tip[0]) >= 0
    # heart: two round lobes over a point
    lobes = np.hypot(abs(u) - 0.48, v + 0.38) <= 0.5
    point = (v >= -0.38) & (abs(u) <= 0.98 - (v + 0.38) * 0.73) & (v <= 0.95)
    return lobes | (point & (abs(u) + 0.73 * v <= 0.71))


def _pattern(pattern: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points (in parts of the picture's side, from the thing's centre) the pattern tints."""
    pitch = 0.05
    column, row = np.floor(x / pitch), np.floor(y / pitch)
    shape = np.broadcast(x, y).shape
    if pattern == "striped":
        return np.broadcast_to(row % 2 == 0, shape)
    if pattern == "checkered":
        return (row + column) % 2 == 0
    if pattern == "dotted":
        return np.hypot((x / pitch) % 1 - 0.5, (y / pitch) % 1 - 0.5) <= 0.33
    return np.zeros(shape, dtype=bool)
