"""Small HTTP servers on this machine that serve one file in the ways in which servers do, and go wrong."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What a server does; tests change it while it runs. `asked` are the Range headers of the requests, in order."""

    data: bytes
    ranges: bool = True
    etag: str = '"one"'
    kind: str = "application/x-tar"
    status: int = 200
    location: str = ""  # redirect to
    cut_at: list[int] = field(default_factory=list)  # one for each request: bytes after which it hangs up
    stall_s: float = 0.0  # instead of hanging up
    says_length: bool = True
    url: str = ""
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serve(data: bytes, **options: object) -> Iterator[Site]:
    """Serve `data` at `site.url` until the end of the block."""
    site = Site(data, **options)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            answer(self, site)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}/x.tar"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, site: Site) -> None:
    """Answer one GET."""
    wanted = request.headers.get("Range", "")
    site.asked.append(wanted)
    site.headers.append(dict(request.headers))
    if site.location and request.path == "/x.tar":
        request.send_response(302)
        request.send_header("Location", site.location)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    same = request.headers.get("If-Range", site.etag) == site.etag
    start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges and same else 0
    part = site.data[start:]
    if request.headers.get("If-Match", site.etag) != site.etag:
        request.send_error(412)
        return
    if start and not part:
        request.send_error(416)
        return
    request.send_response(site.status if site.status != 200 else 206 if start else 200)
    request.send_header("Content-Type", site.kind)
    if site.etag:
        request.send_header("ETag", site.etag)
    if site.says_length:
        request.send_header("Content-Length", str(len(part)))
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(site.data) - 1}/{len(site.data)}")
    request.end_headers()
    stop = site.cut_at.pop(0) if site.cut_at else len(part)
    request.wfile.write(part[:stop])
    if stop < len(part):
        request.wfile.flush()
        time.sleep(site.stall_s)
        request.close_connection = True
