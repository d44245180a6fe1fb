"""Find the weights that a command names: a path, a model of the pipeline, or an alias of the registry."""

import os
import tempfile
from pathlib import Path

from goal import config, weights
from goal.config import paths
from goal.errors import UserError
from goal.evaluation import results
from goal.runtime import files

ALIASES = ("champion", "challenger")


def find(name: str) -> Path:
    """The path of the weights of the model `name`; those of an alias are fetched once and kept.

    Raises UserError if there is no such model, Unavailable if the registry does not answer.
    """
    if name in ALIASES:
        return _registered(name)
    path = paths.model_dir(name) if name in paths.MODELS else Path(name)
    if not weights.file_of(path).is_file():
        known = ", ".join((*ALIASES, *paths.MODELS))
        raise UserError(f"{name}: no weights at {weights.file_of(path)}; name a path, or one of {known}")
    return path


def _registered(alias: str) -> Path:
    # Imported here: it imports MLflow, which takes seconds.
    from goal.tracking import mlflow_store, registry

    registered = config.load().register_.name
    with mlflow_store.answering():
        client = mlflow_store.connect()
        version = registry.by_alias(client, registered, alias)
        if version is None:
            raise UserError(f"{registered}: no {alias} yet; run `goal register`, then `goal promote`")
        digest = version.tags["goal.model"]
        file = paths.registered_dir(digest) / paths.WEIGHTS
        files.make_folder(file.parent)
        with tempfile.TemporaryDirectory(dir=file.parent) as draft:
            # Fetched every time: the same weights may have been evaluated again.
            evaluation = registry.fetch(client, version, Path(draft))
            if (evaluation / paths.CARD).exists():
                os.replace(evaluation / paths.CARD, file.with_name(paths.CARD))
            files.replace_folder(evaluation, file.with_name(results.FETCHED))
            if not file.exists():
                fetched = registry.fetch(client, version, Path(draft), f"artifacts/{paths.WEIGHTS}")
                if weights.digest(fetched) != digest:
                    raise UserError(
                        f"{registered} version {version.version}: the sha256 of its weights is wrong"
                    )
                os.replace(fetched, file)
    return file
