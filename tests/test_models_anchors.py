"""Anchors: where they stand, what a box is relative to one, and which are learnt from boxes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.anchors import (
    MAX_LOG_SCALE,
    anchor_grid,
    anchors_of_cell,
    best_possible_recall,
    decode,
    encode,
    iou_of_sizes,
    kmeans_anchors,
)
from models.boxes import cxcywh_to_xyxy, iou


def boxes(num: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(num, 2, generator=generator, dtype=torch.float64) * 200
    # no side 62.5 times another
    sides = torch.rand(num, 2, generator=generator, dtype=torch.float64) * 90 + 2
    return cxcywh_to_xyxy(torch.cat([centre, sides], 1))


def clusters(num: int, seed: int = 0) -> torch.Tensor:
    """Sizes around three, far apart: (3 · num, 2)."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.tensor([[10.0, 20.0], [60.0, 50.0], [300.0, 100.0]])
    return (middles.repeat(num, 1)) * (1 + 0.1 * torch.rand(3 * num, 2, generator=generator))


def test_anchors_of_a_cell_are_those_worked_by_hand() -> None:
    """Side 32: 32/√0.5 = 45.25 wide and 22.63 high at ratio 0.5; halves round to 23 and 11."""
    assert anchors_of_cell([32], [0.5, 1, 2]).tolist() == [
        [-23, -11, 23, 11],
        [-16, -16, 16, 16],
        [-11, -23, 11, 23],
    ]


def test_the_grid_goes_row_by_row_with_all_anchors_of_a_place_together() -> None:
    cell = torch.tensor([[-1.0, -1, 1, 1], [-2, -1, 2, 1]])
    grid = anchor_grid(cell, 2, 3, 8).reshape(2, 3, 2, 4)
    for row in range(2):
        for column in range(3):
            shift = torch.tensor([column, row, column, row]) * 8
            assert torch.equal(grid[row, column], cell + shift)


def test_the_code_of_a_box_is_that_worked_by_hand() -> None:
    """Anchor 10 × 20 around (5, 10); box 20 × 10 around (7, 15): dx 0.2, dy 0.25, dw log 2, dh -log 2."""
    code = encode(torch.tensor([-3.0, 10, 17, 20]), torch.tensor([0.0, 0, 10, 20]), (10, 10, 5, 5))
    assert code.tolist() == pytest.approx([2, 2.5, 5 * math.log(2), -5 * math.log(2)])


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_decoding_undoes_encoding(seed: int) -> None:
    anchors, those = boxes(20, seed), boxes(20, seed + 1)
    for weights in [(1, 1, 1, 1), (10, 10, 5, 5)]:
        torch.testing.assert_close(decode(encode(those, anchors, weights), anchors, weights), those)


def test_a_decoded_side_is_at_most_the_clamp() -> None:
    anchor = torch.tensor([0.0, 0, 16, 16])
    box = decode(torch.tensor([0.0, 0, 50, MAX_LOG_SCALE]), anchor)
    assert (box[2:] - box[:2]).tolist() == pytest.approx([1000, 1000])


def test_several_classes_decode_from_one_anchor() -> None:
    anchors, offsets = boxes(5), torch.randn(5, 3, 4, dtype=torch.float64)
    together = decode(offsets, anchors[:, None])
    for k in range(3):
        assert torch.equal(together[:, k], decode(offsets[:, k], anchors))


def test_overlap_of_sizes_is_that_of_centred_boxes() -> None:
    a, b = clusters(4), clusters(3, 1)
    centred_a, centred_b = (cxcywh_to_xyxy(torch.cat([torch.zeros_like(s), s], 1)) for s in (a, b))
    torch.testing.assert_close(iou_of_sizes(a, b), iou(centred_a[:, None], centred_b))


def test_kmeans_finds_clusters_that_are_far_apart_whatever_the_seed() -> None:
    sizes = clusters(50)
    wanted = torch.stack([sizes[k::3].mean(0) for k in range(3)])
    found = torch.stack([kmeans_anchors(sizes, 3, seed) for seed in range(10)])
    assert all(bool(((anchors - wanted).abs() < 1e-3).all()) for anchors in found)


def test_kmeans_is_by_area_deterministic_and_takes_any_order_of_magnitude() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.rand(500, 2, generator=generator) * 300 + 4
    anchors = kmeans_anchors(sizes, 9, seed=1)
    assert anchors.shape == (9, 2)
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, anchors[anchors.prod(1).argsort()])
    assert torch.equal(anchors, kmeans_anchors(sizes, 9, seed=1))
    torch.testing.assert_close(kmeans_anchors(sizes / 640, 9, seed=1), anchors / 640)


def test_kmeans_overlaps_more_than_the_start_and_with_more_anchors() -> None:
    generator = torch.Generator().manual_seed(4)
    sizes = (torch.randn(400, 2, generator=generator) * 0.8 + 3.5).exp()
    means = [float(iou_of_sizes(sizes, kmeans_anchors(sizes, num, 0)).amax(1).mean()) for num in (1, 2, 5, 9)]
    assert means == sorted(means)
    assert means[2] > float(iou_of_sizes(sizes, sizes[:5]).amax(1).mean())


def test_as_many_anchors_as_sizes_are_the_sizes() -> None:
    sizes = torch.tensor([[30.0, 10], [4, 5], [4, 5], [7, 70]])
    assert kmeans_anchors(sizes, 3, seed=0).tolist() == [[4, 5], [30, 10], [7, 70]]
    with pytest.raises(ValueError, match=r"must lie in 1…3"):
        kmeans_anchors(sizes, 4, seed=0)


@pytest.mark.parametrize("sizes", [torch.zeros(0, 2), torch.ones(3), torch.tensor([[1.0, 0]])])
def test_sizes_that_are_none_are_refused(sizes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="sizes"):
        kmeans_anchors(sizes, 1, 0)
    with pytest.raises(ValueError, match="sizes"):
        best_possible_recall(sizes, torch.ones(1, 2))


def test_best_possible_recall_is_that_worked_by_hand() -> None:
    """Against 10 × 10 and 100 × 100 at a factor of 4: 39 × 11 and 26 × 399 fit, 41 × 10 and 1 × 1 do not."""
    sizes = torch.tensor([[39.0, 11], [26, 399], [41, 10], [1, 1]])
    anchors = torch.tensor([[10.0, 10], [100, 100]])
    assert best_possible_recall(sizes, anchors) == 0.5
    assert best_possible_recall(sizes, anchors, ratio=5) == 0.75
