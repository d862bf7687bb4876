"""The drive of one host: from pending to an end, or to a point from which a resume goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.domain.errors import (
    HostError,
    HostKeyRefused,
    HostLost,
    HostRefused,
    HostUnreachable,
    JournalError,
    LoginRefused,
    StaleFence,
    TransportError,
)
from orchestrator.domain.events import EventKind
from orchestrator.domain.facts import HostFacts, parse_facts, selector_facts
from orchestrator.domain.inventory import ALL
from orchestrator.domain.ladder import GiveUp, Load, LoadPath, Look, PastAttempt, next_step
from orchestrator.domain.rollout import MAY_HAVE_JUMPED, TERMINAL, Outcome, Phase
from orchestrator.domain.selector import Match, Selector
from orchestrator.journal.leases import LEASE_SECONDS
from workers.deadline import Deadline
from workers.drive import attempt as attempt_steps
from workers.drive.conclude import rejected_text, rejection, remember_rejection
from workers.drive.context import AttemptOver, HostDrive, Stopped, Tools, describe
from workers.drive.reach import Session, reach
from workers.drive.settle import Dark, settle
from workers.drive.verify import collect, verify

LOOK_AGAIN = frozenset({"wrong_boot", "busy", "deadline", "still_loading", "not_armed", "bad_state"})
"""Agent error codes after which the host is looked at; all others are an answer that will not change."""

FINAL_CONTACT = (HostUnreachable, HostKeyRefused, LoginRefused)
"""Failures to connect that were tried until the deadline, or will not change by trying again."""

CONTACTS = 3
"""How often a session may break before an attempt has begun."""

LOOKS = 3
"""How often a host that goes away again while it is verified is looked at."""


def drive_host(tools: Tools, rollout: str, host: str) -> bool:
    """Drive one host as far as it goes. False where another driver holds it, or has taken it over."""
    lease = tools.journal.acquire(rollout, host)
    if lease is None:
        return False
    drive = HostDrive(tools, tools.journal.spec(rollout), tools.journal.host(rollout, host), lease)
    try:
        with _heartbeat(drive):
            _run(drive)
    except Stopped:
        _stop_cleanly(drive)
    except StaleFence:
        return False
    except JournalError:
        raise  # nothing can be written, and the lease runs out by itself
    except Exception as error:
        # A bug of ours must not make the controller start this host again and again.
        drive.to_phase(Phase.LOST, f"internal error: {type(error).__name__}: {error}", "please report it")
        raise
    finally:
        drive.release()
    return True


@contextmanager
def _heartbeat(drive: HostDrive) -> Iterator[None]:
    """Renew the lease in the background. One that is lost shows at the next append, which is refused."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(LEASE_SECONDS / 3):
            try:
                drive.renew()
            except StaleFence:
                return
            except JournalError:
                continue

    thread = threading.Thread(target=beat, name=f"lease-{drive.host.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _run(drive: HostDrive) -> None:
    if drive.record.phase is Phase.LOST and not _lost_in_an_attempt(drive):
        # An error of ours between attempts: the next claim makes sure that nothing of ours is loaded there.
        drive.to_phase(Phase.PENDING, "tried again after an error outside any attempt")
    elif drive.record.open_attempt is not None or drive.record.phase is Phase.LOST:
        _look(drive, Dark())
    while drive.record.phase not in TERMINAL and drive.record.phase is not Phase.LOST:
        drive.check_stop()
        if drive.tools.journal.rollout(drive.record.rollout).abort_requested:
            return
        _attempt(drive)


def _lost_in_an_attempt(drive: HostDrive) -> bool:
    """Whether the host was lost with an attempt whose end is not known."""
    unknown = (None, Outcome.SILENT, Outcome.LOST)
    return bool(drive.record.attempts) and drive.record.attempts[-1].outcome in unknown


def _look(drive: HostDrive, dark: Dark) -> None:
    """Settle what the last attempt came to, and verify the host where it is back."""
    for _ in range(LOOKS):
        session = settle(drive, dark)
        if session is None:
            return
        try:
            with session:
                verify(drive, session, dark)
            return
        except HostError as error:
            gone = describe(error)
            drive.note(f"went away again while it was verified: {gone}")
    drive.end_attempt(
        Outcome.LOST, Phase.LOST, f"went away {LOOKS} times while it was verified: {gone}", known=False
    )


def _attempt(drive: HostDrive) -> None:
    """Decide the next step and take it."""
    dark = Dark()
    try:
        deadline = Deadline.after(drive.spec.playbook.deadlines.connect)
        with reach(drive, deadline, stoppable=drive.check_stop) as session:
            facts = _take_facts(drive, session)
            step = _decide(drive, facts)
            if step is None:
                return
            attempt = attempt_steps.start(drive, session, step)
            dark.prober = drive.tools.make_prober(drive.host)
            dark.console = drive.tools.console(drive.host)
            if dark.console is not None:
                dark.console.mark()
            dark.told_at = attempt_steps.run_to_jump(drive, session, facts, step, attempt, dark.prober)
        _look(drive, dark)
    except AttemptOver:
        return
    except HostError as error:
        _after_error(drive, error, dark)
    finally:
        if dark.prober is not None:
            dark.prober.close()


def _after_error(drive: HostDrive, error: HostError, dark: Dark) -> None:
    """A host that said no has failed; one that we lost sight of is looked at."""
    open_attempt = drive.record.open_attempt
    final = isinstance(error, HostRefused) and error.code not in LOOK_AGAIN
    if open_attempt is None:
        drive.broken_contacts += 1
        broke = isinstance(error, TransportError | HostLost) and not isinstance(error, FINAL_CONTACT)
        if broke and drive.broken_contacts < CONTACTS:
            drive.note(f"the contact broke before an attempt began, again: {describe(error)}")
            return
        drive.to_phase(Phase.FAILED, _no_contact(drive, error), error.hint)
    elif final and drive.record.phase not in MAY_HAVE_JUMPED:
        drive.end_attempt(
            Outcome.LOAD_REFUSED, Phase.FAILED, describe(error), hint=error.hint, errno=error.errno
        )
    else:
        drive.note(f"looking at the host after: {describe(error)}")
        _look(drive, dark)


def _no_contact(drive: HostDrive, error: HostError) -> str:
    """Why no attempt could begin, by who refused what."""
    if isinstance(error, LoginRefused):
        return f"login as {drive.host.user} refused: {describe(error)}"
    if isinstance(error, HostKeyRefused):
        return f"host key refused: {describe(error)}"
    return f"unreachable: {describe(error)}" if isinstance(error, TransportError) else describe(error)


def _take_facts(drive: HostDrive, session: Session) -> HostFacts:
    deadlines = drive.spec.playbook.deadlines
    raw = dict(session.agent.facts(Deadline.after(deadlines.facts)))
    facts = parse_facts(raw)
    collected = collect(drive, session, Deadline.after(deadlines.facts))
    summary = dict(selector_facts(facts))
    drive.write((EventKind.FACTS, {"summary": summary, "raw": raw, "collected": collected}))
    return facts


def _decide(drive: HostDrive, facts: HostFacts) -> Load | None:
    """The next load, or None where the host is done with (which is then written)."""
    playbook = drive.spec.playbook
    if not drive.record.attempts and (why := _why_skip(drive, facts)):
        drive.to_phase(Phase.SKIPPED, why)
        return None
    past = [
        PastAttempt(path=LoadPath(a.path), outcome=a.outcome)
        for a in drive.record.attempts
        if a.outcome is not None
    ]
    step = next_step(facts, playbook.cma.use, past, playbook.attempts, playbook.after_failure)
    match step:
        case Load():
            return step
        case GiveUp():
            remember_rejection(drive)
            last = drive.record.attempts[-1].message if drive.record.attempts else ""
            drive.to_phase(Phase.FAILED, f"{step.reason}{': ' + last if last else ''}", step.hint)
        case Look():
            raise AssertionError(f"{drive.host.name}: {step.reason}, and it was settled before")
    return None


def _why_skip(drive: HostDrive, facts: HostFacts) -> str:
    """Why the rollout has nothing to do on this host; empty where it has."""
    for selector in (drive.spec.playbook.hosts, drive.spec.limit or ALL):
        if Selector.parse(selector).matches(drive.host, selector_facts(facts)) is not Match.YES:
            return f"not selected by `{selector}` now that its facts are known"
    if not drive.spec.playbook.even_if_current and (why := _current(drive, facts)):
        return why
    found = rejection(drive)
    return rejected_text(found) if found else ""


def _current(drive: HostDrive, facts: HostFacts) -> str:
    """Why the host runs the target already; empty where it does not, or where that cannot be told."""
    spec = drive.spec
    if spec.build_id and facts.build_id:
        same = spec.build_id == facts.build_id
        return f"runs the target already ({facts.release}, build-id {facts.build_id[:12]})" if same else ""
    wanted = spec.release
    return f"runs the target's release already ({wanted})" if wanted and wanted == facts.release else ""


def _stop_cleanly(drive: HostDrive) -> None:
    """Asked to stop: an attempt that has not jumped is cancelled, a dark host is left for the resume.

    The session is closed by now, so the host has unloaded, or is doing so; the next claim makes sure.
    """
    if drive.record.open_attempt is not None and drive.record.phase not in MAY_HAVE_JUMPED:
        drive.end_attempt(Outcome.CANCELLED, Phase.PENDING, "stopped before the jump")
