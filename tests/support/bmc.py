"""A baseboard management controller of a server that is not there: power over HTTP, behind a password.

Run as a program it is the BMC's client, as a user's script would be: `bmc.py cycle|status URL`, the password
in BMC_PASSWORD. It is a chatty one: it writes the password to stderr before it fails.
"""

from __future__ import annotations

import base64
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mood(Enum):
    """How the BMC takes what it is told."""

    WELL = "does as told"
    SURLY = "answers every order with 500"
    MUTE = "takes requests and never answers"


class FakeBmc:
    """One server's power. All attributes may be set by a test at any time."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.on = True
        self.cycles = 0
        self.mood = Mood.WELL
        self.url = ""
        self.closing = threading.Event()

    def answer(self, order: str, authorization: str) -> tuple[int, str]:
        wanted = "Basic " + base64.b64encode(f"admin:{self.password}".encode()).decode()
        if authorization != wanted:
            return 401, "who are you?"
        if self.mood is Mood.MUTE:
            self.closing.wait()
        if self.mood is not Mood.WELL:
            return 500, "the management engine is busy"
        if order == "cycle":
            self.cycles += 1
            self.on = True
        return 200, f"Chassis Power is {'on' if self.on else 'off'}"


@contextmanager
def running(password: str) -> Iterator[FakeBmc]:
    """A BMC on a port of 127.0.0.1."""
    bmc = FakeBmc(password)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            code, text = bmc.answer(self.path.strip("/"), self.headers.get("Authorization", ""))
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    bmc.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield bmc
    finally:
        bmc.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(30)


def main(order: str, url: str) -> int:
    password = os.environ.get("BMC_PASSWORD", "")
    token = base64.b64encode(f"admin:{password}".encode()).decode()
    request = urllib.request.Request(f"{url}/{order}", b"", {"Authorization": f"Basic {token}"})
    try:
        with urllib.request.urlopen(request) as answer:
            print(answer.read().decode())
    except (urllib.error.URLError, OSError) as error:
        print(f"login admin:{password} at {url}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
