"""What an attempt leaves on the host's disk before its jump, and what is found there afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hostagent_harness import BOOT, Host, claim, host_in

FOLDER = "var/lib/kexec-fleet/evidence"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with host_in(tmp_path) as host:
        yield host


def collect(host: Host, nonce: object) -> dict[str, Any]:
    return host.agent().ask("check", None, collector="evidence", args={"nonce": nonce})["data"]


def test_the_old_kernels_log_is_written_at_arm_and_found_by_its_nonce(host: Host) -> None:
    host.write("dev/kmsg", "6,99,0,-;Linux version 7.2.12-test\n")  # the load's line has number 100
    agent, mine = host.agent(), claim()
    kept = agent.armed(host, mine)["evidence"]
    path = host.root / FOLDER / f"{mine['nonce']}.log"
    assert kept == {"path": str(path), "bytes": path.stat().st_size, "detail": ""}
    assert path.stat().st_mode & 0o777 == 0o600
    found = collect(host, mine["nonce"])
    head = json.loads(found["log"][0])
    assert (head["nonce"], head["boot_id"], head["complete"]) == (mine["nonce"], BOOT, True)
    assert found["log"][1] == "6,99,0,-;Linux version 7.2.12-test"
    assert any("kexec_file_load" in line for line in found["log"]), "the load's own lines are in it"
    assert (found["pstore"], found["why_not"]) == ([], "pstore kept nothing")


def test_of_a_long_log_the_end_is_kept(host: Host) -> None:
    # The load's line, which comes behind them, has number 100: there is no gap.
    lines = [f"6,{number},0,-;line {number} " + "x" * 100 for number in range(-4900, 100)]
    host.write("dev/kmsg", "\n".join(lines) + "\n")
    kept = host.agent().armed(host, claim())["evidence"]
    assert kept["bytes"] < (256 << 10) + 300
    found = collect(host, claim()["nonce"])["log"]
    assert json.loads(found[0])["complete"] is False
    first = int(found[1].split(",")[1]) + 4900
    assert found[1:-1] == lines[first:], "whole records up to the newest one, and the load's behind them"
    assert 0 < first < 4000


def test_the_newest_eight_are_kept(host: Host) -> None:
    for number in range(12):
        path = host.write(f"{FOLDER}/old-{number}.log", "old")
        os.utime(path, (1000 + number, 1000 + number))
    host.agent().armed(host, claim())
    names = {path.name for path in (host.root / FOLDER).iterdir()}
    assert names == {f"{claim()['nonce']}.log", *(f"old-{number}.log" for number in range(5, 12))}


def test_a_disk_that_takes_nothing_does_not_keep_the_host_from_jumping(host: Host) -> None:
    host.write(FOLDER, "a file where the folder should be")
    armed = host.agent().armed(host, claim())
    assert armed["evidence"]["path"] is None
    assert "evidence" in armed["evidence"]["detail"]
    assert armed["appointment"] > armed["now"]


@pytest.mark.parametrize("nonce", ["../../etc/passwd", "", ".hidden", "a/b", "a\n", "x" * 129])
def test_a_nonce_that_is_no_file_name_reaches_no_file(host: Host, nonce: str) -> None:
    host.write("var/lib/kexec-fleet/etc/passwd.log", "secret")
    armed = host.agent().armed(host, claim(nonce=nonce))
    assert armed["evidence"]["path"] is None and "cannot name a file" in armed["evidence"]["detail"]
    found = collect(host, nonce)
    assert found["log"] is None and "cannot name a file" in found["why_not"]


def test_a_missing_log_is_told_with_the_reason(host: Host) -> None:
    found = collect(host, "nobody")
    assert found["log"] is None and "No such file" in found["why_not"]
    assert collect(host, None)["why_not"].startswith("no log of this attempt: evidence wants a nonce")


def record(host: Host, path: str, data: bytes, mtime: int) -> None:
    os.utime(host.write(path, data), (mtime, mtime))


def test_pstores_records_come_newest_first_from_memory_and_from_the_disk(host: Host) -> None:
    record(host, "sys/fs/pstore/dmesg-ramoops-0", b"Panic#1 \xff\x00 end", 300)
    record(host, "var/lib/systemd/pstore/1234/001/dmesg.txt", b"older panic", 200)
    record(host, "var/lib/systemd/pstore/pmsg-ramoops-0", b"oldest", 100)
    record(host, "var/lib/systemd/pstore/a/b/c/too-deep", b"never", 400)
    (host.root / "sys/fs/pstore/link").symlink_to("/etc/passwd")
    found = collect(host, "nobody")
    names = [Path(item["name"]).name for item in found["pstore"]]
    assert names == ["dmesg-ramoops-0", "dmesg.txt", "pmsg-ramoops-0"]
    newest = found["pstore"][0]
    assert (newest["text"], newest["mtime"], newest["truncated"]) == ("Panic#1 \ufffd\x00 end", 300.0, False)
    assert "pstore kept nothing" not in found["why_not"]


def test_pstores_records_are_bounded_each_and_together(host: Host) -> None:
    for number in range(25):
        data = b"%02d" % number + b"a" * (100 << 10) + b"the end"
        record(host, f"sys/fs/pstore/dmesg-{number:02}", data, 1000 + number)
    found = collect(host, "nobody")["pstore"]
    assert [len(item["text"]) for item in found] == [64 << 10] * 8
    assert all(item["truncated"] and item["text"].endswith("the end") for item in found)
    assert found[0]["name"].endswith("dmesg-24")
    for number in range(25):
        record(host, f"sys/fs/pstore/dmesg-{number:02}", b"small", 1000 + number)
    assert len(collect(host, "nobody")["pstore"]) == 20


def test_clean_removes_it(host: Host) -> None:
    agent, mine = host.agent(), claim()
    agent.armed(host, mine)
    agent.ask("unload", mine)
    agent.ask("clean", mine)
    assert not (host.root / FOLDER).exists()
