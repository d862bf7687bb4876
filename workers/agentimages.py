"""The agent client's requests about images on the host: derived files, and what memory holds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.agentanswers import Claim, Raw
from workers.agentchannel import AgentChannel, parsed
from workers.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Derived:
    """A file that the host made: where it lies, its SHA-256 (hex), its bytes, the seconds that it took."""

    path: str
    sha256: str
    size: int
    seconds: float

    @classmethod
    def parse(cls, raw: Raw) -> Derived:
        return cls(str(raw["path"]), str(raw["sha256"]), int(raw["size"]), float(raw["seconds"]))


class ImageRequests:
    """The part of AgentClient that this module owns; raises as `workers.agentchannel` says."""

    _channel: AgentChannel
    _host: str

    def readback(self, segments: Sequence[Mapping[str, Any]], deadline: Deadline) -> Raw:
        """What physical memory holds of the segments: {"source", "seconds", "segments": [one for each]}.

        A segment is {"index", "address", "memsz", "bufsz", "file", "file_offset", "file_length", "search"}
        in bytes; `file` lies on the host, None: nothing to compare; `search` holds hexadecimal strings.
        Give it a long deadline: an emulated guest reads 20 to 160 MB a second, a busy one less.
        """
        answer = self._channel.ask("readback", {"segments": [dict(one) for one in segments]}, deadline)
        return parsed(self._host, "readback", lambda raw: _whole(raw, len(segments)), answer)

    def derive(
        self,
        claim: Claim,
        *,
        source: str,
        expect: str | None,
        take: int | None,
        size: int,
        patches: Sequence[tuple[int, bytes]],
        name: str,
        deadline: Deadline,
    ) -> Derived:
        """Make a file of `size` bytes on the host: `take` bytes of `source` (None: all) and zeros, patched.

        `expect` is the source's SHA-256, `name` "kernel" or "initrd", a patch (offset, bytes). The file stays
        for this session: a later one derives it again. Raises HostRefused with code "hash_mismatch",
        "disk_full", "no_file" or "io_error" as well.
        """
        args = {
            "source": source,
            "expect": expect,
            "take": take,
            "size": size,
            "patches": [[offset, data.hex()] for offset, data in patches],
            "name": name,
        }
        answer = self._channel.ask("derive", args, deadline, claim=claim)
        return parsed(self._host, "derive", Derived.parse, answer)


def _whole(raw: Raw, count: int) -> Raw:
    if len(raw["segments"]) != count or not all(isinstance(one, dict) for one in raw["segments"]):
        raise ValueError("the segments are not those that were asked for")
    return raw
