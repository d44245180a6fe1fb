"""Where networks run: what params name, checked against what the machine has."""

import torch

from goal.errors import UserError


def resolve(name: str, field: str) -> torch.device:
    """The device for auto | cpu | cuda; auto takes a GPU where there is one.

    Raises UserError, naming the field of params, where a GPU is asked for and none is usable.
    """
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise UserError(f"params.yaml: {field}: cuda, but torch sees no GPU here; set it to auto or cpu")
    return torch.device("cuda" if usable and name != "cpu" else "cpu")
