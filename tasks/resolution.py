"""A model as somebody named it: which version that is now, and where its files lie."""

from dataclasses import dataclass
from pathlib import Path

from tasks.modelfile import model_sha256
from tasks.modelstore import MODEL_URI, files_of, version_at
from tasks.recordstore import connect
from tasks.registry import resolve_model


@dataclass(frozen=True)
class Resolved:
    """What a model's name stood for when it was asked."""

    asked: str  # as it was given
    exact: str  # what names the same files tomorrow: models:/NAME/VERSION; else as it was given
    name: str  # of the registered model; "" for a folder or a run
    run_id: str  # MLflow's, of the run that registered it; "" for a folder or a run
    sha256: str  # of its files
    folder: Path


def follows_alias(uri: str) -> bool:
    """Whether a name may stand for another version tomorrow."""
    parts = MODEL_URI.fullmatch(uri)
    return parts is not None and parts["alias"] is not None


def exact_name(uri: str) -> str:
    """models:/NAME/VERSION of a registered model, without a look at its files; else `uri`. Raises ValueError."""
    if not uri.startswith("models:/"):
        return uri
    version = version_at(connect(), uri)
    return f"models:/{version.name}/{version.version}"


def resolve(uri: str) -> Resolved:
    """Look a model up; raises what `resolve_model` raises."""
    if not uri.startswith("models:/"):
        folder = resolve_model(uri)
        return Resolved(uri, uri, "", "", model_sha256(folder), folder)
    client = connect()
    version = version_at(client, uri)
    return Resolved(
        asked=uri,
        exact=f"models:/{version.name}/{version.version}",
        name=str(version.name),
        run_id=str(version.run_id or ""),
        sha256=str(version.tags.get("convoy.model_sha256", "")),
        folder=files_of(client, version),
    )
