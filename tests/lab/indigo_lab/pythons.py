"""Images of services that are programs of Python: Debian's Python, and PyPI's wheels.

They are large, so one is built when a test asks for it, not by every `lab up`.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import archives, artifacts, containers, debian, saltenv
from .base import cache, digest, run, say

#: Python 3.11, and the libraries that its modules and the wheels load.
PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libbz2-1.0",
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libsqlite3-0",
    "libssl3",
    "libstdc++6",
    "libuuid1",
    "zlib1g",
)
MODULES = "opt/modules"


@dataclass(frozen=True)
class Service:
    """An image with a program of PyPI.

    Attributes:
        name: of the image, in the project's table of images; `tests/lab/images/NAME` has
            `requirements.txt`, with all that it needs, pinned and with hashes.
        version: the project's table pins the same.
        module: that is run.
        source: projects of which PyPI has no wheel.
    """

    name: str
    version: str
    module: str
    source: tuple[str, ...] = ()

    @property
    def requirements(self) -> Path:
        """What pip installs."""
        return artifacts.IMAGES / self.name / "requirements.txt"


SERVICES = (Service("im", "2.0.0", "IM.im_service", source=("radl",)),)


def offered(name: str) -> dict[str, str]:
    """An image in the mirror of the lab, built once.

    Returns:
        An entry for `images.archives` of cluster.yaml; its `name` belongs into `images.use`.

    Raises:
        LabError: a package is missing, or is not what the hashes say.

    Example:
        pythons.offered("im")["name"]  # indigo.lab/im:2.0.0
    """
    (service,) = (one for one in SERVICES if one.name == name)
    arch = debian.architecture()
    reference, archive = built(service, arch)
    docroot = artifacts.Docroot(cache("www"), arch)
    docroot.image(archive.stem, archive, reference)
    docroot.save()
    return docroot.published.images[0]


def built(service: Service, arch: str) -> tuple[str, Path]:
    """Reference and archive of an image.

    Args:
        service: one of SERVICES.
        arch: Debian's name of the architecture.
    """
    reference = f"indigo.lab/{service.name}:{service.version}"
    spec = digest(service.requirements.read_bytes(), repr(service), repr(PACKAGES), arch)
    archive = cache("archives", f"image-{service.name}-{service.version}-{arch}-{spec}.tar")
    if archive.exists():
        return reference, archive
    say(f"images: build {service.name} {service.version} from PyPI's wheels and Debian's Python")
    archive.parent.mkdir(parents=True, exist_ok=True)
    temporary = archive.with_name(archive.name + ".new")
    with tempfile.TemporaryDirectory(dir=archive.parent) as work:
        root = Path(work)
        apt = debian.Apt()
        apt.update()
        for package in apt.single(PACKAGES).values():
            run(["dpkg-deb", "-x", package, root])
        _modules(service, root)
        layer = archives.tar(
            containers.members(root / "usr/bin/python3.11", "usr/bin/python3", tree(root))
        )
    temporary.write_bytes(
        archives.docker_archive(
            reference,
            layer,
            arch=arch,
            command=["/usr/bin/python3", "-m", service.module],
            env=["PATH=/usr/bin:/bin", f"PYTHONPATH=/{MODULES}"],
        )
    )
    temporary.rename(archive)
    return reference, archive


def _modules(service: Service, root: Path) -> None:
    """Install what pip checks against the hashes, and compile it: pods cannot write there."""
    python = saltenv.environment() / "bin/python3"
    source = [f"--no-binary={name}" for name in service.source]
    run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--require-hashes",
         "--only-binary=:all:", *source, "--no-build-isolation", "--target", root / MODULES,
         "-r", service.requirements],
        step=f"images: pip install {service.name} {service.version}",
    )  # fmt: skip
    # Times of change are lost in the image, and tell nothing of whether it is up to date.
    run(
        [python, "-m", "compileall", "-q", "-j", "2", "--invalidation-mode", "unchecked-hash",
         "-s", root, "-p", "/", root / MODULES, root / "usr/lib/python3.11"],
        step=f"images: compile {service.name}",
        check=False,
    )  # fmt: skip


def tree(root: Path) -> dict[str, archives.Source | str]:
    """Members of an image that are the files and links of a folder, but for what people read."""
    found: dict[str, archives.Source | str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.startswith("usr/share/"):
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path
    return found
