"""The stamp of the last shutdown hook, looked for where pstore and systemd-pstore.service keep it."""

from __future__ import annotations

import base64
from typing import Any

from tests.unit.test_agent_client import FakeProcess, answering, error, ok, soon, start
from workers.agent import Stamp


def test_stamp_is_read_from_pstore() -> None:
    head = base64.b64encode(b"x\nkexec-fleet stamp other 1\nkexec-fleet stamp n 12345\n").decode()

    def answer(request: dict[str, Any], payload: bytes) -> list[bytes]:
        if request["op"] == "resolve":
            return [ok(request, {"matches": [{"path": "/p", "size": 9, "mtime": 1.0}]})]
        return [ok(request, {"sha256": "s", "size": 9, "head": head})]

    assert start(FakeProcess(answer=answer)).stamp("n", soon()) == Stamp(12345, "")
    other = start(FakeProcess(answer=answer)).stamp("m", soon())
    assert other.counter is None and "in none of pstore's records" in other.why_not
    nothing = start(answering({"matches": []})).stamp("n", soon())
    assert nothing.counter is None and "no pstore" in nothing.why_not


def test_a_stamp_is_read_newest_record_first_wherever_systemd_has_put_it() -> None:
    """systemd-pstore.service moves records to the disk: one that was listed may be gone when it is read."""
    heads = {"/var/lib/systemd/pstore/1/2/dmesg.txt": b"<7>[ 9.1] kexec-fleet stamp n 77\n"}
    asked: list[str] = []

    def answer(request: dict[str, Any], payload: bytes) -> list[bytes]:
        args = request["args"]
        if request["op"] == "resolve":
            matches = {
                "/sys/fs/pstore/*": [{"path": "/sys/fs/pstore/dmesg-ramoops-0", "size": 9, "mtime": 5.0}],
                "/var/lib/systemd/pstore/*/*/*": [
                    {"path": "/var/lib/systemd/pstore/0/1/old", "size": 9, "mtime": 1.0},
                    {"path": "/var/lib/systemd/pstore/1/2/dmesg.txt", "size": 9, "mtime": 4.0},
                ],
            }
            return [ok(request, {"matches": matches.get(args["pattern"], [])})]
        asked.append(args["path"])
        if args["path"] not in heads:
            return [error(request, "no_file")]
        head = base64.b64encode(heads[args["path"]]).decode()
        return [ok(request, {"sha256": "s", "size": 9, "head": head})]

    assert start(FakeProcess(answer=answer)).stamp("n", soon()) == Stamp(77, "")
    assert asked == ["/sys/fs/pstore/dmesg-ramoops-0", "/var/lib/systemd/pstore/1/2/dmesg.txt"]
