"""Logs a training: the losses of every step, its speed and its validations, to the tracker and the bar."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from goal.training.learner import Learner
from goal.training.progress import Progress, Tracker

log = logging.getLogger(__name__)


class MetricsBuffer:
    """Keeps the losses of each step on the device until `flush`, so that no step waits for a GPU."""

    def __init__(self, learner: Learner, tracker: Tracker, progress: Progress) -> None:
        self._learner = learner
        self._tracker = tracker
        self._progress = progress
        self._steps: list[Tensor] = []
        self._norms: Mapping[str, Tensor] = {}

    def add(self, measured: Tensor, norms: Mapping[str, Tensor] | None = None) -> None:
        """Keep what Learner.update returned, and each term's gradient norm if measured."""
        self._steps.append(measured)
        self._norms = norms or {}

    def flush(self) -> None:
        """Log the steps since the last call; waits for the device."""
        if not self._steps:
            return
        learner = self._learner
        measured = torch.stack(self._steps)
        rows = measured.tolist()
        self._steps.clear()
        for number, row in enumerate(rows, learner.step - len(rows) + 1):
            values = dict(zip(learner.logged, row, strict=True))
            self._tracker.log_metrics(values | {"lr": learner.rate(number - 1)}, number)
        if self._norms:
            # A term whose share is large decides where a clipped step goes.
            total = sum(self._norms.values()).clamp(min=torch.finfo(torch.float32).tiny)
            shares = {f"gradient_share/{name}": (norm / total).item() for name, norm in self._norms.items()}
            self._tracker.log_metrics(shares, learner.step)
        speed = self._progress.speed(learner.step)
        if measured.is_cuda:
            speed["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._tracker.log_metrics(speed, learner.step)
        self._progress.show(
            learner.step, dict(zip(learner.names, rows[-1][: len(learner.names)], strict=True)), speed
        )

    def log_validation(self) -> None:
        """Log the last validation."""
        found = self._learner.validations[-1]
        directions = ("image_to_text", "text_to_image")
        named = {f"val/{way}/{k}": value for way in directions for k, value in found[way].items()}
        self._tracker.log_metrics(named | {"val/recall": found["recall"]}, found["step"])
        log.info("step %d: validation R@1 %.2f %%", found["step"], found["recall"])
