"""`./convoy faces gallery`: who is enrolled, who is like whom, who leaves, a new embedder, and a matrix made anew."""

from dataclasses import asdict
from pathlib import Path

from cyclopts import App

from data.counting import counted
from pipelines.gallerynotes import document_of, note_if_behind, people_in
from pipelines.options import Json, Yes, confirm, quiet_stdout
from pipelines.render import ConsoleReporter, cell, emit, pairs, table
from tasks import reembedding
from tasks.embedders import champion_of, describe_embedder
from tasks.gallerynames import folder_of, open_gallery
from tasks.gallerystore import picture_of
from tasks.paths import DEFAULT_GALLERY

FLOW = "pipelines.reembed:re_embed_gallery"
SHOWN_HASH = 12  # of a picture's hash: enough to name it

app = App(name="gallery", help="List, show, search and remove enrolled people.")


@app.command(name="list")
def list_people(*, gallery: str = DEFAULT_GALLERY, as_json: Json = False) -> None:
    """List who is enrolled.

    Parameters
    ----------
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    """
    with open_gallery(gallery) as opened:
        people, embedder = opened.people(), opened.embedder
    note_if_behind(gallery, embedder)
    document = {
        "gallery": gallery,
        "embedder": document_of(embedder),
        "people": [asdict(each) for each in people],
    }
    rows = [(each.name, each.num_pictures, each.first_enrolled, each.last_enrolled) for each in people]
    title = f"{people_in(gallery, len(people))}: {describe_embedder(embedder)}"
    columns = ("person", "pictures", "first enrolled", "last enrolled")
    emit(document, [title, table("", columns, rows)], as_json)


@app.command
def show(name: str, /, *, gallery: str = DEFAULT_GALLERY, as_json: Json = False) -> None:
    """Show the pictures of a person: their hashes, when they were enrolled, how far each is from all together.

    Parameters
    ----------
    name
        A person; ./convoy faces gallery list shows all.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    """
    with open_gallery(gallery) as opened:
        pictures = opened.pictures(name)
        distances = [opened.verify(name, each.vector, 0.0, each.embedder).distance for each in pictures]
    embedder = pictures[0].embedder
    document = {
        "gallery": gallery,
        "name": name,
        "embedder": document_of(embedder),
        "pictures": [
            {
                "sha256": each.sha256,
                "bytes": len(each.encoded),
                "enrolled": each.enrolled,
                "distance": distance,
            }
            for each, distance in zip(pictures, distances, strict=True)
        ],
    }
    rows = [
        (each.sha256[:SHOWN_HASH], len(each.encoded), each.enrolled, distance)
        for each, distance in zip(pictures, distances, strict=True)
    ]
    title = f"{name}: {describe_embedder(embedder)}"
    emit(document, [title, table("", ("picture", "bytes", "enrolled", "from their mean"), rows)], as_json)


@app.command
def search(image: Path, /, *, top: int = 10, gallery: str = DEFAULT_GALLERY, as_json: Json = False) -> None:
    """List the people who are most like the face on a picture.

    Parameters
    ----------
    image
        A picture with one face.
    top
        How many people.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    """
    from pipelines.facelookup import one_face  # only now, for torch takes seconds
    from tasks.facereading import reader_of

    with open_gallery(gallery) as opened:
        reader = reader_of(opened.embedder)
        vectors = reader.embed([one_face(reader, image)])
        [hits] = opened.search(vectors, top, reader.embedder)
    note_if_behind(gallery, reader.embedder)
    document = {
        "image": image, "gallery": gallery, "embedder": document_of(reader.embedder),
        "people": [asdict(hit) for hit in hits],
    }  # fmt: skip
    rows = [(place, hit.name, hit.distance) for place, hit in enumerate(hits, 1)]
    emit(document, [f"most like {image}:", table("", ("", "person", "distance"), rows)], as_json)


@app.command
def remove(
    name: str,
    /,
    *,
    picture: str | None = None,
    gallery: str = DEFAULT_GALLERY,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove a person for good, or one of their pictures: pictures, vectors and hashes leave the disk.

    Parameters
    ----------
    name
        A person; ./convoy faces gallery list shows all.
    picture
        One picture of the person, by its hash or the beginning of it; ./convoy faces gallery show has them.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    yes
        Do not ask.
    """
    with open_gallery(gallery) as opened:
        pictures = opened.pictures(name)
        num = len(pictures)
        if picture is None:
            what = f"{name} and {counted(num, 'picture')}"
            confirm(f"remove {what} from the gallery {gallery}, for good?", yes)
            opened.remove(name)
            gone, left = num, 0
        else:
            what = f"the picture {picture_of(name, pictures, picture).sha256[:SHOWN_HASH]} of {name}"
            confirm(f"remove {what} from the gallery {gallery}, for good?", yes)
            opened.remove_picture(name, picture)
            gone, left = 1, num - 1
    document = {"gallery": gallery, "name": name, "removed_pictures": gone, "pictures": left}
    emit(document, [f"removed {what}; backups of the gallery may still have it"], as_json)


@app.command
def rebuild(*, gallery: str = DEFAULT_GALLERY, as_json: Json = False) -> None:
    """Write what is searched anew from the database, and compare everything with everything.

    For a gallery whose files templates-* were lost or damaged, and after many removals, which leave gaps.

    Parameters
    ----------
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    """
    num = reembedding.rebuild(folder_of(gallery))
    with open_gallery(gallery) as opened:
        people = opened.check()
    told = (
        f"gallery {gallery}: written anew, {counted(people, 'person', 'people')}, {counted(num, 'picture')}"
    )
    emit({"gallery": gallery, "people": people, "pictures": num}, [told], as_json)


@app.command(name="re-embed")
def re_embed(
    *,
    model: str | None = None,
    gallery: str = DEFAULT_GALLERY,
    as_json: Json = False,
) -> None:
    """Embed all pictures of a gallery by another model, on Ray, and switch to it when all are done.

    Until then the gallery answers with the old vectors. Stopped, it goes on where it was when called again.

    Parameters
    ----------
    model
        The new embedder; otherwise the champion of the model's name.
    gallery
        Name of the gallery, or a folder's path with a slash in it.
    """
    with open_gallery(gallery) as opened:
        before = opened.embedder
    from tasks.facereading import successor_of  # only now, for torch takes seconds

    now = successor_of(before, model or champion_of(before)).embedder  # refused before engines are started
    if now == before:
        ConsoleReporter().note(f"the gallery {gallery} has vectors of {describe_embedder(now)} already")
        summary = {
            "gallery": gallery, "before": describe_embedder(before), "now": describe_embedder(now),
            "num_pictures": 0, "time_s": 0.0,
        }  # fmt: skip
    else:
        from pipelines.engines import start_engines
        from pipelines.runner import call_flow

        start_engines("ray")
        with quiet_stdout(as_json):
            summary = call_flow(FLOW, gallery, model)
    done = {
        "gallery": gallery,
        "pictures": summary["num_pictures"],
        "before": summary["before"],
        "now": summary["now"],
        "seconds": cell(summary["time_s"]),
    }
    emit(summary, [pairs("", done)], as_json)
