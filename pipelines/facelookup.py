"""What `./convoy faces verify` and `recognise` do: faces of pictures, looked up in a gallery."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.gallerynotes import document_of, note_if_behind, people_in
from pipelines.imagefiles import find_images, require_there
from pipelines.render import emit, table
from tasks import registry
from tasks.facereading import Face, FaceReader, Threshold, read_photos, reader_of
from tasks.folders import IMAGE_SUFFIXES
from tasks.gallery import Gallery
from tasks.gallerynames import open_gallery
from tasks.gallerystore import Recognition
from tasks.identification import templates
from tasks.livenessmodel import LivenessCheck, open_liveness
from tasks.verification import ENOUGH_ERRORS


@dataclass(frozen=True)
class Row:
    """A face that was looked up."""

    images: tuple[str, ...]  # one; several that were looked up together
    box_xyxy: tuple[float, ...] | None  # where it is on its picture
    found: Recognition
    looser: Threshold | None  # the strictest that would name the nearest, where `found` is nobody


def verify(
    image: Path,
    name: str,
    gallery: str,
    false_accept_rate: float | None,
    liveness: str | None,
    as_json: bool,
) -> None:
    """Judge a claim, and print the verdict."""
    check = liveness_check(liveness)
    with open_gallery(gallery) as opened:
        reader = reader_of(opened.embedder)
        limit = reader.threshold(false_accept_rate)
        vector = reader.embed([one_face(reader, image, check)])[0]
        found = opened.verify(name, vector, limit.distance, reader.embedder)
    looser = reader.looser(limit, found.distance)
    note_if_behind(gallery, reader.embedder)
    document = {
        "image": image, "name": name, "gallery": gallery, "same": found.same, "distance": found.distance,
        **limit_document(limit), "passes_at": rate_of(looser), **liveness_document(liveness, check),
        "embedder": document_of(reader.embedder),
    }  # fmt: skip
    verdict = "the same" if found.same else "not the same"
    told = f"{verdict}: {image} is {found.distance:.3f} from {name}; {describe_limit(limit)}"
    if looser is not None:
        told += f"; it would pass at {describe_rate(looser)}, up to {looser.distance:.3f}"
    emit(document, [told], as_json)


def recognise(
    images: tuple[Path, ...],
    together: bool,
    gallery: str,
    false_accept_rate: float | None,
    liveness: str | None,
    as_json: bool,
) -> int:
    """Look up the faces of pictures, and print who they are; 1 where a picture was left out."""
    names, photos, left_out = read_pictures(images)
    check = liveness_check(liveness)
    with open_gallery(gallery) as opened:
        reader = reader_of(opened.embedder)
        limit = reader.threshold(false_accept_rate)
        photos, spoofs = real_photos(photos, check)
        faces, faceless = read_photos(photos, reader.only_face if together else reader.faces)
        left_out = {**left_out, **spoofs, **faceless}
        left_out = {name: left_out[name] for name in names if name in left_out}
        rows = recognised(opened, reader, faces, limit, together)
        num_people = len(opened)
    note_if_behind(gallery, reader.embedder)
    found = [{"image": list(row.images) if together else row.images[0], **row_document(row)} for row in rows]
    document = {
        "gallery": gallery, "people": num_people, **limit_document(limit), **liveness_document(liveness, check),
        "embedder": document_of(reader.embedder), "faces": found, "left_out": left_out,
    }  # fmt: skip
    title = f"{people_in(gallery, num_people)}; {describe_limit(limit)}"
    lines = lines_of(names, rows, left_out)
    emit(document, [title, table("", ("image", "who", "distance", "note"), lines)], as_json)
    return int(bool(left_out))


def read_pictures(paths: tuple[Path, ...]) -> tuple[list[str], list[tuple[str, bytes]], dict[str, str]]:
    """The names of files in the order in which they are given, what is in them, and why others cannot be read.

    A folder without pictures counts as such a file. Raises as `require_there`, and ValueError where there is no file.
    """
    require_there(paths)
    names: dict[str, None] = {}
    photos: list[tuple[str, bytes]] = []
    faults: dict[str, str] = {}
    num_files = 0
    for path in paths:
        try:
            files = find_images((path,), IMAGE_SUFFIXES)
        except ValueError as error:
            names[str(path)], faults[str(path)] = None, str(error)
            continue
        num_files += len(files)
        for file in files:
            names[str(file)] = None
            try:
                photos.append((str(file), file.read_bytes()))
            except OSError as error:
                faults[str(file)] = f"cannot be read: {error.strerror or error}"
    if not num_files:
        raise ValueError(next(iter(faults.values())))
    return list(names), photos, faults


def row_document(row: Row) -> dict[str, Any]:
    """A face, for a document: `name` is None where it is not recognised."""
    found = row.found
    nearest = asdict(found.nearest) if found.nearest else {"name": None, "distance": None}
    return {
        "box_xyxy": row.box_xyxy,
        "name": found.name,
        "nearest": nearest["name"],
        "distance": nearest["distance"],
        "passes_at": rate_of(row.looser),
    }


def lines_of(names: list[str], rows: list[Row], left_out: dict[str, str]) -> list[tuple[Any, ...]]:
    """A line a face, and one for each picture without, in the order of the pictures."""
    lines: dict[str, list[tuple[Any, ...]]] = {name: [] for name in names}
    for row in rows:
        nearest, name = row.found.nearest, row.found.name
        notes = [f"nearest: {nearest.name}"] if nearest and name is None else []
        if row.looser is not None:
            notes.append(f"would pass at {describe_rate(row.looser)}")
        if row.box_xyxy is not None:
            notes.append("face at " + ", ".join(f"{edge:.0f}" for edge in row.box_xyxy))
        image = row.images[0] if len(row.images) == 1 else f"{len(row.images):,} pictures"
        distance = nearest.distance if nearest else None
        lines[row.images[0]].append((image, name or "not recognised", distance, "; ".join(notes)))
    for name, reason in left_out.items():
        lines[name].append((name, None, None, reason))
    return [line for name in names for line in lines[name]]


def recognised(
    gallery: Gallery, reader: FaceReader, faces: list[tuple[str, Face]], limit: Threshold, together: bool
) -> list[Row]:
    """Who each face is, or all of them together."""
    if not faces:
        return []
    shown: list[tuple[tuple[str, ...], tuple[float, ...] | None]]
    shown = [((name,), face.box_xyxy) for name, face in faces]
    vectors = reader.embed([face for _, face in faces])
    if together:
        shown = [(tuple(name for name, _ in faces), None)]
        vectors, _ = templates(vectors, [""] * len(vectors))
    found = gallery.recognise(vectors, limit.distance, reader.embedder)
    return [
        Row(images, box, each, reader.looser(limit, each.nearest.distance) if each.nearest else None)
        for (images, box), each in zip(shown, found, strict=True)
    ]


def one_face(reader: FaceReader, image: Path, check: LivenessCheck | None = None) -> Face:
    """The face of a file; raises ValueError that names the file, also of what `check` judges a spoof."""
    photo = image.read_bytes()  # once: what is judged is what is embedded
    _, spoofs = real_photos([(str(image), photo)], check)
    if spoofs:
        raise ValueError(f"{image}: {spoofs[str(image)]}")
    try:
        return reader.face(photo)
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from None


def liveness_check(model: str | None) -> LivenessCheck | None:
    """The check that `--liveness` names; raises as `open_liveness`."""
    return None if model is None else open_liveness(registry.resolve_model(model), model)


def real_photos(
    photos: list[tuple[str, bytes]], check: LivenessCheck | None
) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    """Photographs by their names that `check` judges real, and why others are refused; all of them without a check."""
    if check is None or not photos:
        return photos, {}
    judged = list(zip(photos, check.look([photo for _, photo in photos]).faults, strict=True))
    spoofs = {name: fault for (name, _), fault in judged if fault is not None}
    return [each for each, fault in judged if fault is None], spoofs


def limit_document(limit: Threshold) -> dict[str, Any]:
    return {
        "threshold": limit.distance,
        "false_accept_rate": limit.false_accept_rate,
        "told_by_few": limit.told_by_few,
    }


def rate_of(limit: Threshold | None) -> float | None:
    return None if limit is None else limit.false_accept_rate


def liveness_document(model: str | None, check: LivenessCheck | None) -> dict[str, Any]:
    """Of `--liveness`; nothing where it was not asked for."""
    return {} if check is None else {"liveness": {"model": model, "threshold": check.threshold}}


def describe_limit(limit: Threshold) -> str:
    return f"the same up to {limit.distance:.3f} ({describe_rate(limit)})"


def describe_rate(limit: Threshold) -> str:
    """`false-accept rate 0.01`, and whether it is well known."""
    few = f", which rests on fewer than {ENOUGH_ERRORS} false accepts" if limit.told_by_few else ""
    return f"false-accept rate {limit.false_accept_rate:g}{few}"
