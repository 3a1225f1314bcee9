"""`./convoy faces`: people enrolled by their pictures, verified and recognised on others."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from data import aligned
from data.aligned import FaceAlignment
from data.archive import open_tree
from data.files import scratch
from pipelines.commands_predict import find_images
from pipelines.options import Json
from pipelines.render import ConsoleReporter, emit, table
from pipelines.reporting import progress_of
from tasks import registry
from tasks.enrolment import (
    DEFAULT_GALLERY,
    EnrolledTree,
    bind,
    champion_instead,
    enrol_files,
    enrol_tree,
    open_gallery,
)
from tasks.facereading import Face, FaceReader, Threshold, describe_embedder, read_photos, reader_of, uri_of
from tasks.folders import IMAGE_SUFFIXES
from tasks.gallery import Gallery
from tasks.gallerystore import Embedder, Enrolled, Recognition
from tasks.identification import templates
from tasks.livenessmodel import LivenessCheck, open_liveness

Row = tuple[str, tuple[float, ...] | None, Recognition]  # picture, where the face is on it, who it is
MAX_SOURCE_GB = 100.0
MAX_SHOWN = 20  # people, and pictures that were left out; --json has all

app = App(name="faces", help="Enrol people by pictures of their faces, verify and recognise them.")
app.command(
    "pipelines.commands_gallery:app", name="gallery", help="List, show, search and remove enrolled people."
)


@app.command
def enrol(
    name: str | None = None,
    /,
    *images: Path,
    source: Annotated[Path | None, Parameter(name="--from")] = None,
    gallery: str = DEFAULT_GALLERY,
    model: str | None = None,
    alignment: Path | None = None,
    as_json: Json = False,
) -> int:
    """Add pictures of a person to a gallery, or a folder of people; the first makes the gallery.

    Example: ./convoy faces enrol ann ann1.jpg ann2.jpg
    One picture is enough, more sharpen it; nothing is trained. Of a folder, pictures without exactly one face are
    listed and left out, and the exit code is then 1.

    Parameters
    ----------
    name
        Who is on the pictures.
    images
        Pictures of that person, one face on each: files, and folders that are searched for them.
    source
        Instead: a folder or an archive with a folder for each person, called like the person; two of one name are
        refused.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    model
        The embedder of a new gallery: models:/NAME@ALIAS, a run key, or a folder; otherwise models:/faces@champion.
    alignment
        For a new gallery whose model does not know how its faces were cut out: an alignment.json, as ./convoy align
        writes it. Without one, each picture is taken for a face as it is.
    """
    if (source is None) == (name is None) or (name is not None and not images):
        raise ValueError("give a name and pictures (enrol ann ann1.jpg), or --from a folder of people")
    wanted = None if alignment is None else read_alignment(alignment)
    if source is None:
        assert name is not None
        files = find_images(images, IMAGE_SUFFIXES)
        reader = bind(gallery, model, wanted)
        added = EnrolledTree([enrol_files(gallery, reader, name, files)], {})
    else:
        if not source.exists():
            raise FileNotFoundError(f"no folder or archive {source}")
        reader = bind(gallery, model, wanted)
        added = enrol_source(gallery, reader, source)
    note_if_behind(gallery, reader.embedder)
    told = f"gallery {gallery}: {describe_embedder(reader.embedder)}"
    emit(enrolled_document(gallery, reader, added), [*enrolled_views(added), told], as_json)
    return int(bool(added.left_out))


def read_alignment(file: Path) -> FaceAlignment:
    """What an alignment.json says; raises FileNotFoundError or ValueError."""
    return aligned.parse(file.read_bytes(), str(file))


def enrol_source(gallery: str, reader: FaceReader, source: Path) -> EnrolledTree:
    """Enrol a folder or an archive of people, showing how far it is."""
    reporter = ConsoleReporter()
    try:
        with (
            scratch("people") as spool,
            open_tree(source, spool=spool, max_total_bytes=int(MAX_SOURCE_GB * 1e9)) as tree,
        ):
            return enrol_tree(gallery, reader, tree, progress_of(reporter, "enrol"))
    finally:
        reporter.close()


def enrolled_document(gallery: str, reader: FaceReader, added: EnrolledTree) -> dict[str, Any]:
    """Of `enrol`."""
    return {
        "gallery": gallery,
        "embedder": document_of(reader),
        "people": [
            {"name": each.name, "added": each.num_added, "pictures": each.num_pictures}
            for each in added.people
        ],
        "left_out": added.left_out,
    }


def enrolled_views(added: EnrolledTree) -> list[Any]:
    """Who was enrolled, and what was left out."""
    people, lost = added.people, list(added.left_out.items())
    if len(people) == 1 and not lost:
        return [enrolled_line(people[0])]
    rows = [(each.name, each.num_added, each.num_pictures) for each in people[:MAX_SHOWN]]
    title = f"{len(people):,} people, {sum(each.num_added for each in people):,} new pictures"
    views: list[Any] = [title, table("", ("person", "new", "pictures"), rows)]
    if len(people) > MAX_SHOWN:
        views.append(f"… and {len(people) - MAX_SHOWN:,} more")
    if lost:
        views += [f"left out: {len(lost):,}", table("", ("picture", "why"), lost[:MAX_SHOWN])]
    return views


def enrolled_line(enrolled: Enrolled) -> str:
    new, all_ = enrolled.num_added, enrolled.num_pictures
    return f"{enrolled.name}: {new} new picture{'s' * (new != 1)}, {all_} in all"


def document_of(reader: FaceReader) -> dict[str, Any]:
    """What made the vectors, for a document."""
    made = reader.embedder
    alignment = None if reader.aligner is None else reader.aligner.config.model_dump()
    return {"model": made.name, "version": made.version, "sha256": made.sha256, "alignment": alignment}


@app.command
def verify(
    image: Path,
    /,
    *,
    name: str,
    gallery: str = DEFAULT_GALLERY,
    false_accept_rate: float | None = None,
    liveness: str | None = None,
    as_json: Json = False,
) -> None:
    """Say whether a picture is of the person that it is said to be of.

    Example: ./convoy faces verify door.jpg --name ann

    Parameters
    ----------
    image
        A picture with one face.
    name
        Who it is said to be.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    false_accept_rate
        Which of the model's thresholds counts: each was fitted to accept this share of pairs of two people; otherwise
        the strictest.
    liveness
        A classifier of real faces and attacks, given as a model is: a picture that it judges a spoof is an error. The
        threshold is that of its card.
    """
    check = liveness_check(liveness)
    with open_gallery(gallery) as opened:
        reader = reader_of(opened.embedder)
        limit = reader.threshold(false_accept_rate)
        vector = reader.embed([one_face(reader, image, check)])[0]
        found = opened.verify(name, vector, limit.distance, reader.embedder)
    note_if_behind(gallery, reader.embedder)
    document = {
        "image": image, "name": name, "gallery": gallery, "same": found.same, "distance": found.distance,
        **limit_document(limit), **liveness_document(liveness, check), "embedder": document_of(reader),
    }  # fmt: skip
    verdict = "the same" if found.same else "not the same"
    told = f"{verdict}: {image} is {found.distance:.3f} from {name}; {describe_limit(limit)}"
    emit(document, [told], as_json)


@app.command
def recognise(
    *images: Path,
    together: Annotated[bool, Parameter(negative=())] = False,
    gallery: str = DEFAULT_GALLERY,
    false_accept_rate: float | None = None,
    liveness: str | None = None,
    as_json: Json = False,
) -> int:
    """Say who is on pictures: people of a gallery, or that they are nobody in it.

    Example: ./convoy faces recognise door/
    Where the gallery's alignment finds faces, each face of a picture is looked up. A file without a face, or that is no
    picture, is reported, and the others are recognised; the exit code is then 1.

    Parameters
    ----------
    images
        Pictures, and folders that are searched for them.
    together
        The pictures are of one person, who is looked up once, by the mean of what the pictures give.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    false_accept_rate
        Which of the model's thresholds counts, as for verify: the share is of one comparison, and a stranger is
        compared with everybody in the gallery.
    liveness
        A classifier of real faces and attacks, as for verify: a picture that it judges a spoof is reported as one, and
        nobody is looked up.
    """
    if not images:
        raise ValueError("recognise needs pictures: give files or folders")
    files = find_images(images, IMAGE_SUFFIXES)
    check = liveness_check(liveness)
    with open_gallery(gallery) as opened:
        reader = reader_of(opened.embedder)
        limit = reader.threshold(false_accept_rate)
        photos, spoofs = real_photos([(str(file), file.read_bytes()) for file in files], check)
        faces, left_out = read_photos(photos, reader.only_face if together else reader.faces)
        left_out = {**spoofs, **left_out}
        rows = recognised(opened, reader, faces, limit, together)
        num_people = len(opened)
    note_if_behind(gallery, reader.embedder)
    document = {
        "gallery": gallery, "people": num_people, **limit_document(limit), **liveness_document(liveness, check),
        "embedder": document_of(reader), "faces": [row_document(row) for row in rows], "left_out": left_out,
    }  # fmt: skip
    title = f"{num_people:,} people in the gallery {gallery}; {describe_limit(limit)}"
    lines = lines_of(rows, left_out)
    emit(document, [title, table("", ("image", "who", "distance", "note"), lines)], as_json)
    return int(bool(left_out))


def row_document(row: Row) -> dict[str, Any]:
    """A face, for a document: `name` is None where it is not recognised."""
    image, box_xyxy, found = row
    nearest = asdict(found.nearest) if found.nearest else {"name": None, "distance": None}
    return {
        "image": image,
        "box_xyxy": box_xyxy,
        "name": found.name,
        "nearest": nearest["name"],
        "distance": nearest["distance"],
    }


def lines_of(rows: list[Row], left_out: dict[str, str]) -> list[tuple[Any, ...]]:
    """A line a face, and one for each picture without."""
    lines: list[tuple[Any, ...]] = []
    for name, box, each in rows:
        notes = [f"nearest: {each.nearest.name}"] if each.nearest and each.name is None else []
        if box is not None:
            notes.append("face at " + ", ".join(f"{edge:.0f}" for edge in box))
        distance = each.nearest.distance if each.nearest else None
        lines.append((name, each.name or "not recognised", distance, "; ".join(notes)))
    return [*lines, *((name, None, None, reason) for name, reason in left_out.items())]


def recognised(
    gallery: Gallery, reader: FaceReader, faces: list[tuple[str, Face]], limit: Threshold, together: bool
) -> list[Row]:
    """Who each face is, or all of them together."""
    if not faces:
        return []
    shown = [(name, face.box_xyxy) for name, face in faces]
    vectors = reader.embed([face for _, face in faces])
    if together:
        shown = [(", ".join(name for name, _ in faces), None)]
        vectors, _ = templates(vectors, [""] * len(vectors))
    found = gallery.recognise(vectors, limit.distance, reader.embedder)
    return [(name, box, each) for (name, box), each in zip(shown, found, strict=True)]


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


def note_if_behind(gallery: str, embedder: Embedder) -> None:
    """Say on stderr that the model of a gallery has another champion than the version that it answers by."""
    champion = champion_instead(embedder)
    if champion is not None:
        ConsoleReporter().note(
            f"note: the gallery {gallery} holds vectors of {uri_of(embedder)}, and version {champion} is the champion: "
            f"./convoy faces gallery re-embed --gallery {gallery}"
        )


def limit_document(limit: Threshold) -> dict[str, float]:
    return {"threshold": limit.distance, "false_accept_rate": limit.false_accept_rate}


def liveness_document(model: str | None, check: LivenessCheck | None) -> dict[str, Any]:
    """Of `--liveness`; nothing where it was not asked for."""
    return {} if check is None else {"liveness": {"model": model, "threshold": check.threshold}}


def describe_limit(limit: Threshold) -> str:
    return f"the same up to {limit.distance:.3f} (false-accept rate {limit.false_accept_rate:g})"
