"""The learning rate as a function of the step: linear warm-up, then a cosine decay to 0."""

import math


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`; the paper trains without warm-up.

    The warm-up rises linearly and reaches `peak` at its last step; the cosine starts at `peak` and would be 0
    at step `steps`, one after the last. Raises ValueError for a step outside the training and for a warm-up
    that takes all steps.
    """
    if not 0 <= step < steps or not 0 <= warmup_steps < steps:
        raise ValueError(f"step {step} of {steps} with a warm-up of {warmup_steps}")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps))) / 2
