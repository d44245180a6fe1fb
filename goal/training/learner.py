"""A network, its optimizer and all that a training remembers, saved and restored as a whole.

Letters: K terms and the total, R rows of the loss curve.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from goal import losses
from goal.config import Stage
from goal.errors import UserError
from goal.model.network import GoalClip
from goal.training.checkpoint import Saved
from goal.training.distributed import Group
from goal.training.schedule import learning_rate

# Rows of the loss curve: enough for a picture, few enough for git.
CURVE_ROWS = 200
TOTAL = "total"
GRADIENT = "gradient"


class Learner:
    """Weights (fp32), AdamW, the loss curve and the best validation so far, after `step` steps of `steps`."""

    def __init__(
        self, model: GoalClip, stage: Stage, weights: Mapping[str, float], steps: int, group: Group
    ) -> None:
        self.model = model
        self.step = 0
        self.steps = steps
        self.names = [*(name for name in losses.TERMS if weights.get(name)), TOTAL]
        # What `update` returns, by the names under which it is logged.
        self.logged = [*(f"loss/{name}" for name in self.names), f"{GRADIENT}_norm", "logit_scale"]
        self.validations: list[dict[str, Any]] = []
        self._stage = stage
        self._weights = weights
        self._group = group
        self.optimizer = optimizer(model, stage.lr, stage.weight_decay)
        self._interval = max(1, math.ceil(steps / CURVE_ROWS))
        device = group.device
        self._curve = torch.zeros(
            math.ceil(steps / self._interval), len(self.names), dtype=torch.float64, device=device
        )
        # Whether a loss or the gradient was not finite, at which step first, and which of them.
        self._stopped = torch.zeros((), device=device)
        self._stopped_at = torch.zeros((), dtype=torch.long, device=device)
        self._at_fault = torch.zeros(len(self.names) + 1, dtype=torch.bool, device=device)
        self.optimizer.found_inf = self._stopped

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        return learning_rate(step, self.steps, self._stage.warmup_steps, self._stage.lr)

    def update(self, values: Mapping[str, Tensor]) -> Tensor:
        """One optimizer step from the accumulated gradients; returns (K + 2,), the values named in `logged`.

        The logit scale is the factor that these losses were computed with. Does not wait for a GPU. Once a
        loss or the gradient is not finite, neither this nor any later call
        changes a weight: fused AdamW skips the update on the device where `found_inf` is 1. `fault`
        says which.
        """
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.rate(self.step)
        parameters = [value for value in self.model.parameters() if value.grad is not None]
        norm = nn.utils.get_total_norm([value.grad for value in parameters])
        if self._stage.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self._stage.clip_norm, norm)
        total = losses.weighted(values, self._weights)
        means = self._group.mean(torch.stack([*(values[name] for name in self.names[:-1]), total]))
        measured = torch.cat([means, norm[None], self.model.scale().detach()[None]])
        self._look(~measured[:-1].isfinite())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._curve[self.step // self._interval] += means
        self.step += 1
        return measured

    def _look(self, wrong: Tensor) -> None:
        fresh = wrong.any() & (self._stopped == 0)
        self._at_fault.copy_(torch.where(fresh, wrong, self._at_fault))
        self._stopped_at.copy_(torch.where(fresh, self.step, self._stopped_at))
        self._stopped.copy_(torch.maximum(self._stopped, wrong.any().float()))

    def fault(self) -> tuple[int, list[str]] | None:
        """The first step (from 0) that was not finite and what was not, or None; waits for the device."""
        if not self._stopped.item():
            return None
        names = [*self.names, GRADIENT]
        wrong = [name for name, flag in zip(names, self._at_fault.tolist(), strict=True) if flag]
        return int(self._stopped_at), wrong

    @property
    def best(self) -> dict[str, Any] | None:
        """The best validation so far."""
        return best(self.validations)

    @property
    def stale(self) -> int:
        """Validations since the best."""
        return len(self.validations) - 1 - self.validations.index(self.best) if self.validations else 0

    def curve(self) -> list[dict[str, float]]:
        """The losses over the steps so far: each row the means over its steps, at the last one (from 1)."""
        rows = []
        for number, sums in enumerate(self._curve.tolist()):
            first, last = number * self._interval, min((number + 1) * self._interval, self.step)
            if first < last:
                means = {name: value / (last - first) for name, value in zip(self.names, sums, strict=True)}
                rows.append({"step": last, "lr": self.rate(last - 1)} | means)
        return rows

    def save(self) -> Saved:
        """Everything, as a checkpoint keeps it."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, value in self.model.named_parameters():
            tensors |= {f"{key}.{name}": state for key, state in self.optimizer.state[value].items()}
        tensors |= {"curve": self._curve, "rng": torch.get_rng_state()}
        if self._group.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        return Saved(self.step, plain, {"validations": self.validations})

    def restore(self, saved: Saved) -> None:
        """Go on exactly from `saved`."""
        tensors = dict(saved.tensors)
        state = {name: tensors.pop(f"model.{name}") for name in self.model.state_dict()}
        self.model.load_state_dict(state)
        torch.set_rng_state(tensors.pop("rng"))
        if self._group.device.type == "cuda":
            torch.cuda.set_rng_state(tensors.pop("rng.cuda"))
        self._curve.copy_(tensors.pop("curve"))
        names = {id(value): name for name, value in self.model.named_parameters()}
        ordered = [names[id(value)] for group in self.optimizer.param_groups for value in group["params"]]
        kept = {
            number: {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for number, name in enumerate(ordered)
            if f"step.{name}" in tensors
        }
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": kept})
        self.step = saved.step
        self.validations = list(saved.values["validations"])


def best(validations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The validation with the highest recall; of equal ones the first."""
    return max(validations, key=lambda one: one["recall"], default=None)


def optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW; the decay acts on matrices and tables, not on biases, layer norms and the logit scale."""
    parameters = list(model.parameters())
    groups = [
        {"params": [value for value in parameters if value.ndim >= 2], "weight_decay": weight_decay},
        {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def refusal(fault: tuple[int, list[str]], name: str, ids: Sequence[str], section: str) -> UserError:
    """The error for a training that met a loss or gradient that is not finite."""
    step, wrong = fault
    named = [one for one in wrong if one not in (TOTAL, GRADIENT)] or wrong
    return UserError(
        f"{name}: {', '.join(named)} not finite at step {step + 1}; lower {section}.lr or look at the batch: "
        f"{', '.join(ids)}"
    )
