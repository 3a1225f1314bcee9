"""A folder of people made a folder of aligned faces: the same names, the same lists and pairs beside them."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from data import aligned
from data.archive import FileTree, open_tree
from data.decode import DecodeError
from data.files import whole_folder
from data.formats.listing import IMAGE_ENDINGS
from tasks.facealign import Aligner, FaceError

LISTS = (".txt", ".csv")
MAX_LIST_BYTES = 64 << 20


@dataclass(frozen=True)
class AlignedFolder:
    """What was written, and why other pictures were left out."""

    num_faces: int
    left_out: dict[str, str]  # picture -> reason
    lists: tuple[str, ...]  # copied as they are


def align_folder(source: Path, out: Path, aligner: Aligner, max_source_gb: float = 10) -> AlignedFolder:
    """Write the folder `out` from a folder or archive, whole or not at all: a PNG for each picture with a face.

    Names stay but for their ending, so that lists of people and of pairs still fit. `alignment.json` says how
    (data/aligned.py). Raises ValueError where something is at `out`, FileNotFoundError or ValueError for a source that
    cannot be read or has no face.
    """
    with whole_folder(out) as folder:
        with open_tree(source, spool=folder, max_total_bytes=int(max_source_gb * 10**9)) as tree:
            written = _write(tree, folder, aligner)
        (folder / aligned.FILE).write_text(aligner.config.model_dump_json(indent=2) + "\n")
        (folder / "left_out.json").write_text(json.dumps(written.left_out, indent=2) + "\n")
    return written


def _write(tree: FileTree, folder: Path, aligner: Aligner) -> AlignedFolder:
    left_out: dict[str, str] = {}
    lists: list[str] = []
    num_faces = 0
    for name, size in tree.sizes.items():
        file = folder / name
        if name.lower().endswith(LISTS) and size <= MAX_LIST_BYTES:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tree.read(name))
            lists.append(name)
        elif name.lower().endswith(IMAGE_ENDINGS):
            try:
                face = aligner.face(tree.read(name))
            except (DecodeError, FaceError) as error:
                left_out[name] = str(error)
                continue
            file = folder / PurePosixPath(name).with_suffix(".png")
            if file.exists():
                raise ValueError(f"{tree.name}: {name} is there twice, with different endings; rename one")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(face.permute(1, 2, 0).contiguous().numpy()).save(file)
            num_faces += 1
    if not num_faces:
        if not left_out:
            raise ValueError(f"{tree.name} has no pictures, of {' '.join(sorted(IMAGE_ENDINGS))}")
        raise ValueError(f"{tree.name}: no face in {len(left_out)} pictures: {next(iter(left_out.values()))}")
    return AlignedFolder(num_faces, left_out, tuple(lists))
