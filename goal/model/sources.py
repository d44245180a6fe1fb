"""Where weights come from: the file of a folder, its shards and configurations, and Hugging Face's hub."""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from goal.config import paths
from goal.errors import Unavailable, UserError

SUFFIXES = {".safetensors", ".pt", ".pth", ".bin", ".ckpt"}
INDEX = ".index.json"
# Of several in one folder, the first is read; they hold the same network in open_clip's and Hugging Face's
# layout.
CONVENTIONAL = (
    paths.WEIGHTS,
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    f"{paths.WEIGHTS}{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
# What says about weights that their shapes do not: of open_clip, and of Hugging Face.
OPEN_CLIP = "open_clip_config.json"
NETWORK, PROCESSOR, IMAGE_PROCESSOR = "config.json", "processor_config.json", "preprocessor_config.json"
CONFIGURATIONS = (OPEN_CLIP, NETWORK, PROCESSOR, IMAGE_PROCESSOR)
HUB = "hf-hub:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_REASON_LENGTH = 160


def file_of(path: Path | str) -> Path:
    """The weights file itself, or the one in a folder: the first of CONVENTIONAL, else the only one there.

    Weights in shards have their index for a file. The file may be missing. Raises UserError for a folder with
    several, naming them.
    """
    path = Path(path)
    if not path.is_dir():
        return default_file(path)
    found = _candidates(one.name for one in path.iterdir())
    if len(found) > 1:
        raise UserError(f"{path}: has no {paths.WEIGHTS}; name one of the weights in it: {', '.join(found)}")
    return path / (found or [paths.WEIGHTS])[0]


def default_file(path: Path) -> Path:
    """The weights file that `path` names, if it is no folder yet."""
    named = path.is_file() or path.suffix in SUFFIXES or path.name.endswith(INDEX)
    return path if named else path / paths.WEIGHTS


def _candidates(names: Iterable[str]) -> list[str]:
    """The first of CONVENTIONAL among the names of a folder, else all weights, sorted."""
    names = set(names)
    usual = [name for name in CONVENTIONAL if name in names]
    return usual[:1] or sorted(name for name in names if Path(name).suffix in SUFFIXES)


def shards(file: Path) -> list[Path]:
    """The files with the tensors: the file itself, or those that an index names, sorted.

    Raises UserError for an index that cannot be read or that names files of other folders.
    """
    if not file.name.endswith(INDEX):
        return [file]
    try:
        names = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
        outside = sorted(name for name in names if Path(name).name != name)
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: not an index of weights in shards ({error!r}); fetch it again") from error
    if outside or not names:
        raise UserError(f"{file}: names no files of its own folder: {', '.join(outside) or 'none at all'}")
    return [file.with_name(name) for name in sorted(names)]


def parts(path: Path) -> list[Path]:
    """All files that the weights at `path` consist of, their configurations included; [] if it is no path."""
    file = file_of(path)
    if not file.is_file():
        return []
    beside = [file.with_name(name) for name in CONFIGURATIONS]
    return [one for one in dict.fromkeys((file, *shards(file), *beside)) if one.is_file()]


def repository(name: str) -> str | None:
    """The repository of Hugging Face's hub that a name means, or None: `hf-hub:owner/name` or `owner/name`.

    Weights files and the project's models/ are paths, whether they are there or not.
    """
    given = name.removeprefix(HUB)
    path = name == given and (Path(name).suffix in SUFFIXES or name.startswith(("models/", ".")))
    return given if _REPOSITORY.fullmatch(given) and not path else None


def fetch(name: str) -> Path:
    """The weights file of a repository, with its configurations beside it, in Hugging Face's cache.

    The environment says where that is (HF_HOME) and whether the hub may be asked (HF_HUB_OFFLINE). Raises
    UserError for a repository that is not there or has no weights, Unavailable if neither the hub nor the
    cache answers.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    hub = repository(name)
    if hub is None:
        raise UserError(f"{name}: not the id of a repository, as in {HUB}openai/clip-vit-base-patch16")
    try:
        found = [one.rfilename for one in HfApi().model_info(hub).siblings or ()]
        weights = _candidates(one for one in found if "/" not in one)
        if not weights:
            raise UserError(f"{hub}: has no weights: {', '.join(sorted(found)) or 'no files at all'}")
        if len(weights) > 1:
            raise UserError(
                f"{hub}: has several weights: {', '.join(weights)}; fetch one by"
                f" `hf download {hub} FILE --local-dir FOLDER`, then name it"
            )
        (chosen,) = weights
        wanted = [chosen, *CONFIGURATIONS]
        if chosen.endswith(INDEX):
            wanted.append(f"{chosen.removesuffix(INDEX).partition('.')[0]}-*-of-*")
        return Path(snapshot_download(hub, allow_patterns=wanted)) / chosen
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{name}: no file, and no repository of Hugging Face's hub that you may read"
        ) from error
    except (OSError, errors.HTTPError) as error:
        with suppress(errors.LocalEntryNotFoundError):
            # No patterns: whatever the cache has of it, such as what transformers fetched.
            file = file_of(snapshot_download(hub, allow_patterns=[], local_files_only=True))
            if file.is_file():
                return file
        reason = " ".join(str(error).split())[:_REASON_LENGTH]
        raise Unavailable(
            f"{name}: no such file, and Hugging Face's hub cannot be asked; where it can, run"
            f" `hf download {hub} --local-dir FOLDER`, then name the folder ({reason})"
        ) from error
