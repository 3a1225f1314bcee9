"""The record of a search: what it suggests, stops and remembers."""

from pathlib import Path
from typing import Any

import pytest

from tasks.space import SearchConfig, parse_space
from tasks.study import Report, Study
from tests.tiny import tiny_config

HOW: dict[str, Any] = {
    "trials": 20, "metric": "val_accuracy", "reduction": 3, "seed": 0, "max_concurrent": 0, "time_budget_s": 0.0,
}  # fmt: skip
TEXTS = ["optim.lr=log:1e-3..1e-1", "train.batch_size=8..64", "model.name=lenet5,resnet8_cifar"]


def study(folder: Path, *texts: str, **changes: Any) -> Study:
    space = parse_space(texts or TEXTS, tiny_config("classification"))
    return Study(folder / "trials.journal", space, SearchConfig.parse(HOW | changes, ""))


def report(value: float, validation: int = 1) -> Report:
    metrics = {"val_accuracy": value}
    return Report(validation, value, 10 * validation, float(validation), 2.0 * validation, metrics)


def value_of(changes: dict[str, Any]) -> float:
    """Something to search by."""
    return 1 - abs(changes["optim.lr"] - 0.02) - (changes["model.name"] == "lenet5") * 0.1


def run(study: Study, num: int) -> list[dict[str, Any]]:
    """Some trials to their ends: what they were to change."""
    found = []
    for _ in range(num):
        trial = study.ask()
        study.finish(trial.number, report(value_of(trial.changes)))
        found.append(trial.changes)
    return found


def test_the_same_seed_suggests_the_same_and_another_one_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    one = run(study(tmp_path / "a"), 14)  # from the tenth on by TPE
    assert run(study(tmp_path / "b"), 14) == one
    assert run(study(tmp_path / "c", seed=1), 14) != one
    assert len({str(changes) for changes in one}) == 14


def test_a_study_that_is_opened_again_suggests_what_it_would_have(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    straight = run(study(tmp_path / "a"), 14)
    assert run(study(tmp_path / "b"), 12) == straight[:12]
    again = study(tmp_path / "b")
    assert [trial.changes for trial in again.trials()] == straight[:12]
    assert run(again, 2) == straight[12:]


def test_the_proposed_values_come_first_and_once(tmp_path: Path) -> None:
    own = {"optim.lr": 0.05, "train.batch_size": 64, "model.name": "lenet5"}
    one = study(tmp_path)
    one.propose(own)
    assert one.ask().changes == own
    again = study(tmp_path)
    again.propose(own)
    assert again.ask().changes != own


def test_values_that_are_lists_come_back_as_lists(tmp_path: Path) -> None:
    one = study(tmp_path, "augment.crop_area=[[1, 1], [0.5, 1]]", "augment.mirror=true,false")
    one.propose({"augment.crop_area": [1.0, 1.0], "augment.mirror": True})
    assert one.ask().changes == {"augment.crop_area": [1, 1], "augment.mirror": True}


def test_of_three_trials_at_a_rung_only_the_best_goes_on(tmp_path: Path) -> None:
    one = study(tmp_path)
    numbers = [one.ask().number for _ in range(6)]
    stopped = [
        one.hear(number, report(value)) for number, value in zip(numbers, (0.5, 0.4, 0.6), strict=False)
    ]
    assert stopped == [False, True, False]  # whoever is best when it comes
    one.break_off(1, "stopped early")
    again = study(tmp_path)  # rungs are remembered
    assert again.hear(3, report(0.55)) is True
    assert again.hear(4, report(0.7)) is False
    assert again.hear(4, report(0.1, 2)) is False  # no rung
    assert again.hear(4, report(0.2, 3)) is False  # the first one there
    assert again.hear(2, report(0.1, 3)) is True


def test_less_loss_is_better(tmp_path: Path) -> None:
    one = study(tmp_path, metric="val_loss")
    for value in (0.5, 0.2, 0.9):
        one.finish(one.ask().number, report(value))
    best = one.best()
    assert best is not None and best.value == 0.2
    number = one.ask().number
    assert one.hear(number, report(0.1)) is False


def test_only_a_trial_that_came_to_its_end_can_be_the_best(tmp_path: Path) -> None:
    one = study(tmp_path)
    assert one.best() is None
    high, low, bad = (one.ask().number for _ in range(3))
    one.hear(high, report(0.9))
    one.break_off(high, "stopped early", "time")
    one.finish(low, report(0.5))
    failed = one.break_off(bad, "failed", "the loss is not finite")
    assert one.best() == one.trial(low)
    assert (failed.state, failed.value, failed.reason) == ("failed", None, "the loss is not finite")
    early = study(tmp_path).trial(high)
    assert (early.state, early.value, early.epoch, early.reason) == ("stopped early", 0.9, 1.0, "time")


def test_a_validation_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    one = study(tmp_path)
    number = one.ask().number
    one.hear(number, report(0.5))
    assert one.hear(number, report(0.4)) is False
    assert one.trial(number).values == {1: 0.5}


def test_a_lock_that_a_killed_process_left_holds_nobody_up(tmp_path: Path) -> None:
    run(study(tmp_path), 1)
    (tmp_path / "trials.journal.lock").symlink_to(tmp_path / "trials.journal")
    assert len(study(tmp_path).trials()) == 1


def test_a_line_that_a_full_disk_has_cut_is_forgotten_and_the_search_goes_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    straight = run(study(tmp_path / "a"), 12)
    run(study(tmp_path / "b"), 11)
    journal = tmp_path / "b" / "trials.journal"
    kept = journal.read_bytes()
    journal.write_bytes(kept + kept.splitlines()[-1][:-9])
    again = study(tmp_path / "b")
    assert journal.read_bytes().startswith(kept + b'{"op_code"')  # Optuna notes that it was opened
    assert run(again, 1) == straight[11:]
    assert [trial.changes for trial in study(tmp_path / "b").trials()] == straight


@pytest.mark.parametrize("place", [1, -1])
def test_a_damaged_line_of_the_journal_is_one_error_that_names_it(place: int, tmp_path: Path) -> None:
    run(study(tmp_path), 2)
    journal = tmp_path / "trials.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[place] = lines[place][:-9] + lines[place]  # as if another had been appended to its half
    journal.write_bytes(b"".join(lines))
    before = journal.read_bytes()
    with pytest.raises(ValueError, match="is damaged, it is no JSON") as caught:
        study(tmp_path)
    told = str(caught.value)
    assert told.startswith(f"{journal}, line {range(len(lines))[place] + 1}, ")
    assert told.endswith("; start the search anew without --resume") and "\n" not in told
    assert journal.read_bytes() == before


@pytest.mark.parametrize("before", [0, 1, 11])  # proposed, drawn one by one, and by TPE all at once
def test_a_trial_whose_values_were_not_all_kept_goes_on_with_all_of_them(before: int, tmp_path: Path) -> None:
    """Each value is an event of the journal, and a kill or a full disk may come between two."""
    values = {"optim.lr": 0.05, "train.batch_size": 64, "model.name": "lenet5"}
    (tmp_path / "a").mkdir()
    straight = study(tmp_path / "a")
    if before == 0:
        straight.propose(values)
    run(straight, before)
    whole = straight.ask()
    lines = (tmp_path / "a" / "trials.journal").read_bytes().splitlines(keepends=True)
    for num_kept in range(len(values) + 1):
        folder = tmp_path / str(num_kept)
        folder.mkdir()
        (folder / "trials.journal").write_bytes(b"".join(lines[: len(lines) - len(values) + num_kept]))
        again = study(folder)
        assert len(again.trial(before).changes) == num_kept
        assert again.go_on(before) == again.trial(before) == whole
        assert study(folder).go_on(before) == whole


def test_importances_are_shares_and_name_what_decides(tmp_path: Path) -> None:
    one = study(tmp_path)
    for _ in range(16):
        trial = one.ask()
        one.finish(trial.number, report(float(trial.changes["model.name"] == "lenet5")))
    shares = one.importances()
    assert set(shares) == set(one.space)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda key: shares[key]) == "model.name"
