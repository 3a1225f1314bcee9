"""The paired comparisons of the families that have no shares of right answers, against naive references."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tasks import gatedetection, gatefaces, gatelandmarks, gatestyle
from tasks.detectionmatches import Detections, Objects, box_areas, match
from tasks.detectionmetrics import resampled_ap, summarise
from tasks.gate import Incomparable, decide
from tasks.pairing import Paired, cluster_counts
from tasks.stylizerreport import Rendered
from tasks.verification import roc, tar_at_far
from tests.pairs import CHEAP, gate_config


class Stub:
    """A dataset of which a comparison reads a few columns."""

    def __init__(self, family: str, classes: tuple[str, ...], **columns: list[Any]) -> None:
        self.info = SimpleNamespace(name="made", family=family, classes=classes)
        self.columns = columns

    def table(self, _split: str, names: list[str]) -> pa.Table:
        return pa.table({name: self.columns[name] for name in names})


def verdict_of(paired: Paired, family: str) -> Any:
    config = gate_config()
    return decide(paired, (CHEAP, CHEAP), 1, config, config.rules(family))


# detection

NUM = 60  # images, with two objects of each class


def objects() -> Objects:
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(NUM), 4)
    corner = rng.uniform(0, 100, (4 * NUM, 2))
    size = np.where(np.arange(4 * NUM)[:, None] % 4 < 2, 20.0, 60.0)  # small and medium
    boxes = np.hstack([corner, corner + size])
    none = np.zeros(4 * NUM, bool)
    return Objects(image=image, boxes_xyxy=boxes, labels=np.tile([0, 1, 0, 1], NUM), crowd=none, difficult=none,
                   area=box_areas(boxes))  # fmt: skip


def detector(seed: int, found: float, missed: np.ndarray | None = None) -> Any:
    """A report of a detector that finds each object with this chance, a little beside, and one box in vain an image."""
    rng, given = np.random.default_rng(seed), objects()
    hit = rng.random(len(given.image)) < found
    if missed is not None:
        hit &= ~missed
    boxes = given.boxes_xyxy[hit] + rng.normal(0, 1, (int(hit.sum()), 4)) * [1, 1, 1, 1]
    vain = np.tile([200.0, 200, 230, 230], (NUM, 1))
    detections = Detections(
        image=np.concatenate([given.image[hit], np.arange(NUM)]), boxes_xyxy=np.vstack([boxes, vain]),
        labels=np.concatenate([given.labels[hit], np.zeros(NUM, np.int64)]),
        scores=np.concatenate([rng.uniform(0.5, 1, int(hit.sum())), rng.uniform(0, 0.6, NUM)]),
    )  # fmt: skip
    matches = match(given, detections, num_images=NUM, num_classes=2)
    ids = tuple(f"{'left' if i % 2 else 'right'}/{i}.png" for i in range(NUM))
    return SimpleNamespace(matches=matches, detections=detections, ids=ids, classes=("cell", "dot"))


SCENES: Any = Stub("detection", ("cell", "dot"), group=[str(i) for i in range(NUM)])


def pair_detectors(one: Any, other: Any) -> Paired:
    return gatedetection.pair(one, other, SCENES, "test", gate_config())


def test_the_gain_of_a_detector_is_that_of_cocos_ap_and_both_see_the_same_draws() -> None:
    one, other = detector(0, 0.6), detector(1, 0.9)
    paired = pair_detectors(one, other)
    ap = paired.metrics[0]
    assert ap.gain == pytest.approx(summarise(other.matches)["ap"] - summarise(one.matches)["ap"], abs=1e-12)
    counts = np.array(list(cluster_counts([str(i) for i in range(NUM)], 200, 0)))
    gains = resampled_ap(other.matches, counts) - resampled_ap(one.matches, counts)
    assert (ap.low, ap.high) == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])))
    assert paired.metrics[1].champion == pytest.approx(summarise(one.matches)["ap50"], abs=1e-12)
    assert verdict_of(paired, "detection").decision == "promote"


def test_a_detector_never_replaces_itself() -> None:
    one = detector(0, 0.7)
    paired = pair_detectors(one, one)
    assert paired.same and verdict_of(paired, "detection").decision == "hold"


def test_a_detector_that_loses_one_class_is_held_and_slices_are_by_class_size_and_source() -> None:
    given = objects()
    one, other = detector(0, 0.6), detector(1, 0.95, missed=(given.labels == 1) & (given.image % 3 > 0))
    paired = pair_detectors(one, other)
    assert {(each.kind, each.name) for each in paired.slices} == {
        ("class", "cell"), ("class", "dot"), ("size", "small"), ("size", "medium"), ("source", "left"),
        ("source", "right"),
    }  # fmt: skip
    by_name = {each.name: each for each in paired.slices}
    assert by_name["dot"].worse and not by_name["cell"].worse
    assert by_name["small"].champion == pytest.approx(summarise(one.matches)["ap_small"], abs=1e-12)
    assert by_name["dot"].num_samples == 2 * NUM
    verdict = verdict_of(paired, "detection")
    assert verdict.decision == "hold" and "AP on class 'dot'" in " ".join(verdict.reasons)


# faces

PEOPLE, PICTURES = 30, 4


def embedder(seed: int, noise: float) -> Any:
    """A report of an embedder whose vectors lie so far from their person's."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(0, 1, (PEOPLE, 16))
    vectors = np.repeat(centres, PICTURES, 0) + rng.normal(0, noise, (PEOPLE * PICTURES, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.repeat(np.arange(PEOPLE), PICTURES)
    places = np.stack(np.triu_indices(len(labels), 1), 1)
    same = labels[places[:, 0]] == labels[places[:, 1]]
    distances = ((vectors[places[:, 0]] - vectors[places[:, 1]]) ** 2).sum(1)
    look = SimpleNamespace(
        distances=distances, figures={"auc": 0.0, "tar_at_far_1e-1": 0.0, "tar_at_far_1e-2": 0.0}
    )
    ids = [f"{'a' if label % 2 else 'b'}/p{label}/{i}.png" for i, label in enumerate(labels.tolist())]
    return SimpleNamespace(ids=ids, places=places, same=same, looks=(look,))


def people_dataset(report: Any) -> Any:
    labels = [i // PICTURES for i in range(PEOPLE * PICTURES)]
    return Stub("faces", tuple(f"p{i}" for i in range(PEOPLE)), id=report.ids, label=labels,
                width=[112] * len(labels), height=[112] * len(labels))  # fmt: skip


def test_embedders_are_compared_by_tar_at_each_far_with_people_drawn() -> None:
    poor, good = embedder(0, 1.0), embedder(1, 0.5)
    paired = gatefaces.pair(poor, good, people_dataset(poor), "test", gate_config())
    named = {test.name: test for test in paired.metrics}
    assert set(named) == {"tar_at_far_1e-1", "tar_at_far_1e-2", "auc"}
    for far, name in ((0.1, "tar_at_far_1e-1"), (0.01, "tar_at_far_1e-2")):
        assert named[name].champion == tar_at_far(roc(poor.looks[0].distances, poor.same), far)
        assert named[name].challenger == tar_at_far(roc(good.looks[0].distances, good.same), far)
        assert named[name].better
    assert {(each.kind, each.name) for each in paired.slices} == {("source", "a"), ("source", "b")}
    assert verdict_of(paired, "faces").decision == "promote"
    assert (
        verdict_of(gatefaces.pair(good, poor, people_dataset(poor), "test", gate_config()), "faces").decision
        == "hold"
    )
    itself = gatefaces.pair(good, good, people_dataset(good), "test", gate_config())
    assert verdict_of(itself, "faces").decision == "hold"


def test_the_draws_of_two_embedders_are_of_the_same_people() -> None:
    """An embedder whose distances are another's, doubled, ranks the pairs alike: no draw may tell them apart."""
    poor, twin = embedder(0, 1.0), embedder(0, 1.0)
    twin.looks[0].distances = 2 * poor.looks[0].distances
    paired = gatefaces.pair(poor, twin, people_dataset(poor), "test", gate_config())
    assert not paired.same
    assert all((test.low, test.high) == (0.0, 0.0) for test in paired.metrics)


# landmarks

POINTS = 5


def locator(seed: int, error: float, num: int = 80, bad_point: float = 1.0) -> Any:
    rng = np.random.default_rng(seed)
    errors = rng.gamma(4, error / 4, (num, POINTS))
    errors[:, 2] *= bad_point
    errors[3, 1] = np.nan
    ids = [f"{i}.png" for i in range(num)]
    return SimpleNamespace(
        ids=ids, names=tuple("abcde"), errors=errors, found_xy=rng.random((num, POINTS, 2))
    )


def pictures_dataset(num: int = 80) -> Any:
    sizes = [100 + 100 * (i % 3) for i in range(num)]
    return Stub("landmarks", (), id=[f"{i}.png" for i in range(num)], group=[str(i) for i in range(num)],
                width=sizes, height=sizes)  # fmt: skip


def test_networks_for_landmarks_are_compared_by_their_mean_error_and_less_is_better() -> None:
    poor, good = locator(0, 0.08), locator(1, 0.05)
    paired = gatelandmarks.pair(poor, good, pictures_dataset(), "test", gate_config())
    [nme] = paired.metrics
    own = [np.nanmean(each.errors, 1).mean() for each in (poor, good)]
    assert (nme.champion, nme.challenger, nme.gain) == pytest.approx((own[0], own[1], own[0] - own[1]))
    assert {each.kind for each in paired.slices} == {"point", "size"}
    assert sum(each.kind == "size" for each in paired.slices) == 3
    assert verdict_of(paired, "landmarks").decision == "promote"
    back = gatelandmarks.pair(good, poor, pictures_dataset(), "test", gate_config())
    assert verdict_of(back, "landmarks").decision == "hold"
    assert verdict_of(
        gatelandmarks.pair(good, good, pictures_dataset(), "test", gate_config()), "landmarks"
    ).decision == ("hold")


def test_a_landmark_that_is_lost_holds_a_network_that_is_better_on_the_whole() -> None:
    poor, good = locator(0, 0.08), locator(1, 0.03, bad_point=4)
    paired = gatelandmarks.pair(poor, good, pictures_dataset(), "test", gate_config())
    verdict = verdict_of(paired, "landmarks")
    assert verdict.decision == "hold"
    assert verdict.reasons[0].startswith("NME on point 'c' (n = 80)")


# style

STYLES = ("mosaic", "strokes")


def renderer(seed: int, style: float, content: float, bad_style: float = 1.0, cost: str = "J") -> Any:
    """A report of a network that leaves such a share of the style's cost, and makes a content cost around this one."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(60):
        for number, name in enumerate(STYLES):
            untouched_style = 0.5 + 0.01 * i + 0.1 * number
            left = style * float(rng.uniform(0.9, 1.1)) * (bad_style if number else 1.0) * untouched_style
            made = content * float(rng.uniform(0.9, 1.1))
            costs = {"total": 2 * made + 10 * left, "content": made, "style": left, "variation": 0.0}
            rows.append(Rendered(f"{i}.png", name, costs, 10 * untouched_style, untouched_style, 0.1, 100))
    about = {"cost": cost, "content_weight": 2.0}
    return SimpleNamespace(rows=tuple(rows), about=about, styles=tuple((name, None) for name in STYLES))


def pair_renderers(one: Any, other: Any) -> Paired:
    sizes = [100 + 100 * (i % 3) for i in range(60)]
    pictures: Any = Stub("style", (), id=[f"{i}.png" for i in range(60)], group=[str(i) for i in range(60)],
                         width=sizes, height=sizes)  # fmt: skip
    return gatestyle.pair(one, other, pictures, "test", gate_config())


def test_networks_that_stylise_are_compared_by_the_cost_of_each_picture() -> None:
    poor, good = renderer(0, 0.5, 0.4), renderer(1, 0.3, 0.4)
    paired = pair_renderers(poor, good)
    named = {test.name: test for test in paired.metrics}
    for report, side in ((poor, "champion"), (good, "challenger")):
        rows = report.rows
        total = np.mean([row.costs["total"] / row.untouched for row in rows])
        content = np.mean([2 * row.costs["content"] / row.untouched for row in rows])
        style = np.mean([row.costs["style"] / row.untouched_style for row in rows])
        assert getattr(named["total_share"], side) == pytest.approx(total)
        assert getattr(named["content_share"], side) == pytest.approx(content)
        assert getattr(named["style_share"], side) == pytest.approx(style)
        assert total == pytest.approx(content + style)  # of these there is no variation
    gain = named["total_share"].gain
    assert gain == pytest.approx(named["total_share"].champion - named["total_share"].challenger) and gain > 0
    assert {(each.kind, each.name) for each in paired.slices if each.kind == "style"} == {
        ("style", "mosaic"), ("style", "strokes"),
    }  # fmt: skip
    assert sum(each.kind == "size" for each in paired.slices) == 3
    assert verdict_of(paired, "style").decision == "promote"
    assert verdict_of(pair_renderers(good, poor), "style").decision == "hold"
    itself = pair_renderers(good, good)
    assert itself.same and verdict_of(itself, "style").decision == "hold"


def test_style_that_is_bought_with_content_or_with_another_style_is_held() -> None:
    champion = renderer(0, 0.5, 0.4)
    careless = verdict_of(pair_renderers(champion, renderer(1, 0.3, 0.8)), "style")
    assert careless.decision == "hold" and "content_share gets worse" in careless.reasons[0]
    uneven = verdict_of(pair_renderers(champion, renderer(1, 0.2, 0.4, bad_style=3.5)), "style")
    assert uneven.decision == "hold" and "total_share on style 'strokes'" in " ".join(uneven.reasons)


def test_networks_that_were_judged_otherwise_are_not_compared() -> None:
    champion = renderer(0, 0.5, 0.4)
    with pytest.raises(
        Incomparable, match="the champion was made for J, the challenger for J of other weights"
    ):
        pair_renderers(champion, renderer(1, 0.3, 0.4, cost="J of other weights"))
    other = renderer(1, 0.3, 0.4)
    other.rows = tuple(replace(row, untouched=1.01 * row.untouched) for row in other.rows)
    with pytest.raises(Incomparable, match="the judges differ: another feature network, or other pictures"):
        pair_renderers(champion, other)
