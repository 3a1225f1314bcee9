"""Registered models: their versions, aliases and files."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion

from data.files import scratch
from data.parameters import did_you_mean
from tasks.modelfile import model_sha256
from tasks.paths import home
from tasks.recordstore import tracking_uri

MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def find_versions(client: MlflowClient, condition: str) -> list[ModelVersion]:
    """All versions that meet the condition, newest first."""
    found: list[ModelVersion] = []
    token: str | None = ""
    while token is not None:
        page = client.search_model_versions(
            condition, order_by=["version_number DESC"], page_token=token or None
        )
        found.extend(page)
        token = page.token or None
    return found


def find_aliases(client: MlflowClient) -> dict[str, dict[int, list[str]]]:
    """Names of our registered models, each with the aliases of its versions; other people's are left out."""
    found: dict[str, dict[int, list[str]]] = {}
    token: str | None = ""
    while token is not None:
        page = client.search_registered_models(page_token=token or None)
        for model in page:
            if "convoy.family" in model.tags:
                aliases = found.setdefault(model.name, {})
                for alias, version in sorted(model.aliases.items()):
                    aliases.setdefault(int(version), []).append(alias)
        token = page.token or None
    return found


def find_champions(client: MlflowClient, family: str) -> list[str]:
    """models:/NAME@champion of every registered model of a family that has one, sorted."""
    found: list[str] = []
    token: str | None = ""
    while token is not None:
        page = client.search_registered_models(page_token=token or None)
        found += [
            f"models:/{model.name}@champion"
            for model in page
            if model.tags.get("convoy.family") == family and "champion" in model.aliases
        ]
        token = page.token or None
    return sorted(found)


def registered_addresses(client: MlflowClient) -> list[str]:
    """models:/NAME@ALIAS of every alias that there is."""
    return [
        f"models:/{name}@{alias}"
        for name, aliases in find_aliases(client).items()
        for alias in sorted({alias for some in aliases.values() for alias in some})
    ]


def version_at(client: MlflowClient, uri: str) -> ModelVersion:
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION names; raises ValueError saying what there is."""
    parts = MODEL_URI.fullmatch(uri)
    if parts is None:
        raise ValueError(f"model (={uri!r}) must be models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = parts["name"], parts["alias"], parts["version"]
    known = find_aliases(client)
    if name not in known:
        raise ValueError(
            f"no registered model {name!r}; known: {', '.join(sorted(known)) or 'none yet'}{did_you_mean(name, known)}"
        )
    versions = find_versions(client, f"name = '{name}'")
    for version in versions:
        if str(version.version) == number or alias in known[name].get(int(version.version), []):
            return version
    numbers = [str(version.version) for version in versions]
    aliases = sorted({alias for some in known[name].values() for alias in some})
    there = f"{_listed(numbers, 'version', 'versions')} and {_listed(aliases, 'alias', 'aliases')}"
    raise ValueError(
        f"{uri}: no such {'alias' if alias else 'version'}; {name} has {there}{did_you_mean(alias or '', aliases)}"
    )


def _listed(names: Sequence[str], one: str, several: str) -> str:
    """`no version`, `the version 1`, `the versions 1, 2`."""
    return f"the {one if len(names) == 1 else several} {', '.join(names)}" if names else f"no {one}"


def files_of(client: MlflowClient, version: ModelVersion) -> Path:
    """The model folder of a version: where it lies, or fetched once; raises ValueError if its files have changed."""
    expected = version.tags.get("convoy.model_sha256")
    if expected is None or not re.fullmatch(r"[0-9a-f]{64}", expected):  # it names a folder
        raise ValueError(f"models:/{version.name}/{version.version} was not registered by Convoy")
    source = f"{client.get_model_version_download_uri(version.name, version.version)}/artifacts/model"
    address = urlparse(source)
    local = address.scheme in ("", "file")
    folder = Path(unquote(address.path)) if local else home() / ".cache" / "models" / expected
    if not local and not folder.is_dir():
        _fetch(source, folder)
    found = model_sha256(folder)
    if found != expected:
        remedy = (
            "restore them, or register the model again" if local else "delete that folder to fetch them again"
        )
        raise ValueError(
            f"the files of models:/{version.name}/{version.version} in {folder} are not those that were "
            f"registered (sha256 {found}, then {expected}); {remedy}"
        )
    return folder


def _fetch(source: str, folder: Path) -> None:
    """Download into `folder`, which appears only when all of it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch("fetch", folder.parent) as partial:
        got = download_artifacts(artifact_uri=source, dst_path=str(partial), tracking_uri=tracking_uri())
        if not folder.is_dir():  # another process may have been quicker
            shutil.move(got, folder)
