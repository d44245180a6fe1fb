"""Where each artefact lies, relative to the project's root (dvc.yaml names the same paths)."""

import os
from pathlib import Path

TRAINED = ("stage1", "stage2", "global", "global+local", "balanced")
# Its weights lie between those of zero-shot and of a trained model.
MIXED = "mixed"
MODELS = ("zero-shot", *TRAINED, MIXED)
# A model's folder: its weights, and what made them.
WEIGHTS = "model.safetensors"
CARD = "card.json"
# What a training writes into the model's folder of metrics: a summary, the loss curve, recall in validation.
NUMBERS = "train.json"
CURVE = "loss.csv"
VALIDATION = "val.json"
# What the mix stage writes: recall in validation by alpha, and the chosen one.
MIX_CURVE = "mix.csv"
MIX = "mix.json"


def data_dir(data_set: str) -> Path:
    return Path("data") / data_set


def manifest(data_set: str, split: str) -> Path:
    return data_dir(data_set) / f"{split}.parquet"


def regions_dir(split: str) -> Path:
    return Path("regions") / split


def pairs_dir(split: str) -> Path:
    return Path("pairs") / split


def model_dir(name: str) -> Path:
    """The folder of a model's weights; `zero-shot` is the untrained base."""
    return Path("models") / ("base" if name == "zero-shot" else name)


def weights_file(name: str) -> Path:
    return model_dir(name) / WEIGHTS


def metrics_dir(name: str, data_set: str = "") -> Path:
    """The numbers of a model; `data_set` names one that is not the pipeline's own."""
    return numbers_on(Path("metrics") / name, data_set)


def numbers_on(folder: Path, data_set: str) -> Path:
    """Below a model's folder of numbers, those on a data set; "" is the pipeline's own."""
    return folder / "on" / data_set if data_set else folder


def numbers_folders(folder: Path) -> dict[str, Path]:
    """Where the numbers on each data set lie below a model's folder, the pipeline's own, "", first."""
    return {"": folder, **{other.name: other for other in sorted(folder.glob("on/*"))}}


def reports_dir() -> Path:
    return Path("reports")


def work_dir(stage: str) -> Path:
    """Scratch that must survive a kill; git-ignored, never an out of DVC."""
    return home() / "work" / stage


def registered_dir(digest: str) -> Path:
    """What was fetched of a version of the registered model, by the digest of its weights."""
    return work_dir("registered") / digest


def downloads(name: str) -> Path:
    """Where files from the network are kept; git-ignored, shared by all experiments."""
    return home() / "downloads" / name


def home() -> Path:
    """The root that outlives the command: under `dvc exp run --temp` the real project, not the copy."""
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    for parent in root.parents:
        if parent.name == ".dvc":
            return parent.parent
    return root
