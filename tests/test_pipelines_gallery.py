"""`./convoy faces`, as a person types it: an embedder trained on some people, and a gallery of others."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.aligned import FaceAlignment
from data.dataset import Dataset
from data.ingest import ingest
from data.syntheticfaces import synthetic_faces
from pipelines.faces import train_faces
from pipelines.reembed import re_embed_galleries
from pipelines.reporting import set_reporter
from tasks.facereading import FaceReader, open_reader
from tasks.gallery import Gallery
from tasks.gallerystore import Embedder
from tasks.identification import templates
from tasks.livenessmodel import keep_threshold
from tasks.paths import galleries, store
from tasks.predict import load_predictor
from tests.conftest import Run
from tests.facegalleries import picture as gallery_picture
from tests.facegalleries import write_embedder
from tests.handmade import write_model
from tests.test_pipelines_training import Listener
from tests.tiny import TINY, ingest_config

NAME = "faces-drawn"
FIRST, SECOND = f"models:/{NAME}/1", f"models:/{NAME}/2"
NUM_STRANGERS = 4
CHANGES: dict[str, Any] = {
    "model": {"dim": 32},
    "loss": {"name": "cosface", "margin": 0.3},
    "train": {"batch_size": 32},
    "evaluate": {"views": ["mirror"], "registered_view": "mirror"},
}


@pytest.fixture(scope="module")
def summaries(
    module_home: Path, prefect_api: str, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Two versions of an embedder of drawn faces: the champion, and one that was hardly trained."""
    assert prefect_api and store().is_relative_to(module_home)
    source = tmp_path_factory.mktemp("drawn")
    for name, data in synthetic_faces(num_people=64, num_pictures=6).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    ingest(source, name="drawn", family="faces", store=store(), config=ingest_config())
    recipe = {name: part for name, part in TINY["faces"].items() if name != "dataset"}
    with pytest.MonkeyPatch.context() as patch:
        for place in ("configuration", "parameters"):
            patch.setattr(f"pipelines.{place}.recipes", lambda _family: {"default": recipe})
        set_reporter(Listener())
        return [
            train_faces(
                "drawn",
                changes={**CHANGES, "train": {**CHANGES["train"], "epochs": epochs}},
                executor="in_process",
            )
            for epochs in (40, 2)
        ]


@pytest.fixture(scope="module")
def people(
    summaries: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """The pictures of people that training never saw."""
    folder = tmp_path_factory.mktemp("people")
    dataset = Dataset.open(store() / summaries[0]["dataset"])
    table = dataset.table("test", ["image", "label"])
    found: dict[str, list[Path]] = {}
    for number, (blob, label) in enumerate(zip(table["image"], table["label"], strict=True)):
        name = dataset.info.classes[label.as_py()]
        file = folder / name / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(blob.as_py())
        found.setdefault(name, []).append(file)
    return dict(sorted(found.items()))


@pytest.fixture
def say(run: Run) -> "Say":
    """Runs a command of faces that has to succeed: its document."""

    def call(*words: str) -> dict[str, Any]:
        code, out, err = run("faces", *words, "--json")
        assert code == 0, err
        return dict(json.loads(out))

    return call


Say = Callable[..., dict[str, Any]]
People = dict[str, list[Path]]


def enrol(say: Say, people: People, gallery: str, num: int) -> list[str]:
    """Everybody but the strangers, with their first pictures; who they are."""
    known = list(people)[NUM_STRANGERS:]
    for name in known:
        say("enrol", name, *map(str, people[name][:num]), "--gallery", gallery, "--model", FIRST)
    return known


def looked_up(say: Say, people: People, names: list[str], gallery: str) -> list[tuple[str, dict[str, Any]]]:
    """The last three pictures of people, by the strictest threshold: who each is, and what was said of it."""
    files = {str(file): name for name in names for file in people[name][3:]}
    asked = ("--gallery", gallery, "--false-accept-rate", "0.01")
    return [(files[row["image"]], row) for row in say("recognise", *files, *asked)["faces"]]


def on_disk(gallery: str) -> bytes:
    return b"".join(file.read_bytes() for file in sorted((galleries() / gallery).iterdir()))


def test_one_picture_is_enough_more_sharpen_it_and_strangers_are_refused(say: Say, people: People) -> None:
    """Of twelve people, whom training never saw; by chance, one picture in twelve would have its own person nearest."""
    nearest, named = {}, {}
    for num in (1, 3):
        known = enrol(say, people, "few", num)
        rows = looked_up(say, people, known, "few")
        assert len(known) == 12 and len(rows) == 36
        nearest[num] = np.mean([row["nearest"] == name for name, row in rows])
        named[num] = [row["name"] == name for name, row in rows if row["name"] is not None]
        strangers = looked_up(say, people, list(people)[:NUM_STRANGERS], "few")
        assert len(strangers) == 12 and all(row["nearest"] in known for _, row in strangers)
        assert np.mean([row["name"] is None for _, row in strangers]) > 0.9
    assert nearest[1] > 0.5 and nearest[3] > nearest[1] + 0.1
    assert len(named[3]) > len(named[1]) and np.mean(named[3]) > 0.9


def test_pictures_of_one_person_are_looked_up_together(run: Run, say: Say, people: People) -> None:
    known = enrol(say, people, "together", 3)
    right = []
    for name in known:
        files = map(str, people[name][3:])
        [row] = say("recognise", *files, "--together", "--gallery", "together")["faces"]
        right.append(row["nearest"] == name)
        assert row["image"] == list(map(str, people[name][3:]))
    alone = [row["nearest"] == name for name, row in looked_up(say, people, known, "together")]
    assert np.mean(right) >= np.mean(alone)
    code, out, err = run(
        "faces", "recognise", *files_of(people, known[0]), "--together", "--gallery", "together"
    )
    assert code == 0 and "3 pictures" in out, err


def files_of(people: People, name: str) -> list[str]:
    """The last three pictures of a person."""
    return list(map(str, people[name][3:]))


def test_pictures_are_told_in_the_order_in_which_they_are_given_also_those_that_cannot_be_looked_up(
    run: Run, say: Say, people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = enrol(say, people, "order", 1)
    monkeypatch.chdir(tmp_path)  # short names, which a table does not fold
    one, two, three = "1.jpg", "2.jpg", "3.jpg"
    for name, file in zip((one, two, three), people[known[0]][3:], strict=True):
        Path(name).write_bytes(file.read_bytes())
    junk, gone, empty = "junk.jpg", "gone.jpg", "empty"
    Path(empty).mkdir()
    Path(junk).write_bytes(b"junk")
    given = [junk, one, empty, two, gone, three]
    code, out, err = run("faces", "recognise", *given, "--gallery", "order", "--json")
    document = json.loads(out)
    assert code == 1 and [row["image"] for row in document["faces"]] == [one, two, three], err
    assert list(document["left_out"]) == [junk, empty, gone]
    assert document["left_out"][gone] == "cannot be read: No such file or directory"
    assert "no images in the folder" in document["left_out"][empty]
    code, out, err = run("faces", "recognise", *given, "--gallery", "order")
    places = [out.index(f"\n {name} ") for name in given]
    assert code == 1 and places == sorted(places), out
    for words, says in (([gone], f"no file or folder {gone}"), ([empty], "no images in the folder")):
        code, out, err = run("faces", "recognise", *words, "--gallery", "order")
        assert (code, out) == (2, "") and says in err


def test_a_claim_is_judged_by_the_threshold_of_the_rate_that_was_asked_for(
    run: Run, say: Say, people: People
) -> None:
    known = enrol(say, people, "claims", 2)
    reader = open_reader(FIRST, None)
    strict, loose = (reader.predictor.card.thresholds[f"far_{rate}"] for rate in ("1e-2", "1e-1"))
    own, others = claims_on(reader, {name: people[name] for name in known})
    assert (len(own), len(others)) == (12 * 4, 12 * 4 * 11) and 0 < strict < loose

    def accepted(claims: Claims, limit: float) -> float:
        return float(np.mean([distance <= limit for distance in claims.values()]))

    # people that training never saw: what was stated of eight people of validation holds, about
    assert accepted(own, loose) > 0.6 and accepted(others, loose) < 0.25
    assert accepted(own, strict) > 0.2 and accepted(others, strict) < 0.05

    def nearest_to(distance: float, claims: Claims) -> tuple[Path, str]:
        return min(claims, key=lambda claim: abs(claims[claim] - distance))

    between = nearest_to((strict + loose) / 2, own | others)
    for claim, answers in (
        (nearest_to(0, own), (True, True, True)),
        (between, (True, False, True)),
        (nearest_to(4, others), (False, False, False)),
    ):
        image, name = claim
        where = ("verify", str(image), "--name", name, "--gallery", "claims")
        for rate, limit, same in zip(("1e-1", "1e-2", ""), (loose, strict, loose), answers, strict=True):
            found = say(*where, *(("--false-accept-rate", rate) if rate else ()))
            assert (found["same"], found["name"]) == (same, name)
            assert found["distance"] == pytest.approx((own | others)[claim], abs=1e-4)
            assert found["threshold"] == pytest.approx(limit)
            assert found["false_accept_rate"] == float(rate or "1e-1")  # ten false accepts tell 1e-2
            assert found["told_by_few"] == (rate == "1e-2")
            assert found["passes_at"] == (0.1 if claim == between and rate == "1e-2" else None)
            made = {"model": NAME, "version": "1", "alignment": None}
            assert found["embedder"] == {**found["embedder"], **made}
    image, name = between
    where = ("verify", str(image), "--name", name, "--gallery", "claims")
    code, out, err = run("faces", *where, "--false-accept-rate", "0.01")
    few = "false-accept rate 0.01, which rests on fewer than 30 false accepts"
    assert code == 0 and f"from {name}; the same up to {strict:.3f} ({few})" in " ".join(out.split()), err
    assert out.startswith("not the same: ")
    assert f"; it would pass at false-accept rate 0.1, up to {loose:.3f}" in " ".join(out.split())
    code, _, err = run("faces", *where, "--false-accept-rate", "0.5")
    assert (code, "is none that the model has a threshold for; it has: 0.01, 0.1" in err) == (2, True)


Claims = dict[tuple[Path, str], float]  # picture, who it is said to be of → distance


def claims_on(reader: FaceReader, people: People) -> tuple[Claims, Claims]:
    """Of each person's pictures but the first two, which are enrolled: to be that person, and to be each other one."""
    vectors = {
        name: reader.embed([reader.face(file.read_bytes()) for file in files])
        for name, files in people.items()
    }
    enrolled = {name: templates(rows[:2], [name] * 2)[0][0] for name, rows in vectors.items()}
    found: tuple[Claims, Claims] = {}, {}
    for name, files in people.items():
        for file, vector in zip(files[2:], vectors[name][2:], strict=True):
            for claimed, template in enrolled.items():
                found[claimed != name][file, claimed] = float(((vector - template) ** 2).sum())
    return found


def test_a_spoof_is_neither_verified_nor_looked_up_where_liveness_is_required(
    run: Run, say: Say, people: People, tmp_path: Path
) -> None:
    known = enrol(say, people, "live", 1)
    where = ("--gallery", "live")
    files = people[known[0]][3:]
    check = write_model(tmp_path / "check", ("real", "print"), channels=3, stored_px=16, crop_px=16, pad_px=0)
    rows = load_predictor(check).predict([file.read_bytes() for file in files])["probabilities"].to_pylist()
    order = np.argsort([row[0] for row in rows])
    # the least real of three is a spoof
    keep_threshold(check, tmp_path / "fitted", rows[order[1]][0], "by hand")
    asked = (*where, "--liveness", str(tmp_path / "fitted"))
    spoof, real = str(files[order[0]]), str(files[order[2]])
    code, out, err = run("faces", "recognise", *map(str, files), *asked, "--json")
    document = json.loads(out)
    assert code == 1 and document["left_out"].keys() == {spoof}, err
    assert "judged a spoof" in document["left_out"][spoof]
    assert {row["image"] for row in document["faces"]} == {str(file) for file in files} - {spoof}
    assert document["liveness"] == {"model": str(tmp_path / "fitted"), "threshold": rows[order[1]][0]}
    code, out, err = run("faces", "verify", spoof, "--name", known[0], *asked)
    assert (code, out) == (2, "") and f"{spoof}: judged a spoof: it looks real to " in err
    assert "liveness" in say("verify", real, "--name", known[0], *asked)
    assert "liveness" not in say("verify", spoof, "--name", known[0], *where)
    code, _, err = run("faces", "verify", real, "--name", known[0], *where, "--liveness", FIRST)
    assert code == 2 and f"{FIRST} is a model for faces; a liveness check is a classifier" in err


def test_a_folder_of_people_is_enrolled_at_once_and_listed(run: Run, say: Say, people: People) -> None:
    folder = next(iter(people.values()))[0].parent.parent
    done = say("enrol", "--from", str(folder), "--gallery", "all", "--model", FIRST)
    assert {each["name"] for each in done["people"]} == set(people) and not done["left_out"]
    listed = say("gallery", "list", "--gallery", "all")
    picture = str(next(iter(people.values()))[0])
    one = say("recognise", picture, "--gallery", "all")["embedder"]
    assert one.keys() == {"model", "version", "sha256", "alignment", "num_dims"}
    assert done["embedder"] == listed["embedder"] == one
    for words in (("show", next(iter(people))), ("search", picture)):
        assert say("gallery", *words, "--gallery", "all")["embedder"] == one
    assert [each["name"] for each in listed["people"]] == list(people)
    name = next(iter(people))
    shown = say("gallery", "show", name, "--gallery", "all")
    assert len(shown["pictures"]) == len(people[name]) and shown["embedder"]["version"] == "1"
    hits = say("gallery", "search", str(people[name][0]), "--top", "3", "--gallery", "all")["people"]
    assert len(hits) == 3 and hits[0]["distance"] <= hits[1]["distance"] <= hits[2]["distance"]
    code, out, err = run("faces", "gallery", "list", "--gallery", "all")
    assert code == 0 and f"{len(people)} people in the gallery all: {FIRST}" in out, err
    code, out, err = run("faces", "recognise", str(people[name][0]), "--gallery", "all")
    assert code == 0 and name in out, err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_or_a_picture_is_removed_for_good_by_a_yes_alone(
    run: Run, say: Say, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = enrol(say, people, "leaving", 3)
    gone, name = known[0], known[1]
    where = ("--gallery", "leaving")
    hashes = [each["sha256"] for each in say("gallery", "show", gone, *where)["pictures"]]
    assert len(hashes) == 3 and all(each.encode() in on_disk("leaving") for each in hashes)
    code, _, err = run("faces", "gallery", "remove", gone, *where)
    assert (code, "Nobody can be asked here: give --yes" in err) == (2, True)
    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    code, _, err = run("faces", "gallery", "remove", gone, *where)
    assert code == 2 and f"remove {gone} and 3 pictures from the gallery leaving, for good? [y/N]" in err
    assert gone.encode() in on_disk("leaving")
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert run("faces", "gallery", "remove", gone, *where)[0] == 0
    data = on_disk("leaving")
    assert gone.encode() not in data and not any(each.encode() in data for each in hashes)
    assert not any(file.read_bytes()[-200:-140] in data for file in people[gone][:3])

    first, *_ = [each["sha256"] for each in say("gallery", "show", name, *where)["pictures"]]
    assert say("gallery", "remove", name, "--picture", first[:12], "--yes", *where)["pictures"] == 2
    assert first.encode() not in on_disk("leaving") and name.encode() in on_disk("leaving")
    code, _, err = run("faces", "gallery", "remove", name, "--picture", first, "--yes", *where)
    assert code == 2 and "begins the hash of 0 of the 2 pictures" in err
    with Gallery.open(galleries() / "leaving") as gallery:
        assert gallery.check() == len(known) - 1


def test_a_lost_matrix_is_an_error_that_says_what_to_type(run: Run, say: Say, people: People) -> None:
    known = enrol(say, people, "lost", 1)
    picture = str(people[known[0]][0])
    next((galleries() / "lost").glob("*.exact")).unlink()
    code, _, err = run("faces", "recognise", picture, "--gallery", "lost")
    told = "./convoy faces gallery rebuild --gallery lost"
    assert code == 2 and told in err and err.count("\n") == 1
    done = say(*told.split()[2:])
    assert (done["people"], done["pictures"]) == (len(known), len(known))
    assert say("recognise", picture, "--gallery", "lost")["faces"][0]["nearest"] == known[0]


def no_engines(_executor: str) -> None:
    raise AssertionError("engines were started")


def test_re_embedding_is_refused_before_an_engine_starts(
    run: Run, say: Say, people: People, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    enrol(say, people, "refused", 1)
    monkeypatch.setattr("pipelines.engines.start_engines", no_engines)
    check = write_model(tmp_path / "check", ("a", "b"), channels=3, stored_px=16, crop_px=16, pad_px=0)
    for model, says in (
        (f"models:/{NAME}/77", "no such version"),
        ("models:/nothing@champion", "no registered model 'nothing'"),
        (str(check), "is a model of classification; a gallery needs one of faces"),
    ):
        code, out, err = run("faces", "gallery", "re-embed", "--gallery", "refused", "--model", model)
        assert (code, out) == (2, "") and says in err
    done = say("gallery", "re-embed", "--gallery", "refused", "--model", FIRST)
    assert done["num_pictures"] == 0 and done["before"] == done["now"]


def test_a_new_gallery_takes_the_only_embedder_that_has_a_champion(
    run: Run, people: People, apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, files = next(iter(people.items()))
    enrolling = ("faces", "enrol", name, str(files[0]), "--gallery", "only")
    for champions, says in (
        ([], "no registered model of faces has a champion"),
        (["models:/faces-a@champion", FIRST], f"give --model, one of models:/faces-a@champion, {FIRST}"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("tasks.enrolment.find_champions", lambda _client, _family, found=champions: found)
            code, out, err = run(*enrolling)
            assert (code, out) == (2, "") and says in err and err.count("\n") == 1
    assert not any(apart.iterdir())
    code, out, err = run(*enrolling)
    assert code == 0 and f"is made with models:/{NAME}@champion, the only embedder of faces" in err
    assert FIRST in out
    code, _, err = run(*enrolling)
    assert code == 0 and not err  # it is bound by now


@pytest.mark.slow
def test_a_promoted_embedder_takes_the_gallery_over(run: Run, say: Say, people: People) -> None:
    known = enrol(say, people, "moving", 2)
    picture = str(people[known[0]][0])
    code, _, err = run("faces", "enrol", "eve", picture, "--gallery", "moving", "--model", SECOND)
    assert code == 2 and "re-embed the gallery: ./convoy faces gallery re-embed --gallery moving" in err
    done = say("gallery", "re-embed", "--gallery", "moving", "--model", SECOND)
    assert done["num_pictures"] == 2 * len(known) and SECOND in done["now"] and FIRST in done["before"]
    assert say("gallery", "list", "--gallery", "moving")["embedder"]["version"] == "2"
    say(
        "enrol",
        "fresh",
        *(str(people[name][3]) for name in known[:1]),
        "--gallery",
        "fresh",
        "--model",
        SECOND,
    )
    row = say("verify", picture, "--name", known[0], "--gallery", "moving")
    assert row["embedder"]["version"] == "2" and row["same"]
    again = say("gallery", "re-embed", "--gallery", "moving", "--model", SECOND)
    assert again["num_pictures"] == 0
    back = say("gallery", "re-embed", "--gallery", "moving")  # the champion of that name
    assert FIRST in back["now"]
    with Gallery.open(galleries() / "moving") as gallery:
        assert gallery.check() == len(known)


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of galleries of its own."""
    monkeypatch.setattr("tasks.gallerynames.galleries", lambda: tmp_path)
    return tmp_path


def test_galleries_follow_the_champion_of_their_model_and_say_so_until_they_have(
    run: Run, say: Say, people: People, apart: Path
) -> None:
    assert not any(apart.iterdir())
    known = enrol(say, people, "door", 1)
    picture = str(people[known[0]][0])
    say("enrol", "eve", picture, "--gallery", "office", "--model", SECOND)
    code, out, err = run("promote", NAME, "2", "--because", "an audit")
    assert code == 0, err
    told = " ".join(out.split())
    assert "galleries with vectors of another version: door (version 1)" in told
    assert told.endswith("./convoy faces gallery re-embed --gallery door")
    note = f"the gallery door holds vectors of {FIRST}, and version 2 is the champion"
    for words in (("recognise", picture), ("verify", picture, "--name", known[0]), ("gallery", "list"),
                  ("gallery", "search", picture), ("enrol", known[0], str(people[known[0]][1]))):  # fmt: skip
        code, _, err = run("faces", *words, "--gallery", "door", "--json")
        assert code == 0 and note in err, (words, err)
    assert note not in run("faces", "gallery", "list", "--gallery", "office")[2]
    done = re_embed_galleries(NAME)
    [one] = done["galleries"]
    assert one["gallery"] == "door" and SECOND in one["now"] and one["num_pictures"] == len(known) + 1
    assert note not in run("faces", "gallery", "list", "--gallery", "door")[2]
    assert re_embed_galleries(NAME)["galleries"] == []
    code, out, err = run("rollback", NAME, "--because", "the audit", "--json")
    assert code == 0 and json.loads(out)["galleries_behind"] == {"door": "2", "office": "2"}, err


def test_a_gallery_that_the_champion_does_not_fit_keeps_its_vectors_and_the_others_follow(
    say: Say, people: People, apart: Path
) -> None:
    picture = str(next(iter(people.values()))[0])
    say("enrol", "eve", picture, "--gallery", "later", "--model", SECOND)
    alignment = FaceAlignment(method="mtcnn", side_px=32, weights=str(apart / "gone"))
    other = Embedder(
        name=NAME, version="2", sha256="ab" * 32, preprocessing=alignment.model_dump_json(), num_dims=32
    )
    with Gallery.create(apart / "first", other) as gallery:
        gallery.enrol("bob", [gallery_picture("bob")], other)
    with pytest.raises(ValueError, match=r"1 of 2 galleries keep their vectors; first: .*gone"):
        re_embed_galleries(NAME)
    assert say("gallery", "list", "--gallery", "later")["embedder"]["version"] == "1"
    with Gallery.open(apart / "first") as gallery:
        assert gallery.embedder == other


def test_what_cannot_be_is_one_line(run: Run, say: Say, people: People, tmp_path: Path) -> None:
    known = enrol(say, people, "lines", 1)
    picture = str(people[known[0]][0])
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "1.jpg").write_bytes(b"junk")
    (tmp_path / "bad.json").write_text("[]")
    other = str(write_embedder(tmp_path / "other"))
    here = ("--gallery", "lines")
    for words, says in (
        (("enrol",), "give a name and pictures"),
        (("enrol", "ann"), "give a name and pictures"),
        (("enrol", "ann", picture, "--from", str(tmp_path)), "give a name and pictures"),
        (("enrol", "ann", "none.jpg", *here), "none.jpg: no such file"),
        (("enrol", "ann", str(tmp_path / "junk.jpg"), *here), "junk.jpg: "),
        (("enrol", "ann", picture, *here), f"is one of '{known[0]}', byte for byte"),
        (("enrol", "ann", picture, *here, "--model", other), "do not compare"),
        (
            ("enrol", "ann", picture, "--gallery", "new", "--model", "models:/cats@champion"),
            "no registered model",
        ),
        (("enrol", "ann", picture, *here, "--alignment", str(tmp_path / "bad.json")), "must be an object"),
        (("enrol", "--from", str(tmp_path / "nothing"), *here), "no folder or archive"),
        (("enrol", "--from", str(tmp_path / "loose"), *here), "lies in no person's folder"),
        (("verify", picture, "--name", "nobody", *here), "'nobody' is not among the"),
        (("verify", str(tmp_path / "junk.jpg"), "--name", known[0], *here), "junk.jpg: "),
        (("recognise", *here), "recognise needs pictures"),
        (("recognise", picture, "--gallery", "nothing"), "no gallery 'nothing'"),
        (("gallery", "list", "--gallery", "nothing"), "no gallery 'nothing'"),
        (("gallery", "show", "nobody", *here), "'nobody' is not among the"),
        (("gallery", "search", picture, "--top", "0", *here), "k (=0) must be 1 or more"),
        (("gallery", "remove", "nobody", "--yes", *here), "'nobody' is not among the"),
        (("gallery", "re-embed", "--gallery", "nothing"), "no gallery 'nothing'"),
    ):
        code, out, err = run("faces", *words)
        assert (code, out) == (2, ""), (words, err)
        assert says in err and err.count("\n") == 1, (words, err)
    code, out, err = run("faces", "recognise", picture, str(tmp_path / "junk.jpg"), *here)
    assert code == 1 and "not an image" in out and known[0] in out, err
    assert not (galleries() / "new").exists()
