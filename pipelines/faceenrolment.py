"""What `./convoy faces enrol` does: pictures of a person, or a folder of people, into a gallery."""

from pathlib import Path
from typing import Any

from data import aligned
from data.aligned import FaceAlignment
from data.archive import open_tree
from data.counting import counted
from data.files import scratch
from pipelines.gallerynotes import document_of, note_if_behind
from pipelines.imagefiles import find_images
from pipelines.render import ConsoleReporter, emit, table
from pipelines.reporting import progress_of
from tasks.embedders import describe_embedder
from tasks.enrolment import EnrolledTree, bind, enrol_files, enrol_tree, only_champion
from tasks.facereading import FaceReader
from tasks.folders import IMAGE_SUFFIXES
from tasks.gallerynames import is_there
from tasks.gallerystore import Enrolled

MAX_SOURCE_GB = 100.0
MAX_SHOWN = 20  # people, and pictures that were left out; --json has all


def enrol(
    name: str | None,
    images: tuple[Path, ...],
    source: Path | None,
    gallery: str,
    model: str | None,
    alignment: Path | None,
    as_json: bool,
) -> int:
    """Enrol, and print who was; 1 where a picture was left out. Either `source`, or `name` with `images`."""
    wanted = None if alignment is None else read_alignment(alignment)
    if source is None:
        assert name is not None
        files = find_images(images, IMAGE_SUFFIXES)
        model = model or model_of_new(gallery)
        reader = bind(gallery, model, wanted)
        added = EnrolledTree([enrol_files(gallery, reader, name, files)], {})
    else:
        if not source.exists():
            raise FileNotFoundError(f"no folder or archive {source}")
        model = model or model_of_new(gallery)
        reader = bind(gallery, model, wanted)
        added = enrol_source(gallery, reader, source)
    note_if_behind(gallery, reader.embedder)
    told = f"gallery {gallery}: {describe_embedder(reader.embedder)}"
    emit(enrolled_document(gallery, reader, added), [*enrolled_views(added), told], as_json)
    return int(bool(added.left_out))


def model_of_new(gallery: str) -> str | None:
    """The model for a gallery that is not there yet, where none was given, which is said on stderr; else None."""
    if is_there(gallery):
        return None
    model = only_champion()
    ConsoleReporter().note(
        f"note: the new gallery {gallery} is made with {model}, the only embedder of faces that has a champion"
    )
    return model


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
        "embedder": document_of(reader.embedder),
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
    new = counted(sum(each.num_added for each in people), "new picture")
    title = f"{counted(len(people), 'person', 'people')}, {new}"
    views: list[Any] = [title, table("", ("person", "new", "pictures"), rows)]
    if len(people) > MAX_SHOWN:
        views.append(f"… and {len(people) - MAX_SHOWN:,} more")
    if lost:
        views += [f"left out: {len(lost):,}", table("", ("picture", "why"), lost[:MAX_SHOWN])]
    return views


def enrolled_line(enrolled: Enrolled) -> str:
    return f"{enrolled.name}: {counted(enrolled.num_added, 'new picture')}, {enrolled.num_pictures} in all"
