"""What else is read from outside, beside pictures, annotations and archives: a sound file of each, and what reads it.

`PARSERS` names them: weights in three forms, models and their cards, descriptions of datasets, lists of versions,
alignments, parameters as a file and as `--set`, and the form of a request.
"""

import asyncio
import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from starlette.requests import Request

from data import aligned
from data.dataset import Dataset
from data.report import read_report
from pipelines import parameters
from pipelines.reporting import shown
from tasks import versions
from tasks.families import FAMILIES
from tasks.modelfile import load_model
from tasks.requests import RefusedError, form_items
from tasks.weights import read_state
from tests.corpus import Sound
from tests.pictures import png
from tests.recording import make_model
from tests.tiny import TINY, tiny_dataset

BOUNDARY = "b0undary"
MAX_IMAGES = 8
CHANGES = b'optim.lr=1e-3\ntrain.epochs=2\naugment.crop_area=[0.5, 1]\nmodel.name="lenet5"\ntransfer={weights: ""}\n'


def saved(**options: Any) -> bytes:
    """Two tensors as torch.save writes them."""
    buffer = io.BytesIO()
    torch.save({"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3)}, buffer, **options)
    return buffer.getvalue()


def form() -> bytes:
    """Two pictures and a field, as curl -F sends them."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{i}.png"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + png(i, 8, 8)
        + b"\r\n"
        for i in range(2)
    ]
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'.encode()
    return b"".join([*parts, field, f"--{BOUNDARY}--\r\n".encode()])


@cache
def model() -> dict[str, bytes]:
    """The files of a saved model."""
    with tempfile.TemporaryDirectory() as folder:
        return {file.name: file.read_bytes() for file in make_model(Path(folder) / "m").iterdir()}


@cache
def dataset() -> dict[str, bytes]:
    """The files of a dataset that describe it."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_dataset("classification", Path(folder)).path
        return {name: (path / name).read_bytes() for name in ("dataset.json", "report.json")}


def read_weights_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "w").write_bytes(data)
        read_state(Path(folder) / "w")


def reader_in(
    files: Callable[[], dict[str, bytes]], name: str, read: Callable[[Path], Any]
) -> Callable[[bytes], None]:
    """Reads a folder of `files` with other bytes in one of them."""

    def read_folder(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for each, content in {**files(), name: data}.items():
                (Path(folder) / each).write_bytes(content)
            read(Path(folder))

    return read_folder


def read_versions(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.versions.json").write_bytes(data)
        versions.read_list(Path(folder) / "x.versions.json")


def read_parameters(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_bytes(data)
        values = parameters.load(Path(folder) / "params.yaml")
        FAMILIES["classification"].config.parse(values, "params.yaml")


def read_changes(data: bytes) -> None:
    values = parameters.parse_changes(data.decode("utf-8", "replace").split("\n")[:-1])
    FAMILIES["classification"].config.parse(parameters.merge(TINY["classification"], values), "")


def read_form(data: bytes) -> None:
    headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]
    try:
        asyncio.run(form_items(Request({"type": "http", "headers": headers}), data, MAX_IMAGES))
    except RefusedError as error:
        raise ValueError(str(error)) from None


VERSIONS = {
    "name": "x",
    "versions": [
        {
            "number": 1,
            "md5": "0" * 32 + ".dir",
            "size": 5,
            "nfiles": 2,
            "source": "x",
            "images": {"train": 3},
        },
    ],
}
ALIGNMENT = {"method": "crop", "side_px": 64, "crop_xyxy": [1, 2, 30, 40]}
# kind: sound bytes, and what reads such bytes; it raises nothing but a ValueError of one line for each fault
PARSERS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], Any]]] = {
    "weights, safetensors": (lambda: save({"a": torch.ones(3, 4), "b": torch.ones(2)}), read_weights_file),
    "weights, torch": (saved, read_weights_file),
    "weights, old torch": (lambda: saved(_use_new_zipfile_serialization=False), read_weights_file),
    "model.json": (lambda: model()["model.json"], reader_in(model, "model.json", load_model)),
    "a model's weights": (
        lambda: model()["member-0.safetensors"], reader_in(model, "member-0.safetensors", load_model),
    ),
    "dataset.json": (lambda: dataset()["dataset.json"], reader_in(dataset, "dataset.json", Dataset.open)),
    "report.json": (lambda: dataset()["report.json"], reader_in(dataset, "report.json", read_report)),
    "list of versions": (lambda: json.dumps(VERSIONS).encode(), read_versions),
    "alignment.json": (lambda: json.dumps(ALIGNMENT).encode(), lambda data: aligned.parse(data, "alignment.json")),
    "params.yaml": (lambda: json.dumps(TINY["classification"], indent=1).encode(), read_parameters),
    "--set": (lambda: CHANGES, read_changes),
    "form of a request": (form, read_form),
}  # fmt: skip


def parse(kind: str, data: bytes) -> str:
    """Read a file of a kind: "used"; raises ValueError, whose lines, one for each fault, are joined into one."""
    try:
        PARSERS[kind][1](data)
    except (ValueError, FileNotFoundError) as error:  # a card may name weights that are not there
        if type(error) not in (ValueError, FileNotFoundError) or "" in map(str.strip, str(error).split("\n")):
            raise
        raise ValueError(shown("; ".join(str(error).split("\n")))) from None
    return "used"


@cache
def parsed_sounds() -> list[Sound]:
    """A sound file of each."""
    return [Sound(kind, kind, make()) for kind, (make, _) in PARSERS.items()]
