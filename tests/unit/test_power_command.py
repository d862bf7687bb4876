"""The power command: what it is given, how it is ended, and that no secret of its gets out."""

from __future__ import annotations

import base64
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.errors import PowerFailed
from orchestrator.domain.power import CommandPower, Secret
from workers.deadline import Deadline
from workers.power.base import Power
from workers.power.command import CommandDriver
from workers.power.secrets import Redactor

GENEROUS_S = 120.0
SECRET = "s3cr3t'\"$x&y/z"


class Bench:
    """A folder with a script in it that is the power command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "power"
        self.secret = folder / "secret"
        self.secret.write_text(SECRET + "\n")
        self.secret.chmod(0o600)
        self.ours = {"PATH": os.environ["PATH"], "HOME": "/home/x", "KEXEC_FLEET_BROKER": "redis://:pw@x/0"}

    def driver(
        self,
        script: str,
        *,
        timeout: float = GENEROUS_S,
        environment: dict[str, str] | None = None,
        secrets: dict[str, Secret] | None = None,
        status: bool = False,
    ) -> CommandDriver:
        self.script.write_text("#!/bin/sh\n" + script)
        self.script.chmod(0o755)
        power = CommandPower(
            kind="command",
            run=(str(self.script), "one word", "$HOME"),
            status=(str(self.script), "status") if status else None,
            timeout=timeout,
            environment=environment or {},
            secrets={"PW": Secret(file=str(self.secret))} if secrets is None else secrets,
        )
        return CommandDriver("web1", power, self.ours)

    def cycle(self, script: str, **more: object) -> str:
        return self.driver(script, **more).cycle(soon()).text  # type: ignore[arg-type]

    def failure(self, script: str, **more: object) -> PowerFailed:
        with pytest.raises(PowerFailed) as caught:
            self.driver(script, **more).cycle(soon())  # type: ignore[arg-type]
        assert caught.value.hint and caught.value.host == "web1"
        return caught.value


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def soon() -> Deadline:
    return Deadline.after(GENEROUS_S)


def test_words_reach_the_command_as_they_are(bench: Bench) -> None:
    assert bench.cycle('echo "$#|$1|$2"').endswith("status 0: 2|one word|$HOME")


def test_the_command_gets_what_it_needs_of_our_environment_and_no_more(bench: Bench) -> None:
    bench.cycle(f"env > {bench.folder}/env", environment={"ZONE": "b 1"})
    lines = (bench.folder / "env").read_text().splitlines()
    assert {"ZONE=b 1", "HOME=/home/x", f"PW={SECRET}"} <= set(lines)
    assert not any("BROKER" in line for line in lines)


def test_the_command_has_no_input_and_no_terminal(bench: Bench) -> None:
    assert bench.cycle("read -r line; echo got:$?").endswith("got:1")
    assert bench.cycle("(: < /dev/tty) 2> /dev/null || echo none").endswith("none")


def test_a_secret_of_our_environment(bench: Bench) -> None:
    bench.ours["BMC"] = "tok-en"
    secrets = {"TOKEN": Secret(environment="BMC")}
    assert bench.cycle('[ "$TOKEN" = tok-en ] && echo right; echo $TOKEN >&2', secrets=secrets).endswith(
        "right"
    )
    del bench.ours["BMC"]
    error = bench.failure("true", secrets=secrets)
    assert (error.code, "BMC is not set" in str(error)) == ("secret", True)


@pytest.mark.parametrize(
    "prints",
    [
        'echo "login $PW failed" >&2',
        'printf "%s\\n\\n" "$PW" >&2',
        'printf "%s" "$PW" | base64 >&2',
        'printf "admin:%s" "$PW" | base64 >&2',
        'printf "ad:%s:x" "$PW" | base64 >&2',
        'printf "\\033[31m%s\\033[0m" "$PW" >&2',
        'printf "%s\\033[1m%s" "s3cr" "3t\'\\"\\$x&y/z" >&2',
        "python3 -c \"import os, urllib.parse as u; raise SystemExit(u.quote(os.environ['PW']))\"",
        "python3 -c \"import os, json; raise SystemExit(json.dumps(os.environ['PW']))\"",
        'head -c 200000 /dev/zero | tr "\\0" x >&2; echo "$PW" >&2',
        # The beginning of the secret falls out of what is kept, its end is the first that is.
        'printf "%s" "$PW" >&2; head -c 65526 /dev/zero | tr "\\0" x >&2',
    ],
)
def test_no_secret_in_what_failed(bench: Bench, prints: str) -> None:
    error = bench.failure(f"{prints}\nexit 3")
    said = str(error) + error.hint + repr(error.args)
    coded = [base64.b64encode(b"x" * before + SECRET.encode()).decode()[4:16] for before in (0, 6, 3, 2, 1)]
    for form in (SECRET, "s3cr", "y/z", "y%2Fz", *coded):
        assert form not in said
    assert "exit status 3" in said or "exit status 1" in said


def test_no_secret_in_what_worked(bench: Bench) -> None:
    assert bench.cycle('echo "token $PW accepted"').endswith("token [secret] accepted")


def test_the_lines_of_a_secret_of_many_lines_are_secret(bench: Bench) -> None:
    bench.secret.write_text("{\nfirst-line\nlast-line\n}\n")
    error = bench.failure('echo "{}: $PW" >&2; echo "parse error at last-line" >&2; exit 1')
    assert str(error).endswith("parse error at [secret]"), "a brace alone is none"


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644])
def test_a_secret_that_others_may_touch_is_refused(bench: Bench, mode: int) -> None:
    bench.secret.chmod(mode)
    error = bench.failure(f"touch {bench.folder}/ran")
    assert error.code == "secret"
    assert f"{mode:04o}" in str(error)
    assert error.hint == f"chmod o= {bench.secret}"
    assert not (bench.folder / "ran").exists()


def test_a_group_may_share_a_secret(bench: Bench) -> None:
    bench.secret.chmod(0o640)
    bench.cycle('[ -n "$PW" ]')


def spoil(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoiled(path: Path) -> None:
        path.unlink()
        make(path)
        if path.exists():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o077)

    return spoiled


@pytest.mark.parametrize(
    ("spoiled", "says"),
    [
        (spoil(lambda path: None), "No such file"),
        (spoil(lambda path: path.mkdir()), "no regular file"),
        (spoil(lambda path: os.mkfifo(path)), "no regular file"),
        (spoil(lambda path: path.write_text("\n")), "it is empty"),
        (spoil(lambda path: path.write_text("a\0b")), "NUL"),
        (spoil(lambda path: path.write_bytes(b"x" * 70000)), "larger than"),
    ],
)
def test_a_secret_that_is_none(bench: Bench, spoiled: Callable[[Path], None], says: str) -> None:
    spoiled(bench.secret)
    error = bench.failure("true")
    assert (error.code, says in str(error)) == ("secret", True), str(error)


def test_a_secret_that_is_no_text_still_arrives(bench: Bench) -> None:
    bench.secret.write_bytes(b"\xff\xfe-raw\r\n")
    bench.cycle(f'printf "%s" "$PW" > {bench.folder}/got')
    assert (bench.folder / "got").read_bytes() == b"\xff\xfe-raw"
    assert "raw" not in str(bench.failure('echo "$PW" >&2; exit 1'))


def test_a_hanging_command_is_killed_with_its_children(bench: Bench) -> None:
    script = f"sh -c 'trap \"\" TERM HUP INT; echo $$ > {bench.folder}/child; while :; do sleep 1; done' &\n"
    waiting = f"while [ ! -s {bench.folder}/child ]; do sleep 0.05; done; echo waiting for $PW >&2; wait"
    error = bench.failure(script + waiting, timeout=10)
    assert error.code == "timeout"
    assert str(error).endswith("its last words: waiting for [secret]")
    assert "10 s" in str(error)
    child = int((bench.folder / "child").read_text())
    until = time.monotonic() + GENEROUS_S
    while _alive(child):
        assert time.monotonic() < until, "a child lives on"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """Not gone, and not dead and waiting for a parent that does not look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_child_that_keeps_the_streams_does_not_hold_us_up(bench: Bench) -> None:
    text = bench.cycle(f"sleep 300 & echo $! > {bench.folder}/pid; echo done")
    assert text.endswith("status 0: done")
    pid = int((bench.folder / "pid").read_text())
    assert _alive(pid), "what the command left behind on purpose stays"
    os.kill(pid, 9)


def test_a_command_that_closes_its_streams_and_hangs(bench: Bench) -> None:
    assert bench.failure("exec >&- 2>&-; sleep 1000", timeout=1).code == "timeout"


def test_a_flood_of_output_is_bounded(bench: Bench) -> None:
    script = "head -c 30000000 /dev/zero | tr '\\0' y; echo; echo the end; head -c 3000000 /dev/zero >&2"
    assert bench.cycle(script).endswith("status 0: the end")


def test_a_hostile_last_line_is_made_harmless(bench: Bench) -> None:
    first = r"fine\n\033]0;title\007\033[2J\tre\000d\r"
    last = r"\033[31mfail\377\342\200\256ed\033[0m\n\n"
    script = f"printf '{first}{last}' >&2; exit 9"
    text = str(bench.failure(script))
    assert text.isprintable()
    assert text.endswith("exit status 9; its last words: fail\ufffded")
    long = str(bench.failure("head -c 9000 /dev/zero | tr '\\0' x >&2; exit 1"))
    assert len(long) < 500 and long.endswith("...")


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("exit 3", "exit_status", "exit status 3; it wrote nothing"),
        ("kill -SEGV $$", "exit_status", "killed by SIGSEGV"),
    ],
)
def test_how_a_command_can_end(bench: Bench, script: str, code: str, says: str) -> None:
    error = bench.failure(script)
    assert (error.code, says in str(error)) == (code, True), str(error)


def test_a_program_that_cannot_be_started(bench: Bench) -> None:
    driver = bench.driver("true")
    for content, mode in (("#!/no/such/interpreter\n", 0o755), ("", 0o644)):
        bench.script.write_text(content)
        bench.script.chmod(mode)
        with pytest.raises(PowerFailed) as caught:
            driver.cycle(soon())
        assert caught.value.code == "no_command"
        assert str(bench.script) in str(caught.value)


@pytest.mark.parametrize(
    ("says", "power"),
    [
        ("Chassis Power is on", Power.ON),
        ("Chassis Power is off", Power.OFF),
        ("running", Power.ON),
        ("shut off", Power.OFF),
        ("OFF", Power.OFF),
        ("on, was off", Power.UNKNOWN),
        ("often upset", Power.UNKNOWN),
        ("", Power.UNKNOWN),
    ],
)
def test_what_a_status_command_says(bench: Bench, says: str, power: Power) -> None:
    state = bench.driver(f"echo on off; echo '{says}'" if says else "true", status=True).status(soon())
    assert state.power is power
    assert state.text


def test_without_a_status_command_the_program_and_the_secrets_are_looked_at(bench: Bench) -> None:
    driver = bench.driver(f"touch {bench.folder}/ran")
    assert driver.status(soon()).power is Power.UNKNOWN
    assert not (bench.folder / "ran").exists()
    bench.secret.unlink()
    with pytest.raises(PowerFailed, match="the secret PW"):
        driver.status(soon())


@given(st.text(min_size=3, max_size=30), st.text(max_size=40), st.text(max_size=40), st.booleans())
def test_a_line_never_shows_a_secret(secret: str, before: str, after: str, last: bool) -> None:
    redactor = Redactor([secret])
    shown = (redactor.last_line if last else redactor.line)(before + secret + after)
    assert "\n" not in shown and shown.isprintable()
    if secret.isprintable() and secret.strip() == secret and secret not in before + after + "[secret]":
        assert secret not in shown.replace("[secret]", "")
