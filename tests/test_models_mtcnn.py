"""MTCNN's parts: the arithmetic between its networks, by hand-worked and naive references."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.mtcnn import MTCNN, Search, _halves, crops, moved, pyramid, squared, unnested
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
