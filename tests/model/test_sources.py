"""Weights of Hugging Face's hub: from its cache without a network, and from a server with its protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from goal import clip, config, weights
from goal.errors import UserError
from goal.exports import folders
from goal.model import sources
from goal.model.network import GoalClip
from goal.stages import code
from tests import tiny
from tests.imports import ROOT

HUB_ID = "someone/clip-tiny"
COMMIT = "1234567890abcdef1234567890abcdef12345678"
LOAD = """
import sys
from goal import clip, errors, weights
try:
    print(weights.digest(weights.save(clip.load(sys.argv[1], None), sys.argv[2])))
except errors.UserError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What somebody has uploaded: transformers' files, and others that nobody needs to download."""
    torch.manual_seed(0)
    folders.transformers(GoalClip(tiny.SPEC), tmp_path / "upload")
    (tmp_path / "upload" / "pytorch_model.bin").write_bytes(b"the same again")
    (tmp_path / "upload" / "onnx").mkdir()
    (tmp_path / "upload" / "onnx" / "model.onnx").write_bytes(b"more")
    return tmp_path / "upload"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def cached(repository: Path, home: Path, names: tuple[str, ...]) -> None:
    """Put files into HF_HOME as huggingface_hub leaves them: blobs, a snapshot of links, a ref."""
    place = home / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (place / folder).mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for name in names:
        content = (repository / name).read_bytes()
        blob = place / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (place / "snapshots" / COMMIT / name).symlink_to(os.path.relpath(blob, place / "snapshots" / COMMIT))


def load(name: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Load a network in a process of its own, since huggingface_hub reads the environment once."""
    own = {"HF_HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
    unset = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")
    inherited = {key: value for key, value in os.environ.items() if key not in unset}
    command = [sys.executable, "-c", LOAD, name, str(home / "loaded")]
    return subprocess.run(command, capture_output=True, text=True, env=inherited | own | environment)


def expected(repository: Path, home: Path) -> str:
    return weights.digest(weights.save(weights.load(repository), home / "expected"))


@pytest.mark.parametrize("name", [HUB_ID, f"hf-hub:{HUB_ID}"])
def test_a_cache_is_enough_offline(name: str, repository: Path, home: Path) -> None:
    """As transformers' from_pretrained leaves it, which fetches no more than this."""
    cached(repository, home, ("config.json", "model.safetensors", "preprocessor_config.json"))
    result = load(name, home, HF_HUB_OFFLINE="1")
    assert result.stdout.strip() == expected(repository, home), result.stderr
    assert "assuming" not in result.stderr


def test_what_the_cache_lacks_is_assumed_with_a_warning(repository: Path, home: Path) -> None:
    cached(repository, home, ("config.json", "model.safetensors"))
    result = load(HUB_ID, home, HF_HUB_OFFLINE="1")
    assert result.returncode == 0
    assert "assuming center_crop and OpenAI's mean and deviation: nothing beside it says so" in result.stderr


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["offline", "no network"],
)
def test_a_hub_id_without_network_and_cache_is_one_line(environment: dict, home: Path) -> None:
    result = load("openai/clip-vit-base-patch16", home, **environment)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(
        "Unavailable: openai/clip-vit-base-patch16: no such file, and Hugging Face's hub cannot"
    )
    assert "`hf download openai/clip-vit-base-patch16 --local-dir FOLDER`, then name the folder" in line


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub for one public repository."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        files = sorted(str(one.relative_to(self.folder)) for one in self.folder.rglob("*") if one.is_file())
        route = self.path.partition("?")[0]
        self.asked.append(route)
        if route in (f"/api/models/{HUB_ID}", f"/api/models/{HUB_ID}/revision/main"):
            siblings = [{"rfilename": name} for name in files]
            self.answer(json.dumps({"id": HUB_ID, "sha": COMMIT, "siblings": siblings}).encode())
        elif route.startswith(f"/api/models/{HUB_ID}/tree/"):
            sizes = ((name, (self.folder / name).stat().st_size) for name in files)
            tree = [
                {"type": "file", "path": name, "size": size, "oid": self.tag(name)} for name, size in sizes
            ]
            self.answer(json.dumps(tree).encode())
        elif route.startswith(f"/{HUB_ID}/resolve/") and route.split("/", 5)[5] in files:
            name = route.split("/", 5)[5]
            headers = {"ETag": f'"{self.tag(name)}"', "X-Repo-Commit": COMMIT}
            self.answer((self.folder / name).read_bytes(), **headers)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def tag(self, name: str) -> str:
        return hashlib.sha1((self.folder / name).read_bytes()).hexdigest()

    def answer(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *message: object) -> None:
        pass


@pytest.fixture
def hub(repository: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server with the repository, and what was asked of it."""
    asked: list[str] = []
    handler = type("OneHub", (Hub,), {"folder": repository, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_repository_is_downloaded_once_and_no_more_than_needed(
    hub: tuple[str, list[str]], repository: Path, home: Path
) -> None:
    address, asked = hub
    result = load(HUB_ID, home, HF_ENDPOINT=address)
    assert result.stdout.strip() == expected(repository, home), result.stderr
    fetched = {route.split("/", 5)[5] for route in asked if "/resolve/" in route}
    assert fetched == {"config.json", "model.safetensors", "preprocessor_config.json"}
    again = load(HUB_ID, home, HF_HUB_OFFLINE="1")
    assert again.stdout == result.stdout


def test_a_repository_in_shards_is_downloaded_whole(
    hub: tuple[str, list[str]], repository: Path, home: Path
) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(repository)
    (repository / "model.safetensors").unlink()
    (repository / "pytorch_model.bin").unlink()
    model.save_pretrained(repository, max_shard_size="2MB")
    result = load(HUB_ID, home, HF_ENDPOINT=hub[0])
    assert result.stdout.strip() == expected(repository, home), result.stderr


def test_a_repository_of_no_use_is_one_line(hub: tuple[str, list[str]], repository: Path, home: Path) -> None:
    result = load("someone/else", home, HF_ENDPOINT=hub[0])
    assert "UserError: someone/else: neither a file nor a repository of Hugging Face's hub" in result.stderr
    for path in (repository / "model.safetensors", repository / "pytorch_model.bin"):
        path.unlink()
    result = load(HUB_ID, home, HF_ENDPOINT=hub[0])
    assert f"UserError: {HUB_ID}: has no weights: config.json, " in result.stderr
    for name in ("a.pt", "b.safetensors"):
        (repository / name).write_bytes(b"")
    result = load(HUB_ID, home, HF_ENDPOINT=hub[0])
    assert (
        f"UserError: {HUB_ID}: has several weights: a.pt, b.safetensors;"
        f" name the file after `hf download {HUB_ID} FILE --local-dir FOLDER`" in result.stderr
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
        ("hf-hub:laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
        ("weights/clip.safetensors", None),
        ("models/base", None),
        ("./clip", None),
        ("openai", None),
        ("a/b/c", None),
        ("https://huggingface.co/openai/clip-vit-base-patch16", None),
        ("", None),
    ],
)
def test_what_is_a_repository(name: str, expected: str | None) -> None:
    assert sources.repository(name) == expected


@pytest.mark.parametrize("name", ["weights/clip.safetensors", "https://example.com/clip.pt", "a/b/c"])
def test_a_path_that_is_not_there_is_no_repository(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: neither a file nor a tag of ViT-B-16"):
        clip.load("ViT-B-16", pretrained=name)


def test_what_belongs_to_weights_makes_their_stage_stale(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = tiny.params().model_dump(by_alias=True, mode="json")
    values["model"]["pretrained"] = "upload"
    params = config.parse(values, "test")
    before = code.listing(params, "base")
    assert [line.split()[1] for line in before.splitlines() if line.startswith("model.pretrained: ")] == [
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
    ]
    path = repository / "preprocessor_config.json"
    path.write_text(path.read_text().replace("32", "33"))
    assert code.listing(params, "base") != before
