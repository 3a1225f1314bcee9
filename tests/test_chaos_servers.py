"""A server that dies under what uses it: once it is there again, all ends as if nothing had happened.

What uses it is a training, a promotion and a re-embedding. The servers are those of `./convoy up`, killed with their
children. The command goes on while `up` starts one again, some seconds in which it asks in vain: it waits. One that
stays away ends the command, which names it and goes on when it is typed again.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.dataset import Dataset
from tasks import ledger
from tasks.gallerynames import folder_of
from tests import platforms
from tests.chaos import (
    IN_PROCESS,
    TRAIN,
    Straight,
    judge_home,
    judge_run,
    run,
    running,
    undisturbed,
    weights_of,
)
from tests.platforms import Platform, tiny_changes
from tests.test_chaos_points import (
    AFTER,
    EMBED_POINTS,
    MOVE_POINTS,
    POINTS,
    enrol_people,
    judge_re_embedded,
    re_embed_words,
)
from tests.test_tasks_ledger import with_versions

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
        hurt.let_go()
        assert platform.convoy("up")["started"] == [server]
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
    assert not platform.is_over(key), "it was done before the server was back"
    assert weights_when_done(platform, key) == long_weights


@pytest.mark.parametrize("back", [True, False], ids=["back", "away"])
@pytest.mark.parametrize("point", MOVE_POINTS)
def test_a_promotion_whose_records_server_dies_is_made_once(
    point: str, back: bool, platform: Platform, tmp_path: Path
) -> None:
    name = f"moved-{point}-{back}".replace(" ", "-").lower()
    with_versions(platform.home, name, 2)
    words = ["promote", name, "2", "--because", "it is better"]
    with running(platform.home, tmp_path / "hurt", [*words, "--json"], MOVE_POINTS[point]) as hurt:
        hurt.reach()
        platform.kill("mlflow")
        hurt.let_go()
        if back:
            assert platform.convoy("up")["started"] == ["mlflow"]
        code, err = hurt.end()
        assert "Traceback" not in err
        if back:
            document = hurt.document()
        else:
            assert platform.convoy("up")["started"] == ["mlflow"]
            assert code == 1 and NAMES["mlflow"] in err.splitlines()[-1], err
            document = run(platform.home, tmp_path / "again", *words)
    assert (document["action"], document["state"]) == ("promote", "sealed")
    assert ledger.aliases(name) == AFTER["promote"]
    assert [move.action for move in ledger.history(name)] == ["register", "promote"]
    judge_home()


@pytest.fixture(scope="module")
def second(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The successor of the embedder of the gallery `staff`."""
    return enrol_people(platform.home, tmp_path_factory.mktemp("people"))


@pytest.mark.parametrize("back", [True, False], ids=["back", "away"])
def test_a_re_embedding_whose_flows_server_dies_outlasts_it_or_says_so(
    back: bool, second: Path, platform: Platform, tmp_path: Path
) -> None:
    """It has no record in MLflow, and asks its server nothing."""
    gallery = "server-back" if back else "server-away"
    shutil.copytree(folder_of("staff"), folder_of(gallery))
    words = re_embed_words(gallery, second)
    with running(platform.home, tmp_path / "hurt", words, EMBED_POINTS["between batches"]) as hurt:
        hurt.reach()
        platform.kill("prefect")
        hurt.let_go()
        if back:
            assert platform.convoy("up")["started"] == ["prefect"]
        code, err = hurt.end()
        assert "Traceback" not in err
        if not back:
            assert platform.convoy("up")["started"] == ["prefect"]
            assert NAMES["prefect"] in err.splitlines()[-1], err
        assert code == (0 if back else 1), err
    if not back:
        run(platform.home, tmp_path / "again", *words)
    judge_re_embedded(gallery)
