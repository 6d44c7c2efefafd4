"""Who may speak to the server and how much: hosts, origins, a token, the size and time of a body, safe headers.

It stands before the application, as plain ASGI: what it refuses is never parsed.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from attention_branch.serve.uploads import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "abn_token_{port}"
"""Cookies do not tell ports apart: servers side by side on one machine would sign each other's pages out."""

_DRAINED = 4
"""Bodies of refused requests are let in and thrown away up to this multiple of the largest that is taken."""

_OPEN_PATHS = frozenset({"/healthz"})
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        b"form-action 'self'; frame-ancestors 'none'",
    ),
]


class Refused(Exception):
    """A request that is not answered: a status, a sentence, and headers."""

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.status, self.why, self.headers = status, why, headers


class Guard:
    """ASGI middleware that refuses what the application must not see, and hands on whole bodies only."""

    def __init__(
        self,
        application: Application,
        *,
        host: str = "127.0.0.1",
        allowed_hosts: Iterable[str] = (),
        token: str | None = None,
        limits: Limits | None = None,
        refused: Callable[[int], None] | None = None,
    ) -> None:
        """Guard an application that listens on `host`; `refused(status)` is told of every refusal."""
        self.application, self.token, self.limits = application, token, limits or Limits()
        self._loopback = _is_loopback(host)
        names = {socket.gethostname(), socket.getfqdn(), host} if not self._loopback else set()
        # A proxy may hand on another Host than the one that its pages come from.
        self._allowed = {name.lower() for name in allowed_hosts}
        self._names = {name.lower() for name in ("localhost", *names)} | self._allowed
        self._in_flight = 0
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refusal, or let the application answer."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.application(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        held: list[int] = []
        try:
            await self._guarded(scope, receive, send, headers, held)
        finally:
            self._in_flight -= sum(held)

    async def _guarded(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str], held: list[int]
    ) -> None:
        try:
            self._check_host(headers)
            self._check_origin(scope, headers)
            if self._sign_in(scope):
                raise Refused(303, "Signed in.", location=_without_token(scope), **{"set-cookie": self._cookie(scope)})
            self._check_token(scope, headers)
            body = await self._body(receive, self._declared(headers), held)
        except Refused as problem:
            if self._refused is not None and problem.status >= 400:
                self._refused(problem.status)
            if problem.status != 408:
                await self._drain(receive, headers)
            await _answer(send, problem)
            return
        except ConnectionError:
            return
        await self.application(scope, _Replay(body, receive), _with_headers(send))

    # --- who ---

    def _check_host(self, headers: dict[str, str]) -> None:
        """Refuse names that are not ours: a stranger's page may point its own name at this address (DNS rebinding)."""
        name = _host_name(headers.get("host", ""))
        if name in self._names:
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            raise Refused(421, f"This server does not answer for the host '{name[:80]}'; see --allow-host.") from None
        if self._loopback and not address.is_loopback:
            raise Refused(421, f"This server does not answer for the host '{name[:80]}'.")

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> None:
        """Refuse requests that another site's page sends; opening the page by a link is not one."""
        origin = headers.get("origin")
        ours = (headers.get("host", "").lower(), *self._allowed)
        if origin is not None and not (_authority(origin) in ours or _host_name(_authority(origin)) in self._allowed):
            raise Refused(403, f"Requests from pages of '{origin[:80]}' are not answered.")
        site = headers.get("sec-fetch-site")
        navigation = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        if site in ("cross-site", "same-site") and not navigation:
            raise Refused(403, "Requests from another site's page are not answered.")

    def _check_token(self, scope: Scope, headers: dict[str, str]) -> None:
        if self.token is None or scope["path"] in _OPEN_PATHS:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip().encode("latin-1"), self.token):
            return
        if _same(_cookie_value(headers.get("cookie", ""), _cookie_name(scope)).encode(), _digest(self.token)):
            return
        raise Refused(
            401,
            "This server wants a token: send 'Authorization: Bearer TOKEN', or open the address with ?token=TOKEN.",
            **{"www-authenticate": "Bearer"},
        )

    def _sign_in(self, scope: Scope) -> bool:
        """Tell whether a browser opened the page with the right token in its address."""
        if self.token is None or scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return _same(given.encode("utf-8", "replace"), self.token)

    def _cookie(self, scope: Scope) -> str:
        assert self.token is not None
        # Lax, because a link on another site must be able to open the page; what such a site's page may ask is settled
        # by `_check_origin`.
        return f"{_cookie_name(scope)}={_digest(self.token)}; HttpOnly; SameSite=Lax; Path=/"

    # --- how much ---

    def _declared(self, headers: dict[str, str]) -> int | None:
        text = headers.get("content-length")
        if "transfer-encoding" in headers:
            if text is not None:
                # Which of the two counts is told differently by different programs: a way to smuggle requests.
                raise Refused(400, "A request has a Content-Length or a Transfer-Encoding, not both.")
            return None
        if text is None:
            return 0
        if not (text.isascii() and text.isdigit()):
            raise Refused(400, "The Content-Length is no number.")
        if len(text) > 18 or int(text) > self.limits.body:
            raise Refused(413, f"The body has more than the {self.limits.body} bytes that are taken.")
        return int(text)

    def _count(self, held: list[int], size: int) -> None:
        """Count bytes that have come, so that all bodies together stay within bounds."""
        if self._in_flight + size > self.limits.in_flight:
            raise Refused(503, "Too many uploads at once.", **{"retry-after": "1"})
        self._in_flight += size
        held.append(size)

    async def _body(self, receive: Receive, length: int | None, held: list[int]) -> bytes:
        if length == 0:
            return b""
        try:
            async with asyncio.timeout(self.limits.upload):
                return await self._read(receive, held)
        except TimeoutError:
            raise Refused(408, f"The body did not arrive within {self.limits.upload:.0f} s.") from None

    async def _drain(self, receive: Receive, headers: dict[str, str]) -> None:
        """Let the body of a refused request arrive, and keep nothing of it, unless it is enormous or slow.

        A client that is still sending while the connection is closed loses the answer with it.
        """
        text = headers.get("content-length", "0")
        left = int(text) if text.isascii() and text.isdigit() and len(text) < 18 else 0
        if left > _DRAINED * self.limits.body:
            return
        try:
            async with asyncio.timeout(min(10.0, self.limits.upload)):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return
        except TimeoutError:
            return

    async def _read(self, receive: Receive, held: list[int]) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            part = message.get("body", b"")
            size += len(part)
            if size > self.limits.body:
                raise Refused(413, f"The body has more than the {self.limits.body} bytes that are taken.")
            self._count(held, len(part))
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)


class _Replay:
    """Hands a body that was read already to the application, then what the connection says."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name for name, _ in message["headers"]}
            added = [(name, value) for name, value in _HEADERS if name not in given]
            if b"cache-control" not in given:
                added.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending


async def _answer(send: Send, problem: Refused) -> None:
    body = json.dumps({"error": {"status": problem.status, "message": problem.why}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode("latin-1", "replace")) for name, value in problem.headers.items()]
    if problem.status in (408, 413):
        headers.append((b"connection", b"close"))
    sending = _with_headers(send)
    await sending({"type": "http.response.start", "status": problem.status, "headers": headers})
    await sending({"type": "http.response.body", "body": body})


def _host_name(host: str) -> str:
    """Return the name of a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _same(given: bytes, token: str) -> bool:
    return hmac.compare_digest(given, token.encode())


def _digest(token: str) -> str:
    """Return what a cookie holds in a token's place: a token may have letters that no cookie can."""
    return hashlib.sha256(token.encode()).hexdigest()


def _cookie_name(scope: Scope) -> str:
    server = scope.get("server")
    return COOKIE.format(port=server[1] if server else "")


def _cookie_value(header: str, name: str) -> str:
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def _without_token(scope: Scope) -> str:
    query = parse_qs(scope["query_string"].decode("latin-1"))
    query.pop("token", None)
    rest = urlencode(query, doseq=True)
    return "/" + (f"?{rest}" if rest else "")
