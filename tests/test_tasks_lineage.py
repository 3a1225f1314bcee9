import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.parameters import Parameters
from tasks import versioning
from tasks.lineage import Lineage, data_state, git_state, params_sha256, resolve


class Train(Parameters):
    seed: int
    lr: float


class Config(Parameters):
    dataset: str
    train: Train


class Swapped(Parameters):
    train: Train
    dataset: str


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with one commit, laid out like ours."""
    folder = tmp_path / "checkout"
    (folder / "data" / "store").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[project]\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_checkout_gives_its_commit(checkout: Path) -> None:
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), False, "")


@pytest.mark.parametrize("file", ["pyproject.toml", "new.py"])
def test_changed_and_new_code_is_dirty(checkout: Path, file: str) -> None:
    (checkout / file).write_text("changed\n")
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), True, "")


def test_what_dvc_writes_does_not_make_the_code_dirty(checkout: Path) -> None:
    for file in (
        "data/store/digits.dvc",
        "data/store/digits.versions.json",
        "data/store/.gitignore",
        "dvc.lock",
    ):
        (checkout / file).write_text("outs: []\n")
    assert git_state(checkout)[1] is False


def test_outside_git_the_commit_is_empty_and_the_reason_is_told(tmp_path: Path) -> None:
    commit, dirty, problem = git_state(tmp_path)
    assert (commit, dirty) == ("", True)
    assert str(tmp_path) in problem
    assert "not a git repository" in problem


def test_a_copy_inside_another_repository_does_not_take_its_commit(checkout: Path) -> None:
    copy = checkout / "vendored"
    copy.mkdir()
    (copy / "pyproject.toml").write_text("[project]\n")
    assert git_state(copy)[0] == ""
    assert "does not track" in git_state(copy)[2]


def test_a_repository_without_a_commit_says_so(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    commit, _, problem = git_state(tmp_path)
    assert commit == ""
    assert "single revision" in problem


def test_without_git_the_commit_is_empty(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state(checkout) == (
        "",
        True,
        f"the commit of the code in {checkout} is unknown: git is not installed",
    )


def test_a_surrounding_git_hook_does_not_redirect_the_question(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere.git"))
    assert git_state(checkout)[2] == ""


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), lr=st.floats(allow_nan=False, allow_infinity=False), name=st.text())
def test_equal_parameters_have_equal_hashes_whatever_the_order_of_fields(
    seed: int, lr: float, name: str
) -> None:
    train = Train(seed=seed, lr=lr)
    assert params_sha256(Config(dataset=name, train=train)) == params_sha256(
        Swapped(train=train, dataset=name)
    )


def test_another_value_is_another_hash() -> None:
    hashes = {
        params_sha256(Config(dataset=name, train=Train(seed=seed, lr=lr)))
        for name in ("digits", "cifar10")
        for seed in (0, 1)
        for lr in (0.1, 0.2)
    }
    assert len(hashes) == 8


def test_the_hash_of_known_parameters_stays() -> None:
    # printf '{"dataset":"d","train":{"lr":0.5,"seed":1}}' | sha256sum
    expected = "6ecdee20f991efef366ff91327f7db7c63ba7e785269e23da39fa9ab34fb8e72"
    assert params_sha256(Config(dataset="d", train=Train(seed=1, lr=0.5))) == expected


def test_data_that_nobody_recorded_has_no_digest(tmp_path: Path) -> None:
    digest, problem = data_state(tmp_path)
    assert digest == ""
    assert "does not track" in problem


def test_the_digest_is_of_the_bytes_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "a").write_text("one")
    then = versioning.measure(folder)
    (tmp_path / "digits.dvc").write_text(f"outs:\n- md5: {then}\n  path: digits\n")
    assert data_state(folder) == (then, "")

    (folder / "a").write_text("two")
    digest, problem = data_state(folder)
    assert digest == versioning.measure(folder) != then
    assert then in problem


def test_tags_name_everything_and_are_text(checkout: Path, tmp_path: Path) -> None:
    config = Config(dataset="digits", train=Train(seed=7, lr=0.1))
    lineage = resolve(config=config, dataset_path=tmp_path, key="k1", flow_run_id="f1", root=checkout)
    assert lineage == Lineage(
        key="k1", git_commit=git(checkout, "rev-parse", "HEAD"), git_dirty=False, dvc_digest="",
        params_sha256=params_sha256(config), seed=7, prefect_flow_run_id="f1",
        problems=lineage.problems,
    )  # fmt: skip
    assert lineage.tags() == {
        "convoy.key": "k1", "git.commit": lineage.git_commit, "git.dirty": "false", "dvc.digest": "",
        "params.sha256": lineage.params_sha256, "prefect.flow_run_id": "f1", "seed": "7",
    }  # fmt: skip
    assert len(lineage.problems) == 1
