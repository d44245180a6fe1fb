"""Recall on the validation split while a training goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from goal import embed
from goal.datasets.manifest import Row
from goal.galleries import Picture
from goal.metrics import recall_at_k
from goal.network import GoalClip
from goal.recipe import Recipe

KS = (1, 5, 10)


@dataclass(frozen=True)
class Validation:
    """The validation pictures with all their captions, and how to read them."""

    rows: Sequence[Row]
    recipe: Recipe
    settings: embed.Settings

    def measure(self, model: GoalClip, step: int) -> dict[str, Any]:
        """Recall@KS both ways in percent, and `recall`, by which models are compared: the mean R@1."""
        model.eval()
        with self.recipe.autocast():
            image = embed.encode_pictures(model, [Picture(row.image) for row in self.rows], self.settings)
            captions = [caption for row in self.rows for caption in row.captions]
            text, _ = embed.encode_texts(model, captions, self.settings)
        model.train()
        owner = [number for number, row in enumerate(self.rows) for _ in row.captions]
        recalls = recall_at_k(image, text, torch.tensor(owner), KS)
        named = {way: {f"R@{k}": value for k, value in values.items()} for way, values in recalls.items()}
        mean = sum(values[1] for values in recalls.values()) / len(recalls)
        return {"step": step, "recall": mean, **named}
