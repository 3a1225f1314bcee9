"""The strongest patches of a split: one pass finds what a look at everything would, and crops show what units saw."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import Dataset
from data.stream import layout_of
from models.receptive import Field, LayerFields, Span
from models.synthesis import SynthesisConfig, of_units
from models.units import activations
from tasks import classification, cluster, curvedata, figures, unitviews
from tasks.card import Preprocessing
from tasks.curvedata import everywhere, here
from tasks.modelfile import save_model
from tasks.subject import Subject, open_subject
from tasks.unitpage import LayerView, UnitView, field_text, sheet, write_sheets
from tasks.unitviews import (
    Seen,
    crop_padded,
    look_at_split,
    most_alike,
    network_input,
    patches_of,
    rows_of,
    seen_in_picture,
    synthesise_each,
    window_of,
)
from tests.test_models_synthesis import PLAIN
from tests.tiny import tiny_config, tiny_dataset


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset("classification", tmp_path_factory.mktemp("store"))


def subject_of(digits: Dataset, folder: Path, seed: int = 0, name: str = "lenet5") -> Subject:
    torch.manual_seed(seed)
    config = tiny_config("classification", model__name=name)
    model = classification.build_model(config, digits.info, sample=list)
    save_model(folder, classification.card(config, digits.info, "", "r"), [model])
    return open_subject(str(folder))


@pytest.fixture(scope="module")
def subject(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of(digits, tmp_path_factory.mktemp("model"))


def chosen(subject: Subject, *names: str) -> dict[str, LayerFields]:
    known = subject.fields()
    return {name: known[name] for name in names}


LAYERS = ("features.3", "classifier.4")


def look(digits: Dataset, folder: Path, *subjects: Subject) -> Seen:
    heard: list[tuple[int, int]] = []
    layers = [chosen(each, *LAYERS) for each in subjects]
    seen = look_at_split(
        digits, "test", subjects, layers, here(), folder / "seen.pt", lambda *each: heard.append(each)
    )
    num = digits.info.num_images("test")
    assert heard[-1] == (num, num)
    return seen


def everything(digits: Dataset, subject: Subject, layer: str) -> torch.Tensor:
    """What each picture of the split gave: (N, C, places)."""
    x = network_input(digits.table("test", ["image"])["image"].to_pylist(), subject)
    with torch.inference_mode():
        maps = activations(subject.classifier.net, [layer], subject.classifier.normalise(x))[layer]
    return maps.flatten(2) if maps.ndim == 4 else maps[..., None]


def test_one_pass_finds_what_a_look_at_everything_finds(
    digits: Dataset, subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(unitviews, "PIECE_ROWS", 50)
    seen = look(digits, tmp_path, subject)
    for layer in LAYERS:
        maps, tops = everything(digits, subject, layer), seen.tops[0][layer]
        wanted = maps.amax(2).topk(9, dim=0).values.T
        torch.testing.assert_close(tops.values, wanted, rtol=1e-4, atol=1e-5)
        units = torch.arange(maps.shape[1])[:, None]
        torch.testing.assert_close(maps[tops.pictures, units, tops.places], wanted, rtol=1e-4, atol=1e-5)


def test_pieces_of_large_pictures_have_fewer(
    digits: Dataset, subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layout = layout_of(digits, "test")
    sizes: list[int] = []
    place = here()

    def each(function: Any, calls: Any, *options: Any, **more: Any) -> Any:
        listed = list(calls)
        sizes.extend(len(rows) for rows, *_ in listed)
        return place.each(function, listed, *options, **more)

    asked = (digits, "test", (subject,), [chosen(subject, *LAYERS)])
    straight = look_at_split(*asked, here(), tmp_path / "straight.pt", lambda *_: None)
    monkeypatch.setattr(unitviews, "PIECE_BYTES", layout.num_bytes * 50 // layout.num_rows)
    found = look_at_split(*asked, replace(place, each=each), tmp_path / "small.pt", lambda *_: None)
    assert sum(sizes) == layout.num_rows and sizes[0] in (49, 50)
    for layer in LAYERS:  # the batches are others
        values = (each.tops[0][layer].values for each in (found, straight))
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


def test_what_pieces_gave_does_not_pile_up_behind_one_that_stalls(
    digits: Dataset, subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(unitviews, "PIECE_ROWS", 50)
    given: list[weakref.ref[Seen]] = []
    most = 0

    def stalled(function: Any, calls: Any, *_options: Any, in_order: bool = False) -> Any:
        """A place whose first call ends last, where nobody asks for order."""
        nonlocal most
        listed = list(enumerate(calls))
        for place, arguments in listed if in_order else [*listed[1:], listed[0]]:
            most = max(most, sum(each() is not None for each in given))
            yield place, kept(function(*arguments))

    def kept(seen: Seen) -> Seen:
        given.append(weakref.ref(seen))
        return seen

    place = replace(here(), each=stalled)
    layers = [chosen(subject, *LAYERS)]
    look_at_split(digits, "test", (subject,), layers, place, tmp_path / "seen.pt", lambda *_: None)
    assert len(given) > 3 and most <= 1


@pytest.mark.slow
def test_ray_finds_the_same_to_the_bit(
    digits: Dataset, subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(unitviews, "PIECE_ROWS", 100)
    layers = [chosen(subject, *LAYERS)] * 2
    asked = (digits, "test", (subject, subject), layers)
    try:
        there = look_at_split(*asked, everywhere(), tmp_path / "there.pt", lambda *_: None)
    finally:
        cluster.disconnect()
    alone = look_at_split(*asked, here(), tmp_path / "here.pt", lambda *_: None)
    assert_same(there, alone)


@pytest.mark.parametrize("gpus", [0, 1])
def test_on_ray_each_call_asks_for_a_gpu_where_the_cluster_has_one(
    gpus: int, digits: Dataset, subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(curvedata, "connect", lambda: None)
    monkeypatch.setattr(curvedata, "cluster_info", lambda: cluster.ClusterInfo("here", 1, 2, gpus))
    monkeypatch.setattr(curvedata, "gpus_of_call", lambda: gpus)
    asked: list[tuple[Any, float]] = []

    def each(function: Any, calls: Any, num_threads: int, num_gpus: float, **options: Any) -> Any:
        asked.append((function, num_gpus))
        return here().each(function, calls, num_threads, num_gpus, **options)

    there = replace(everywhere(), each=each, share=lambda value: value)
    layers = chosen(subject, *LAYERS)
    look_at_split(digits, "test", (subject,), [layers], there, tmp_path / "seen.pt", lambda *_: None)
    wanted = [(subject, layers["features.3"], [0])]
    synthesise_each(wanted, SynthesisConfig.parse(PLAIN, "synthesis"), there, tmp_path, lambda *_: None)
    assert asked == [(unitviews.look, gpus), (unitviews.synthesise, gpus)]


def assert_same(one: Seen, two: Seen) -> None:
    """To the bit."""
    for name in LAYERS:
        for own, other in zip(one.tops, two.tops, strict=True):
            assert all(
                torch.equal(*pair)
                for pair in zip(vars(own[name]).values(), vars(other[name]).values(), strict=True)
            )
        assert torch.equal(one.moments[name].product, two.moments[name].product)


def test_a_pass_that_was_stopped_goes_on_to_the_same_bits(
    digits: Dataset, subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(unitviews, "PIECE_ROWS", 100)
    monkeypatch.setattr(unitviews, "KEEP_EVERY_S", -1.0)  # after each piece
    layers = [chosen(subject, *LAYERS)] * 2
    asked = (digits, "test", (subject, subject), layers, here())
    straight = look_at_split(*asked, tmp_path / "straight.pt", lambda *_: None)
    heard: list[int] = []

    def cut(done: int, _num: int) -> None:
        heard.append(done)
        if done == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_at_split(*asked, tmp_path / "cut.pt", cut)
    resumed = look_at_split(*asked, tmp_path / "cut.pt", lambda done, _num: heard.append(done))
    num = digits.info.num_images("test")
    assert heard == [0, 100, 200, 200, *range(300, num, 100), num]
    assert_same(resumed, straight)
    assert_same(look_at_split(*asked, tmp_path / "cut.pt", lambda *_: None), straight)


def test_a_patch_is_what_its_unit_saw(digits: Dataset, subject: Subject, tmp_path: Path) -> None:
    seen, [layer] = look(digits, tmp_path, subject), chosen(subject, "features.3").values()
    [patch, *_] = patches_of(digits, "test", subject, layer, seen.tops[0]["features.3"], [5])[5]
    field = layer.fields[5]
    assert field is not None and patch.pixels.shape == (1, field.rows.side, field.columns.side)
    with torch.inference_mode():
        x = subject.classifier.normalise(torch.from_numpy(patch.pixels)[None])
        alone = activations(subject.classifier.net, ["features.3"], x)["features.3"]
    assert float(alone[0, 5, 0, 0]) == pytest.approx(patch.activation, rel=1e-4)  # no padding in this network
    table = digits.table("test", ["id", "label"]).to_pylist()
    own = next(row for row in table if row["id"] == patch.id)
    assert digits.info.classes[own["label"]] == patch.label


def test_windows_are_fields_and_all_of_the_picture_where_those_are_larger() -> None:
    rows, columns = Span(-3, 7, 2), Span(-20, 41, 4)
    assert window_of(Field(rows, columns), 0, 5, 32) == (-3, 4, 0, 32)
    assert window_of(Field(rows, rows), 14, 1, 32) == (25, 32, -1, 6)
    assert window_of(None, 0, 0, 32) == (0, 32, 0, 32)


@pytest.mark.parametrize(
    ("resize", "stored_px", "crop_px", "size_px", "seen"),
    [
        ("squash", 32, 32, (64, 96), (8.0, 6.0, 16.0, 24.0)),
        ("letterbox", 32, 32, (64, 32), (8.0, 0.0, 16.0, 0.0)),  # in the border above it
        ("crop", 32, 32, (64, 32), (20.0, 2.0, 24.0, 8.0)),
        ("crop", 32, 24, (128, 64), (48.0, 12.0, 56.0, 24.0)),
        ("crop", 32, 40, (64, 32), (16.0, 0.0, 20.0, 4.0)),  # what is reflected counts as outside
    ],
)
def test_a_field_lies_in_the_picture_as_the_dataset_has_it(
    resize: Any, stored_px: int, crop_px: int, size_px: tuple[int, int], seen: tuple[float, ...]
) -> None:
    field = Field(Span(-6, 6, 8), Span(-4, 4, 8))
    want = Preprocessing(stored_px=stored_px, crop_px=crop_px, pad_px=0, channels=3, resize=resize)
    assert seen_in_picture(field, 1, 1, want, size_px) == pytest.approx(seen)


def test_who_sees_the_whole_picture_sees_what_the_network_is_shown_of_it() -> None:
    want = Preprocessing(stored_px=32, crop_px=24, pad_px=0, channels=3, resize="crop")
    assert seen_in_picture(None, 0, 0, want, (128, 64)) == (40, 8, 88, 56)


def test_what_lies_outside_a_picture_has_the_mean_colour() -> None:
    picture = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    patch = crop_padded(picture, (-1, 2, 1, 4), (0.5,))
    assert patch[0].tolist() == [[128, 128, 128], [1, 2, 128], [4, 5, 128]]


def test_the_same_network_with_its_units_in_another_order_is_matched(
    digits: Dataset, subject: Subject, tmp_path: Path
) -> None:
    other = subject_of(digits, tmp_path / "model")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    conv = other.classifier.net.get_submodule("features.3")
    with torch.no_grad():
        conv.weight.copy_(conv.weight[order].clone())
        conv.bias.copy_(conv.bias[order].clone())  # type: ignore[union-attr,operator,index]
    found = most_alike(look(digits, tmp_path, subject, other).moments["features.3"], range(16))
    assert [int(order[found[unit][0]]) for unit in range(16)] == list(range(16))
    assert all(value == pytest.approx(1, abs=1e-4) for _, value in found.values())


def test_every_unit_has_nine_rows_in_the_table(digits: Dataset, subject: Subject, tmp_path: Path) -> None:
    seen, [layer] = look(digits, tmp_path, subject), chosen(subject, "features.3").values()
    rows = list(rows_of(digits, "test", subject.preprocessing, layer, seen.tops[0]["features.3"]))
    assert len(rows) == 16 * 9 and [row["rank"] for row in rows[:9]] == list(range(1, 10))
    assert len({row["id"] for row in rows[:9]}) == 9
    width, height = digits.table("test", ["width", "height"]).to_pylist()[0].values()
    assert all(0 <= row["left"] < row["right"] <= width for row in rows)
    assert all(0 <= row["top"] < row["bottom"] <= height for row in rows)


def test_units_are_synthesised_in_parts_and_answer(subject: Subject, tmp_path: Path) -> None:
    config = SynthesisConfig.parse(PLAIN, "synthesis")
    layers = chosen(subject, *LAYERS)
    wanted = [(subject, layers[name], [0, 3, 4, 5, 6]) for name in LAYERS]
    heard: list[int] = []
    found = synthesise_each(wanted, config, here(), tmp_path, lambda done, _total: heard.append(done))
    assert heard == [0, 4, 5, 9, 10]
    (tmp_path / "00002.npy").unlink()  # the others are not made again
    again = synthesise_each(wanted, config, here(), tmp_path, lambda done, _total: heard.append(done))
    assert heard[5:] == [6, 10]
    assert all(np.array_equal(again[i][unit], found[i][unit]) for i in (0, 1) for unit in (0, 3, 4, 5, 6))
    for name, own in zip(LAYERS, found, strict=True):
        assert sorted(own) == [0, 3, 4, 5, 6] and own[3].shape == (1, 16, 16) and own[3].dtype == np.uint8
        x = torch.from_numpy(np.stack([own[3], np.full_like(own[3], 128)]))
        maps = activations(subject.classifier.net, [name], subject.classifier.normalise(x))[name]
        made, grey = of_units(maps, [3, 3], "channel").tolist()
        assert made > grey


def test_units_that_do_not_fit_one_sheet_go_on_in_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(figures, "SHEET_CELLS", 2)
    layer = LayerFields("fc", (5,), (None,) * 5)
    units = tuple((UnitView(unit, (), np.zeros((1, 8, 8), np.uint8)),) for unit in range(5))
    files = write_sheets(tmp_path, LayerView("head", layer, units), ["a"], "a net")
    assert [file.name for file in files] == ["head.png", "head-2.png", "head-3.png"]
    assert all(file.stat().st_size for file in files)


def test_a_sheets_title_ends_no_line_within_a_phrase() -> None:
    field = Field(Span(-3, 7, 2), Span(-3, 7, 2))
    layer = LayerFields("features.2", (2, 16, 16), (field, field))
    unit = UnitView(0, (), np.zeros((1, 8, 8), np.uint8))
    shown = sheet(LayerView("conv1", layer, ((unit,),)), ["a"], "a net").get_suptitle()
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in shown.splitlines()] == [
        "conv1 (features.2): 2 units of 16x16 places;", "each sees 7x7 px, 2 px apart,",
        "the first from -3 on", "a net",
    ]  # fmt: skip


def test_a_layer_says_in_words_what_its_units_see() -> None:
    field = Field(Span(-3, 7, 2), Span(-3, 7, 2))
    layer = LayerFields("conv1", (2, 16, 16), (field, field))
    assert field_text(layer) == "2 units of 16x16 places; each sees 7x7 px, 2 px apart, the first from -3 on"
    assert field_text(LayerFields("fc", (2,), (None, None))) == "2 units; each sees the whole picture"


def test_a_unit_without_an_activation_above_nothing_is_called_so() -> None:
    patch = unitviews.Patch("a.png", "1", 0.0, 0, 0, np.zeros((1, 3, 3), np.uint8))
    dead = UnitView(3, (patch,), None)
    assert dead.caption() == ["unit 3", "never above 0"] and dead.labels() == []
    assert UnitView(3, (), None).caption() == ["unit 3"]
    named = LayerFields("a", (1,), (None,))
    assert [LayerView(name, named, ()).title for name in ("a", "head")] == ["a", "head (a)"]


def test_patches_of_a_unit_that_is_below_nothing_everywhere_are_shown() -> None:
    patches = tuple(
        unitviews.Patch(f"{i}.png", "1", -float(i), 0, 0, np.zeros((1, 3, 3), np.uint8)) for i in range(2)
    )
    below = UnitView(3, patches[1:], None, correlation=0.426)
    assert below.shown_patches == patches[1:]
    assert below.caption() == ["unit 3 (r = 0.43), up to -1", "1 ×1"]
    assert UnitView(3, patches, None).shown_patches == patches
