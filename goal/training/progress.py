"""What a long training shows: values for a tracker, and a bar, or a line now and then, for people."""

import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from tqdm import tqdm

log = logging.getLogger(__name__)

# Seconds between lines where the output is not a terminal.
LINE_EVERY = 30.0


class Tracker(Protocol):
    """Records the metrics of a training; neither raises nor waits for a server."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...


class Silent:
    """A tracker that records nothing: tracking switched off, and every process but the first."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass


class Progress:
    """Shows steps, losses, samples a second, time left and the share of time spent waiting for data."""

    def __init__(self, name: str, step: int, steps: int, batch_size: int, shown: bool) -> None:
        self._name = name
        self._steps = steps
        self._batch_size = batch_size
        self._shown = shown
        self._began = self._said = time.monotonic()
        self._first = step
        bar = shown and sys.stderr.isatty()
        self._bar = tqdm(desc=name, initial=step, total=steps, unit=" steps", disable=not bar)
        self._mark = (time.monotonic(), step, 0.0)
        self._waited = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def waited(self, seconds: float) -> None:
        """Count time that the step stood still because its batch was not there."""
        self._waited += seconds

    def speed(self, step: int) -> dict[str, float]:
        """Samples a second and the share of time waiting for data, since the last call."""
        now = time.monotonic()
        then, past, waited = self._mark
        self._mark = (now, step, self._waited)
        seconds = max(now - then, 1e-9)
        return {
            "samples_per_second": (step - past) * self._batch_size / seconds,
            "waiting_for_data": min(1.0, (self._waited - waited) / seconds),
        }

    def show(self, step: int, losses: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """Bring the bar to `step`; where there is no terminal, say a line every LINE_EVERY seconds."""
        loss = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        rate = f"{speed['samples_per_second']:.1f} samples/s, data {speed['waiting_for_data']:.0%}"
        self._bar.set_postfix_str(f"{loss}, {rate}", refresh=False)
        self._bar.update(step - self._bar.n)
        now = time.monotonic()
        if not self._shown or not self._bar.disable:
            return
        if now - self._said >= LINE_EVERY or step == self._steps:
            self._said = now
            left = (now - self._began) / max(1, step - self._first) * (self._steps - step)
            log.info("%s: step %d of %d: %s, %s, %d s left", self._name, step, self._steps, loss, rate, left)
