"""Tables, comparison, and the page, from real evaluations of random networks."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from goal import config, evaluate, layout, pairs, report
from goal.config import Params
from goal.datasets import manifest
from goal.errors import UserError
from goal.evaluation import compare, published, results, table
from goal.regions import stage
from goal.reporting import examples
from goal.text import split_sentences
from tests import tiny

MODELS = ("zero-shot", "stage2", "global")
HOSTILE = "A boat </p><script>alert(1)</script> \"quoted\" 'too' & {{ 7 * 7 }}. A sail."


@pytest.fixture
def params() -> Params:
    return tiny.params()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models evaluated on test, twins and joint; two of them with a loss curve."""
    root = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        tiny.make(root, patch, MODELS)
        rows = manifest.read(Path("data/tiny/test.parquet"))
        twins = manifest.table([tiny.twin(rows[0], rows[1].image, "colour")], manifest.TWINS)
        manifest.write_table(twins, Path("data/tiny/twins.parquet"))
        hostile = replace(rows[3], captions=(HOSTILE, rows[3].captions[1]))
        rows[3] = hostile
        for split in ("train", "test"):
            manifest.write(rows, Path(f"data/tiny/{split}.parquet"))
        stage.run(tiny.params())
        pairs.run(tiny.params())
        for model in MODELS:
            evaluate.run(tiny.params(), model)
        for model in MODELS[1:]:
            curve = layout.metrics_dir(model) / "loss.csv"
            curve.write_text("step,lr,global,total\n10,0.1,2.5,3.5\n20,0.0,1.5,2.0\n")
    return root


@pytest.fixture
def project(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the measured project to change at will."""
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def details(model: str, benchmark: str = "test") -> Path:
    return Path(f"metrics/{model}/details/{benchmark}.json")


def change_protocol(model: str, **fields: object) -> None:
    content = json.loads(details(model).read_text())
    content["protocol"] |= fields
    details(model).write_text(json.dumps(content))


def test_the_table_holds_the_results(project: Path) -> None:
    found = results.load(results.evaluated())
    assert found.models == MODELS
    lines = table.markdown(found).splitlines()
    assert lines[0].startswith(
        "| model | test text→image R@1 | test image→text R@1 | twins text→image accuracy |"
    )
    row = next(line for line in lines if line.startswith("| stage2 |")).split("|")
    measured = json.loads(details("stage2").read_text())["metrics"]["text_to_image_r1"]
    expected = f"{measured['mean']:.1f} [{measured['low']:.1f}, {measured['high']:.1f}]"
    assert row[2].strip() == expected
    assert any(
        line.startswith("- test: tiny, 6 pictures, 12 texts; view center_crop 32 px") for line in lines
    )
    assert "- short: not measured: tiny has no short captions." in lines


def test_the_csv_holds_every_metric_with_its_protocol(project: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(table.as_csv(results.load(MODELS)))))
    # test: 2 ways x 3 ks; twins and joint: 2 ways x 1.
    assert len(rows) == 3 * (6 + 2 + 2)
    assert {(row["context_length"], row["precision"]) for row in rows} == {("77", "fp32")}
    assert {row["images"] for row in rows if row["benchmark"] == "test"} == {"6"}


def test_results_of_another_protocol_are_refused_or_marked(project: Path) -> None:
    change_protocol("global", context_length=248)
    with pytest.raises(UserError, match="context_length is 248, for zero-shot 77"):
        results.load(MODELS)
    marked = results.load(MODELS, mixed=True)
    text = table.markdown(marked)
    assert re.search(r"^\| global \| [^|]*\*", text, re.MULTILINE)
    assert not re.search(r"^\| stage2 \| [^|]*\*", text, re.MULTILINE)
    assert "- * global on test had another protocol: context_length 248." in text


def test_published_numbers_stand_only_beside_the_same_protocol() -> None:
    same, others = published.of("docci", "ViT-B-16", 5100)
    assert ("GOAL", 79.47, 79.43) in {(row.setting, row.text_to_image, row.image_to_text) for row in same}
    assert {row.network for row in same} == {"ViT-B-16"}
    assert {row.images for row in same} == {5100}
    assert len(same) + len(others) == sum(row.data_set == "docci" for row in published.PUBLISHED)
    # The same pictures in another number, and a gallery that nobody states, are not the same protocol.
    assert published.of("docci", "ViT-B-16", 5000)[0] == []
    assert published.of("scenes", "scenes-vit", 500) == ([], [])


def test_a_published_row_appears_in_the_table(project: Path) -> None:
    for model in MODELS:
        content = json.loads(details(model).read_text())
        content["protocol"] |= {"data_set": "dci", "images": 1999}
        content["model"]["network"] = "ViT-L-14"
        details(model).write_text(json.dumps(content))
    text = table.markdown(results.load(MODELS))
    assert "| published: GOAL | 76.9 | 76.6 | - |" in text
    assert "73.2" not in text


def test_other_data_sets_stand_in_the_table_with_their_published_peers(project: Path) -> None:
    for model in MODELS[:2]:
        other = Path(f"metrics/{model}/on/dci/details")
        shutil.copytree(f"metrics/{model}/details", other)
        content = json.loads((other / "test.json").read_text())
        content["protocol"] |= {"data_set": "dci", "images": 1999}
        content["model"]["network"] = "ViT-L-14"
        (other / "test.json").write_text(json.dumps(content))
        shutil.copytree(f"metrics/{model}/ranks", other.with_name("ranks"))
    text = table.markdown(results.load(MODELS))
    titles, _, *rows = (line.split(" | ") for line in text.splitlines() if line.startswith("|"))
    place = titles.index("dci/test text→image R@1")
    by_name = {row[0].removeprefix("| "): row for row in rows}
    assert by_name["published: GOAL"][place] == "76.9"
    assert by_name["published: GOAL"][1] == "-"
    assert by_name["zero-shot"][place] == by_name["zero-shot"][1]
    assert by_name["global"][place] == "-"
    measured = {line.benchmark for line in compare.compare("zero-shot", "stage2", [1], 10, seed=0)}
    assert {"test", "dci/test"} <= measured


def test_compare_with_itself_and_with_another(project: Path) -> None:
    for line in compare.compare("stage2", "stage2", [1, 2], 100, seed=0):
        assert (line.difference.mean, line.difference.p) == (0.0, 1.0)
    lines = {
        (line.benchmark, line.metric): line
        for line in compare.compare("stage2", "global", [1, 2], 100, seed=0)
    }
    for (benchmark, metric), line in lines.items():
        ours, theirs = (
            json.loads(details(m, benchmark).read_text())["metrics"] for m in ("stage2", "global")
        )
        if metric in ours:
            assert line.first == pytest.approx(ours[metric]["mean"], abs=1e-4)
            assert line.second == pytest.approx(theirs[metric]["mean"], abs=1e-4)
        assert line.difference.mean == pytest.approx(line.first - line.second)
        assert line.difference.low <= line.difference.mean <= line.difference.high


def test_compare_refuses_what_was_not_asked_alike(project: Path, params: Params) -> None:
    with pytest.raises(UserError, match=r"metrics/stage1/details/test.json: cannot be read"):
        compare.compare("stage1", "global", [1], 10, seed=0)
    change_protocol("global", split="another")
    with pytest.raises(UserError, match="split is 'another'"):
        compare.compare("stage2", "global", [1], 10, seed=0)


class Page(HTMLParser):
    """Counts elements, and what a page would fetch."""

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


def test_the_report_opens_offline_and_is_the_same_every_time(project: Path, params: Params) -> None:
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
    # A box for every usable pair of the three pictures of the gallery.
    shown = [card["id"] for card in examples.pairs("tiny", "train", 3, 1)]
    table_of_pairs = pq.read_table("pairs/train/shard-00000.parquet").to_pylist()
    usable = [pair for pair in table_of_pairs if pair["id"] in shown and not pair["dropped"]]
    assert text.count('stroke-width="3" vector-effect') == len(usable) > 0
    # Heat maps before and after, for every sentence and for the attention.
    first_captions = [tiny.CAPTIONS[0], HOSTILE]
    sentences = sum(len(split_sentences(caption)) for caption in first_captions)
    assert text.count('<image class="heat"') == 2 * (sentences + 2)
    assert "stage2 − global" in text


def test_captions_stay_text(project: Path, params: Params) -> None:
    """A caption with markup, quotes and template code appears letter by letter, and nothing of it runs."""
    found = examples.pairs("tiny", "train", 6, 1)
    assert any("<script>" in sentence["text"] for card in found for sentence in card["sentences"])
    report.run(config.parse(_with_report(params, gallery=6, examples=6, grounding=6), "test"))
    text = Path("reports/index.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text


def test_a_duel_counts_what_one_finds_and_the_other_does_not(project: Path) -> None:
    found = examples.duel("tiny", "stage2", "global", 1, 1)
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


def test_no_result_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no evaluated model"):
        results.load(results.evaluated())


def test_the_command_line_prints_the_table(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "goal", "table"],
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
    )
    assert "stage2" in done.stdout
    assert "±" in done.stdout
    # The table needs no network and no torch: it is there at once.
    assert (
        "torch"
        not in subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "goal", "table"],
            capture_output=True,
            text=True,
            env=_environment(),
        ).stderr
    )


def _with_report(params: Params, **changes: int) -> dict:
    values = params.model_dump(by_alias=True)
    return values | {"report": values["report"] | changes}


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tiny.ROOT), "PYTHONIOENCODING": "utf-8"}
