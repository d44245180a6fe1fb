"""Versions of the registered model: real sqlite store, real weights, loaded back by MLflow."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from goal import clip, text, weights
from goal.config import paths
from goal.datasets import images
from goal.errors import Unavailable, UserError
from goal.model.network import GoalClip
from goal.runtime import files
from goal.stages import register
from goal.tracking import mlflow_store, promotion, provenance, registry
from tests import registered, tiny


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One project for all tests here: each has a registered model of its own name."""
    with pytest.MonkeyPatch.context() as patch:
        registered.make(tmp_path_factory.mktemp("project"), patch)
        registered.train(1)
        yield Path.cwd()


def client() -> MlflowClient:
    return MlflowClient(mlflow_store.uri(), mlflow_store.uri())


def versions(name: str) -> list[ModelVersion]:
    return sorted(client().search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))


def facts(version: ModelVersion) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        return registry.facts(version, registry.fetch(client(), version, Path(folder)))


def load(name: str) -> mlflow.pyfunc.PyFuncModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_store.uri())
        return mlflow.pyfunc.load_model(f"models:/{name}@challenger")


def test_a_version_says_what_it_is_and_where_it_comes_from() -> None:
    register.run(registered.params("lineage"))
    (version,) = versions("lineage")
    file = Path("models/stage2/model.safetensors")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    known = facts(version)
    assert known["goal.model"] == weights.digest(file) == files.digest(file)
    assert known["goal.commit"] == known["goal.evaluation.commit"] == head
    assert known["goal.uncommitted"] == known["goal.evaluation.uncommitted"] == "none"
    assert known["goal.data"] == "tiny"
    assert known["goal.preset"] == "custom"
    assert json.loads(known["goal.outs"]) == {"models/stage2": provenance.md5(file.parent)}
    assert len(known["goal.lock"]) == 64
    details = json.loads(Path("metrics/stage2/details/test.json").read_text())
    assert known["goal.benchmark.test"] == details["protocol"]["split"]
    headline = json.loads(Path("metrics/stage2/test.json").read_text())["text_to_image_r1"]
    assert float(known["goal.metric.test/text_to_image_r1"]) == pytest.approx(headline, abs=1e-3)
    # MLflow shows every tag in a row of its table.
    assert version.tags.keys() == {"goal.name", "goal.data", "goal.commit", "goal.model"}
    assert client().get_model_version_by_alias("lineage", "challenger").version == version.version
    run = client().get_run(version.run_id)
    assert run.data.tags["goal.model"] == version.tags["goal.model"]
    assert "text_to_image_r1" in version.description
    assert json.loads(Path("metrics/registered.json").read_text()) == {
        "name": "lineage",
        "model": "stage2",
        "digest": version.tags["goal.model"],
        "registered": True,
        "metrics": register.measured("stage2", version.tags["goal.model"])[1],
    }


def test_the_loaded_version_embeds_as_the_project_does() -> None:
    register.run(registered.params("equal"))
    captions, picture = list(tiny.CAPTIONS), "data/tiny/images/0.png"
    model = weights.load("models/stage2")
    ids = text.pad([text.tokenize(caption, [], tiny.SPEC.context_length).ids for caption in captions])
    view = clip.preprocess(model.spec)(images.open_image(picture, 200))
    with torch.inference_mode():
        ours = torch.cat([model.encode_texts(ids), model.encode_images(view[None])])
    rows = [*({"text": one} for one in captions), {"image": str(Path(picture).resolve())}]
    theirs = load("equal").predict(pd.DataFrame(rows))
    assert theirs.shape == (7, tiny.SPEC.embed_dim)
    torch.testing.assert_close(
        torch.from_numpy(theirs), torch.nn.functional.normalize(ours, dim=-1), atol=1e-5, rtol=0
    )


def test_the_version_needs_no_pickle_no_network_and_no_project(tmp_path: Path) -> None:
    """Loaded elsewhere, by a process in which unpickling and connecting are errors."""
    register.run(registered.params("alone"))
    program = """
        import sys

        import mlflow
        import pandas as pd

        def refuse(event, arguments):
            if event == "pickle.find_class" or event == "socket.connect":
                raise RuntimeError(f"{event} {arguments}")

        sys.addaudithook(refuse)
        model = mlflow.pyfunc.load_model("models:/alone@challenger")
        print(model.predict(pd.DataFrame({"text": ["A red ball."]})).shape)
        import goal
        print(goal.__file__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_TRACKING_URI": mlflow_store.uri(), "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    shape, code = done.stdout.splitlines()[-2:]
    assert shape == f"(1, {tiny.SPEC.embed_dim})"
    assert Path(code).is_relative_to(paths.home() / "mlartifacts")


def test_a_version_s_files_are_weights_code_and_evaluation() -> None:
    register.run(registered.params("files"))
    (version,) = versions("files")
    folder = Path(mlflow.artifacts.download_artifacts(version.source, tracking_uri=mlflow_store.uri()))
    contained = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"artifacts/model.safetensors", "served_model.py", "code/goal/clip.py"} <= contained
    assert {"evaluation/details/test.json", "evaluation/ranks/test.parquet"} <= contained
    assert {Path(name).suffix for name in contained} <= {
        "", ".py", ".safetensors", ".json", ".yaml", ".txt", ".parquet", ".csv",
    }  # fmt: skip
    stages = json.loads((folder / "evaluation/lineage.json").read_text())
    assert stages["train@stage2"]["outs"] == json.loads(facts(version)["goal.outs"])
    assert files.digest(folder / "artifacts/model.safetensors") == version.tags["goal.model"]
    requirements = (folder / "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "+" not in requirements
    model = mlflow.models.get_model_info(str(folder))
    assert model.signature.inputs.input_names() == ["text", "image"]
    assert model.signature.outputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, tiny.SPEC.embed_dim)


def test_the_same_weights_are_one_version_and_others_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    values = registered.params("again")
    register.run(values)
    client().delete_registered_model_alias("again", "challenger")
    register.run(values)
    assert "these weights are version 1 of again already" in caplog.text
    assert len(versions("again")) == 1
    registered.train(2)
    register.run(values)
    assert [int(version.version) for version in versions("again")] == [1, 2]
    assert client().get_model_version_by_alias("again", "challenger").tags["goal.model"] == weights.digest(
        "models/stage2"
    )
    registered.train(1)
    register.run(values)
    assert len(versions("again")) == 2
    assert int(client().get_model_version_by_alias("again", "challenger").version) == 1


def test_the_same_again_does_not_even_load_mlflow_until_the_store_changes() -> None:
    """Else each `dvc repro` with nothing to do would wait for it."""
    values = registered.params("quick")
    register.run(values)
    Path("params.yaml").write_text(json.dumps(values.model_dump(by_alias=True)))
    program = """
        import sys
        from goal import config
        from goal.stages import register
        register.run(config.load())
        print(sorted({"mlflow", "torch"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
    client().delete_registered_model("quick")
    register.run(values)
    assert len(versions("quick")) == 1


def test_a_version_names_the_flow_run_that_first_registered_it(monkeypatch: pytest.MonkeyPatch) -> None:
    values = registered.params("flown")
    for branch, run in (("runs/abc", "first"), ("runs/def", "second")):
        monkeypatch.setenv("GOAL_BRANCH", branch)
        monkeypatch.setenv("GOAL_FLOW_RUN", run)
        register.run(values)
    (version,) = versions("flown")
    known = facts(version)
    assert (known["goal.branch"], known["goal.flow_run"]) == ("runs/abc", "first")
    assert "branch `runs/abc`" in version.description


def test_new_measurements_of_the_same_weights_renew_their_version() -> None:
    values = registered.params("renewed")
    register.run(values)
    (before,) = versions("renewed")
    split = facts(before)["goal.benchmark.test"]
    shutil.copy("data/tiny/images/1.png", "data/tiny/images/0.png")
    numbers = Path("metrics/stage2/test.json")
    registered.measure()
    numbers.write_text(json.dumps(json.loads(numbers.read_text()) | {"text_to_image_r1": 12.345}))
    register.run(values)
    (version,) = versions("renewed")
    assert facts(version)["goal.benchmark.test"] != split
    assert "12.345" in version.description
    assert "12.345" not in before.description
    folder = registry.fetch(client(), version, Path("fetched"))
    assert facts(version)["goal.benchmark.test"] in (folder / "details/test.json").read_text()


def test_a_version_says_if_the_code_of_its_evaluation_is_not_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training's code was: what changed since is how it was measured."""
    values = registered.params("dirty")
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "CODE", ("goal", "metrics.py"))
        Path("metrics.py").write_text("")
        register.run(values)
        (version,) = versions("dirty")
        assert facts(version)["goal.uncommitted"] == "none"
        assert facts(version)["goal.evaluation.uncommitted"] == "metrics.py"
        with pytest.raises(UserError, match="its evaluation's code was not committed: metrics.py"):
            promotion.promote(values, promotion.judge(values), "")
        Path("metrics.py").unlink()
        register.run(values)
        promotion.promote(values, promotion.judge(values), "")
        # The version stays what it is when the checkout changes later.
        Path("metrics.py").write_text("")
        register.run(values)
        Path("metrics.py").unlink()
    assert facts(version)["goal.evaluation.uncommitted"] == "none"


def test_numbers_of_another_code_than_the_checkout_s_cannot_be_promoted() -> None:
    values, file = registered.params("older"), Path("metrics/stage2/details/test.json")
    ours = file.read_text()
    file.write_text(json.dumps(json.loads(ours) | {"code": "other"}))
    register.run(values)
    assert "measured with other code" in "".join(promotion.judge(values).faults)
    file.write_text(ours)
    register.run(values)
    assert promotion.judge(values).passed


def test_two_registrations_at_once_make_one_version() -> None:
    values = registered.params("twice")
    Path("params.yaml").write_text(json.dumps(values.model_dump(by_alias=True)))
    program = "from goal import config; from goal.stages import register; register.run(config.load())"
    both = [
        subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert len(versions("twice")) == 1


def test_the_logged_model_has_the_numbers_and_the_parameters() -> None:
    register.run(registered.params("logged"))
    (version,) = versions("logged")
    model = client().get_logged_model(facts(version)["goal.logged"])
    run = client().get_run(version.run_id)
    numbers = register.measured("stage2", version.tags["goal.model"])[1]
    assert {one.key: one.value for one in model.metrics} == pytest.approx(numbers)
    assert {one.dataset_name for one in model.metrics} == {"tiny/test"}
    assert model.params["stage2.lr"] == run.data.params["stage2.lr"]
    for name in numbers:
        # Earlier tests may have measured the model again, each at a step of its own.
        steps = [point.step for point in client().get_metric_history(version.run_id, name)]
        assert len(set(steps)) == len(steps)


def test_weights_that_no_run_made_are_registered_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(99)
    weights.save(GoalClip(tiny.SPEC), paths.model_dir("global"))
    register.run(registered.params("stray", model="global"))
    (version,) = versions("stray")
    assert "cannot be promoted" in caplog.text
    assert not version.run_id
    assert not {"goal.commit", "goal.lock"} & facts(version).keys()


def test_with_tracking_off_there_is_no_version_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    register.run(registered.params("off", enabled=False))
    assert "no version is made" in caplog.text
    assert versions("off") == []
    assert json.loads(Path("metrics/registered.json").read_text())["registered"] is False


def test_a_missing_model_is_one_line() -> None:
    with pytest.raises(UserError, match=r"models/global\+local/model.safetensors: not found; `dvc repro`"):
        register.run(registered.params("missing", model="global+local"))


def test_a_registry_that_is_down_is_one_line_and_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match=r"^http://127.0.0.1:9: ") as error:
        register.run(registered.params("down"))
    assert "\n" not in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_fault_of_this_machine_is_not_blamed_on_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a flow would wait for a server that is there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="No such file or directory.*absent") as error:
        register.run(registered.params("nowhere"))
    assert not isinstance(error.value, Unavailable)
