"""The flow of style transfer and its command: what they leave, and how a run that was stopped goes on."""

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from prefect.utilities.callables import parameter_schema

from pipelines import stylize as flows
from pipelines.parameters import load
from pipelines.reporting import set_reporter
from tasks.paths import runs
from tasks.recordstore import connect
from tasks.styleconfig import StylizeConfig
from tasks.stylegrid import GridConfig
from tasks.stylepictures import to_image
from tests.conftest import Run
from tests.pictures import encode
from tests.test_pipelines_training import Listener, artifacts_of
from tests.test_tasks_stylize import CONFIG, photo, size_of

TINY = {**CONFIG, "scales": [[24, 4], [32, 4]]}
pytestmark = pytest.mark.usefixtures("module_home", "prefect_api", "listener")


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    monkeypatch.setattr("pipelines.stylize.recipes", lambda _: {"default": TINY})
    monkeypatch.setattr("pipelines.parameters.recipes", lambda _: {"default": TINY})
    monkeypatch.setattr(flows.render_picture, "retry_delay_seconds", 0)
    listener = Listener()
    set_reporter(listener)
    return listener


@pytest.fixture
def photos(tmp_path: Path) -> tuple[str, str]:
    for seed, name in enumerate(("content.png", "style.png")):
        (tmp_path / name).write_bytes(encode(to_image(photo(seed))))
    return str(tmp_path / "content.png"), str(tmp_path / "style.png")


def test_every_recipe_is_complete() -> None:
    values = load()
    assert {"default", "vgg16_hed"} <= set(values["stylize"])
    for name, recipe in values["stylize"].items():
        StylizeConfig.parse(recipe, name)
    GridConfig.parse(values["stylize_grid"], "stylize_grid")


def test_the_command_leaves_a_picture_its_curve_and_a_record(
    photos: tuple[str, str], run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "picture.jpg"
    code, text, err = run("stylize", *photos, "--out", str(out), "--set", "cost.style_weight=5", "--json")
    assert code == 0, err
    summary = json.loads(text)
    assert size_of(out) == (32, 27) and out.read_bytes()[:2] == b"\xff\xd8"
    folder = runs() / summary["key"]
    assert {"state.pt", "costs.csv", "costs.png", "result.png"} <= {file.name for file in folder.iterdir()}
    record = connect().get_run(summary["mlflow_run"])
    assert record.info.status == "FINISHED" and record.data.params["cost.style_weight"] == "5.0"
    assert len(record.data.tags["content.sha256"]) == len(record.data.tags["style-0.sha256"]) == 64
    assert record.data.metrics["final.total"] == summary["costs"]["total"]
    history = connect().get_metric_history(summary["mlflow_run"], "total")
    assert [each.step for each in history] == [5, 8]
    assert pictures_of(summary) == {"pictures/00004.png", "pictures/00008.png"}


def pictures_of(summary: dict[str, Any]) -> set[str]:
    """What MLflow keeps of the way to the picture."""
    return {file.path for file in connect().list_artifacts(summary["mlflow_run"], "pictures")}


def test_the_run_s_page_shows_pictures_and_curve_while_it_renders(
    photos: tuple[str, str], prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, str]] = []
    show = flows.show_artifact

    def watch(kind: str, data: Any, description: str, key: str = "") -> None:
        assert kind == "image" and data.startswith("data:image/jpeg;base64,")
        shown.append((key, description))
        show(kind, data, description, key)

    monkeypatch.setattr(flows, "show_artifact", watch)
    summary = flows.stylize_picture(photos[0], (photos[1],))
    assert shown == [
        ("stylize-picture", "after 4 of 8 iterations"),
        ("stylize-costs", "the parts of J after 4 of 8 iterations"),
        ("stylize-picture", "after 8 of 8 iterations"),
        ("stylize-costs", "the parts of J after 8 of 8 iterations"),
    ]
    assert artifacts_of(summary["key"], prefect_api)["image"].startswith("data:image/jpeg;base64,")


def test_servers_that_are_away_do_not_stop_it_and_mlflow_has_all_pictures_in_the_end(
    photos: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: float) -> None:
        raise ConnectionError("MLflow does not answer")

    rendered = flows.stylize

    def without_servers(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr("tasks.registry.require_answer", away)
            patch.setattr("pipelines.artifacts.listens", lambda _address: False)
            return rendered(*arguments)

    monkeypatch.setattr(flows, "stylize", without_servers)
    summary = flows.stylize_picture(photos[0], (photos[1],))
    assert pictures_of(summary) == {"pictures/00004.png", "pictures/00008.png"}
    assert [each.step for each in connect().get_metric_history(summary["mlflow_run"], "total")] == [5, 8]


def test_prefect_s_form_offers_the_recipes_and_takes_what_they_have() -> None:
    fields = parameter_schema(flows.stylize_picture).model_dump()["properties"]
    assert fields["recipe"]["enum"] == ["auto", *load()["stylize"]]
    for recipe in load()["stylize"].values():
        jsonschema.validate(recipe, fields["changes"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"cost": {"style_weight": -1}}, fields["changes"])


def test_with_no_arguments_a_cat_is_rendered(run: Run) -> None:
    code, text, err = run("stylize", "--json")
    assert code == 0, err
    summary = json.loads(text)
    assert (summary["content"], summary["styles"]) == ("skimage:chelsea", ["convoy:whirls"])
    assert size_of(Path(summary["picture"])) == (32, 21)


def test_a_stopped_run_goes_on_with_its_own_pictures(
    photos: tuple[str, str], listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = flows.stylize_picture(photos[0], (photos[1],))
    stylize = flows.stylize

    def stop_early(*arguments: Any) -> Any:
        *others, hear, _stopping = arguments
        heard: list[int] = []

        def count(step: Any, file: Any) -> None:
            heard.append(step.iteration)
            hear(step, file)

        return stylize(*others, count, lambda: len(heard) == 2)

    with monkeypatch.context() as patch:
        patch.setattr(flows, "stylize", stop_early)
        with pytest.raises(KeyboardInterrupt):
            flows.stylize_picture(photos[0], (photos[1],))
    key = max(runs().iterdir(), key=lambda folder: folder.stat().st_mtime).name
    assert any("stopped after step 3: no step is lost" in note for note in listener.notes)
    Path(photos[1]).unlink()
    resumed = flows.stylize_picture(resume=key)
    assert resumed["costs"] == straight["costs"] and resumed["key"] == key
    assert Path(resumed["picture"]).read_bytes() == Path(straight["picture"]).read_bytes()
    assert connect().get_run(resumed["mlflow_run"]).info.status == "FINISHED"


def test_a_run_that_was_killed_between_two_checkpoints_logs_no_iteration_twice(
    photos: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stylize = flows.stylize

    def cut_off(*arguments: Any) -> Any:
        *others, hear, stopping = arguments

        def until_the_sixth(step: Any, file: Any) -> None:
            hear(step, file)
            if step.iteration == 5:
                raise KeyboardInterrupt

        return stylize(*others, until_the_sixth, stopping)

    with monkeypatch.context() as patch:
        patch.setattr(flows, "stylize", cut_off)
        with pytest.raises(KeyboardInterrupt):
            flows.stylize_picture(photos[0], (photos[1],), changes={"checkpoint_every": 50})
    key = max(runs().iterdir(), key=lambda folder: folder.stat().st_mtime).name
    run_id = flows.stylize_picture(resume=key)["mlflow_run"]
    # the fifth had been logged: it is after the last checkpoint, which the first scale left at its end
    for name in ("total", "content"):
        assert [each.step for each in connect().get_metric_history(run_id, name)] == [5, 8]


def test_a_run_goes_on_by_no_other_network_than_it_began_with(photos: tuple[str, str]) -> None:
    """An alias may have moved meanwhile, or a file of weights been replaced."""
    key = flows.stylize_picture(photos[0], (photos[1],))["key"]
    (runs() / key / "begun-with.json").write_text(json.dumps({"data": "", "weights": "other"}))
    with pytest.raises(ValueError, match="began with weights of digest other, and now it is none"):
        flows.stylize_picture(resume=key)


@pytest.mark.slow
def test_a_grid_renders_on_ray_into_one_sheet(photos: tuple[str, str], run: Run, tmp_path: Path) -> None:
    arguments = (
        "--grid",
        "--ratios",
        "1",
        "50",
        "--depths",
        "1",
        "2",
        "--seeds",
        "0",
        "--out",
        str(tmp_path / "g.png"),
    )
    code, text, err = run("stylize", *photos, *arguments, "--json")
    assert code == 0, err
    summary = json.loads(text)
    assert summary["cells"] == 4 and size_of(tmp_path / "g.png")[0] == 6 + 2 * 262
    assert len(list((runs() / summary["key"]).glob("ratio-*/result.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.png",), "needs a style after the content"),
        (("none.png", "skimage:ihc"), "no such picture: none.png"),
        (("skimage:chelsea", "skimage:ihc", "--recipe", "nope"), "no recipe 'nope' for stylize"),
        (("skimage:chelsea", "skimage:ihc", "--set", "cost.alpha=1"), "cost.alpha is not a parameter"),
        (("skimage:chelsea", "skimage:ihc", "--ratios", "1"), "--ratios are of a grid: give --grid too"),
        (("skimage:chelsea", "skimage:ihc", "--weights", "1", "2"), "2 weights for 1 style"),
        (("skimage:chelsea", "skimage:ihc", "--out", "x.gif"), "must end in .png, .jpg"),
        (("--resume", "k", "--recipe", "default"), "give nothing else but --out"),
        (
            ("skimage:chelsea", "skimage:ihc", "--set", "net.weights=none.pth"),
            "net.weights (=none.pth): there is no such file; give the path of one, a URL",
        ),
        (
            (
                "skimage:chelsea",
                "skimage:ihc",
                "--set",
                "net.weights=random",
                "--set",
                "cost.content_layer=top",
            ),
            "no layer top of VGG; known: conv1_1, relu1_1",
        ),
    ],
)
def test_bad_input_gets_one_clear_line_and_leaves_no_run_to_go_on(
    arguments: tuple[str, ...], message: str, run: Run
) -> None:
    before = time.time_ns()
    code, out, err = run("stylize", *arguments)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1, err
    assert not [file for file in runs().glob(f"*/{flows.JOB_FILE}") if file.stat().st_mtime_ns > before]


def test_a_grid_that_cannot_be_is_refused_before_anything_begins() -> None:
    asked = ("skimage:chelsea", ("skimage:ihc",), (), (), "auto", {})
    with pytest.raises(ValueError, match=r"depths \(=3\) must be at most 2"):
        flows.job_of(*asked, {"depths": [3]})
    assert flows.job_of(*asked, {"depths": [1]}).grid is not None


def test_an_unknown_key_is_told() -> None:
    with pytest.raises(ValueError, match="no style transfer 'nope' in"):
        flows.stylize_picture(resume="nope")
