"""The program's beginning: takes the protocol away from stdin and stdout, then serves one session."""

import os
import sys

from workers.hostagent.environment import Environment
from workers.hostagent.kexec import Kernel
from workers.hostagent.protocol import Channel
from workers.hostagent.session import Session


def take_channel() -> Channel:
    """Moves fds 0 and 1 out of the way: a child's read and a stray print must never touch the protocol."""
    incoming, outgoing = os.dup(0), os.dup(1)  # close-on-exec, as all descriptors of Python 3 are
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return Channel(incoming, outgoing)


def serve(env: Environment, agent: str) -> None:
    """`agent`: the SHA-256 of the source text that the loader was given."""
    os.umask(0o077)
    sys.stdout = sys.stderr
    Session(env, take_channel(), agent).serve()


def run(agent: str) -> None:
    """What the bundle's last line calls on a real host."""
    serve(Environment(Kernel()), agent)
