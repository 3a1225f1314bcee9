"""What a command starts for itself listens on the loopback alone: nobody else's machine is asked for a password."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.address import is_loopback
from pipelines.plan import RAY_CLUSTERS, Plan
from pipelines.services import FOREIGN, prefect_environment, ray_environment
from tasks.paths import ROOT
from tests.test_pipelines_platform import some_plan

ENGINES = """
import json, socket
import psutil
from pipelines import environment, server
environment.prepare()
server.start()
from ray import serve
from ray.serve.config import HTTPOptions
from tasks import cluster
from tests.platforms import listening
cluster.connect()
server.wait()
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port))
me = psutil.Process()
found = listening([me, *me.children(recursive=True)])
print(json.dumps({"found": found, "port": port}))
cluster.disconnect()
server.stop()
"""


@pytest.mark.slow
def test_the_engines_of_one_command_listen_on_the_loopback_alone(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if name not in (*FOREIGN, "PREFECT_HOME")}
    own |= {"CONVOY_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ENGINES],
        env=own,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert [each for each in document["found"] if not is_loopback(each[0])] == []
    assert document["port"] in [port for _, port, _ in document["found"]]
    assert len(document["found"]) > 5  # Ray's are among them


def test_a_platform_on_the_loopback_keeps_ray_and_browsers_to_it() -> None:
    near, far = some_plan(), some_plan(host="0.0.0.0")
    assert ray_environment(near)[RAY_CLUSTERS] == near.client_environment()[RAY_CLUSTERS] == "0"
    assert ray_environment(far)[RAY_CLUSTERS] == "1"
    origins = prefect_environment(near)["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert origins == [f"http://127.0.0.1:{near.prefect_port}", f"http://localhost:{near.prefect_port}"]
    assert "PREFECT_SERVER_CORS_ALLOWED_ORIGINS" not in prefect_environment(far)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_only_a_loopback_is_one(host: str) -> None:
    assert some_plan(host=host).loopback()
    assert not any(
        some_plan(host=other).loopback() for other in ("0.0.0.0", "::", "10.0.0.1", "convoy.example")
    )
    assert isinstance(some_plan(), Plan)
