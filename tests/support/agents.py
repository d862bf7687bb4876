"""The real agent bundle for a make-believe host, to be started over a real SSH session.

The host is the agent tests' own: a directory as its root, and a kernel that writes down the calls it gets.
No test that runs on this machine may reach its kernel's kexec.
"""

from __future__ import annotations

from tests.unit import hostagent_harness as harness
from workers.agentbundle import AgentBundle, render

BOOT_ID = harness.BOOT


def bundle_for(machine: harness.Host) -> AgentBundle:
    """The agent as it runs on that host."""
    return render(harness._ENTRY.format(root=str(machine.root), line=harness.LOG_LINE))
