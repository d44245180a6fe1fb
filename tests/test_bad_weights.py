"""Weights files that are damaged, malformed or hold code: a UserError of one line each, and no code runs."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from goal import weights
from goal.errors import UserError
from goal.model.network import GoalClip
from tests.tiny import SPEC


@pytest.fixture
def model() -> GoalClip:
    torch.manual_seed(0)
    return GoalClip(SPEC)


class Bomb:
    """The content of a malicious checkpoint: it makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.path),)


def broken(state: dict[str, torch.Tensor], key: str, change: Callable) -> dict[str, torch.Tensor]:
    return {**state, key: change(state[key].clone())}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD_FILES: dict[str, tuple[str, Callable[[Path, dict], None], str]] = {
    "nan": (
        "w.pt",
        lambda path, state: torch.save(broken(state, "ln_final.bias", lambda v: v.fill_(torch.nan)), path),
        "ln_final.bias holds NaN or infinite values",
    ),
    "shape": (
        "w.pt",
        lambda path, state: torch.save(broken(state, "ln_final.bias", lambda v: v[:-1]), path),
        re.escape("ln_final.bias has shape (31,), the network needs (32,)"),
    ),
    "cut safetensors": (
        "w.safetensors",
        lambda path, state: (save_file(state, path), truncate(path)),
        "not a whole safetensors file",
    ),
    "cut zip": (
        "w.pt",
        lambda path, state: (torch.save(state, path), truncate(path)),
        "not a whole checkpoint",
    ),
    "empty": ("w.pt", lambda path, state: path.touch(), "is empty"),
    "words": ("w.pt", lambda path, state: path.write_text("not weights at all"), "is no checkpoint"),
    "empty folder": (
        "w.pt",
        lambda path, state: path.mkdir(),
        "w.pt/model.safetensors: cannot be read: No such",
    ),
    "several": (
        "model",
        lambda path, state: (
            path.mkdir(),
            torch.save(state, path / "b.bin"),
            torch.save(state, path / "a.pt"),
        ),
        "model: has no model.safetensors; name one of the weights in it: a.pt, b.bin",
    ),
    "absent": ("w.pt", lambda path, state: None, "cannot be read: No such file"),
    "not a dict": ("w.pt", lambda path, state: torch.save([1, 2], path), "holds a list, not a state dict"),
    "other values": ("w.pt", lambda path, state: torch.save({"a": 1}, path), "these are not tensors: a"),
    "another network": (
        "w.pt",
        lambda path, state: torch.save({"bert.pooler.weight": torch.zeros(2)}, path),
        "not a CLIP with a ViT image tower: missing or misshapen keys: visual.conv1.weight, ",
    ),
    "resnet": (
        "w.pt",
        lambda path, state: torch.save({**state, "visual.layer1.0.conv1.weight": torch.zeros(1)}, path),
        "its image tower is a ResNet",
    ),
    "twice": (
        "w.pt",
        lambda path, state: torch.save(
            state | {f"module.{key}": value for key, value in state.items()}, path
        ),
        "holds two networks",
    ),
    "script": (
        "w.pt",
        lambda path, state: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path),
        "a TorchScript program, which would run on loading",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused(kind: str, model: GoalClip, tmp_path: Path) -> None:
    name, make, reason = BAD_FILES[kind]
    make(tmp_path / name, model.state_dict())
    with pytest.raises(UserError, match=reason) as caught:
        weights.load(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_not_run(how: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "ran"
    content = {"logit_scale": Bomb(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(
        UserError, match=r"(asks for \S+mkdir|no checkpoint.*); only tensors are read, nothing was run"
    ) as caught:
        weights.load(path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[", "[]", '{"name": "x"}'])
def test_a_malformed_network_description_is_refused(text: str, model: GoalClip, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "w.safetensors", {"goal": text})
    with pytest.raises(UserError, match=r"w.safetensors: its network"):
        weights.load(tmp_path / "w.safetensors")
