"""`./convoy align`: faces found and brought to one place, a folder at a time."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data.aligned import Choice, FaceAlignment, Method, Template
from data.counting import counted
from pipelines.options import Json
from pipelines.render import emit, table
from tasks.facealign import open_aligner
from tasks.facefolder import align_folder

MAX_SHOWN = 10  # pictures without a face; left_out.json has all


def align(
    source: Path,
    out: Path,
    /,
    *,
    method: Method = "mtcnn",
    weights: str = "",
    side_px: int = 112,
    template: Template = "arcface",
    margin: float = 0.0,
    crop: Annotated[tuple[int, int, int, int] | None, Parameter(negative=())] = None,
    face: Choice = "largest",
    min_face_px: int = 20,
    min_score: float = 0.9,
    as_json: Json = False,
) -> None:
    """Write the face of each picture of a folder or an archive, aligned, with the same names and lists.

    Example: ./convoy align photos/ aligned/ --weights package:facenet_pytorch

    Parameters
    ----------
    source
        A folder or an archive of pictures; lists beside them (.txt, .csv) are copied.
    out
        A new folder.
    method
        mtcnn: find faces and five points; landmarks68: 68 points of a face that fills the picture; crop: a fixed box;
        none: the central square.
    weights
        Of mtcnn: package:facenet_pytorch, a folder of pnet.pt, rnet.pt and onet.pt, or a file; of landmarks68: a file.
    side_px
        Side of the squares.
    template
        Where five points are moved to: arcface, as most embedders want it; dlib, with --margin 0.25.
    margin
        Seen beyond each edge of the template, as a share of its side.
    crop
        Left, top, right and bottom of the box, of crop and landmarks68.
    face
        Of several faces: only is an error, largest, central.
    min_face_px
        Smaller faces are not looked for.
    min_score
        Least score of a face.
    """
    config = FaceAlignment.parse(
        {
            "method": method, "side_px": side_px, "crop_xyxy": crop, "template": template, "margin": margin,
            "face": face, "min_face_px": min_face_px, "min_score": min_score, "weights": weights,
        },
        "",
    )  # fmt: skip
    aligner = open_aligner(config)
    written = align_folder(source, out, aligner)
    lost = list(written.left_out.items())
    told = f"{counted(written.num_faces, 'face')} in {out}, {counted(len(lost), 'picture')} without"
    views = [table("Left out", ("picture", "why"), lost[:MAX_SHOWN])] if lost else []
    document = {
        "out": out,
        "faces": written.num_faces,
        "left_out": written.left_out,
        "lists": written.lists,
        "alignment": aligner.config.model_dump(),
    }
    emit(document, [*views, told], as_json)
