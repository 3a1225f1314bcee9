"""What a training done again is judged by, and what cannot be done again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks import machine, registry
from tasks.reproduction import Compared, code_at, compare_metrics, find_origin, judge
from tests.recording import DIGEST, start
from tests.test_tasks_lineage import git

HERE = {"torch": "2.13.0+cpu", "processor": "A, AVX2", "device": "cpu", "threads": "2", "workers": "2"}
SAME, OTHER = Compared("w", "ab", "ab", "equal"), Compared("w", "ab", "cd", "unequal")
INSIDE = Compared("accuracy", 0.9, 0.91, "within 0.85 to 0.94")
OUTSIDE = Compared("accuracy", 0.9, 0.99, "outside 0.85 to 0.94")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with one commit, whose checkout is a folder in it."""
    folder = tmp_path / "repository" / "convoy"
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[project]\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", "-A")
    git(folder.parent, "commit", "-q", "-m", "first")
    return folder


def test_a_process_says_what_it_computes_on() -> None:
    said = machine.describe(torch.device("cpu"), 2)
    assert set(said) == set(HERE)
    assert (said["torch"], said["device"]) == (torch.__version__, "cpu")
    assert said["threads"] == str(torch.get_num_threads())
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and "model name" in cpuinfo.read_text():
        assert said["processor"].rpartition(", ")[0] in cpuinfo.read_text()


def test_nothing_excuses_other_bits_on_the_same_machine() -> None:
    assert machine.differences(HERE, HERE) == []
    assert machine.differences(HERE, HERE | {"threads": "1"}) == ["threads: 2 then, 1 now"]
    assert machine.differences(HERE | {"device": "H100"}, HERE) == ["it was trained on a GPU (H100)"]
    assert machine.differences({}, {"torch": "2"}) == ["torch: not recorded then, 2 now"]


def test_a_run_that_moved_names_all_it_was_computed_on_and_one_that_stayed_does_not() -> None:
    once = machine.joined({}, HERE)
    assert once == machine.joined(once, HERE) == HERE
    moved = machine.joined(once, HERE | {"threads": "4"})
    assert moved["threads"] == "2 then 4"
    assert machine.joined(moved, HERE | {"threads": "4"}) == moved


@pytest.mark.parametrize(
    ("weights", "metrics", "may_differ", "outcome"),
    [
        # the same weights: what a test on them gives is no matter of training
        ([SAME], [OUTSIDE], [], "equal"),
        ([SAME], [], ["threads"], "equal"),
        ([SAME, OTHER], [INSIDE], [], "unequal"),
        ([OTHER], [INSIDE], ["threads"], "within intervals"),
        ([OTHER], [INSIDE, OUTSIDE], ["threads"], "unequal"),
        ([OTHER], [], ["threads"], "unknown"),
        ([OTHER], [OTHER], ["threads"], "unknown"),
        ([OTHER], [SAME], ["threads"], "within intervals"),
    ],
)
def test_weights_decide_where_bits_must_be_the_same_and_intervals_where_not(
    weights: list[Compared], metrics: list[Compared], may_differ: list[str], outcome: str
) -> None:
    assert judge(weights, metrics, may_differ)[0] == outcome


def test_metrics_are_compared_with_their_intervals_and_the_clocks_are_left_out(tmp_path: Path) -> None:
    recorded = {
        "accuracy": 0.9,
        "accuracy_low": 0.85,
        "accuracy_high": 0.94,
        "nll": 0.4,
        "images_per_s": 900.0,
    }
    file = tmp_path / "metrics.json"
    file.write_text(
        '{"accuracy": 0.95, "accuracy_low": 0.9, "accuracy_high": 0.99, "nll": 0.4, "images_per_s": 5}'
    )
    found = {each.name: each.verdict for each in compare_metrics(recorded, file)}
    assert found == {"accuracy": "outside 0.85 to 0.94", "nll": "equal"}


def test_the_code_of_a_commit_lies_beside_and_nothing_of_it_stays(checkout: Path, tmp_path: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "pyproject.toml").write_text("changed\n")
    found = {}

    def fail() -> None:
        with code_at(checkout, commit, tmp_path / "code") as code:
            found.update(
                text=(code / "pyproject.toml").read_text(), status=git(code, "status", "--porcelain")
            )
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert found == {"text": "[project]\n", "status": ""}
    assert not (tmp_path / "code").exists()
    assert len(git(checkout, "worktree", "list").splitlines()) == 1
    assert (checkout / "pyproject.toml").read_text() == "changed\n"


@pytest.fixture
def recorded(module_home: Path, tmp_path: Path, checkout: Path) -> Callable[..., str]:
    """Records a run that was trained by the checkout's commit, with some tags changed; returns its key."""

    def record(key: str, **changed: str) -> str:
        tags = {"git.commit": git(checkout, "rev-parse", "HEAD"), "git.dirty": "false", "dvc.digest": DIGEST,
                "trained.executor": "in_process"}  # fmt: skip
        run_id = start(key, module_home / "data" / "store" / "pets", tags=tags | changed)
        (tmp_path / "job.json").write_text('{"dataset": "pets"}')
        registry.log_folder(run_id, tmp_path / "job.json", "job")
        registry.finish_run(run_id, "FINISHED")
        return key

    return record


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"git.dirty": "true"}, "differed from its commit .*commit the code"),
        ({"git.commit": "c0ffee" * 6 + "cafe"}, "lacks the commit c0ffee.*git fetch"),
        ({"git.commit": ""}, "nobody recorded which code"),
        ({"dvc.digest": ""}, "nobody recorded which data.*dvc add data/store/pets"),
        ({"ensemble.members": "k-0, k-1"}, "is an ensemble: reproduce its members, k-0, k-1"),
    ],
)
def test_what_nobody_can_train_again_is_refused_saying_what_to_do(
    changed: dict[str, str], said: str, recorded: Callable[..., str], checkout: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        find_origin(recorded(f"run-{len(said)}", **changed), checkout)


def test_a_run_that_did_not_end_is_refused(module_home: Path, checkout: Path) -> None:
    start("begun", module_home / "data" / "store" / "pets")
    with pytest.raises(ValueError, match=r"RUNNING.*no training that ended"):
        find_origin("begun", checkout)
