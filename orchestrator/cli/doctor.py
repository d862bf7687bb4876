"""`kexec-fleet host doctor`: what would happen on each host, before the first rollout; no host jumps."""

from __future__ import annotations

import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import InventoryFile, JournalFile, Json
from orchestrator.cli.output import ExitCode, print_json, stderr_console
from orchestrator.domain.errors import HostRefused, InputError, JournalBusy

if TYPE_CHECKING:
    from orchestrator.domain.facts import HostFacts
    from orchestrator.domain.inventory import Host, Inventory
    from orchestrator.journal.store import Journal
    from workers.agent import Claim
    from workers.diagnosis import Diagnosis
    from workers.doctor import Means, Question

AT_ONCE = 10
"""Hosts at the same time, as a playbook's default `at_once`: each is sent the files and loads them."""


def doctor(
    hosts: Annotated[list[str], typer.Argument(help="Hosts, or selectors such as `web & !canary`.")],
    inventory: InventoryFile,
    playbook: Annotated[
        Path | None, typer.Option("--playbook", "-p", help="Load what this playbook would load.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="Load this kernel image of this machine.")
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option("--initrd", help="The initrd that belongs to --image.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="Try the repairs that the audit asks for.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Also where an image is loaded (lost then), or loads are counted.")
    ] = False,
    journal: JournalFile = None,
    as_json: Json = False,
) -> None:
    """Load a kernel, audit and repair it, and unload it again: shows what a rollout would meet.

    Without --playbook and --image: the kernel that each host runs, as found under its /boot. No host jumps.
    """
    from orchestrator.cli.doctortext import print_diagnoses
    from orchestrator.cli.rollout import open_journal
    from orchestrator.loading.inventory import check_files, load_inventory

    known = load_inventory(inventory)
    chosen = choose(hosts, known)
    question = _question(known, playbook, image, initrd, repair, force)
    check_files(known, chosen)
    opened = open_journal(journal)
    if driven := [name for name in chosen if opened.is_driven(name)]:
        raise JournalBusy(
            f"a rollout of this journal is at work on {', '.join(driven)}",
            hint="wait for it, or end it with `rollout abort`",
        )
    with _stop_on_signals() as stop:
        means = _means(opened, stop)
        found = _examine([known.hosts[name] for name in chosen], hosts, question, means)
    if as_json:
        print_json({"hosts": {one.host: one.as_dict() for one in found}})
    else:
        print_diagnoses(found)
    if code := _exit_code(found, stop.is_set()):
        sys.exit(code)


def choose(words: Sequence[str], inventory: Inventory) -> tuple[str, ...]:
    """The hosts that any of the selectors may mean, in the inventory's order. Raises InputError."""
    from orchestrator.domain.selector import select

    kept = {name for word in words for name in select(word, inventory).hosts}
    return tuple(name for name in inventory.hosts if name in kept)


def _question(
    inventory: Inventory,
    playbook: Path | None,
    image: Path | None,
    initrd: Path | None,
    repair: bool,
    force: bool,
) -> Question:
    """What is to be loaded. Raises InputError."""
    from orchestrator.domain.plan import check_command_line, target_release
    from orchestrator.domain.playbook import ControllerImage, Kernel, Playbook
    from orchestrator.loading.images import inspect_images
    from orchestrator.loading.paths import resolve
    from orchestrator.loading.playbook import load_playbook
    from workers.doctor import Question

    if playbook is not None and (image or initrd):
        raise InputError(
            "--playbook and --image both name a kernel", hint="give one of the two: a playbook, or files"
        )
    if initrd is not None and image is None:
        raise InputError("--initrd without --image", hint="name the kernel that it belongs to: --image FILE")
    book = None
    if playbook is not None:
        book = load_playbook(playbook, inventory)
    elif image is not None:
        files = ControllerImage(
            image=resolve(str(image), Path.cwd()),
            initrd=None if initrd is None else resolve(str(initrd), Path.cwd()),
        )
        book = Playbook(name="doctor", kernel=Kernel(on_controller=files))
    question = Question()
    if book is not None:
        images = inspect_images(book)
        check_command_line(book, images)
        question = Question.of(book, images, target_release(book, images))
    cma = question.cma if repair else question.cma.model_copy(update={"repair": False})
    return question.model_copy(update={"cma": cma, "force": force})


def _means(opened: Journal, stop: threading.Event) -> Means:
    from workers.agent import Claim
    from workers.agentbundle import bundle
    from workers.connection.ssh import SshConnector
    from workers.doctor import Means
    from workers.power.wiring import power_driver

    def claim(host: str, boot_id: str) -> Claim:
        # Asked again: a rollout may have begun since, and a claim of ours would end what it has loaded.
        if opened.is_driven(host):
            raise HostRefused(
                host,
                "claim",
                "a rollout of this journal has begun to drive it",
                hint="wait for it, or end it with `rollout abort`",
                code="driven",
            )
        return Claim(
            journal=opened.id,
            rollout="",
            host=host,
            attempt=0,
            nonce=secrets.token_hex(16),
            fence=opened.fence(),
            boot_id=boot_id,
        )

    return Means(
        connector=SshConnector(),
        bundle=bundle(),
        power=power_driver,
        claim=claim,
        stopping=stop.is_set,
        tell=lambda host, text: stderr_console().print(f"{host}: {text}", soft_wrap=True),
    )


def _examine(
    hosts: Sequence[Host], words: Sequence[str], question: Question, means: Means
) -> list[Diagnosis]:
    """One diagnosis a host, in the order of `hosts`; each must match a selector with its facts."""
    from orchestrator.domain.facts import selector_facts
    from orchestrator.domain.selector import Match, Selector
    from workers.doctor import examine

    selectors = [Selector.parse(word) for word in words]

    def look(host: Host) -> Diagnosis:
        def meant(facts: HostFacts) -> bool:
            known = selector_facts(facts)
            return any(one.matches(host, known) is Match.YES for one in selectors)

        return examine(host, question, means, meant)

    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        return list(pool.map(look, hosts))


def _exit_code(found: Sequence[Diagnosis], stopped: bool) -> int:
    from workers.diagnosis import GOOD

    if stopped:
        return ExitCode.INTERRUPTED
    return ExitCode.DONE if all(one.health in GOOD for one in found) else ExitCode.FAILED


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM unloads and ends; the second one kills: the hosts unload by themselves."""
    stop = threading.Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.set()
        stderr_console().print("stopping: what is loaded is unloaded first")
        signal.signal(number, signal.SIG_DFL)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
