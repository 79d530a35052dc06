"""Finding out whether a host can be reached, before a download is started."""

import http.server
import socket
import threading
import time

import pytest

from experiments.data.tfds import network_problem


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(404 if "missing" in self.path else 200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """An HTTP server on this machine, which is all that can be reached."""
    monkeypatch.undo()  # what keeps tests offline
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_reachable_network(server):
    assert not network_problem(f"{server.address}/file")
    assert server.asked == ["/file"]


def test_missing_file_counts_as_no_network(server):
    problem = network_problem(f"{server.address}/missing")
    assert "no network" in problem and "404" in problem and "127.0.0.1" in problem


def test_network_through_a_proxy(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    assert not network_problem("http://far.invalid/file")
    assert server.asked == ["http://far.invalid/file"]


def test_refused_connection_is_reported(server):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "ConnectionError from 127.0.0.1" in network_problem(f"http://127.0.0.1:{port}/")


def test_connection_that_hangs_is_given_up(server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        problem = network_problem(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.2)
        assert "no network: ReadTimeout from 127.0.0.1" in problem
        assert time.monotonic() - start < 1.1


def test_name_resolution_that_hangs_is_given_up(server, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: release.wait(30) and [])
    start = time.monotonic()
    problem = network_problem("http://far.invalid/", seconds=0.2)
    assert "no network: no answer from far.invalid" in problem
    assert time.monotonic() - start < 3
    release.set()
