"""Connections that would hold a place for ever, on a server that does nothing but answer."""

import socket
import threading
import time

import pytest
import uvicorn

from attention_branch.serve import protocol


async def application(scope, receive, send):
    """Answer 4 MiB, more than a system keeps for somebody who does not read, or little."""
    body = bytes(2**22) if scope["path"] == "/much" else b"little"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, len(body), 2**16):
        more = start + 2**16 < len(body)
        await send({"type": "http.response.body", "body": body[start : start + 2**16], "more_body": more})


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "READ_SECONDS", 0.5)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
    listener.bind(("127.0.0.1", 0))
    options = {"http": protocol.PatientProtocol, "log_level": "critical", "lifespan": "off", "ws": "none"}
    running = uvicorn.Server(uvicorn.Config(application, timeout_keep_alive=1, **options))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield running, listener.getsockname()
    running.should_exit = True
    thread.join(10)
    listener.close()


def connected(name, request):
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    made.settimeout(10)
    made.connect(name)
    made.sendall(request)
    return made


def gone(running, seconds=8):
    """Wait until the server has no connection any more."""
    end = time.monotonic() + seconds
    while running.server_state.connections and time.monotonic() < end:
        time.sleep(0.02)
    return not running.server_state.connections


GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("request_", [b"", b"GET / HT", GET % b"/much", GET % b"/little"])
def test_who_sends_nothing_whole_or_reads_nothing_is_cut_off(address, request_):
    running, name = address
    made = connected(name, request_)
    end = time.monotonic() + 5
    while not running.server_state.connections and time.monotonic() < end:
        time.sleep(0.01)
    assert running.server_state.connections
    assert gone(running)
    made.close()


def test_who_reads_slowly_gets_all_of_it(address):
    running, name = address
    made = connected(name, GET % b"/much")
    found, begun = 0, time.monotonic()
    while found < 2**22:
        part = made.recv(2**18)
        assert part
        found += len(part)
        if time.monotonic() - begun < 2:
            time.sleep(0.05)
    made.close()
    assert gone(running)
