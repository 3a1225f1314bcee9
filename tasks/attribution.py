"""Why a classifier predicts a class for a picture: Grad-CAM and occlusion, as maps over the picture.

    ./convoy explain prediction models:/classifier-products@champion photo.jpg --method occlusion

Both look at the picture by the view `single`. Grad-CAM says where a layer found what speaks for the class; occlusion
measures how far the class's probability falls where the picture is covered with the mean colour.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.files import write_whole
from models.units import grad_cam, occlusion
from tasks import page
from tasks.figures import save_sheets, title
from tasks.inputs import crop_values
from tasks.predict import PASS_MB, default_device
from tasks.subject import Subject
from tasks.temperature import with_temperature
from tasks.unitviews import network_input

Method = Literal["gradcam", "occlusion"]
FOR, AGAINST = (213, 94, 0), (0, 114, 178)  # Okabe and Ito's vermillion and blue
STRONGEST = 0.75  # opacity of what counts most
NUM_LIKELY = 3
SHOWN_PX = 224  # side of a shown picture, at least
SHEET_COLUMNS = 3
CELL_IN = 2.3


@dataclass(frozen=True)
class Attribution:
    """What speaks for a class in a picture."""

    name: str
    label: str  # the class
    probability: float
    likely: tuple[tuple[str, float], ...]  # the most probable classes
    picture: np.ndarray  # (C, c, c) uint8, as the network saw it
    heat: np.ndarray  # (c, c) float32; Grad-CAM: 0…1, occlusion: falls of the probability

    @property
    def peak_xy(self) -> tuple[int, int]:
        """Where it is highest, in pixels of the picture as the network saw it."""
        row, column = divmod(int(self.heat.argmax()), self.heat.shape[1])
        return column, row


@torch.no_grad()  # not inference_mode: a network that is moved to a GPU in it has no gradients afterwards
def probabilities(subject: Subject, pictures: Tensor) -> Tensor:
    """(B, C, c, c) uint8 → (B, K) float32, as prediction has them by the view `single`."""
    network, device = subject.classifier.to(default_device()), default_device()
    size = max(1, int(PASS_MB * 2**18 / crop_values(subject.preprocessing)))
    parts = [network(part.to(device)).float().softmax(1).cpu() for part in pictures.split(size)]
    return with_temperature(torch.cat(parts), subject.temperature)


def class_numbers(subject: Subject, chances: Tensor, label: str | None) -> Tensor:
    """The class that is explained of each picture: the one asked for, else the most probable; (B,) int64."""
    if label is None:
        return chances.argmax(1)
    if label not in subject.classes:
        raise ValueError(f"class {label!r} is not known; the model knows {', '.join(subject.classes)}")
    return torch.full((len(chances),), subject.classes.index(label))


def attribute(
    subject: Subject,
    names: Sequence[str],
    blobs: Sequence[bytes],
    *,
    method: Method,
    layer: str | None,
    label: str | None = None,
    window_px: int = 0,
    stride_px: int = 0,
) -> list[Attribution]:
    """Explain encoded pictures.

    `layer` is Grad-CAM's, None: the last map; window and stride are occlusion's, 0: a quarter of the side and of the
    window. Raises ValueError for a class or window that does not fit, DecodeError for a picture that cannot be read.
    """
    pictures = network_input(blobs, subject)
    chances = probabilities(subject, pictures)
    classes = class_numbers(subject, chances, label)
    if method == "gradcam":
        heats = cam_heats(subject, layer, pictures, classes)
    else:
        heats = occlusion_heats(subject, pictures, classes, window_px, stride_px)
    found = []
    for i, name in enumerate(names):
        values, numbers = (each[:NUM_LIKELY] for each in chances[i].sort(descending=True, stable=True))
        likely = [(subject.classes[n], v) for n, v in zip(numbers.tolist(), values.tolist(), strict=True)]
        own = int(classes[i])
        found.append(
            Attribution(
                name,
                subject.classes[own],
                float(chances[i, own]),
                tuple(likely),
                pictures[i].numpy(),
                heats[i],
            )
        )
    return found


def cam_heats(subject: Subject, layer: str | None, pictures: Tensor, classes: Tensor) -> list[np.ndarray]:
    """Grad-CAM over the pictures, each by its own maximum: (c, c) in 0…1; all 0 where nothing speaks for the class."""
    network, device = subject.classifier.to(default_device()), default_device()
    size = max(1, int(PASS_MB * 2**18 / crop_values(subject.preprocessing)))
    heats = []
    for part, own in zip(pictures.split(size), classes.split(size), strict=True):
        maps = grad_cam(network.net, layer, network.normalise(part.to(device)), own.to(device)).cpu()
        large = F.interpolate(maps[:, None], size=pictures.shape[2:], mode="bilinear", align_corners=False)[
            :, 0
        ]
        highest = large.amax(dim=(1, 2), keepdim=True)
        heats += list((large / torch.where(highest > 0, highest, 1)).numpy())
    return heats


def occlusion_heats(
    subject: Subject, pictures: Tensor, classes: Tensor, window_px: int, stride_px: int
) -> list[np.ndarray]:
    """Falls of the probability over each picture, (c, c)."""
    side = pictures.shape[-1]
    window = window_px or max(1, side // 4)
    stride = stride_px or max(1, window // 4)
    fill = (255 * subject.classifier.mean.flatten()).round().cpu()
    size = max(1, int(PASS_MB * 2**18 / crop_values(subject.preprocessing)))
    return [
        occlusion(
            lambda hidden, own=own: probabilities(subject, hidden)[:, own],  # type: ignore[misc]
            picture, fill, window, stride, size,
        ).numpy()
        for picture, own in zip(pictures, classes.tolist(), strict=True)
    ]  # fmt: skip


def overlay(found: Attribution) -> np.ndarray:
    """The picture in light grey, with what speaks for the class in vermillion and what speaks against it in blue:
    (h, w, 3) uint8, the more the less transparent."""
    grey = enlarged(found.picture).astype(np.float32).mean(2, keepdims=True).repeat(3, 2)
    ground = 255 - 0.75 * (255 - grey)
    highest = float(np.abs(found.heat).max())
    share = found.heat / highest if highest else found.heat
    times = grey.shape[0] // share.shape[0]
    share = share.repeat(times, 0).repeat(times, 1)[..., None]
    colour = np.where(share > 0, np.array(FOR), np.array(AGAINST))
    alpha = STRONGEST * np.abs(share)
    return np.asarray((ground * (1 - alpha) + colour * alpha).round().clip(0, 255), np.uint8)


def enlarged(picture: np.ndarray) -> np.ndarray:
    """(C, c, c) uint8 → (h, w, 3), small ones pixel by pixel by a whole number of times."""
    times = max(1, -(-SHOWN_PX // picture.shape[1]) if picture.shape[1] < SHOWN_PX // 2 else 1)
    array = picture.transpose(1, 2, 0)
    array = array.repeat(3, 2) if array.shape[2] == 1 else array
    return array.repeat(times, 0).repeat(times, 1)


def caption(found: Attribution) -> list[str]:
    """Whose picture, the class and its probability, and what else is likely."""
    others = [
        f"{name} {chance:.2f}" for name, chance in found.likely if name != found.label and chance >= 0.005
    ]
    return [found.name.rpartition("/")[2], f"{found.label} {found.probability:.3f}", ", ".join(others)]


def legend(method: Method, found: Sequence[Attribution]) -> str:
    """What the colours mean."""
    if method == "gradcam":
        return "Grad-CAM: the stronger the orange, the more the layer found there that speaks for the class"
    least, most = min(each.heat.min() for each in found), max(each.heat.max() for each in found)
    return (
        "occlusion: where covering the picture lowers the class's probability orange, where it raises it blue; "
        f"changes by {-most:+.3f} to {-least:+.3f}"
    )


def write_sheets(folder: Path, found: Sequence[Attribution], method: Method, what: str) -> list[Path]:
    """Write picture and map of each as PNGs, prediction.png and on."""
    meaning = legend(method, found)
    return save_sheets(folder, "prediction", len(found), lambda part: sheet(found[part], meaning, what))


def sheet(found: Sequence[Attribution], meaning: str, what: str) -> Figure:
    """Picture and map of each; `meaning` of the colours."""
    num_columns = min(SHEET_COLUMNS, len(found))
    num_rows = -(-len(found) // num_columns)
    size = (max(2 * num_columns * CELL_IN, 5), num_rows * (CELL_IN + 0.3) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_rows, 2 * num_columns, squeeze=False)
    for each in axes.flat:
        each.axis("off")
    for number, each in enumerate(found):
        row, column = divmod(number, num_columns)
        left, right = axes[row, 2 * column], axes[row, 2 * column + 1]
        left.imshow(enlarged(each.picture))
        right.imshow(overlay(each))
        lines = caption(each)
        left.set_title(lines[0][:34], fontsize=8, loc="left", parse_math=False)
        right.set_title(f"{lines[1]}\n{lines[2]}"[:80], fontsize=8, loc="left", parse_math=False)
    title(figure, what, meaning)
    return figure


def write_page(file: Path, found: Sequence[Attribution], method: Method, what: str) -> None:
    """Write picture and map of each as one HTML page."""
    tiles = []
    for each in found:
        seen, covered = (as_png(array) for array in (enlarged(each.picture), overlay(each)))
        lines = caption(each)
        cells = [
            page.picture(seen, lines[:1], each.name, longest_px=SHOWN_PX),
            page.picture(covered, lines[1:], each.name, longest_px=SHOWN_PX),
        ]
        tiles.append(page.tile(cells))
    write_whole(file, page.document(
        what, page.heading(what, legend(method, found)),
        f'<div class="tiles">{"".join(tiles)}</div>',
    ))  # fmt: skip


def as_png(array: np.ndarray) -> bytes:
    """(h, w, 3) uint8 as an encoded picture."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
