"""The served model answers rows of texts and pictures, and refuses bad ones with a reason."""

import base64
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from goal import clip, text, weights
from goal.datasets import images
from goal.runtime import code
from goal.stages import register
from goal.tracking import mlflow_store, served_model
from tests import documents, registered, tiny
from tests.imports import ROOT

PICTURE = Path("data/tiny/images/0.png")


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        tiny.make(tmp_path_factory.mktemp("project"), patch, ("stage2",))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Path.cwd()


@pytest.fixture(scope="module")
def model(project: Path) -> mlflow.pyfunc.PyFuncModel:
    """The model as a server loads it, in this process."""
    mlflow_store.prepare()
    served_model.save(project / "saved", project / "models/stage2/model.safetensors", 0.01, None, None)
    torch.backends.cudnn.allow_tf32 = True
    loaded = mlflow.pyfunc.load_model(str(project / "saved"))
    assert not torch.backends.cudnn.allow_tf32
    return loaded


@pytest.fixture
def on_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")


def own(captions: list[str], pictures: list[Path]) -> np.ndarray:
    """The project's own normalised embeddings of texts, then pictures."""
    network = weights.load("models/stage2")
    found = [
        network.encode_texts(text.tokenize(caption, [], tiny.SPEC.context_length).ids[None], normalize=True)
        for caption in captions
    ]
    prepare = clip.preprocess(network.spec)
    found += [
        network.encode_images(prepare(images.open_image(path, 200))[None], normalize=True)
        for path in pictures
    ]
    return np.concatenate([one.detach().numpy() for one in found])


def in_base64(path: Path = PICTURE) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_texts_and_pictures_of_every_kind_in_one_request(model: mlflow.pyfunc.PyFuncModel) -> None:
    lines = base64.encodebytes(PICTURE.read_bytes()).decode()
    rows = [
        {"text": tiny.CAPTIONS[1], "image": None},
        {"image": in_base64()},
        {"text": "", "image": lines},
        {"text": tiny.CAPTIONS[5]},
        {"image": f"data:image/png;base64,{in_base64()}"},
        {"image": str(PICTURE)},
        {"image": PICTURE.read_bytes()},
    ]
    wanted = own([tiny.CAPTIONS[1], tiny.CAPTIONS[5]], [PICTURE])
    found = model.predict(pd.DataFrame(rows))
    np.testing.assert_allclose(found, wanted[[0, 2, 2, 1, 2, 2, 2]], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_cells_that_pandas_calls_missing_are_empty(model: mlflow.pyfunc.PyFuncModel) -> None:
    rows = pd.DataFrame({"text": [tiny.CAPTIONS[1], None], "image": [None, in_base64()]}).convert_dtypes()
    assert rows.loc[1, "text"] is pd.NA
    np.testing.assert_allclose(model.predict(rows), own([tiny.CAPTIONS[1]], [PICTURE]), atol=1e-5)
    rows = pd.DataFrame({"text": [tiny.CAPTIONS[1]], "image": [np.float32("nan")]})
    np.testing.assert_allclose(model.predict(rows), own([tiny.CAPTIONS[1]], []), atol=1e-5)


def test_more_rows_than_a_batch_keep_their_order(model: mlflow.pyfunc.PyFuncModel) -> None:
    captions = [f"Picture number {number}." for number in range(served_model.BATCH + 3)]
    found = model.predict(pd.DataFrame({"text": captions}))
    np.testing.assert_allclose(found, own(captions, []), atol=1e-5)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "A dog.", "image": "x.png"}, "row 1: give text or image, not both"),
        ({"text": None, "image": None}, "row 1: give a text or an image"),
        ({"text": "  \n"}, "row 1: text: blank"),
        ({"image": 3}, "row 1: image: expected a string, found"),
        ({"image": np.zeros(2)}, "row 1: image: expected a string, found ndarray"),
        ({"text": pd.NA, "image": np.float32("nan")}, "row 1: give a text or an image"),
        ({"image": "no.png"}, "row 1: image: not found"),
        ({"image": "not base64!"}, "row 1: image: neither base64 nor a path"),
        ({"image": "data:image/png,abc"}, "row 1: image: a data URI must be"),
        ({"image": base64.b64encode(b"text").decode()}, "row 1: image: not a picture"),
        ({"image": b"\x89PNG"}, "row 1: image: "),
    ],
)
def test_a_bad_row_is_named_with_its_reason(model: mlflow.pyfunc.PyFuncModel, row: dict, words: str) -> None:
    rows = pd.DataFrame([{"text": "A good row."}, row])
    with pytest.raises(MlflowException) as error:
        model.predict(rows)
    assert words in error.value.message
    assert error.value.get_http_status_code() == 400
    assert "tmp" not in error.value.message.split("row 1")[1]


def test_a_picture_over_the_limit_is_refused(model: mlflow.pyfunc.PyFuncModel, tmp_path: Path) -> None:
    images.Image.new("RGB", (200, 100)).save(tmp_path / "large.png")
    with pytest.raises(MlflowException, match="row 0: image: too large"):
        model.predict(pd.DataFrame([{"image": in_base64(tmp_path / "large.png")}]))


def test_a_server_s_environment_holds_all_that_its_code_imports() -> None:
    """Without --env-manager local, MLflow installs these packages and no others."""
    # A request's captions are not split into sentences.
    used = code.closure([ROOT / "goal/tracking/served_model.py"], ("cli", "text/punkt.py"))
    imported = {name.split(".")[0] for file in used for name in code.modules(file)} - sys.stdlib_module_names
    owners = metadata.packages_distributions()
    given = {name.replace("_", "-") for name in served_model.PACKAGES}
    lacking = [
        name
        for name in sorted(imported - {"goal"})
        if not given & {owner.lower().replace("_", "-") for owner in owners[name]}
    ]
    assert lacking == []


def test_rows_without_a_known_column_are_refused(model: mlflow.pyfunc.PyFuncModel) -> None:
    with pytest.raises(MlflowException, match="no rows with a column `text` or `image`"):
        model.predict(pd.DataFrame([{"caption": "A dog."}]))


@pytest.mark.usefixtures("on_a_server")
def test_a_server_reads_no_file_unless_its_owner_names_a_folder(
    model: mlflow.pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = pd.DataFrame([{"image": str(PICTURE.resolve())}])
    with pytest.raises(MlflowException, match="send base64; the server reads no files"):
        model.predict(row)
    monkeypatch.setenv(served_model.ROOT_VARIABLE, "data/tiny")
    wanted = own([], [PICTURE])
    np.testing.assert_allclose(model.predict(row), wanted, atol=1e-5)
    np.testing.assert_allclose(model.predict(pd.DataFrame([{"image": "images/0.png"}])), wanted, atol=1e-5)
    images.Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    Path("data/tiny/images/link.png").symlink_to(tmp_path / "secret.png")
    for outside in (str(tmp_path / "secret.png"), "../../saved/x.png", "images/link.png"):
        with pytest.raises(MlflowException, match="outside the server's GOAL_IMAGE_ROOT"):
            model.predict(pd.DataFrame([{"image": outside}]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve` of the champion, as docs/serving.md starts it, away from the project."""
    values = registered.params("served")
    register.run(values)
    client = mlflow_store.connect()
    client.set_registered_model_alias("served", "champion", "1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (command,) = documents.commands("serving.md", "mlflow models serve")
    command = command.replace("models:/goal@", "models:/served@").replace("5001", str(port))
    # As after `. .venv/bin/activate`.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        shlex.split(command),
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": mlflow_store.uri()},
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{address}/ping", process)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(address: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        try:
            urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.3)
        else:
            return


def post(address: str, body: str, kind: str = "application/json") -> tuple[int, str]:
    request = urllib.request.Request(f"{address}/invocations", body.encode(), {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_documented_requests_are_answered(server: str, tmp_path: Path) -> None:
    with images.Image.open(PICTURE) as picture:
        picture.save(tmp_path / "photo.jpg", quality=95)
    asked = documents.commands("serving.md", "curl")
    answers = [
        subprocess.run(
            ["bash", "-c", command.replace("http://127.0.0.1:5001", server)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for command in asked
    ]
    found = np.concatenate([json.loads(answer)["predictions"] for answer in answers])
    captions = ["A red ball lies on a blue table. A cat sleeps beside it.", "A cat.", "A dog on a beach."]
    wanted = own(captions, [tmp_path / "photo.jpg"])[[0, 3, 1, 2]]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_the_real_server_answers_texts_and_pictures(server: str) -> None:
    rows = [{"text": tiny.CAPTIONS[1]}, {"image": in_base64()}, {"text": tiny.CAPTIONS[4]}]
    wanted = own([tiny.CAPTIONS[1], tiny.CAPTIONS[4]], [PICTURE])[[0, 2, 1]]
    status, answer = post(server, json.dumps({"dataframe_records": rows}))
    assert status == 200
    np.testing.assert_allclose(json.loads(answer)["predictions"], wanted, atol=1e-5)
    many = {"columns": ["text"], "data": [[f"Number {number}."] for number in range(100)]}
    status, answer = post(server, json.dumps({"dataframe_split": many}))
    assert (status, len(json.loads(answer)["predictions"])) == (200, 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"dataframe_records": [{"text": "a"}, {"image": "a.png"}]}', "row 1: image: send base64"),
        ('{"dataframe_records": [{"text": "a"}, {"image": "dGV4dA=="}]}', "row 1: image: not a picture"),
        ('{"dataframe_records": [{"text": 3}]}', "text"),
        ('{"dataframe_records": [{"caption": "a"}]}', "no rows with a column"),
        ('{"dataframe_records": []}', "no rows with a column"),
        ('{"dataframe_records": "a"}', ""),
        ('{"rows": []}', "dataframe_records"),
        ("not JSON", "valid JSON"),
        ("[1, 2]", "JSON dictionary"),
    ],
)
def test_the_real_server_refuses_bad_input_with_a_reason(server: str, body: str, words: str) -> None:
    status, answer = post(server, body)
    assert 400 <= status < 500
    assert words in answer
    assert "Traceback" not in answer


@pytest.mark.slow
def test_the_real_server_answers_csv(server: str) -> None:
    captions = ["12", "NA", 'A "red" ball,\nand a cat.']
    rows = pd.DataFrame([*({"text": caption} for caption in captions), {"image": in_base64()}])
    status, answer = post(server, rows.to_csv(index=False), "text/csv")
    assert status == 200, answer
    np.testing.assert_allclose(json.loads(answer)["predictions"], own(captions, [PICTURE]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("text/csv", 'text\nA dog.\n""\n', "row 1: give a text or an image"),
        ("text/csv", "caption\nA dog.\n", "no rows with a column"),
        ("text/csv", 'text,image\n"A dog.\n', "not CSV with a header"),
        ("text/csv", "", "not CSV with a header"),
        ("text/xml", "text\nA dog.\n", "application/json"),
        ("application/vnd.apache.parquet", "text\nA dog.\n", "Failed to parse input"),
    ],
)
def test_the_real_server_refuses_other_content_with_a_reason(
    server: str, kind: str, body: str, words: str
) -> None:
    status, answer = post(server, body, kind)
    assert status in (400, 415)
    assert words in answer
    assert "Traceback" not in answer
