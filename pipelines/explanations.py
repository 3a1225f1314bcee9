"""What `./convoy explain prediction` does once its words are understood: no engine is needed for it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from data.decode import DecodeError, decode_image
from models.units import named_layers
from pipelines.imagefiles import find_images, require_there
from tasks.attribution import Attribution, Method, attribute, write_page, write_sheets
from tasks.folders import IMAGE_SUFFIXES
from tasks.subject import Subject, open_subject


def explain_pictures(
    model: str,
    images: tuple[Path, ...],
    method: str,
    layer: str | None,
    label: str | None,
    window_stride: tuple[int, int],
    network: str | None,
    px: int | None,
    class_names: Sequence[str],
    out: Path,
) -> dict[str, Any]:
    """Explain the predictions of files, and write prediction.png and prediction.html to `out`; what was found.

    Raises ValueError or FileNotFoundError for what does not fit; a file that cannot be read is told of in its row.
    """
    chosen = method_named(method)
    if chosen == "gradcam" and any(window_stride):
        raise ValueError("--window and --stride are of occlusion: give --method occlusion, or leave them out")
    if chosen == "occlusion" and layer:
        raise ValueError(f"--layer (={layer}) is of Grad-CAM: occlusion looks at no layer")
    require_there(images)
    files = find_images(images, IMAGE_SUFFIXES)
    subject = open_subject(model, network, px, class_names)
    name = layer_of(subject, layer) if layer else None
    blobs, errors = readable_files(files)
    window, stride = window_stride
    found = attribute(
        subject, [str(file) for file in blobs], list(blobs.values()), method=chosen, layer=name, label=label,
        window_px=window, stride_px=stride,
    ) if blobs else []  # fmt: skip
    written = write_out(out, found, chosen, f"{subject.architecture}, {model}") if found else []
    rows = {each.name: row_of(each) for each in found}
    return {
        "model": model,
        "method": chosen,
        "layer": name,
        "explanations": [
            {"image": str(file), **rows.get(str(file), EMPTY), "error": errors.get(file)} for file in files
        ],
        "files": written,
    }


EMPTY: dict[str, Any] = {"class": None, "probability": None, "strongest_at": None}


def method_named(name: str) -> Method:
    """Check a method's name; raises ValueError."""
    for known in get_args(Method):
        if name == known:
            return known
    raise ValueError(f"--method (={name}) must be {' or '.join(get_args(Method))}")


def layer_of(subject: Subject, layer: str) -> str:
    """The module whose map Grad-CAM shows; raises ValueError for one that is not there, or has one place at most."""
    layers = subject.fields()
    [name] = named_layers(subject.classifier.net, [layer], list(layers), subject.architecture)
    if math.prod(layers[name].shape[1:]) < 2:  # SqueezeNet's head gives maps of one place
        raise ValueError(
            f"layer {layer} has no places: Grad-CAM needs a map of several; leave --layer out for the last one"
        )
    return name


def readable_files(files: list[Path]) -> tuple[dict[Path, bytes], dict[Path, str]]:
    """The contents of those that are pictures, and why the others are not."""
    blobs: dict[Path, bytes] = {}
    errors: dict[Path, str] = {}
    for file in files:
        try:
            blob = file.read_bytes()
            decode_image(blob, channels=3)
            blobs[file] = blob
        except OSError as error:
            errors[file] = f"cannot be read: {error.strerror or error}"
        except DecodeError as error:
            errors[file] = str(error)
    return blobs, errors


def row_of(found: Attribution) -> dict[str, Any]:
    """One picture's explanation as plain values."""
    return {"class": found.label, "probability": found.probability, "strongest_at": found.peak_xy}


def write_out(out: Path, found: list[Attribution], method: Method, what: str) -> list[Path]:
    """The sheets and the page."""
    out.mkdir(parents=True, exist_ok=True)
    page = out / "prediction.html"
    write_page(page, found, method, what)
    return [*write_sheets(out, found, method, what), page]
