"""The page of a comparison: what it holds, from numbers that are worked by hand."""

from pathlib import Path

import pytest

from tasks import registry
from tasks.compare import describe, group_runs
from tasks.comparepage import compare_page, metric_rows, read_curves, told
from tasks.runrecords import named_records
from tests.recording import start

HISTORY = """step,loss,num_steps,epoch,val_loss
1,2.0,4,0.5,
2,1.5,4,1.0,1.25
3,1.0,4,1.5,1.25
4,0.5,4,2.0,0.75
"""
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def keys(module_home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two trainings, the first of two seeds; the second has no course and no picture."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "history.csv").write_text(HISTORY)
    (folder / "confusion.png").write_bytes(PIXEL)
    assert module_home.is_dir()
    for key, seed, lr, accuracy in (("a0", 0, 0.1, 0.8), ("a1", 1, 0.1, 0.9), ("b0", 0, 0.2, 0.7)):
        run_id = start(key, folder, parameters={"train.seed": seed, "optim.lr": lr, "model.name": "<lenet>"})
        registry.log_metrics(
            run_id, {"test.accuracy": accuracy, "cost.cpu_s": 7.0, "cost.gpu_s": 0.0, "cost.wall_s": 9.0}
        )
        if key == "a0":
            registry.log_folder(run_id, folder / "history.csv", "history")
            registry.log_folder(run_id, folder / "confusion.png", "evaluation")
        registry.finish_run(run_id, "FINISHED")
    return ["a0", "a1", "b0"]


def test_a_validation_counts_once_though_it_stands_until_the_next(keys: list[str]) -> None:
    curves = read_curves(named_records(keys)[0])
    assert curves == {
        "loss": ([0.5, 1.0, 1.5, 2.0], [2.0, 1.5, 1.0, 0.5]),
        "val_loss": ([1.0, 2.0], [1.25, 0.75]),
    }
    assert read_curves(named_records(keys)[2]) == {}
    assert told("val_loss", []) == ([], [])


def test_the_page_has_what_differs_the_means_the_costs_and_the_pictures_that_there_are(
    keys: list[str],
) -> None:
    groups, notes = group_runs(named_records(keys))
    documents = [describe(group) for group in groups]
    assert metric_rows(documents) == [["accuracy", "0.85 ± 0.071", "0.7"]]
    pair = {"first": "A", "second": "B", "why_not": "they were not tested on the same <images>"}
    page = compare_page(groups, {"optim.lr": ["0.1", "0.2"]}, documents, [pair], notes)
    assert "<td>optim.lr</td><td>0.1</td><td>0.2</td>" in page
    assert "not tested on the same &lt;images&gt;" in page
    assert page.count("data:image/png;base64,") == 2  # the course, and the one confusion matrix
    assert "<td>7</td><td>0</td><td>9</td><td>–</td>" in page
    assert "Most confident mistakes" not in page
