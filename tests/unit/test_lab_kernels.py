"""Which kernel a version prefix means, what it can do, and that the cache is never believed blindly."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from orchestrator.domain.errors import InputError, LabError
from orchestrator.lab.archive import Package, parse_packages
from orchestrator.lab.debversion import compare, version_key
from orchestrator.lab.evidence import judge, read_release
from orchestrator.lab.kernels import AvailableKernel, KernelStore, choose, find_available, from_file, matches
from tests.support.labkernels import FakeArchive, make_image, write_tree

NEW = "7.3.4+deb13-cloud-amd64"
OLD = "6.12.9+deb13-cloud-amd64"


def kernel(release: str, missing: tuple[str, ...] = (), cached: bool = False) -> AvailableKernel:
    return AvailableKernel(release, "1", ("linux-image-" + release,), missing, cached, None)


VERSIONS = (
    "6.12.90+deb13.1-1", "6.12.90+deb13-1", "6.12.9-1", "6.12.100-1", "7.3.4-1~bpo13+1", "7.3.4-1",
    "7.3.10-1", "1:1.0-1", "7.3~rc1-1", "7.3-1", "7.3", "7.3.4a-1",
)  # fmt: skip


@pytest.mark.parametrize(("left", "right"), list(itertools.combinations(VERSIONS, 2)))
def test_versions_are_ordered_as_dpkg_orders_them(left: str, right: str) -> None:
    less = subprocess.run(["dpkg", "--compare-versions", left, "lt", right], check=False).returncode == 0
    assert (compare(left, right) < 0) is less
    assert (compare(right, left) > 0) is less


def test_newest_is_by_number_not_by_letter() -> None:
    assert max(["7.2.9", "7.2.12", "7.2.6"], key=version_key) == "7.2.12"


@pytest.mark.parametrize(
    ("release", "prefix", "expected"),
    [
        (NEW, "7.3", True),
        (NEW, "7.3.4", True),
        (NEW, NEW, True),
        (NEW, "7", True),
        ("7.30.1+deb13-cloud-amd64", "7.3", False),
        (NEW, "7.3.4+deb", False),
        (NEW, "7.4", False),
    ],
)
def test_a_prefix_ends_where_a_number_ends(release: str, prefix: str, expected: bool) -> None:
    assert matches(release, prefix) is expected


def test_choose_takes_the_newest_that_can_be_had() -> None:
    there = [kernel("7.2.9-x"), kernel("7.2.12-x"), kernel("7.2.13-x", missing=("linux-modules-7.2.13-x",))]
    assert choose("7.2", there).release == "7.2.12-x"


def test_an_unknown_prefix_says_what_there_is() -> None:
    with pytest.raises(InputError, match=r"no kernel '7\.4'") as caught:
        choose("7.4", [kernel(NEW), kernel("7.0.1-x", missing=("linux-modules-7.0.1-x",))])
    assert NEW in caught.value.hint
    assert "7.0.1" not in caught.value.hint


def test_a_kernel_whose_modules_are_gone_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"dropped linux-modules-7\.0\.1-x"):
        choose("7.0", [kernel(NEW), kernel("7.0.1-x", missing=("linux-modules-7.0.1-x",))])


def test_a_cached_kernel_serves_though_the_archive_dropped_it() -> None:
    assert choose("7.0", [kernel("7.0.1-x", missing=("linux-modules-7.0.1-x",), cached=True)]).usable


def test_dependencies_decide_what_must_be_unpacked() -> None:
    image, binary, modules = (f"linux-{part}-{NEW}" for part in ("image", "binary", "modules"))
    old = f"linux-image-{OLD}"
    index = {
        image: Package(image, "1", ("dracut", "linux-base", f"linux-base-{NEW}", binary, modules)),
        binary: Package(binary, "1", ()),
        modules: Package(modules, "1", ()),
        old: Package(old, "1", ("kmod",)),
        f"{old}-dbg": Package(f"{old}-dbg", "1", ()),
        f"{old}-unsigned": Package(f"{old}-unsigned", "1", ()),
    }
    found = {item.release: item for item in find_available(index)}
    assert set(found) == {NEW, OLD}
    assert found[NEW].packages == (image, binary, modules)
    assert found[NEW].usable, "a missing linux-base is for the unpacked files to decide"
    assert found[OLD].packages == (old,)
    del index[modules]
    assert {item.release: item.missing for item in find_available(index)}[NEW] == (modules,)


def test_packages_are_read_as_apt_prints_them() -> None:
    text = "Package: a\nVersion: 1-1\nDepends: x | y, z (= 1), libc6:any\n\nPackage: b\nVersion: 2\n\n"
    assert parse_packages(text) == [Package("a", "1-1", ("x", "z", "libc6")), Package("b", "2", ())]


@pytest.mark.parametrize(
    ("symbols", "role"),
    [
        (("no_cma", "cma_alloc", "__x64_sys_kexec_file_load"), "cma"),
        (("no_cma", "__x64_sys_kexec_file_load"), "flag"),
        (("__x64_sys_kexec_file_load",), "old"),
    ],
)
def test_abilities_are_read_from_the_image(tmp_path: Path, symbols: tuple[str, ...], role: str) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(make_image("9.9.9-own", symbols))
    found = judge(image, None)
    assert found.role == role
    assert found.kexec_file is True
    assert read_release(image.read_bytes(), "x") == "9.9.9-own"


def test_without_type_information_nothing_is_claimed(tmp_path: Path) -> None:
    """The bytes `no_cma` alone, somewhere in the image, are no evidence."""
    image = tmp_path / "vmlinuz"
    image.write_bytes(make_image("9.9.9-own", btf=False))
    found = judge(image, None)
    assert (found.cma, found.no_cma_flag, found.role) == (None, None, "unknown")


def test_a_config_decides_where_there_is_one(tmp_path: Path) -> None:
    image, config = tmp_path / "vmlinuz", tmp_path / "config"
    image.write_bytes(make_image("9.9.9-own", ("no_cma", "cma_alloc")))
    config.write_text("# CONFIG_CMA is not set\nCONFIG_KEXEC_FILE=y\n")
    assert judge(image, config).role == "flag"


def fake_store(tmp_path: Path, *, image_among_modules: bool = True) -> tuple[KernelStore, FakeArchive]:
    """Packages as 7.2 and later split them, or all in one as before."""
    image = f"linux-image-{NEW}"
    write_tree(
        tmp_path / "tree", NEW, image_among_modules=image_among_modules, symbols=("no_cma", "cma_alloc")
    )
    store = KernelStore(tmp_path / "cache")
    store.cache.mkdir()
    archive = FakeArchive(
        store.cache / "apt", {image: Package(image, "7.3.4-1", ())}, {image: tmp_path / "tree"}
    )
    archive.folder.mkdir()
    store.archive = archive
    return store, archive


@pytest.mark.parametrize("image_among_modules", [True, False])
def test_a_kernel_is_fetched_once(tmp_path: Path, image_among_modules: bool) -> None:
    store, archive = fake_store(tmp_path, image_among_modules=image_among_modules)
    first = store.resolve("7.3")
    assert first.release == NEW
    assert first.capabilities.role == "cma"
    assert first.modules_dir is not None
    assert (first.modules_dir / "kernel/drivers/virtio_blk.ko").exists()
    assert store.resolve("7.3.4") == first
    assert len(archive.downloads) == 1
    assert [item.cached for item in store.available()] == [True]


@pytest.mark.parametrize("name", ["vmlinuz", "modules/kernel/drivers/virtio_blk.ko"])
@pytest.mark.parametrize("damage", ["change", "truncate", "remove"])
def test_a_damaged_cache_is_noticed_and_fetched_again(tmp_path: Path, name: str, damage: str) -> None:
    store, archive = fake_store(tmp_path)
    kernel_there = store.resolve("7.3")
    victim = kernel_there.vmlinuz.parent / name
    sound = victim.read_bytes()
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(sound[:-1] + (b"\xff" if damage == "change" else b""))
    store.resolve("7.3")
    assert victim.read_bytes() == sound
    assert len(archive.downloads) == 2


def test_a_fetch_that_broke_half_way_leaves_nothing_that_counts(tmp_path: Path) -> None:
    store, _archive = fake_store(tmp_path)
    (store.folder / NEW).mkdir(parents=True)
    (store.folder / NEW / "vmlinuz").write_bytes(b"half")
    assert store.cached() == []
    assert store.resolve("7.3").vmlinuz.read_bytes() != b"half"
    assert not list(store.folder.glob(".unpack-*"))


def test_packages_without_modules_are_refused(tmp_path: Path) -> None:
    store, _archive = fake_store(tmp_path, image_among_modules=False)
    subprocess.run(["rm", "-r", tmp_path / "tree/usr"], check=True)
    with pytest.raises(LabError, match="hold no modules"):
        store.resolve("7.3")
    assert store.cached() == []


def test_a_kernel_of_ones_own(tmp_path: Path) -> None:
    image = tmp_path / f"vmlinuz-{NEW}"
    image.write_bytes(make_image("9.9.9-own"))
    modules = tmp_path / "modules"
    modules.mkdir()
    assert from_file(str(image)).release == "9.9.9-own"
    assert from_file(f"{image}+{modules}").modules_dir == modules
    with pytest.raises(InputError, match="no modules folder"):
        from_file(f"{image}+{tmp_path}/elsewhere")
    with pytest.raises(InputError, match="no kernel file"):
        from_file(str(tmp_path / "nothing"))
    (tmp_path / "text").write_text("not a kernel" * 200)
    with pytest.raises(InputError, match="not an x86 kernel image"):
        from_file(str(tmp_path / "text"))
