"""Requests that change the host. All but `claim` itself need that this session holds the claim they carry."""

import os
import sys
import time
from typing import Any, Callable, Dict, Optional

from workers.hostagent import bootdefault, claiming, cma, derive, guard, jump, kexec, link, watchdog
from workers.hostagent.claims import Claim, ClaimStore, Record, parse_claim
from workers.hostagent.deadline import Deadline
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError, SessionEnded
from workers.hostagent.link import KeeperLink, result_of
from workers.hostagent.processes import Identity
from workers.hostagent.protocol import Channel, Request
from workers.hostagent.staging import MAX_CHUNK, Staging

_NUMBER = (int, float)
# After go the keeper holds the fence until the appointment: nobody can stop it so long. Seconds.
_MOST_LEAD = 300.0
_MOST_HOLD = 86400.0
_MOST_GIVE_UP = 3600.0
Operation = Callable[[Request, Claim], Dict[str, Any]]


class Changing(object):
    """Everything a session may do to its host, and the keeper it may have."""

    def __init__(self, env: Environment, store: ClaimStore, channel: Channel, session: Identity) -> None:
        self._env = env
        self._store = store
        self._channel = channel
        self._session = session
        self._staging = Staging(env)
        self.link: Optional[KeeperLink] = None
        self._settled = True
        self.operations: Dict[str, Operation] = {
            "claim": self._claim,
            "release": self._release,
            "stage_begin": self._stage_begin,
            "stage_chunk": self._stage_chunk,
            "stage_end": self._stage_end,
            "derive": self._derive,
            "load": self._load,
            "load_wait": self._load_wait,
            "unload": self._unload,
            "arm": self._arm,
            "disarm": self._disarm,
            "go": self._go,
            "clean": self._clean,
            "guard_install": self._guard_install,
            "guard_confirm": self._guard_confirm,
            "boot_default_set": self._boot_default_set,
        }

    def run(self, request: Request) -> Dict[str, Any]:
        """Raises AgentError."""
        assert request.op is not None
        if request.op == "stage_chunk":
            return self._guarded_chunk(request)
        return self.operations[request.op](request, self._checked(request))

    def _checked(self, request: Request) -> Claim:
        """The request's claim. Raises every claim error; `claim` itself does its own checking."""
        claim = parse_claim(request.claim)
        if request.op != "claim":
            with self._store.locked(request.deadline):
                self._store.require(claim, self._session)
        return claim

    # -- the keeper's end ---------------------------------------------------------------------------------

    def notice_keeper(self) -> None:
        """Takes what the keeper has said; when it has ended without a word, unloads in its place."""
        if self.link is None:
            return
        self.link.drain()
        if not self.link.ended or self._settled:
            return
        self._settled = True
        if self.link.farewell is None:
            self._unload_for_the_dead()

    def _unload_for_the_dead(self) -> None:
        """The keeper was killed. Its locks are free, so it is not inside reboot(2): the image can only do
        harm.

        After `go systemd` the image is what the system is stopping for: that stays, a later claim judges it.
        """
        patience = Deadline(20.0)
        # A dying process closes its socket before its locks.
        while self._store.keeper_alive() and not patience.passed():
            time.sleep(0.01)
        try:
            with self._store.locked(patience):
                record = self._store.record()
                if record is None or record.session != self._session or self._store.keeper_alive():
                    return  # a higher fence has taken over and has unloaded
                if record.phase == "systemd":
                    return
                error = kexec.unload(self._env.kernel)
                note = {"why": "keeper killed", "errno": None, "unload_errno": error.errno if error else None}
                phase = "jump_refused" if record.phase == "told" else "claimed"
                self._store.write(Record(record.claim, self._session, None, phase, note))
        except (AgentError, OSError):
            pass  # whoever claims next unloads: the record still names a keeper's phase

    def _hung_up(self) -> None:
        if self._channel.has_ended():
            raise SessionEnded("the channel ended while something was waited for")

    def _keeper(self) -> Optional[KeeperLink]:
        self.notice_keeper()
        return self.link if self.link is not None and not self.link.ended else None

    def _held(self, code: str = "not_loaded") -> KeeperLink:
        """The keeper that holds a loaded image. Raises `code` where there is none, `busy`."""
        keeper = self._keeper()
        if keeper is None:
            raise self._gone(code)
        if keeper.pending_load is not None or keeper.told:
            raise self._store.busy("the keeper cannot be interrupted")
        return keeper

    def _gone(self, code: str) -> AgentError:
        """There is no keeper, or none any more: nothing is loaded, and nothing will jump."""
        farewell: Dict[str, Any] = {}
        if self.link is not None:
            farewell = self.link.farewell or {"why": "the keeper was killed"}
        message = "nothing is loaded" + (": {}".format(farewell["why"]) if farewell else "")
        return AgentError(code, message, "load first", detail={"ended": farewell})

    def _ask(
        self,
        keeper: KeeperLink,
        command: str,
        args: Dict[str, Any],
        deadline: Deadline,
        gone: str = "not_loaded",
    ) -> Dict[str, Any]:
        """The keeper's answer. Raises what it answered, `deadline` (nobody knows), `gone` at its end."""
        number = keeper.send(command, args)
        message = keeper.wait(number, deadline.left(), self._hung_up) if number else None
        if message is not None:
            return result_of(message)
        self.notice_keeper()
        if number and not keeper.ended:
            error = deadline.error(command)
            error.detail["unknown"] = True
            error.hint = "ask `status` whether it happened"
            raise error
        raise self._gone(gone)

    def _await_end(self, keeper: KeeperLink) -> None:
        """The keeper has said its last answer: its end is near, and the next request shall find it gone."""
        patience = Deadline(10.0)
        while not keeper.ended and not patience.passed():
            keeper.receive(0.1)
        self.notice_keeper()

    def _keeper_died(self, keeper: KeeperLink) -> AgentError:
        why = (keeper.farewell or {}).get("why", "it was killed")
        return AgentError(
            "keeper_died", "the keeper ended: {}".format(why), "load again", detail={"why": why}
        )

    # -- claim --------------------------------------------------------------------------------------------

    def _claim(self, request: Request, claim: Claim) -> Dict[str, Any]:
        with self._store.locked(request.deadline):
            self._store.check_fence(claim)
        keeper = self._keeper()
        if keeper is not None and not keeper.told:
            keeper.send("unload", {})  # read when a load has ended; take() waits for it
        result = claiming.take(self._env, self._store, claim, self._session, request.deadline)
        self.notice_keeper()
        return result

    def _release(self, request: Request, claim: Claim) -> Dict[str, Any]:
        self._unload(request, claim)
        with self._store.locked(request.deadline):
            self._store.require(claim, self._session)
            guard.remove_stale(self._env)
            self._store.forget()
        return {"released": True}

    def _clean(self, request: Request, claim: Claim) -> Dict[str, Any]:
        if self._keeper() is not None:
            raise self._store.busy("a keeper lives on this host")
        with self._store.locked(request.deadline):
            self._store.require(claim, self._session)
            removed = self._staging.clean()
            if jump.remove_hook(self._env):
                removed.append(jump.hook_path(self._env))
            removed.extend(guard.remove_stale(self._env))
            # The fences stay until the boot ends: a worker that was overtaken may still wake up.
            self._store.forget()
            removed.append(self._env.run_dir + "/claim.json")
        return {"removed": removed}

    # -- artifacts ----------------------------------------------------------------------------------------

    def _stage_begin(self, request: Request, _claim: Claim) -> Dict[str, Any]:
        return self._staging.begin(
            request.arg("sha256", str), request.arg("size", int), request.arg("name", str)
        )

    def _stage_end(self, request: Request, _claim: Claim) -> Dict[str, Any]:
        return self._staging.end(request.arg("sha256", str), request.arg("size", int), request.deadline)

    def _stage_chunk(self, request: Request, _claim: Claim) -> Dict[str, Any]:
        args = (request.arg("sha256", str), request.arg("offset", int), request.arg("length", int))
        return self._staging.chunk(self._channel, *args, deadline=request.deadline)

    def _derive(self, request: Request, _claim: Claim) -> Dict[str, Any]:
        return derive.derive(self._staging, request, self._hung_up)

    def _guarded_chunk(self, request: Request) -> Dict[str, Any]:
        """The raw bytes follow whatever the answer is: a refused chunk's are taken off the channel unread."""
        length = request.args.get("length")
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= MAX_CHUNK:
            raise AgentError(
                "bad_request", "stage_chunk wants a length of 0 to {}".format(MAX_CHUNK), fatal=True
            )
        try:
            request.arg("sha256", str)
            request.arg("offset", int)
            claim = self._checked(request)
        except AgentError:
            while length:
                length -= len(self._channel.take_bytes(length, request.deadline))
            raise
        return self._stage_chunk(request, claim)

    # -- load ---------------------------------------------------------------------------------------------

    def _load(self, request: Request, claim: Claim) -> Dict[str, Any]:
        args = {
            "kernel": request.arg("kernel", str),
            "initrd": request.arg("initrd", str, "") or None,
            "cmdline": request.arg("cmdline", str),
            "flags": request.arg("flags", int, 0),
            "debug": request.arg("debug", bool, False),
            "hold": float(request.arg("hold", _NUMBER)),
            "expect": request.arg("expect", dict, {}),
        }
        if args["flags"] & ~(kexec.DEBUG | kexec.NO_CMA):
            raise AgentError(
                "bad_request", "load takes the flags DEBUG and NO_CMA, not {:#x}".format(args["flags"])
            )
        if not 0 < args["hold"] <= _MOST_HOLD:
            raise AgentError("bad_request", "load wants a hold of up to {:g} s".format(_MOST_HOLD))
        if self._store.was_told(claim):
            raise AgentError("spent", "this attempt has been told to jump before", "begin a new attempt")
        for path in (args["kernel"], args["initrd"]):
            if path:
                self._staging.protect(path)
        keeper = self._keeper()
        if keeper is None:
            keeper = self._spawn(claim, request.deadline)
        elif (
            keeper.pending_load is not None
            or keeper.told
            or self._store.phase(self._store.record()) == "armed"
        ):
            raise self._store.busy("the keeper cannot load now")
        keeper.pending_load = keeper.send("load", args)
        keeper.load_answer, keeper.load_began = None, time.monotonic()
        return self._await_load(keeper, request.deadline)

    def _spawn(self, claim: Claim, deadline: Deadline) -> KeeperLink:
        keeper = link.spawn(self._env, claim, self._session)
        self.link, self._settled = keeper, False
        greeting = keeper.wait(0, deadline.left(), self._hung_up)
        if greeting is None:
            raise self._keeper_died(keeper) if keeper.ended else deadline.error("starting a keeper")
        result_of(greeting)
        return keeper

    def _load_wait(self, request: Request, _claim: Claim) -> Dict[str, Any]:
        self.notice_keeper()
        if self.link is None:
            raise AgentError("not_loaded", "no load has been asked for in this session")
        return self._await_load(self.link, request.deadline)

    def _await_load(self, keeper: KeeperLink, deadline: Deadline) -> Dict[str, Any]:
        message = keeper.load_answer
        if message is None and keeper.pending_load:
            message = keeper.wait(keeper.pending_load, deadline.left(), self._hung_up)
        self.notice_keeper()
        if message is not None:
            if message.get("result", {}).get("state") != "loaded":
                self._await_end(keeper)
            return result_of(message)
        if keeper.ended or not keeper.pending_load:
            raise self._keeper_died(keeper)
        return {"state": "loading", "seconds": time.monotonic() - keeper.load_began}

    def _unload(self, request: Request, claim: Claim) -> Dict[str, Any]:
        keeper = self._keeper()
        if keeper is not None:
            if keeper.pending_load is not None or keeper.told:
                raise self._store.busy("the keeper cannot be interrupted")
            self._ask(keeper, "unload", {}, request.deadline)
            self._await_end(keeper)
        else:
            with self._store.locked(request.deadline):
                self._store.require(claim, self._session)
                if self._store.keeper_alive():
                    raise self._store.busy("another keeper lives on this host")
                error = kexec.unload(self._env.kernel, request.deadline.left())
            if error is not None:
                raise AgentError("unload_failed", "unload: {}".format(error), "try again", errno=error.errno)
        return {"kexec_loaded": self._env.kexec_loaded(), "cma_after": cma.counters(self._env)}

    # -- jump ---------------------------------------------------------------------------------------------

    def _arm(self, request: Request, _claim: Claim) -> Dict[str, Any]:
        keeper = self._held()
        args = {
            "method": request.arg("method", str, "direct"),
            "lead": float(request.arg("lead", _NUMBER)),
            "span": float(request.arg("span", _NUMBER, 1.0)),
            "samples": request.arg("samples", int, 9),
            "deadline": request.deadline.left() * 0.8,
            "watchdog": watchdog.seconds_of(request),
        }
        if args["method"] not in ("direct", "systemd") or not 0 < args["lead"] <= _MOST_LEAD:
            raise AgentError(
                "bad_request", "arm wants the method direct or systemd, and a lead of up to 300 s"
            )
        if not 0 < args["span"] <= 30 or not 2 <= args["samples"] <= 1000:
            raise AgentError("bad_request", "arm wants a span of up to 30 s and 2 to 1000 samples")
        if args["method"] == "systemd" and not self._env.has_systemd():
            raise AgentError("no_systemd", "the init is {}".format(self._env.init()), "use the direct jump")
        return self._ask(keeper, "arm", args, request.deadline)

    def _disarm(self, request: Request, _claim: Claim) -> Dict[str, Any]:
        return self._ask(self._held(), "disarm", {}, request.deadline)

    def _go(self, request: Request, _claim: Claim) -> Dict[str, Any]:
        keeper = self._held("not_armed")
        give_up = float(request.arg("give_up", _NUMBER, 60.0))
        if not 0 < give_up <= _MOST_GIVE_UP:
            raise AgentError("bad_request", "go wants a give_up of up to {:g} s".format(_MOST_GIVE_UP))
        args = {
            "appointment": request.arg("appointment", int),
            "give_up": give_up,
            # The keeper is to answer before our own time is over: an unknown answer to `go` is the worst one.
            "deadline": request.deadline.left() * 0.8,
            "interpreter": os.path.realpath(sys.executable or "/usr/bin/python3"),
        }
        return self._ask(keeper, "go", args, request.deadline, gone="not_armed")

    # -- around the boot ----------------------------------------------------------------------------------

    def _guard_install(self, request: Request, claim: Claim) -> Dict[str, Any]:
        nonce = request.arg("nonce", str, claim.nonce)
        return guard.install(self._env, nonce, float(request.arg("seconds", _NUMBER)))

    def _guard_confirm(self, request: Request, claim: Claim) -> Dict[str, Any]:
        return guard.confirm(self._env, request.arg("nonce", str, claim.nonce))

    def _boot_default_set(self, request: Request, _claim: Claim) -> Dict[str, Any]:
        return bootdefault.set_default(self._env, request)
