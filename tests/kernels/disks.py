"""The disks of a machine: its root, its initramfs, the checkout that it tests."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from packages import MIRROR

SUITE = "bookworm"
PACKAGES = (
    "bindfs",
    "busybox-static",
    "curl",
    "fuse3",
    "iproute2",
    "kmod",
    "openssl",
    "procps",
    "python3",
    "python3-hypothesis",
    "python3-prometheus-client",
    "python3-pyfuse3",
    "python3-pyinotify",
    "python3-pytest",
    "python3-pytest-timeout",
    "python3-pytest-xdist",
    "python3-requests",
    "python3-sdnotify",
    "python3-yaml",
)
GUEST = Path(__file__).with_name("guest")
MODULES = ("virtio_pci", "virtio_blk", "ext4", "fuse", "autofs4")
"""To be loaded before the root is mounted, where they are not built in."""
_CHECKOUT = ("conf", "fusewatchd", "pyproject.toml", "systemd", "tests")
_IMAGE_SIZE = "1G"


def root_file_system(build: Path) -> Path:
    """Return the ext4 image of the root; made again when its recipe has changed.

    Nothing is mounted for it: mke2fs copies a directory.
    """
    recipe = repr((SUITE, PACKAGES, _IMAGE_SIZE, _make_image.__code__.co_consts))
    name = f"root-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    image = build / f"{name}.ext4"
    if not image.exists():
        for old in build.glob("root-*"):
            old.unlink()
        _make_image(image)
    return image


def _make_image(image: Path) -> None:
    directory, fresh = image.with_suffix(".directory"), image.with_suffix(".fresh")
    shutil.rmtree(directory, ignore_errors=True)
    bootstrap = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    subprocess.run([*bootstrap, SUITE, directory, MIRROR], check=True)
    for name in ("checkout", "results"):
        (directory / name).mkdir()
    make = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", directory]
    subprocess.run([*make, fresh, _IMAGE_SIZE], check=True)
    shutil.copy(directory / "bin/busybox", image.with_suffix(".busybox"))
    shutil.rmtree(directory)
    fresh.rename(image)


def initramfs(unpacked: Path, root: Path, archive: Path) -> Path:
    """Write the archive that mounts the root: busybox, the modules, and ``guest/init``."""
    tree = archive.with_suffix(".tree")
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("dev", "proc", "root", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy(root.with_suffix(".busybox"), tree / "busybox")
    shutil.copy(GUEST / "init", tree / "init")
    (tree / "init").chmod(0o755)
    for number, module in enumerate(_in_order_of_loading(unpacked)):
        name, content = module.name, module.read_bytes()
        if name.endswith(".xz"):
            # Not every busybox unpacks them.
            name, content = name.removesuffix(".xz"), lzma.decompress(content)
        (tree / "modules" / f"{number:02}-{name}").write_bytes(content)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with archive.open("wb") as file:
        command = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(command, cwd=tree, input=names.encode(), stdout=file, check=True)
    shutil.rmtree(tree)
    return archive


def _in_order_of_loading(unpacked: Path) -> Iterator[Path]:
    """Yield the files of ``MODULES`` and of what they need, each after what it needs."""
    (release,) = [*unpacked.glob("lib/modules/*"), *unpacked.glob("usr/lib/modules/*")]
    if not (release / "modules.dep").exists():
        subprocess.run(["depmod", "-b", release.parents[2], release.name], check=True)
    needs: dict[str, list[str]] = {}
    for line in (release / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        needs[module] = others.split()
    paths = {Path(module).name.split(".")[0].replace("-", "_"): module for module in needs}
    done: set[str] = set()
    for name in MODULES:
        if name not in paths:
            continue  # it is built in
        # modules.dep lists all that a module needs, what is to be loaded first at the end.
        for module in (*reversed(needs[paths[name]]), paths[name]):
            if module not in done:
                done.add(module)
                yield release / module


def kernel_image(unpacked: Path) -> Path:
    """Return the kernel that QEMU boots."""
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    return image


def checkout(top: Path, script: str, archive: Path) -> Path:
    """Pack what is tested, and the script that does it; the machine unpacks it from a disk."""
    command = archive.with_suffix(".sh")
    command.write_text(script)
    with tarfile.open(archive, "w") as tar:
        for name in _CHECKOUT:
            tar.add(top / name, name, filter=_without_caches)
        tar.add(command, "run-tests.sh")
    _fill_sector(archive)
    return archive


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member


def _fill_sector(path: Path) -> None:
    """A disk has whole sectors; what is after the archive's end is not read."""
    size = path.stat().st_size
    with path.open("ab") as file:
        file.truncate(size + -size % 4096)
