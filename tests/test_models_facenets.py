"""The face ResNet and the net of 68 landmarks: shapes and sums as published, and what they say of real faces."""

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.aligned import FaceAlignment
from data.landmarks import IBUG68_EYE_CORNERS
from models.facelandmarks68 import FaceLandmarks68
from models.faceresnet import SAME_PERSON_DISTANCE, Block, FaceResNet, ScaledConv
from tasks.facealign import open_aligner
from tasks.faceweights import load_face_landmarks68
from tasks.weights import read_state
from tests.published import mtcnn, shared_weights

LFW_CROP = (3, 11, 118, 126)


def test_the_nets_have_the_published_numbers_of_weights() -> None:
    assert sum(p.numel() for p in FaceResNet().parameters()) == 5_614_592
    assert sum(p.numel() for p in FaceLandmarks68().parameters()) == 356_840


def test_a_scaled_convolution_is_a_convolution_then_a_scale() -> None:
    torch.manual_seed(0)
    layer = ScaledConv(3, 4, 3, 2, padding=1).double()
    for weight in (layer.conv.bias, layer.scale.weights, layer.scale.biases):
        torch.nn.init.normal_(weight)
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    plain = F.conv2d(x, layer.conv.filters, layer.conv.bias, 2, 1)
    wanted = plain * layer.scale.weights[:, None, None] + layer.scale.biases[:, None, None]
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("side", [8, 9, 35])
def test_a_halving_block_adds_the_mean_of_four_and_leaves_new_channels_to_the_filters(side: int) -> None:
    block = Block(2, 5, 2).double()
    torch.nn.init.zeros_(block.conv2.scale.weights)  # the filters say nothing
    x = torch.rand(1, 2, side, side, dtype=torch.float64)
    y = block(x)
    assert y.shape == (1, 5, side // 2, side // 2)
    torch.testing.assert_close(y[:, :2], F.avg_pool2d(x, 2))
    assert y[:, 2:].abs().max() == 0


def test_every_weight_gets_a_gradient_and_the_places_are_128() -> None:
    torch.manual_seed(0)
    for net, side, shape in ((FaceResNet(), 150, (2, 128)), (FaceLandmarks68(), 112, (2, 68, 2))):
        out = net(torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8))
        assert out.shape == shape
        out.square().sum().backward()
        without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert without == []


def lfw(datasets: Path) -> tuple[dict[str, bytes], list[tuple[str, str, bool]]]:
    """The test people's pictures, and the pairs."""
    pictures: dict[str, bytes] = {}
    with tarfile.open(datasets / "lfw_deepfunneled_c128.tar.xz") as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is not None and member.name.endswith((".jpg", "pairsDevTest.txt")):
                pictures[Path(member.name).stem] = stream.read()
    pairs = []
    for line in pictures.pop("pairsDevTest").decode().splitlines():
        words = line.split()
        if len(words) >= 3:
            a, b = (words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1])
            names = [f"{person}_{int(number):04d}" for person, number in (a, b)]
            pairs.append((names[0], names[1], len(words) == 3))
    return pictures, pairs


def places_of(datasets: Path, alignment: FaceAlignment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of LFW's 1,000 pairs: the ResNet's places of both faces, raw pixels' distances, and which are of one person."""
    net = FaceResNet().eval()
    net.load_state_dict(read_state(Path(shared_weights(datasets, "face_resnet128_fp16.safetensors"))))
    pictures, pairs = lfw(datasets)
    aligner = open_aligner(alignment)
    names = sorted({name for pair in pairs for name in pair[:2]})
    faces = torch.stack([aligner.face(pictures[name]) for name in names])
    with torch.inference_mode():
        places = torch.cat([net(part) for part in faces.split(32)])
    at = {name: i for i, name in enumerate(names)}
    a, b = (torch.tensor([at[pair[side]] for pair in pairs]) for side in (0, 1))
    raw = faces.float().flatten(1)
    return places[a], places[b], (raw[a] - raw[b]).norm(dim=1), torch.tensor([pair[2] for pair in pairs])


@pytest.mark.data
@pytest.mark.slow
def test_the_face_resnet_knows_97_6_of_100_pairs_of_lfw(datasets_folder: Path) -> None:
    a, b, raw, same = places_of(
        datasets_folder, FaceAlignment(method="crop", side_px=150, crop_xyxy=LFW_CROP)
    )
    assert (len(same), int(same.sum())) == (1000, 500)
    near = (a - b).norm(dim=1) < SAME_PERSON_DISTANCE
    assert (near == same).float().mean() == pytest.approx(0.976, abs=0.002)
    # raw pixels, at the threshold that suits them best
    best = max(float(((raw < each) == same).float().mean()) for each in raw)
    assert best == pytest.approx(0.616, abs=0.002)


@pytest.mark.data
@pytest.mark.slow
def test_five_points_on_dlib_s_template_beat_the_fixed_crop(datasets_folder: Path) -> None:
    alignment = FaceAlignment(
        method="mtcnn", side_px=150, template="dlib", margin=0.25, face="central", min_score=0.7,
        weights=mtcnn(),
    )  # fmt: skip
    a, b, _, same = places_of(datasets_folder, alignment)
    near = (a - b).norm(dim=1) < SAME_PERSON_DISTANCE
    assert (near == same).float().mean() == pytest.approx(0.983, abs=0.003)


@pytest.mark.data
def test_the_landmarks_are_6_percent_of_the_eye_corners_off(datasets_folder: Path) -> None:
    net, _ = load_face_landmarks68(shared_weights(datasets_folder, "face_landmark68_fp32.safetensors"))
    errors = []
    with tarfile.open(datasets_folder / "facial_keypoints_112.tar") as archive:
        stream = archive.extractfile("test_keypoints.csv")
        assert stream is not None
        rows = list(csv.reader(io.TextIOWrapper(stream)))[1:]
        for name, *values in rows:
            file = archive.extractfile(f"test/{name}")
            assert file is not None
            pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
            wanted = torch.tensor([float(value) for value in values]).view(68, 2)
            with torch.inference_mode():
                got = net(pixels[None])[0] * 112
            left, right = IBUG68_EYE_CORNERS
            errors.append((got - wanted).norm(dim=1).mean() / (wanted[left] - wanted[right]).norm())
    assert len(errors) == 174
    assert torch.stack(errors).mean() == pytest.approx(0.0604, abs=0.001)
