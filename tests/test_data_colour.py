"""Colours: one affine map is the chain that it is made of, and the same as Pillow and AlexNet's formula."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from data import colour

FACTORS = st.floats(0, 2)


def pictures(num: int = 2, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, channels, 5, 7), dtype=torch.uint8, generator=generator)


def as_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pillow(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_the_identity_changes_nothing() -> None:
    images = pictures()
    assert torch.equal(colour.apply(images, colour.identity(2, 3)), images)


def test_brightness_contrast_and_saturation_are_pillows() -> None:
    image = pictures(1)
    grey = torch.tensor([float(np.asarray(as_pillow(image[0]).convert("L")).mean())])
    for factor in (0.0, 0.4, 1.0, 1.7):
        f = torch.tensor([factor])
        for maps, enhance in (
            (colour.brightness(f, 3), ImageEnhance.Brightness),
            (colour.contrast(f, grey, 3), ImageEnhance.Contrast),
            (colour.saturation(f, 3), ImageEnhance.Color),
        ):
            ours = colour.apply(image, maps)[0].int()
            theirs = from_pillow(enhance(as_pillow(image[0])).enhance(factor)).int()
            assert (ours - theirs).abs().max() <= 1  # they round greys and results down in between


def test_no_saturation_is_grey_and_keeps_its_luma() -> None:
    image = pictures(1)
    grey = colour.apply(image, colour.saturation(torch.tensor([0.0]), 3))
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 1], grey[:, 2])
    luma = torch.einsum("bchw,c->bhw", image.float(), colour.luma_weights(3))
    assert (grey[:, 0] - luma).abs().max() <= 0.5 + 1e-3


@given(FACTORS, FACTORS, st.floats(-40, 40))
def test_a_composed_map_is_one_after_the_other(a: float, b: float, levels: float) -> None:
    first = colour.saturation(torch.tensor([a]), 3)
    second = colour.compose(colour.shift(torch.full((1, 3), levels)), colour.brightness(torch.tensor([b]), 3))
    both = colour.compose(second, first)
    rgb = torch.tensor([[10.0], [200.0], [90.0]])
    by_steps = second[0, :, :3] @ (first[0, :, :3] @ rgb + first[0, :, 3:]) + second[0, :, 3:]
    torch.testing.assert_close(both[0, :, :3] @ rgb + both[0, :, 3:], by_steps, rtol=1e-4, atol=1e-2)


def test_pca_colour_moves_along_the_components() -> None:
    components = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    images = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    moved = colour.apply(images, colour.pca_shift(torch.tensor([[1.0, -2.0, 4.0]]), components))
    assert moved[0, :, 0, 0].tolist() == [103, 96, 104]


def test_levels_saturate() -> None:
    images = torch.tensor([0, 100, 250], dtype=torch.uint8).view(1, 3, 1, 1)
    assert colour.apply(images, colour.shift(torch.full((1, 3), 20.0))).flatten().tolist() == [20, 120, 255]
    assert colour.apply(images, colour.shift(torch.full((1, 3), -120.0))).flatten().tolist() == [0, 0, 130]


def test_grey_pictures_have_one_channel_of_luma() -> None:
    images = pictures(1, 1)
    assert colour.luma_weights(1).tolist() == [1.0]
    same = colour.apply(images, colour.saturation(torch.tensor([0.3]), 1))
    assert torch.equal(same, images)


def test_principal_components_rebuild_the_covariance() -> None:
    covariance = [[4900.0, 4500.0, 4100.0], [4500.0, 4700.0, 4500.0], [4100.0, 4500.0, 5000.0]]
    components = np.array(colour.principal_components(covariance))
    assert np.allclose(components @ components.T, covariance)
    assert all(components[np.abs(components).argmax(0), np.arange(3)] > 0)
    assert colour.principal_components(()) == ()
