"""The HTTP interface of a served model: what it answers, and what it refuses."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from data.dataset import Dataset
from tasks.answers import document_of
from tasks.following import Answered, Follower, Served, answer_together
from tasks.predictors import PREDICTORS, open_predictor
from tasks.resolution import Resolved
from tasks.serveconfig import ServeConfig
from tasks.service import Service
from tests.recording import make_model, pictures
from tests.saved import save_untrained, some_items
from tests.tiny import TINY, tiny_dataset

URI, VERSION = "models:/pets@champion", "models:/pets/3"
LIMITS = {
    "poll_s": 1.0, "replicas": 1, "threads": 1, "gpus": 0.0, "batch_requests": 8, "batch_wait_ms": 0.0,
    "max_request_mb": 1.0, "max_images": 4, "max_megapixels": 1.0, "max_requests": 2, "timeout_s": 60.0,
}  # fmt: skip
Ask = Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]


def service_of(model: Path, version: str = VERSION, **changes: Any) -> Service:
    """A service that predicts each request by itself."""
    resolved = Resolved(URI, version, "pets", "run", "ab" * 32, model)
    follower = Follower(
        URI, lambda text: None, lambda uri: version, lambda uri: resolved,
        lambda found: Served(found, open_predictor(found.folder), datetime.now(UTC)),
    )  # fmt: skip

    async def predict(blobs: list[bytes]) -> Answered:
        return answer_together(follower.current, [blobs])[0]

    return Service(follower, ServeConfig.parse({**LIMITS, **changes}, "serve"), predict)


def asked(service: Service, ask: Ask) -> Any:
    """What a client of the service gets."""

    async def run() -> Any:
        transport = httpx.ASGITransport(service.application(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await ask(client)

    return asyncio.run(run())


def post(service: Service, **options: Any) -> httpx.Response:
    reply: httpx.Response = asked(service, lambda client: client.post("/predict", **options))
    assert reply.headers["x-model-version"] == VERSION
    assert reply.json()["version"] == VERSION
    return reply


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    store = tmp_path_factory.mktemp("store")
    return {family: tiny_dataset(family, store) for family in TINY}


def plain(document: Any) -> Any:
    return json.loads(json.dumps(document))


@pytest.mark.parametrize("family", PREDICTORS)
def test_every_family_answers_as_predict_does(
    family: str, datasets: dict[str, Dataset], tmp_path: Path
) -> None:
    folder = save_untrained(family, datasets[family], tmp_path / "model")
    first, second = some_items(datasets[family], 2)
    service = service_of(folder, max_request_mb=10.0)
    reply = post(
        service, files=[("image", ("a.x", first)), ("image", ("b.x", b"nothing")), ("image", ("c.x", second))]
    )
    assert reply.status_code == 200
    predictor = open_predictor(folder)
    rows = predictor.predict([first, b"nothing", second]).to_pylist()
    expected = plain(document_of(URI, predictor, ["a.x", "b.x", "c.x"], rows))
    got = reply.json()
    assert {key: got[key] for key in expected} == expected
    assert got["model_sha256"] == "ab" * 32
    assert [row["error"] is None for row in got["predictions"]] == [True, False, True]
    nothing = post(service, content=b"nothing")
    assert nothing.status_code == 400 and nothing.json()["error"].startswith("body: ")
    one = post(service, content=first)
    assert one.status_code == 200
    assert [row["image"] for row in one.json()["predictions"]] == ["body"]


def test_what_cannot_be_read_gets_400_and_the_reason(model: Path) -> None:
    service, [whole] = service_of(model), pictures(1)
    for body, reason in (
        (b"hello", "body: not an image"),
        (whole[:60], "body: damaged PNG"),
        (b"", "the request has no body"),
    ):
        reply = post(service, content=body)
        assert reply.status_code == 400
        assert reply.json()["error"].startswith(reason)
        assert "\n" not in reply.json()["error"] and "Traceback" not in reply.text
    both = post(service, files=[("image", ("a", b"x")), ("image", ("b", b"y"))])
    assert both.status_code == 400 and both.json()["error"].startswith("a: not an image")
    empty = post(service, content=b"--x--\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert empty.status_code == 400 and "no file" in empty.json()["error"]
    torn = post(service, content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert torn.status_code == 400 and "boundary" in torn.json()["error"].lower()


def test_a_folder_of_any_name_can_be_served(model: Path) -> None:
    """Headers are Latin-1, and this one would be none."""
    service, [blob] = service_of(model, "out/模型 é"), pictures(1)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post("/predict", content=body) for body in (blob, b"nothing")]

    replies: list[httpx.Response] = asked(service, ask)
    assert [reply.status_code for reply in replies] == [200, 400]
    for reply in replies:
        assert reply.json()["version"] == unquote(reply.headers["x-model-version"]) == "out/模型 é"


def test_too_much_gets_413(model: Path) -> None:
    service, blobs = service_of(model, max_request_mb=0.01, max_images=2, max_megapixels=0.0005), pictures(3)
    large = post(service, content=bytes(20_000))
    assert large.status_code == 413 and large.json()["error"] == "the request is larger than 0.01 MB"

    async def pieces() -> Any:
        for _ in range(20):
            yield bytes(1000)

    streamed = post(service, content=pieces())  # says no length beforehand
    assert streamed.status_code == 413
    pixels = post(service, content=blobs[0])
    assert (
        pixels.status_code == 413
        and pixels.json()["error"] == "body has 30×20 pixels, more than 0.0005 million"
    )
    many = post(service_of(model, max_images=2), files=[("image", (str(i), blobs[i])) for i in range(3)])
    assert many.status_code == 413 and many.json()["error"] == "the request has 3 images, more than 2"
    more = post(service_of(model, max_images=2), files=[("image", (str(i), blobs[0])) for i in range(9)])
    assert more.status_code == 413 and "at most 2 images" in more.json()["error"]


def test_too_many_at_once_get_429_and_a_time_to_come_again(model: Path) -> None:
    service, [blob] = service_of(model, max_requests=2), pictures(1)
    inner, held = service.predict, asyncio.Event()

    async def held_predict(blobs: list[bytes]) -> Answered:
        await held.wait()
        return await inner(blobs)

    service.predict = held_predict

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        waiting = [asyncio.create_task(client.post("/predict", content=blob)) for _ in range(2)]
        while service.under_way < 2:
            await asyncio.sleep(0.01)
        refused = await client.post("/predict", content=blob)
        healthy = await client.get("/healthz")
        held.set()
        return [
            refused,
            healthy,
            *(await asyncio.gather(*waiting)),
            await client.post("/predict", content=blob),
        ]

    refused, healthy, *answered = asked(service, ask)
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert refused.json()["error"] == "2 requests are under way already; try again"
    assert healthy.status_code == 200
    assert [reply.status_code for reply in answered] == [200, 200, 200]


def test_no_answer_in_time_gets_503(model: Path) -> None:
    service, [blob] = service_of(model, timeout_s=0.05), pictures(1)

    async def never(blobs: list[bytes]) -> Answered:
        await asyncio.Event().wait()
        raise AssertionError(blobs)

    service.predict = never
    reply = post(service, content=blob)
    assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
    assert reply.json()["error"] == "no answer within 0.05 s; try again"
    assert service.under_way == 0


def test_what_nobody_expected_gets_500_and_no_traceback(model: Path) -> None:
    service = service_of(model)

    async def broken(_blobs: list[bytes]) -> Answered:
        raise RuntimeError("secret")

    service.predict = broken
    reply = post(service, content=pictures(1)[0])
    assert reply.status_code == 500
    assert "secret" not in reply.text and "log" in reply.json()["error"]


def test_the_other_addresses(model: Path) -> None:
    service = service_of(model)
    post(service, content=pictures(1)[0])
    post(service, content=b"nothing")

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get(path) for path in ("/version", "/metrics", "/nowhere", "/predict")]

    version, metrics, nowhere, get = asked(service, ask)
    assert version.json()["version"] == VERSION and version.json()["fault"] is None
    assert version.json()["dataset"] == "pets"
    assert 'convoy_requests_total{status="200"} 1.0' in metrics.text
    assert 'convoy_requests_total{status="400"} 1.0' in metrics.text
    assert "convoy_images_total 1.0" in metrics.text
    assert nowhere.status_code == 404 and "there is POST /predict" in nowhere.json()["error"]
    assert get.status_code == 405
