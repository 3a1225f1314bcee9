"""Units: their activations, the strongest of them in any order of pictures, and what a prediction hangs on."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from models.classification import ARCHITECTURES, arguments_of
from models.receptive import receptive_fields
from models.units import (
    Moments,
    TopUnits,
    activations,
    grad_cam,
    named_layers,
    occlusion,
    strongest_places,
)


def network(name: str, px: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES[name](num_classes=5, channels=3, **arguments_of(name, px)).eval()


def test_activations_are_what_a_module_gave_before_others_wrote_over_it() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    x = torch.randn(2, 1, 3, 3)
    found = activations(net, ["0"], x)["0"]
    assert found.min() < 0
    assert torch.equal(found, net[0](x))


def test_nothing_behind_the_deepest_layer_is_run() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError(f"run with {x.shape}")

    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), Never())
    found = activations(net, ["1", "0"], torch.ones(1, 2))
    assert [*found] == ["1", "0"] and found["1"].shape == (1, 4)


def test_of_a_module_that_is_called_again_the_first_call_counts() -> None:
    net = network("squeezenet1_1", 32)
    with torch.device("meta"):
        skeleton = ARCHITECTURES["squeezenet1_1"](num_classes=5, channels=3)
    shape = receptive_fields(skeleton, (3, 32, 32))["features.3.relu"].shape
    found = activations(net, ["features.3.relu", "features.4"], torch.randn(1, 3, 32, 32))
    assert found["features.3.relu"].shape[1:] == shape == (16, 7, 7)


def test_layers_go_by_modules_or_stages_and_unknown_ones_are_answered_by_a_list() -> None:
    net = network("efficientnet_lite0")
    known = [name for name, _ in net.named_modules() if name]
    called = named_layers(net, ["group2", "_blocks.0", "_blocks.2", "head"], known, "a")
    assert list(called.items()) == [("_blocks.2", "group2"), ("_blocks.0", "_blocks.0"), ("_fc", "head")]
    with pytest.raises(
        ValueError, match=r"conv9 is not known: give one of the stages stem, group1.*models show a\)"
    ):
        named_layers(net, ["conv9"], known, "a")


def test_of_equal_places_the_first_counts() -> None:
    maps = torch.zeros(1, 1, 2, 3)
    maps[0, 0, 1] = 5.0
    values, places = strongest_places(maps)
    assert (values.item(), places.item()) == (5.0, 3)
    assert strongest_places(torch.ones(2, 4))[1].tolist() == [[0] * 4] * 2


pictures = st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=30)


@given(pictures, st.lists(st.integers(1, 29), max_size=4), st.randoms(use_true_random=False))
def test_the_strongest_do_not_depend_on_how_the_split_is_cut_or_merged(
    rows: list[list[int]], cuts: list[int], random: object
) -> None:
    values = torch.tensor(rows, dtype=torch.float32)
    num = len(rows)
    order = sorted(range(num), key=lambda i: (-rows[i][0], i))[:4]
    bounds = sorted({0, num, *(cut for cut in cuts if cut < num)})
    parts = []
    for first, last in itertools.pairwise(bounds):
        part = TopUnits.empty(2, 4)
        part.update(
            values[first:last], torch.arange(first, last), torch.zeros(last - first, 2, dtype=torch.long)
        )
        parts.append(part)
    random.shuffle(parts)  # type: ignore[attr-defined]
    total = TopUnits.empty(2, 4)
    for part in parts:
        total.merge(part)
    assert total.pictures[0].tolist() == order + [-1] * (4 - len(order))
    assert total.values[0, : len(order)].tolist() == [rows[i][0] for i in order]


def test_correlations_in_pieces_are_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(50, 3, generator=generator), torch.randn(50, 4, generator=generator) + 100
    second[:, 1] = 3 * first[:, 2] + 7
    second[:, 3] = 2.5  # never changes
    moments = Moments.empty(3, 4)
    for start in range(0, 50, 7):
        moments.update(first[start : start + 7], second[start : start + 7])
    found = moments.correlations().numpy()
    wanted = np.corrcoef(first.T.numpy(), second[:, :3].T.numpy())[:3, 3:]
    np.testing.assert_allclose(found[:, :3], wanted, atol=1e-6)
    assert found[2, 1] == pytest.approx(1) and (found[:, 3] == 0).all()


def plain_grad_cam(net: nn.Module, layer: str, x: Tensor, label: int) -> Tensor:
    """As the paper has it, by hooks on one picture."""
    kept: dict[str, Tensor] = {}
    module = net.get_submodule(layer)
    there = module.register_forward_hook(lambda _m, _i, output: kept.update(maps=output.clone()))
    back = module.register_full_backward_hook(lambda _m, _i, gradients: kept.update(gradient=gradients[0]))
    net(x)[0, label].backward()
    there.remove()
    back.remove()
    weights = kept["gradient"][0].mean(dim=(1, 2))
    return F.relu(sum(w * a for w, a in zip(weights, kept["maps"][0], strict=True)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("lenet5", "features.3"),
        ("resnet8_cifar", "layers"),
        ("efficientnet_lite0", "_bn1"),
        ("googlenet", "inception4a"),
    ],
)
def test_grad_cam_is_that_of_a_plain_reference(name: str, layer: str) -> None:
    net, x = network(name), torch.randn(3, 3, 32, 32)
    labels = torch.tensor([1, 4, 0])
    found = grad_cam(net, layer, x, labels)
    for i, label in enumerate(labels.tolist()):
        torch.testing.assert_close(
            found[i], plain_grad_cam(net, layer, x[i : i + 1], label), rtol=1e-4, atol=1e-7
        )
    assert found.max() > 0


def test_without_a_layer_grad_cam_takes_the_last_map_as_it_is_pooled() -> None:
    net, x = network("efficientnet_lite0", 64), torch.randn(1, 3, 64, 64)
    maps = net.run_blocks(net.stem(x), 0, len(net._blocks))  # type: ignore[operator,arg-type]
    maps = F.relu6(net._bn1(net._conv_head(maps))).detach().requires_grad_()  # type: ignore[operator]
    net.head(maps.mean(dim=(2, 3)))[0, 3].backward()  # type: ignore[operator]
    assert maps.grad is not None
    wanted = F.relu((maps.grad.mean(dim=(2, 3), keepdim=True) * maps).sum(1)).detach()
    torch.testing.assert_close(grad_cam(net, None, x, torch.tensor([3])), wanted, rtol=1e-4, atol=1e-7)


def test_without_a_layer_grad_cam_takes_no_map_that_was_averaged_to_a_given_side() -> None:
    net, x = network("vgg11"), torch.randn(1, 3, 32, 32)
    found = grad_cam(net, None, x, torch.tensor([3]))
    assert found.shape == (1, 2, 2)  # of 32 px one place is left, which avgpool makes 7x7 equal ones
    torch.testing.assert_close(
        found, grad_cam(net, "features.19", x, torch.tensor([3])), rtol=1e-4, atol=1e-7
    )


def test_a_network_without_maps_has_no_grad_cam() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(ValueError, match="no maps with more places than one"):
        grad_cam(net, None, torch.randn(1, 3, 4, 4), torch.tensor([0]))


def test_occlusion_is_that_of_one_window_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8, generator=generator)
    weights, fill = torch.randn(3, 7, 9, generator=generator), torch.tensor([10.0, 20.0, 30.0])

    def score(pictures: Tensor) -> Tensor:
        return (pictures.float() * weights).sum(dim=(1, 2, 3))

    found = occlusion(score, picture, fill, 3, 2, batch_size=4)
    falls, covered = torch.zeros(7, 9), torch.zeros(7, 9)
    for row in (0, 2, 4):
        for column in (0, 2, 4, 6):
            hidden = picture.clone()
            for channel in range(3):
                hidden[channel, row : row + 3, column : column + 3] = int(fill[channel])
            fall = score(picture[None]) - score(hidden[None])
            falls[row : row + 3, column : column + 3] += fall
            covered[row : row + 3, column : column + 3] += 1
    torch.testing.assert_close(found, falls / covered)


def test_occlusion_reaches_the_far_border_and_refuses_gaps() -> None:
    def lower_right(pictures: Tensor) -> Tensor:
        return pictures[:, 0, -1, -1].float()

    found = occlusion(lower_right, torch.ones(1, 8, 8), torch.zeros(1), 3, 3, 64)
    # windows begin at 0, 3 and 5: the last pixels have one alone that counts
    assert found[6:, 6:].tolist() == [[1.0, 1.0]] * 2
    assert found[:5].sum() == 0 == found[:, :5].sum()
    with pytest.raises(ValueError, match=r"stride \(=4\) in 1…3, so that every pixel is covered"):
        occlusion(lower_right, torch.ones(1, 8, 8), torch.zeros(1), 3, 4, 64)
    with pytest.raises(ValueError, match=r"window \(=9\) must lie in 1…8"):
        occlusion(lower_right, torch.ones(1, 8, 8), torch.zeros(1), 9, 4, 64)
