"""The HTTP interface of a served model, without whatever runs it: routes, limits, errors, figures.

    POST /predict    one image as the body, or several as files of a form → JSON as of ./convoy predict --json
    GET  /healthz    200 while it answers
    GET  /version    which version answers, since when, and why not a newer one
    GET  /metrics    for Prometheus

Every answer names the version that made it, in `version` and in the header X-Model-Version, where what is not ASCII (a
folder may be called anything) stands as in a URL; an error is one sentence in `error`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from data.dataset import NUM_AXES
from tasks.answers import document_of
from tasks.following import Answered, Follower
from tasks.recordings import RecordingThread
from tasks.requests import Items, RefusedError, read_items
from tasks.serveconfig import ServeConfig

RETRY_AFTER_S = 1
VERSION_HEADER = "X-Model-Version"

Predict = Callable[[list[bytes]], Awaitable[Answered]]
_logger = logging.getLogger(__name__)


class Figures:
    """What is counted, of one process that answers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "convoy_requests", "Answers, by HTTP status", ["status"], registry=self.registry
        )
        self.images = Counter("convoy_images", "Images that got a prediction", registry=self.registry)
        self.under_way = Gauge(
            "convoy_requests_under_way", "Requests without an answer yet", registry=self.registry
        )
        self.seconds = Histogram("convoy_request_seconds", "From request to answer", registry=self.registry)
        self.recorded = Gauge(
            "convoy_recorded", "Images whose features were recorded", registry=self.registry
        )
        self.left_out = Gauge(
            "convoy_not_recorded", "Images there was no time to record", registry=self.registry
        )
        self.changes = Gauge("convoy_model_changes", "Versions that took over", registry=self.registry)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)


class Service:
    """Answers requests by `predict`, which may join several of them."""

    def __init__(
        self,
        follower: Follower,
        config: ServeConfig,
        predict: Predict,
        recording: RecordingThread | None = None,
    ) -> None:
        self.follower, self.config, self.predict, self.recording = follower, config, predict, recording
        self.figures = Figures()
        self.under_way = 0

    def application(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/predict", self.post_predict, methods=["POST"]),
            Route("/healthz", self.get_health),
            Route("/version", self.get_version),
            Route("/metrics", self.get_metrics),
        ]
        handlers: dict[Any, Any] = {HTTPException: self.told, RefusedError: self.told, Exception: self.failed}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def post_predict(self, request: Request) -> Response:
        """Answer one request within the limits."""
        if self.under_way >= self.config.max_requests:
            raise RefusedError(
                429, f"{self.under_way} requests are under way already; try again", RETRY_AFTER_S
            )
        start_s = time.perf_counter()
        self.under_way += 1
        try:
            items, answered = await asyncio.wait_for(self.answer(request), self.config.timeout_s)
        except TimeoutError:
            raise RefusedError(
                503, f"no answer within {self.config.timeout_s:g} s; try again", RETRY_AFTER_S
            ) from None
        finally:
            self.under_way -= 1
            self.figures.seconds.observe(time.perf_counter() - start_s)
        return self.reply(items, answered)

    async def answer(self, request: Request) -> tuple[Items, Answered]:
        """The items of a request, and the rows predicted of them."""
        pictures = self.follower.current.predictor.card.family not in NUM_AXES
        items = await read_items(request, self.config, pictures)
        return items, await self.predict(items.blobs)

    def reply(self, items: Items, answered: Answered) -> Response:
        """The document of predictions; 400 where none of the items could be read."""
        served, rows = answered.served, answered.rows
        faults = [
            f"{name}: {row['error']}" for name, row in zip(items.names, rows, strict=True) if row["error"]
        ]
        if len(faults) == len(rows):
            return self.json(400, {"error": faults[0], "version": served.version}, served.version)
        self.figures.images.inc(len(rows) - len(faults))
        if self.recording is not None:
            self.recording.offer(served.resolved, served.predictor, items.blobs)
        document = document_of(self.follower.uri, served.predictor, items.names, rows)
        about = {
            "model": document.pop("model"),
            "version": served.version,
            "model_sha256": served.resolved.sha256,
        }
        return self.json(200, about | document, served.version)

    def json(
        self, status: int, document: dict[str, Any], version: str, retry_after_s: int | None = None
    ) -> Response:
        """An answer, counted."""
        self.figures.requests.labels(str(status)).inc()
        retry = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        return JSONResponse(document, status, {VERSION_HEADER: quote(version, safe=":/@"), **retry})

    async def told(self, _request: Request, error: Exception) -> Response:
        """What is wrong with a request, in one sentence."""
        version = self.follower.current.version
        if isinstance(error, RefusedError):
            return self.json(
                error.status, {"error": str(error), "version": version}, version, error.retry_after_s
            )
        assert isinstance(error, HTTPException)
        known = "POST /predict, GET /healthz, GET /version, GET /metrics"
        return self.json(
            error.status_code,
            {"error": f"{error.detail.lower()}; there is {known}", "version": version},
            version,
        )

    async def failed(self, _request: Request, error: Exception) -> Response:
        """What we did not expect: the log has it, the caller gets no traceback."""
        _logger.error("a request failed", exc_info=error)
        version = self.follower.current.version
        return self.json(500, {"error": "the server failed; its log says why", "version": version}, version)

    async def get_health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def get_version(self, _request: Request) -> Response:
        return JSONResponse(self.follower.state())

    async def get_metrics(self, _request: Request) -> Response:
        self.figures.under_way.set(self.under_way)
        self.figures.changes.set(self.follower.changes)
        if self.recording is not None:
            self.figures.recorded.set(self.recording.num_recorded)
            self.figures.left_out.set(self.recording.num_left_out)
        return Response(self.figures.text(), media_type=CONTENT_TYPE_LATEST)
