"""Tables and comparisons of results, from real evaluations of random networks."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from goal import weights
from goal.config import drawn, paths, presets
from goal.datasets import released
from goal.errors import UserError
from goal.evaluation import compare, published, results, table
from goal.model.network import GoalClip
from goal.stages import evaluate, report
from tests import measured as done
from tests import tiny
from tests.measured import MODELS, change, details

OTHER = "other"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        done.make(root, patch)
        shutil.copytree("data/tiny", f"data/{OTHER}")
    return root


@pytest.fixture
def project(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return done.copy(measured, tmp_path, monkeypatch)


def retrain(model: str) -> None:
    """New weights, measured on the pipeline's own data set only."""
    torch.manual_seed(99)
    weights.save(GoalClip(tiny.SPEC), paths.model_dir(model))
    evaluate.run(tiny.params(), [model])


def goal(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "goal", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_table_holds_the_results(project: Path) -> None:
    found = results.load(results.evaluated())
    assert found.models == MODELS
    lines = table.markdown(found).splitlines()
    assert lines[0].startswith(
        "| model | test text→image R@1 | test image→text R@1 | twins text→image accuracy |"
    )
    row = next(line for line in lines if line.startswith("| stage2 |")).split("|")
    one = details("stage2")["metrics"]["text_to_image_r1"]
    assert row[2].strip() == f"{one['mean']:.1f} [{one['low']:.1f}, {one['high']:.1f}]"
    assert any(
        line.startswith("- test: tiny, 6 pictures, 12 texts; view center_crop 32 px") for line in lines
    )
    assert "- short: not measured: tiny has no short captions." in lines
    chance = next(line for line in lines if line.startswith("| chance |")).split("|")
    # One of six pictures; either of a picture's two texts among twelve, hence 2 / 12; one of two twins.
    assert [cell.strip() for cell in chance[2:6]] == ["16.7", "16.7", "50.0", "50.0"]


def test_the_table_says_what_its_numbers_do_not(project: Path) -> None:
    """Which models are not above chance, which queries nobody can answer, and what the network is fit for."""
    name = details("zero-shot")["source"]
    notes = table.notes(results.load(MODELS))
    assert "test text→image: not above chance by its interval: zero-shot, stage2, global." in notes
    assert not any("copies" in note or drawn.ADVICE in note for note in notes)
    for model in MODELS:
        content = details(model)
        content["model"]["network"] = drawn.NETWORK
        content["unanswerable"]["image_to_text"] = 2
        for metric in ("text_to_image_r1", "image_to_text_r1"):
            content["metrics"][metric] |= {"low": 20.0, "high": 90.0}
        done.file(model, "test").write_text(json.dumps(content))
    notes = table.notes(results.load(MODELS))
    assert not any(note.startswith("test") and "above chance" in note for note in notes)
    copies = "copies among the pictures or texts: 2 of 6 queries cannot find the right one first."
    assert f"test image→text: {copies}" in notes
    assert (f"test: {drawn.ADVICE}." in notes) == (name != drawn.SOURCE)
    assert not any("a part of the set" in note for note in notes)
    done.file("stage2", "test").write_text(json.dumps(details("stage2") | {"source": "docci, limit 200"}))
    part = "test: a part of the set (docci, limit 200): not comparable with others' numbers."
    assert part in table.notes(results.load(MODELS))


def test_results_of_an_older_evaluation_are_shown_without_chance(project: Path) -> None:
    """For example those that lie beside the fetched weights of a registered version."""
    for model in MODELS:
        content = details(model)
        del content["source"], content["unanswerable"]
        for one in content["metrics"].values():
            del one["chance"]
        done.file(model, "test").write_text(json.dumps(content))
    chance = next(line for line in table.markdown(results.load(MODELS)).splitlines() if "| chance |" in line)
    assert [cell.strip() for cell in chance.split("|")[2:6]] == ["-", "-", "50.0", "50.0"]


@pytest.mark.parametrize(("pictures", "leads"), [(10, False), (200, True)])
def test_a_model_leads_only_where_its_paired_interval_excludes_all_others(
    project: Path, pictures: int, leads: bool
) -> None:
    """60 % against 50 and 40 % on the same queries: of ten pictures that is one, of 200 twenty."""
    for model, share in zip(MODELS, (0.5, 0.6, 0.4), strict=True):
        rows = [
            {"direction": way, "id": str(number), "rank": 1 if number < share * pictures else 2}
            for way in ("text_to_image", "image_to_text")
            for number in range(pictures)
        ]
        pq.write_table(pa.Table.from_pylist(rows), results.ranks(model, "test"))
    found = compare.leaders(results.load(MODELS))
    test = {metric: model for (benchmark, metric), model in found.items() if benchmark == "test"}
    assert test == ({"text_to_image_r1": "stage2", "image_to_text_r1": "stage2"} if leads else {})


def test_the_csv_holds_every_metric_with_its_protocol_and_weights(project: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(table.as_csv(results.load(MODELS)))))
    # test: 3 ks of twelve texts and 2 of six pictures; twins and joint: 2 ways x 1.
    assert len(rows) == 3 * (5 + 2 + 2)
    assert {(row["context_length"], row["precision"]) for row in rows} == {("77", "fp32")}
    assert {row["images"] for row in rows if row["benchmark"] == "test"} == {"6"}
    for row in rows:
        assert row["weights"] == weights.digest(paths.model_dir(row["model"]))


def test_results_of_another_protocol_are_refused_or_marked(project: Path) -> None:
    change("global", context_length=248)
    with pytest.raises(UserError, match="context_length is 248, for zero-shot 77"):
        results.load(MODELS)
    text = table.markdown(results.load(MODELS, mixed=True))
    assert re.search(r"^\| global \| [^|]*\*", text, re.MULTILINE)
    assert not re.search(r"^\| stage2 \| [^|]*\*", text, re.MULTILINE)
    assert "- * global on test is not comparable with the others: context_length 248." in text


def test_results_of_replaced_weights_are_refused_or_marked(project: Path) -> None:
    """A retrained model is measured again on its own set; those on other sets are of the old weights."""
    evaluate.run(tiny.params(), ["zero-shot", "stage2"], OTHER)
    old = details("stage2")["model"]["digest"]
    retrain("stage2")
    with pytest.raises(UserError) as caught:
        results.load(MODELS)
    assert str(caught.value).startswith(
        "metrics/stage2/on/other/details/test.json: measured on other weights"
    )
    assert "`goal evaluate stage2 --on other`" in str(caught.value)
    marked = results.load(MODELS, mixed=True)
    assert marked.of("stage2", "test").differs == marked.of("zero-shot", "other/test").differs == ()
    note = f"- * stage2 on other/test is not comparable with the others: weights sha256 {old[:12]}."
    assert note in table.markdown(marked)
    evaluate.run(tiny.params(), ["stage2"], OTHER)
    assert {one.digest for found in results.load(["stage2"]).benchmarks.values() for one in found} == {
        weights.digest("models/stage2")
    }


def test_only_one_model_measured_on_another_set(project: Path) -> None:
    """It is in the table and on the page, and is compared on the benchmarks that both models have."""
    evaluate.run(tiny.params(), ["stage2"], OTHER)
    text = table.markdown(results.load(MODELS))
    titles, _, *rows = (line.split(" | ") for line in text.splitlines() if line.startswith("|"))
    place = titles.index("other/test text→image R@1")
    by_name = {row[0].removeprefix("| "): row for row in rows}
    assert by_name["stage2"][place] == by_name["stage2"][1]
    assert by_name["global"][place] == "-"
    assert (
        "- other/test: not measured for zero-shot, global: `goal evaluate zero-shot global --on other`."
        in text
    )
    lines = compare.compare("stage2", "global", [1])
    assert {line.benchmark for line in lines} == {"test", "twins", "joint"}
    report.run(tiny.params())
    assert "other/test text→image R@1" in Path("reports/index.html").read_text()


def test_a_model_measured_on_another_set_only(project: Path) -> None:
    for model in MODELS:
        shutil.rmtree(f"metrics/{model}")
    assert results.evaluated() == ()
    evaluate.run(tiny.params(), ["zero-shot"], OTHER)
    assert results.evaluated() == ("zero-shot",)
    assert set(results.load(["zero-shot"]).benchmarks) == {"other/test", "other/twins"}


def test_an_evaluation_that_fails_changes_no_result(project: Path) -> None:
    before = {path: path.read_bytes() for path in Path("metrics").rglob("*") if path.is_file()}
    Path("data/tiny/images/3.png").unlink()
    for data_set in ("", OTHER):
        with pytest.raises(UserError, match="images/3.png: cannot be read"):
            evaluate.run(tiny.params(), ["stage2"], data_set)
    assert {path: path.read_bytes() for path in Path("metrics").rglob("*") if path.is_file()} == before
    assert "other/test" not in results.load(MODELS).benchmarks


def test_a_missing_result_is_named_with_the_command_that_makes_it(project: Path) -> None:
    evaluate.run(tiny.params(), ["stage2"], OTHER)
    Path("metrics/stage2/on/other/details/twins.json").unlink()
    with pytest.raises(
        UserError, match=r"on/other/details/twins.json: .*; run `goal evaluate stage2 --on other`"
    ):
        results.load(MODELS)


def test_a_missing_data_set_is_named(project: Path) -> None:
    with pytest.raises(UserError, match="--on coco: data/coco not found; set data.name to coco"):
        evaluate.run(tiny.params(), ["stage2"], "coco")


def test_published_numbers_are_shown_only_beside_the_same_protocol() -> None:
    same, others = published.of("docci", "ViT-B-16", 5100)
    assert ("GOAL", 79.47, 79.43) in {(row.setting, row.text_to_image, row.image_to_text) for row in same}
    assert {row.network for row in same} == {"ViT-B-16"}
    assert {row.images for row in same} == {5100}
    assert len(same) + len(others) == sum(row.data_set == "docci" for row in published.PUBLISHED)
    # A gallery of another size, and one of unknown size, are other protocols.
    assert published.of("docci", "ViT-B-16", 5000)[0] == []
    assert published.of("scenes", "scenes-vit", 500) == ([], [])


@pytest.mark.parametrize("preset", ["docci-b16", "docci-l14", "dci-b16", "dci-l14"])
def test_the_paper_s_presets_match_its_published_numbers(preset: str, monkeypatch) -> None:
    monkeypatch.chdir(tiny.ROOT)
    params = presets.load(preset)
    images = released.gallery(params)
    same, _ = published.of(params.data.name, params.model.name, images)
    assert any(row.setting.startswith("GOAL") for row in same)


def test_a_published_row_appears_in_the_table(project: Path) -> None:
    for model in MODELS:
        change(model, network="ViT-L-14", data_set="dci", images=1999)
    text = table.markdown(results.load(MODELS))
    assert "| published: GOAL | 76.9 | 76.6 | - |" in text
    assert "73.2" not in text


def test_other_data_sets_are_in_the_table_with_their_published_numbers(project: Path) -> None:
    evaluate.run(tiny.params(), MODELS[:2], OTHER)
    for model in MODELS[:2]:
        change(model, "other/test", network="ViT-L-14", data_set="dci", images=1999)
    text = table.markdown(results.load(MODELS))
    titles, _, *rows = (line.split(" | ") for line in text.splitlines() if line.startswith("|"))
    place = titles.index("other/test text→image R@1")
    by_name = {row[0].removeprefix("| "): row for row in rows}
    assert by_name["published: GOAL"][place] == "76.9"
    assert by_name["published: GOAL"][1] == "-"
    assert by_name["zero-shot"][place] == by_name["zero-shot"][1]
    assert by_name["global"][place] == "-"
    compared = {line.benchmark for line in compare.compare("zero-shot", "stage2", [1])}
    assert {"test", "other/test"} <= compared


def test_compare_with_itself_and_with_another(project: Path) -> None:
    for line in compare.compare("stage2", "stage2", [1, 2]):
        assert (line.difference.mean, line.difference.p) == (0.0, 1.0)
    lines = {(line.benchmark, line.metric): line for line in compare.compare("stage2", "global", [1, 2])}
    for (benchmark, metric), line in lines.items():
        ours, theirs = (details(model, benchmark)["metrics"] for model in ("stage2", "global"))
        if metric in ours:
            assert line.chance == pytest.approx(ours[metric]["chance"], abs=1e-4)
            assert line.first == pytest.approx(ours[metric]["mean"], abs=1e-4)
            assert line.second == pytest.approx(theirs[metric]["mean"], abs=1e-4)
        assert line.difference.mean == pytest.approx(line.first - line.second)
        assert line.difference.low <= line.difference.mean <= line.difference.high


def test_compare_refuses_missing_and_different_results(project: Path) -> None:
    with pytest.raises(UserError, match=r"metrics/stage1/details/test.json: cannot be read"):
        compare.compare("stage1", "global", [1])
    with pytest.raises(UserError, match="^stage3: no such model; choose one of zero-shot, stage1, "):
        compare.compare("stage2", "stage3", [1])
    change("global", split="another")
    with pytest.raises(UserError, match="split is 'another'"):
        compare.compare("stage2", "global", [1])


def test_no_result_at_all_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no evaluated model"):
        results.load(results.evaluated())


def test_goal_table_names_galleries_and_explains_marks(project: Path) -> None:
    change("global", context_length=248)
    refused = goal("table")
    assert refused.returncode == 2
    assert "context_length is 248" in refused.stderr
    shown = goal("table", "--mixed").stdout
    assert "stage2" in shown
    one = details("stage2")["metrics"]["text_to_image_r1"]
    assert f"[{one['low']:.1f}, {one['high']:.1f}]" in shown
    assert "chance" in shown
    assert "test: tiny, 6 pictures, 12 texts; view center_crop 32 px" in shown
    assert "* global on test is not comparable with the others: context_length 248." in shown


def test_goal_table_needs_no_torch(project: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
    command = [sys.executable, "-X", "importtime", "-m", "goal", "table"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "torch" not in done.stderr


def test_goal_compare_names_galleries(project: Path) -> None:
    values = tiny.params().model_dump(by_alias=True, mode="json")
    Path("params.yaml").write_text(yaml.safe_dump(values))
    shown = goal("compare", "stage2", "global").stdout
    assert "stage2 against global" in shown
    assert "twins: tiny, 2 pictures, 2 texts" in shown
