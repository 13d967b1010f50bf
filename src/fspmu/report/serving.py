"""The page of a repair served to this machine alone, which saves each decision as it is made.

Whoever has the address with its token may read and decide; nobody else, neither another page in the same browser nor another user of this machine.
"""

import contextlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fspmu.errors import InputError
from fspmu.report.page import render_page
from fspmu.report.payload import build_payload
from fspmu.report.reviews import check_review, saved_review, write_review
from fspmu.results.store import lock, unlock

Json = dict[str, Any]

HOST = "127.0.0.1"
HEADER = "X-Fspmu-Token"
REVISION = "X-Fspmu-Revision"
"""Header that says which state of the review a page knows."""
COOKIE = "fspmu"
LARGEST = 16 * 2**20
"""Bytes of a review that are read."""
PATIENCE = 20.0
"""Seconds that a connection may stay silent."""
KINDS = {".webp": "image/webp"}
_NAME = re.compile(r"/page/([\w-]+\.webp)", re.ASCII)


class ReviewServer(ThreadingHTTPServer):
    """One run, one token, one page, which is written anew each time it is asked for."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, folder: Path, compare: Sequence[Path], payload: Json, review: Json, port: int) -> None:
        self.folder, self.compare, self.payload = folder, compare, payload
        self.token = secrets.token_urlsafe(32)
        self._saving = threading.Lock()
        self._review, self._revision, self._whole = review, 0, True
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """What to open, token included."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    def page(self) -> bytes:
        """Return the page with the decisions that are saved by now."""
        payload = build_payload(self.folder, self.compare)
        with self._saving:
            payload["review"], revision = self._review, str(self._revision)
        return render_page(payload, server={"token": self.token, "save": "/review", "revision": revision}).encode("utf-8")

    def save(self, text: bytes, known: str) -> tuple[HTTPStatus, Json]:
        """Check and write a review; answer with the revision that is saved then.

        A page that knows another revision has not seen what another page saved: it is told, and nothing is written.
        """
        with self._saving:
            self._whole = False
            review = check_review(text, self.payload)
            if review != self._review:
                if known != str(self._revision):
                    return HTTPStatus.CONFLICT, {"revision": str(self._revision), "review": self._review}
                write_review(self.folder, review)
                self._review, self._revision = review, self._revision + 1
            self._whole = True
            return HTTPStatus.OK, {"revision": str(self._revision)}

    @property
    def whole(self) -> bool:
        """Whether the last review that was sent is saved; waits for one that is being written."""
        with self._saving:
            return self._whole


@contextlib.contextmanager
def open_review(run: Path, compare: Sequence[Path] = (), port: int = 0) -> Iterator[ReviewServer]:
    """Yield a server for the repair in `run`, which nobody else serves meanwhile.

    Raises InputError for a folder that holds no repair or decisions that would be lost, one that is served already, or a port that cannot be had.
    """
    folder = run.expanduser().resolve()
    payload = build_payload(folder, compare)
    busy = f"{folder} is being reviewed by another `fspmu review`; use its address, or stop it first"
    held = lock(folder / ".review.lock", busy, "a review is saved there")
    try:
        try:
            server = ReviewServer(folder, compare, payload, saved_review(folder, payload), port)
        except OSError as error:
            raise InputError(f"--port {port} cannot be had: {error.strerror}; give another, or 0 for any that is free") from None
        with server:
            yield server
    finally:
        unlock(held)


class _Handler(BaseHTTPRequestHandler):
    """Three things can be asked for: the page, its pictures, and to save; everything else is refused."""

    server: ReviewServer
    server_version, sys_version = "fspmu", ""
    protocol_version = "HTTP/1.1"
    timeout = PATIENCE

    def do_GET(self) -> None:
        """Answer with the page or one of its pictures."""
        if not self._is_for_us() or not self._comes_from_us(reading=True):
            return
        asked = urlsplit(self.path)
        given = parse_qs(asked.query).get("token", [""])[0]
        if not (self._matches(given) or self._matches(self._cookie())):
            self._refuse(HTTPStatus.FORBIDDEN, "open the address that `fspmu review` printed")
            return
        if asked.path == "/":
            try:
                page = self.server.page()
            except (InputError, OSError) as error:
                self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
                return
            self._answer(page, "text/html; charset=utf-8", cookie=True)
            return
        found = self._picture(unquote(asked.path))
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such file")
            return
        self._answer(found.read_bytes(), KINDS[found.suffix])

    def do_POST(self) -> None:
        """Save a review."""
        if not self._is_for_us() or not self._comes_from_us(reading=False):
            return
        if self.path != "/review":
            self._refuse(HTTPStatus.NOT_FOUND, "nothing is saved here")
            return
        if not self._matches(self.headers.get(HEADER, "")):
            self._refuse(HTTPStatus.FORBIDDEN, "the token is missing or wrong; open the address that `fspmu review` printed")
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or self.headers.get("Transfer-Encoding"):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "say how long the review is")
            return
        if len(length) > 12 or int(length) > LARGEST:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a review has at most {LARGEST:,} bytes")
            return
        try:
            text = self.rfile.read(int(length))
            if len(text) != int(length):
                raise InputError("the review was cut short")
            status, answer = self.server.save(text, self.headers.get(REVISION, ""))
        except InputError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        except OSError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"the review could not be saved: {error.strerror}")
            return
        self._answer(json.dumps(answer).encode(), "application/json", status=status)

    def _is_for_us(self) -> bool:
        """Refuse a request for another host: a name that was made to point here is somebody else's page."""
        port = self.server.server_port
        if self.headers.get_all("Host") in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            return True
        self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to its own address alone")
        return False

    def _comes_from_us(self, *, reading: bool) -> bool:
        """Refuse what another page asked for; the address itself may be opened from anywhere."""
        port = self.server.server_port
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        own = origin in (None, f"http://{HOST}:{port}", f"http://localhost:{port}") and site in (None, "same-origin", "none")
        opened = reading and origin is None and self.headers.get("Sec-Fetch-Mode") == "navigate" and self.headers.get("Sec-Fetch-Dest") == "document"
        if own or opened:
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "this comes from another page")
        return False

    def _matches(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode())

    def _cookie(self) -> str:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(f"{COOKIE}-{self.server.server_port}")
        except CookieError:
            return ""
        return found.value if found is not None else ""

    def _picture(self, path: str) -> Path | None:
        """Return the file of a picture: a plain file within the folder `page`, whatever links there are."""
        named = _NAME.fullmatch(path)
        folder = self.server.folder / "page"
        if named is None or folder.is_symlink():
            return None
        found = folder / named[1]
        return found if found.is_file() and not found.is_symlink() else None

    def _answer(self, content: bytes, kind: str, *, status: HTTPStatus = HTTPStatus.OK, cookie: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if cookie:
            self.send_header("Set-Cookie", f"{COOKIE}-{self.server.server_port}={self.server.token}; HttpOnly; SameSite=Strict; Path=/")
        for name, value in (
            ("Content-Security-Policy", "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer with a sentence, and end the connection: what else it holds was not read."""
        self.close_connection = True
        self._answer(f"{reason}\n".encode("utf-8", "replace"), "text/plain; charset=utf-8", status=status)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer to methods that are not known, and to what is no request, like to anything else that is refused."""
        self._refuse(HTTPStatus(code), message or "this cannot be done")

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: addresses hold the token."""
