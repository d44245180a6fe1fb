"""The page of the report, from real evaluations of random networks."""

import json
import re
import shutil
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from goal import config, weights
from goal.config import Params, paths
from goal.datasets import manifest
from goal.mining.mined import SIDES
from goal.reporting import examples
from goal.reporting.pictures import VERMILION
from goal.stages import report
from goal.text import split_sentences
from goal.tracking import provenance
from tests import measured as done
from tests import registered, tiny
from tests.measured import HOSTILE, MODELS


@pytest.fixture
def params() -> Params:
    return tiny.params()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        done.make(root, patch)
    return root


@pytest.fixture
def project(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return done.copy(measured, tmp_path, monkeypatch)


class Page(HTMLParser):
    """The elements of a page, and the addresses that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset") and not (value or "").startswith(
                ("#", "data:")
            ):
                self.fetched.append(value or "")


def test_the_report_works_offline_and_is_reproducible(project: Path, params: Params) -> None:
    report.run(params)
    page = Page(Path("reports/index.html").read_text())
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.fetched == []
    first = {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()}
    names = {path.name for path in first}
    assert {"index.html", "table.md", "table.csv", "recall.csv"} <= names
    assert {"test.png", "test-by-tokens.png", "loss.png", "similarity-train.png"} <= names
    report.run(params)
    assert {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()} == first


def test_the_page_shows_pairs_queries_and_heat_maps(project: Path, params: Params) -> None:
    report.run(params)
    text = Path("reports/index.html").read_text()
    for section in ("benchmarks", "lengths", "training", "mining", "pairs", "queries", "grounding", "origin"):
        assert f'<section id="{section}">' in text
        assert f'href="#{section}"' in text
    mined = json.loads(Path("pairs/train/summary.json").read_text())
    assert f"<td>usable pairs</td><td>{mined['pairs']}</td>" in text
    assert f"<td>captions without a sentence</td><td>{mined['captions_without_sentence']}</td>" in text
    assert f"<td>sentences longer than the matcher reads</td><td>{mined['truncated']}</td>" in text
    # Every box of the three pictures of the gallery.
    shown = [card["id"] for card in examples.pairs("tiny", "train", 3, 1)]
    table_of_pairs = pq.read_table("pairs/train/shard-00000.parquet").to_pylist()
    usable = [pair for pair in table_of_pairs if pair["id"] in shown and not pair["dropped"]]
    boxes = {(pair["id"], *(pair[side] for side in SIDES)) for pair in usable}
    numbers = {
        (card["id"], one.number)
        for card in examples.pairs("tiny", "train", 3, 1)
        for one in card["sentences"]
        if one.number
    }
    assert len(numbers) == len(boxes) > 0
    assert text.count('<b class="number"') == len(usable)
    # One heat map before and one after training, for every sentence and for the attention.
    first_captions = [tiny.CAPTIONS[0], HOSTILE]
    sentences = sum(len(split_sentences(caption)) for caption in first_captions)
    assert text.count('<image class="heat"') == 2 * (sentences + 2)
    assert "stage2 minus the other model, paired by query" in text
    assert "<th>− global</th>" in text


def test_sentences_of_one_box_share_its_number_and_colour(project: Path) -> None:
    """Else one box would hide the other's colour."""
    (shard,) = Path("pairs/train").glob("shard-*.parquet")
    rows = pq.read_table(shard).to_pylist()
    name = next(row["id"] for row in rows if sum(one["id"] == row["id"] for one in rows) > 1)
    for row in rows:
        row |= {"dropped": "", "x1": 1.0, "y1": 2.0, "x2": 30.0, "y2": 20.0}
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(shard)), shard)
    (card,) = (card for card in examples.pairs("tiny", "train", 6, 1) if card["id"] == name)
    assert len(card["sentences"]) > 1
    assert {(sentence.number, sentence.colour) for sentence in card["sentences"]} == {(1, VERMILION)}


def test_white_frames_are_explained_where_there_are_any(project: Path, params: Params) -> None:
    frame, words = 'stroke="#fff"', "A white frame is the true box."
    report.run(params)
    text = Path("reports/index.html").read_text()
    assert (frame in text, words in text) == (False, False)
    end = len(split_sentences(tiny.CAPTIONS[0])[0].text)
    row = {"id": "p0", "caption": 0, "start": 0, "end": end, "x1": 9.0, "y1": 5.0, "x2": 30.0, "y2": 20.0}
    manifest.write_table(manifest.table([row], manifest.TRUTH), Path("data/tiny/truth.parquet"))
    report.run(params)
    text = Path("reports/index.html").read_text()
    # Before and after.
    assert (text.count(frame), words in text) == (2, True)


def test_the_page_shows_the_origin_of_its_results(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("params.yaml").write_text("seed: 7  # <chosen>\n")
    registered.commit("first")
    model = {"path": "models/stage2", "md5": provenance.md5(Path("models/stage2"))}
    stages = {
        "train@stage2": {"outs": [model]},
        "evaluate@stage2": {"deps": [model], "outs": [{"path": "metrics/stage2/details", "md5": "0123.dir"}]},
        "other": {"outs": [{"path": "elsewhere", "md5": "4567"}]},
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    # The credentials of the server must not appear on the page.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://reader:hunter2@mlflow.example:5000/base/")
    report.run(params, experiment="12")
    text = Path("reports/index.html").read_text()
    commit = provenance.code().commit
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    assert f"<code>{commit}</code>" in text
    assert f"torch {metadata.version('torch')}" in text
    assert "seed: 7  # &lt;chosen&gt;" in text
    assert f"<td>models/stage2</td><td><code>{model['md5']}</code></td>" in text
    assert "<td>metrics/stage2/details</td><td><code>0123.dir</code></td>" in text
    assert "elsewhere" not in text
    server = "http://mlflow.example:5000/base"
    for name in MODELS:
        digest = weights.digest(paths.model_dir(name))
        assert f"<code>{digest}</code>" in text
        sought = quote(f"tags.`goal.model` = '{digest}'")
        runs = f"{server}/#/experiments/12/runs?workflowType=machine_learning&amp;searchFilter={sought}"
        assert f'href="{runs}"' in text
    assert not re.search("hunter2|reader", text)


def test_captions_are_escaped(project: Path, params: Params) -> None:
    """A caption with markup, quotes and template code is shown as text; none of it runs."""
    found = examples.pairs("tiny", "train", 6, 1)
    assert any("<script>" in sentence.text for card in found for sentence in card["sentences"])
    report.run(config.parse(_with_report(params, gallery=6, examples=6, grounding=6), "test"))
    text = Path("reports/index.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text


def test_bold_is_a_lead_that_the_paired_interval_separates(project: Path, params: Params) -> None:
    """The highest of three random models leads by chance; one that is far better on every query leads."""
    bold = re.compile(r'<td class="best">[0-9.]+<small>[0-9.]+ to')
    report.run(params)
    text = Path("reports/index.html").read_text()
    assert not bold.search(text)
    assert "<td>chance</td><td>16.7</td>" in text
    for model in MODELS:
        path = Path(f"metrics/{model}/ranks/joint.parquet")
        rows = pq.read_table(path)
        values = pa.array([1.0 if model == "stage2" else 0.1] * len(rows))
        pq.write_table(rows.set_column(rows.num_columns - 1, "average_precision", values), path)
    report.run(params)
    assert len(bold.findall(Path("reports/index.html").read_text())) == 2


def test_the_page_does_not_call_a_sharp_picture_what_the_model_sees(project: Path, params: Params) -> None:
    report.run(params)
    text = Path("reports/index.html").read_text()
    assert "as the model sees it" not in text
    assert "What the model sees of the picture, drawn sharp: it reads 32 x 32 pixels." in text


def test_queries_are_those_for_which_only_one_model_ranks_first(project: Path) -> None:
    found = examples.queries("tiny", "stage2", "global", 1, 1)
    ours, theirs = (
        {
            (row["id"], row["caption"]): row["rank"]
            for row in pq.read_table(f"metrics/{model}/ranks/test.parquet").to_pylist()
            if row["direction"] == "text_to_image"
        }
        for model in ("stage2", "global")
    )
    won = [key for key in ours if ours[key] == 1 and theirs[key] > 1]
    lost = [key for key in ours if theirs[key] == 1 and ours[key] > 1]
    assert (found.won_count, found.lost_count) == (len(won), len(lost))
    for queries, keys, ranks in ((found.won, won, theirs), (found.lost, lost, ours)):
        assert len(queries) == min(1, len(keys))
        for one in queries:
            assert ranks[one["id"], one["caption"]] == max(ranks[key] for key in keys)


def test_a_set_without_pairs_and_with_one_model_has_a_page(project: Path, params: Params) -> None:
    for folder in ("pairs", "regions", "metrics/stage2", "metrics/global"):
        shutil.rmtree(folder)
    report.run(params)
    text = Path("reports/index.html").read_text()
    assert '<section id="benchmarks">' in text
    assert '<section id="pairs">' not in text
    assert '<section id="queries">' not in text


def _with_report(params: Params, **changes: int) -> dict:
    values = params.model_dump(by_alias=True)
    return values | {"report": values["report"] | changes}
