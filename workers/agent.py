"""The typed client of the host agent: one method for each operation of docs/agent-protocol.md.

Every method takes a Deadline and raises as `workers.agentchannel` says. A client belongs to one thread;
only `close` may come from another one, to abort.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.domain.errors import HostError, HostRefused, TransportError
from orchestrator.domain.inventory import Host
from workers.agentanswers import (
    AgentStatus,
    ArmAnswer,
    Claim,
    ClaimAnswer,
    Digest,
    FileMatch,
    Hello,
    LoadAnswer,
    Raw,
    StageResult,
    Stamp,
)
from workers.agentboot import BootRequests
from workers.agentbundle import LOADER, AgentBundle
from workers.agentchannel import AgentChannel, parsed
from workers.agentimages import Derived, ImageRequests
from workers.connection.base import Connection, Process
from workers.connection.errors import refusal
from workers.deadline import Deadline

__all__ = [
    "AgentClient",
    "AgentStatus",
    "ArmAnswer",
    "Claim",
    "ClaimAnswer",
    "Derived",
    "Digest",
    "LoadAnswer",
    "StageResult",
    "Stamp",
]

PROTOCOL = 1
CHUNK = 8 * 1024 * 1024
_START = "start the agent"
_HELLO_LINE = 64 * 1024
_NOISE_LINES = 200  # what a login shell may print before the agent speaks

# Where a record of the last boot's end lies. systemd-pstore.service moves it to the disk (pstore.conf(5)),
# a kernel log's into a folder of its own.
_PSTORE = ("/sys/fs/pstore/*", *(f"/var/lib/systemd/pstore/{depth}" for depth in ("*", "*/*", "*/*/*")))
_RECORDS = 20  # the newest ones; a host may have kept many

Parsed = TypeVar("Parsed")
Progress = Callable[[int, int], None]


class AgentClient(ImageRequests, BootRequests):
    """A running agent on a host. `hello` says which boot and which Python answer."""

    def __init__(self, channel: AgentChannel, host: str, hello: Hello) -> None:
        self._channel = channel
        self._host = host
        self.hello = hello

    @classmethod
    def start(
        cls, connection: Connection, host: Host, bundle: AgentBundle, deadline: Deadline
    ) -> AgentClient:
        """Send the agent's source and wait for its hello; nothing is written to the host's disk.

        Raises TransportError, and HostRefused with code "no_python", "no_sudo", "not_root", "agent_failed"
        (its stderr is in the message) or "protocol".
        """
        process = connection.open_process(["python3", "-I", "-c", LOADER], deadline, sudo=host.sudo)
        try:
            hello = _greet(process, host, bundle, deadline)
        except BaseException:
            process.close()
            raise
        return cls(AgentChannel(process, host.name), host.name, hello)

    def close(self) -> None:
        """End the session; what its keeper holds before go is unloaded. May come from any thread."""
        self._channel.close()

    # -- reading ------------------------------------------------------------------------------------------

    def facts(self, deadline: Deadline, *, devices: bool = True) -> Raw:
        """Raw facts; `orchestrator.domain.facts` parses them."""
        return self._channel.ask("facts", {"devices": devices}, deadline)

    def clock(self, deadline: Deadline, *, samples: int = 9, span: float = 1.0) -> Raw:
        """{"pairs": [[counter, monotonic_raw_ns], ...], "counter", "span_s"}; `span` in seconds."""
        return self._channel.ask("clock", {"samples": samples, "span": span}, deadline)

    def status(self, deadline: Deadline) -> AgentStatus:
        return self._parsed("status", AgentStatus.parse, self._channel.ask("status", {}, deadline))

    def check(self, collector: str, deadline: Deadline, args: Mapping[str, Any] | None = None) -> Raw:
        """What one collector found (the answer's `data`)."""
        answer = self._channel.ask("check", {"collector": collector, "args": dict(args or {})}, deadline)
        return self._parsed("check", _data, answer)

    def resolve(self, pattern: str, deadline: Deadline) -> tuple[FileMatch, ...]:
        """The files on the host that match the glob."""
        answer = self._channel.ask("resolve", {"pattern": pattern}, deadline)
        return self._parsed("resolve", lambda raw: tuple(map(FileMatch.parse, raw["matches"])), answer)

    def digest(self, path: str, deadline: Deadline) -> Digest:
        return self._parsed("digest", Digest.parse, self._channel.ask("digest", {"path": path}, deadline))

    def stamp(self, nonce: str, deadline: Deadline) -> Stamp:
        """The counter that the last shutdown hook of an orderly stop left in pstore, or why there is none.

        Looked for in the head of each of the newest records: of the kernel log, or of pmsg.
        """
        pattern = re.compile(rb"kexec-fleet stamp %s (\d+)" % re.escape(nonce.encode()))
        records = [match for place in _PSTORE for match in self.resolve(place, deadline)]
        for match in sorted(records, key=lambda match: match.mtime, reverse=True)[:_RECORDS]:
            try:
                head = base64.b64decode(self.digest(match.path, deadline).head)
            except HostRefused as error:
                if error.code != "no_file":
                    raise
                continue  # moved meanwhile
            if found := pattern.search(head):
                return Stamp(int(found[1]), "")
        if records:
            return Stamp(None, "the last shutdown hook's stamp is in none of pstore's records")
        return Stamp(None, "the host has no pstore that kept the last shutdown hook's stamp")

    # -- changing: HostLost where the answer is lost ------------------------------------------------------

    def claim(self, claim: Claim, deadline: Deadline) -> ClaimAnswer:
        """Raise the host's fence and wait for older keepers to end."""
        return self._parsed("claim", ClaimAnswer.parse, self._change("claim", claim, {}, deadline))

    def release(self, claim: Claim, deadline: Deadline) -> None:
        self._change("release", claim, {}, deadline)

    def load(
        self,
        claim: Claim,
        *,
        kernel: str,
        initrd: str | None,
        cmdline: str,
        flags: int,
        expect: Mapping[str, str | None],
        hold: float,
        deadline: Deadline,
        debug: bool = False,
    ) -> LoadAnswer:
        """Load paths on the host. `expect` holds their SHA-256, `hold` is how long the image may stay, in
        seconds.
        """
        args = {
            "kernel": kernel,
            "initrd": initrd,
            "cmdline": cmdline,
            "flags": flags,
            "debug": debug,
            "hold": hold,
            "expect": dict(expect),
        }
        return self._parsed("load", LoadAnswer.parse, self._change("load", claim, args, deadline))

    def load_wait(self, claim: Claim, deadline: Deadline) -> LoadAnswer:
        """Wait for a load that answered "loading"."""
        return self._parsed("load_wait", LoadAnswer.parse, self._change("load_wait", claim, {}, deadline))

    def unload(self, claim: Claim, deadline: Deadline) -> Raw:
        """{"kexec_loaded": 0, "cma_after": {...}}; does nothing where nothing is loaded."""
        return self._change("unload", claim, {}, deadline)

    def arm(
        self, claim: Claim, method: str, lead: float, deadline: Deadline, watchdog: float | None = None
    ) -> ArmAnswer:
        """Sync and announce when the jump will be; `method` "direct" or "systemd", `lead` and the watchdog's
        timeout in seconds. `raw` has "watchdog" and "evidence" as well.
        """
        args: dict[str, Any] = {"method": method, "lead": lead}
        if watchdog is not None:
            args["watchdog"] = watchdog
        answer = self._change("arm", claim, args, deadline)
        return self._parsed("arm", ArmAnswer.parse, answer)

    def go(self, claim: Claim, appointment: int, deadline: Deadline) -> Raw:
        """Tell the host to jump at the appointment. HostRefused with code "too_late": still armed, arm
        again.
        """
        return self._change("go", claim, {"appointment": appointment}, deadline)

    def disarm(self, claim: Claim, deadline: Deadline) -> None:
        self._change("disarm", claim, {}, deadline)

    def clean(self, claim: Claim, deadline: Deadline) -> tuple[str, ...]:
        """Remove what we left on the host's disk; the removed paths."""
        answer = self._change("clean", claim, {}, deadline)
        return self._parsed("clean", lambda raw: tuple(map(str, raw["removed"])), answer)

    def stage(
        self,
        claim: Claim,
        path: Path,
        sha256: str,
        size: int,
        name: str,
        deadline: Deadline,
        progress: Progress | None = None,
    ) -> StageResult:
        """Bring the local file `path` to the host; `name` is "kernel" or "initrd", `progress` gets (bytes
        there, size).

        Goes on where an earlier try stopped. A resumed file whose hash is wrong is sent once more from its
        beginning. Raises HostRefused with code "hash_mismatch", "disk_full" or "local_file" as well.
        """
        began = time.monotonic()
        result = self._stage_once(claim, path, sha256, size, name, deadline, progress)
        if result is None:
            result = self._stage_once(claim, path, sha256, size, name, deadline, progress)
        if result is None:  # begun anew twice: someone else writes there
            raise HostRefused(self._host, "stage", f"{path.name} does not stay whole", code="hash_mismatch")
        where, resumed, sent = result
        return StageResult(where, sent == 0 and resumed == size, resumed, sent, time.monotonic() - began)

    def _stage_once(
        self,
        claim: Claim,
        path: Path,
        sha256: str,
        size: int,
        name: str,
        deadline: Deadline,
        progress: Progress | None,
    ) -> tuple[str, int, int] | None:
        """(path on the host, offset begun at, bytes sent), or None: what was there before was wrong, and is
        gone.
        """
        args = {"sha256": sha256, "size": size}
        begun = self._change("stage_begin", claim, {**args, "name": name}, deadline)
        offset = self._parsed("stage_begin", lambda raw: int(raw["offset"]), begun)
        sent = (
            0 if begun.get("have") else self._send_file(claim, path, sha256, size, offset, deadline, progress)
        )
        try:
            ended = self._change("stage_end", claim, args, deadline)
        except HostRefused as error:
            if error.code == "hash_mismatch" and offset > 0:
                return None
            raise
        return self._parsed("stage_end", lambda raw: str(raw["path"]), ended), offset, sent

    def _send_file(
        self,
        claim: Claim,
        path: Path,
        sha256: str,
        size: int,
        offset: int,
        deadline: Deadline,
        progress: Progress | None,
    ) -> int:
        """Send the bytes from `offset` on, one chunk and one answer at a time; the number of bytes sent."""
        sent = 0
        try:
            with path.open("rb") as file:
                if file.seek(0, 2) != size:
                    raise self._local(f"{path} has {file.tell()} bytes now, not {size}")
                file.seek(offset)
                while offset + sent < size:
                    chunk = file.read(min(CHUNK, size - offset - sent))
                    if not chunk:
                        raise self._local(f"{path} became shorter while it was sent")
                    args = {"sha256": sha256, "offset": offset + sent, "length": len(chunk)}
                    self._change("stage_chunk", claim, args, deadline, payload=chunk)
                    sent += len(chunk)
                    if progress:
                        progress(offset + sent, size)
        except OSError as error:
            raise self._local(f"{path} cannot be read: {error.strerror}") from error
        return sent

    # -- inside -------------------------------------------------------------------------------------------

    def _change(
        self, op: str, claim: Claim, args: Mapping[str, Any], deadline: Deadline, payload: bytes = b""
    ) -> dict[str, Any]:
        return self._channel.ask(op, args, deadline, claim=claim, payload=payload)

    def _parsed(self, op: str, parse: Callable[[Raw], Parsed], answer: Raw) -> Parsed:
        return parsed(self._host, op, parse, answer)

    def _local(self, message: str) -> HostRefused:
        hint = "the file on this machine changed since the rollout was made: start a new one"
        return HostRefused(self._host, "stage", message, code="local_file", hint=hint)


def _data(raw: Raw) -> Raw:
    data = raw["data"]
    if not isinstance(data, dict):
        raise TypeError("data is not an object")
    return data


def _greet(process: Process, host: Host, bundle: AgentBundle, deadline: Deadline) -> Hello:
    """Send the source, skip what the login shell says, read the hello."""
    try:
        process.write(f"{len(bundle.source)} {bundle.sha256}\n".encode() + bundle.source, deadline)
    except HostError as error:
        # Where there is no python3 the shell has ended before all of the source was taken: ask why it ended.
        if error.code == "deadline":
            raise _no_agent(host, error) from error
    for _ in range(_NOISE_LINES):
        try:
            line = process.read_line(_HELLO_LINE, deadline)
        except HostError as error:
            raise _no_agent(host, error) from error
        if not line:
            raise _why_it_ended(process, host, deadline)
        hello = _hello_in(line)
        if hello is not None:
            return _checked(hello, host, bundle)
    message = "the login shell keeps printing, and no hello comes"
    raise HostRefused(
        host.name, _START, message, code="agent_failed", hint="silence the shell's start-up files"
    )


def _hello_in(line: bytes) -> Hello | None:
    try:
        raw = json.loads(line)
        return Hello.parse(raw) if raw["hello"] == "kexec-fleet-agent" else None
    except (KeyError, TypeError, ValueError):
        return None  # a line of the login shell


def _checked(hello: Hello, host: Host, bundle: AgentBundle) -> Hello:
    if hello.protocol != PROTOCOL or hello.agent != bundle.sha256:
        message = f"another agent answers: protocol {hello.protocol}, {hello.agent[:12]}"
        raise HostRefused(host.name, _START, message, code="protocol", hint="report this")
    if hello.uid != 0:
        message = f"the agent runs as user {hello.uid}, not as root"
        hint = "set `user: root` or `sudo: true` in the inventory"
        raise HostRefused(host.name, _START, message, code="not_root", hint=hint)
    return hello


def _no_agent(host: Host, error: HostError) -> TransportError:
    """Nothing was asked of the host yet, so a lost session is no more than that."""
    return TransportError(host.name, _START, error.message, hint=error.hint, code=error.code)


def _why_it_ended(process: Process, host: Host, deadline: Deadline) -> HostError:
    status = process.exit_status(deadline.sooner(10.0))
    if status is None:
        return TransportError(host.name, _START, "the session ended before the agent's hello", code="closed")
    refused = refusal(host.name, _START, "python3", status, process.stderr, sudo=host.sudo)
    if refused is not None:
        return refused
    said = process.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
    message = f"python3 ended with status {status}: {said[0]}"
    return HostRefused(
        host.name, _START, message, code="agent_failed", hint="the host needs Python 3.6 or later"
    )
