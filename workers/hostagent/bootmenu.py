"""What a boot loader offers: the entries of GRUB's grub.cfg and of the Boot Loader Specification."""

import glob
import os
import re
import shlex
from typing import Dict, List, NamedTuple, Optional

from workers.hostagent.environment import Environment
from workers.hostagent.files import names, read_text


class Entry(NamedTuple):
    """`identifier` is what the loader's tool takes (GRUB: submenu>entry), `kernel` the path as the loader has
    it, `version` the release where the entry says it."""

    identifier: str
    title: str
    version: str
    kernel: str
    recovery: bool


class Grub(NamedTuple):
    directory: str  # /boot/grub or /boot/grub2
    config: str
    text: str

    @property
    def environment(self) -> str:
        return self.directory + "/grubenv"


def find_grub(env: Environment) -> Optional[Grub]:
    for name in ("grub", "grub2"):
        directory = env.boot + "/" + name
        text = read_text(directory + "/grub.cfg", 16 << 20)
        if text is not None:
            return Grub(directory, directory + "/grub.cfg", text)
    return None


def reads_saved(text: str) -> bool:
    """Whether the menu boots saved_entry: what grub-mkconfig writes for GRUB_DEFAULT=saved (00_header)."""
    return re.search(r"^\s*set default=\"?\$\{?saved_entry\}?\"?\s*$", text, re.MULTILINE) is not None


def configured_default(env: Environment) -> Optional[str]:
    """GRUB_DEFAULT as update-grub reads it: /etc/default/grub, then its drop-ins; the last one counts."""
    value: Optional[str] = None
    for path in [env.etc + "/default/grub"] + sorted(glob.glob(env.etc + "/default/grub.d/*.cfg")):
        for line in (read_text(path) or "").splitlines():
            found = re.match(r"\s*(?:export\s+)?GRUB_DEFAULT=(.*)", line)
            if found:
                value = " ".join(_words(found.group(1), comments=True))
    return value


def _words(text: str, comments: bool = False) -> List[str]:
    try:
        return shlex.split(text, comments=comments)
    except ValueError:
        return text.split()


def grub_entries(env: Environment, grub: Grub) -> List[Entry]:
    """Those of grub.cfg, and where it reads them (Fedora, RHEL) those of /boot/loader/entries."""
    found = parse_grub(grub.text)
    if re.search(r"^\s*blscfg\b", grub.text, re.MULTILINE):
        # blscfg takes the file's name without .conf as the id (grub-core/commands/blscfg.c of Fedora).
        for entry in loader_entries(env):
            name = entry.identifier
            found.append(entry._replace(identifier=name[: -len(".conf")] if name.endswith(".conf") else name))
    return found


def parse_grub(text: str) -> List[Entry]:
    """The menu's entries in their order. A nested one is named by its submenus: outer>inner.

    A title may hold braces and quotes; words are split as GRUB's own shell does, which is close to sh. Blocks
    that are no menu entries (if, function) only open and close braces on lines of their own.
    """
    found: List[Entry] = []
    above: List[Optional[str]] = []  # one for each open brace: a submenu's or entry's id, None for another's
    current: Optional[int] = None  # the depth of the menu entry that we are in
    for line in text.splitlines():
        words = _words(line.strip())
        if not words or words[0].startswith("#"):
            continue
        if current is None and words[0] in ("menuentry", "submenu") and words[-1] == "{":
            identifier = _identifier(words)
            if words[0] == "menuentry":
                path = ">".join([name for name in above if name is not None] + [identifier])
                found.append(Entry(path, words[1], "", "", "recovery" in path.lower() + words[1].lower()))
                current = len(above)
            above.append(identifier)
        elif words[-1] == "{":
            above.append(None)
        elif words[0] == "}" and above:
            above.pop()
            if current is not None and len(above) <= current:
                current = None
        elif current is not None and re.match(r"linux(16|efi)?$", words[0]) and len(words) > 1:
            recovery = found[-1].recovery or "single" in words[2:] or "recovery" in words[2:]
            found[-1] = found[-1]._replace(kernel=words[1], version=_release_of(words[1]), recovery=recovery)
    return found


def _identifier(words: List[str]) -> str:
    """--id's or $menuentry_id_option's, else the title: what GRUB compares `default` with."""
    for option in ("--id", "$menuentry_id_option", "${menuentry_id_option}"):
        if option in words[:-2]:
            return words[words.index(option) + 1]
    return words[1]


def _release_of(kernel: str) -> str:
    found = re.match(r"(?:vmlinuz|vmlinux|kernel|linux|bzImage)-(.+?)(?:\.efi)?$", os.path.basename(kernel))
    return found.group(1) if found else ""


def loader_entries(env: Environment) -> List[Entry]:
    """The *.conf of loader/entries on the boot partitions (Boot Loader Specification, type 1)."""
    found: List[Entry] = []
    for place in (env.boot, env.boot + "/efi", env.efi):
        folder = place + "/loader/entries"
        for name in names(folder):
            if not name.endswith(".conf"):
                continue
            fields: Dict[str, str] = {}
            for line in (read_text(folder + "/" + name) or "").splitlines():
                key, _, value = line.strip().partition(" ")
                fields.setdefault(key, value.strip())
            kernel = fields.get("linux", "")
            version = fields.get("version", "") or _release_of(kernel)
            found.append(Entry(name, fields.get("title", ""), version, kernel, "rescue" in name))
    return found


def choose(entries: List[Entry], release: str, kernel: str, named: Optional[str]) -> Optional[Entry]:
    """The entry that was named (by id, by its last part, or by title), else the one of this release.

    An entry that says its release in its id comes first: GRUB's top entry boots another kernel as soon as one
    is installed. Never a recovery entry unless it was named.
    """
    if named is not None:
        for entry in entries:
            if named in (entry.identifier, entry.identifier + ".conf", entry.title):
                return entry
        return next((entry for entry in entries if entry.identifier.split(">")[-1] == named), None)
    file_name = os.path.basename(kernel)
    fitting = [
        entry
        for entry in entries
        if not entry.recovery
        and entry.kernel
        and (
            release in (entry.version, _release_of(entry.kernel))
            or os.path.basename(entry.kernel) == file_name
        )
    ]
    return next((entry for entry in fitting if release in entry.identifier), fitting[0] if fitting else None)
