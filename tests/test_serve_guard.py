"""Who is let in and how much they may send, checked on the guard alone and on a real server over a socket."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import httpx
import pytest
import uvicorn

from attention_branch.serve.guard import Guard
from attention_branch.serve.protocol import PatientProtocol
from attention_branch.serve.uploads import Limits, safe_name
from serving import encoded, picture, saved_model


async def inner(scope, receive, send):
    """An application that answers with the length of the body it got."""
    message = await receive()
    body = json.dumps({"bytes": len(message["body"])}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


def ask(guard, method="GET", path="/v1/model", headers=None, content=None, host="localhost:7860", port=7860):
    async def go():
        transport = httpx.ASGITransport(app=guard)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://localhost:{port}") as client:
            given = {"host": host} | (headers or {})
            return await client.request(method, path, headers=given, content=content)

    return asyncio.run(go())


class TestHosts:
    @pytest.mark.parametrize("host", ["localhost", "localhost:7860", "127.0.0.1:7860", "127.0.0.7", "[::1]:7860"])
    def test_names_of_this_machine_are_answered(self, host):
        assert ask(Guard(inner), host=host).status_code == 200

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "localhost.evil.example", "10.0.0.1", ""])
    def test_other_names_are_not_so_that_no_page_rebinds_its_own(self, host):
        reply = ask(Guard(inner), host=host)
        assert reply.status_code == 421

    def test_a_server_for_others_takes_addresses_and_the_names_it_was_told(self):
        guard = Guard(inner, host="0.0.0.0", allowed_hosts=["abn.example"])
        assert ask(guard, host="10.0.0.1:80").status_code == 200
        assert ask(guard, host="abn.example").status_code == 200
        assert ask(guard, host="evil.example").status_code == 421

    def test_behind_a_proxy_its_pages_are_answered_whatever_host_it_hands_on(self):
        guard = Guard(inner, allowed_hosts=["abn.example"])
        assert ask(guard, "POST", headers={"origin": "https://abn.example"}).status_code == 200
        assert ask(guard, "POST", headers={"origin": "https://abn.example.evil"}).status_code == 403


class TestOrigins:
    def test_the_pages_own_requests_are_answered(self):
        headers = {"origin": "http://localhost:7860", "sec-fetch-site": "same-origin"}
        assert ask(Guard(inner), "POST", headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": "http://localhost:9999"},
            {"origin": "http://[bad"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
        ],
    )
    def test_other_sites_pages_are_refused(self, headers):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            reply = ask(Guard(inner), method, headers=headers)
            assert reply.status_code == 403
            assert "access-control-allow-origin" not in reply.headers

    def test_a_link_to_the_page_may_be_followed(self):
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert ask(Guard(inner), "GET", "/", headers).status_code == 200
        assert ask(Guard(inner), "POST", "/", headers).status_code == 403


class TestToken:
    guard = Guard(inner, token="open sesame")

    def test_programs_send_it_as_bearer(self):
        assert ask(self.guard).status_code == 401
        assert ask(self.guard, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert ask(self.guard, headers={"authorization": "Bearer open sesame"}).status_code == 200
        assert ask(self.guard, path="/healthz").status_code == 200

    def test_a_browser_gets_a_cookie_that_scripts_cannot_read(self):
        reply = ask(self.guard, path="/?token=open%20sesame&x=1")
        assert reply.status_code == 303
        assert reply.headers["location"] == "/?x=1"
        cookie = reply.headers["set-cookie"]
        assert "HttpOnly" in cookie
        # Lax and not Strict: after a link on another site the page itself must come.
        assert "SameSite=Lax" in cookie
        pair = cookie.partition(";")[0]
        name = pair.partition("=")[0]
        assert ask(self.guard, headers={"cookie": pair}).status_code == 200
        link = {"cookie": pair, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert ask(self.guard, path="/", headers=link).status_code == 200
        assert ask(self.guard, headers={"cookie": f"{name}=wrong"}).status_code == 401
        assert ask(self.guard, path="/?token=wrong").status_code == 401

    def test_servers_side_by_side_do_not_sign_each_other_out(self):
        other, cookies = Guard(inner, token="another"), {}
        for guard, port, token in ((self.guard, 7860, "open%20sesame"), (other, 7861, "another")):
            reply = ask(guard, path=f"/?token={token}", port=port, host=f"localhost:{port}")
            name, _, value = reply.headers["set-cookie"].partition(";")[0].partition("=")
            cookies[name] = value
        jar = {"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}  # a browser's, for one host
        assert ask(self.guard, headers=jar).status_code == 200
        assert ask(other, headers=jar, port=7861, host="localhost:7861").status_code == 200

    def test_odd_letters_in_a_token_are_compared_and_not_stumbled_over(self):
        assert ask(self.guard, headers={"authorization": b"Bearer \xff\xfe"}).status_code == 401
        assert ask(self.guard, headers={"cookie": "abn_token_7860=\x01;;=;"}).status_code == 401


class TestBodies:
    def test_bodies_up_to_the_limit_come_whole(self):
        guard = Guard(inner, limits=Limits(body=1000))
        assert ask(guard, "POST", content=b"x" * 1000).json() == {"bytes": 1000}
        assert ask(guard, "POST", content=b"x" * 1001).status_code == 413

    def test_a_body_without_a_length_is_counted_as_it_comes(self):
        async def parts():
            for _ in range(11):
                yield b"x" * 100

        assert ask(Guard(inner, limits=Limits(body=1000)), "POST", content=parts()).status_code == 413

    def test_two_ways_to_say_where_a_body_ends_are_one_too_many(self):
        headers = {"content-length": "1", "transfer-encoding": "chunked"}
        assert ask(Guard(inner), "POST", headers=headers).status_code == 400

    @pytest.mark.parametrize("length", ["-1", "many", "1e3", "9" * 40])
    def test_lengths_that_are_none_are_refused(self, length):
        reply = ask(Guard(inner), "POST", headers={"content-length": length})
        assert reply.status_code in (400, 413)

    def test_bodies_together_stay_within_bounds_and_the_room_is_given_back(self):
        limits = Limits(body=1000, in_flight=1500)
        guard = Guard(inner, limits=limits)
        started, finish = asyncio.Event(), asyncio.Event()

        async def slow(scope, receive, send):
            started.set()
            await finish.wait()
            await inner(scope, receive, send)

        async def go():
            guard.application = slow
            transport = httpx.ASGITransport(app=guard)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                first = asyncio.create_task(client.post("/", content=b"x" * 1000))
                await started.wait()
                second = await client.post("/", content=b"x" * 1000)
                finish.set()
                done = (await first).status_code
                third = await client.post("/", content=b"x" * 1000)
                return done, second, third.status_code

        first, second, third = asyncio.run(go())
        assert (first, second.status_code, third) == (200, 503, 200)
        assert second.headers["retry-after"] == "1"

    def test_answers_carry_the_headers_that_browsers_need_to_be_careful(self):
        for reply in (ask(Guard(inner)), ask(Guard(inner), host="evil.example")):
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in reply.headers["content-security-policy"]
            assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat.jpg", "cat.jpg"),
        ("a\r\nSet-Cookie: x", "aSet-Cookie x"),
        ("", "image"),
        (None, "image"),
        ("..", "image"),
        ("<script>.png", "script.png"),
        ("x" * 500, "x" * 120),
    ],
)
def test_names_of_files_are_only_names(given, shown):
    assert safe_name(given) == shown


def test_connections_that_say_nothing_or_half_a_request_are_closed(monkeypatch):
    monkeypatch.setattr("attention_branch.serve.protocol.HEAD_SECONDS", 0.5)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    made = uvicorn.Server(uvicorn.Config(inner, http=PatientProtocol, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not made.started:
        assert thread.is_alive()
        time.sleep(0.05)
    try:
        silent, slow, proper = (socket.create_connection(listener.getsockname(), timeout=10) for _ in range(3))
        slow.sendall(b"GET / HT")
        begun = time.monotonic()
        for connection in (silent, slow):
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        assert time.monotonic() - begun < 8
        # One that asked in time is kept for its next request.
        proper.close()
        with httpx.Client() as client:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            assert client.get(address).status_code == 200
            time.sleep(0.8)
            assert client.get(address).status_code == 200
    finally:
        made.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    saved_model(folder)
    return folder


@pytest.fixture(scope="module")
def process(run):
    command = [sys.executable, "-m", "attention_branch.cli", "serve", str(run), "--port", "0", "--max-body", "1"]
    command += ["--engine", "torch"]  # the other exports the network first
    made = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_interruptible
    )
    said = ""
    while "Open http" not in said:
        line = made.stdout.readline()
        assert line, said
        said += line
    yield made, int(re.search(r"http://127\.0\.0\.1:(\d+)/", said)[1]), said
    made.kill()
    made.wait()


@pytest.mark.heavy
class TestProcess:
    """The command itself."""

    def test_it_says_its_address_and_answers_there(self, process):
        _, port, said = process
        assert "resnet14" in said
        reply = httpx.post(
            f"http://127.0.0.1:{port}/v1/predict",
            files={"files": ("a.png", encoded(picture()), "image/png")},
            timeout=60,
        )
        assert reply.status_code == 200
        assert "attention-branch" in httpx.get(f"http://127.0.0.1:{port}/", timeout=60).text

    def test_a_connection_that_says_nothing_or_nonsense_hurts_nobody(self, process):
        _, port, _ = process
        idle = socket.create_connection(("127.0.0.1", port))
        broken = socket.create_connection(("127.0.0.1", port))
        broken.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 nonsense\r\n\r\n")
        half = socket.create_connection(("127.0.0.1", port))
        half.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\nabc")
        half.close()
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60).status_code == 200
        idle.close()
        broken.close()

    def test_a_client_that_sends_too_much_still_hears_so(self, process):
        _, port, _ = process
        for size in (2**20 + 1, 3 * 2**20):
            reply = httpx.post(
                f"http://127.0.0.1:{port}/v1/predict", files={"files": ("a.png", bytes(size))}, timeout=60
            )
            assert reply.status_code == 413

    def test_an_enormous_body_is_refused_before_it_is_sent(self, process):
        _, port, _ = process
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
            assert connection.recv(200).startswith(b"HTTP/1.1 413")

    def test_a_port_in_use_is_said_in_a_sentence(self, process, run):
        _, port, _ = process
        done = subprocess.run(
            [sys.executable, "-m", "attention_branch.cli", "serve", str(run), "--port", str(port)],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2
        assert "--port 0" in done.stderr
        assert "Traceback" not in done.stderr

    def test_ctrl_c_stops_it_cleanly(self, process):
        made, port, _ = process
        made.send_signal(signal.SIGINT)
        assert made.wait(timeout=30) == 0
        rest = made.stdout.read()
        assert rest.endswith("Stopped.\n")
        assert "Traceback" not in rest
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)


def _interruptible():
    # A shell that starts tests in the background makes them, and what they start, deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
