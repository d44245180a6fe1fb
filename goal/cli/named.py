"""The model that a command line names: a path, one of the pipeline, or an alias of the registry."""

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
    """Where the weights of the model called `name` lie; those of an alias are fetched once and kept.

    Raises UserError where there is no such model, Unavailable where the registry does not answer.
    """
    if name in ALIASES:
        return _registered(name)
    path = paths.model_dir(name) if name in paths.MODELS else Path(name)
    if not weights.file_of(path).is_file():
        known = ", ".join((*ALIASES, *paths.MODELS))
        raise UserError(f"{name}: no weights at {weights.file_of(path)}; name a path, or one of {known}")
    return path


def _registered(alias: str) -> Path:
    # Only now: it brings all of the record with it.
    from goal.tracking import mlflow_store, registry

    registered = config.load().register_.name
    with mlflow_store.answering():
        client = mlflow_store.connect()
        version = registry.by_alias(client, registered, alias)
        if version is None:
            raise UserError(f"{registered}: no {alias} yet; `goal register`, then `goal promote`, make one")
        digest = version.tags["goal.model"]
        file = paths.registered_dir(digest) / paths.WEIGHTS
        files.make_folder(file.parent)
        with tempfile.TemporaryDirectory(dir=file.parent) as draft:
            # Each time: the same weights may have been measured again.
            said = registry.fetch(client, version, Path(draft))
            if (said / paths.CARD).exists():
                os.replace(said / paths.CARD, file.with_name(paths.CARD))
            files.replace_folder(said, file.with_name(results.FETCHED))
            if not file.exists():
                fetched = registry.fetch(client, version, Path(draft), f"artifacts/{paths.WEIGHTS}")
                if weights.digest(fetched) != digest:
                    raise UserError(f"{registered} version {version.version}: its weights are not its own")
                os.replace(fetched, file)
    return file
