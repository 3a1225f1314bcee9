"""`./convoy edges`: what the edge filters of a first course see in a picture."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from models.filters import FILTERS, Padding
from pipelines.options import Json
from pipelines.render import emit, table
from tasks.edges import write_edges


def edges(
    photo: str,
    /,
    *,
    filters: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    padding: Padding = "valid",
    stride: int = 1,
    true_convolution: Annotated[bool, Parameter(name="--true-convolution", negative=())] = False,
    out: Path = Path("edges"),
    as_json: Json = False,
) -> None:
    """Write the edge maps of a picture: middle grey is no edge, bright and dark are edges of either direction.

    Example: ./convoy edges photo.jpg --filters sobel_vertical sobel_horizontal

    Parameters
    ----------
    photo
        A picture, or a photograph that scikit-image ships (skimage:astronaut); its grey levels are filtered.
    filters
        Names of filters: vertical, horizontal, sobel_vertical, sobel_horizontal, scharr_vertical, scharr_horizontal;
        otherwise all. Of both of a pair the magnitude is written, too: sobel_magnitude, scharr_magnitude, which may
        also be named alone.
    padding
        valid: only where the filter fits; same: zeros around the picture, so that the map is as large.
    stride
        Pixels from one place of the filter to the next.
    true_convolution
        Turn the filters by 180° first, as mathematics does: edges change their sign.
    out
        Folder for the pictures; edges.png shows them all.
    """
    written = write_edges(photo, out, filters or list(FILTERS), padding, stride, true_convolution)
    rows = [(name, str(file)) for name, file in written.items()]
    document = {"photo": photo, "padding": padding, "stride": stride, "files": dict(rows)}
    emit(document, [table(f"Edges of {Path(photo).name}", ("filter", "file"), rows)], as_json)
