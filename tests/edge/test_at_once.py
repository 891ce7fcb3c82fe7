"""A request may begin before it has a task, and its reply may leave in one piece."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from cachesvc.edge.limits import Limits
from tests.edge.running import TIMEOUT, Running, get, read_until

LARGE = 2**20


def post(path: str, body: bytes, *headers: str) -> bytes:
    return get(path, f"Content-Length: {len(body)}", *headers, method="POST") + body


class Eager:
    """Replies as a whole to what begins at once, and notes how it went."""

    at_once = frozenset(("/echo", "/wait", "/wrong", "/large"))

    def __init__(self) -> None:
        self.began_in_a_task: list[bool] = []
        self.began = threading.Event()
        self.behind = threading.Event()
        self.cancelled = threading.Event()
        self.waits = threading.Event()
        self._go = asyncio.Event()

    def go(self) -> None:
        self._loop.call_soon_threadsafe(self._go.set)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self.began_in_a_task.append(_in_a_task())
        self.began.set()
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == "/wait":
            await self._wait()
        await self._reply(scope, send, bytes(LARGE) if scope["path"] == "/large" else body)

    async def _wait(self) -> None:
        self.waits.set()
        try:
            await self._go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        assert _in_a_task()

    async def _reply(self, scope: Any, send: Any, body: bytes) -> None:
        value = b"a\r\nb" if scope["path"] == "/wrong" else b"a"
        headers = [(b"content-length", b"%d" % len(body)), (b"x-test", value)]
        whole = scope["extensions"]["cachesvc.reply"](200, headers, body)
        if not whole:
            self.behind.set()
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


def _in_a_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


def test_a_request_that_came_whole_begins_before_it_has_a_task(loop: str) -> None:
    app = Eager()
    with Running(app, loop) as edge, edge.connect() as sock:
        for body in (b"one", b"two"):
            sock.sendall(post("/echo", body))
            assert read_until(sock, body).endswith(b"\r\nx-test: a\r\n\r\n" + body)
    assert app.began_in_a_task == [False, False]


def test_a_path_that_did_not_ask_for_it_begins_in_a_task(loop: str) -> None:
    app = Eager()
    with Running(app, loop) as edge, edge.connect() as sock:
        sock.sendall(post("/other", b"one"))
        read_until(sock, b"\r\n\r\none")
    assert app.began_in_a_task == [True]


def test_a_request_whose_body_is_on_its_way_begins_in_a_task(loop: str) -> None:
    app = Eager()
    with Running(app, loop) as edge, edge.connect() as sock:
        request = post("/echo", b"in two pieces")
        sock.sendall(request[:-6])
        assert app.began.wait(TIMEOUT)
        sock.sendall(request[-6:])
        read_until(sock, b"\r\n\r\nin two pieces")
    assert app.began_in_a_task == [True]


def test_what_has_to_wait_goes_on_in_a_task(loop: str) -> None:
    app = Eager()
    with Running(app, loop) as edge, edge.connect() as sock:
        sock.sendall(post("/wait", b"waited"))
        assert app.waits.wait(TIMEOUT)
        app.go()
        read_until(sock, b"\r\n\r\nwaited")
    assert app.began_in_a_task == [False]
    assert not app.cancelled.is_set()


def test_a_stop_reaches_what_waits_where_it_waits(loop: str) -> None:
    app = Eager()
    with Running(app, loop) as edge, edge.connect() as sock:
        sock.sendall(post("/wait", b""))
        assert app.waits.wait(TIMEOUT)
        edge.stop()
        assert edge.wait(TIMEOUT)
    assert app.cancelled.is_set()


def test_requests_sent_together_are_answered_in_order(loop: str) -> None:
    bodies = [b"<%d>" % number for number in range(20)]
    with Running(Eager(), loop) as edge:
        requests = [post("/echo", body) for body in bodies[:-1]]
        said = edge.exchange(b"".join([*requests, post("/echo", bodies[-1], "Connection: close")]))
    assert said.count(b"HTTP/1.1 200 ") == len(bodies)
    places = [said.index(body) for body in bodies]
    assert places == sorted(places)


def test_a_bad_request_behind_a_good_one_takes_nothing_from_its_reply(loop: str) -> None:
    with Running(Eager(), loop) as edge:
        said = edge.exchange(post("/echo", b"good") + b"GET /echo HTTP/1.1\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.endswith(b"\r\n\r\ngood")
    assert said.count(b"HTTP/1.1 ") == 1


def test_a_caller_that_wants_to_leave_is_let_go_after_a_whole_reply(loop: str) -> None:
    with Running(Eager(), loop) as edge:
        said = edge.exchange(post("/echo", b"bye", "Connection: close"))
    assert b"\r\nconnection: close\r\n\r\nbye" in said


def test_head_gets_a_whole_reply_without_its_body(loop: str) -> None:
    with Running(Eager(), loop) as edge:
        said = edge.exchange(get("/large", "Connection: close", method="HEAD"))
    assert b"content-length: %d\r\n" % LARGE in said
    assert said.endswith(b"\r\n\r\n")


def test_a_header_that_would_split_the_reply_is_an_error_of_the_app(loop: str, caplog: Any) -> None:
    with Running(Eager(), loop) as edge:
        said = edge.exchange(post("/wrong", b"secret"))
    assert said.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in said
    assert "Exception in ASGI application" in caplog.text


def test_a_reader_that_is_behind_gets_the_rest_as_it_takes_it(loop: str) -> None:
    app, count = Eager(), 40
    with Running(app, loop) as edge, edge.connect() as sock:
        ask = post("/large", b"") * (count - 1) + post("/large", b"", "Connection: close")
        sender = threading.Thread(target=sock.sendall, args=(ask,))
        sender.start()
        assert app.behind.wait(TIMEOUT)
        said = b"".join(iter(lambda: sock.recv(LARGE), b""))
        sender.join(TIMEOUT)
    assert said.count(b"HTTP/1.1 200 ") == count
    assert said.count(bytes(LARGE)) == count


def test_a_connection_in_use_outlives_the_patience_with_idle_ones(loop: str) -> None:
    limits = Limits(keep_alive_seconds=2)
    with Running(Eager(), loop, limits=limits) as edge, edge.connect() as sock:
        pause = threading.Event()
        for _ in range(4):
            sock.sendall(post("/echo", b"here"))
            read_until(sock, b"\r\n\r\nhere")
            pause.wait(0.8)
        sock.sendall(post("/echo", b"still"))
        read_until(sock, b"\r\n\r\nstill")
        assert sock.recv(1) == b""
