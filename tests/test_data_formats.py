"""Each layout of a dataset is recognised, and an unclear one is an error that says what to do."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from data.archive import FileTree, memory_tree
from data.decode import decode_image, decode_many
from data.formats import FORMATS, Listing, list_source, list_table, table_tree
from data.formats.listing import ImageIndex
from data.samples import PHOTOS, SAMPLES, read_photo, sample_digits, sample_lfw_subset, sample_tree
from tests.pictures import write_tree


def listing(*names: str) -> Listing:
    return list_source(memory_tree("source", dict.fromkeys(names, b"x")), "classification")


def summary(found: Listing) -> dict[str, tuple[str, str | None]]:
    return {item.id: (item.targets["label"], item.split) for item in found.items}


def test_masks_that_would_become_a_class_are_told() -> None:
    (note,) = listing("images/a.png", "images/b.png", "masks/a.png", "masks/b.png").notes
    assert note.startswith("the folder 'masks' holds a file for each of 'images': masks are not read yet")
    assert listing("images/a.png", "masks/b.png").notes == ()
    assert listing("cat/1.png", "dog/1.png").notes == ()


def test_folders_are_classes() -> None:
    found = listing("cat/1.jpg", "cat/deep/2.jpg", "dog/1.jpg")
    assert summary(found) == {
        "cat/1.jpg": ("cat", None),
        "cat/deep/2.jpg": ("cat", None),
        "dog/1.jpg": ("dog", None),
    }
    assert found.ignored == {}


@pytest.mark.parametrize(
    ("folder", "split"),
    [("train", "train"), ("val", "val"), ("valid", "val"), ("Validation", "val"), ("TEST", "test")],
)
def test_split_folders_are_splits(folder: str, split: str) -> None:
    found = listing(f"{folder}/cat/1.jpg", f"{folder}/dog/1.jpg")
    assert summary(found) == {f"{folder}/cat/1.jpg": ("cat", split), f"{folder}/dog/1.jpg": ("dog", split)}


def test_wrapping_folders_are_left_out_of_ids_but_not_of_paths() -> None:
    for top in ("photos/", "photos/v2/"):
        found = listing(f"{top}train/cat/1.jpg", f"{top}test/dog/1.jpg", f"{top}README.md", "LICENSE")
        assert summary(found) == {"train/cat/1.jpg": ("cat", "train"), "test/dog/1.jpg": ("dog", "test")}
        assert [item.path for item in found.items] == [f"{top}test/dog/1.jpg", f"{top}train/cat/1.jpg"]
        assert found.ignored == {"readme or licence": 2}


def test_lists_beside_the_images_are_ignored_and_counted() -> None:
    found = listing("images/cat/1.jpg", "images/dog/1.jpg", "images/dog/2.jpg", "images/all.txt", "train.txt")
    assert set(summary(found)) == {"cat/1.jpg", "dog/1.jpg", "dog/2.jpg"}
    assert found.ignored == {"not in a class folder": 2}


def test_lists_called_like_splits_are_the_splits() -> None:
    files = dict.fromkeys(
        ["images/cat/1.jpg", "images/cat/2 3.jpg", "images/dog/4.jpg", "images/dog/5.jpg"], b""
    )
    files |= {
        "lists/pets_train.txt": b"1.jpg 1\ncat/2 3.jpg\ngone.jpg 2\n",
        "test.txt": b"images/dog/4.jpg,dog\r\n",
    }
    found = list_source(memory_tree("source", files | {"val.txt": b"other things\n"}), "classification")
    assert summary(found) == {
        "cat/1.jpg": ("cat", "train"),
        "cat/2 3.jpg": ("cat", "train"),
        "dog/4.jpg": ("dog", "test"),
        "dog/5.jpg": ("dog", None),
    }
    assert found.ignored == {"not in a class folder": 1}
    assert found.issues == {"names in lists of splits without an image": ["lists/pets_train.txt: gone.jpg 2"]}


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train.txt": b"a/1.jpg\n", "val.txt": b"a/1.jpg\n"}, r"image 'a/1\.jpg' is listed for train too"),
        ({"train.txt": b"1.jpg\n"}, r"'1\.jpg' may be one of several images; give its class folder too"),
    ],
)
def test_lists_that_are_not_clear_are_an_error(lists: dict[str, bytes], message: str) -> None:
    files = dict.fromkeys(["a/1.jpg", "b/1.jpg"], b"")
    with pytest.raises(ValueError, match=message):
        list_source(memory_tree("source", files | lists), "classification")


def test_folders_of_lists_and_code_are_no_classes() -> None:
    found = listing(
        "images/cat/1.jpg", "images/dog/1.JPG", "images/dog/raw", "splits/train.txt", "code/a/b.py"
    )
    assert set(summary(found)) == {"cat/1.jpg", "dog/1.JPG", "dog/raw"}
    assert found.ignored == {"not in a class folder": 2}


def test_files_need_no_extension() -> None:
    assert set(summary(listing("cat/1", "dog/1"))) == {"cat/1", "dog/1"}


def test_hidden_files_are_ignored_and_counted() -> None:
    found = listing(
        "cat/1.jpg", "dog/1.jpg", "cat/.DS_Store", "__MACOSX/cat/._1.jpg", ".git/config", "dog/Thumbs.db"
    )
    assert set(summary(found)) == {"cat/1.jpg", "dog/1.jpg"}
    assert found.ignored == {"hidden": 4}


def test_a_class_may_be_called_train() -> None:
    found = listing("bus/1.jpg", "train/1.jpg", "train/2.jpg")
    assert summary(found)["train/1.jpg"] == ("train", None)


def test_splits_beside_other_folders_are_unclear() -> None:
    with pytest.raises(ValueError, match=r"split folders \(train\) stand beside others \(extra\)"):
        listing("train/cat/1.jpg", "extra/cat/1.jpg")


def test_a_single_class_is_not_taken_for_a_wrapping_folder() -> None:
    assert summary(listing("cat/1.jpg", "cat/2.jpg")) == {
        "cat/1.jpg": ("cat", None),
        "cat/2.jpg": ("cat", None),
    }
    assert summary(listing("train/cat/1.jpg")) == {"train/cat/1.jpg": ("cat", "train")}


def test_empty_class_folders_are_named() -> None:
    tree = memory_tree("source", {"cat/1.jpg": b"", "dog/1.jpg": b"", "cow/README": b""})
    with_empty = FileTree("source", tree.sizes, tree.folders | {"emu"}, tree.read)
    assert list_source(with_empty, "classification").empty_classes == ("cow", "emu")


@pytest.mark.parametrize("names", [(), ("1.jpg", "2.jpg"), ("README",), (".hidden/cat/1.jpg",)])
def test_a_source_without_class_folders_is_an_error(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no pictures found: put them in one folder per class"):
        listing(*names)


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"family \(='birds'\) has no reader; known: classification"):
        list_source(memory_tree("source", {"a/1": b""}), "birds")


names = st.lists(st.sampled_from(["a", "b", "train", "test", "x.jpg", ".h"]), min_size=1, max_size=5).map(
    "/".join
)


@given(st.sets(names, max_size=8))
@settings(max_examples=300, deadline=None)
def test_every_file_is_an_item_or_counted(files: set[str]) -> None:
    files = {file for file in files if not any(other.startswith(file + "/") for other in files)}
    try:
        found = listing(*files)
    except ValueError:
        return
    assert len(found.items) + sum(found.ignored.values()) == len(files)
    assert len({item.id for item in found.items}) == len(found.items)
    assert {item.path for item in found.items} <= files
    assert all(item.targets["label"] for item in found.items)


def table(tmp_path: Path, text: str) -> Listing:
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode())
    return list_source(table_tree(path), "classification")


def test_a_table_gives_labels_splits_and_groups(tmp_path: Path) -> None:
    found = table(
        tmp_path,
        '\ufefflabel, path ,split,group\r\ncat,a/1.jpg,train,ann\n"dog, big",./a//2.jpg,VALID,\ncat,3.jpg,,bob\n',
    )
    assert [(i.id, i.targets["label"], i.split, i.group) for i in found.items] == [
        ("a/1.jpg", "cat", "train", "ann"),
        ("a/2.jpg", "dog, big", "val", None),
        ("3.jpg", "cat", None, "bob"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"columns \(none\) must have path and label"),
        ("path,label\n", "no row below the columns"),
        ("file,label\n1.jpg,cat\n", "must have path and label"),
        ("path;label\n1.jpg;cat\n", "separated by commas"),
        ("path,label,weight\n1.jpg,cat,3\n", "unknown columns weight"),
        ("path,label,label\n1.jpg,cat,cat\n", "must have path and label"),
        ("path,label\n1.jpg\n", "line 2: it must have 2 fields"),
        ("path,label\n1.jpg,cat,more\n", "line 2: it must have 2 fields"),
        ("path,label\n1.jpg,\n", "line 2: label is empty"),
        ("path,label\n,cat\n", "line 2: path is empty"),
        ("path,label\n1.jpg,cat\n./1.jpg,dog\n", r"line 3: path '1\.jpg' stands in the table twice"),
        ("path,label\n../1.jpg,cat\n", "leads out of its folder"),
        ("path,label\n/etc/passwd,cat\n", "is absolute"),
        ("path,label,split\n1.jpg,cat,holdout\n", r"split \(='holdout'\) must be one of train"),
        ("path,label\n1.jpg,c\x07t\n", "control characters"),
        ("path,lab\x1del\n1.jpg,cat\n", r"column 'lab.x1del' holds control characters"),
        ('path,label\n"1.jpg,cat\n', "not a readable CSV"),
    ],
)
def test_a_faulty_table_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        table(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"path,label\n\xff\xfe,cat\n")
    with pytest.raises(ValueError, match="save the table as UTF-8"):
        list_table(table_tree(tmp_path / "x.csv"))


def test_a_table_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    write_tree(tmp_path, {"secret.png": b"1", "set/a/1.png": b"2", "set/list.csv": b"path,label\n"})
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    tree = table_tree(tmp_path / "set" / "list.csv")
    assert tree.read("a/1.png") == b"2"
    for name in ("link.png", "../secret.png"):
        with pytest.raises(ValueError, match="outside"):
            tree.read(name)


@pytest.mark.parametrize("error", [ValueError("damaged in the archive"), OSError(5, "Input/output error")])
@pytest.mark.parametrize(("name", "family"), [("a.npz", "signals"), ("rows.ts", "signals")])
def test_a_file_that_cannot_be_read_is_named(name: str, family: str, error: Exception) -> None:
    def read(_name: str) -> bytes:
        raise error

    with pytest.raises(
        ValueError, match=f"^{name}: (damaged in the archive|cannot be read: Input/output error)$"
    ):
        list_source(FileTree("source", {name: 9}, frozenset(), read), family)


def test_the_digits_are_those_of_scikit_learn() -> None:
    digits = load_digits()
    rows = list(sample_digits())
    assert [int(label) for _, _, label in rows] == digits.target.tolist()
    pixels = decode_many([data for _, data, _ in rows], 8, 1, "squash")[:, 0]
    assert abs(pixels - digits.images * 255 / 16).max() <= 0.5
    assert rows == list(sample_digits())


def test_the_patches_are_those_of_scikit_image_faces_first() -> None:
    theirs = skimage.data.lfw_subset()
    rows = list(sample_lfw_subset())
    assert [label for _, _, label in rows] == ["face"] * 100 + ["other"] * 100
    pixels = decode_many([data for _, data, _ in rows], 25, 1, "squash")[:, 0]
    assert abs(pixels - theirs * 255).max() <= 0.5
    assert rows == list(sample_lfw_subset())


def test_every_photograph_is_scikit_images_own() -> None:
    assert (
        np.asarray(decode_image(read_photo("skimage:astronaut"), channels=3)) == skimage.data.astronaut()
    ).all()
    for name in PHOTOS:
        assert min(decode_image(read_photo(name), channels=1).size) > 100
    with pytest.raises(
        FileNotFoundError, match=r"no such picture: skimage:cats; give a file, or skimage:astronaut"
    ):
        read_photo("skimage:cats")


def test_the_photographs_for_style_are_one_class_with_some_held_out() -> None:
    items = list_source(sample_tree("skimage:photos"), "style").items
    assert {item.targets["label"] for item in items} == {"pictures"} and len(items) == len(PHOTOS) - 3
    held_out = {Path(item.id).stem: item.split for item in items if item.split != "train"}
    assert held_out == {"astronaut": "test", "chelsea": "test", "coffee": "test", "rocket": "val"}


@pytest.mark.parametrize(
    ("splits", "listed"),
    [
        ({"train/1.png": "train", "train/cats/2.png": "train", "train/dogs/3.png": "train"}, ""),
        ({"1.png": None, "cats/2.png": "test", "dogs/3.png": None, "dogs/4.png": None}, "cats/2.png"),
        ({"train/1.png": "train", "test/2.png": "test"}, ""),  # no classes of these names
    ],
)
def test_no_picture_and_no_split_of_style_is_lost(splits: dict[str, str | None], listed: str) -> None:
    """Wherever a picture lies: beside class folders, in a split without any, in a list of a split."""
    for top in ("", "photos/"):
        files = {f"{top}{name}": b"x" for name in splits}
        if listed:
            files[f"{top}test.txt"] = f"{listed}\n".encode()
        found = summary(list_source(memory_tree("source", files), "style"))
        assert found == {name: ("pictures", split) for name, split in splits.items()}


def test_samples_are_folders_or_scenes_and_unknown_ones_list_the_known() -> None:
    for name in SAMPLES:
        tree = sample_tree(name)
        family, kind = {
            "sklearn:digit_scenes": ("detection", "coco"),
            "convoy:synthetic_faces": ("faces", "identities"),
            "convoy:face_points": ("landmarks", "landmark tables"),
            "skimage:photos": ("style", "pictures"),
        }.get(name, ("classification", "folders"))
        assert FORMATS[kind].matches(tree)
        num_pictures = sum(file.endswith((".png", ".jpg")) for file in tree.sizes)
        assert len(list_source(tree, family).items) == num_pictures > 0
    with pytest.raises(ValueError, match=r"no built-in dataset 'sklearn:cats'; known: sklearn:digits"):
        sample_tree("sklearn:cats")


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map("/".join)


@given(st.sets(paths, max_size=8), paths)
def test_the_image_that_is_meant_shares_the_longest_end_of_the_path(names: set[str], wanted: str) -> None:
    def shared(name: str) -> int:
        ends = zip(reversed(name.split("/")), reversed(wanted.split("/")), strict=False)
        return next(
            (i for i, (a, b) in enumerate(ends) if a != b), min(name.count("/"), wanted.count("/")) + 1
        )

    longest = max(map(shared, names), default=0)
    best = {name for name in names if shared(name) == longest}
    if longest == 0:
        assert ImageIndex(names).find(wanted, "a.json") is None
    elif len(best) == 1:
        assert ImageIndex(names).find("deep/" * 50 + wanted, "a.json") in best
