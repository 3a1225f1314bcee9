"""YOLO and the localiser: what their outputs mean, what they learn, and what they keep."""

import math
from typing import Any

import pytest
import torch

from data.detection import Truths
from models.anchors import best_possible_recall, kmeans_anchors
from models.bodies import BODIES, FROM_CLASSIFIERS, ClassifierBody, load_body, make_body
from models.classification import ARCHITECTURES
from models.detection import build
from models.detector import Finding, Found, suppressed
from models.localiser import Localiser
from models.yolo import Yolo
from tests.rectangles import learn, rectangles, truths_of

FINDING = {"min_score": 0.05, "suppression": "hard", "nms_iou": 0.5, "max_detections": 20}
YOLO: dict[str, Any] = {
    "body": "plain_tiny", "strides": [8, 16], "width": 16, "assignment": "task_aligned", "num_anchors": 2,
    "box_loss": "ciou", "finding": FINDING,
}  # fmt: skip


def yolo(num_classes: int = 2, **changes: Any) -> Yolo:
    torch.manual_seed(0)
    model = build("yolo", num_classes, 3, YOLO | changes, (0.5,) * 3, (0.25,) * 3)
    assert isinstance(model, Yolo)
    return model


def localiser(loss: str) -> Localiser:
    torch.manual_seed(0)
    arguments = {"body": "plain_tiny", "loss": loss, "finding": FINDING}
    model = build("localiser", 2, 3, arguments, (0.5,) * 3, (0.25,) * 3)
    assert isinstance(model, Localiser)
    return model


def test_anchors_predict_a_middle_in_their_cell_and_sides_that_may_exceed_it() -> None:
    model = yolo(num_classes=3, assignment="midpoint", num_anchors=1, strides=[16])
    model.anchors.copy_(torch.tensor([[[20.0, 40.0]]]))
    raw = torch.zeros(1, 8, 4, 4)
    raw[0, :5, 1, 2] = torch.tensor([0.0, 100, math.log(2), 0, 3])  # row 1, column 2
    boxes, presence, classes = model.decode_anchors([raw])
    assert classes.shape == (1, 16, 3) and presence[0, 6] == 3
    # x: the middle of column 2, so 40; y: the lower end of row 1, so 32; sides twice and once the anchor's
    assert boxes[0, 6].tolist() == pytest.approx([40 - 20, 32 - 20, 40 + 20, 32 + 20], abs=1e-4)
    middles = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    cells = torch.stack([torch.arange(16) % 4, torch.arange(16) // 4], 1) * 16
    assert ((middles >= cells) & (middles <= cells + 16)).all()


def test_the_target_of_a_3x3_grid_has_8_numbers_with_one_anchor_and_16_with_two() -> None:
    images = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    for anchors, numbers in ((1, 8), (2, 16)):
        model = yolo(num_classes=3, assignment="midpoint", num_anchors=anchors, strides=[32])
        [raw] = model.eval().maps(images)
        assert raw.shape == (1, numbers, 3, 3)


@pytest.mark.parametrize("strides", [[8], [16], [32], [8, 16], [8, 32], [16, 32], [8, 16, 32]], ids=str)
def test_every_level_has_maps_of_its_own_stride_whichever_are_left_out(strides: list[int]) -> None:
    model = yolo(strides=strides).eval()
    maps = model.maps(torch.zeros(1, 3, 64, 32, dtype=torch.uint8))
    assert [tuple(each.shape[2:]) for each in maps] == [(64 // stride, 32 // stride) for stride in strides]


def test_edges_are_distances_from_the_middle_of_a_place_in_strides() -> None:
    model = yolo(strides=[16])
    raw = torch.full((1, 6, 2, 2), math.log(math.e - 1))  # softplus of it is 1
    boxes, logits = model.decode_edges([raw])
    assert boxes[0].tolist() == [[-8, -8, 24, 24], [8, -8, 40, 24], [-8, 8, 24, 40], [8, 8, 40, 40]]
    assert logits.shape == (1, 4, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"box_loss": "giou"}, {"box_loss": "diou", "strides": [8]}, {"box_loss": "iou", "strides": [8, 16, 32]},
        {"assignment": "midpoint", "box_loss": "squared"}, {"assignment": "midpoint", "strides": [8]},
    ],
    ids=str,
)  # fmt: skip
def test_a_few_scenes_are_learnt_by_heart(changes: dict[str, Any]) -> None:
    images, truths = rectangles()
    model = yolo(**changes)
    model.fit(lambda: truths.boxes_xyxy[:, 2:] - truths.boxes_xyxy[:, :2], 0)
    losses = learn(model, images, truths, 150)
    assert losses[-1] < 0.2 * losses[0]
    found = model(images)  # in training mode: norms by this batch
    best = found.scores > 0.3
    for image in range(len(images)):
        own = truths.image == image
        for box, label in zip(truths.boxes_xyxy[own], truths.labels[own], strict=True):
            near = best & (found.image == image) & (found.labels == label)
            assert (found.boxes_xyxy[near] - box).abs().amax(1).min() < 6, (image, label)


@pytest.mark.parametrize("assignment", ["task_aligned", "midpoint"])
@pytest.mark.parametrize("case", ["no boxes", "only ignored"])
def test_pictures_without_an_object_teach_that_there_is_none(assignment: str, case: str) -> None:
    images, truths = rectangles(2)
    if case == "no boxes":
        truths = truths_of([[], []])
    else:
        truths = Truths(truths.boxes_xyxy, truths.labels, truths.image, torch.ones(len(truths)).bool())
    terms = yolo(assignment=assignment)(images, truths)
    assert all(term.isfinite() for term in terms.values())
    assert terms["box"].item() == 0 and terms["score"].item() > 0
    torch.stack(list(terms.values())).sum().backward()


@pytest.mark.parametrize("assignment", ["task_aligned", "midpoint"])
def test_what_lies_in_a_crowd_is_no_background(assignment: str) -> None:
    """A crowd as large as the picture leaves nothing to learn; one of the left half, the right half."""
    images, _ = rectangles(1)
    model = yolo(assignment=assignment)
    whole = model(images, truths_of([[[0, 0, 64, 64]]], ignored=True))
    half = model(images, truths_of([[[0, 0, 32, 64]]], ignored=True))
    none = model(images, truths_of([[]]))
    assert whole["score"].item() == 0
    assert 0.3 < half["score"].item() / none["score"].item() < 0.7


@pytest.mark.parametrize(
    ("assignment", "places"), [("task_aligned", 8**2 + 4**2), ("midpoint", 2 * (8**2 + 4**2))]
)
def test_the_place_of_a_small_ignored_object_is_no_background(assignment: str, places: int) -> None:
    """It lies between the places, and no box lies in it."""
    images, _ = rectangles(1)
    model = yolo(assignment=assignment)
    some = model(images, truths_of([[[30.6, 30.6, 31.9, 31.9]]], ignored=True))["score"].item()
    none = model(images, truths_of([[]]))["score"].item()
    assert 1 - some / none == pytest.approx(1 / places, rel=0.3)


def test_detections_of_a_picture_do_not_depend_on_its_neighbours() -> None:
    images, truths = rectangles(4)
    model = yolo()
    learn(model, images, truths, 60)
    model.eval()
    together = model(images)
    assert len(together.scores) > 3
    for i in range(4):
        alone = model(images[i : i + 1])
        own = together.image == i
        assert torch.equal(alone.labels, together.labels[own])
        torch.testing.assert_close(alone.boxes_xyxy, together.boxes_xyxy[own], atol=1e-3, rtol=1e-4)
        assert (alone.scores.diff() <= 0).all()


def test_suppression_is_by_picture_and_class_and_keeps_the_best() -> None:
    box = torch.tensor([[0.0, 0, 10, 10]])
    found = Found(
        torch.cat([box, box + 1, box, box, box + 30]), torch.tensor([0.5, 0.9, 0.8, 0.7, 0.6]),
        torch.tensor([0, 0, 1, 0, 0]), torch.tensor([1, 1, 1, 0, 1]),
    )  # fmt: skip
    kept = suppressed(found, 2, 2, Finding(min_score=0, suppression="hard", nms_iou=0.5, max_detections=2))
    assert kept.image.tolist() == [0, 1, 1]
    assert kept.scores.tolist() == pytest.approx([0.7, 0.9, 0.8])  # the fifth is past the two best


@pytest.mark.parametrize("name", BODIES)
def test_bodies_give_maps_at_strides_8_16_32_and_no_more_than_asked_for(name: str) -> None:
    images = torch.zeros(1, 3, 96, 64)
    for num_maps in (1, 3):
        body = make_body(name, 3, num_maps).eval()
        maps = body(images)
        assert [tuple(each.shape[1:]) for each in maps] == [
            (width, 96 // s, 64 // s) for width, s in zip(body.widths, (8, 16, 32), strict=False)
        ]
        torch.stack([each.sum() for each in body.train()(torch.rand(2, 3, 64, 64))]).sum().backward()
        assert all(parameter.grad is not None for parameter in body.parameters()), name


@pytest.mark.parametrize("name", FROM_CLASSIFIERS)
def test_weights_of_a_whole_classifier_fit_its_body(name: str) -> None:
    torch.manual_seed(1)
    whole = ARCHITECTURES[name](num_classes=7, channels=3)
    body = make_body(name, 3)
    assert isinstance(body, ClassifierBody)
    load_body(body, whole.state_dict(), "file.pth")
    state = whole.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in body.net.state_dict().items())
    broken = {key: value for key, value in state.items() if "running_mean" not in key}
    with pytest.raises(
        ValueError, match=r"file\.pth\) do not fit .* tensors are missing or of another shape"
    ):
        load_body(body, broken, "file.pth")
    with pytest.raises(ValueError, match=r"need a body of the classification catalogue: set model\.body"):
        load_body(make_body("plain_tiny", 3), state, "file.pth")


def test_a_frozen_body_neither_learns_nor_forgets() -> None:
    images, truths = rectangles(4)
    model = yolo(body="resnet18", strides=[16])
    model.freeze_body()
    before = {key: value.clone() for key, value in model.state_dict().items() if key.startswith("body.")}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    torch.stack(list(model.train()(images, truths).values())).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert before and all(torch.equal(value, after[key]) for key, value in before.items())
    model.body_lr_factor = 0.1
    assert model.rate_factors().keys() == {f"body.{name}" for name, _ in model.body.named_parameters()}


def test_anchors_are_fitted_only_where_they_do_not_cover_the_boxes() -> None:
    model = yolo(assignment="midpoint")
    first = model.anchors.clone()
    model.fit(lambda: first.flatten(0, 1).repeat(4, 1), 0)
    assert torch.equal(model.anchors, first) and float(model.best_possible_recall) == 1
    long = torch.tensor([[4.0, 40], [5, 42], [60, 6], [58, 7], [30, 30], [33, 31], [10, 11], [12, 10]])
    model.fit(lambda: long, 0)
    assert not torch.equal(model.anchors, first) and float(model.best_possible_recall) == 1
    sizes = model.anchors.flatten(0, 1).prod(1)
    assert (sizes.diff() >= 0).all()  # the small ones at the fine level


def test_anchors_that_would_cover_fewer_boxes_are_not_taken() -> None:
    model = yolo(assignment="midpoint")
    first = model.anchors.clone()
    sizes = (torch.rand(40, 2, generator=torch.Generator().manual_seed(113)) * 4.2 + 1.6).exp()
    before = best_possible_recall(sizes, first.flatten(0, 1))
    assert best_possible_recall(sizes, kmeans_anchors(sizes, 4, 0)) < before < 0.98
    model.fit(lambda: sizes, 0)
    assert torch.equal(model.anchors, first)
    assert float(model.best_possible_recall) == pytest.approx(before)


# --- the localiser ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["squared", "likelihood"])
def test_where_there_is_no_object_only_its_presence_counts(loss: str) -> None:
    model = localiser(loss)
    y = torch.tensor([[0.3, 0.9, -0.2, 0.5, 0.7, 0.1, 0.8]])
    terms = model.losses(y, 64, truths_of([[]]))
    assert float(terms["box"]) == float(terms["class"]) == 0
    presence = 0.3**2 if loss == "squared" else math.log(1 + math.exp(0.3))
    assert float(terms["presence"]) == pytest.approx(presence, rel=1e-5)


def test_squared_errors_are_those_of_the_vector_as_taught() -> None:
    model = localiser("squared")
    # the larger of two boxes: middle (0.5, 0.25), height 0.5, width 0.25, class 1
    truths = truths_of([[[0, 0, 4, 4], [24, 0, 40, 32]]])
    y = torch.tensor([[0.9, 0.5, 0.3, 0.4, 0.25, 0.2, 0.7]])
    terms = model.losses(y, 64, truths)
    assert float(terms["presence"]) == pytest.approx(0.1**2)
    assert float(terms["box"]) == pytest.approx(0.05**2 + 0.1**2)
    assert float(terms["class"]) == pytest.approx(0.2**2 + 0.3**2)


def test_the_likelihood_is_that_of_presence_and_class() -> None:
    model = localiser("likelihood")
    truths = truths_of([[[16, 16, 48, 48]]])
    y = torch.tensor([[2.0, 0, 0, 0, 0, 1.0, -1.0]])
    terms = model.losses(y, 64, truths)
    assert float(terms["presence"]) == pytest.approx(math.log(1 + math.exp(-2)))
    assert float(terms["box"]) == pytest.approx(0, abs=1e-9)
    assert float(terms["class"]) == pytest.approx(math.log(1 + math.exp(-2)))


def test_pictures_of_nothing_but_ignored_objects_teach_the_localiser_nothing() -> None:
    terms = localiser("likelihood").losses(torch.rand(1, 7), 64, truths_of([[[0, 0, 9, 9]]], ignored=True))
    assert not any(float(term) for term in terms.values())


@pytest.mark.parametrize("loss", ["squared", "likelihood"])
def test_the_localiser_learns_where_the_one_object_is(loss: str) -> None:
    images, truths = rectangles(8, per_picture=1)
    images[0] = 110  # and that there is none in the first
    kept = truths.image > 0
    truths = Truths(*(getattr(truths, name)[kept] for name in ("boxes_xyxy", "labels", "image", "ignored")))
    model = localiser(loss)
    learn(model, images, truths, 150, lr=0.003)
    found = model(images)
    sure = found.scores > 0.5
    assert found.image[sure].tolist() == list(range(1, 8)) and (found.labels[sure] == 0).all()
    assert (found.boxes_xyxy[sure] - truths.boxes_xyxy).abs().max() < 8


def test_an_unknown_detector_or_body_is_named_with_the_known() -> None:
    with pytest.raises(ValueError, match="no detector 'ssd'; known: yolo, localiser, rcnn"):
        build("ssd", 2, 3, {"finding": FINDING}, (0.5,), (0.2,))
    with pytest.raises(ValueError, match="no body 'vgg16'; known: plain_tiny"):
        make_body("vgg16", 3)
