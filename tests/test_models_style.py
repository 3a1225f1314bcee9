"""Style transfer's features at named layers, Gram matrices and costs: against naive loops and finite differences."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.efficientnet_lite import EfficientNetLite
from models.resnet import ResNet
from models.stages import stages_of
from models.style import (
    PLACES_A_SUM,
    Objective,
    Style,
    Weights,
    content_cost,
    gram_matrix,
    style_cost,
    total_variation,
)
from models.taps import CAFFE_MEAN, FeatureNet, convolutions_alone, from_caffe, is_caffe, random_filters
from models.vgg import VGG

DOUBLE = torch.float64


def features(seed: int, channels: int = 3, height: int = 4, width: int = 5) -> Tensor:
    return torch.randn(
        1, channels, height, width, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)
    )


def vgg(depth: int = 16, batch_norm: bool = False, seed: int = 0) -> VGG:
    net = convolutions_alone(VGG(1, 3, depth, batch_norm, dense=1))
    random_filters(net, seed)
    return net


def taps(
    names: list[str], dtype: torch.dtype = torch.float32, depth: int = 16, **options: object
) -> FeatureNet:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    net = vgg(depth).double() if dtype == DOUBLE else vgg(depth)
    return FeatureNet(net, names, mean, std, dtype=dtype, **options)  # type: ignore[arg-type]


def naive_gram(a: Tensor) -> Tensor:
    """The course's definition: G_ij = Σ over rows and columns of a_i · a_j."""
    _, C, H, W = a.shape
    gram = torch.zeros(C, C, dtype=a.dtype)
    for i, j in itertools.product(range(C), range(C)):
        for y, x in itertools.product(range(H), range(W)):
            gram[i, j] += a[0, i, y, x] * a[0, j, y, x]
    return gram


def naive_content(a: Tensor, b: Tensor) -> float:
    _, C, H, W = a.shape
    return sum(
        float(a[0, i, y, x] - b[0, i, y, x]) ** 2 for i in range(C) for y in range(H) for x in range(W)
    )


# --- Gram matrix and costs


def test_a_gram_matrix_is_the_triple_loop_over_places() -> None:
    a = features(0)
    torch.testing.assert_close(gram_matrix(a) * 20, naive_gram(a), rtol=1e-12, atol=1e-12)


def test_a_gram_matrix_worked_by_hand() -> None:
    a = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # two channels of 1x2 places
    assert (gram_matrix(a) * 2).tolist() == [[5.0, 1.0], [1.0, 10.0]]


@pytest.mark.parametrize("num_places", [PLACES_A_SUM - 1, PLACES_A_SUM, 2 * PLACES_A_SUM + 7])
def test_pieces_of_a_gram_matrix_are_the_whole(num_places: int) -> None:
    a = features(1, channels=3, height=1, width=num_places)
    rows = a[0, :, 0]
    torch.testing.assert_close(gram_matrix(a), rows @ rows.T / num_places, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_gram_matrix_in_pieces_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("models.style.PLACES_A_SUM", 6)  # of 20 places: three pieces and a rest
    a, weight = features(1).requires_grad_(True), features(2, channels=1, height=3, width=3)[0, 0]
    assert torch.autograd.gradcheck(gram_matrix, (a,))
    [found] = torch.autograd.grad((gram_matrix(a) * weight).sum(), [a])
    rows = a[0].flatten(1)
    [wanted] = torch.autograd.grad((rows @ rows.T / 20 * weight).sum(), [a])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_bfloat16_gram_matrix_is_near_the_exact_one() -> None:
    a = features(2, channels=8, height=128, width=128).abs()
    exact = gram_matrix(a)
    assert ((gram_matrix(a.bfloat16()).double() - exact).norm() / exact.norm()) < 2e-3


def test_a_mask_counts_its_places_alone() -> None:
    a = features(3, height=4, width=6)
    mask = torch.zeros(1, 1, 4, 6, dtype=DOUBLE)
    mask[..., :2] = 1
    torch.testing.assert_close(gram_matrix(a, mask), gram_matrix(a[..., :2]), rtol=1e-12, atol=1e-12)


def test_a_gram_matrix_is_of_one_picture() -> None:
    with pytest.raises(ValueError, match="of one picture, got a batch of 2"):
        gram_matrix(torch.zeros(2, 3, 4, 4))


def test_the_costs_are_the_course_s_sums() -> None:
    a, b = features(4), features(5)
    C, H, W = 3, 4, 5
    wanted = naive_content(a, b) / (4 * H * W * C)
    assert float(content_cost(a, b, "course")) == pytest.approx(wanted, rel=1e-12)
    difference = naive_gram(a) - naive_gram(b)
    wanted = sum(float(d) ** 2 for d in difference.flatten()) / (2 * H * W * C) ** 2
    assert float(style_cost(gram_matrix(a), gram_matrix(b), "course")) == pytest.approx(wanted, rel=1e-12)


def test_the_costs_are_gatys_s_sums() -> None:
    a, b = features(6), features(7)
    N, M = 3, 20
    assert float(content_cost(a, b, "gatys")) == pytest.approx(naive_content(a, b) / 2, rel=1e-12)
    difference = naive_gram(a) - naive_gram(b)
    wanted = float(difference.square().sum()) / (4 * N**2 * M**2)
    assert float(style_cost(gram_matrix(a), gram_matrix(b), "gatys")) == pytest.approx(wanted, rel=1e-12)


def test_relative_costs_are_one_for_nothing_and_zero_for_the_target() -> None:
    a = features(8)
    assert float(content_cost(torch.zeros_like(a), a, "relative")) == pytest.approx(1, rel=1e-12)
    assert float(style_cost(torch.zeros(3, 3, dtype=DOUBLE), gram_matrix(a), "relative")) == pytest.approx(
        1, rel=1e-12
    )
    assert (
        float(content_cost(a, a, "relative"))
        == float(style_cost(gram_matrix(a), gram_matrix(a), "relative"))
        == 0
    )


def test_total_variation_worked_by_hand() -> None:
    picture = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert float(total_variation(picture)) == (1 + 0 + 9 + 4) / 4


@pytest.mark.parametrize("normalisation", ["course", "gatys", "relative"])
def test_gradients_are_finite_differences(normalisation: str) -> None:
    a, b = features(9).requires_grad_(True), features(10)
    target, mask = gram_matrix(b), torch.rand(1, 1, 4, 5, dtype=DOUBLE)
    check = torch.autograd.gradcheck
    assert check(lambda x: content_cost(x, b, normalisation), (a,))  # type: ignore[arg-type]
    assert check(lambda x: style_cost(gram_matrix(x), target, normalisation), (a,))  # type: ignore[arg-type]
    assert check(lambda x: style_cost(gram_matrix(x, mask), target, normalisation), (a,))  # type: ignore[arg-type]
    assert check(total_variation, (a,))


# --- feature taps


@pytest.mark.parametrize("depth", [16, 19])
def test_vgg_layers_are_what_torchvision_s_indices_give(depth: int) -> None:
    """`features[:k]` for the k of the literature: relu1_1 is index 1, relu4_1 20 (VGG-16: 18)."""
    names = ["relu1_1", "pool1", "conv2_1", "relu4_1"]
    net = taps(names, depth=depth)
    x = torch.rand(1, 3, 48, 40)
    found = net(x)
    normalised = (x - net.mean) / net.std
    places = {"relu1_1": 2, "pool1": 5, "conv2_1": 6, "relu4_1": 21 if depth == 19 else 19}
    assert list(found) == names
    for name, end in places.items():
        plain = vgg(depth).features[:end].eval()
        torch.testing.assert_close(found[name], plain(normalised), rtol=1e-4, atol=1e-5)


def test_nothing_above_the_deepest_layer_is_run() -> None:
    net = taps(["relu1_2", "relu2_1"])
    ran: list[int] = []
    for place, module in enumerate(net.net.features):  # type: ignore[arg-type]
        module.register_forward_hook(lambda *_, place=place: ran.append(place))
    net(torch.rand(1, 3, 32, 32))
    assert max(ran) == 5 and len(net.layers) == 7  # conv, relu, conv, relu, pool, conv, relu


def test_a_convolution_that_is_asked_for_is_not_written_over() -> None:
    found = taps(["conv1_1", "relu1_1"])(torch.rand(1, 3, 32, 32))
    assert float(found["conv1_1"].min()) < 0
    assert torch.equal(found["relu1_1"], F.relu(found["conv1_1"]))


def test_steps_below_a_rounded_pixel_are_seen_in_bfloat16() -> None:
    """0.9 and 0.899 are one number in bfloat16."""
    assert torch.tensor(0.9).bfloat16() == torch.tensor(0.899).bfloat16()
    net = vgg(11)
    narrow = FeatureNet(net, ["conv1_1", "conv2_1"], (0.0,) * 3, (1.0,) * 3, dtype=torch.bfloat16)
    levels = torch.full((1, 3, 16, 16), 0.9)
    dark, light = narrow(levels), narrow(levels - 1e-3)
    assert all(maps.dtype == torch.bfloat16 for maps in dark.values())
    assert not torch.equal(dark["conv1_1"], light["conv1_1"])
    exact = FeatureNet(vgg(11), ["conv1_1"], (0.0,) * 3, (1.0,) * 3)(levels)["conv1_1"]
    assert torch.equal(dark["conv1_1"], exact.bfloat16())


def test_batch_norm_belongs_to_its_convolution() -> None:
    net = convolutions_alone(VGG(1, 3, 11, batch_norm=True, dense=1)).eval()
    x = torch.rand(1, 3, 32, 32)
    found = FeatureNet(net, ["conv2_1"], (0.0,) * 3, (1.0,) * 3)(x)["conv2_1"]
    torch.testing.assert_close(found, net.features[:6](x), rtol=1e-4, atol=1e-5)


def test_poolings_round_up_or_average() -> None:
    x = torch.rand(1, 3, 33, 31)
    assert taps(["pool1"], ceil_mode=True)(x)["pool1"].shape[2:] == (17, 16)
    found = taps(["relu1_2", "pool1"], pooling="average", ceil_mode=True)(x)
    assert torch.allclose(
        found["pool1"][..., :-1, :-1], F.avg_pool2d(found["relu1_2"], 2)[..., :16, :], atol=1e-6
    )
    assert torch.allclose(found["pool1"][..., -1, 0], found["relu1_2"][..., -1, :2].mean(-1), atol=1e-6)


def test_stages_of_any_network_are_its_layers() -> None:
    torch.manual_seed(0)
    net = EfficientNetLite(5, 3).eval()
    x = torch.rand(1, 3, 64, 64)
    found = FeatureNet(net, ["stem", "group2"], (0.0,) * 3, (1.0,) * 3)(x)
    stages = {stage.name: stage for stage in stages_of(net)}
    torch.testing.assert_close(found["stem"], stages["stem"].run(x))
    torch.testing.assert_close(found["group2"], stages["group2"].run(stages["group1"].run(found["stem"])))


def test_unknown_layers_and_poolings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no layer relu9_9 of VGG; known: conv1_1, relu1_1"):
        taps(["relu9_9"])
    with pytest.raises(ValueError, match=r"pooling \(=average\) can be chosen for VGG alone"):
        FeatureNet(ResNet(2, 3), ["stem"], (0.0,) * 3, (1.0,) * 3, pooling="average")
    with pytest.raises(ValueError, match="layer layer4 gives a vector"):
        FeatureNet(ResNet(2, 3), ["layer4"], (0.0,) * 3, (1.0,) * 3)(torch.rand(1, 3, 64, 64))


def test_caffe_s_weights_take_blue_first_and_0_to_255() -> None:
    net = vgg()
    convolutions = [module for module in net.features if isinstance(module, nn.Conv2d)]
    names = ["1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3"]
    state = {}
    for name, module in zip(names, convolutions, strict=True):
        assert module.bias is not None
        state |= {f"conv{name}.weight": module.weight.clone(), f"conv{name}.bias": module.bias.clone()}
    assert is_caffe(state) and not is_caffe(net.state_dict())
    ours = vgg(seed=1)
    ours.load_state_dict(from_caffe(state, ours))
    x = torch.rand(1, 3, 32, 32)
    found = FeatureNet(ours, ["relu1_1"], CAFFE_MEAN, (1 / 255,) * 3)(x)["relu1_1"]
    blue_first = 255 * x.flip(1) - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    wanted = F.relu(F.conv2d(blue_first, state["conv1_1.weight"], state["conv1_1.bias"], padding=1))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
    del state["conv5_3.bias"]
    with pytest.raises(ValueError, match="weight and bias of conv1_1 to conv5_3"):
        from_caffe(state, ours)


# --- the objective


def weights(**changes: object) -> Weights:
    plain = {"content": 2.0, "style": 3.0, "variation": 0.5, "content_layer": "relu2_2"}
    layers = {"relu1_1": 0.5, "relu2_1": 1.0}
    return Weights(**{**plain, "style_layers": layers, **changes})  # type: ignore[arg-type]


def picture(seed: int, height: int = 12, width: int = 10, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.rand(1, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_the_objective_is_the_weighted_sum_of_its_parts() -> None:
    net = taps(["relu1_1", "relu2_1", "relu2_2"], DOUBLE)
    content, first, second, now = picture(0), picture(1, 14, 16), picture(2), picture(3)
    objective = Objective(net, content, [Style(first, 1.0), Style(second, 3.0)], weights(), "course")
    costs = objective(now)
    seen, asked = net(now), net(content)
    wanted = content_cost(seen["relu2_2"], asked["relu2_2"], "course")
    assert float(costs["content"]) == pytest.approx(float(wanted))
    style = 0.0
    for share, target in ((0.25, net(first)), (0.75, net(second))):
        for name, weight in (("relu1_1", 0.5), ("relu2_1", 1.0)):
            grams = gram_matrix(seen[name]), gram_matrix(target[name])
            style += share * weight * float(style_cost(*grams, "course"))
    assert float(costs["style"]) == pytest.approx(style)
    total = 2 * float(wanted) + 3 * style + 0.5 * float(total_variation(now))
    assert float(costs["total"]) == pytest.approx(total)


def test_the_gradient_of_the_objective_is_a_finite_difference() -> None:
    net = taps(["relu1_1", "relu2_1", "relu2_2"], DOUBLE)
    mask = torch.rand(1, 1, 12, 10, dtype=DOUBLE)
    objective = Objective(
        net, picture(0), [Style(picture(1)), Style(picture(2), 2.0, mask)], weights(), "relative"
    )
    at = picture(4).requires_grad_(True)
    objective(at)["total"].backward()
    assert at.grad is not None
    generator, step = torch.Generator().manual_seed(0), 1e-6
    for _ in range(5):
        way = torch.randn(at.shape, dtype=DOUBLE, generator=generator)
        with torch.no_grad():
            ahead, behind = (float(objective(at + sign * step * way)["total"]) for sign in (1, -1))
        assert float((at.grad * way).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5)


def test_the_content_itself_has_no_content_cost_and_no_style_gradient_of_weight_0() -> None:
    net = taps(["relu1_1", "relu2_2"])
    content = picture(5, dtype=torch.float32)
    only = Objective(net, content, [], weights(style=0.0, variation=0.0), "course")
    assert float(only(content)["total"]) == 0
    assert weights(style=0.0).layers == ["relu2_2"] and weights(content=0.0).layers == ["relu1_1", "relu2_1"]


def test_a_mask_leaves_the_rest_of_the_picture_to_the_content() -> None:
    net = taps(["relu1_1", "relu2_1", "relu2_2"])
    content, style = picture(6, 32, 32, torch.float32), picture(7, 32, 32, torch.float32)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    at = content.clone().requires_grad_(True)
    Objective(net, content, [Style(style, 1.0, mask)], weights(variation=0.0), "course")(at)[
        "total"
    ].backward()
    assert at.grad is not None
    reach = 8  # the receptive field of relu2_1 is 10 px, so nothing is felt further than this from the edge
    assert float(at.grad[..., :16].abs().min(1).values.max()) > 0
    assert float(at.grad[..., 16 + reach :].abs().max()) == 0
