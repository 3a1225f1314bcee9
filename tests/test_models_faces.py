"""Networks for faces: parameter counts, published keys, unit length, people that stay behind."""

import hashlib

import pytest
import torch
from torch.nn import functional as F

from models.faceresnet import FaceResNet
from models.faces import (
    FACE_NETS,
    PUBLISHED,
    FaceModel,
    FaceNet,
    build,
    head_of,
    least_face_px,
    load_published,
    make_body,
    without_people,
)
from models.inception_resnet import MEAN, STD, InceptionResNetV1

# of facenet-pytorch 2.6.0: SHA-256 over the sorted lines "key (shape)" of InceptionResnetV1().state_dict()
FACENET_KEYS = "c0638fa983a7cf513cd2dfb4310e1e627f43ae2e6bcbe857010cd3b37e3c5b1c"
NAMES = (*FACE_NETS, "resnet8_cifar", "mobilenet_v2", "lenet5")


def model(name: str, people: tuple[int, ...] = (), centre: bool = True) -> FaceNet:
    torch.manual_seed(0)
    dim = dim_of(name)
    px = max(32, least_face_px(name))
    arguments = FaceModel.parse({"name": name, "dim": dim, "centre": centre}, "model").arguments(px)
    return build(name, 3, arguments, (0.5,) * 3, (0.25,) * 3, people)


def dim_of(name: str) -> int:
    return 128 if name == "face_resnet128" else 16


def pictures(name: str, num: int = 4) -> torch.Tensor:
    torch.manual_seed(1)
    px = max(32, least_face_px(name))
    return torch.randint(0, 256, (num, 3, px, px), dtype=torch.uint8)


def num_parameters(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameter_counts_are_exact() -> None:
    with torch.device("meta"):
        assert num_parameters(InceptionResNetV1(512, 3)) == 23_482_624
        # the paper says 0.99 M
        assert num_parameters(make_body("mobilefacenet", 3, {"dim": 128, "input_px": 112})) == 1_002_880
        assert num_parameters(make_body("face_small", 3, {"dim": 128, "input_px": 112})) == 2_280_224


def test_keys_are_facenet_pytorchs() -> None:
    with torch.device("meta"):
        state = InceptionResNetV1(512, 3).state_dict()
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == FACENET_KEYS


def test_published_weights_load_without_the_people_they_told_apart() -> None:
    state = InceptionResNetV1(512, 3).state_dict()
    published = {
        key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()
    }
    net = FaceNet(InceptionResNetV1(512, 3), (MEAN,) * 3, (STD,) * 3)
    logits = {"logits.weight": torch.rand(8631, 512), "logits.bias": torch.rand(8631)}
    load_published(net, published | logits, "a file")
    assert all(torch.equal(value, published[key]) for key, value in net.net.state_dict().items())
    levels = torch.tensor([0, 127.5, 255]) / 255
    torch.testing.assert_close((levels - MEAN) / STD, torch.tensor([-127.5 / 128, 0, 127.5 / 128]))
    del published["conv2d_1a.conv.weight"]
    with pytest.raises(ValueError, match=r"conv2d_1a.conv.weight is missing. Choose the network"):
        load_published(net, published, "a file")


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_of_unit_length_and_alone_as_beside_others(name: str) -> None:
    net, images = model(name), pictures(name)
    net.train()(images)  # running statistics of something
    net.eval()
    with torch.inference_mode():
        found = net(images)
        alone = net(images[2:3])
    assert found.embeddings.shape == (4, dim_of(name)) and found.cosines is None
    torch.testing.assert_close(found.embeddings.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(found.embeddings[2:3], alone.embeddings, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_finite_gradient(name: str) -> None:
    net = model(name, people=(2, 5)).train()
    found = net(pictures(name), torch.tensor([5, 2, 2, 5]))
    assert found.cosines is not None and found.cosines.shape == (4, 2) and found.rows.tolist() == [1, 0, 0, 1]
    assert found.cosines.abs().max() <= 1 + 1e-6
    found.cosines[:, 0].square().sum().backward()
    for label, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), label


def test_people_are_left_behind() -> None:
    net = model("face_tiny", people=(0, 1, 4))
    kept = without_people(net.state_dict())
    assert "people.weight" in net.state_dict() and not any("people" in key for key in kept)
    model("face_tiny").load_state_dict(kept, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_body_stays_as_it_is(name: str) -> None:
    net = model(name)
    net.freeze_body(head_of(name, net.net))
    before = {key: value.clone() for key, value in net.net.state_dict().items()}
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    net(pictures(name)).embeddings[:, 0].sum().backward()
    optimizer.step()
    heads = tuple(f"{module}." for module in head_of(name, net.net))
    changed = {key for key, value in net.net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(f"{key}.".startswith(heads) for key in changed)


def test_the_published_face_resnet_sees_the_levels_that_it_was_trained_on() -> None:
    torch.manual_seed(0)
    bare = FaceResNet().eval()
    net = build("face_resnet128", 3, {"dim": 128}, *PUBLISHED["face_resnet128"]).eval()
    load_published(net, bare.state_dict(), "a file")
    images = torch.randint(0, 256, (2, 3, 150, 150), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(net(images).embeddings, F.normalize(bare(images)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"set model.dim \(=64\) to 128"):
        build("face_resnet128", 3, {"dim": 64}, *PUBLISHED["face_resnet128"])


def test_a_network_with_side_branches_is_refused() -> None:
    with pytest.raises(ValueError, match="without side branches"):
        FaceModel.parse({"name": "googlenet", "dim": 64, "centre": True}, "model")
