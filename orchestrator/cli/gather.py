"""Ask many hosts something at once, reading only: what `plan --facts` rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from orchestrator.domain.errors import HostError
from orchestrator.domain.facts import HostFacts, parse_facts
from orchestrator.domain.inventory import Host

if TYPE_CHECKING:
    from workers.agent import AgentClient
    from workers.deadline import Deadline

AnswerT = TypeVar("AnswerT")

# One connection and agent each; enough to hide their latency, few enough for one machine (facts: ssh).
AT_ONCE = 16


@dataclass(frozen=True)
class Gathered:
    """The facts of the hosts that answered, and why the others did not."""

    facts: Mapping[str, HostFacts] = field(default_factory=dict)
    unasked: Mapping[str, str] = field(default_factory=dict)


def gather_facts(hosts: Iterable[Host], seconds: float) -> Gathered:
    """The facts of `hosts`, within `seconds` for each."""
    answers = ask_each(hosts, lambda agent, deadline: parse_facts(dict(agent.facts(deadline))), seconds)
    return Gathered(
        {name: answer for name, answer in answers.items() if isinstance(answer, HostFacts)},
        {name: answer.message for name, answer in answers.items() if isinstance(answer, HostError)},
    )


def ask_each(
    hosts: Iterable[Host], ask: Callable[[AgentClient, Deadline], AnswerT], seconds: float
) -> dict[str, AnswerT | HostError]:
    """What `ask` gives for each host by name, or the error that kept it from answering."""
    asked = list(hosts)
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        answers = pool.map(lambda host: _ask(host, ask, seconds), asked)
        return {host.name: answer for host, answer in zip(asked, answers, strict=True)}


def _ask(host: Host, ask: Callable[[AgentClient, Deadline], AnswerT], seconds: float) -> AnswerT | HostError:
    from workers.agent import AgentClient
    from workers.agentbundle import bundle
    from workers.connection.ssh import SshConnector
    from workers.deadline import Deadline

    deadline = Deadline.after(seconds)
    try:
        connection = SshConnector().connect(host, deadline)
        try:
            return ask(AgentClient.start(connection, host, bundle(), deadline), deadline)
        finally:
            connection.close()
    except HostError as error:
        return error
