"""What stands round the server in the browser's tests: the site whose pages call it, and a line to it that fails."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import httpx

_HOP = {"connection", "host", "transfer-encoding"}  # of one connection, not of what goes on


class _Server:
    """A small HTTP server on a free port of loopback."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Pages(_Server):
    """A site: the page of each path. Its origin is the one that the server's configuration names."""

    def __init__(self, pages: Mapping[str, str]) -> None:
        self.pages = dict(pages)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805  (the base class's name; `self` is the site)
                body = self.pages.get(handler.path, "").encode()
                handler.send_response(200 if body else 404)
                handler.send_header("content-type", "text/html; charset=utf-8")
                handler.send_header("content-length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(handler, *arguments: object) -> None:  # noqa: N805
                pass

        super().__init__(Handler)


class LossyLine(_Server):
    """Passes requests on to ``url`` and answers back, but the answers to the first ``lost`` posts to ``path`` it swallows:
    the server did what it was asked, and nobody hears of it.
    """

    def __init__(self, url: str, path: str, lost: int) -> None:
        self.posts: list[bytes] = []  # the bodies that came to ``path``, those with a lost answer too
        self.asked: list[str] = []  # "METHOD path" of every request
        lock = threading.Lock()
        http = httpx.Client(base_url=url, timeout=30.0)

        class Handler(BaseHTTPRequestHandler):
            def pass_on(handler) -> None:  # noqa: N805  (`self` is the line)
                body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
                headers = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP}
                answer = http.request(handler.command, handler.path, content=body, headers=headers)
                with lock:
                    self.asked.append(f"{handler.command} {handler.path}")
                    if f"{handler.command} {handler.path}" == f"POST {path}":
                        self.posts.append(body)
                        if len(self.posts) <= lost:
                            handler.close_connection = True
                            return
                handler.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name not in _HOP:
                        handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(answer.content)

            do_GET = do_POST = do_OPTIONS = pass_on  # noqa: N815

            def log_message(handler, *arguments: object) -> None:  # noqa: N805
                pass

        self._http = http
        super().__init__(Handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        super().__exit__(kind, error, at)
        self._http.close()
