"""The agent client's requests around a boot: evidence, the boot guard, the boot loader's default.

The answers keep the wire's shapes, which docs/agent-protocol.md has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workers.agentanswers import Claim, Raw
from workers.agentchannel import AgentChannel, parsed
from workers.deadline import Deadline


class BootRequests:
    """The part of AgentClient that this module owns; raises as `workers.agentchannel` says."""

    _channel: AgentChannel
    _host: str

    def evidence(self, nonce: str, deadline: Deadline) -> Raw:
        """{"log": [lines] | None, "pstore": [{"name", "mtime", "text", "truncated"}], "why_not"}: what the
        attempt with this nonce wrote down before its jump, and what pstore kept, newest first.
        """
        asked = {"collector": "evidence", "args": {"nonce": nonce}}
        answer = self._channel.ask("check", asked, deadline)
        return parsed(self._host, "evidence", _evidence, answer)

    def guard_install(self, claim: Claim, seconds: float, deadline: Deadline) -> Raw:
        """{"installed": bool, "detail"}: the boot with the claim's nonce reboots through the firmware when
        it is not confirmed `seconds` after its kernel's start. Not installed where no init would run it.
        """
        args = {"nonce": claim.nonce, "seconds": seconds}
        answer = self._channel.ask("guard_install", args, deadline, claim=claim)
        return parsed(self._host, "guard_install", lambda raw: _having(raw, "installed", "detail"), answer)

    def guard_confirm(self, claim: Claim, deadline: Deadline) -> Raw:
        """{"removed": [paths], "detail"}: asked on the new boot; the guard with the claim's nonce ends."""
        answer = self._channel.ask("guard_confirm", {"nonce": claim.nonce}, deadline, claim=claim)
        return parsed(self._host, "guard_confirm", lambda raw: _having(raw, "removed"), answer)

    def boot_default_show(self, deadline: Deadline) -> Raw:
        """{"method": "grub" | "bootctl" | "none", "default": text | None, "detail"}."""
        answer = self._channel.ask("boot_default_show", {}, deadline)
        return parsed(self._host, "boot_default_show", lambda raw: _having(raw, "method", "default"), answer)

    def boot_default_set(
        self,
        claim: Claim,
        *,
        method: str,
        release: str,
        kernel: str,
        entry: str | None,
        command: Sequence[str] | None,
        deadline: Deadline,
    ) -> Raw:
        """{"method", "before": text | None, "after", "detail"}; `method` "grub", "bootctl" or "command".

        `kernel` is a path on the host. Raises HostRefused with code "grub_not_saved", "no_entry",
        "tool_missing" or "tool_failed" as well.
        """
        args: dict[str, Any] = {"method": method, "release": release, "kernel": kernel, "entry": entry}
        args["command"] = None if command is None else list(command)
        answer = self._channel.ask("boot_default_set", args, deadline, claim=claim)
        return parsed(self._host, "boot_default_set", lambda raw: _having(raw, "before", "after"), answer)


def _having(raw: Raw, *names: str) -> Raw:
    """The answer itself. Raises KeyError where it lacks one of the names."""
    for name in names:
        raw[name]
    return raw


def _evidence(raw: Raw) -> Raw:
    data = raw["data"]
    if not isinstance(data, dict):
        raise TypeError("data is not an object")
    return _having(data, "log", "pstore", "why_not")
