"""MTCNN's parts: the arithmetic between its networks, by hand-worked and naive references."""

import csv
import io
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torch import Tensor
from torch.nn import functional as F

from data.alignment import five_of_68
from models.boxes import iou
from models.mtcnn import MTCNN, Search, _halves, crops, moved, pyramid, squared, unnested
from tasks.faceweights import load_mtcnn
from tests import published
from tests.pictures import picture


def pixels_of(seed: int, width: int, height: int) -> torch.Tensor:
    return torch.from_numpy(np.array(picture(seed, width, height))).permute(2, 0, 1)


def test_the_nets_have_the_published_numbers_of_weights() -> None:
    net = MTCNN()
    counts = {
        name: sum(p.numel() for p in getattr(net, name).parameters()) for name in ("pnet", "rnet", "onet")
    }
    assert counts == {"pnet": 6_632, "rnet": 100_178, "onet": 389_040}


def test_each_window_of_the_first_net_is_12_pixels_2_apart() -> None:
    logits, moves = MTCNN().pnet(torch.zeros(2, 3, 30, 24))
    assert logits.shape == (2, 2, 10, 7)  # (30 - 12) / 2 + 1, (24 - 12) / 2 + 1
    assert moves.shape == (2, 4, 10, 7)
    with torch.no_grad():
        net = MTCNN().pnet.double()
        image = torch.rand(1, 3, 40, 40, dtype=torch.float64)
        whole, _ = net(image)
        window, _ = net(image[:, :, 6:18, 10:22])
    torch.testing.assert_close(whole[:, :, 3, 5], window[:, :, 0, 0])


def test_the_pyramid_shrinks_a_least_face_to_12_pixels_and_stops_at_the_shorter_side() -> None:
    levels = pyramid((100, 200), Search(min_face_px=24, pyramid_factor=0.5))
    assert levels == [(50, 100), (25, 50), (12, 25)]
    assert pyramid((10, 200), Search(min_face_px=12)) == []


def test_edges_move_by_shares_of_the_sides() -> None:
    boxes = torch.tensor([[10.0, 20, 30, 60]])
    assert moved(boxes, torch.tensor([[0.1, -0.1, 0.5, 0.25]])).tolist() == [[12, 16, 40, 70]]
    swapped = moved(boxes, torch.tensor([[1.5, 0.0, -0.5, 0.0]]))  # the left edge passes the right one
    assert swapped.tolist() == [[20, 20, 40, 60]]


def test_a_square_keeps_the_centre_and_the_longer_side() -> None:
    assert squared(torch.tensor([[10.0, 20, 30, 60]])).tolist() == [[0, 20, 40, 60]]
    assert squared(torch.tensor([[5.0, 5, 5, 5]])).tolist() == [[4.5, 4.5, 5.5, 5.5]]


def test_a_box_inside_a_surer_one_is_left_out_whatever_its_iou() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100], [10, 10, 30, 30], [90, 90, 130, 130]])
    assert unnested(boxes, torch.tensor([0.9, 0.95, 0.8]), 0.7).tolist() == [1, 2]
    assert unnested(boxes[:0], torch.zeros(0), 0.7).tolist() == []


@pytest.mark.parametrize("side", [24, 48])
def test_a_crop_of_whole_pixels_is_their_mean(side: int) -> None:
    """A square of twice the side, on even pixels: each pixel of the crop is the mean of four."""
    image = pixels_of(1, 220, 200)
    box = torch.tensor([[20.0, 40, 20 + 2 * side, 40 + 2 * side]])
    [got] = crops(_halves(image), box, side)
    wanted = F.avg_pool2d(image[:, 40 : 40 + 2 * side, 20 : 20 + 2 * side].float(), 2)
    # from the half of the picture, four samples about a pixel's middle: bilinear, so not quite its own value
    naive = F.interpolate(wanted[None], scale_factor=2, mode="bilinear")[0]
    torch.testing.assert_close(got[:, 2:-2, 2:-2], F.avg_pool2d(naive, 2)[:, 2:-2, 2:-2], atol=0.01, rtol=0)


def test_crops_of_all_sizes_show_the_same_ramp() -> None:
    """Grey levels that rise with x: a crop's middle has the level of the box's middle, at every level of halves."""
    ramp = (torch.arange(255.0)[None, None].expand(3, 250, 255)).to(torch.uint8)
    boxes = torch.tensor([[100.0, 90, 124, 114], [60, 60, 110, 110], [10, 20, 210, 220]])
    got = crops(_halves(ramp), boxes, 24)
    middles = (boxes[:, 0] + boxes[:, 2]) / 2 - 0.5
    torch.testing.assert_close(got.mean((1, 2, 3)), middles, atol=0.5, rtol=0)
    slope = got[:, 0, 0, -3] - got[:, 0, 0, 2]
    torch.testing.assert_close(slope, (boxes[:, 2] - boxes[:, 0]) * 19 / 24, atol=0.5, rtol=0)


def test_beyond_the_picture_crops_are_black() -> None:
    white = torch.full((3, 100, 100), 255, dtype=torch.uint8)
    [got] = crops(_halves(white), torch.tensor([[-24.0, 0, 24, 48]]), 24)
    assert got[:, :, :11].max() == 0
    assert got[:, 1:-1, 13:].min() == 255


@pytest.mark.parametrize("size", [(1, 1), (11, 300), (12, 12), (64, 48)])
def test_pictures_of_any_size_give_faces_or_none(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    found = MTCNN().eval()(torch.zeros(3, *size, dtype=torch.uint8), Search())
    num = len(found.scores)
    assert found.boxes_xyxy.shape == (num, 4) and found.points_xy.shape == (num, 5, 2)


def test_faces_come_surest_first_and_above_the_threshold() -> None:
    torch.manual_seed(1)
    search = Search(thresholds=(0.3, 0.3, 0.3))
    found = MTCNN().eval()(pixels_of(2, 120, 90), search)
    assert len(found.scores)
    assert (found.scores >= 0.3).all()
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@pytest.mark.parametrize(
    "wrong", [{"min_face_px": 11}, {"pyramid_factor": 1.0}, {"thresholds": (0.5, 0.0, 0.5)}]
)
def test_a_search_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Search(**wrong)  # type: ignore[arg-type]


# --- beside facenet-pytorch's own code --------------------------------------------------------------------------


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package's detector; two functions of torchvision's, of which it calls one, are stood in for."""
    if find_spec("facenet_pytorch") is None:
        pytest.skip("the package facenet_pytorch is not installed")
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops")
    modules: dict[str, Any] = {name: ModuleType(name) for name in (*names, "torchvision.ops.boxes")}
    modules["torchvision.transforms"].functional = modules[names[2]]
    modules["torchvision.ops.boxes"].batched_nms = naive_nms
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    from facenet_pytorch.models.mtcnn import MTCNN as Theirs

    return Theirs(keep_all=True, device="cpu")


def naive_nms(boxes: Tensor, scores: Tensor, _image: Tensor, threshold: float) -> Tensor:
    """Greedy, one by one; all boxes are of one picture."""
    left, kept = scores.argsort(descending=True, stable=True).tolist(), []
    while left:
        best = left.pop(0)
        kept.append(best)
        overlap = iou(boxes[best][None], boxes[left]) if left else boxes[:0, 0]
        left = [i for i, each in zip(left, overlap.tolist(), strict=True) if each <= threshold]
    return torch.tensor(kept, dtype=torch.int64)


def test_each_net_says_what_the_package_s_says(peer: Any) -> None:
    net, _ = load_mtcnn(published.mtcnn())
    torch.manual_seed(0)
    for name, shape in (("pnet", (1, 3, 50, 70)), ("rnet", (4, 3, 24, 24)), ("onet", (4, 3, 48, 48))):
        x = torch.rand(shape) * 2 - 1
        with torch.no_grad():
            logits, moves, *points = getattr(net, name)(x)
            said = list(getattr(peer, name)(x))
        torch.testing.assert_close(said.pop(), logits.softmax(1))
        torch.testing.assert_close(said.pop(0), moves)
        for ours, theirs in zip(points, said, strict=True):
            torch.testing.assert_close(theirs, ours)


def test_the_astronaut_s_face_is_where_the_package_finds_it(peer: Any) -> None:
    net, _ = load_mtcnn(published.mtcnn())
    photo = astronaut()
    boxes, _, points = peer.detect(Image.fromarray(photo), landmarks=True)
    found = net(torch.from_numpy(photo).permute(2, 0, 1), Search())
    [box], [five] = np.asarray(boxes, np.float32), np.asarray(points, np.float32)
    assert iou(torch.from_numpy(box)[None], found.boxes_xyxy[:1]) > 0.9
    assert (torch.from_numpy(five) - found.points_xy[0]).norm(dim=1).max() < 3


@pytest.mark.data
def test_the_points_are_nearer_the_truth_than_those_of_the_package_s_own_code(
    peer: Any, datasets_folder: Path
) -> None:
    """Resampled crops beside crops of whole pixels; the truth is the five points of 68 that people marked."""
    net, _ = load_mtcnn(published.mtcnn())
    errors: tuple[list[float], list[float]] = ([], [])
    with tarfile.open(datasets_folder / "facial_keypoints_112.tar") as archive:
        stream = archive.extractfile("test_keypoints.csv")
        assert stream is not None
        for name, *values in list(csv.reader(io.TextIOWrapper(stream)))[1:41]:
            photo = Image.open(archive.extractfile(f"test/{name}")).convert("RGB")  # type: ignore[arg-type]
            wanted = five_of_68(torch.tensor([float(value) for value in values]).view(68, 2))
            found = net(torch.from_numpy(np.array(photo)).permute(2, 0, 1), Search())
            theirs = np.asarray(peer.detect(photo, landmarks=True)[2], np.float32)
            for mine, points in zip(errors, (found.points_xy, torch.from_numpy(theirs)), strict=True):
                nearest = (points - wanted).norm(dim=2).mean(1).min()
                mine.append(float(nearest / (wanted[1] - wanted[0]).norm()))
    ours, others = np.mean(errors[0]), np.mean(errors[1])
    assert ours < 0.07
    assert ours < others
