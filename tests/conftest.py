"""What all tests stand on: a home of their own, and engines that are quiet and private."""

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# A machine that also does other things must not fail a test by being slow.
hypothesis.settings.register_profile("convoy", deadline=None)
hypothesis.settings.load_profile("convoy")
# Threads that wait for each other cost networks this small most of their time.
torch.set_num_threads(1)

# Before any test module imports Prefect, which reads the environment once: nothing of the person who runs the tests
# is read, and nothing is written to the checkout.
_HOME = tempfile.mkdtemp(prefix="convoy-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for _name in ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CONVOY_HOME"):
    os.environ.pop(_name, None)
os.environ["CONVOY_HOME"] = _HOME
os.environ["CONVOY_PRIVATE_URLS"] = "127.0.0.1"  # where tests' own servers are
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"  # its last lines would be sent when the server is gone

from data.dataset import Dataset  # noqa: E402
from pipelines import environment  # noqa: E402
from pipelines.leaving import leave  # noqa: E402
from tests.datasets import DATASETS  # noqa: E402

environment.prepare()
environment.make_prefect_home()


EXIT_STATUS = pytest.StashKey[int]()
Run = Callable[..., tuple[int, str, str]]  # a command's words → its exit code, stdout and stderr


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """What was told is the verdict: the interpreter's teardown has crashed under threads of the engines."""
    status = config.stash.get(EXIT_STATUS, None)
    if status is not None:
        leave(status)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, saying why."""
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    no_data = pytest.mark.skip(reason=f"no datasets in {DATASETS} (CONVOY_DATASETS names another folder)")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if item.get_closest_marker("data") and not DATASETS.is_dir():
            item.add_marker(no_data)


@pytest.fixture(scope="session")
def datasets_folder() -> Path:
    """Real datasets that are not part of the checkout; for tests with the marker `data`."""
    return DATASETS


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The address of a Prefect server on a database of its own, for flows that tests call."""
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from pipelines import server

    server.start()
    server.wait()
    url = os.environ["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: url}):
        yield url
    EventsWorker.drain_all(timeout=10)  # closes its connection while there is somebody at the other end
    server.stop()


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home that the tests of one module share: making MLflow's database takes seconds."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOY_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def digits(module_home: Path) -> Dataset:
    """scikit-learn's digits, ingested into the module's home."""
    from tasks.paths import store
    from tests.tiny import tiny_dataset

    assert store().is_relative_to(module_home)
    return tiny_dataset("classification", store())


@pytest.fixture(scope="module")
def versioned_digits(digits: Dataset) -> Dataset:
    """The same, of which DVC has a version."""
    from tasks import versioning

    versioning.add(digits.path)
    return digits


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command in this process: its exit code, stdout and stderr."""
    from pipelines.commands import main

    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    signal.signal(signal.SIGTERM, before)
