#!/usr/bin/python3 -I
"""The guest's service: answers each connection to TCP port 7777 with one line that proves that this boot is up."""

import socketserver

PORT = 7777
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Reply(socketserver.BaseRequestHandler):
    def handle(self):
        with open(BOOT_ID) as source:
            boot_id = source.read().strip()
        self.request.sendall(b"kexec-fleet-lab %s\n" % boot_id.encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    with Server(("", PORT), Reply) as server:
        server.serve_forever()
