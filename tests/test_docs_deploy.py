"""Files for containers and Kubernetes: their tools accept them, and they agree with this checkout."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click import Command
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from pipelines import registration
from pipelines.doctor import locked_versions
from pipelines.services import POOL
from tasks.cluster import KEPT_BACK
from tasks.lineage import NOT_CODE, git
from tasks.paths import ROOT
from tests.raycluster import RAYCLUSTER

DEPLOY = ROOT / "docs" / "deploy"
KUBERNETES = "1.33"
FILES = sorted(file.name for file in (DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in FILES:
        for document in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()):
            yield name, document


OBJECTS = [document for name, document in documents() if name != "kustomization.yaml"]
[CLUSTER] = [document for document in OBJECTS if document["kind"] == "RayCluster"]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a document."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(part)


def texts(value: Any) -> Iterator[str]:
    """Every text within a document."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(part)


def faults(document: Any, schema: dict[str, Any]) -> list[str]:
    return [
        f"{error.json_path}: {error.message}" for error in validator_for(schema)(schema).iter_errors(document)
    ]


def test_the_compose_file_is_what_the_specification_allows() -> None:
    schemas = pytest.importorskip("check_jsonschema.builtin_schemas", reason="needs check-jsonschema")
    schema = schemas.get_builtin_schema("vendor.compose-spec")
    assert faults(COMPOSE, schema) == []
    assert faults({**COMPOSE, "services": {"prefect": {"imagge": "x"}}}, schema)  # the schema sees a slip


def test_every_object_is_what_kubernetes_accepts() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    own = [document for document in OBJECTS if document is not CLUSTER]
    spec = CLUSTER["spec"]
    templates = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}
        for group in templates
    ]
    assert len(own) > 10 and len(pods) == 2
    for document in own + pods:
        validate.validate(document, KUBERNETES, strict=True)
    with pytest.raises(validate.ValidationError):
        validate.validate({**pods[0], "spec": {"containres": []}}, KUBERNETES, strict=True)


def test_the_cluster_is_what_kuberay_accepts() -> None:
    Draft202012Validator.check_schema(RAYCLUSTER)
    assert faults(CLUSTER, RAYCLUSTER) == []
    slip = {**CLUSTER, "spec": {**CLUSTER["spec"], "workerGroupSpec": []}}
    assert faults(slip, RAYCLUSTER) == [
        "$.spec: Additional properties are not allowed ('workerGroupSpec' was unexpected)"
    ]


def test_the_cluster_keeps_its_workers_since_work_that_they_do_not_hold_is_refused_and_does_not_wait() -> (
    None
):
    assert CLUSTER["spec"]["enableInTreeAutoscaling"] is False
    for group in CLUSTER["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] > 0


def test_versions_are_those_of_the_lock_and_the_project() -> None:
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert CLUSTER["spec"]["rayVersion"] == locked_versions(ROOT / "requirements.lock")["ray"]
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert kustomization["images"] == [{"name": "convoy", "newTag": version[1]}]
    assert COMPOSE["x-convoy"]["image"] == f"convoy:{version[1]}"
    assert f"convoy:{version[1]}" in (DEPLOY / "Dockerfile").read_text()


def test_kustomize_takes_every_file() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted([*kustomization["resources"], "kustomization.yaml"]) == FILES


def test_what_kubernetes_objects_refer_to_is_there() -> None:
    names = {kind: {each["metadata"]["name"] for each in OBJECTS if each["kind"] == kind} for kind in kinds()}
    for node in (node for document in OBJECTS for node in nodes(document)):
        if "claimName" in node:
            assert node["claimName"] in names["PersistentVolumeClaim"]
        for reference in ("configMapRef", "configMap"):
            if reference in node:
                assert node[reference]["name"] in names["ConfigMap"]
        if "secretKeyRef" in node:
            assert (node["secretKeyRef"]["name"], node["secretKeyRef"]["key"]) in {
                ("convoy", "postgres_password"), ("convoy", "auth_token"),
            }  # fmt: skip
        if "volumeMounts" in node:
            assert {mount["name"] for mount in node["volumeMounts"]} <= {
                "work",
                "shm",
                "records",
                "databases",
            }
    services = names["Service"] | {f"{CLUSTER['metadata']['name']}-head-svc"}
    assert hosts_in(OBJECTS) <= services | {"127.0.0.1"}
    assert {"postgres", "prefect", "mlflow"} <= hosts_in(OBJECTS)


def kinds() -> set[str]:
    return {document["kind"] for document in OBJECTS}


def hosts_in(value: Any) -> set[str]:
    """The hosts that URLs within a document name."""
    found = (re.search(r"\w+(?:\+\w+)?://\S+", text) for text in texts(value))
    return {urlsplit(match[0]).hostname or "" for match in found if match}


def test_what_compose_services_refer_to_is_there() -> None:
    services = COMPOSE["services"]
    assert hosts_in({name: service.get("environment", {}) for name, service in services.items()}) <= {
        *services, "127.0.0.1",
    }  # fmt: skip
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def commands() -> Iterator[list[str]]:
    """The command lines of all containers that run one of the engines."""
    for service in COMPOSE["services"].values():
        yield from split(service.get("command", []))
    for node in (node for document in OBJECTS for node in nodes(document)):
        if "image" in node:
            yield from split(node.get("command", []))


def split(command: list[str]) -> Iterator[list[str]]:
    if command[:2] == ["sh", "-c"]:
        yield from (line.removeprefix("exec ").split() for line in command[2].split(" && "))
    elif command:
        yield command


def options_of(command: Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}


def test_the_engines_know_the_options_that_the_files_give_them() -> None:
    from mlflow.cli import cli as mlflow_cli
    from prefect.cli._app import _app as prefect_app
    from ray.scripts.scripts import cli as ray_cli

    seen = set()
    for command in commands():
        program, words = command[0], command[1:]
        seen.add(program)
        if program == "prefect":
            own = [word for word in words if word != "--no-prompt"]  # of the program, not of a command
            # raises for an unknown option
            prefect_app.parse_args(own, exit_on_error=False, print_error=False)
            continue
        if program == "python":
            assert words == ["-m", registration.__name__]
            continue
        known = options_of({"mlflow": mlflow_cli, "ray": ray_cli}[program].commands[words[0]])
        given = {word for word in words if word.startswith("--")}
        assert given <= known, f"{program} {words[0]} does not know {given - known}"
    assert seen == {"prefect", "mlflow", "ray", "python"}


def test_limits_are_set_wherever_deployments_are_registered() -> None:
    lines = list(commands())
    after = [lines[number + 1] for number, line in enumerate(lines) if "deploy" in line]
    assert after == [["python", "-m", registration.__name__]] * 2  # of Compose and of Kubernetes


def test_no_image_is_made_of_a_pip_that_failed(tmp_path: Path) -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    [script] = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN pip")]
    codes = {}
    for pip in (0, 1):
        for name, code in {
            "pip": pip,
            "python": 1,
        }.items():  # some of what packages have is no Python of today
            (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
            (tmp_path / name).chmod(0o755)
        command = ["/bin/sh", "-c", script]
        codes[pip] = subprocess.run(command, env={"PATH": str(tmp_path)}, check=False).returncode
    assert codes == {0: 0, 1: 1}


def is_left_out(file: str) -> bool:
    """Whether the image goes without a file: of the lines that match it or a folder above it, the last decides."""
    path, out = PurePosixPath(file), False
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, str(place)) for place in (path, *path.parents)):
            out = not line.startswith("!")
    return out


def test_the_image_has_what_git_tracks_and_neither_data_nor_secrets() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    places = [line for line in ignored if line.startswith("/") and "*" not in line]
    assert len(places) > 10
    for place in [*places, *KEPT_BACK]:
        if place not in (
            "/.git/",
            "/.dvc/",
        ):  # which have what tells the commit, and that nothing was changed since
            assert is_left_out(place.strip("/").replace("*", "")), place
            assert is_left_out(place.strip("/").replace("*", ".x") + "/file"), place
    for file in (
        ".dvc/config.local",
        ".dvc/cache/files/md5/00/1",
        ".dvc/tmp/lock",
        "data/__pycache__/x.pyc",
        "x.pyc",
    ):
        assert is_left_out(file), file
    tracked = git(ROOT, "ls-files", "--", ".", *NOT_CODE).splitlines()
    assert "pyproject.toml" in tracked and [file for file in tracked if is_left_out(file)] == []


def test_every_deployment_is_for_the_pool_that_the_worker_asks() -> None:
    deployments = yaml.safe_load(Path(ROOT / "prefect.yaml").read_text())["deployments"]
    assert {deployment["work_pool"]["name"] for deployment in deployments} == {POOL}
    for command in commands():
        if command[:2] == ["prefect", "worker"]:
            assert command[command.index("--pool") + 1] == POOL
