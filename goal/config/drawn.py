"""The network that only knows drawn scenes, and what to tell whoever gives it photographs."""

NETWORK, SOURCE = "scenes-vit", "scenes"
ADVICE = (
    f"{NETWORK} has seen drawn scenes only: on photographs its results stay near chance and only show that "
    "the data goes through; for results that count: `goal use own-data-b16` (needs a GPU); offline, then "
    "`dvc exp run -S model.pretrained=/path/to/weights`, with a CLIP that you have (docs/weights.md)"
)


def unfit(network: str, source: str) -> bool:
    """Whether a network (model.name) meets pictures of a source (data.source) for which it is of no use."""
    return network == NETWORK and source != SOURCE
