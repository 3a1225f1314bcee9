"""Items to predict out of an HTTP request: one as the body, or several as files of a form. What is too much is refused.

curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
curl -F image=@one.jpg -F image=@two.jpg http://127.0.0.1:8000/predict
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from data.decode import DecodeError, read_size
from tasks.serveconfig import ServeConfig

MB, MEGAPIXEL = 10**6, 10**6
FORM = "multipart/form-data"


class RefusedError(ValueError):
    """Why a request is not answered: an HTTP status and a sentence."""

    def __init__(self, status: int, text: str, retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.status, self.retry_after_s = status, retry_after_s


@dataclass(frozen=True)
class Items:
    """What a request asks about."""

    names: list[str]  # of the files of a form; "body" for one that is all of the request
    blobs: list[bytes]
    as_form: bool


async def read_items(request: Request, config: ServeConfig, pictures: bool) -> Items:
    """The items of a request, none decoded; raises RefusedError. `pictures`: their headers tell how large they are."""
    body = await read_body(request, config.max_request_mb)
    as_form = request.headers.get("content-type", "").lower().startswith(FORM)
    if as_form:
        items = await form_items(request, body, config.max_images)
    elif body:
        items = Items(["body"], [body], as_form=False)
    else:
        raise RefusedError(
            400, "the request has no body: send the bytes of one image, or files of a form named image"
        )
    if pictures:
        for name, blob in zip(items.names, items.blobs, strict=True):
            require_size(name, blob, config.max_megapixels)
    return items


async def read_body(request: Request, max_mb: float) -> bytes:
    """The body; raises RefusedError (413) as soon as it is too large, whatever its header says."""
    most = int(max_mb * MB)
    too_large = RefusedError(413, f"the request is larger than {max_mb:g} MB")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
    except ClientDisconnect:
        raise RefusedError(400, "the request ended before its body did") from None
    return bytes(body)


async def form_items(request: Request, body: bytes, max_images: int) -> Items:
    """The files of a form, in their order; raises RefusedError."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
    if b"--" + boundary + b"--" not in body:  # the parser would leave out what is cut off, and say nothing
        raise RefusedError(400, "the form cannot be read: it ends before its last boundary")
    try:
        # one more than is allowed, so that what is wrong is told by us
        form = await MultiPartParser(
            request.headers, chunks(), max_files=max_images + 1, max_fields=max_images + 1
        ).parse()
    except MultiPartException as error:
        status = 413 if error.message.startswith("Too many") else 400
        raise RefusedError(
            status, f"the form cannot be read: {error.message.rstrip('.')} (at most {max_images} images)"
        ) from None
    files = [value for _name, value in form.multi_items() if isinstance(value, UploadFile)]
    try:
        if not files:
            raise RefusedError(
                400, "the form has no file: add one as the field image (curl -F image=@photo.jpg)"
            )
        if len(files) > max_images:
            raise RefusedError(413, f"the request has {len(files)} images, more than {max_images}")
        names = [file.filename or f"image {i}" for i, file in enumerate(files, start=1)]
        return Items(names, [await file.read() for file in files], as_form=True)
    finally:
        await form.close()


def require_size(name: str, blob: bytes, max_megapixels: float) -> None:
    """Raise RefusedError (413) for a picture whose header says that it is too large; what is none passes."""
    try:
        width, height = read_size(blob)
    except DecodeError:
        return  # prediction tells what is wrong with it
    if width * height > max_megapixels * MEGAPIXEL:
        raise RefusedError(413, f"{name} has {width}×{height} pixels, more than {max_megapixels:g} million")
