"""A model as one file for other runtimes, ONNX or torch.export, with its preprocessing inside.

The program is what prediction computes, traced: resizing of pictures of any size (normalisation and fitting of signals
and volumes of any length), the crops of the registered view, all networks, softmax, the mean, and the temperature. It
is traced once; both formats are written from that trace. Nothing is kept before the file, read back from disk, has
predicted what the model predicts (tasks.exportcheck).

    model.onnx or model.pt2     the program; its metadata say what goes in and what comes out
    check.json                  what the check saw
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from data.dataset import Dataset
from data.files import write_whole
from data.fitting import ArrayPreprocessing
from data.traceable import to_squares, to_stored
from tasks.card import ModelCard
from tasks.exportcheck import Run, check
from tasks.inputs import AnyPreprocessing
from tasks.modelfile import SavedModel
from tasks.predict import Scorer, load_predictor
from tasks.temperature import divided
from tasks.views import VIEWS, view_named

Format = Literal["onnx", "torch"]
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
OPSET = 20
METADATA_FILE = "metadata.json"  # inside model.pt2
CHECK_BATCH = 64  # crops a forward pass of the check
MAX_ONNX_BYTES = 2**31 - 1  # of a protobuf message, which an ONNX file is
AXES = {1: ("length",), 3: ("depth", "height", "width")}  # names of dynamic axes, by their number
INPUT, OUTPUT = "items", "probabilities"


class Program(nn.Module):
    """Items as they come from a decoder → probabilities (B, K) float32: what a file holds.

    Pictures are (B, H, W, C) uint8 of any size, as decoders give them; signals and volumes (B, C, *axes) float32.
    The networks are copies: those of `saved` keep their memory format.
    """

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        # torch.export.save takes a channels-last tensor for a part of another one
        scorer = deepcopy(Scorer(saved.card, saved.members)).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.scorer = scorer
        self.preprocessing = saved.card.preprocessing
        self.view = view_named(saved.card.views, VIEWS)
        self.temperature = saved.card.temperature

    def forward(self, items: Tensor) -> Tensor:
        want = self.preprocessing
        if isinstance(want, ArrayPreprocessing):
            stored = to_stored(items, want)
        else:
            assert want.resize != "letterbox", "classifiers alone are exported (load_predictor)"
            stored = to_squares(items, want.stored_px, want.resize)
        probabilities = self.scorer(stored, self.view)
        return probabilities if self.temperature == 1 else divided(probabilities, self.temperature)


def export(model: Path, form: Format, out: Path, dataset: Dataset, source: dict[str, str]) -> dict[str, Any]:
    """Write the model in the folder `model` to the new folder `out`, if it passes the check on `dataset`.

    `source`: what to say of where the model is from; errors call it by its `model`. Returns what is in check.json.
    Raises FileExistsError if `out` holds anything, ValueError for what the format cannot hold, and RuntimeError, with
    nothing left behind, if the file predicts anything else than the model.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; give a new folder with --out, or remove it")
    predictor = load_predictor(
        model, torch.device("cpu"), batch_size=CHECK_BATCH, called=source.get("model", "")
    )
    saved = SavedModel(predictor.card, tuple(predictor.members))
    require_room(saved.members, form)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as staging:
        folder = Path(staging) / "export"
        folder.mkdir()
        file = folder / FILES[form]
        traced = trace(Program(saved).eval())
        write(traced, file, form, free_axes(predictor.card.preprocessing), about(predictor.card, source))
        seen = {
            "format": form, "file": file.name, "bytes": file.stat().st_size,
            **check(predictor, open_program(file, form), dataset),
        }  # fmt: skip
        write_whole(folder / "check.json", json.dumps(seen, indent=2) + "\n")
        folder.replace(out)
    return seen


def require_room(networks: Sequence[nn.Module], form: Format) -> None:
    """Raise ValueError for networks whose weights one file of the format cannot hold."""
    num_bytes = sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())
    if form == "onnx" and num_bytes > MAX_ONNX_BYTES:
        raise ValueError(
            f"the weights of the model take {num_bytes / 2**30:.1f} GiB, and one ONNX file holds less than 2: "
            "export it with --format torch"
        )


def trace(program: Program) -> ExportedProgram:
    """Trace a program, with the number of items and their size left open."""
    want = program.preprocessing
    if isinstance(want, ArrayPreprocessing):
        example = torch.zeros(2, want.channels, *(side + 3 + i for i, side in enumerate(want.stored)))
    else:
        sides = (want.stored_px + 3, want.stored_px + 5)
        example = torch.zeros(2, *sides, want.channels, dtype=torch.uint8)
    shapes = {axis: Dim(name, min=1) for axis, name in free_axes(want).items()}
    with torch.no_grad():
        return torch.export.export(program, (example,), dynamic_shapes=(shapes,), strict=False)


def free_axes(want: AnyPreprocessing) -> dict[int, str]:
    """The axes of the input whose lengths are left open, and their names."""
    if isinstance(want, ArrayPreprocessing):
        return {0: "batch", **dict(enumerate(AXES[len(want.stored)], 2))}
    return {0: "batch", 1: "height", 2: "width"}


def about(card: ModelCard, source: dict[str, str]) -> dict[str, str]:
    """What a file says of itself, as names and texts; what is no plain text is JSON."""
    want = card.preprocessing
    if isinstance(want, ArrayPreprocessing):
        shape = ", ".join(("batch", f"channels={want.channels}", *AXES[len(want.stored)]))
        rate = f"; sampled at {want.rate_hz:g} Hz" if want.rate_hz else ""
        rate += f"; voxels are cubes of {want.spacing_mm:g} mm" if want.spacing_mm else ""
        layout = f"float32 ({shape}), values as the file has them, without NaN, of any length{rate}"
    else:
        colours = "RGB" if want.channels == 3 else "grey"
        layout = f"uint8 (batch, height, width, channels={want.channels}), {colours}, upright, of any size"
    versions = {name: metadata.version(name) for name in ("torch", "onnx", "onnxscript")}
    return {
        "input": f"{INPUT}: {layout}",
        "output": f"{OUTPUT}: float32 (batch, classes={len(card.classes)}), each row sums to 1",
        "classes": json.dumps(card.classes, ensure_ascii=False),
        "card": json.dumps(card.model_dump(mode="json"), ensure_ascii=False),
        "versions": json.dumps({**versions, "opset": OPSET}),
        **source,
    }


def write(
    traced: ExportedProgram, file: Path, form: Format, names: dict[int, str], said: dict[str, str]
) -> None:
    """Write a trace in a format, with `names` for the input's open axes and `said` as the file's metadata."""
    if form == "torch":
        torch.export.save(traced, file, extra_files={METADATA_FILE: json.dumps(said, ensure_ascii=False)})
        return
    with quiet_exporter():
        program = torch.onnx.export(
            traced, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=(names,), verbose=False,
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(said)
    program.save(file, external_data=False)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without what torch's exporter says of itself: of torchvision, which we do not use, and of its own old calls."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            yield
    finally:
        logger.setLevel(before)


def open_program(file: Path, form: Format) -> Run:
    """Read a file back, on the CPU, with as many threads as torch has. Only files that were written here are read."""
    if form == "torch":
        module = torch.export.load(file).module()

        def run_torch(items: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return np.asarray(module(torch.from_numpy(items)))

        return run_torch
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda items: np.asarray(session.run([OUTPUT], {INPUT: items})[0])
