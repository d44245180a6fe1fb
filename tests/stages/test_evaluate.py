"""The evaluate stage on a small data set with a random network, and its parts on handmade embeddings."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from goal import clip, metrics, text, weights
from goal.config import Params
from goal.datasets import manifest
from goal.datasets.manifest import Row
from goal.errors import UserError
from goal.evaluation import embed, query_metrics, ranking
from goal.evaluation.embed import EmbeddingTable, Settings
from goal.evaluation.galleries import DIRECTIONS, Gallery, Picture
from goal.model import embedding
from goal.stages import evaluate
from tests import tiny

SETTINGS = Settings(device="cpu", batch_size=4, max_megapixels=1)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny.make(tmp_path, monkeypatch)


@pytest.fixture
def params() -> Params:
    return tiny.params()


def result(benchmark: str) -> dict:
    return json.loads(Path(f"metrics/zero-shot/details/{benchmark}.json").read_text())


def headline(benchmark: str) -> dict:
    return json.loads(Path(f"metrics/zero-shot/{benchmark}.json").read_text())


def by_hand(gallery: Gallery, image: torch.Tensor, texts: torch.Tensor) -> EmbeddingTable:
    return EmbeddingTable(
        image=image,
        text=texts,
        tokens=torch.full((len(texts),), 5),
        pictures={picture: place for place, picture in enumerate(gallery.pictures)},
        texts={one: place for place, one in enumerate(gallery.texts)},
        files={},
        spec=tiny.SPEC,
        model="",
    )


def test_recalls_equal_those_of_items_embedded_one_by_one(project: Path, params: Params) -> None:
    model = weights.load(Path("models/base")).eval()
    prepare = clip.preprocess(model.spec)
    rows = manifest.read(Path("data/tiny/test.parquet"))
    with torch.inference_mode():
        image = torch.cat([model.encode_images(prepare(Image.open(row.image))[None]) for row in rows])
        ids = [text.tokenize(one, [], 77).ids[None] for row in rows for one in row.captions]
        texts = torch.cat([model.encode_texts(one) for one in ids])
    expected = metrics.recall_at_k(image, texts, torch.arange(12) // 2, [1, 2, 10])
    evaluate.run(params, ["zero-shot"])
    found = result("test")["metrics"]
    # Six pictures are ranked, and twelve texts: recall at 10 of the pictures would be 100 for any model.
    assert "text_to_image_r10" not in found
    expected["text_to_image"].pop(10)
    for direction, recalls in expected.items():
        for k, value in recalls.items():
            assert found[f"{direction}_r{k}"]["mean"] == pytest.approx(value, abs=1e-4)
            assert found[f"{direction}_r{k}"]["low"] <= value + 1e-4
            assert found[f"{direction}_r{k}"]["high"] >= value - 1e-4
    assert found["image_to_text_r1"]["queries"] == 6
    assert found["text_to_image_r1"]["queries"] == 12


def test_the_headline_metrics_are_written_and_returned(project: Path, params: Params) -> None:
    returned = evaluate.run(params, ["zero-shot"])["zero-shot"]
    shown = headline("test")
    assert set(shown) == {
        "images",
        "texts",
        "image_to_text_r1",
        "image_to_text_r10",
        "text_to_image_r1",
    }
    assert (shown["images"], shown["texts"]) == (6, 12)
    assert returned == {f"test/{key}": shown[key] for key in shown if key not in {"images", "texts"}}


def test_two_runs_give_the_same_bytes_and_embed_once(project: Path, params: Params) -> None:
    evaluate.run(params, ["zero-shot"])
    first = {path: path.read_bytes() for path in Path("metrics").rglob("*") if path.is_file()}
    (kept,) = Path("work/embeddings").rglob("*.safetensors")
    made = kept.stat().st_mtime_ns
    evaluate.run(params, ["zero-shot"])
    assert {path: path.read_bytes() for path in Path("metrics").rglob("*") if path.is_file()} == first
    assert [path.stat().st_mtime_ns for path in Path("work/embeddings").rglob("*.safetensors")] == [made]
    shutil.rmtree("work")
    evaluate.run(params, ["zero-shot"])
    assert {path: path.read_bytes() for path in Path("metrics").rglob("*") if path.is_file()} == first


def test_a_changed_picture_file_is_embedded_again(project: Path) -> None:
    picture = Picture("data/tiny/images/0.png")
    (before,) = embed.embed([Path("models/base")], [picture], ["A dog."], SETTINGS)
    Image.new("RGB", (50, 40), "blue").save(picture.path)
    (after,) = embed.embed([Path("models/base")], [picture], ["A dog."], SETTINGS)
    assert not torch.equal(before.image, after.image)
    assert torch.equal(before.text, after.text)


def test_a_damaged_cache_of_embeddings_is_replaced(project: Path, params: Params) -> None:
    evaluate.run(params, ["zero-shot"])
    before = result("test")
    (kept,) = Path("work/embeddings").rglob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])
    evaluate.run(params, ["zero-shot"])
    assert result("test") == before


def test_sorted_trimmed_batches_give_the_same_embeddings_as_padded_ones(project: Path) -> None:
    model = weights.load(Path("models/base")).eval()
    embedded, counts = embedding.of_texts(model, tiny.CAPTIONS, SETTINGS.batch_size)
    ids = torch.zeros(len(tiny.CAPTIONS), 77, dtype=torch.long)
    for row, caption in enumerate(tiny.CAPTIONS):
        tokens = text.tokenize(caption, [], 77).ids
        ids[row, : len(tokens)] = tokens
    with torch.inference_mode():
        torch.testing.assert_close(embedded, model.encode_texts(ids), atol=1e-5, rtol=1e-4)
    # "A man reads." is 4 tokens; the count is not limited by the context length.
    assert int(counts[5]) == 90 * 4 + 2


def test_a_crop_is_embedded_from_the_pixels_that_its_box_touches(project: Path) -> None:
    source = Image.open("data/tiny/images/0.png")
    source.crop((9, 5, 31, 25)).save("cut.png")
    box = Picture("data/tiny/images/0.png", (9.5, 5.0, 30.5, 25.0))
    alone = Picture("cut.png")
    (found,) = embed.embed([Path("models/base")], [box, alone], ["A dog."], SETTINGS)
    torch.testing.assert_close(found.of_pictures([box]), found.of_pictures([alone]))
    outside = Picture("data/tiny/images/0.png", (60.0, 5.0, 70.0, 25.0))
    with pytest.raises(UserError, match=r"images/0.png: box \(60.0, 5.0, 70.0, 25.0\) lies outside"):
        embed.embed([Path("models/base")], [outside], ["A dog."], SETTINGS)


def test_copies_of_a_picture_have_one_embedding(project: Path) -> None:
    """Computed in different batches, their last bits would differ, and one copy would outrank the other."""
    copies = [Picture(f"data/tiny/images/copy-{number}.png") for number in range(7)]
    for copy in copies:
        shutil.copy("data/tiny/images/0.png", copy.path)
    box = (9.0, 5.0, 31.0, 25.0)
    crops = [Picture(copy.path, box) for copy in copies]
    others = [Picture(f"data/tiny/images/{number}.png") for number in range(3)]
    (found,) = embed.embed([Path("models/base")], [*copies, *crops, *others], ["A dog."], SETTINGS)
    for same in (copies, crops):
        assert len({tuple(row) for row in found.of_pictures(same).tolist()}) == 1
    assert len(found.image) == 4


def test_missing_benchmarks_give_their_reason(project: Path, params: Params) -> None:
    evaluate.run(params, ["zero-shot"])
    for benchmark, reason in {"short": "short", "twins": "twins", "joint": "crops"}.items():
        assert headline(benchmark) == {"images": 0, "texts": 0}
        assert reason in result(benchmark)["missing"]
        assert not Path(f"metrics/zero-shot/ranks/{benchmark}.parquet").exists()


def test_a_set_without_test_pictures_has_no_benchmark(project: Path, params: Params) -> None:
    manifest.write([], Path("data/tiny/test.parquet"))
    assert evaluate.run(params, ["zero-shot"]) == {"zero-shot": {}}
    assert result("test") == {"benchmark": "test", "missing": "tiny has no test pictures"}


def test_every_benchmark_of_a_complete_data_set(project: Path, params: Params) -> None:
    rows = manifest.read(Path("data/tiny/test.parquet"))
    manifest.write(
        [Row(**{**vars(row), "captions": ("Short.",)}) for row in rows], Path("data/tiny/short.parquet")
    )
    twins = [tiny.twin(rows[0], rows[1].image, "colour"), tiny.twin(rows[2], rows[3].image, "shape")]
    manifest.write_table(manifest.table(twins, manifest.TWINS), Path("data/tiny/twins.parquet"))
    tiny.write_pairs(tiny.pair("p0", 0.3), tiny.pair("p4", 0.2))
    returned = evaluate.run(params, ["zero-shot"])["zero-shot"]
    assert headline("short")["texts"] == 6
    # Six equal captions tie, so no picture ranks its own caption first.
    assert result("short")["unanswerable"] == {"text_to_image": 0, "image_to_text": 6}
    assert headline("short")["image_to_text_r1"] == 0
    assert headline("twins")["images"] == 4
    assert set(result("twins")["by"]["attribute"]) == {"colour", "shape"}
    assert headline("joint")["images"] == 4
    assert set(result("joint")["by"]["part"]) == {"whole", "crop"}
    assert {"test/text_to_image_r1", "twins/image_to_text_accuracy", "joint/text_to_image_map10"} <= set(
        returned
    )
    twin_rows = pq.read_table("metrics/zero-shot/ranks/twins.parquet").to_pylist()
    assert [row["part"] for row in twin_rows[:4]] == ["picture", "picture", "twin", "twin"]
    assert [row["attribute"] for row in twin_rows[:4]] == ["colour", "shape"] * 2


def test_a_picture_without_a_text_is_in_the_gallery_but_is_no_query() -> None:
    """As in metrics.recall: the same embeddings have one recall."""
    gallery = Gallery(
        benchmark="test",
        pictures=(Picture("a"), Picture("alone"), Picture("b")),
        ids=("a", "alone", "b"),
        texts=("of a", "of b"),
        text_to_picture=(0, 2),
    )
    image, texts = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.9]])
    rows = ranking.measure(gallery, by_hand(gallery, image, texts), chunk=3)
    expected = metrics.recall_at_k(image, texts, torch.tensor([0, 2]), [1, 2])
    assert expected == {"image_to_text": {1: 100.0, 2: 100.0}, "text_to_image": {1: 50.0, 2: 100.0}}
    for direction, own in query_metrics.by_direction(rows):
        names, values = query_metrics.metric_values(own, [1, 2])
        assert dict(zip(names, values.mean(0), strict=True)) == {
            f"r{k}": value for k, value in expected[direction].items()
        }


def test_queries_that_cannot_be_answered_are_counted_by_direction(project: Path, params: Params) -> None:
    """A copied picture blocks its texts, a copied text blocks its pictures that have no other one."""
    rows = manifest.read(Path("data/tiny/test.parquet"))
    shutil.copy(rows[0].image, rows[1].image)
    captions = [*(row.captions for row in rows[:3]), (rows[2].captions[0],), (rows[2].captions[0], "Mine.")]
    rows = [Row(**{**vars(row), "captions": one}) for row, one in zip(rows[:5], captions, strict=True)]
    rows[2] = Row(**{**vars(rows[2]), "captions": rows[2].captions[:1]})
    manifest.write(rows, Path("data/tiny/test.parquet"))
    evaluate.run(params, ["zero-shot"])
    assert result("test")["unanswerable"] == {"text_to_image": 4, "image_to_text": 2}
    ranks = pq.read_table("metrics/zero-shot/ranks/test.parquet").to_pylist()
    for direction, blocked in (("text_to_image", {"p0", "p1"}), ("image_to_text", {"p2", "p3"})):
        found = [row["rank"] for row in ranks if row["direction"] == direction and row["id"] in blocked]
        assert len(found) == result("test")["unanswerable"][direction]
        assert min(found) > 1


def test_chance_is_what_random_embeddings_reach() -> None:
    """Of recall with several texts per picture, of average precision, and of twins."""
    draw = torch.Generator().manual_seed(0)
    owners = (0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 7)
    pictures = tuple(Picture(str(number)) for number in range(8))
    texts = tuple(map(str, range(12)))
    for benchmark, of in (("test", owners), ("joint", tuple(range(8))), ("twins", tuple(range(8)))):
        ids = tuple(str(number if benchmark == "test" else number % 4) for number in range(8))
        gallery = Gallery(benchmark, pictures, ids, texts[: len(of)], of)
        sums: dict[str, float] = {}
        for _ in range(400):
            image, text = (torch.randn(count, 64, generator=draw) for count in (8, len(of)))
            rows = ranking.measure(gallery, by_hand(gallery, image, text), chunk=16)
            ks = query_metrics.shown(rows, [1, 3, 50])
            for name, one in query_metrics.summarise(rows, ks).items():
                sums[name] = sums.get(name, 0.0) + one["mean"] / 400
        expected = query_metrics.chance(rows, ks)
        assert expected.keys() == sums.keys()
        assert not any(name.endswith("_r50") for name in expected)
        for name, value in expected.items():
            assert sums[name] == pytest.approx(value, abs=2.5), (benchmark, name)


def test_a_group_that_holds_texts_alone_is_measured() -> None:
    """A picture is grouped by its longest text, so that no picture may be in the group of short texts."""
    gallery = Gallery("test", (Picture("a"),), ("a",), ("short", "long"), (0, 0))
    embeddings = by_hand(gallery, torch.eye(2)[:1], torch.eye(2))
    embeddings.tokens[1] = 100
    rows = ranking.measure(gallery, embeddings, chunk=3)
    found = query_metrics.breakdowns(rows, query_metrics.shown(rows, [1]))["tokens"]
    assert set(found["<= 77"]) == {"text_to_image_r1"}
    assert set(found["78-154"]) == {"text_to_image_r1", "image_to_text_r1"}


def test_fault_10_a_crop_belongs_to_its_picture() -> None:
    """The release's joint mAP never links a crop to its image."""
    gallery = Gallery(
        benchmark="joint",
        pictures=(Picture("a"), Picture("b"), Picture("a", (0, 0, 1, 1)), Picture("b", (0, 0, 1, 1))),
        ids=("a", "b", "a", "b"),
        texts=("caption a", "caption b", "sentence a", "sentence b"),
        text_to_picture=(0, 1, 2, 3),
    )
    # The picture, crop, caption and sentence of each picture have the same embedding: everything is found.
    points = torch.eye(2)[[0, 1, 0, 1]]
    linked = ranking.measure(gallery, by_hand(gallery, points, points), chunk=3)
    assert linked["average_precision"].to_pylist() == [1.0] * 8
    # Each finds its own text first but not the linked one: without the link this would be perfect.
    apart = torch.eye(4)
    missed = ranking.measure(gallery, by_hand(gallery, apart, apart), chunk=3)
    # Own item first; the other relevant one ties with two wrong ones and so is fourth.
    assert missed["average_precision"].to_pylist() == pytest.approx([(1 + 2 / 4) / 2] * 8)


def test_the_rows_of_twins_belong_to_their_queries() -> None:
    gallery = Gallery(
        benchmark="twins",
        pictures=(Picture("a"), Picture("b"), Picture("at"), Picture("bt")),
        ids=("a", "b", "a", "b"),
        texts=("a", "b", "at", "bt"),
        text_to_picture=(0, 1, 2, 3),
        attributes=("colour", "shape"),
    )
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    texts = image.clone()
    texts[1] = torch.tensor([0.1, 0.9])  # b's caption prefers the twin's picture
    rows = ranking.measure(gallery, by_hand(gallery, image, texts), chunk=3).to_pylist()
    wrong = [
        (row["direction"], row["id"], row["part"], row["attribute"]) for row in rows if not row["correct"]
    ]
    # As a query, picture b is right: it scores its own caption at 0.11 and the twin's at 0.
    assert wrong == [("text_to_image", "b", "picture", "shape")]


def test_breakdowns_group_the_queries_by_length(project: Path, params: Params) -> None:
    evaluate.run(params, ["zero-shot"])
    found = result("test")["by"]
    assert list(found["tokens"]) == ["<= 77", "78-154", "> 248"]
    assert sum(group["text_to_image_r1"]["queries"] for group in found["tokens"].values()) == 12
    # A picture is grouped by its longest text.
    assert found["tokens"]["<= 77"]["image_to_text_r1"]["queries"] == 4
    assert list(found["sentences"]) == ["<= 1", "2-3", "9-12", "> 12"]


def test_the_protocol_depends_on_the_content_and_not_on_the_paths(project: Path, params: Params) -> None:
    evaluate.run(params, ["zero-shot"])
    before = result("test")["protocol"]
    assert before["images"] == 6
    assert before["texts"] == 12
    assert (before["view"], before["context_length"], before["precision"]) == ("center_crop", 77, "fp32")
    rows = manifest.read(Path("data/tiny/test.parquet"))
    shutil.move("data/tiny/images", "data/tiny/pictures")
    moved = [Row(**{**vars(row), "image": row.image.replace("images", "pictures")}) for row in rows]
    manifest.write(moved, Path("data/tiny/test.parquet"))
    evaluate.run(params, ["zero-shot"])
    assert result("test")["protocol"] == before
    changed = [Row(**{**vars(row), "captions": ("Another.", *row.captions[1:])}) for row in moved]
    manifest.write(changed, Path("data/tiny/test.parquet"))
    evaluate.run(params, ["zero-shot"])
    assert result("test")["protocol"]["split"] != before["split"]


def test_models_measured_together_get_the_same_results_as_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    tiny.make(tmp_path, monkeypatch, ("zero-shot", "stage1", "stage2"))
    alone = {name: evaluate.run(params, [name])[name] for name in ("zero-shot", "stage1")}
    files = {path: path.read_bytes() for path in Path("metrics").rglob("*") if path.is_file()}
    shutil.rmtree("work")
    shutil.rmtree("metrics")
    together = evaluate.run(params, ["zero-shot", "stage1", "stage2"])
    assert {name: together[name] for name in alone} == alone
    assert {path: path.read_bytes() for path in files} == files


def test_another_data_set_is_measured_beside_the_own_one(project: Path, params: Params) -> None:
    evaluate.run(params, ["zero-shot"])
    before = {path: path.read_bytes() for path in Path("metrics").rglob("*") if path.is_file()}
    shutil.copytree("data/tiny", "data/other")
    # These pairs belong to the pipeline's own data set.
    tiny.write_pairs(tiny.pair("p0", 0.3))
    returned = evaluate.run(params, ["zero-shot"], "other")["zero-shot"]
    assert returned.keys() == {f"other/test/{way}_r1" for way in DIRECTIONS} | {
        "other/test/image_to_text_r10"
    }
    details = json.loads(Path("metrics/zero-shot/on/other/details/test.json").read_text())
    assert details["protocol"]["data_set"] == "other"
    assert "crops" in json.loads(Path("metrics/zero-shot/on/other/details/joint.json").read_text())["missing"]
    assert {path: path.read_bytes() for path in before} == before


def test_a_missing_picture_is_named(project: Path, params: Params) -> None:
    Path("data/tiny/images/3.png").unlink()
    with pytest.raises(UserError, match=r"^data/tiny/images/3\.png: cannot be read"):
        evaluate.run(params, ["zero-shot"])
