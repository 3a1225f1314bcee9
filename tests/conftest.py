"""What all tests stand on: a home of their own, and engines that are quiet and private."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any test module imports Prefect, which reads the environment once: nothing of the person who runs the tests
# is read, and nothing is written to the checkout.
_HOME = tempfile.mkdtemp(prefix="convoy-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for _name in ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CONVOY_HOME"):
    os.environ.pop(_name, None)
os.environ["CONVOY_HOME"] = _HOME

from pipelines import environment  # noqa: E402

environment.prepare()


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The address of a Prefect server on a database of its own, for flows that tests call."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from pipelines import server

    server.start()
    server.wait()
    url = os.environ["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: url}):
        yield url
    server.stop()


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home that the tests of one module share: making MLflow's database takes seconds."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOY_HOME", str(folder))
        yield folder
