"""The plan of one training: its parameters and hardware, checked before any data or weights are loaded."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from goal import losses, weights
from goal.config import Params, Stage, paths
from goal.errors import UserError
from goal.runtime import code, devices, files
from goal.training import distributed

# Parameters of `train` that the result depends on. The others only change the speed and may differ when a
# training is resumed.
RESULT_FIELDS = ("precision", "processes", "compile", "checkpoint_activations", "chunk_size")
# The baselines are stage 2 with these terms and margins only: what they share with it changes in both.
BASELINES = {"global": ("global", "hard_negative", "short_caption")}
BASELINES["global+local"] = (*BASELINES["global"], "local", "local_hard_negative")
BALANCED = "balanced"


@dataclass(frozen=True)
class Plan:
    """One training: its section of params.yaml, loss weights, start weights and hardware."""

    name: str
    section: str  # stage1 | stage2
    stage: Stage
    loss_weights: dict[str, float]
    start: Path
    local: bool  # whether it trains on the mined pairs
    device: torch.device
    bf16: bool

    @classmethod
    def of(cls, params: Params, name: str) -> "Plan":
        """The plan of one of paths.TRAINED; UserError for missing hardware or loss weights that are all 0."""
        if name not in paths.TRAINED:
            raise UserError(f"train {name}: no such model; choose one of {', '.join(paths.TRAINED)}")
        section = "stage1" if name == "stage1" else "stage2"
        stage: Stage = getattr(params, section)
        if name == BALANCED:
            # By attribute: `loss` and `pairs` stay models.
            stage = stage.model_copy(update=dict(params.balanced))
        loss_weights = stage.loss.model_dump(by_alias=True)
        if name in BASELINES:
            kept = BASELINES[name]
            loss_weights = {term: weight if term in kept else 0.0 for term, weight in loss_weights.items()}
        if stage.epochs and not any(loss_weights.get(term) for term in losses.TERMS):
            raise UserError(f"{section}.loss: every term of {name} has the weight 0; give one a weight")
        device, processes = devices.resolve(params.train.device, "train.device"), params.train.processes
        if device.type == "cuda" and not distributed.started() and processes > torch.cuda.device_count():
            raise UserError(
                f"train.processes {processes}: this machine has {torch.cuda.device_count()} GPUs; set at "
                "most one process per GPU"
            )
        return cls(
            name=name,
            section=section,
            stage=stage,
            loss_weights=loss_weights,
            start=paths.model_dir("zero-shot" if section == "stage1" else "stage1"),
            local=section == "stage2",
            device=device,
            bf16=_bf16(params.train.precision, device),
        )

    def autocast(self) -> AbstractContextManager[None]:
        """A context with bf16 arithmetic over fp32 weights where `bf16` is set, else an empty one."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def identity(self, params: Params) -> dict[str, Any]:
        """Everything that the result depends on, by name: the cache key of checkpoints and MLflow runs."""
        inputs = [paths.manifest(params.data.name, split) for split in ("train", "val")]
        if self.local:
            inputs += sorted(paths.pairs_dir("train").glob("shard-*.parquet"))
        short = paths.manifest(params.data.name, "short_train")
        if (self.loss_weights["short_caption"] or self.stage.short_share) and short.exists():
            inputs.append(short)
        return {
            "name": self.name,
            **{f"train.{name}": getattr(params.train, name) for name in RESULT_FIELDS},
            **{"seed": params.seed, "device": self.device.type, "bf16": self.bf16},
            **_flat(self.section, self.stage.model_dump(by_alias=True) | {"loss": self.loss_weights}),
            **{str(file): files.digest(file) for file in inputs},
            str(self.start): weights.digest(self.start),
            "code": code.digest("stages/train"),
            # The version with its build (+cpu, +cu130): other kernels give other bits.
            "torch": torch.__version__,
        }

    def check_steps(self, steps: int) -> None:
        """Raise UserError for a warm-up as long as the whole training of `steps` steps."""
        if self.stage.warmup_steps >= steps:
            raise UserError(
                f"{self.section}.warmup_steps {self.stage.warmup_steps}: the training has only {steps} "
                "steps; lower it, or set more epochs"
            )

    def check_validation(self, pictures: int, file: Path) -> None:
        """Raise UserError where validation pictures are needed and their manifest `file` has none."""
        if not pictures and (self.stage.keep == "best" or self.stage.patience):
            raise UserError(
                f"{self.section}.keep best and {self.section}.patience need validation pictures, and {file} "
                "has none; set keep to last and patience to 0"
            )


def _bf16(precision: str, device: torch.device) -> bool:
    available, gpu = devices.has_bf16(device), device.type == "cuda"
    if precision == "bf16" and not available:
        raise UserError(
            f"train.precision bf16: this {'GPU' if gpu else 'CPU'} has no bf16 arithmetic; set auto or fp32"
        )
    # On a CPU `auto` means fp32, so that the result does not depend on whether the CPU has bf16.
    return precision == "bf16" or (precision == "auto" and gpu and available)


def _flat(prefix: str, values: Any) -> dict[str, Any]:
    """Nested dicts as one dict with dotted names."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in _flat(f"{prefix}.{name}", inner).items()
    }
