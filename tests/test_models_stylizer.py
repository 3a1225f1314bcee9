"""Networks that stylise in one pass: what is published of them, norms, the judge, and bands that change nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.adain import Decoder, Level, adapt, mixed, moments_of
from models.bands import bands, in_bands
from models.efficientnet_lite import EfficientNetLite
from models.style import Objective, Style, Weights
from models.stylizer import Stylizer, StylizerModel, build, layers_needed
from models.taps import FeatureNet, random_filters
from models.transformnet import StyleNorm, TransformNet, reflected, standard, standard_by_moments

WEIGHTS = Weights(1.0, 5.0, 0.1, "group2", {"stem": 1.0, "group1": 2.0, "group2": 0.0})
JOHNSON = {"name": "johnson", "width": 4, "num_blocks": 2, "layers": []}
ADAIN = {"name": "adain", "width": 4, "num_blocks": 1, "layers": ["stem", "group2", "group3"]}


def stylizer(model: dict[str, Any], dtype: torch.dtype = torch.float32, **changes: Any) -> Stylizer:
    """A small network with chance in all its weights, judged by an EfficientNet of chance."""
    torch.manual_seed(0)
    config = StylizerModel.parse({**model, **changes}, "model")
    net = EfficientNetLite(num_classes=1, channels=3)
    random_filters(net, 0)
    features = FeatureNet(net, layers_needed(config, WEIGHTS), (0.5,) * 3, (0.25,) * 3, dtype=dtype)
    styles = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    made = build(config, features, WEIGHTS, "relative", styles)
    for name, parameter in made.network.named_parameters():
        if name.endswith(("scale", "shift")):
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    torch.nn.init.normal_(made.network.output.weight, 0, 0.1)
    return made.eval()


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth chance: (1, 3, H, W) of 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def test_the_paper_s_network_has_the_published_number_of_parameters() -> None:
    net = TransformNet(num_styles=1, width=32, num_blocks=5)
    # https://github.com/pytorch/examples/tree/main/fast_neural_style
    assert sum(p.numel() for p in net.parameters()) == 1_679_235
    both = TransformNet(num_styles=3, width=32, num_blocks=5)
    norms = 2 * (32 + 64 + 128 * 11 + 64 + 32)
    assert sum(p.numel() for p in both.parameters()) == 1_679_235 + 2 * norms


def test_a_style_norm_is_instance_norm_with_the_scale_and_shift_of_its_style() -> None:
    norm, x = StyleNorm(3, 2), torch.randn(2, 3, 5, 7)
    torch.nn.init.normal_(norm.scale)
    torch.nn.init.normal_(norm.shift)
    shares = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    for i, share in enumerate(shares):
        scale = share[0] * norm.scale[0] + share[1] * norm.scale[1]
        shift = share[0] * norm.shift[0] + share[1] * norm.shift[1]
        wanted = F.instance_norm(x[i : i + 1], weight=scale, bias=shift)
        torch.testing.assert_close(norm(x, shares)[i : i + 1], wanted)
    own = (x.mean((2, 3)), x.var((2, 3), correction=0))
    torch.testing.assert_close(norm(x, shares, own), norm(x, shares))


def test_a_style_norm_s_gradient_is_that_of_finite_differences() -> None:
    norm = StyleNorm(3, 2).double()
    torch.nn.init.normal_(norm.scale)
    torch.nn.init.normal_(norm.shift)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    shares = torch.tensor([[0.3, 0.7], [1.0, 0.0]], dtype=torch.float64)

    def run(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"scale": scale, "shift": shift}, (x, shares))

    assert torch.autograd.gradcheck(run, (x, norm.scale, norm.shift))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_are_standardised_on_a_gpu_as_they_are_here(dtype: torch.dtype) -> None:
    x = (torch.randn(2, 3, 9, 7) * 5 + 20).to(dtype).contiguous(memory_format=torch.channels_last)
    normal, inverse = standard_by_moments(x, torch.float32)
    wanted, wanted_inverse = standard(x, torch.float32)
    assert normal.dtype == wanted.dtype == dtype and inverse.dtype == wanted_inverse.dtype == torch.float32
    torch.testing.assert_close(inverse, wanted_inverse, rtol=1e-4, atol=0)
    torch.testing.assert_close(normal, wanted, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.03)


def test_a_border_mirrors_and_where_there_is_nothing_left_repeats() -> None:
    row = torch.tensor([1.0, 2.0, 3.0]).expand(1, 1, 3, 3)
    assert reflected(row, 1)[0, 0, 0].tolist() == [2, 1, 2, 3, 2]
    assert reflected(row, 4)[0, 0, 0].tolist() == [3, 3, 3, 2, 1, 2, 3, 2, 1, 1, 1]


def test_adapted_features_have_the_style_s_moments_and_strength_lies_between() -> None:
    x, style = torch.randn(2, 4, 9, 8) * 3 + 1, torch.randn(2, 4, 6, 6) * 0.5 - 2
    moments = moments_of(style)
    mean, variance = moments_of(adapt(x, moments))
    torch.testing.assert_close(mean, moments[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, moments[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(adapt(x, moments, 0.0), x)
    torch.testing.assert_close(adapt(x, moments, 0.5), (x + adapt(x, moments)) / 2, rtol=1e-4, atol=1e-4)
    other = moments_of(torch.randn(2, 4, 6, 6))
    between = adapt(x, mixed([moments, other], [0.25, 0.75]))
    torch.testing.assert_close(
        between, 0.25 * adapt(x, moments) + 0.75 * adapt(x, other), rtol=1e-3, atol=1e-3
    )


def test_a_decoder_refuses_layers_that_do_not_come_from_fine_to_coarse() -> None:
    with pytest.raises(ValueError, match=r"fine to coarse; their strides are \[8, 4\]"):
        Decoder([Level(3, 8), Level(3, 4)], 4, 0)
    with pytest.raises(ValueError, match="must name layers for adain, and be"):
        StylizerModel.parse({**ADAIN, "layers": []}, "model")
    with pytest.raises(ValueError, match="must name layers for adain, and be"):
        StylizerModel.parse({**JOHNSON, "layers": ["stem"]}, "model")


def test_a_decoder_sees_features_at_mean_zero_and_deviation_one() -> None:
    decoder, x = Decoder([Level(3, 2)], 4, 0), torch.randn(4, 3, 8, 8) * 200 + 50
    decoder.fit([x])
    mean, variance = moments_of(decoder.standard(x, 0).transpose(0, 1).flatten(1)[None, :, :, None])
    torch.testing.assert_close(mean, torch.zeros(1, 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones(1, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [JOHNSON, ADAIN], ids=["johnson", "adain"])
def test_the_judge_s_costs_are_those_of_the_optimisation(model: dict[str, Any]) -> None:
    """Of each picture alone, by models.style.Objective; in training, of each with its own style."""
    own = stylizer(model)
    images = torch.cat([picture(32, 32, seed) for seed in range(3)])
    images = (images * 255).round().to(torch.uint8)
    costs = own(images, 1)
    content, styles = images.float() / 255, own.styles.float() / 255
    for i in range(3):
        if model is JOHNSON:
            style = styles[(1 + i) % 2]
            made = own.render(content[i : i + 1], own.manner(torch.eye(2)[(1 + i) % 2]))
        else:
            style = content[i - 1]
            made = own.render(content[i : i + 1], own.manner_of([style], [1.0]))  # type: ignore[attr-defined]
        objective = Objective(
            own.judge.features, content[i : i + 1], [Style(style[None])], WEIGHTS, "relative"
        )
        for name, value in objective(made).items():
            torch.testing.assert_close(costs[name][i], value, rtol=1e-3, atol=1e-5)
    alone = own.costs_of(content[:1], content[:1], 1)
    assert float(alone["content"]) < 1e-9
    again = Objective(own.judge.features, content[:1], [Style(styles[1:])], WEIGHTS, "relative")(content[:1])
    torch.testing.assert_close(alone["total"][0], again["total"])


@pytest.mark.parametrize("model", [JOHNSON, ADAIN], ids=["johnson", "adain"])
def test_a_judge_in_bfloat16_serves_a_network_in_float32(model: dict[str, Any]) -> None:
    """As in validation, and where a model that was trained in bfloat16 predicts in float32."""
    narrow, wide = stylizer(model, torch.bfloat16), stylizer(model)
    images = (torch.cat([picture(32, 32, seed) for seed in range(2)]) * 255).round().to(torch.uint8)
    with torch.inference_mode():
        one, other = (own(images, 0)["total"] for own in (narrow, wide))
        torch.testing.assert_close(one, other, rtol=0.05, atol=0)


@pytest.mark.parametrize("model", [JOHNSON, ADAIN], ids=["johnson", "adain"])
def test_the_judge_carries_no_module_that_it_does_not_run(model: dict[str, Any]) -> None:
    names = {name for name in stylizer(model).state_dict() if name.startswith("judge.")}
    deepest = "_blocks.4" if model is ADAIN else "_blocks.2"  # group3, group2
    assert any(deepest in name for name in names)
    assert not any("_fc" in name or "_blocks.5" in name for name in names)
    assert not stylizer(model).train().judge.features.net.training


def test_bands_cover_the_height_once() -> None:
    assert list(bands(40, 16)) == [(0, 16), (16, 32), (32, 40)]
    assert list(bands(16, 16)) == [(0, 16)]


@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize("model", [JOHNSON, ADAIN], ids=["johnson", "adain"])
def test_a_picture_in_bands_is_the_picture_in_one_pass(model: dict[str, Any], rows: int) -> None:
    """In float32 to a ten-thousandth of the range: a fortieth of a grey level."""
    own, shares = stylizer(model), torch.tensor([0.3, 0.7])
    content = picture(320, 96)
    with torch.inference_mode():
        manner = own.manner(shares)
        whole = own.render(content, manner)
        parts = in_bands(own, content, manner, rows)
    assert whole.std() > 0.01
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_half_a_halo_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would see a seam."""
    own, content = stylizer(JOHNSON), picture(320, 96)
    monkeypatch.setattr("models.bands.HEAD_HALO", 4)
    with torch.inference_mode():
        manner = own.manner(torch.tensor([1.0, 0.0]))
        apart = (in_bands(own, content, manner, 32) - own.render(content, manner)).abs().max()
    assert apart > 1e-3
