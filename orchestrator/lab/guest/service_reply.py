#!/usr/bin/python3 -I
"""The guest's service: answers each connection to TCP port 7777 with a line that names this boot."""

from __future__ import annotations

import socketserver
from pathlib import Path

PORT = 7777
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Reply(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(f"kexec-fleet-lab {BOOT_ID.read_text().strip()}\n".encode())


class Server(socketserver.TCPServer):
    """One connection at a time: a thread for each costs an emulated guest more than the answer itself."""

    allow_reuse_address = True
    request_queue_size = 64


if __name__ == "__main__":
    with Server(("", PORT), Reply) as server:
        server.serve_forever()
