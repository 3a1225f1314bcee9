"""A server that dies under what uses it: once it is there again, all ends as if nothing had happened.

The servers are those of `./convoy up`, killed with their children. A server that comes back at once is waited for; one
that stays away ends the command, which names it and goes on when it is typed again.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.dataset import Dataset
from tests import platforms
from tests.chaos import IN_PROCESS, TRAIN, Straight, judge_run, run, running, undisturbed, weights_of
from tests.platforms import Platform, tiny_changes
from tests.test_chaos_points import POINTS

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
BACK = (
    "between checkpoints", "evaluate", "model half registered", "before the version", "before the alias",
    "before the record ends",
)  # fmt: skip
AWAY = ("between checkpoints", "before the version", "before the record ends")
NAMES = {"mlflow": "MLflow", "prefect": "Prefect"}  # as messages call them


@pytest.fixture(scope="module")
def platform(module_home: Path, versioned_digits: Dataset) -> Iterator[Platform]:
    assert versioned_digits.info.name == "digits"
    with platforms.running(module_home) as platform:
        yield platform


@pytest.fixture(scope="module")
def straight(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return undisturbed(platform.home, tmp_path_factory.mktemp("straight") / "run")


@pytest.mark.parametrize("point", BACK)
@pytest.mark.parametrize("server", NAMES)
def test_a_training_outlasts_a_server_that_dies_and_is_started_again(
    server: str, point: str, platform: Platform, straight: Straight, tmp_path: Path
) -> None:
    words = [*TRAIN, IN_PROCESS, *tiny_changes(), "--json"]
    with running(platform.home, tmp_path / "hurt", words, POINTS[point]) as hurt:
        hurt.reach()
        platform.kill(server)
        assert platform.convoy("up")["started"] == [server]
        hurt.let_go()
        judge_run(straight, hurt.key, hurt.document())
    assert platform.state(hurt.key) == "Completed"


@pytest.mark.parametrize("point", AWAY)
@pytest.mark.parametrize("server", NAMES)
def test_a_training_whose_server_stays_away_says_so_and_goes_on_when_it_is_back(
    server: str, point: str, platform: Platform, straight: Straight, tmp_path: Path
) -> None:
    words = [*TRAIN, IN_PROCESS, *tiny_changes()]
    with running(platform.home, tmp_path / "hurt", words, POINTS[point]) as hurt:
        hurt.reach()
        platform.kill(server)
        hurt.let_go()
        code, err = hurt.end()
        assert platform.convoy("up")["started"] == [server]
        assert code == 1, err
        assert "Traceback" not in err
        assert NAMES[server] in err.splitlines()[-1]
    again = run(platform.home, tmp_path / "again", "train", "--resume", hurt.key, IN_PROCESS)
    judge_run(straight, hurt.key, again)


def weights_when_done(platform: Platform, key: str) -> str:
    platform.await_training(key)
    return weights_of(platform.home / "runs" / key)


@pytest.fixture(scope="module")
def long_weights(platform: Platform) -> str:
    return weights_when_done(platform, platform.long_run())


@pytest.mark.parametrize("server", NAMES)
def test_a_flow_of_the_worker_outlasts_a_server_that_dies_and_is_started_again(
    server: str, platform: Platform, long_weights: str
) -> None:
    key = platform.long_run()
    platform.kill(server)
    assert platform.convoy("up")["started"] == [server]
    assert weights_when_done(platform, key) == long_weights
