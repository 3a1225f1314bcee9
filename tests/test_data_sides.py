"""Images keep their side of the split from version to version: what was tested on is never trained on later."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.checks import check
from data.dataset import EARLIER_FILE, SPLITS, Dataset, Split
from data.ingest import IngestConfig, ingest
from data.report import IngestReport
from data.sides import Earlier, join_earlier, known_images, losses, read_earlier, without_copies
from data.splits import assign_splits
from tests.pictures import class_tree, encode, picture, png, write_tree

CONFIG = IngestConfig(val_fraction=0.2, test_fraction=0.3, near_duplicate_distance=3, max_source_gb=1)
ALL_TEST = CONFIG.model_copy(update={"val_fraction": 0.0, "test_fraction": 0.9})
NO_TEST = CONFIG.model_copy(update={"val_fraction": 0.0, "test_fraction": 0.0})


class Store:
    """A dataset that is ingested again and again, each time beside what the last version knew."""

    def __init__(self, folder: Path, family: str = "classification") -> None:
        self.folder, self.family = folder, family
        self.earlier: Earlier | None = None
        self.number = 0

    def add(
        self, files: dict[str, bytes], config: IngestConfig = CONFIG, fresh: bool = False, source: str = ""
    ) -> IngestReport:
        self.number += 1
        root = write_tree(self.folder / f"source{self.number}" / "x", files)
        report = ingest(
            root / source, name="set", family=self.family, store=self.folder / "store", config=config, workers=1,
            earlier=self.earlier, fresh_splits=fresh,
        )  # fmt: skip
        kept = self.folder / f"version{self.number}"
        shutil.copytree(self.dataset.path, kept)  # the next ingest replaces what it reads from
        self.earlier = read_earlier(Dataset.open(kept))
        return report

    @property
    def dataset(self) -> Dataset:
        return Dataset.open(self.folder / "store" / "set")

    def sides(self) -> dict[str, Split]:
        return {
            id: split
            for split in SPLITS
            for id in self.dataset.table(split, ["id"])["id"].to_pylist()
        }  # fmt: skip

    def bytes(self) -> dict[str, str]:
        files = sorted(self.dataset.path.iterdir())
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def of(store: Store, split: Split) -> list[str]:
    return sorted(id for id, side in store.sides().items() if side == split)


def test_known_images_keep_their_side_when_the_fractions_change(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    before = store.sides()
    assert set(before.values()) == set(SPLITS)
    report = store.add(files | {f"a/new{i}.png": png(500 + i) for i in range(20)}, ALL_TEST)
    after = store.sides()
    assert {id: after[id] for id in before} == before
    assert {after[id] for id in after if id not in before} == {"test", "train"}
    assert (report.known_images, report.moved) == (40, ())


def test_the_same_source_again_gives_the_same_bytes_whatever_came_before(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    assert EARLIER_FILE not in store.bytes()
    first = store.bytes()
    store.add(files)
    assert store.bytes() == first
    fewer = {name: data for name, data in files.items() if not name.endswith("7.png")}
    store.add(fewer, NO_TEST)
    second = store.bytes()
    assert EARLIER_FILE in second
    store.add(fewer, NO_TEST)
    assert store.bytes() == second
    assert check(store.dataset).problems == ()


def test_a_test_image_that_left_and_came_back_is_a_test_image(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    gone = of(store, "test")[0]
    others = {name: data for name, data in files.items() if name != gone}
    for config in (NO_TEST, CONFIG):  # two versions without it
        store.add(others, config)
        assert gone not in store.sides()
    store.add(others | {"a/under another name.png": files[gone]}, NO_TEST)
    assert store.sides()["a/under another name.png"] == "test"
    assert EARLIER_FILE not in store.bytes()


def test_other_pixels_under_a_known_id_stay_on_its_side(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    changed = of(store, "test")
    report = store.add(files | {id: png(700 + i) for i, id in enumerate(changed)}, NO_TEST)
    assert of(store, "test") == changed
    assert report.known_images == 40


def test_an_id_whose_old_image_is_still_there_says_nothing_of_the_new_one() -> None:
    earlier = Earlier(["1", "2"], ["A", "B"], ["A", "B"], ["test", "val"], {}, [])
    assert known_images(earlier, ["1", "2", "3"], ["new", "A", "B"]) == [None, "test", "val"]
    assert known_images(earlier, ["1", "2"], ["new", "B"]) == ["test", "val"]


def test_copies_of_one_image_on_two_sides_count_for_test() -> None:
    earlier = Earlier(["1", "2"], ["A", "A"], ["A", "A"], ["train", "test"], {}, [])
    assert known_images(join_earlier([earlier, earlier]), ["9"], ["A"]) == ["test"]


def test_new_copies_of_known_bytes_are_not_earlier_images(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    kept = of(store, "test")[0]
    copies = {f"a/copy {i}.png": files[kept] for i in range(3)}
    assert store.add(files | copies).known_images == 40
    assert {store.sides()[id] for id in copies} == {"test"}
    renamed = {id: data for id, data in files.items() if id != kept} | copies
    assert store.add(renamed).known_images == 42  # the copies are earlier images now


def test_of_a_source_that_moves_an_image_and_its_new_copies_the_image_alone_counts() -> None:
    earlier = Earlier(["1", "2"], ["A", "B"], ["A", "B"], ["test", "test"], {}, [])
    ids, keys = ["1", "8", "9", "2", "3"], ["A", "A", "B", "C", "B"]
    known = known_images(earlier, ids, keys)
    none, test, train = [None] * 5, ["test"] * 2, ["train"] * 5
    assert without_copies(earlier, ids, keys, known, train) == ["test", None, "test", None, None]
    assert without_copies(earlier, ["8", "9"], ["A", "A"], test, none[:2]) == ["test", None]
    assert without_copies(earlier, ["8", "9"], ["A", "A"], test, ["test", "train"]) == [None, "test"]
    assert without_copies(earlier, ["1", "2"], ["C", "D"], test, none[:2]) == ["test", "test"]


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        ([f"{c}/{i}.png" for c in "ab" for i in range(1, 20)], ()),
        ([*(f"a/{i}.png" for i in range(20)), "c/new.png"], ("class b of v is gone",)),
        (["a/0.png", "a/1.png", "b/0.png", "b/1.png"], ()),
        (["a/0.png", "b/0.png", "b/1.png"], ("37 of the 40 pictures of v are gone",)),
    ],
)
def test_what_a_version_lost_is_told_where_it_may_be_a_mistake(
    store: Store, names: list[str], texts: tuple[str, ...]
) -> None:
    files = class_tree("ab", 20)
    store.add(files, NO_TEST)
    before = Dataset.open(store.folder / "version1")
    store.add({name: files.get(name, png(900)) for name in names}, NO_TEST)
    assert losses(before, store.dataset, "v") == texts


def test_a_split_that_became_empty_is_told(store: Store) -> None:
    store.add(class_tree("ab", 20))
    before = Dataset.open(store.folder / "version1")
    store.add(class_tree("ab", 20), NO_TEST, fresh=True)
    texts = [f"no {s} pictures are left; v had {before.info.num_images(s):,}" for s in ("val", "test")]
    assert losses(before, store.dataset, "v") == tuple(texts)


def test_a_new_near_duplicate_of_a_test_image_follows_it(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    copies = {f"b/copy{i}.jpg": encode(picture(i), "JPEG", quality=80) for i in range(20)}
    store.add(files | copies, NO_TEST)
    sides = store.sides()
    assert {sides[f"b/copy{i}.jpg"] == sides[f"a/{i}.png"] for i in range(20)} == {True}
    assert {sides[name] for name in copies} == set(SPLITS)


def test_a_test_image_that_comes_back_encoded_again_is_a_test_image(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    before = store.sides()
    others = {name: data for name, data in files.items() if not name.startswith("a/")} | {"a/x.png": png(99)}
    again = {f"a/again{i}.jpg": encode(picture(i), "JPEG", quality=80) for i in range(20)}
    held_out = {f"a/again{i}.jpg": before[f"a/{i}.png"] for i in range(20) if before[f"a/{i}.png"] != "train"}
    assert set(held_out.values()) == {"val", "test"}
    store.add(others, NO_TEST)  # they are gone: only their thumbnails are left
    store.add(others | again, NO_TEST)
    after = store.sides()
    assert {id: after[id] for id in held_out} == held_out
    bytes_before = store.bytes()
    store.add(others | again, NO_TEST)
    assert store.bytes() == bytes_before


def test_where_clusters_merge_test_wins_and_what_moved_is_counted(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    test, val, (train, second) = of(store, "test")[0], of(store, "val")[0], of(store, "train")[:2]
    groups = {test: "one", train: "one", val: "two", second: "two"}
    table = "path,label,group\n" + "".join(f"{name},{name[0]},{groups.get(name, '')}\n" for name in files)
    report = store.add(files | {"list.csv": table.encode()}, source="list.csv")
    sides = store.sides()
    assert (sides[test], sides[train], sides[val], sides[second]) == ("test", "test", "val", "val")
    assert [(m.before, m.after, m.by_source, m.examples) for m in report.moved] == [
        ("train", "val", False, (second,)), ("train", "test", False, (train,)),
    ]  # fmt: skip
    assert check(store.dataset).problems == ()


def test_a_person_who_was_tested_on_stays_in_test_with_other_photos(tmp_path: Path) -> None:
    store = Store(tmp_path, "faces")
    people = "abcdefghij"
    store.add({f"{name}/{i}.png": png(100 * ord(name) + i) for name in people for i in range(2)})
    tested = {id[0] for id in of(store, "test")}
    assert 0 < len(tested) < 10
    store.add(
        {f"{name}/new{i}.png": png(9000 + 100 * ord(name) + i) for name in people for i in range(2)}, NO_TEST
    )
    assert {id[0] for id in of(store, "test")} == tested


def test_the_sources_own_splits_stand_and_what_they_do_to_the_test_set_is_told(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    moved = of(store, "test")
    own = {f"train/{name}": files[name] for name in files} | {
        f"test/{name}": data for name, data in class_tree("cd", 4).items()
    }
    own |= {f"train/{name}": png(80 + ord(name[0])) for name in ("c/1.png", "d/1.png")}
    report = store.add(own)
    sides = store.sides()
    assert {sides[f"train/{id}"] for id in moved} == {"train"}
    (told,) = (m for m in report.moved if (m.before, m.after) == ("test", "train"))
    assert told.by_source
    assert told.images == len(moved)


def test_a_validation_image_stays_one_beside_the_sources_own_test_split(store: Store) -> None:
    files = {f"train/{name}": data for name, data in class_tree("ab", 20).items()}
    files |= {f"test/a/{i}.jpg": encode(picture(i), "JPEG", quality=80) for i in range(20)} | {
        "test/b/1.png": png(1)
    }
    store.add(files)
    before = store.sides()
    assert set(before.values()) == set(SPLITS)
    fewer = {name: data for name, data in files.items() if name != "test/a/3.jpg"}
    assert store.add(fewer).moved == ()
    assert store.sides() == {id: side for id, side in before.items() if id in fewer}
    # the source trains on it now
    (moved,) = store.add({**fewer, "train/a/3.png": files["test/a/3.jpg"]}).moved
    assert (moved.before, moved.by_source, moved.examples) == ("test", True, ("train/a/3.png",))


def test_new_images_are_split_alike_beside_an_earlier_version_where_the_source_leaves_one_open(
    store: Store, tmp_path: Path
) -> None:
    names = [f"{label}/new{i}.png" for label in "ab" for i in range(20)] + ["a/open.png"]
    table = "path,label,split\n" + "".join(
        f"{name},{name[0]},{'' if name == 'a/open.png' else 'train'}\n" for name in names
    )
    files = {name: png(300 + i) for i, name in enumerate(names)} | {"list.csv": table.encode()}
    alone = Store(tmp_path / "alone")
    alone.add(files, source="list.csv")
    assert set(alone.sides().values()) == set(SPLITS)
    store.add(class_tree("ab", 20))
    store.add(files, source="list.csv")
    assert store.sides() == alone.sides()


def test_a_source_with_train_alone_does_not_take_known_test_images_into_training(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    before = store.sides()
    store.add({f"train/{name}": data for name, data in files.items()}, NO_TEST)
    assert {id.removeprefix("train/"): side for id, side in store.sides().items()} == before


def test_fresh_splits_leave_earlier_versions_out_of_account_and_forget_them(
    store: Store, tmp_path: Path
) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    others = class_tree("ab", 15)
    store.add(others, ALL_TEST)
    assert EARLIER_FILE in store.bytes()
    report = store.add(others, ALL_TEST, fresh=True)
    assert report.fresh_splits
    assert sum(moved.images for moved in report.moved) > 5
    alone = Store(tmp_path / "alone")
    alone.add(others, ALL_TEST)
    assert store.bytes() == alone.bytes()
    store.add(others, CONFIG)  # and what was drawn afresh holds from then on
    assert store.sides() == alone.sides()


def test_what_is_remembered_is_what_is_gone(store: Store) -> None:
    files = class_tree("ab", 20)
    store.add(files)
    before = store.sides()
    store.add({name: data for name, data in files.items() if not name.startswith("a/1")})
    table = pq.read_table(store.dataset.path / EARLIER_FILE)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert {id: row["split"] for id, row in rows.items()} == {
        id: side for id, side in before.items() if id.startswith("a/1")
    }
    for id, row in rows.items():
        assert row["sha256"] == hashlib.sha256(files[id]).hexdigest()
        assert (row["thumb"] is None) == (before[id] == "train")


# ---------------------------------------------------------------------------------------- for any history

# A picture, what its file is called, and what the source says of it; "~" is a copy, encoded again.
entries = st.tuples(
    st.integers(0, 9),
    st.sampled_from(["", "~"]),
    st.integers(0, 11),
    st.sampled_from(["", "", "", "train", "val", "test"]),
    st.sampled_from(["", "", "ann", "bob"]),
)
histories = st.lists(
    st.tuples(
        st.lists(entries, min_size=3, max_size=12, unique_by=lambda entry: entry[2]),
        st.booleans(),  # whether the source has splits
        st.sampled_from([0.0, 0.3, 0.6]),
        st.sampled_from([0.0, 0.2]),
    ),
    min_size=2,
    max_size=4,
)
PICTURES = [(png(i), encode(picture(i), "JPEG", quality=80)) for i in range(10)]


def source_of(rows: list[Any], with_splits: bool) -> tuple[dict[str, bytes], dict[str, str]]:
    """Files of a CSV source, and the split that it gives each image."""
    files, given_splits, lines = {}, {}, ["path,label,split,group"]
    for seed, copy, number, split, group in rows:
        name = f"{number}.png"
        files[name] = PICTURES[seed][bool(copy)]
        given_splits[name] = split if with_splits else ""
        lines.append(f"{name},{'ab'[number % 2]},{given_splits[name]},{group}")
    return files | {"list.csv": "\n".join(lines).encode()}, given_splits


@given(histories)
@settings(max_examples=25, deadline=None)
def test_what_was_ever_in_test_is_in_train_later_only_if_the_source_says_so(history: Any) -> None:
    tested: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for rows, with_splits, test_fraction, val_fraction in history:
            files, given_splits = source_of(rows, with_splits)
            config = CONFIG.model_copy(update={"test_fraction": test_fraction, "val_fraction": val_fraction})
            try:
                store.add(files, config, source="list.csv")
            except ValueError as error:
                assert "only one class" in str(error) or "left for training" in str(error)  # noqa: PT017
                continue
            sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            sides = store.sides()
            for id, side in sides.items():
                if side == "train" and sha256[id] in tested:
                    assert given_splits[id] == "train" and "test" in given_splits.values()
            tested -= set(sha256.values())  # from now on an image is where the source put it
            tested |= {sha256[id] for id, side in sides.items() if side == "test"}
            before = store.bytes()
            store.add(files, config, source="list.csv")
            assert store.bytes() == before
            assert check(store.dataset).problems == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, "train", "val", "test"]),
            st.sampled_from("abcd"),
            st.sampled_from([None, "train", "val", "test"]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_splits_beside_known_sides_are_settled_after_one_step(rows: Any) -> None:
    given_splits, groups, known = (list(column) for column in zip(*rows, strict=True))
    try:
        splits = assign_splits(given_splits, groups, CONFIG, known)
    except ValueError as error:
        assert "left for training" in str(error)  # noqa: PT017
        return
    assert assign_splits(given_splits, groups, CONFIG, splits) == splits
    for from_source, before, split in zip(given_splits, known, splits, strict=True):
        if from_source in ("val", "test"):
            assert split == from_source
        elif before == "test" and split != "test":
            assert from_source == "train" and "test" in given_splits
    for group in set(groups):
        free = {
            s
            for s, g, given_split in zip(splits, groups, given_splits, strict=True)
            if (g, given_split) == (group, None)
        }
        assert len(free) <= 1
