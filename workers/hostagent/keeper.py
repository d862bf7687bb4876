"""The detached process that alone loads, holds, spins and jumps.

    starting ─load→ loaded ⇄ armed ─go→ told (reboot) | systemd (asked)
       └── refused, unload, session lost, hold over, higher fence: unload and end ──┘

Nothing interrupts it inside a load: killing a process there leaks CMA until the next boot (Linux 7.2,
kernel/kexec_file.c), so it ignores every signal it can, and looks around only when the load has ended.
"""

import gc
import os
import signal
import threading
import time
from typing import Any, Dict, List, Optional

from workers.hostagent import evidence, jump, kexec, shutdown
from workers.hostagent.claims import Claim, ClaimStore, Record
from workers.hostagent.counter import Counter, invariant, monotonic_raw_ns, rate
from workers.hostagent.deadline import Deadline
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError, errname
from workers.hostagent.files import read_text
from workers.hostagent.loading import Load
from workers.hostagent.processes import Identity, identity
from workers.hostagent.protocol import LineSocket
from workers.hostagent.watchdog import Watchdog

# How often a waiting keeper looks at the fence and at its own timer, seconds.
_TICK = 0.2
# How long it waits for fence.lock to write down a phase; nobody holds it for long but another keeper's jump.
_LOCK_SECONDS = 20.0


class _End(Exception):
    """The keeper is to unload and end; the text says why."""


class Keeper(object):
    """Commands come from the session: {"n", "cmd", "args"}; answers are {"n", "result"} or {"n", "error"}."""

    def __init__(self, env: Environment, claim: Claim, session: Identity, line: LineSocket) -> None:
        me = identity(env.pids, os.getpid())
        assert me is not None
        self._env = env
        self._claim = claim
        self._session = session
        self._me = me
        self._line = line
        self._store = ClaimStore(env)
        self._inhibitor = shutdown.Inhibitor(env)
        self._counter = Counter()
        self._watchdog = Watchdog(env)
        self._loaded = False
        self._armed: Optional[Dict[str, Any]] = None
        self._hold_until: Optional[float] = None

    def run(self) -> None:
        """Serves the session until there is a reason to end; whatever is loaded then is unloaded first."""
        lock = self._store.take_keeper_lock()
        if lock is None:
            self._line.send(
                {"n": 0, "error": self._store.busy("another keeper lives on this host").as_dict()}
            )
            return
        try:
            self._serve()
        except _End as end:
            self._finish(str(end))
        except BaseException as error:
            self._finish("internal error: {!r}".format(error))
            raise
        finally:
            os.close(lock)  # before the socket closes: whoever sees our end may count on a free lock

    def _serve(self) -> None:
        self._line.send({"n": 0, "result": {"pid": self._me.pid}})
        while True:
            message = self._line.receive(_TICK)
            if message is not None:
                self._handle(message)
            elif self._line.ended:
                raise _End("session lost")
            self._look_around()

    def _look_around(self) -> None:
        """Raises _End when somebody else has the host, or the time is over."""
        if self._store.fences().get(self._claim.journal, 0) > self._claim.fence:
            raise _End("superseded")
        if self._hold_until is not None and time.monotonic() > self._hold_until:
            raise _End("hold")

    def _still_wanted(self) -> None:
        """Raises _End when nobody waits for what is about to be done."""
        if self._line.hung_up():
            raise _End("session lost")
        self._look_around()

    def _handle(self, message: Dict[str, Any]) -> None:
        number = message["n"]
        commands = {
            "load": self._load,
            "unload": self._unload,
            "arm": self._arm,
            "disarm": self._disarm,
            "go": self._go,
        }
        try:
            commands[message["cmd"]](number, message["args"])
        except AgentError as error:
            self._line.send({"n": number, "error": error.as_dict()})

    def _finish(self, why: str) -> None:
        """Unloads, gives the claim back to the session, and says so."""
        left = self._watchdog.disarm()
        failed = kexec.unload(self._env.kernel) if self._loaded else None
        self._loaded = False
        self._inhibitor.drop()
        note: Dict[str, Any] = {"why": why}
        if left:
            note["watchdog"] = left
        if failed is not None:
            note["unload_errno"] = failed.errno
        try:
            self._record("claimed", note)
        except (AgentError, OSError):
            pass  # superseded or cleaned away: the record is somebody else's now
        self._line.send({"event": "ended", "why": why, "unload_errno": note.get("unload_errno")})

    def _record(self, phase: str, note: Optional[Dict[str, Any]] = None) -> None:
        with self._store.locked(Deadline(_LOCK_SECONDS)):
            self._write(phase, note)

    def _write(self, phase: str, note: Optional[Dict[str, Any]] = None) -> None:
        """Raises AgentError where the claim has gone to somebody else. Inside `locked`."""
        self._store.require(self._claim, self._session)
        self._store.write(Record(self._claim, self._session, self._me, phase, note or {}))

    # -- loading ------------------------------------------------------------------------------------------

    def _load(self, number: int, args: Dict[str, Any]) -> None:
        self._forget_jump()
        load = Load(self._env, args)
        try:
            load.check()
            self._still_wanted()
            self._record("loading")
            self._inhibitor.take()
            self._hold_until = None
            self._loaded = True  # from here on something may be loaded, and unloading nothing is harmless
            result = load.run()
            if result["state"] == "loaded":
                self._record("loaded")
        except BaseException as error:
            failed = self._unload_after_failure()
            if isinstance(error, AgentError):
                self._line.send({"n": number, "error": error.as_dict()})
                raise _End("load failed: {}".format(error.code)) from failed
            raise
        finally:
            load.close()
        if result["state"] == "refused":
            self._unload_after_failure()
            result["kexec_loaded"] = self._env.kexec_loaded()
            self._line.send({"n": number, "result": result})
            raise _End("load refused: {}".format(result["errname"]))
        self._hold_until = time.monotonic() + args["hold"]
        self._line.send({"n": number, "result": result})

    def _unload_after_failure(self) -> Optional[OSError]:
        """Nothing stays loaded after a failure, an earlier image (a spacer) neither."""
        failed = kexec.unload(self._env.kernel) if self._loaded else None
        self._loaded = failed is not None
        return failed

    def _unload(self, number: int, _args: Dict[str, Any]) -> None:
        failed = self._unload_after_failure()
        if failed is not None:
            raise AgentError(
                "unload_failed",
                "the image could not be unloaded: {}".format(failed),
                "try again; reboot through the firmware if it stays",
                errno=failed.errno,
            )
        self._line.send({"n": number, "result": {}})
        raise _End("unloaded")

    # -- jumping ------------------------------------------------------------------------------------------

    def _arm(self, number: int, args: Dict[str, Any]) -> None:
        if not self._loaded:
            raise AgentError("not_loaded", "nothing is loaded")
        if self._armed is not None:
            self._record("loaded")
            self._forget_jump()
        deadline = Deadline(args["deadline"])
        self._await(jump.sync_aside(self._env), deadline, "syncing the file systems")
        kept = self._write_evidence(deadline)
        pairs = self._counter.pairs(args["samples"], args["span"])
        measured = rate(pairs)
        self._record("armed")
        watchdog = self._watchdog.arm(args["watchdog"], args["method"])
        realtime_ns, raw_ns = int(time.time() * 1e9), monotonic_raw_ns()
        now = self._counter.read()
        self._armed = {
            "method": args["method"],
            "counter": self._counter.name,
            "appointment": now + int(args["lead"] * measured.hz),
            "now": now,
            "rate_hz": measured.hz,
            "rate_rel_error": measured.relative_error,
            "pairs": [[pair.counter, pair.raw_ns] for pair in pairs],
            "monotonic_raw_ns": raw_ns,
            "realtime_ns": realtime_ns,
            "lead_s": args["lead"],
            "invariant": invariant(self._counter.name, read_text(self._env.proc + "/cpuinfo") or ""),
            "watchdog": watchdog,
            "evidence": kept,
        }
        self._line.send({"n": number, "result": self._armed})

    def _await(self, thread: threading.Thread, deadline: Deadline, what: str) -> None:
        """Where a file system hangs (an NFS server is gone) the image must not hang with it.

        Raises AgentError `deadline`, and _End when nobody waits any more."""
        while thread.is_alive():
            thread.join(_TICK / 4)
            self._still_wanted()
            if deadline.passed():
                error = deadline.error(what)
                error.hint = "look for a file system that hangs; the image is still loaded, arm again"
                raise error

    def _write_evidence(self, deadline: Deadline) -> Dict[str, Any]:
        answers: List[Dict[str, Any]] = []
        thread = threading.Thread(
            target=lambda: answers.append(evidence.write(self._env, self._claim.nonce)), daemon=True
        )
        thread.start()
        try:
            self._await(thread, Deadline(deadline.left() / 2), "writing the kernel log to the disk")
        except AgentError as error:  # the disk is slow: the jump goes on without
            return {"path": None, "bytes": 0, "detail": error.message}
        return answers[0] if answers else {"path": None, "bytes": 0, "detail": "the writer ended early"}

    def _forget_jump(self) -> None:
        self._armed = None
        self._watchdog.disarm()

    def _disarm(self, number: int, _args: Dict[str, Any]) -> None:
        if self._armed is not None:
            self._record("loaded")
            self._forget_jump()
        self._line.send({"n": number, "result": {"phase": "loaded"}})

    def _go(self, number: int, args: Dict[str, Any]) -> None:
        """The last check and the jump, under one lock. Raises AgentError when it was not told, else ends."""
        with self._store.locked(Deadline(args["deadline"])):
            armed = self._accept(args["appointment"])
            direct = armed["method"] == "direct"
            self._store.remember_told(self._claim)
            self._write("told" if direct else "systemd")
            stamp = {} if direct else self._install_hook(args["interpreter"])
            self._line.send({"n": number, "result": dict(stamp, going=True)})
            self._inhibitor.drop(wait=not direct)
            gc.disable()
            jump.sync_aside(self._env)
            if direct:
                error = jump.direct(
                    self._env, self._counter, armed["appointment"], armed["rate_hz"], self._watchdog.leave
                )
                self._refused(error.errno, "reboot(2): {}".format(error))
            jump.wait_until(self._counter, armed["appointment"], armed["rate_hz"])
            # systemd may stop the session's scope, which is ours, before systemctl has ended. Whoever ignores
            # its SIGTERM holds the whole shutdown up for TimeoutStopSec; and from here on nobody of ours
            # unloads because of a signal.
            signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
            said = jump.systemd(self._env)
            if said is not None:
                self._refused(None, said)
        self._watch_shutdown(args["give_up"])

    def _accept(self, appointment: int) -> Dict[str, Any]:
        """The armed jump, when everything still holds. Inside `locked`."""
        self._still_wanted()
        self._store.require(self._claim, self._session)
        if self._armed is None or self._armed["appointment"] != appointment:
            raise AgentError("not_armed", "no jump is armed for this appointment", "arm, then go")
        if self._store.was_told(self._claim):
            raise AgentError(
                "spent",
                "this attempt has been told to jump before, on this boot",
                "begin a new attempt with a nonce of its own",
            )
        now = self._counter.read()
        if now >= appointment:
            late = (now - appointment) / self._armed["rate_hz"]
            raise AgentError(
                "too_late",
                "the appointment passed {:.3f} s ago".format(late),
                "arm again, with a longer lead",
                detail={"now": now, "late_s": late},
            )
        return self._armed

    def _install_hook(self, interpreter: str) -> Dict[str, Any]:
        done, text = jump.install_hook(self._env, interpreter, self._claim)
        return {"stamp": done, "stamp_detail": text}

    def _refused(self, errno: Optional[int], why: str) -> None:
        """The jump did not happen and will not: unload, write it down. Inside `locked`; ends the keeper."""
        left = self._watchdog.disarm()
        failed = self._unload_after_failure()
        jump.remove_hook(self._env)
        note: Dict[str, Any] = {"errno": errno, "errname": errname(errno), "why": why}
        if left:
            note["watchdog"] = left
        if failed is not None:
            note["unload_errno"] = failed.errno
        self._store.write(Record(self._claim, self._session, None, "jump_refused", note))
        self._line.send(dict(note, event="jump_refused"))
        os._exit(0)

    def _watch_shutdown(self, give_up: float) -> None:
        """systemd has the request: unload and say so when it does not stop the system after all."""
        end = time.monotonic() + give_up
        while True:
            time.sleep(1.0)
            if time.monotonic() < end or shutdown.state(self._env)["under_way"]:
                continue
            with self._store.locked(Deadline(_LOCK_SECONDS)):
                self._refused(
                    None, "systemd took the request and is not stopping {:g} s later".format(give_up)
                )


def main(env: Environment, claim: Claim, session: Identity, line: LineSocket) -> None:
    """The keeper process from its first to its last instruction (link.spawn forks it)."""
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGPIPE,
        signal.SIGQUIT,
        signal.SIGALRM,
    ):
        signal.signal(number, signal.SIG_IGN)
    try:
        # Not even for want of memory: a process killed inside the load leaks what the load had taken.
        with open(env.pids + "/self/oom_score_adj", "w") as handle:
            handle.write("-1000")
    except OSError:
        pass
    Keeper(env, claim, session, line).run()
