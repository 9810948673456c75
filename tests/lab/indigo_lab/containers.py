"""Images of the cluster's add-ons, made of Debian's packages: a program and its C library."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from . import archives, debian
from .base import LabError, cache, digest, remove_tree, say, write

LIBC = "libc6"
# What a program of Go that was built with cgo may load: the library, and what resolves names.
LIBRARIES = ("libc.so.6", "libresolv.so.2", "libpthread.so.0", "libdl.so.2", "libm.so.6",
             "libnss_files.so.2", "libnss_dns.so.2")  # fmt: skip


@dataclass(frozen=True)
class Program:
    """An image's one program.

    Attributes:
        name: of the image, in the project's table of images.
        package: Debian's.
        path: of the program in the package.
        entry: its path in the image, which is that of upstream's image.
        more: what else the program reads, at the package's own paths.
    """

    name: str
    package: str
    path: str
    entry: str
    more: tuple[str, ...] = ()


PROGRAMS = (
    Program("prometheus", "prometheus", "usr/bin/prometheus", "bin/prometheus"),
    Program(
        "node-exporter",
        "prometheus-node-exporter",
        "usr/bin/prometheus-node-exporter",
        "bin/node_exporter",
    ),
    Program(
        "alertmanager",
        "prometheus-alertmanager",
        "usr/bin/prometheus-alertmanager",
        "bin/alertmanager",
        # Upstream's program has these in itself.
        (
            "usr/share/prometheus/alertmanager/default.tmpl",
            "usr/share/prometheus/alertmanager/email.tmpl",
        ),
    ),
    Program("influxdb", "influxdb", "usr/bin/influxd", "usr/bin/influxd"),
)


def built(arch: str) -> dict[str, tuple[str, Path]]:
    """The images, built once: name in the table -> reference, archive.

    Args:
        arch: Debian's name of the architecture.
    """
    spec = digest(json.dumps([asdict(one) for one in PROGRAMS]), repr(LIBRARIES), arch)
    index = cache("archives", f"images-{debian.release()}-{spec}.json")
    if index.exists():
        found = {
            name: (ref, Path(path)) for name, (ref, path) in json.loads(index.read_text()).items()
        }
        if all(path.exists() for _, path in found.values()):
            return found
    say(f"images: build {', '.join(one.name for one in PROGRAMS)} from Debian's packages")
    apt = debian.Apt()
    apt.update()
    packages = apt.single([LIBC, *(one.package for one in PROGRAMS)])
    work = cache("archives", "images.new")
    libraries = _libraries(debian.unpack(packages[LIBC], work / LIBC))
    found = {}
    for one in PROGRAMS:
        files = debian.unpack(packages[one.package], work / one.package)
        version = debian.upstream_version(packages[one.package])
        reference = f"indigo.lab/{one.name}:{version}"
        more = {path: files / path for path in one.more}
        layer = archives.tar(members(files / one.path, one.entry, libraries | more))
        archive = cache("archives", f"image-{one.name}-{version}-{arch}-{digest(layer)}.tar")
        archive.write_bytes(
            archives.docker_archive(reference, layer, arch=arch, command=[f"/{one.entry}"])
        )
        found[one.name] = (reference, archive)
    remove_tree(work)
    write(index, json.dumps({name: (ref, str(path)) for name, (ref, path) in found.items()}))
    return found


def _libraries(libc: Path) -> dict[str, archives.Source | str]:
    """Members of an image that programs of Debian need to start."""
    found: dict[str, archives.Source | str] = {}
    for name in LIBRARIES:
        paths = sorted(libc.glob(f"lib/*/{name}"))
        if not paths:
            raise LabError(f"{LIBC}: no {name} in the package; expected it in lib/<machine>/")
        found[str(paths[0].relative_to(libc))] = paths[0].resolve()
    for loader in [*libc.glob("lib/ld-linux-*"), *libc.glob("lib64/ld-linux-*")]:
        # The interpreter's path is fixed; in the package it is a link into lib/<machine>.
        real = next(iter(sorted(libc.glob(f"lib/*/{loader.name}"))))
        found[str(loader.relative_to(libc))] = real
    return found


def members(
    program: Path, entry: str, libraries: dict[str, archives.Source | str]
) -> dict[str, archives.Source | str]:
    """Files of an image with one program, what that loads, and an ordinary user."""
    found: dict[str, archives.Source | str] = {
        "etc/": b"",
        "etc/passwd": b"root:x:0:0:root:/:/none\nnobody:x:65534:65534:nobody:/:/none\n",
        "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
        "etc/nsswitch.conf": b"hosts: files dns\n",
    }
    found.update(libraries)
    found[entry] = program
    folders = {f"{parent}/" for path in found for parent in Path(path).parents if parent.name}
    return {**dict.fromkeys(sorted(folders), b""), **found}
