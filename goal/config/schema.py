"""Typed sections of params.yaml: each key is required, unknown keys are refused, no default lives here."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from goal.config.fields import (
    WORD,
    Cosine,
    Count,
    CountOrZero,
    Decay,
    Name,
    PathText,
    Positive,
    Section,
    Share,
    Weight,
)
from goal.errors import UserError

PARAMS_FILE = Path("params.yaml")

REGION_SOURCES = Literal["given", "fixed", "felzenszwalb", "sam", "detector"]
RELEASED = ("docci", "dci", "sharegpt4v", "urban1k", "coco", "flickr30k", "goal_lists")
DATA_SOURCES = Literal["scenes", "folder", *RELEASED]


class Scenes(Section):
    image_size: Annotated[int, Field(ge=64)]
    train: Count
    val: Count
    test: Count
    twins: CountOrZero
    objects: Annotated[list[Count], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _check(self) -> "Scenes":
        if self.twins > self.test:
            raise ValueError("twins cannot outnumber test")
        if not 2 <= self.objects[0] <= self.objects[1] <= 6:
            raise ValueError("objects must be [fewest, most] with 2 <= fewest <= most <= 6")
        return self


class Folder(Section):
    image_column: str
    caption_column: str | list[str]
    short_column: str | list[str]
    group_column: str
    separator: Annotated[str, Field(max_length=1)]
    near_copies: Annotated[int, Field(ge=0, le=255)]
    split_column: str
    val_share: Share
    test_share: Share

    @model_validator(mode="after")
    def _check(self) -> "Folder":
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share + test_share must leave something to train on")
        return self


class Download(Section):
    root: PathText
    accept_terms: Literal["", *RELEASED]
    gallery: CountOrZero


class Data(Section):
    name: Name
    source: DATA_SOURCES
    path: Annotated[PathText, Field(min_length=1)]
    images: PathText
    limit: CountOrZero
    limit_order: Literal["random", "first"]
    max_megapixels: Positive
    max_rejected: Share
    digest: Literal["content", "size_and_mtime"]
    scenes: Scenes
    folder: Folder
    download: Download

    @model_validator(mode="after")
    def _check(self) -> "Data":
        if self.limit and self.source == "scenes":
            raise ValueError("limit is for sets that are read; data.scenes has its own sizes")
        return self


class Model(Section):
    name: Name
    pretrained: Annotated[PathText, Field(min_length=1)]
    context_length: Annotated[int, Field(ge=3)]
    keep_positions: Count
    view: Literal["auto", "center_crop", "squash"]


class Felzenszwalb(Section):
    scales: Annotated[list[Positive], Field(min_length=1)]
    sigma: Weight
    min_size: Count
    max_side: Count


class Sam(Section):
    model: Literal["vit_h", "vit_l", "vit_b"]
    checkpoint: PathText
    points_per_side: Count
    points_per_batch: Count
    pred_iou_threshold: Share
    stability_threshold: Share
    box_nms_threshold: Share
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    prune_points: bool


class Detector(Section):
    model: Name
    checkpoint: PathText
    min_score: Share
    max_boxes: Count


class Regions(Section):
    sources: Annotated[list[REGION_SOURCES], Field(min_length=1)]
    splits: Annotated[list[Literal["train", "val", "test"]], Field(min_length=1)]
    min_area: Share
    max_area: Share
    shard_size: Count
    workers: Count
    threads: Count
    device: Literal["auto", "cpu", "cuda"]
    felzenszwalb: Felzenszwalb
    sam: Sam
    detector: Detector

    @model_validator(mode="after")
    def _check(self) -> "Regions":
        if self.min_area >= self.max_area:
            raise ValueError("min_area must be below max_area")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("sources names one twice")
        if "train" not in self.splits:
            raise ValueError("splits must hold train: stage 2 learns from its pairs")
        return self


class Pairs(Section):
    matcher: Annotated[PathText, Field(min_length=1)]
    sentences: Annotated[str, Field(pattern=r"^(embedded|punkt_tab/[a-z]+)$")]
    batch_size: Count
    shard_size: Count
    workers: Count
    threads: Count
    device: Literal["auto", "cpu", "cuda"]
    contact_sheet: Count


class Train(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "bf16", "fp32"]
    processes: Count
    loader_workers: CountOrZero
    packed: bool
    compile: bool
    checkpoint_activations: bool
    chunk_size: CountOrZero
    log_every: Count
    checkpoint_minutes: Positive
    keep_checkpoints: Count


class GlobalLoss(Section):
    """Weights of stage 1's terms; the paper's names, `global` being a keyword of Python."""

    global_: Annotated[Weight, Field(alias="global")]
    hard_negative: Weight
    short_caption: Weight


class GoalLoss(GlobalLoss):
    """Weights of the full objective (paper, section 3), and of terms that others propose."""

    local: Weight
    tsl_image: Weight
    tsl_text: Weight
    local_hard_negative: Weight
    sentence_patches: Weight
    attention_temperature: Positive
    late_interaction: Weight


class PairChoice(Section):
    pick: Literal["best", "sample"]
    per_step: Count
    top: Count
    min_similarity: Cosine
    min_visible: Share

    @model_validator(mode="after")
    def _check(self) -> "PairChoice":
        if self.pick == "sample" and self.per_step > self.top:
            raise ValueError("per_step cannot exceed top, from which it samples")
        return self


class Stage(Section):
    """How one stage learns; epochs 0 passes the weights on unchanged."""

    epochs: CountOrZero
    batch_size: Annotated[int, Field(ge=2)]
    lr: Positive
    weight_decay: Weight
    warmup_steps: CountOrZero
    clip_norm: Weight
    validate_epochs: Count
    patience: CountOrZero
    keep: Literal["last", "best"]
    neighbours: CountOrZero
    short_share: Share
    ema: Decay


class Stage1(Stage):
    loss: GlobalLoss


class Stage2(Stage):
    loss: GoalLoss
    pairs: PairChoice


class Balanced(Section):
    """What the recommended recipe has in place of stage 2's fields of the same names."""

    neighbours: CountOrZero
    short_share: Share
    ema: Decay
    loss: GoalLoss
    pairs: PairChoice


class Mix(Section):
    model: Literal["stage1", "stage2", "global", "global+local", "balanced"]
    alphas: Annotated[list[Share], Field(min_length=1)]
    max_short_drop: Weight

    @model_validator(mode="after")
    def _check(self) -> "Mix":
        if len(self.alphas) > 1 and 0 not in self.alphas:
            raise ValueError("alphas must hold 0, the weights before training, or one value only")
        return self


class Evaluate(Section):
    ks: Annotated[list[Count], Field(min_length=1)]
    batch_size: Count
    chunk: Count


class Report(Section):
    gallery: CountOrZero
    examples: CountOrZero
    grounding: CountOrZero


class Register(Section):
    name: Name
    model: Literal["stage1", "stage2", "global", "global+local", "balanced", "mixed"]


class Gate(Section):
    """What a version's measurement must show; the units of `value` are percent and points of it."""

    # One of another data set than the pipeline's own: <data set>/<benchmark>.
    benchmark: Annotated[str, Field(pattern=f"^{WORD}(/{WORD})?$")]
    metric: Name
    rule: Literal["minimum", "above_chance", "max_drop", "improves"]
    value: Weight


class Promote(Section):
    gates: Annotated[list[Gate], Field(min_length=1)]


class Tracking(Section):
    enabled: bool
    experiment: Annotated[str, Field(min_length=1)]


class Params(Section):
    seed: CountOrZero
    data: Data
    model: Model
    regions: Regions
    pairs: Pairs
    train: Train
    stage1: Stage1
    stage2: Stage2
    balanced: Balanced
    mix: Mix
    evaluate: Evaluate
    report: Report
    register_: Annotated[Register, Field(alias="register")]
    promote: Promote
    tracking: Tracking


def load(path: Path = PARAMS_FILE) -> Params:
    """Read and validate a parameter file.

    Raises UserError with one line per fault, which names the file, the field and what was expected.
    """
    return parse(read(path), str(path))


def read(path: Path) -> Any:
    """The values of a YAML file; raises UserError where it cannot be read."""
    try:
        return from_text(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; run in the project's root, or `goal use <preset>`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def from_text(text: str, source: str) -> Any:
    """The values of a YAML text; `source` is named in errors."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from error


def parse(values: Any, source: str) -> Params:
    """Validate a mapping as Params; `source` is named in errors."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected sections, found {type(values).__name__}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_line(source, fault) for fault in error.errors())) from error


def _line(source: str, fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{source}: {field}: unknown parameter"
    if fault["type"] == "missing":
        return f"{source}: {field}: missing"
    return f"{source}: {field}: {fault['msg']} (found {fault['input']!r})"
