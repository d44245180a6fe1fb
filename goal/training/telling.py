"""What a training tells while it goes on: losses by step, validations, speed, to the tracker and the bar."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from goal.training.learner import Learner
from goal.training.progress import Progress, Tracker

log = logging.getLogger(__name__)


class Telling:
    """Collects each step's losses on the device and hands them on all at once, so that no step waits."""

    def __init__(self, learner: Learner, tracker: Tracker, progress: Progress) -> None:
        self._learner = learner
        self._tracker = tracker
        self._progress = progress
        self._steps: list[Tensor] = []

    def step(self, measured: Tensor) -> None:
        """Keep what Learner.update returned."""
        self._steps.append(measured)

    def losses(self) -> None:
        """Tell the steps since the last call; waits for the device."""
        if not self._steps:
            return
        learner = self._learner
        measured = torch.stack(self._steps)
        rows = measured.tolist()
        self._steps.clear()
        for number, row in enumerate(rows, learner.step - len(rows) + 1):
            values = dict(zip(learner.logged, row, strict=True))
            self._tracker.log_metrics(values | {"lr": learner.rate(number - 1)}, number)
        speed = self._progress.speed(learner.step)
        if measured.is_cuda:
            speed["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._tracker.log_metrics(speed, learner.step)
        self._progress.show(learner.step, dict(zip(learner.names, rows[-1], strict=False)), speed)

    def validation(self) -> None:
        """Tell the last validation."""
        found = self._learner.validations[-1]
        ways = ("image_to_text", "text_to_image")
        named = {f"val/{way}/{k}": value for way in ways for k, value in found[way].items()}
        self._tracker.log_metrics(named | {"val/recall": found["recall"]}, found["step"])
        log.info("step %d: validation R@1 %.2f %%", found["step"], found["recall"])

    def files(self, paths: Iterable[Path]) -> None:
        """Hand finished files to the tracker."""
        for path in paths:
            self._tracker.log_artifact(path)
