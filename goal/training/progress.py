"""How a training reports: a tracker records its metrics; a progress bar or log lines are for people."""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from tqdm import tqdm

log = logging.getLogger(__name__)

# Seconds between log lines where the output is not a terminal.
LINE_EVERY = 30.0


class Tracker(Protocol):
    """Records the metrics of a training; neither raises nor waits for a server."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...


class Silent:
    """A tracker that records nothing: for tracking switched off, and for all processes but the first."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass


class Progress(AbstractContextManager):
    """Shows the step, losses, samples per second, the time left and the share of time waiting for data."""

    def __init__(self, name: str, step: int, steps: int, batch_size: int, shown: bool) -> None:
        """name: of the training, at `step` of `steps`; shown: False for all processes but the first."""
        self._name = name
        self._steps = steps
        self._batch_size = batch_size
        self._shown = shown
        self._began = self._last_line = time.monotonic()
        self._first_step = step
        bar = shown and sys.stderr.isatty()
        self._bar = tqdm(desc=name, initial=step, total=steps, unit=" steps", disable=not bar)
        # Time, step and seconds waited at the last call of `speed`.
        self._measured = (self._began, step, 0.0)
        self._waited = 0.0

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def waited(self, seconds: float) -> None:
        """Add time that a step waited for its batch."""
        self._waited += seconds

    def speed(self, step: int) -> dict[str, float]:
        """Samples per second and the share of time waiting for data, since the last call."""
        now = time.monotonic()
        last, last_step, last_waited = self._measured
        self._measured = (now, step, self._waited)
        seconds = max(now - last, 1e-9)
        return {
            "samples_per_second": (step - last_step) * self._batch_size / seconds,
            "waiting_for_data": min(1.0, (self._waited - last_waited) / seconds),
        }

    def show(self, step: int, losses: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Move the bar to `step`; where there is no terminal, log a line every LINE_EVERY seconds instead."""
        loss = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        rate = f"{speed['samples_per_second']:.1f} samples/s, data {speed['waiting_for_data']:.0%}"
        self._bar.set_postfix_str(f"{loss}, {rate}", refresh=False)
        self._bar.update(step - self._bar.n)
        now = time.monotonic()
        due = now - self._last_line >= LINE_EVERY or step == self._steps
        if self._shown and self._bar.disable and due:
            self._last_line = now
            left = (now - self._began) / max(1, step - self._first_step) * (self._steps - step)
            log.info("%s: step %d of %d: %s, %s, %d s left", self._name, step, self._steps, loss, rate, left)
