"""Connections of a REST server, by real sockets: places, times, and an end in any case."""

import asyncio
import logging
import resource
import socket
import threading
from contextlib import suppress

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from common.http.connections import ConnectionLimits, connections_by_descriptors
from tests.served import Served, closed, head, read_answer, served, until

HOUR_S = 3600.0
PATIENT = ConnectionLimits(header_s=HOUR_S, write_s=HOUR_S, linger_s=HOUR_S)
LARGE = bytes(64 << 20)


class App:
    """Answers by path, and counts what hung up.

    Attributes:
        gone: Requests whose caller went away while they waited.
        waiting: Requests under /wait.
        begun: All requests.
    """

    def __init__(self) -> None:
        self.gone = 0
        self.waiting = 0
        self.begun = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.begun += 1
        request = Request(scope, receive, send)
        match scope["path"]:
            case "/wait":
                self.waiting += 1
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.gone += 1
            case "/early":  # answers before the body is read
                await JSONResponse({"early": True}, 503)(scope, receive, send)
            case "/large":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                for _ in range(2):
                    await send({"type": "http.response.body", "body": LARGE, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            case _:
                with suppress(ClientDisconnect):
                    await PlainTextResponse(await request.body())(scope, receive, send)


@pytest.fixture
def app() -> App:
    return App()


def _lives(server: Served) -> bool:
    with server.connect() as connection:
        connection.sendall(head("GET", "/livez"))
        return read_answer(connection)[0] == 200


def _limits(**changed: float) -> ConnectionLimits:
    return ConnectionLimits(**{**vars(PATIENT), **changed})


def test_a_header_that_never_comes_closes_the_connection(app: App) -> None:
    with served(app, _limits(header_s=0)) as server, server.connect() as silent:
        assert closed(silent)


def test_a_header_that_never_ends_closes_the_connection(app: App) -> None:
    with served(app, _limits(header_s=0.2)) as server, server.connect() as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: te")
        assert closed(slow)


def test_half_of_a_further_header_is_closed_too(app: App) -> None:
    """A byte after an answer ends the keep-alive time-out, and must not end all time-outs."""
    with served(app, PATIENT) as server, server.connect() as slow:
        slow.sendall(head("GET", "/") + b"G")
        assert read_answer(slow)[0] == 200
        server.server.connections.limits = _limits(header_s=0)
        assert closed(slow)


def test_a_request_that_is_worked_on_has_no_time_here(app: App) -> None:
    with served(app, PATIENT) as server:
        caller = server.connect()
        caller.sendall(head("GET", "/wait"))
        until(lambda: app.waiting == 1)
        server.server.connections.limits = _limits(header_s=0)
        with server.connect() as silent:  # swept meanwhile
            assert closed(silent)
        assert app.gone == 0
        caller.close()
        until(lambda: app.gone == 1)


def test_a_new_connection_takes_the_place_of_the_oldest_idle_one(app: App) -> None:
    with served(app, _limits(total=4)) as server:
        silent = [server.connect() for _ in range(3)]
        assert _lives(server)
        until(lambda: len(server.server.connections) == 2)
        assert closed(silent[0])
        silent[1].sendall(head("GET", "/"))
        assert read_answer(silent[1])[0] == 200
        for connection in silent:
            connection.close()


def test_many_silent_sockets_do_not_lock_anyone_out(app: App) -> None:
    with served(app, _limits(total=8)) as server:
        silent = [server.connect() for _ in range(60)]
        assert _lives(server)
        assert len(server.server.connections) <= 8
        for connection in silent:
            connection.close()


def test_a_body_that_is_not_there_gives_way(app: App) -> None:
    with served(app, _limits(total=4)) as server:
        stopped = [server.connect() for _ in range(3)]
        for connection in stopped:
            connection.sendall(head("POST", "/", length=10) + b"12345")
        until(lambda: app.begun == 3)
        assert _lives(server)
        assert closed(stopped[0])
        for connection in stopped:
            connection.close()


def test_an_answer_that_nobody_reads_gives_way(app: App) -> None:
    with served(app, _limits(total=4)) as server:
        deaf = [server.connect() for _ in range(3)]
        for connection in deaf:
            connection.sendall(head("GET", "/large"))
            assert connection.recv(1)
        assert _lives(server)
        for connection in deaf:
            connection.close()


def test_an_answer_that_nobody_reads_has_its_time(app: App) -> None:
    with served(app, _limits(write_s=0.2)) as server, server.connect() as deaf:
        deaf.sendall(head("GET", "/large"))
        assert deaf.recv(1)
        until(lambda: len(server.server.connections) == 0)


def test_where_every_place_works_a_new_caller_is_told_to_come_back(app: App) -> None:
    with served(app, _limits(total=4)) as server:
        workers = [server.connect() for _ in range(3)]
        for connection in workers:
            connection.sendall(head("GET", "/wait"))
        until(lambda: app.waiting == 3)
        with server.connect() as late:
            status, headers, _ = read_answer(late)
        assert (status, headers["retry-after"]) == (503, "1")
        assert app.gone == 0
        for connection in workers:
            connection.close()


def test_an_early_answer_is_found_by_a_caller_who_sends_first(app: App) -> None:
    body = bytes(8_000_000)  # more than the kernel holds between the two
    for last in ((), ("Connection: close",)):
        with served(app, PATIENT) as server, server.connect() as caller:
            caller.sendall(head("POST", "/early", *last, length=len(body)))
            caller.sendall(body)
            assert read_answer(caller)[0] == 503


def test_after_an_early_answer_the_connection_serves_again(app: App) -> None:
    with served(app, PATIENT) as server, server.connect() as caller:
        caller.sendall(head("POST", "/early", length=300_000) + bytes(300_000))
        assert read_answer(caller)[0] == 503
        caller.sendall(head("POST", "/", length=2) + b"hi")
        assert read_answer(caller)[2] == b"hi"


@pytest.mark.parametrize("last", [(), ("Connection: close",)])
def test_the_rest_of_a_body_is_not_awaited_for_ever(app: App, last: tuple[str, ...]) -> None:
    with served(app, _limits(linger_s=0.2)) as server, server.connect() as slow:
        slow.sendall(head("POST", "/early", *last, length=1_000_000) + b"some")
        assert read_answer(slow)[0] == 503
        assert closed(slow)
        until(lambda: len(server.server.connections) == 0)


@pytest.mark.parametrize("last", [(), ("Connection: close",)])
def test_the_rest_of_a_body_is_not_read_for_ever(app: App, last: tuple[str, ...]) -> None:
    with served(app, _limits(linger_bytes=1000)) as server, server.connect() as flood:
        flood.sendall(head("POST", "/early", *last, length=1 << 30))
        assert read_answer(flood)[0] == 503

        def send_on() -> None:
            while True:
                flood.sendall(bytes(10_000))

        with pytest.raises(OSError, match=r"pipe|reset"):
            send_on()


def test_what_is_no_http_is_400_and_closed(app: App) -> None:
    with served(app, PATIENT) as server, server.connect() as odd:
        odd.sendall(b"HELO there\r\n\r\n")
        assert read_answer(odd)[0] == 400


def test_nonsense_after_an_answer_logs_no_error(app: App, caplog: pytest.LogCaptureFixture) -> None:
    with served(app, PATIENT) as server, server.connect() as odd:
        odd.sendall(head("POST", "/early", "Transfer-Encoding: chunked", length=None))
        assert read_answer(odd)[0] == 503
        odd.sendall(b"no chunk\r\n")
        assert closed(odd)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_stopping_server_waits_for_no_stranger(app: App) -> None:
    """Idle, half a header, half a body, an unread answer: none keeps it longer than its grace."""
    with served(app, _limits(grace_s=0.2)) as server:
        connections = [server.connect() for _ in range(8)]
        for connection, sent in zip(
            connections,
            [
                b"",
                b"GET / HT",
                head("POST", "/", length=9) + b"1",
                head("POST", "/early", length=9) + b"1",
                head("POST", "/early", "Connection: close", length=9) + b"1",
                head("GET", "/large"),
                head("GET", "/wait"),
                head("GET", "/"),
            ],
            strict=True,
        ):
            connection.sendall(sent)
        until(lambda: app.waiting == 1 and len(server.server.connections) >= 7)
    assert len(server.server.connections) == 0
    assert app.gone == 1
    for connection in connections:
        connection.close()


def test_a_request_that_is_there_in_full_is_answered_by_a_stopping_server() -> None:
    begun, go_on = asyncio.Event(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            begun.set()
            await asyncio.to_thread(go_on.wait)
            await PlainTextResponse("done")(scope, receive, send)

    with served(app, PATIENT) as server:
        caller = server.connect()
        caller.sendall(head("GET", "/"))
        until(begun.is_set)
        server.server.should_exit = True
        until(lambda: not _listens(server))
        go_on.set()
        assert read_answer(caller)[2] == b"done"
        caller.close()


def _listens(server: Served) -> bool:
    try:
        with server.connect():
            return True
    except ConnectionError:
        return False


def test_the_default_number_of_connections_leaves_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for soft, expected in ((256, 64), (1024, 448), (1 << 20, 1024), (64, 16)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert connections_by_descriptors() == expected


def test_sixty_four_clients_of_one_machine_are_served(app: App) -> None:
    with served(app) as server:
        clients: list[socket.socket] = [server.connect() for _ in range(64)]
        for client in clients:
            client.sendall(head("POST", "/", length=3) + b"abc")
        assert all(read_answer(client)[2] == b"abc" for client in clients)
        for client in clients:
            client.close()
