"""Which kernel the firmware's boot takes: seen, and made the new one when it has proved itself.

GRUB's menu and the Boot Loader Specification's entries are parsed in bootmenu.py; here the tools are run.
"""

import json
import os
import shutil
import subprocess
from typing import Any, Dict, List, NamedTuple, Optional

from workers.hostagent import bootmenu
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.processes import PATH, child_environment
from workers.hostagent.protocol import Request

_LAST_LINES = 20
# systemd's own vendor id (systemd src/fundamental/efivars-fundamental.h, EFI_LOADER_VARIABLE).
_LOADER_DEFAULT = "/firmware/efi/efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_SAVED_HINT = "write GRUB_DEFAULT=saved to /etc/default/grub, run update-grub (or grub2-mkconfig), try again"


class Wanted(NamedTuple):
    """The arguments of `boot_default_set`."""

    release: str
    kernel: str
    entry: Optional[str]
    command: List[str]
    seconds: float


def show(env: Environment) -> Dict[str, Any]:
    """-> {"method": "grub" | "bootctl" | "none", "default": text or None, "detail"}: what this host has."""
    grub = bootmenu.find_grub(env)
    if grub is not None:
        saved = bootmenu.reads_saved(grub.text)
        detail = "" if saved else "the menu does not read saved_entry: " + _SAVED_HINT
        return {"method": "grub", "default": _saved_entry(grub, 10.0), "detail": detail}
    if os.path.isdir(env.sys + "/firmware/efi") and _which([env.bootctl]):
        default = _loader_default(env)
        if default is not None or bootmenu.loader_entries(env):
            return {"method": "bootctl", "default": default, "detail": ""}
    return {"method": "none", "default": None, "detail": "neither GRUB's menu nor systemd-boot was found"}


def set_default(env: Environment, request: Request) -> Dict[str, Any]:
    """-> {"method", "before": text or None, "after": text, "detail"}.

    Raises AgentError `bad_request`, `grub_not_saved`, `no_entry`, `tool_missing`, `tool_failed`.
    """
    method = request.arg("method", str)
    command = request.arg("command", list, [])
    if not all(isinstance(word, str) and word for word in command):
        raise AgentError("bad_request", "command wants a list of words")
    wanted = Wanted(
        release=request.arg("release", str),
        kernel=request.arg("kernel", str, ""),
        entry=request.arg("entry", str, "") or None,
        command=command,
        seconds=request.deadline.left(),
    )
    methods = {"grub": _grub, "bootctl": _bootctl, "command": _command}
    if method not in methods:
        raise AgentError("bad_request", "boot_default_set wants one of {}".format(", ".join(sorted(methods))))
    return dict(methods[method](env, wanted), method=method)


# -- GRUB -------------------------------------------------------------------------------------------------


def _grub(env: Environment, wanted: Wanted) -> Dict[str, Any]:
    grub = bootmenu.find_grub(env)
    if grub is None:
        raise AgentError(
            "no_entry", "no grub.cfg under {}".format(env.boot), "say `method: bootctl` or command"
        )
    configured = bootmenu.configured_default(env)
    if configured != "saved" or not bootmenu.reads_saved(grub.text):
        raise AgentError(
            "grub_not_saved",
            "GRUB does not read the saved default: GRUB_DEFAULT is {!r} in {}/default/grub, and {} {}".format(
                configured,
                env.etc,
                grub.config,
                "reads saved_entry" if bootmenu.reads_saved(grub.text) else "does not read saved_entry",
            ),
            _SAVED_HINT,
            detail={"grub_default": configured, "config": grub.config},
        )
    entries = bootmenu.grub_entries(env, grub)
    entry = _choose(entries, wanted, grub.config)
    before = _saved_entry(grub, wanted.seconds)
    tool = _tool(["grub-set-default", "grub2-set-default"])
    _succeed([tool, "--boot-directory=" + env.boot, entry.identifier], wanted.seconds)
    after = _saved_entry(grub, wanted.seconds)
    if after != entry.identifier:
        raise AgentError(
            "tool_failed",
            "{} ended well, and saved_entry is {!r}, not {!r}".format(tool, after, entry.identifier),
            "look at {}: GRUB cannot write it on some file systems".format(grub.environment),
        )
    return {"before": before, "after": after, "detail": "boots {}".format(entry.kernel)}


def _saved_entry(grub: bootmenu.Grub, seconds: float) -> Optional[str]:
    """saved_entry of GRUB's environment block, None where it has none."""
    tool = _which(["grub-editenv", "grub2-editenv"])
    if tool is None:
        return None
    done = _run([tool, grub.environment, "list"], seconds)
    for line in done.out.splitlines() if done.status == 0 else []:
        name, equals, value = line.partition("=")
        if name == "saved_entry" and equals:
            return value
    return None


def _choose(entries: List[bootmenu.Entry], wanted: Wanted, where: str) -> bootmenu.Entry:
    """The entry that was named, else the one whose kernel this is. Raises AgentError `no_entry`."""
    found = bootmenu.choose(entries, wanted.release, wanted.kernel, wanted.entry)
    if found is not None:
        return found
    looked_for = wanted.entry or "kernel {}".format(wanted.release)
    raise AgentError(
        "no_entry",
        "{} has no entry for {}".format(where, looked_for),
        "install the kernel's package on the host (/boot is what the menu is made from), or name the entry",
        detail={"entries": [entry.identifier for entry in entries][:50]},
    )


# -- systemd-boot -----------------------------------------------------------------------------------------


def _bootctl(env: Environment, wanted: Wanted) -> Dict[str, Any]:
    tool = _tool([env.bootctl])
    entry = _choose(_bootctl_entries(env, tool, wanted.seconds), wanted, "systemd-boot")
    before = _loader_default(env)
    _succeed([tool, "set-default", entry.identifier], wanted.seconds)
    after = _loader_default(env)
    if after != entry.identifier:
        raise AgentError(
            "tool_failed",
            "{} ended well, and the default is {!r}, not {!r}".format(tool, after, entry.identifier),
            "is the firmware's variable store full or read-only?",
        )
    return {"before": before, "after": after, "detail": "boots {}".format(entry.kernel)}


def _bootctl_entries(env: Environment, tool: str, seconds: float) -> List[bootmenu.Entry]:
    """Of `bootctl list` where it speaks JSON (systemd 254), else of the entries' files."""
    done = _run([tool, "list", "--json=short"], seconds)
    try:
        listed = json.loads(done.out) if done.status == 0 else None
    except ValueError:
        listed = None
    if not isinstance(listed, list):
        return bootmenu.loader_entries(env)
    found = []
    for raw in listed:
        if isinstance(raw, dict) and isinstance(raw.get("id"), str):
            texts = [str(raw.get(name) or "") for name in ("title", "version", "linux")]
            found.append(bootmenu.Entry(raw["id"], texts[0], texts[1], texts[2], False))
    return found


def _loader_default(env: Environment) -> Optional[str]:
    """The variable that `bootctl set-default` writes: 4 bytes of attributes, then UTF-16 with a NUL."""
    try:
        with open(env.sys + _LOADER_DEFAULT, "rb") as handle:
            return handle.read(4096)[4:].decode("utf-16-le", "replace").rstrip("\0")
    except OSError:
        return None


# -- a command --------------------------------------------------------------------------------------------


def _command(_env: Environment, wanted: Wanted) -> Dict[str, Any]:
    if not wanted.command:
        raise AgentError("bad_request", "the method command wants a command")
    more = {"KEXEC_FLEET_RELEASE": wanted.release, "KEXEC_FLEET_KERNEL": wanted.kernel}
    done = _succeed(wanted.command, wanted.seconds, more)
    return {"before": None, "after": wanted.release, "detail": _last_lines(done.err or done.out)}


# -- running ----------------------------------------------------------------------------------------------


class _Done(NamedTuple):
    status: Optional[int]  # None: it could not be run, or took too long
    out: str
    err: str


def _which(tools: List[str]) -> Optional[str]:
    return next((path for path in (shutil.which(tool, path=PATH) for tool in tools) if path), None)


def _tool(tools: List[str]) -> str:
    found = _which(tools)
    if found is None:
        raise AgentError(
            "tool_missing",
            "the host has no {}".format(" and no ".join(tools)),
            "install the boot loader's tools",
        )
    return found


def _run(argv: List[str], seconds: float, more: Optional[Dict[str, str]] = None) -> _Done:
    environment = dict(child_environment(), **(more or {}))
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return _Done(None, "", str(error))
    try:
        out, err = child.communicate(timeout=max(seconds, 0.001))
    except subprocess.TimeoutExpired:
        _kill_group(child)
        return _Done(None, "", "no end within {:g} s".format(seconds))
    except BaseException:  # a reading request is cut off by an exception
        _kill_group(child)
        raise
    return _Done(child.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def _kill_group(child: Any) -> None:
    """The command and what it started: each session of its own is a group of its own."""
    try:
        os.killpg(child.pid, 9)
    except OSError:
        pass
    child.wait()


def _succeed(argv: List[str], seconds: float, more: Optional[Dict[str, str]] = None) -> _Done:
    """Raises AgentError `tool_missing`, `tool_failed` with the status and the last lines."""
    if shutil.which(argv[0], path=PATH) is None:
        raise AgentError("tool_missing", "the host has no {}".format(argv[0]), "install it, or name another")
    done = _run(argv, seconds, more)
    if done.status != 0:
        how = (
            "took too long or did not start" if done.status is None else "exit status {}".format(done.status)
        )
        last = _last_lines(done.err or done.out)
        raise AgentError(
            "tool_failed",
            "{}: {}: {}".format(argv[0], how, last),
            "run it by hand on the host; the boot loader's default may be the old one still",
            detail={"argv": argv, "status": done.status, "stderr": last},
        )
    return done


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LAST_LINES:])[-4000:]
