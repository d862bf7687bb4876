"""What the user may ask for, the default fleet, and the inventory's text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.domain.errors import InputError, LabError
from orchestrator.lab.evidence import KernelCapabilities
from orchestrator.lab.inventory import InventoryHost, InventoryTarget, inventory_text, scalar
from orchestrator.lab.kernels import AvailableKernel, KernelSource, LabKernel
from orchestrator.lab.plan import Candidates, default_fleet, default_target
from orchestrator.lab.spec import HostSpec, LabOptions, parse_cma, parse_hosts, parse_memory, parse_size
from orchestrator.lab.vm import VmConfig, qemu_arguments

ABILITIES = {
    "cma": KernelCapabilities(kexec_file=True, cma=True, no_cma_flag=True),
    "flag": KernelCapabilities(kexec_file=True, cma=False, no_cma_flag=True),
    "old": KernelCapabilities(kexec_file=True, cma=False, no_cma_flag=False),
}


def test_hosts_are_parsed() -> None:
    assert parse_hosts("web1=7.3, db1=/boot/vmlinuz-7.3.4+deb13") == [
        HostSpec("web1", "7.3"),
        HostSpec("db1", "/boot/vmlinuz-7.3.4+deb13"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "web1",
        "web1=",
        "=7.3",
        "web1=7.3,web1=7.2",
        "Web1=7.3",
        "a/b=7.3",
        "web1=7.3,",
        "web1=7.3,,b=7.2",
        "",
        " ",
    ],
)
def test_bad_hosts_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_hosts(text)


@pytest.mark.parametrize(
    ("text", "size"), [("2G", 2 << 30), ("512M", 512 << 20), ("1GiB", 1 << 30), ("0", 0)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "x") == size


@pytest.mark.parametrize("text", ["100M", "2X", "-1G", "", "513000K"])
def test_unusable_memory_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_memory(text)


@pytest.mark.parametrize(("text", "value"), [("384M", "384M"), ("none", ""), ("0", ""), ("", "")])
def test_cma(text: str, value: str) -> None:
    assert parse_cma(text) == value


def test_cma_cannot_carry_more_words() -> None:
    with pytest.raises(InputError):
        parse_cma("384M init=/bin/sh")


@pytest.mark.parametrize("cma", ["1000G", "2G", "2048M"])
def test_cma_must_fit_into_the_memory(cma: str) -> None:
    with pytest.raises(InputError, match=f"cma {cma} does not fit into the memory of 2048M"):
        LabOptions(cma=cma, memory=2 << 30)
    assert LabOptions(cma="2047M", memory=2 << 30).cma == "2047M"
    assert LabOptions(cma="", memory=512 << 20).cma == ""


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_to_boot_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="boot timeout"):
        LabOptions(boot_seconds=seconds)


def candidates(kernels: dict[str, str], fetched: list[str] | None = None) -> Candidates:
    def fetch(item: AvailableKernel) -> LabKernel:
        if fetched is not None:
            fetched.append(item.release)
        if kernels[item.release] == "broken":
            raise LabError("its packages hold no modules")
        return LabKernel(
            item.release, Path("v"), None, None, "", ABILITIES[kernels[item.release]], KernelSource.DEBIAN
        )

    items = [AvailableKernel(release, "1", ("p",), (), False, None) for release in kernels]
    return Candidates(items, fetch)


def test_the_default_fleet_is_chosen_by_abilities() -> None:
    fetched: list[str] = []
    there = candidates(
        {
            "7.3.4": "cma",
            "7.3.3": "cma",
            "7.2.12": "cma",
            "6.18.15": "flag",
            "6.16.1": "old",
            "6.12.9": "old",
        },
        fetched,
    )
    target = default_target(there)
    assert target.kernel.release == "7.3.4"
    fleet = {spec.name: spec.kernel for spec in default_fleet(there, target.kernel)}
    assert fleet == {"cma1": "7.2.12", "cma2": "7.2.12", "flag1": "6.18.15", "old1": "6.12.9"}
    assert "7.3.3" not in fetched, "one kernel speaks for its series"
    assert "6.16.1" not in fetched


def test_numbers_do_not_decide() -> None:
    """A newer kernel without CMA is neither target nor a host that can place."""
    there = candidates({"8.0.1": "flag", "7.9.1": "cma", "7.8.1": "cma", "7.7.1": "old"})
    target = default_target(there)
    assert target.kernel.release == "7.9.1"
    fleet = {spec.name: spec.kernel for spec in default_fleet(there, target.kernel)}
    assert fleet == {"cma1": "7.8.1", "cma2": "7.8.1", "flag1": "8.0.1", "old1": "7.7.1"}


def test_what_is_not_there_is_left_out() -> None:
    there = candidates({"7.9.1": "cma", "7.8.1": "broken", "7.7.1": "old"})
    notices: list[str] = []
    fleet = default_fleet(there, default_target(there).kernel, lambda event: notices.append(event.text))
    assert [spec.name for spec in fleet] == ["old1"]
    assert len([text for text in notices if "left out" in text]) == 3


def vm_config(host: str, spec: str = "7.2", release: str = "7.2.12", accel: str = "tcg") -> VmConfig:
    return VmConfig(
        host=host, kernel_spec=spec, release=release, role="cma", vmlinuz="/k", initrd="/i",
        cmdline="panic=10", memory=2 << 30, cpus=1, accel=accel, watchdog=False, ssh_port=20001,
        service_port=20002, mac="52:54:00:1:2:3",
    )  # fmt: skip


def test_qemu_gets_what_the_lab_promises() -> None:
    words = " ".join(qemu_arguments(vm_config("a")))
    assert "-no-reboot" not in words, "a reset must come back through the firmware"
    assert "-cpu max" in words
    assert "hostfwd=tcp:127.0.0.1:20001-:22" in words
    assert "virtio-rng-pci" in words
    assert "i6300esb" not in words
    assert "-cpu host" in " ".join(qemu_arguments(vm_config("a", accel="kvm")))


def test_inventory_reads_back_as_it_was_meant() -> None:
    host = InventoryHost(
        "web1", 20001, 20002, "ssh-ed25519 AAAAC3Nza+/x==", "7.2.12+deb13-cloud-amd64", "cma",
        monitor=Path("/lab/a, ${b}/qmp.sock"), console=Path("/lab/console.log"),
    )  # fmt: skip
    target = InventoryTarget(Path("/cache/vmlinuz"), Path("/cache/initrd.img"), "7.3.4+deb13-cloud-amd64")
    text = inventory_text("default", Path("/lab/my, {odd} #dir/id"), target, [host])
    assert text.startswith("# written by `kexec-fleet lab up`\n")
    assert yaml.safe_load(text) == {
        "variables": {
            "lab_target_image": "/cache/vmlinuz",
            "lab_target_initrd": "/cache/initrd.img",
            "lab_target_release": "7.3.4+deb13-cloud-amd64",
            "lab_name": "default",
            "lab_program": "kexec-fleet",
        },
        "defaults": {"user": "root", "key": "/lab/my, {odd} #dir/id", "sudo": False},
        "groups": {"lab": {"hosts": ["web1"]}},
        "hosts": {
            "web1": {
                "address": "127.0.0.1",
                "port": 20001,
                "host_key": "ssh-ed25519 AAAAC3Nza+/x==",
                "labels": {"kernel": "7.2.12+deb13-cloud-amd64", "role": "cma", "lab": "default"},
                "probe": {"kind": "banner", "port": 20002},
                "power": {"kind": "qmp", "socket": "/lab/a, $${b}/qmp.sock"},
                "console": {"file": "/lab/console.log"},
            }
        },
    }


@pytest.mark.parametrize(
    "text", ["7.3", "on", "null", "a: b", "[x]", "# x", "2026-11-22", "", "'", "\t", "a,b"]
)
def test_scalars_stay_strings(text: str) -> None:
    assert yaml.safe_load(f"{{a: {scalar(text)}}}") == {"a": text}
