"""Taking the claim: after its answer no older keeper lives, and no jump of an older fence can happen."""

import time
from typing import Any, Dict

from workers.hostagent import guard, jump, kexec, shutdown
from workers.hostagent.claims import KEEPER_PHASES, Claim, ClaimStore, Record
from workers.hostagent.deadline import Deadline
from workers.hostagent.environment import Environment
from workers.hostagent.errors import AgentError
from workers.hostagent.processes import Identity

_POLL = 0.05


def take(
    env: Environment, store: ClaimStore, claim: Claim, session: Identity, deadline: Deadline
) -> Dict[str, Any]:
    """Raises the fence, waits for an older keeper to end, unloads what it left, records the claim.

    -> {"jump": "none" | "dead", "unloaded": bool, "kexec_loaded": 0 | 1, "shutdown": {...}, "before": phase
    and note of the claim found}. Raises AgentError as ClaimStore.check_fence does, and `busy` when the
    keeper is still inside a load or past go at the deadline; the raised fence stays, so asking again goes on
    waiting.
    """
    with store.locked(deadline):
        store.check_fence(claim)
        _check_other_session(store, claim, session)
        store.raise_fence(claim)
    # A keeper looks at the fence every 0.2 s; one inside a load when the load has ended.
    while store.keeper_alive():
        if deadline.passed():
            raise store.busy("an earlier keeper has not ended yet")
        time.sleep(_POLL)
    going_down = shutdown.state(env, min(5.0, max(deadline.left(), 0.5)))
    with store.locked(deadline):
        store.check_fence(claim)
        if store.keeper_alive():
            raise store.busy("another keeper has begun")
        found = store.record()
        if found is not None and found.phase == "systemd" and going_down["under_way"]:
            raise store.busy("systemd was told to kexec and is on its way")
        jump.remove_hook(env)
        guard.remove_stale(env, claim.nonce)
        left = found is not None and found.phase in KEEPER_PHASES and env.kexec_loaded() != 0
        if left:
            error = kexec.unload(env.kernel, max(deadline.left(), 0.1))
            if error is not None:
                raise AgentError(
                    "unload_failed",
                    "an earlier image could not be unloaded: {}".format(error),
                    "try again; reboot through the firmware if it stays",
                    errno=error.errno,
                )
        store.write(Record(claim, session, None, "claimed", {}))
    return {
        # Whatever an earlier claim had armed or told is over: its keeper is gone and cannot come back.
        "jump": "none" if found is None else "dead",
        "unloaded": left,
        "kexec_loaded": env.kexec_loaded(),
        "shutdown": going_down,
        "before": None
        if found is None
        else {"phase": found.phase, "note": found.note, "nonce": found.claim.nonce},
    }


def _check_other_session(store: ClaimStore, claim: Claim, session: Identity) -> None:
    """One fence, one session: a second must wait for the first to end, or bring a higher fence."""
    found = store.record()
    if found is None or found.claim.journal != claim.journal or found.claim.fence < claim.fence:
        return
    if found.session != session and store.live(found):
        raise store.busy("another session with the same fence is alive")
