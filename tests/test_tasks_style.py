"""Stylizers: what they are made of, what they predict of any picture, and how they are tested."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.dataset import Dataset
from data.samples import read_photo
from tasks.modelfile import SavedModel, load_card, load_model
from tasks.style import StylizerConfig, StylizerEvaluate
from tasks.styleconfig import StyleOptimConfig
from tasks.stylesources import read_sources, read_styles
from tasks.stylizerevaluate import compare, costs_of, evaluate, fitted, optimise, summarise
from tasks.stylizerpredict import StylizerPredictor, decoded, filled
from tasks.stylizerreport import Compared, Rendered, sheet
from tasks.train import train
from tests.smears import smear
from tests.tiny import TINY, tiny_config, tiny_dataset, tiny_weights

ADAIN = {"name": "adain", "width": 4, "num_blocks": 1, "layers": ["stem", "group2"]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset("style", tmp_path_factory.mktemp("store"))


def trained(dataset: Dataset, folder: Path, **changes: Any) -> Path:
    config = StylizerConfig.parse({**TINY["style"], **changes}, "style")
    weights = tiny_weights("style", config)
    return train(
        "style", config, dataset, folder=folder, key="k", digest="d" * 32, executor="in_process", weights=weights
    ).model_folder  # fmt: skip


@pytest.fixture(scope="module")
def johnson(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(dataset, tmp_path_factory.mktemp("johnson"))


@pytest.fixture(scope="module")
def adain(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(dataset, tmp_path_factory.mktemp("adain"), model=ADAIN)


@pytest.fixture
def both(johnson: Path, adain: Path) -> dict[str, SavedModel]:
    return {"johnson": load_model(johnson), "adain": load_model(adain)}


models = pytest.mark.parametrize("name", ["johnson", "adain"])


def test_a_card_names_the_styles_and_the_hashes_of_all_that_judged(johnson: Path) -> None:
    card = load_card(johnson)
    assert card.classes == ("bricks", "tissue") and card.initial_weights is not None
    about = card.initial_weights.about
    assert about["styles_sha256"]["bricks"] == hashlib.sha256(read_photo("skimage:brick")).hexdigest()
    assert (card.initial_weights.source, card.initial_weights.trained, about["caffe"]) == (
        "random",
        "none",
        False,
    )


def test_another_style_picture_is_another_hash_of_the_sources() -> None:
    def sources(styles: list[list[str]]) -> str:
        return tiny_weights(
            "style", StylizerConfig.parse({**TINY["style"], "styles": styles}, "style")
        ).sha256  # type: ignore[union-attr]

    one = sources([["a", "skimage:brick"]])
    assert one == sources([["a", "skimage:brick"]]) != sources([["a", "skimage:grass"]])


def test_a_saved_model_s_judge_says_what_it_said_in_training(johnson: Path) -> None:
    """The features of the network that was built, by the weights that the file carries."""
    config = tiny_config("style")
    weights = tiny_weights("style", config)
    assert weights is not None
    built = weights.net.build(config.cost.weights().layers, config.train.seed)
    [member] = load_model(johnson).members
    picture = decoded(smear(1))
    for name, features in member.judge.look(picture).items():
        torch.testing.assert_close(features, built(picture)[name])
    assert torch.equal(member.styles, weights.styles)


@models
@pytest.mark.parametrize("size", [(24, 24), (33, 47), (61, 16)])
def test_a_picture_of_any_size_comes_back_in_its_size(
    name: str, size: tuple[int, int], both: dict[str, SavedModel]
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)).save(
        buffer, "PNG"
    )
    table = StylizerPredictor(both[name]).predict([buffer.getvalue(), b"junk"]).to_pylist()
    made = Image.open(io.BytesIO(table[0]["picture"]))
    assert (made.height, made.width, made.mode, table[0]["error"]) == (*size, "RGB", None)
    assert table[1]["picture"] is None and "not an image" in table[1]["error"]


def test_sides_are_filled_by_a_mirror_and_where_there_is_nothing_left_by_the_edge() -> None:
    picture = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[None, None]
    assert torch.equal(filled(picture, 1), picture)
    assert filled(picture, 4)[0, 0].tolist() == [[1, 2, 3, 2], [4, 5, 6, 5], [1, 2, 3, 2], [1, 2, 3, 2]]


def test_a_picture_that_is_too_small_says_so(both: dict[str, SavedModel]) -> None:
    buffer = io.BytesIO()
    Image.new("L", (40, 9)).save(buffer, "PNG")
    [row] = StylizerPredictor(both["johnson"]).predict([buffer.getvalue()]).to_pylist()
    assert row["error"] == "a picture of 40x9 px is too small: each side must be at least 16 px"


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((400, 300), (64, 48)),
        ((40, 30), (40, 30)),
        ((800, 40), (320, 16)),
        ((9, 40), (16, 71)),
        ((1, 1), (16, 16)),
    ],
)
def test_every_picture_is_tested_at_a_size_that_a_network_takes(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size[::-1], (200, 90, 40)).save(buffer, "PNG")
    picture = fitted(decoded(buffer.getvalue(), least_px=1), 64)
    assert tuple(picture.shape[2:]) == wanted
    assert float(picture.amax()) == pytest.approx(200 / 255, abs=1e-3)


@models
def test_a_large_picture_in_bands_is_the_same_to_a_grey_level(name: str, both: dict[str, SavedModel]) -> None:
    """Odd sides included; in float32, after rounding to 8 bits."""
    picture = decoded(smear(3, 203))
    whole = StylizerPredictor(both[name]).render(picture)
    parts = StylizerPredictor(both[name], max_whole_px=1, band_px=203 * 40).render(picture)
    assert whole.shape == parts.shape == picture.shape
    assert (whole - parts).abs().max() < 1 / 255
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-3)


def test_styles_are_chosen_by_name_and_mixed_by_weight(both: dict[str, SavedModel]) -> None:
    predictor, picture = StylizerPredictor(both["johnson"]), decoded(smear(5))
    first = predictor.render(picture)
    bricks, tissue = (predictor.manner_of({name: 3.0}) for name in ("bricks", "tissue"))
    assert torch.equal(first, predictor.render(picture, bricks))
    assert not torch.equal(first, predictor.render(picture, tissue))
    assert predictor.manner_of({"tissue": 3.0, "bricks": 1.0}).tolist() == [[0.25, 0.75]]
    predictor.choose({"tissue": 1.0})
    assert torch.equal(predictor.render(picture), predictor.render(picture, tissue))
    with pytest.raises(ValueError, match="no style moon in this model; it has: bricks, tissue"):
        predictor.manner_of({"moon": 1.0})
    with pytest.raises(ValueError, match=r"weights of styles \(=0.0\) must be 0 or more"):
        predictor.manner_of({"tissue": 0.0})
    with pytest.raises(ValueError, match="a picture as a style is for adain"):
        predictor.manner_of({}, [(picture, 1.0)])
    with pytest.raises(ValueError, match=r"a strength \(=0.5\) is for adain"):
        predictor.manner_of({"tissue": 1.0}, strength=0.5)


def test_adain_takes_a_picture_as_it_takes_its_own_and_strength_lies_between(
    both: dict[str, SavedModel],
) -> None:
    predictor, picture = StylizerPredictor(both["adain"]), decoded(smear(5))
    squares, _ = read_styles([("x", "skimage:ihc")], 32)
    own = predictor.render(picture, predictor.manner_of({"tissue": 1.0}))
    torch.testing.assert_close(
        predictor.render(picture, predictor.manner_of({}, [(squares.float() / 255, 1.0)])), own
    )
    none, half = (
        predictor.render(picture, predictor.manner_of({"tissue": 1.0}, strength=strength))
        for strength in (0.0, 0.5)
    )
    apart = (none - own).abs().mean()
    assert 0 < (none - half).abs().mean() < apart and 0 < (half - own).abs().mean() < apart
    itself = predictor.render(picture, predictor.manner_of({}, [(picture, 1.0)]))
    torch.testing.assert_close(itself, none, rtol=0, atol=1e-4)


@models
def test_the_report_says_what_the_predictor_renders(
    name: str, both: dict[str, SavedModel], johnson: Path, adain: Path, dataset: Dataset, tmp_path: Path
) -> None:
    config = StylizerEvaluate.parse(TINY["style"]["evaluate"], "evaluate")
    folder = johnson if name == "johnson" else adain
    report = evaluate([folder], dataset, config=config, precision="fp32")
    ids, found = dataset.table("test", ["id", "image"]), report.metrics
    assert found["num_images"] == len(ids) and found["num_styles"] == 2
    predictor = StylizerPredictor(both[name])
    content = decoded(ids["image"][0].as_py())
    made = predictor.render(content, predictor.manner_of({"tissue": 1.0}))
    costs = costs_of(predictor, made, content, 1)
    [row] = [r for r in report.rows if r.id == ids["id"][0].as_py() and r.style == "tissue"]
    assert row.costs == pytest.approx(costs, rel=1e-4)
    cost = TINY["style"]["cost"]
    total = sum(cost[f"{part}_weight"] * costs[part] for part in ("content", "style", "variation"))
    assert total == pytest.approx(costs["total"], rel=1e-5)
    assert found["total_low"] <= found["total"] <= found["total_high"]
    assert found["total"] == pytest.approx(np.mean([r.costs["total"] for r in report.rows]))
    [compared] = report.compared
    assert compared.trace[0][1] == pytest.approx(report.rows[0].untouched, rel=1e-4)
    assert found["optimised_total"] <= compared.trace[0][1]
    report.write(tmp_path / "report")
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == report.metrics
    names = {file.name for file in (tmp_path / "report").iterdir()}
    assert names == {
        "pictures.csv", "per_style.csv", "compared.csv", "sheet.png", "compared.png", "curves.png", "about.json",
        "metrics.json",
    }  # fmt: skip
    with Image.open(tmp_path / "report" / "sheet.png") as image:
        assert image.width == 6 + 3 * (224 + 6)
    assert len(report.tables("x")) == 3 and report.about["registered_view"] == "single"
    mean = np.mean([r.costs["style"] for r in report.rows if r.style == "tissue"])
    assert report.per_style[1]["name"] == "tissue" and report.per_style[1]["style"] == pytest.approx(mean)


def test_the_optimisation_descends_the_model_s_own_cost(both: dict[str, SavedModel]) -> None:
    config = StylizerEvaluate.parse(TINY["style"]["evaluate"], "evaluate")
    predictor, content = StylizerPredictor(both["johnson"]), decoded(smear(7, 32))
    style = predictor.network.styles[:1].float() / 255
    picture, trace = optimise(predictor.network.judge, content, style, 0.2, config.optimise_by)
    assert picture.shape == content.shape and len(trace) > 1
    assert trace[0][1] == pytest.approx(costs_of(predictor, content, content, 0)["total"], rel=1e-4)
    assert min(total for _, total in trace) < trace[0][1]
    assert [seconds for seconds, _ in trace] == sorted(seconds for seconds, _ in trace)


def test_the_optimisation_is_judged_by_pictures_that_can_be_shown(both: dict[str, SavedModel]) -> None:
    """Adam knows no bounds, and steps of this size leave them."""
    judge, content = StylizerPredictor(both["johnson"]).network.judge, decoded(smear(7, 32))
    config = StyleOptimConfig(name="adam", lr=0.5, momentum=0.0, history=1)
    seen: list[Tensor] = []
    judge.features.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    picture, trace = optimise(judge, content, content, 0.2, config)
    assert len(seen) == 2 + len(trace) > 3
    assert all(each.min() >= 0 and each.max() <= 1 for each in (*seen, picture))


def test_the_optimisation_counts_by_its_least_cost_within_the_network_s_time(
    both: dict[str, SavedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, content = StylizerPredictor(both["johnson"]), decoded(smear(7, 32))
    trace = [(0.1, 5.0), (0.2, 2.0), (0.3, 4.0), (0.5, 1.0)]
    monkeypatch.setattr("tasks.stylizerevaluate.optimise", lambda *_: (content, trace))
    config = StylizerEvaluate.parse(TINY["style"]["evaluate"], "evaluate")

    def found(seconds: float) -> Compared:
        row = Rendered("a", "bricks", {"total": 3.0}, 6.0, 1.0, seconds, 1024)
        return compare(predictor, content, content, 0, row, config)

    assert [found(seconds).optimised_at_once for seconds in (0.05, 0.15, 0.4)] == [6.0, 5.0, 2.0]
    assert (found(0.4).time_to_equal_s, found(0.4).optimised) == (0.2, 1.0)


def test_figures_of_what_cannot_be_told_are_left_out() -> None:
    """An interval of one picture, and when the optimisation was as far as the network where it never was."""
    row = Rendered(
        "a", "bricks", {"total": 3.0, "content": 1.0, "style": 1.0, "variation": 0.0}, 6.0, 2.0, 1.0, 1024
    )
    pixels = np.zeros((1, 1, 3), np.uint8)
    reached, never = (
        Compared("a", "bricks", 3.0, 1.0, 2.0, 1.0, seconds, (), (pixels,) * 3) for seconds in (4.0, None)
    )
    one = summarise([row], [reached, never])
    assert "optimised_time_to_equal_s" not in one and one["optimised_reached"] == 0.5
    assert one["total"] == 3 and not [name for name in one if name.endswith(("_low", "_high"))]
    assert summarise([row], [reached, reached, never])["optimised_time_to_equal_s"] == 4
    two = summarise([row, replace(row, id="b", costs={**row.costs, "total": 5.0})], [])
    assert two["total_low"] < two["total"] == 4 < two["total_high"]


def test_a_sheet_puts_styles_above_what_was_made_in_them() -> None:
    red, blue = np.full((10, 20, 3), (255, 0, 0), np.uint8), np.full((30, 30, 3), (0, 0, 255), np.uint8)
    made = np.asarray(sheet([("", None), ("blue", blue)], [[red, blue]]))
    assert made.shape == (18 + 6 + 230 + 224 + 6, 6 + 2 * 230, 3)
    assert made[30, 240].tolist() == [0, 0, 255] and made[30, 10].tolist() == [255, 255, 255]
    assert made[260, 10].tolist() == [255, 0, 0]
    assert sheet([("", None), ("blue", blue)], []).size == (6 + 2 * 230, 18 + 6 + 230)  # num_worst=0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"styles": [["a", "skimage:brick"], ["a", "skimage:ihc"]]}, "names of their own"),
        ({"styles": [["a b", "skimage:brick"]]}, "names of their own"),
        ({"styles": ["bricks"]}, r"a valid tuple; it is \[\[name, picture\]"),
        ({"cost": {**TINY["style"]["cost"], "style_weight": 0.0}}, "style_weight must be above 0"),
        ({"train": {**TINY["style"]["train"], "growth": [[16, 0.5]]}}, "textures have a size"),
        ({"augment": {**TINY["style"]["augment"], "mixup_alpha": 0.5}}, "no labels to mix"),
        ({"train": {**TINY["style"]["train"], "patience_metric": "ap"}}, "must be loss for style"),
        ({"model": ADAIN, "train": {**TINY["style"]["train"], "batch_size": 1}}, "at least 2 for adain"),
        (
            {"model": ADAIN, "evaluate": {**TINY["style"]["evaluate"], "batch_size": 1}},
            "validation does as training",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StylizerConfig.parse({**TINY["style"], **changes}, "style")


def test_sources_that_are_not_there_are_named(dataset: Dataset, tmp_path: Path) -> None:
    def sources(**changes: Any) -> Any:
        return read_sources(StylizerConfig.parse({**TINY["style"], **changes}, "style"), dataset.info, Path)

    with pytest.raises(FileNotFoundError, match=r"no such picture: nobody\.jpg"):
        sources(styles=[["a", "nobody.jpg"]])
    (tmp_path / "text.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"styles: a \(=.*text.png\): not an image"):
        sources(styles=[["a", str(tmp_path / "text.png")]])
    with pytest.raises(ValueError, match=r"input.crop_px \(=22\) must be a multiple of 4"):
        trained(
            dataset, tmp_path / "run", input={"stored_px": 24, "crop_px": 22, "pad_px": 0, "resize": "crop"}
        )
