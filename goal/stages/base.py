"""The base stage: the pretrained network with a stretched position table, which training starts from."""

import logging

from goal import clip, weights
from goal.config import Params, paths

logger = logging.getLogger(__name__)

NAME = "zero-shot"


def run(params: Params) -> None:
    """Write models/base: the weights that params.model names, its context length and view (auto: theirs).

    Raises UserError for weights that are unknown, cannot be downloaded or do not fit.
    """
    model = params.model
    network = clip.load(
        model.name,
        model.context_length,
        pretrained=model.pretrained,
        keep=model.keep_positions,
        view=None if model.view == "auto" else model.view,
    )
    card = {"name": NAME, "pretrained": model.pretrained}
    file = weights.publish(network, paths.model_dir(NAME), card)
    parameters = sum(value.numel() for value in network.parameters())
    logger.info(
        "%s: %s %s, %.1f M parameters, %d tokens, %d px",
        file,
        network.spec.name,
        model.pretrained,
        parameters / 1e6,
        network.spec.context_length,
        network.spec.image_size,
    )
