"""`./convoy data` on every family: added, listed, shown, checked, exported; training refuses what it does not know."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.commands_data import count_tables
from tasks import placing, versions
from tests.annotated import coco_json, pts
from tests.conftest import Run
from tests.pictures import class_tree, png, write_tree
from tests.servers import serve
from tests.test_data_archive import pack_tar

pytestmark = pytest.mark.usefixtures("module_home")


def source_of(family: str) -> dict[str, bytes]:
    pictures = {f"{i}.png": png(i) for i in range(12)}
    if family == "detection":
        boxes = [{"image_id": i, "category_id": 1, "bbox": [1, 1, 60, 9]} for i in range(11)]
        return pictures | {"a.json": coco_json([{"file_name": name} for name in pictures], boxes)}
    if family == "landmarks":
        return pictures | {f"{i}.pts": pts((1, 1), (2, 2)) for i in range(11)}
    if family == "style":
        return pictures
    people = class_tree("abcdef", 4)
    return people | {"pairs.csv": b"path_a,path_b,same\na/1.png,a/2.png,1\na/1.png,b/1.png,0\n"}


SHOWN = {  # format out, and what a person sees of adding and showing it
    "detection": ("coco", ("boxes over the edge, cut there", "images without boxes"), ("Boxes", "cat")),
    "landmarks": ("folders", ("images without landmarks",), ("pictures", "points")),
    "faces": ("folders", ("2 pairs from pairs.csv",), ("Identities", "pairs.parquet")),
    "style": ("folders", (), ("pictures",)),
}


def test_people_are_counted_in_the_split_that_has_their_pictures() -> None:
    counts = {"train": {"ann": 2, "bob": 4, "cem": 0}, "val": {"ann": 0, "bob": 0, "cem": 3}}
    [view] = count_tables("faces", counts, None)
    assert [column.header for column in view.columns] == ["", "train", "val"]
    assert [list(column.cells) for column in view.columns] == [["people", "pictures"], ["2", "6"], ["1", "3"]]


@pytest.mark.parametrize("family", SHOWN)
def test_a_dataset_of_any_family_is_added_listed_shown_checked_and_exported(
    run: Run, tmp_path: Path, family: str
) -> None:
    form, added, shown = SHOWN[family]
    source = write_tree(tmp_path / "source", source_of(family))
    code, out, _ = run("data", "add", str(source), "--name", f"x-{family}", "--family", family)
    assert code == 0
    assert all(text in out for text in added)
    assert f"next: ./convoy train {family} --dataset x-{family}" in out
    rows = json.loads(run("data", "list", "--json")[1])["datasets"]
    (row,) = (row for row in rows if row["name"] == f"x-{family}")
    assert row["family"] == family
    assert row["train"] + row["val"] + row["test"] == len(
        [name for name in source_of(family) if name.endswith(".png")]
    ) - (family == "landmarks")
    code, out, err = run("data", "show", f"x-{family}")
    assert (code, err) == (0, "")
    assert all(text in out for text in shown)
    assert json.loads(run("data", "check", f"x-{family}", "--json")[1])["problems"] == []
    code, out, err = run(
        "data", "export", f"x-{family}", "--format", form, "--out", str(tmp_path / "out"), "--json"
    )
    assert code == 0
    assert sum(json.loads(out)["images"].values()) == row["train"] + row["val"] + row["test"]
    code, _, err = run("data", "export", f"x-{family}", "--format", form, "--out", str(tmp_path / "out"))
    assert code != 0
    assert "is there and not empty" in err


def test_training_refuses_a_dataset_of_another_family(run: Run, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "source", source_of("detection"))
    run("data", "add", str(source), "--name", "blood", "--family", "detection")
    code, _, err = run("train", "classification", "--dataset", "blood")
    assert code != 0
    assert "dataset 'blood' is for detection, not for classification" in err
    code, _, err = run("train", "birds", "--dataset", "blood")
    assert code != 0
    assert "classification" in err


def test_an_unknown_family_lists_the_known_ones(run: Run, tmp_path: Path) -> None:
    code, _, err = run("data", "add", str(tmp_path), "--name", "x", "--family", "birds")
    assert code != 0
    assert "detection" in err


def test_a_url_is_added_with_the_checksum_that_came_and_fetched_once(run: Run, tmp_path: Path) -> None:
    packed = pack_tar(tmp_path / "x.tar", class_tree()).read_bytes()
    sha256 = hashlib.sha256(packed).hexdigest()
    with serve(packed) as site:
        secret = site.url.replace("//127", "//me:hush@127", 1) + "?token=hush"
        code, out, err = run("data", "add", secret, "--name", "far")
        assert code == 0
        assert f"--sha256 {sha256} is what came; give it next time" in out
        assert "hush" not in out + err
        code, out, err = run("data", "add", secret, "--name", "far", "--sha256", sha256)
        assert (code, len(site.asked)) == (0, 1)
        assert "is what came" not in out
        code, out, err = run("data", "add", site.url, "--name", "far", "--sha256", "0" * 64)
        assert (code, len(err.splitlines()[-1:])) == (2, 1)
        assert f"wrong checksum: expected {'0' * 64}, got {sha256}" in err
    shown = json.loads(run("data", "show", "far", "--json")[1])
    assert shown["source"] == f"{site.url}#sha256={sha256}"
    assert run("data", "add", shown["source"], "--name", "far")[0] == 0  # the server is gone
    code, _, err = run("data", "add", "gopher://x/y.tar", "--name", "far")
    assert (code, err.count("\n")) == (2, 1)


def test_add_says_what_training_will_say(run: Run, tmp_path: Path) -> None:
    pictures = {f"train/a/{i}.png": png(i) for i in range(20)} | {
        f"test/{c}/{i}.png": png(900 + 10 * k + i) for k, c in enumerate("ab") for i in range(4)
    }
    source = write_tree(tmp_path / "lost", pictures)
    code, out, _ = run("data", "add", str(source), "--name", "lost")
    assert code == 0 and "training will not start on it: class-missing" in out and "next:" not in out
    large = {f"{c}/{i}.png": png(100 * k + i, 200, 170) for k, c in enumerate("ab") for i in range(12)}
    code, out, _ = run("data", "add", str(write_tree(tmp_path / "large", large)), "--name", "large")
    assert code == 0 and "next: ./convoy train classification --dataset large --recipe photos" in out


def test_what_is_removed_before_it_can_be_checked_was_added_all_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(*arguments: Any, **named: Any) -> versions.Added:
        added = versions.add(*arguments, **named)
        placing.remove("gone")
        return added

    monkeypatch.setattr("pipelines.commands_add.versions", SimpleNamespace(**{**vars(versions), "add": add}))
    source = str(write_tree(tmp_path / "gone", class_tree("ab", 12)))
    code, out, err = run("data", "add", source, "--name", "gone", "--json")
    assert code == 0, err
    assert json.loads(out)["findings"] is None and json.loads(out)["version"] == 1


def test_a_dataset_that_is_there_and_broken_is_still_an_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise ValueError("the test shards cannot be read")

    monkeypatch.setattr("pipelines.commands_add.examine", fail)
    source = str(write_tree(tmp_path / "broken", class_tree("ab", 12)))
    code, _, err = run("data", "add", source, "--name", "broken")
    assert code == 2 and "the test shards cannot be read" in err


def test_add_tells_what_check_tells_by_the_same_numbers_in_the_same_words(run: Run, tmp_path: Path) -> None:
    pictures = class_tree("ab", 12, "train/") | {"test/b/new.png": png(77)}
    pictures["test/a/same.png"] = pictures["val/b/same.png"] = pictures["train/a/3.png"]
    pictures["train/a/twice.png"] = pictures["train/a/4.png"]
    source = str(write_tree(tmp_path / "leaky", pictures))
    added = json.loads(run("data", "add", source, "--name", "leaky", "--json")[1])["findings"]
    checked = json.loads(run("data", "check", "leaky", "--json")[1])["findings"]
    assert added == checked
    amounts = {finding["name"]: (finding["count"], finding["of"], finding["unit"]) for finding in added}
    assert amounts["duplicates-across-splits"] == (1, 1, "val pictures")
    assert amounts["duplicates"] == (1, 28, "pictures")
    said = [
        run(*command)[1]
        for command in (("data", "add", source, "--name", "leaky"), ("data", "check", "leaky"))
    ]
    for text in said:
        assert "1 of 1 val picture (100%): 1 of 2 in test" in " ".join(text.split())
