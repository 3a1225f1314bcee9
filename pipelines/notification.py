"""Who should know is told: an event for Prefect's automations, and a webhook where one is set.

CONVOY_WEBHOOK_URL takes a POST of JSON: `text`, one line, as chats take it, and the event's payload beside it.
"""

import os
from typing import Any

import httpx
from prefect.events import emit_event

from pipelines.reporting import Reporter

WEBHOOK = "CONVOY_WEBHOOK_URL"
TIMEOUT_S = 10.0
FAMILY_LABEL = "convoy.family"


def notify(
    event: str, model: str, family: str, text: str, payload: dict[str, Any], reporter: Reporter
) -> None:
    """Tell of `event`, as convoy.retrain.promoted, which concerns a registered model of a family."""
    announce(event, model_resource(model, family), text, {"model": model, **payload}, reporter)


def model_resource(model: str, family: str) -> dict[str, str]:
    """A registered model, as events name it."""
    return {
        "prefect.resource.id": f"convoy.model.{model}", "prefect.resource.name": model, FAMILY_LABEL: family,
    }  # fmt: skip


def announce(
    event: str, resource: dict[str, str], text: str, payload: dict[str, Any], reporter: Reporter
) -> None:
    """Tell of `event`, which concerns a resource of Prefect's; `text` is one line.

    A webhook that does not answer stops nothing: `reporter` has a note of it.
    """
    emit_event(event, resource=resource, payload={"text": text, **payload})
    url = os.environ.get(WEBHOOK)
    if not url:
        return
    try:
        sent = httpx.post(url, json={"text": text, "event": event, **payload}, timeout=TIMEOUT_S)
        sent.raise_for_status()
    except httpx.HTTPStatusError as error:
        reporter.note(f"the webhook of {WEBHOOK} answered {error.response.status_code}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reporter.note(f"the webhook of {WEBHOOK} was not reached: {type(error).__name__}")
