"""What is looked at after a jump (and before, to compare): one file a check, each with `collect(env, args)
-> dict`.

A collector reads and returns plain data; what it means is judged in orchestrator/domain/checks. It needs no
claim, changes nothing, and is cut off at the request's deadline.
"""

from typing import Any, Callable, Dict

from workers.hostagent.collectors import evidence, identity, initrd, log, machine, units
from workers.hostagent.environment import Environment

COLLECTORS: Dict[str, Callable[[Environment, Dict[str, Any]], Dict[str, Any]]] = {
    "evidence": evidence.collect,
    "identity": identity.collect,
    "initrd": initrd.collect,
    "log": log.collect,
    "machine": machine.collect,
    "units": units.collect,
}
