"""A class called like a script, and a file named like one, are texts on every page that is made of them."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from data.dataset import Dataset
from tasks.paths import store
from tasks.train import train
from tests.conftest import Run
from tests.pictures import png, write_tree
from tests.tiny import tiny_config

CLASSES = ("<img src=x onerror=alert(1)>", "\"><svg onload='alert(2)'>", "<script>alert(3)<", "&lt;b&gt;")
TAGS = {
    "a", "body", "br", "circle", "code", "details", "div", "figcaption", "figure", "g", "h1", "h2", "h3", "head",
    "html", "img", "li", "line", "meta", "ol", "p", "path", "polyline", "rect", "span", "style", "summary", "svg",
    "table", "td", "text", "th", "title", "tr", "ul",
}  # fmt: skip


class Judge(HTMLParser):
    """Collects what could run, or fetch, when the page is opened; and the texts that are read."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or name in ("srcdoc", "action", "formaction"):
                self.faults.append(f"<{tag} {name}=…>")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:image/", "#")):
                self.faults.append(f"<{tag} {name}={value}>")

    def handle_data(self, data: str) -> None:
        self.said += data


def judge(file: Path) -> Judge:
    judge = Judge()
    judge.feed(file.read_text())
    judge.close()
    return judge


def test_the_judge_sees_what_would_run() -> None:
    judge = Judge()
    judge.feed(
        "<p onclick='x()'>a</p><script>x</script><a href='javascript:x()'>b</a><img src='//e.example/x'>"
    )
    assert len(judge.faults) == 4


@pytest.fixture(scope="module")
def evil(module_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source whose folders and files are named by somebody who means harm."""
    assert store().is_relative_to(module_home)
    files = {
        f"{name}/{i}<b onmouseover=alert(4)>.png": png(100 * number + i)
        for number, name in enumerate(CLASSES)
        for i in range(10)
    }
    broken = {
        f"{CLASSES[0]}/<iframe src=x>.png": b"<html><script>alert(5)</script>",
        f"{CLASSES[1]}/<u>.gif": b"",
    }
    return write_tree(tmp_path_factory.mktemp("source"), files | broken)


def test_no_page_of_ours_runs_what_a_name_says(
    evil: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("data", "add", str(evil), "--name", "evil")
    assert code == 0, err
    config = tiny_config("classification").model_copy(update={"dataset": "evil"})
    dataset = Dataset.open(store() / "evil")
    result = train(
        "classification", config, dataset, folder=tmp_path / "run", key="k", digest="d", executor="in_process"
    )
    model = str(result.model_folder)
    picture = next(file for file in evil.rglob("*.png") if file.stat().st_size > 100)
    pages = {
        "checks.html": ("data", "check", "evil", "--html", "checks.html"),
        "report/report.html": ("evaluate", model, "--dataset", "evil", "--out", "report"),
        "suspects.html": ("data", "label-errors", "evil", "--model", model, "--html", "suspects.html"),
        "seen/prediction.html": ("explain", "prediction", model, str(picture), "--out", "seen"),
    }
    for file, command in pages.items():
        code, _, err = run(*command)
        assert (tmp_path / file).is_file(), err
        found = judge(tmp_path / file)
        assert found.faults == [], file
        assert any(name in found.said for name in CLASSES), f"{file} names no class"
