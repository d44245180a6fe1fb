"""The network, its optimizer, the loss curve and the validations: the state of a training.

Letters: K loss terms.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from goal import losses
from goal.config import Stage
from goal.errors import UserError
from goal.model.network import GoalClip
from goal.training.checkpoint import State
from goal.training.distributed import Group
from goal.training.schedule import learning_rate

# Rows of the loss curve at most: enough for a plot, few enough for git.
CURVE_ROWS = 200
TOTAL = "total"
GRADIENT = "gradient"


class Learner:
    """The fp32 network, AdamW, the loss curve and the validations after `step` of `steps` optimizer steps."""

    def __init__(
        self, model: GoalClip, stage: Stage, loss_weights: Mapping[str, float], steps: int, group: Group
    ) -> None:
        self.model = model
        self.step = 0
        self.steps = steps
        self.names = [*(name for name in losses.TERMS if loss_weights.get(name)), TOTAL]
        # The names under which the values that `update` returns are logged.
        self.logged = [*(f"loss/{name}" for name in self.names), f"{GRADIENT}_norm", "logit_scale"]
        self.validations: list[dict[str, Any]] = []
        self._stage = stage
        self._loss_weights = loss_weights
        self._group = group
        self.optimizer = adamw(model, stage.lr, stage.weight_decay)
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(stage.ema)) if stage.ema else None
        )
        self._steps_per_row = max(1, math.ceil(steps / CURVE_ROWS))
        rows, device = math.ceil(steps / self._steps_per_row), group.device
        self._curve = torch.zeros(rows, len(self.names), dtype=torch.float64, device=device)
        # Whether a loss or the gradient was not finite, which of them, and at which step first. They stay on
        # the device: reading them at every step would make the host wait.
        self._found_inf = torch.zeros((), device=device)
        self._not_finite = torch.zeros(len(self.names) + 1, dtype=torch.bool, device=device)
        self._not_finite_step = torch.zeros((), dtype=torch.long, device=device)
        self.optimizer.found_inf = self._found_inf

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        return learning_rate(step, self.steps, self._stage.warmup_steps, self._stage.lr)

    def update(self, values: Mapping[str, Tensor]) -> Tensor:
        """One optimizer step with the accumulated gradients; returns (K + 3,), the values named in `logged`.

        values: this rank's share of each loss term. The returned logit scale is the one that these losses
        were computed with. Does not wait for a GPU. Once a loss or the gradient is not finite (see `fault`),
        this and all later calls change no weight: fused AdamW skips the update where `found_inf` is 1.
        """
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.rate(self.step)
        parameters = [value for value in self.model.parameters() if value.grad is not None]
        norm = nn.utils.get_total_norm([value.grad for value in parameters])
        if self._stage.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self._stage.clip_norm, norm)
        total = losses.weighted(values, self._loss_weights)
        means = self._group.mean(torch.stack([*(values[name] for name in self.names[:-1]), total]))
        measured = torch.cat([means, norm[None], self.model.scale().detach()[None]])
        self._record_not_finite(~measured[:-1].isfinite())
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.model)
        self._curve[self.step // self._steps_per_row] += means
        self.step += 1
        return measured

    def _record_not_finite(self, wrong: Tensor) -> None:
        first = wrong.any() & (self._found_inf == 0)
        self._not_finite.copy_(torch.where(first, wrong, self._not_finite))
        self._not_finite_step.copy_(torch.where(first, self.step, self._not_finite_step))
        self._found_inf.copy_(torch.maximum(self._found_inf, wrong.any().float()))

    def fault(self) -> tuple[int, list[str]] | None:
        """The first step (from 0) with a value that is not finite, and the names of these values; else None.

        Waits for the device.
        """
        if not self._found_inf.item():
            return None
        names = [*self.names, GRADIENT]
        wrong = [name for name, flag in zip(names, self._not_finite.tolist(), strict=True) if flag]
        return int(self._not_finite_step), wrong

    @property
    def result(self) -> GoalClip:
        """The network that is validated and becomes the model: that of the averaged weights, if any."""
        return self.average.module if self.average else self.model

    @property
    def best(self) -> dict[str, Any] | None:
        """The validation with the highest recall so far; the first one of equals."""
        return max(self.validations, key=lambda found: found["recall"], default=None)

    @property
    def validations_since_best(self) -> int:
        return len(self.validations) - 1 - self.validations.index(self.best) if self.validations else 0

    def curve(self) -> list[dict[str, float]]:
        """The loss curve so far: each row holds the means over its steps and the last of them (from 1)."""
        rows = []
        for number, sums in enumerate(self._curve.tolist()):
            first = number * self._steps_per_row
            last = min(first + self._steps_per_row, self.step)
            if first < last:
                means = {name: value / (last - first) for name, value in zip(self.names, sums, strict=True)}
                rows.append({"step": last, "lr": self.rate(last - 1)} | means)
        return rows

    def state(self) -> State:
        """Everything that a checkpoint needs to resume with the same bits."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, value in self.model.named_parameters():
            tensors |= {f"{key}.{name}": moment for key, moment in self.optimizer.state[value].items()}
        if self.average:
            tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {"curve": self._curve, "rng": torch.get_rng_state()}
        if self._group.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        copies = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        best_step = self.best["step"] if self.best else None
        return State(self.step, copies, {"validations": self.validations, "best_step": best_step})

    def load(self, state: State) -> None:
        """Resume from `state`."""
        tensors = dict(state.tensors)
        self.model.load_state_dict({name: tensors.pop(f"model.{name}") for name in self.model.state_dict()})
        if self.average:
            names = self.average.state_dict()
            self.average.load_state_dict({name: tensors.pop(f"average.{name}") for name in names})
        torch.set_rng_state(tensors.pop("rng"))
        if self._group.device.type == "cuda":
            torch.cuda.set_rng_state(tensors.pop("rng.cuda"))
        self._curve.copy_(tensors.pop("curve"))
        names = {id(value): name for name, value in self.model.named_parameters()}
        ordered = [names[id(value)] for group in self.optimizer.param_groups for value in group["params"]]
        moments = {
            number: {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for number, name in enumerate(ordered)
            if f"step.{name}" in tensors
        }
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.step = state.step
        self.validations = list(state.values["validations"])


def adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW; weight decay for matrices and tables, none for biases, layer norms and the logit scale."""
    parameters = list(model.parameters())
    groups = [
        {"params": [value for value in parameters if value.ndim >= 2], "weight_decay": weight_decay},
        {"params": [value for value in parameters if value.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def not_finite_error(fault: tuple[int, list[str]], name: str, ids: Sequence[str], section: str) -> UserError:
    """The error for Learner.fault in the training `name`, with the ids of the batch's pictures."""
    step, wrong = fault
    terms = [value for value in wrong if value not in (TOTAL, GRADIENT)] or wrong
    return UserError(
        f"{name}: {', '.join(terms)} not finite at step {step + 1}; lower {section}.lr or look at the batch: "
        f"{', '.join(ids)}"
    )
