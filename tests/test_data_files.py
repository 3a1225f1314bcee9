"""Files appear whole or not at all, whoever else writes them."""

import threading
from pathlib import Path

import pytest

from data.files import cut_tail, read_objects, write_whole


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_written_as_given_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "a.html"
    write_whole(file, "first")
    write_whole(file, "zweites ✓\n")
    assert file.read_bytes() == "zweites ✓\n".encode()
    assert names_in(tmp_path) == ["a.html"]
    (tmp_path / "plain").write_text("x")
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode  # as the umask has it


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "old")

    def fail(_number: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert names_in(tmp_path) == ["a.json"]


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    texts = [letter * 100_000 for letter in "abcdefgh"]
    failed = []

    def write(text: str) -> None:
        try:
            for _ in range(5):
                write_whole(file, text)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert file.read_text() in texts
    assert names_in(tmp_path) == ["a.txt"]


def test_of_lines_the_last_one_alone_may_be_cut(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert read_objects(file, "mend it") == []
    cut_tail(file)
    assert names_in(tmp_path) == []
    file.write_text('{"a": 1}\n{"a": "\u2028"}\n{"a": 3')
    assert read_objects(file, "mend it") == [{"a": 1}, {"a": "\u2028"}]
    cut_tail(file)
    assert file.read_text() == '{"a": 1}\n{"a": "\u2028"}\n'
    file.write_text('{"a": ')  # and the first one
    cut_tail(file)
    assert (file.read_text(), names_in(tmp_path)) == ("", ["lines.jsonl"])


@pytest.mark.parametrize(
    ("line", "why"), [('{"a": {"a": 3}', "is damaged, it is no JSON"), ("3", "must hold an object, got int")]
)
def test_a_damaged_line_among_others_is_named(line: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text(f'{{"a": 1}}\n{line}\n{{"a": 4}}\n')
    with pytest.raises(ValueError, match=why) as caught:
        read_objects(file, "mend it")
    told = str(caught.value)
    assert told.startswith(f"{file}, line 2, ") and told.endswith("; mend it") and "\n" not in told
