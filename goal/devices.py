"""Where networks run: what params name, checked against what the machine has."""

import torch

from goal.errors import UserError


def resolve(name: str, field: str, worker: int = 0) -> torch.device:
    """The device for auto | cpu | cuda; auto takes a GPU where there is one.

    worker: the place of this process among those that work alike on this machine: they take its GPUs in turn.
    Raises UserError, naming the field of params, where a GPU is asked for and none is usable.
    """
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise UserError(f"params.yaml: {field}: cuda, but torch sees no GPU here; set it to auto or cpu")
    if usable and name != "cpu":
        return torch.device("cuda", worker % torch.cuda.device_count())
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether the device is a GPU with bf16 arithmetic; GPUs before Ampere have to emulate it, slowly."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
