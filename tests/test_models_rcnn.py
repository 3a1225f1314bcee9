"""R-CNN, Fast and Faster R-CNN: torchvision's shape and keys, what is trained, what is learnt, what is found."""

import copy
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.detection import Truths
from models.bodies import load_body
from models.classification import ARCHITECTURES
from models.detector import Finding
from models.fasterrcnn import (
    FasterRcnn,
    fasterrcnn_resnet18_fpn,
    fasterrcnn_resnet50_fpn,
    load_faster_rcnn,
    torchvision_state,
)
from models.fpn import FrozenBatchNorm2d, freeze_norms
from models.matching import match, sample
from models.rcnn import FastRcnn, Rcnn, SelectiveSearch, warped
from models.roiheads import RegionDetector, RoiHeads, Samples
from models.rpn import Limits, Proposals, RegionProposals
from tests.rectangles import average_precision, learn, rectangles, truths_of

# name → number of tensors, sha256 of the sorted lines "key shape" of torchvision 0.28.0's own state_dict
TORCHVISION = json.loads((Path(__file__).parent / "torchvision_detection_keys.json").read_text())
SIZES = {"frozen": 41_755_286, "batch": 41_808_406}
COMMON: dict[str, Any] = {
    "num_classes": 2, "channels": 3, "mean": (0.45,) * 3, "std": (0.25,) * 3,
    "finding": Finding(min_score=0.05, nms_iou=0.5, suppression="hard", max_detections=20),
}  # fmt: skip
TINY: dict[str, Any] = {
    "body": "plain_tiny", "strides": (8, 16), "width": 32, "norm": "batch", "norm_eps": 1e-5, "num_frozen": 0,
    "canonical_px": 40, "head_width": 64, "num_samples": 32, "proposals": 100,
}  # fmt: skip
fasterrcnn_tiny = partial(
    fasterrcnn_resnet50_fpn, **TINY | {"proposals": 50}, anchor_sides=((12,), (24,), (48,)), rpn_samples=64,
    training_proposals=100,
)  # fmt: skip
MAKE: dict[str, Callable[[], RegionDetector]] = {
    "faster": lambda: fasterrcnn_tiny(**COMMON),
    "fast, align": lambda: FastRcnn(**COMMON, **TINY, pooling="align"),
    "fast, max": lambda: FastRcnn(**COMMON, **TINY, pooling="max"),
    "rcnn": lambda: Rcnn(**COMMON, body="plain_tiny", crop_px=32, num_samples=16, proposals=100),
}


def detector(name: str) -> RegionDetector:
    torch.manual_seed(0)
    return MAKE[name]()


def resnet50(norm: str) -> FasterRcnn:
    with torch.device("meta"):
        return fasterrcnn_resnet50_fpn(**COMMON | {"num_classes": 90}, norm=norm)


def boxes_of(*boxes: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


# --- shape and weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", SIZES)
def test_keys_shapes_and_size_are_torchvisions(norm: str) -> None:
    net = resnet50(norm).net
    assert sum(p.numel() for p in net.parameters()) == SIZES[norm]
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in net.state_dict().items())
    facts = TORCHVISION[f"fasterrcnn_resnet50_fpn_{norm}"]
    assert len(lines) == facts["num_tensors"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == facts["sha256"]


def test_published_weights_load_strictly_whether_their_keys_are_old_or_new() -> None:
    net = resnet50("frozen").net
    new = {key: torch.empty_like(value) for key, value in net.state_dict().items()}
    old = {
        key.replace("_blocks.0.0.", "_blocks.0.").replace("_blocks.1.0.", "_blocks.1.")
        .replace("_blocks.2.0.", "_blocks.2.").replace("_blocks.3.0.", "_blocks.3.")
        .replace("rpn.head.conv.0.0.", "rpn.head.conv."): value
        for key, value in new.items()
    }  # fmt: skip
    # eight convolutions of the pyramid and one of the proposal network
    assert len(old.keys() - new.keys()) == 18
    for state in (new, old):
        renamed = torchvision_state(state)
        assert renamed.keys() == new.keys()
        net.load_state_dict(renamed, strict=True, assign=True)


def test_published_norms_of_epsilon_0_give_the_same_maps_under_ours() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "head_width": 16}
    theirs = fasterrcnn_resnet18_fpn(**COMMON, **sizes, norm_eps=0.0).net
    for name, norm in theirs.named_modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_var.uniform_(1e-5, 1e-4)  # where an epsilon of 1e-5 is seen
            norm.weight.copy_(norm.running_var.sqrt())
            assert name.startswith("backbone.body")
    state = copy.deepcopy(theirs.state_dict())
    ours = fasterrcnn_resnet18_fpn(**COMMON, **sizes)
    load_faster_rcnn(ours, torchvision_state(state), "file.pth")
    x = torch.randn(1, 3, 64, 64)
    wanted = theirs.backbone(x)
    for mine, other in zip(ours.net.backbone(x), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    ours.net.load_state_dict(state)
    assert (ours.net.backbone(x)[0] - wanted[0]).abs().max() > 0.01
    live = {**state, "backbone.body.bn1.num_batches_tracked": torch.tensor(0)}  # of norms that were trained
    assert torch.equal(torchvision_state(live)["backbone.body.bn1.weight"], state["backbone.body.bn1.weight"])


def test_a_classifiers_published_weights_fit_the_body() -> None:
    torch.manual_seed(1)
    state = ARCHITECTURES["resnet18"](num_classes=7, channels=3).state_dict()
    model = fasterrcnn_resnet18_fpn(**COMMON, num_frozen=2)
    load_body(model.body, state, "file.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.body.state_dict().items())
    assert [name for name, p in model.body.named_parameters() if not p.requires_grad] == [
        name for name, _ in model.body.named_parameters() if name.startswith(("conv1", "layer1"))
    ]
    with pytest.raises(ValueError, match="do not fit ResNetBody: 20 of"):
        load_body(model.body, {k: v for k, v in state.items() if "running_mean" not in k}, "file.pth")


def test_frozen_norms_are_norms_in_evaluation_and_never_change() -> None:
    torch.manual_seed(0)
    live = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    assert isinstance(live[1], nn.BatchNorm2d) and live[1].running_mean is not None
    live[1].running_mean.normal_()
    nn.init.normal_(live[1].weight)
    frozen = copy.deepcopy(live)
    freeze_norms(frozen, live[1].eps)
    assert isinstance(frozen[1], FrozenBatchNorm2d)
    x = torch.randn(2, 3, 4, 4)
    before = copy.deepcopy(frozen.state_dict())
    torch.testing.assert_close(frozen.train()(x), live.eval()(x))
    assert all(torch.equal(value, frozen.state_dict()[key]) for key, value in before.items())
    assert [name for name, _ in frozen.named_parameters()] == ["0.weight", "0.bias"]


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(ValueError, match=r"must be some of plain_tiny's \[8, 16, 32\], rising"):
        fasterrcnn_tiny(**COMMON, strides=(4, 8))
    with pytest.raises(ValueError, match="num_frozen"):
        fasterrcnn_tiny(**COMMON, num_frozen=1)
    with pytest.raises(ValueError, match=r"anchor_sides .* must be of 3 levels"):
        fasterrcnn_tiny(**COMMON, anchor_sides=((12,), (24,)))
    with pytest.raises(ValueError, match="equally many on each level"):
        fasterrcnn_tiny(**COMMON, anchor_sides=((12,), (24,), (30, 48)))


# --- matching and sampling -------------------------------------------------------------------------------------


def test_boxes_are_matched_as_worked_by_hand() -> None:
    objects = boxes_of((0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 90, 90))
    ignored = torch.tensor([False, False, True])
    boxes = boxes_of(
        (0, 0, 10, 10),  # IoU 1 with the first
        (0, 0, 10, 5),  # 0.5: neither
        (0, 0, 10, 2),  # 0.2: background
        (22, 0, 32, 10),  # 8/12 with the second: less than 0.7, but its best
        (60, 60, 70, 70),  # wholly in what is ignored
        (40, 60, 59, 70),  # 9/19 of it: background
        (70, 0, 80, 10),
    )
    matched = match(boxes, objects, ignored, 0.7, 0.3, best_too=True)
    assert matched.positive.tolist() == [True, False, False, True, False, False, False]
    assert matched.negative.tolist() == [False, False, True, False, False, True, True]
    assert matched.owner[matched.positive].tolist() == [0, 1]
    assert match(boxes, objects, ignored, 0.7, 0.3).positive.tolist() == [True] + [False] * 6


def test_what_would_find_a_small_object_is_no_background_where_it_is_ignored() -> None:
    boxes = boxes_of((0, 0, 10, 10), (0, 0, 20, 20), (30, 30, 40, 40))
    objects, ignored = boxes_of((4, 4, 5, 5)), torch.tensor([True])
    assert match(boxes, objects, ignored, 0.7, 0.3, best_too=True).negative.tolist() == [False, True, True]
    assert match(boxes, objects, ignored, 0.5, 0.5).negative.all()
    # overlapping it by as much as an object would allow: neither
    half = match(boxes_of((0, 0, 10, 10)), boxes_of((0, 6, 10, 26)), ignored, 0.7, 0.15)
    assert not half.negative.any() and not half.positive.any()


def test_an_object_that_no_box_touches_takes_none() -> None:
    matched = match(boxes_of((0, 0, 5, 5)), boxes_of((50, 50, 60, 60)), torch.tensor([False]), 0.7, 0.3, True)
    assert not matched.positive.any() and matched.negative.all()


@pytest.mark.parametrize("num_objects", [0, 1])
def test_without_objects_all_is_background_and_without_boxes_nothing(num_objects: int) -> None:
    objects, ignored = boxes_of((0, 0, 9, 9))[:num_objects], torch.ones(num_objects, dtype=torch.bool)
    assert match(boxes_of((20, 20, 30, 30)), objects, ignored, 0.5, 0.5).negative.tolist() == [True]
    assert match(boxes_of(), objects, ignored, 0.5, 0.5, best_too=True).positive.shape == (0,)


def test_samples_hold_at_most_their_share_of_positives_and_no_box_twice() -> None:
    positive = torch.arange(100) < 40
    matched = match(boxes_of(), boxes_of(), torch.zeros(0, dtype=torch.bool), 0.5, 0.5)._replace(
        positive=positive, negative=~positive
    )
    yes, no = sample(matched, 64, 0.25)
    assert len(yes) == len(set(yes.tolist())) == 16 and positive[yes].all()
    assert len(no) == len(set(no.tolist())) == 48 and not positive[no].any()
    few = matched._replace(positive=torch.arange(100) < 3)
    assert [len(part) for part in sample(few, 64, 0.25)] == [3, 60]  # negatives are the 60 there are
    torch.manual_seed(5)
    first = sample(matched, 64, 0.25)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, sample(matched, 64, 0.25), strict=True))


# --- proposals -------------------------------------------------------------------------------------------------


def test_the_proposal_network_keeps_the_best_of_each_level_then_of_all() -> None:
    rpn = RegionProposals(
        8, ((8,), (16,)), (1.0,), 16, Limits(9, 9), Limits(before_nms=2, after_nms=3)
    ).eval()
    grids = [
        boxes_of((0, 0, 8, 8), (20, 0, 28, 8), (40, 0, 48, 8)),
        boxes_of((0, 0, 16, 16), (-8, 40, 8, 56)),
    ]
    logits = [torch.tensor([[3.0, 1, 2], [0, 5, 5]]), torch.tensor([[4.0, -1], [1, 2]])]
    found = rpn.propose(logits, [torch.zeros(2, 3, 4), torch.zeros(2, 2, 4)], grids, 64)
    assert found.image.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.boxes_xyxy[:3].tolist() == [[0, 0, 16, 16], [0, 0, 8, 8], [40, 0, 48, 8]]
    # cut at the edge
    assert found.boxes_xyxy[3:].tolist() == [[20, 0, 28, 8], [40, 0, 48, 8], [0, 40, 8, 56]]


def test_a_box_is_only_suppressed_by_one_of_its_level() -> None:
    rpn = RegionProposals(8, ((8,), (8,)), (1.0,), 16, Limits(9, 9), Limits(9, 9)).eval()
    same = boxes_of((0, 0, 8, 8), (0, 0, 8, 7))
    none = torch.zeros(1, 2, 4)
    found = rpn.propose([torch.tensor([[2.0, 1]]), torch.tensor([[0.0, 3]])], [none, none], [same, same], 64)
    assert found.boxes_xyxy.tolist() == [[0, 0, 8, 7], [0, 0, 8, 8]]


def test_selective_search_of_a_batch_is_that_of_each_and_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, _ = rectangles(3)
    search = SelectiveSearch(most=30, cache_size=2)
    together = search(images)
    assert (
        together.image.tolist() == sorted(together.image.tolist()) and len(set(together.image.tolist())) == 3
    )
    alone = search(images[1:2])
    assert torch.equal(alone.boxes_xyxy, together.boxes_xyxy[together.image == 1])
    assert len(search.cache) == 2
    seen: list[int] = []

    def counted(*_: Any) -> Any:
        seen.append(1)
        return alone.boxes_xyxy.numpy()

    monkeypatch.setattr("data.proposals.selective_search", counted)
    search(images[1:])  # the last two are there
    assert not seen
    search(images[:1])  # the first is not any more
    assert seen == [1]


@pytest.mark.parametrize("name", ["fast, align", "rcnn"])
def test_pictures_that_do_not_come_back_are_searched_and_not_kept(name: str) -> None:
    images, truths = rectangles(2)
    model = detector(name)
    search = model.propose
    assert isinstance(search, SelectiveSearch)
    model.pictures_return = False
    first = model.train()(images, truths)
    assert isinstance(first, dict) and not search.cache
    model.eval()(images)  # those of a validation do
    assert len(search.cache) == 2
    assert torch.equal(search(images, False).boxes_xyxy, search(images).boxes_xyxy)
    search.cache.clear()
    model.pictures_return = True
    model.train()(images, truths)
    assert len(search.cache) == 2


# --- what is said of a proposal --------------------------------------------------------------------------------


def test_losses_are_those_worked_by_hand() -> None:
    heads = RoiHeads(nn.Flatten(), 4, 2, 8)
    boxes = boxes_of((0, 0, 10, 10), (0, 0, 10, 10))
    wanted = boxes_of((1, 0, 11, 10), (0, 0, 10, 10))
    samples = Samples(boxes, torch.zeros(2, dtype=torch.int64), torch.tensor([2, 0]), wanted)
    logits = torch.tensor([[0.0, 0, 0], [2, 0, 0]])
    terms = heads.losses(logits, torch.zeros(2, 3, 4), samples)
    log = torch.tensor([3.0, 1 + 2 * torch.e**-2.0]).log()
    assert float(terms["class"]) == pytest.approx(float(log.mean()), rel=1e-6)
    # dx = 0.1 · 10 = 1: smooth L1 is 1 - 1/18; over two samples
    assert float(terms["box"]) == pytest.approx((1 - 1 / 18) / 2)


def test_detections_are_by_class_with_the_box_of_that_class() -> None:
    heads = RoiHeads(nn.Flatten(), 4, 2, 8)
    proposals = Proposals(boxes_of((0, 0, 10, 10), (40, 40, 50, 50)), torch.tensor([0, 1]))
    offsets = torch.zeros(2, 3, 4)
    offsets[0, 2] = torch.tensor([10.0, 0, 0, 0])  # a whole side to the right
    logits = torch.tensor([[0.0, 1, 1], [8, 0, 0]])
    found = heads.find(logits, offsets, proposals, 2, 45, COMMON["finding"])
    assert found.labels.tolist() == [0, 1] and found.image.tolist() == [0, 0]
    assert found.boxes_xyxy.tolist() == [[0, 0, 10, 10], [10, 0, 20, 10]]
    assert found.scores.tolist() == pytest.approx([torch.e / (1 + 2 * torch.e)] * 2)
    # now the second picture's are sure
    sure = heads.find(-logits, offsets, proposals, 2, 45, COMMON["finding"])
    assert sure.boxes_xyxy[sure.image == 1].tolist() == [[40, 40, 45, 45]] * 2  # cut at the edge


def test_warped_crops_are_the_proposal_with_its_context() -> None:
    pictures = torch.arange(224.0).expand(1, 2, 224, 224).clone()
    boxes = boxes_of((64, 64, 160, 160), (0, 0, 192, 192))
    crops = warped(pictures, boxes, torch.zeros(2, dtype=torch.int64), 112)
    assert crops.shape == (2, 2, 112, 112)
    # 96 px become 112 less 8 on each side, so nothing is scaled
    torch.testing.assert_close(crops[0], pictures[0, :, 56:168, 56:168])
    assert (crops[1, :, :7, :7] == 0).all()  # outside the picture
    assert warped(pictures, boxes[:0], torch.zeros(0, dtype=torch.int64), 8).shape == (0, 2, 8, 8)


# --- the whole -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MAKE, "resnet18"])
def test_every_term_is_finite_and_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    images, truths = rectangles(2)
    model = (
        detector(name)
        if name in MAKE
        else fasterrcnn_resnet18_fpn(**COMMON, num_frozen=2, width=16, head_width=16)
    )
    terms = model.train()(images, truths)
    assert isinstance(terms, dict)
    assert set(terms) == {"class", "box"} | (
        {"rpn_objectness", "rpn_box"} if isinstance(model, FasterRcnn) else set()
    )
    assert all(term.ndim == 0 and term.isfinite() and term > 0 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for label, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), label
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("name", MAKE)
def test_a_batch_is_learnt_by_heart(name: str) -> None:
    """Boxes at the border among them."""
    images, truths = rectangles()
    model = detector(name)
    losses = learn(model, images, truths, 100)
    assert losses[-1] < 0.3 * losses[0]
    found = model.eval()(images)
    assert average_precision(found, truths, len(images)) > 0.9
    together = [(found.image == i).nonzero()[:, 0] for i in range(len(images))]
    for i, own in enumerate(together):  # a picture's detections do not depend on its neighbours
        alone = model(images[i : i + 1])
        assert torch.equal(alone.labels, found.labels[own])
        torch.testing.assert_close(alone.boxes_xyxy, found.boxes_xyxy[own], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone.scores, found.scores[own], atol=1e-4, rtol=1e-4)
        assert (alone.scores.diff() <= 0).all()
    assert found.boxes_xyxy.min() >= 0 and found.boxes_xyxy.max() <= 64


@pytest.mark.parametrize("case", ["no boxes", "only ignored", "one picture without"])
@pytest.mark.parametrize("name", MAKE)
def test_pictures_without_an_object_teach_that_there_is_none(name: str, case: str) -> None:
    images, truths = rectangles(2)
    if case == "no boxes":
        truths = truths_of([[], []])
    elif case == "only ignored":
        truths = Truths(truths.boxes_xyxy, truths.labels, truths.image, torch.ones(len(truths)).bool())
    else:
        truths = truths_of([[], truths.boxes_xyxy[truths.image == 1].tolist()])
    model = detector(name)
    terms = model.train()(images, truths)
    assert all(term.isfinite() for term in terms.values())
    apart = [float(term.detach()) for label, term in terms.items() if label.endswith("box")]
    assert all((value == 0) == (case != "one picture without") for value in apart)
    assert float(terms["class"].detach()) > 0
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MAKE)
def test_training_is_the_same_for_the_same_seed_and_detection_draws_nothing(name: str) -> None:
    images, truths = rectangles(4)

    def run() -> tuple[list[float], Tensor]:
        model = detector(name)
        losses = learn(model, images, truths, 5)
        state = torch.get_rng_state()
        found = model.eval()(images)
        assert torch.equal(state, torch.get_rng_state())
        return losses, found.scores

    (first, scores), (second, again) = run(), run()
    assert first == second
    assert torch.equal(scores, again)


@pytest.mark.parametrize("name", MAKE)
def test_half_precision_trains_and_finds(name: str) -> None:
    images, truths = rectangles(2)
    model = detector(name)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.train()(images, truths)
        found = model.eval()(images)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32
    torch.stack(list(terms.values())).sum().backward()


def test_a_frozen_body_gets_no_gradient_and_rates_are_by_the_names_of_the_whole() -> None:
    images, truths = rectangles(2)
    for name in ("faster", "rcnn"):
        model = detector(name)
        model.body_lr_factor = 0.1
        names = {
            label for label, p in model.named_parameters() if any(p is own for own in model.body.parameters())
        }
        assert names and model.rate_factors() == dict.fromkeys(names, 0.1)
        model.freeze_body()
        before = copy.deepcopy(model.body.state_dict())
        learn(model, images, truths, 2)
        assert all(torch.equal(value, before[key]) for key, value in model.body.state_dict().items())
