"""From pictures to class probabilities: the one path that evaluation, the command line and serving share.

What it computes in is float32 unless asked otherwise, so that the same picture gets the same numbers on machines
with and without bfloat16. Beside which neighbours a picture is predicted changes its probabilities by rounding
only, since matrix kernels differ with the batch's size: by 1.5e-6 at most in the networks tried on a CPU; the
tests allow 1e-5.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from tasks.card import ModelCard
from tasks.inputs import crop_values, decode_readable, decoded_bytes, decoded_shape, decoded_type, type_name
from tasks.modelfile import SavedModel, load_model
from tasks.precision import predicting, resolve_precision
from tasks.settings import Precision, ViewName
from tasks.temperature import with_temperature
from tasks.views import NUM_CROPS, VIEWS, crops_of, require_view, view_named

CLASSIFYING = ("classification", "signals", "volumes")  # families whose models give probabilities of classes
BATCH_SIZE = 256  # crops a forward pass
# of crops as float32 a forward pass, on a CPU. Activations are some times as large, and from 32 MiB on glibc maps fresh
# pages for each tensor: ten crops of 224 px in passes of 160 took 14 to 20 times as long as one, and now 8 to 10.
PASS_MB = 4
DECODED_MB = 64  # of pictures that wait, decoded, for their forward passes

PREDICTION_SCHEMA = pa.schema(
    [
        ("label", pa.string()),  # name of the most probable class; null where there is an error
        ("confidence", pa.float32()),  # its probability
        ("probabilities", pa.list_(pa.float32())),  # (K,) in the order of the model's classes
        ("error", pa.string()),  # why the image could not be read; null where it could
    ]
)


class Scorer(nn.Module):
    """What tensors go through in prediction: crops, networks, softmax, and the mean; exports are traced from it."""

    def __init__(self, card: ModelCard, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.card = card
        self.crops_per_pass = 0  # 0: all at once, as a trace needs it
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor, view: ViewName) -> Tensor:
        """Decoded items (B, C, T, T) uint8, or arrays of float32 → (B, K) float32."""
        B = images.shape[0]  # len() would fix the size in a trace
        crops, weights = crops_of(images, view, self.card.preprocessing)
        inputs = crops.flatten(0, 1)  # (V * B, C, c, c)
        total = torch.zeros(B, len(self.card.classes), device=images.device)
        for member in self.members:
            passes = inputs.split(self.crops_per_pass) if self.crops_per_pass else (inputs,)
            logits = torch.cat([member(part) for part in passes]) if len(passes) > 1 else member(passes[0])
            softmax = logits.float().softmax(1).unflatten(0, (len(weights), B))  # (V, B, K)
            total += (weights.to(images.device)[:, None, None] * softmax).sum(0)
        return total / len(self.members)


class Predictor:
    """A saved model on a device: networks, preprocessing, class names, and the view it was registered with."""

    def __init__(
        self,
        saved: SavedModel,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Move the networks to `device` (None: the first GPU, else the CPU); raises ValueError for an odd card."""
        self.card = saved.card
        self.device = device if device is not None else default_device()
        self.dtype = resolve_precision(precision, self.device)
        self.view = view_named(saved.card.views, VIEWS)
        self.batch_size = batch_size
        self.scorer = Scorer(saved.card, saved.members).eval().to(self.device)
        if self.device.type == "cpu":
            self.scorer.crops_per_pass = max(1, int(PASS_MB * 2**18 / crop_values(saved.card.preprocessing)))
        self.members = list(self.scorer.members)

    def temperature(self, view: ViewName) -> float:
        """What calibrates the view: the card's, if it is the one that it was fitted for; of others nothing is known."""
        return self.card.temperature if view == self.view else 1.0

    def probabilities(self, images: Tensor, view: ViewName | None = None) -> Tensor:
        """What the model predicts, (B, K): `uncalibrated`, by the temperature of the view."""
        name = view or self.view
        return with_temperature(self.uncalibrated(images, name), self.temperature(name))

    @torch.inference_mode()
    def uncalibrated(self, images: Tensor, view: ViewName) -> Tensor:
        """Softmax outputs, averaged over the crops of the view and over the members.

        `images` (B, C, T, T) uint8, T as the card's `stored_px`, on any device. Returns (B, K) float32 on
        the CPU. No forward pass sees more than `batch_size` crops, unless one picture has more.
        """
        shape, dtype = decoded_shape(self.card.preprocessing), decoded_type(self.card.preprocessing)
        if images.shape[1:] != shape or images.dtype != dtype:
            wanted = ", ".join(map(str, ("B", *shape)))
            raise ValueError(
                f"images must be ({wanted}) {type_name(dtype)}, got {tuple(images.shape)} {images.dtype}"
            )
        require_view(view, self.card.preprocessing)
        chunks = images.split(self.images_per_pass(view)) if len(images) else ()
        pieces = [self._forward(chunk, view) for chunk in chunks]
        return torch.cat([*pieces, torch.empty(0, len(self.card.classes))])

    def images_per_pass(self, view: ViewName) -> int:
        """Images whose crops share a forward pass."""
        return max(1, self.batch_size // NUM_CROPS[view])

    def _forward(self, images: Tensor, view: ViewName) -> Tensor:
        """One chunk: (B, C, T, T) uint8 → (B, K) float32 on the CPU."""
        with predicting(self.device, self.dtype):
            return self.scorer(images.to(self.device), view).cpu()

    def predict(self, blobs: Sequence[bytes], view: ViewName | None = None) -> pa.Table:
        """Predict encoded images: a table of `PREDICTION_SCHEMA`, one row each and in their order.

        An image that cannot be read gives a row with the reason in `error` and nulls beside it.
        """
        step = max(1, DECODED_MB * 2**20 // decoded_bytes(self.card.preprocessing))
        tables = [
            self._predict_piece(blobs[start : start + step], view) for start in range(0, len(blobs), step)
        ]
        return pa.concat_tables([PREDICTION_SCHEMA.empty_table(), *tables])

    def _predict_piece(self, blobs: Sequence[bytes], view: ViewName | None) -> pa.Table:
        images, errors = self.decode(blobs)
        probabilities = self.probabilities(torch.from_numpy(images), view).numpy()
        best = probabilities.argmax(axis=1)
        rows = iter(zip(best, probabilities, strict=True))
        labels: list[str | None] = []
        confidences: list[float | None] = []
        outputs: list[np.ndarray | None] = []
        for error in errors:
            index, row = next(rows) if error is None else (None, None)
            labels.append(None if index is None else self.card.classes[index])
            confidences.append(None if row is None else row[index])
            outputs.append(row)
        return pa.table([labels, confidences, outputs, errors], schema=PREDICTION_SCHEMA)

    def decode(self, blobs: Sequence[bytes]) -> tuple[np.ndarray, list[str | None]]:
        """Decode as the training data was; see tasks.inputs.decode_readable."""
        return decode_readable(blobs, self.card.preprocessing)


def load_predictor(
    folder: Path,
    device: torch.device | None = None,
    precision: Precision = "fp32",
    batch_size: int = BATCH_SIZE,
    called: str = "",
) -> Predictor:
    """Read the classifier in `folder`, which a person `called` so where that is given.

    Raises FileNotFoundError or ValueError where there is none that can be read.
    """
    saved = load_model(folder)
    if saved.card.family not in CLASSIFYING:
        raise ValueError(
            f"{called or folder} is a model for {saved.card.family}, which gives no probabilities of classes; give one "
            f"for {', '.join(CLASSIFYING)}"
        )
    return Predictor(saved, device, precision, batch_size)


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """A saved network of pictures, ready to predict on a device."""
    ready: nn.Module = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ready


def machine_of(device: torch.device) -> str:
    """What computes there, for a report."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads"
