"""The registered model, as MLflow runs this file: rows of text or picture in, normalised embeddings out."""

import base64
import binascii
import io
import json
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType
from PIL import Image

COLUMNS = ("text", "image")
# The folder below which a server may read pictures that a request names; without it, requests bring bytes.
ROOT_VARIABLE = "GOAL_IMAGE_ROOT"
SERVER = "mlflow.pyfunc.scoring_server.app"
BATCH = 32
# What this file and the package's code for it import; MLflow makes a server's environment from these.
PACKAGES = (
    "ftfy", "huggingface_hub", "jaxtyping", "mlflow", "numpy", "open_clip_torch", "pandas", "pillow",
    "pyarrow", "pydantic", "pyyaml", "regex", "safetensors", "simplejpeg", "torch", "torchvision", "tqdm",
)  # fmt: skip


class GoalEmbedder(PythonModel):
    """One row, one embedding: of `text`, or of `image` (a path, or the file's bytes, raw or in base64).

    Embeddings have length 1, so that a dot product is a cosine. A row that cannot be used refuses the
    request, with the row's number (from 0) and the reason.
    """

    def load_context(self, context: PythonModelContext) -> None:
        from goal import clip, weights
        from goal.runtime import devices

        # Pillow registers its formats at the first picture, and two requests at once would trip over it.
        Image.init()
        if SERVER in sys.modules:
            _adapt_server()
        self._device = devices.resolve("auto", "device")
        self._model = weights.load(context.artifacts["weights"]).eval().to(self._device)
        self._prepare = clip.preprocess(self._model.spec)
        self._max_megapixels = context.model_config["max_megapixels"]

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Embeddings (rows, D), float32.

        Raises MlflowException (the server's 400) naming the row.
        """
        columns = {name: list(model_input[name]) for name in COLUMNS if name in model_input}
        if not columns:
            raise _error("no rows with a column `text` or `image`")
        rows = [_content(row, columns) for row in range(len(model_input))]
        result = np.empty((len(rows), self._model.spec.embed_dim), np.float32)
        for name, embed in (("text", self._texts), ("image", self._images)):
            chosen = [row for row, (column, _) in enumerate(rows) if column == name]
            for start in range(0, len(chosen), BATCH):
                part = chosen[start : start + BATCH]
                result[part] = embed([(row, rows[row][1]) for row in part])
        return result

    def _texts(self, rows: list[tuple[int, Any]]) -> np.ndarray:
        import torch

        from goal import text

        length = self._model.spec.context_length
        ids = text.pad([text.tokenize(caption, [], length).ids for _, caption in rows])
        with torch.inference_mode():
            return self._model.encode_texts(ids.to(self._device), normalize=True).float().cpu().numpy()

    def _images(self, rows: list[tuple[int, Any]]) -> np.ndarray:
        import torch

        views = torch.stack([self._prepare(self._picture(row, value)) for row, value in rows])
        with torch.inference_mode():
            return self._model.encode_images(views.to(self._device), normalize=True).float().cpu().numpy()

    def _picture(self, row: int, value: str | bytes) -> Image.Image:
        from goal.datasets import images

        raw = value if isinstance(value, bytes) else _from_base64(row, value)
        try:
            if raw is None:
                return images.open_image(_allowed(row, value), self._max_megapixels)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "picture"
                path.write_bytes(raw)
                return images.open_image(path, self._max_megapixels)
        except images.ImageError as error:
            raise _refusal(row, f"image: {error.reason}") from error


def _adapt_server() -> None:
    """Have MLflow's server answer a refusal with its reason alone, and read CSV, which its own schema cannot.

    It sends a stack trace along with some refusals; for CSV it asks the type of each column, and `image` has
    several.
    """
    from mlflow.pyfunc import scoring_server

    scoring_server.parse_csv_input = _read_csv
    whole = MlflowException.serialize_as_json

    def reason(error: MlflowException) -> str:
        answer = json.loads(whole(error))
        answer.pop("stack_trace", None)
        return json.dumps(answer)

    MlflowException.serialize_as_json = reason


def _read_csv(csv_input: io.StringIO, schema: Schema | None = None) -> pd.DataFrame:
    """Rows of text: a caption "12" or "NA" stays what it is."""
    try:
        return pd.read_csv(csv_input, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise _error(f"not CSV with a header: {error}") from error


def _content(row: int, columns: dict[str, list[Any]]) -> tuple[str, Any]:
    """The column that this row uses and its value."""
    given = [(name, values[row]) for name, values in columns.items() if not _empty(values[row])]
    if len(given) != 1:
        raise _refusal(row, f"give {'text or image, not both' if given else 'a text or an image'}")
    name, value = given[0]
    if not isinstance(value, str) and not (name == "image" and isinstance(value, bytes)):
        raise _refusal(row, f"{name}: expected a string, found {type(value).__name__}")
    if not value.strip():
        raise _refusal(row, f"{name}: blank")
    return name, value


def _empty(value: Any) -> bool:
    # What an absent cell becomes on its way through JSON, CSV and pandas: also NaN of any type and pandas.NA.
    return (pd.api.types.is_scalar(value) and pd.isna(value)) or (
        isinstance(value, str | bytes) and not value
    )


def _from_base64(row: int, value: str) -> bytes | None:
    """The bytes of a data URI or of base64 text (line breaks allowed); None for a path, which has a dot."""
    if value.startswith("data:"):
        _, comma, value = value.partition(";base64,")
        if not comma:
            raise _refusal(row, "image: a data URI must be data:<type>;base64,<text>")
    elif "." in value:
        return None
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except binascii.Error as error:
        raise _refusal(row, "image: neither base64 nor a path with a file's suffix") from error


def _allowed(row: int, value: str) -> Path:
    """The path; on a server only below the folder that its owner named, whatever links and dots it holds."""
    path = Path(value)
    if not _MLFLOW_IS_IN_SERVING_ENVIRONMENT.get():
        return path
    root = os.environ.get(ROOT_VARIABLE)
    if not root:
        raise _refusal(row, f"image: send base64; the server reads no files ({ROOT_VARIABLE} is not set)")
    path = (Path(root) / path).resolve()
    if not path.is_relative_to(Path(root).resolve()):
        raise _refusal(row, f"image: outside the server's {ROOT_VARIABLE}")
    return path


def _refusal(row: int, reason: str) -> MlflowException:
    return _error(f"row {row}: {reason}")


def _error(reason: str) -> MlflowException:
    return MlflowException(reason, error_code=INVALID_PARAMETER_VALUE)


def save(path: Path, file: Path, max_megapixels: float, model_id: str | None, run_id: str | None) -> None:
    """Write an MLflow model to the new folder `path`: weights `file`, this code, signature and an example.

    max_megapixels: larger pictures are refused. model_id, run_id: of MLflow's record, where it has one.
    """
    from goal import weights

    width = weights.load(file).spec.embed_dim
    inputs = [ColSpec(DataType.string, "text", required=False), ColSpec(AnyType(), "image", required=False)]
    outputs = [TensorSpec(np.dtype(np.float32), (-1, width))]
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "goal"
        shutil.copytree(
            Path(__file__).parents[1], code, ignore=shutil.ignore_patterns("assets", "__pycache__")
        )
        mlflow.pyfunc.save_model(
            path,
            python_model=__file__,
            artifacts={"weights": str(file)},
            code_paths=[str(code)],
            model_config={"max_megapixels": max_megapixels},
            signature=ModelSignature(Schema(inputs), Schema(outputs)),
            input_example=_example(),
            pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in PACKAGES],
            mlflow_model=Model(model_id=model_id, model_uuid=model_id, run_id=run_id),
        )


def _example() -> pd.DataFrame:
    """A row of each kind."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    rows = [("A red ball lies on a blue table. A cat sleeps beside it.", ""), ("", encoded)]
    return pd.DataFrame(rows, columns=["text", "image"])


mlflow.models.set_model(GoalEmbedder())
