"""The model that a command line names by an alias of the registry."""

from pathlib import Path

import pytest
import yaml

from goal import registry, weights
from goal.commands import named
from goal.errors import UserError
from tests import registered


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered.make(tmp_path, monkeypatch)
    values = registered.params("names")
    Path("params.yaml").write_text(yaml.safe_dump(values.model_dump(by_alias=True, mode="json")))


def test_an_alias_is_fetched_once(project: None) -> None:
    with pytest.raises(UserError, match="names: no challenger yet"):
        named.find("challenger")
    registered.train(0)
    registry.run(registered.params("names"))
    found = named.find("challenger")
    assert weights.digest(found) == weights.digest("models/stage2")
    written = found.stat().st_mtime_ns
    assert named.find("challenger") == found
    assert found.stat().st_mtime_ns == written
    # Another version behind the alias is another file.
    registered.train(1)
    registry.run(registered.params("names"))
    assert named.find("challenger") != found
    assert weights.digest(named.find("challenger")) == weights.digest("models/stage2")
