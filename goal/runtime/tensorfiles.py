"""Files of tensors: read without running anything they hold, written wholly or not at all."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from goal.errors import UserError
from goal.runtime import files

# Under these names training scripts keep the weights beside their own state.
_NESTED = ("state_dict", "model_state_dict", "model")
_REASON_LENGTH = 160


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The named tensors of a .safetensors file or of a checkpoint of torch.save, and the former's metadata.

    Raises UserError for files that are missing, truncated, of another kind, or that hold code: a pickle is
    read by torch's weights_only loader, which runs nothing.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name the weights file in it")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        raise UserError(f"{path}: is empty; fetch it again")
    # A safetensors file opens with the length of its header and the header's brace.
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return _read_safetensors(path)
    return _read_checkpoint(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            # Copies: the file is mapped into memory, and may be replaced while the network lives.
            return {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({_short(error)}); fetch it again") from error


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UserError(
                    f"{path}: a TorchScript program, which would run on loading; give a state dict instead"
                )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words advise to load it all the same.
        called = re.search(r"GLOBAL (\S+)", str(error))
        found = f"asks for {called[1]}" if called else "is no checkpoint, or a truncated one"
        raise UserError(
            f"{path}: {found}; only tensors are read, nothing was run: give a file with a state dict alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a whole checkpoint ({_short(error)}); fetch it again") from error
    return _state_dict(path, content)


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"{path}: not a state dict: these are not tensors: {', '.join(others)}")
    return dict(content)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_REASON_LENGTH]


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a .safetensors file and the folders on its way; UserError where the disk refuses.

    One entry of metadata at most: several come in no fixed order, and the same content must be the same
    bytes.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    files.make_folder(path.parent)
    with files.atomic(path) as draft:
        # safetensors gives its files to their owner alone; this one is as others may read it.
        draft.touch()
        mode = draft.stat().st_mode
        try:
            save_file(state, draft, metadata)
            draft.chmod(mode)
        except SafetensorError as error:
            # Its own class for a full disk and the like.
            raise OSError(_short(error)) from error
