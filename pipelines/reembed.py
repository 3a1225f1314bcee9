"""The flow that gives a gallery of faces a new embedder: its pictures embedded again on Ray, then one switch.

    ./convoy faces gallery re-embed --model models:/faces-people@champion

and the flow that does so with every gallery whose model has another champion, which prefect.yaml starts when one moves.
There is nothing to resume by: vectors wait in the gallery, so that the flow called again goes on where it was stopped.
"""

import time
from typing import Any

from prefect import flow

from pipelines import environment, steps
from pipelines.artifacts import ProgressBar, publish_re_embedding
from pipelines.engines import start_ray
from pipelines.interruption import interruptible
from pipelines.reporting import Clock, Reporter, Status
from tasks import embedshards, registry
from tasks.embedders import champion_of, describe_embedder, uri_of
from tasks.facereading import FaceReader, successor_of
from tasks.gallerynames import folder_of, galleries_behind, open_gallery
from tasks.gallerystore import Embedder
from tasks.modelfile import load_model
from tasks.paths import DEFAULT_GALLERY
from tasks.reembedding import re_embed


@flow(name="re-embed", flow_run_name="re-embed-{gallery}", persist_result=False)
def re_embed_gallery(gallery: str = DEFAULT_GALLERY, model: str | None = None) -> dict[str, Any]:
    """Embed all pictures of a gallery by another model, and switch to it when all are done.

    Args:
        gallery: its name, or a folder's path with a slash in it
        model: the new embedder; none: the champion of the name that the gallery's model has
    """
    environment.prepare()
    start_ray()
    reporter = steps.reporter_here()
    started_s = time.monotonic()
    with open_gallery(gallery) as opened:
        before = opened.embedder
    reader = resolve_embedder(before, model or champion_of(before))
    now = reader.embedder
    num_pictures = 0
    if now == before:
        reporter.note(f"the gallery {gallery} has vectors of {describe_embedder(now)} already")
    else:
        num_pictures = embed_pictures(gallery, reader, reporter)
    summary = {
        "gallery": gallery, "before": describe_embedder(before), "now": describe_embedder(now),
        "num_pictures": num_pictures, "time_s": time.monotonic() - started_s,
    }  # fmt: skip
    publish_re_embedding(summary)
    return summary


@flow(name="re-embed-galleries", flow_run_name="re-embed-galleries-{model}", persist_result=False)
def re_embed_galleries(model: str) -> dict[str, Any]:
    """Embed every gallery that holds another version of a model than its champion by the champion, one after the other.

    Each is a run of `re-embed`, and switches when all its pictures are done. One that the champion does not fit keeps
    its vectors, the others do not wait for it, and the run fails at the end.

    Args:
        model: name of a registered embedder of faces, such as faces (./convoy models list)
    """
    environment.prepare()
    behind = galleries_behind(model)
    if not behind:
        steps.reporter_here().note(f"no gallery holds an earlier version of {model}")
    summaries, refused = [], []
    for gallery in behind:
        try:
            summaries.append(re_embed_gallery(gallery))
        except (ValueError, OSError) as error:  # a gallery that somebody else writes to for long, too
            refused.append(f"{gallery}: {error}")
    if refused:
        raise ValueError(
            f"{len(refused)} of {len(behind)} galleries keep their vectors; {'; '.join(refused)}"
        )
    return {"model": model, "galleries": summaries}


@steps.step("resolve embedder")
def resolve_embedder(before: Embedder, model: str) -> FaceReader:
    """The new embedder, which takes the gallery's faces as they were cut out."""
    return successor_of(before, model)


@steps.step("embed pictures")
def embed_pictures(gallery: str, reader: FaceReader, reporter: Reporter) -> int:
    """Embed what has no new vector yet, and switch; how many pictures the gallery has."""
    clock = Clock()

    def show(done: int, total: int) -> None:
        reporter.show(Status("re-embed", done, total, clock.own_rate(done), unit="pictures"))
        bar.show(done / max(1, total))

    saved = load_model(registry.resolve_model(uri_of(reader.embedder)))
    again = f"./convoy faces gallery re-embed --gallery {gallery}"
    stopped = "stopped: the gallery is as it was, and pictures that were embedded are kept"
    with (
        ProgressBar(f"re-embedding {gallery}") as bar,
        interruptible("ray", reporter.note, again, stopped),
    ):
        return re_embed(folder_of(gallery), reader.embedder, embedshards.on_ray(saved), progress=show)
