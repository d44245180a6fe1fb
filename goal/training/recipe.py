"""What the training of one model is, read off the parameters and checked before anything is loaded."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from goal import weights
from goal.config import Params, Stage, paths
from goal.errors import UserError
from goal.runtime import code, devices, files
from goal.training import distributed

# Of `train`: what a result hangs on. The rest only changes the pace and may differ when a run goes on.
DECISIVE = ("precision", "processes", "compile", "checkpoint_activations", "chunk_size")
# The baselines are stage 2 with these terms only.
BASELINES = {"global": ("global",), "global+local": ("global", "local")}


@dataclass(frozen=True)
class Recipe:
    """One training: where it starts, its section of the parameters, the weight of each term, the hardware."""

    name: str
    section: str  # stage1 | stage2
    stage: Stage
    weights: dict[str, float]
    start: Path
    local: bool  # whether mined pairs are read
    device: torch.device
    bf16: bool

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 arithmetic over fp32 weights where that is wanted."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def decisive(self, params: Params) -> dict[str, Any]:
        """The parameters that decide the result, by their names in params.yaml."""
        values = {f"train.{name}": getattr(params.train, name) for name in DECISIVE}
        values |= {"seed": params.seed, "device": self.device.type, "bf16": self.bf16}
        stage = self.stage.model_dump(by_alias=True) | {"loss": self.weights}
        return values | _flat(self.section, stage)

    def identity(self, params: Params) -> dict[str, Any]:
        """All that decides the result, by name: checkpoints go on, and runs are the same, only with this."""
        inputs = [paths.manifest(params.data.name, split) for split in ("train", "val")]
        if self.local:
            inputs += sorted(paths.pairs_dir("train").glob("shard-*.parquet"))
        return {
            "name": self.name,
            **self.decisive(params),
            **{str(file): files.digest(file) for file in inputs},
            str(self.start): weights.digest(self.start),
            "code": code.digest("stages/train"),
            # With its build: other kernels give other bits.
            "torch": torch.__version__,
        }


def plan(params: Params, name: str) -> Recipe:
    """The recipe of one of paths.TRAINED; UserError for missing hardware, and weights that are all 0."""
    if name not in paths.TRAINED:
        raise UserError(f"train {name}: no such model; one of {', '.join(paths.TRAINED)}")
    section = "stage1" if name == "stage1" else "stage2"
    stage: Stage = getattr(params, section)
    terms = stage.loss.model_dump(by_alias=True)
    if name in BASELINES:
        kept = (*BASELINES[name], "hard_negative", "short_caption")
        terms = {term: weight if term in kept else 0.0 for term, weight in terms.items()}
    if stage.epochs and not any(weight for term, weight in terms.items() if term != "hard_negative"):
        raise UserError(f"{section}.loss: every term of {name} has the weight 0; give one a weight")
    device = devices.resolve(params.train.device, "train.device")
    _check_count(device, params.train.processes)
    return Recipe(
        name=name,
        section=section,
        stage=stage,
        weights=terms,
        start=paths.model_dir("zero-shot" if section == "stage1" else "stage1"),
        local=section == "stage2",
        device=device,
        bf16=_bf16(params.train.precision, device),
    )


def check_steps(recipe: Recipe, steps: int) -> None:
    """Refuse a warm-up that takes all steps."""
    if steps and recipe.stage.warmup_steps >= steps:
        raise UserError(
            f"{recipe.section}.warmup_steps {recipe.stage.warmup_steps}: the training has only {steps} "
            "steps; lower it, or give it more epochs"
        )


def _check_count(device: torch.device, processes: int) -> None:
    if device.type == "cuda" and not distributed.started() and processes > torch.cuda.device_count():
        raise UserError(
            f"train.processes {processes}: this machine has {torch.cuda.device_count()} GPUs; one a process"
        )


def _bf16(wanted: str, device: torch.device) -> bool:
    has = devices.has_bf16(device)
    gpu = device.type == "cuda"
    if wanted == "bf16" and not has:
        raise UserError(
            f"train.precision bf16: this {'GPU' if gpu else 'CPU'} has no bf16 arithmetic; set auto or fp32"
        )
    # On a CPU `auto` is fp32, whose bits are the same on all of them.
    return wanted == "bf16" or (wanted == "auto" and gpu and has)


def _flat(prefix: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in _flat(f"{prefix}.{name}", inner).items()
    }
