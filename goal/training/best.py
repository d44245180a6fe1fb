"""The weights of the best validation so far, beside a training's checkpoints until one becomes the model."""

from pathlib import Path

from goal.runtime import tensorfiles
from goal.training import checkpoint, learner
from goal.training.checkpoint import Checkpoints
from goal.training.learner import Learner

# Named by its step: a kill may leave a later one than the state that is gone on from knows.
NAME = "best-{}.safetensors"


def keep(saves: Checkpoints, taught: Learner) -> None:
    """Write the weights as those of the best validation, and drop what no state at hand calls the best."""
    tensorfiles.write(_file(saves, taught.validations), taught.model.state_dict(), {})
    states = [taught.validations, *(values["validations"] for values in saves.values())]
    known = {_file(saves, validations) for validations in states if validations}
    for file in set(saves.folder.glob(NAME.format("*"))) - known:
        checkpoint.remove(file)


def take(saves: Checkpoints, taught: Learner) -> None:
    """Bring the weights of the best validation back into the network."""
    tensors, _ = tensorfiles.read(_file(saves, taught.validations))
    taught.model.load_state_dict(tensors)


def _file(saves: Checkpoints, validations: list[dict]) -> Path:
    return saves.folder / NAME.format(learner.best(validations)["step"])
