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
from transformers import CLIPModel

from goal import clip, config, weights
from goal.errors import UserError
from goal.exports import folders
from goal.model import sources
from goal.model.network import GoalClip
from goal.stages import code
from tests import tiny
from tests.imports import ROOT

COMMIT = "1234567890abcdef1234567890abcdef12345678"
TRANSFORMERS = ("config.json", "model.safetensors", "preprocessor_config.json")
# One line for each name: the digest of the network as this project saves it, or the error.
LOAD = """
import sys
from goal import clip, errors, weights
file, *names = sys.argv[1:]
for name in names:
    try:
        print(weights.digest(weights.save(clip.load(name, None), file)))
    except errors.UserError as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """What somebody has uploaded: transformers' files, and others that nobody needs to download."""
    torch.manual_seed(0)
    folder = tmp_path / "hub" / "someone" / "whole"
    folders.transformers(GoalClip(tiny.SPEC), folder)
    (folder / "pytorch_model.bin").write_bytes(b"the same again")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"more")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def cached(repository: str, folder: Path, home: Path, names: tuple[str, ...]) -> None:
    """Put files into HF_HOME as huggingface_hub leaves them: blobs, a snapshot of links, a ref."""
    place = home / "hub" / f"models--{repository.replace('/', '--')}"
    for sub in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (place / sub).mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for name in names:
        content = (folder / name).read_bytes()
        blob = place / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (place / "snapshots" / COMMIT / name).symlink_to(os.path.relpath(blob, place / "snapshots" / COMMIT))


def load(home: Path, *names: str, **environment: str) -> tuple[list[str], str]:
    """What LOAD prints, and its log, in a process: huggingface_hub reads the environment once."""
    own = {"HF_HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
    unset = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")
    inherited = {key: value for key, value in os.environ.items() if key not in unset}
    command = [sys.executable, "-c", LOAD, str(home / "loaded.safetensors"), *names]
    result = subprocess.run(command, capture_output=True, text=True, env=inherited | own | environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr


def expected(folder: Path, home: Path) -> str:
    return weights.digest(weights.save(weights.load(folder), home / "expected"))


def test_a_cache_is_enough_offline(upload: Path, home: Path) -> None:
    """As transformers' from_pretrained leaves it: CLIPModel alone does not fetch preprocessor_config.json."""
    cached("someone/whole", upload, home, TRANSFORMERS)
    cached("someone/bare", upload, home, TRANSFORMERS[:2])
    cached("someone/tokens", upload, home, ("vocab.json",))
    (upload / "model.pth").write_bytes((upload / "model.safetensors").read_bytes())
    cached("someone/pth", upload, home, ("config.json", "model.pth", "preprocessor_config.json"))
    names = ("whole", "pth", "bare", "tokens")
    names = (*(f"someone/{name}" for name in names), "openai/clip-vit-base-patch16", "hf-hub:someone/whole")
    (*found, tokens, absent, prefixed), log = load(home, *names, HF_HUB_OFFLINE="1")
    assert [*found, prefixed] == [expected(upload, home)] * 4
    assert tokens.startswith(
        "Unavailable: someone/tokens: no such file, and Hugging Face's hub cannot be asked"
    )
    assumed = [line for line in log.splitlines() if "assuming" in line]
    assert len(assumed) == 1
    assert "someone--bare" in assumed[0]
    assert "assuming center_crop and OpenAI's mean and deviation: nothing beside it says so" in assumed[0]
    check_absent(absent)


def check_absent(line: str) -> None:
    assert line.startswith(
        "Unavailable: openai/clip-vit-base-patch16: no such file, and Hugging Face's hub can"
    )
    assert "`hf download openai/clip-vit-base-patch16 --local-dir FOLDER`, then name the folder" in line


def test_a_repository_without_a_network_is_one_line(home: Path) -> None:
    # Nothing listens on this port.
    (line,), _ = load(home, "openai/clip-vit-base-patch16", HF_ENDPOINT="http://127.0.0.1:9")
    check_absent(line)


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub for public repositories, each a folder OWNER/NAME of `root`."""

    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        route = self.path.partition("?")[0]
        self.asked.append(route)
        kind, _, rest = route.removeprefix("/").partition("/")
        parts = rest.removeprefix("models/").split("/") if kind == "api" else [kind, *rest.split("/")]
        folder = self.root / parts[0] / parts[1]
        files = {str(one.relative_to(folder)): one for one in sorted(folder.rglob("*")) if one.is_file()}
        name = "/".join(parts[4:])
        if not files:
            self.answer(404, b"", **{"X-Error-Code": "RepoNotFound"})
        elif kind == "api" and "tree" not in parts:
            siblings = [{"rfilename": one} for one in files]
            self.answer(200, json.dumps({"id": "x/y", "sha": COMMIT, "siblings": siblings}).encode())
        elif kind == "api":
            tree = [
                {"type": "file", "path": one, "size": path.stat().st_size, "oid": tag(path)}
                for one, path in files.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        elif name in files:
            headers = {"ETag": f'"{tag(files[name])}"', "X-Repo-Commit": COMMIT}
            self.answer(200, files[name].read_bytes(), **headers)
        else:
            self.answer(404, b"", **{"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *message: object) -> None:
        pass


def tag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(upload: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with the folders beside `upload`, and what was asked of it."""
    asked: list[str] = []
    handler = type("OneHub", (Hub,), {"root": upload.parents[1], "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_repositories_are_downloaded_once_and_no_more_than_needed(
    hub: tuple[str, list[str]], upload: Path, home: Path
) -> None:
    address, asked = hub
    CLIPModel.from_pretrained(upload).save_pretrained(upload.with_name("shards"), max_shard_size="2MB")
    (upload.with_name("shards") / TRANSFORMERS[2]).write_bytes((upload / TRANSFORMERS[2]).read_bytes())
    for name, files in (("none", ("config.json",)), ("several", ("a.pt", "b.safetensors"))):
        upload.with_name(name).mkdir()
        for file in files:
            (upload.with_name(name) / file).write_bytes(b"{}")
    names = [f"someone/{name}" for name in ("whole", "shards", "nobody", "none", "several")]
    names.insert(3, "some--one/clip")
    lines, _ = load(home, *names, HF_ENDPOINT=address)
    assert lines[:2] == [expected(upload, home)] * 2
    assert lines[2:] == [
        "UserError: someone/nobody: no file, and no repository of Hugging Face's hub that you may read",
        "UserError: some--one/clip: no file, and no repository of Hugging Face's hub that you may read",
        "UserError: someone/none: has no weights: config.json",
        "UserError: someone/several: has several weights: a.pt, b.safetensors; fetch one by"
        " `hf download someone/several FILE --local-dir FOLDER`, then name it",
    ]
    fetched = {route.rpartition("/")[2] for route in asked if route.startswith("/someone/whole/resolve/")}
    assert fetched == set(TRANSFORMERS)
    again, _ = load(home, *names[:2], HF_HUB_OFFLINE="1")
    assert again == lines[:2]


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
    upload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(upload.parent)
    values = tiny.params().model_dump(by_alias=True, mode="json")
    values["model"]["pretrained"] = "whole"
    params = config.parse(values, "test")
    before = code.listing(params, "base")
    assert [line.split()[1] for line in before.splitlines() if line.startswith("model.pretrained: ")] == [
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
    ]
    path = upload / "preprocessor_config.json"
    path.write_text(path.read_text().replace("32", "33"))
    assert code.listing(params, "base") != before
