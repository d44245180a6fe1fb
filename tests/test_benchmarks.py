"""The benchmarks of the training step run on a tiny case and report the ratios that they measured."""

import argparse
import gc
import json
import math
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from benchmarks import evaluate, search, train_step
from benchmarks.step_cases import captions
from goal import metrics
from goal.model.network import GoalClip
from tests.imports import ROOT

CAPTIONS = [
    f"A red ball lies here. Beside it stands tree number {n}. " + "It is tall. " * n for n in range(5)
]
RATIOS = {
    "train_step": {"plain over ours, time", "ours over plain, memory"},
    "memory": {"plain", "ours", "ours, chunks of 2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_step", "stages", "memory", "scaling"])
def test_a_benchmark_measures_a_tiny_case(name: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps([{"caption": one} for one in CAPTIONS]))
    words = ["--captions", str(tmp_path / "captions.json"), "--network", "scenes-vit", "--batch", "2"]
    words += ["--most", "3"] if name == "memory" else []
    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words, "--steps", "1", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        check=True,
        timeout=500,
    )
    found = json.loads((tmp_path / "out").read_text())
    assert found["settings"]["network"] == "scenes-vit"
    assert RATIOS.get(name, set()) <= found.get("ratios", {}).keys()
    assert found["origin"]["commit"]
    if name == "memory":
        # Run, not computed from smaller batches.
        assert all(way["largest_batch"] == 3 and way["gib_of_largest"] > 0 for way in found["ways"].values())
    if name == "stages":
        assert sum(found["shares"].values()) == pytest.approx(1)
        assert 0 < found["share_of_matrix_rate"] < 1


def test_captions_are_repeated_where_there_are_too_few(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps([*CAPTIONS, "Only one sentence."]))
    found = captions(tmp_path / "captions.json", 12)
    # The first is left out: two sentences are too few.
    assert found == [CAPTIONS[1 + number % 4] for number in range(12)]


@pytest.mark.parametrize(("way", "networks"), [("plain", 0), ("ours", 1)])
def test_the_plain_step_does_not_pay_for_a_second_network(tmp_path: Path, way: str, networks: int) -> None:
    """It has a network of its own, open_clip's; ours, whose weights it copied, must be gone."""
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    fields = {"captions": tmp_path / "captions.json", "network": "scenes-vit", "batch": 2, "device": "cpu"}
    fields |= {"precision": "fp32", "way": way, "chunk": 0, "checkpoint": False, "compile": False}
    gc.collect()
    before = sum(isinstance(one, GoalClip) for one in gc.get_objects())
    take = train_step.step_of(argparse.Namespace(**fields))
    gc.collect()
    assert sum(isinstance(one, GoalClip) for one in gc.get_objects()) - before == networks
    assert take is not None


def test_the_plain_top_k_has_our_map() -> None:
    image, texts = evaluate._related(60)
    relevant = [[number, (number + 30) % 60] for number in range(60)]
    found = evaluate.top_k_map(image, texts, torch.tensor(relevant), 10)
    assert found == pytest.approx(metrics.map_at_k(image, texts, relevant, 10))


def test_other_indexes_search_as_long_as_they_are_given() -> None:
    """Without a limit they look everywhere and find all; with none at all they look into the fewest cells."""
    vectors = search.vectors("random", 0)[:2000]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(search.WIDTH), search.WIDTH, 64, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    whole = faiss.IndexIDMap(index)
    whole.add_with_ids(vectors, np.arange(len(vectors)))
    queries = vectors[::20]
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, : search.NEAREST]
    most, found, _ = search.within(whole, "nprobe", queries, math.inf)
    assert most >= 64
    assert all(set(one) == set(row) for one, row in zip(found, exact, strict=True))
    assert search.within(whole, "nprobe", queries, 0.0)[0] == 16
