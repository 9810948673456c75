"""Images of the service Zabbix, made of Debian's packages, for the test that asks for them.

They are hundreds of megabytes, so `lab up` does not make them. Each is the unpacked files of some
packages and of all that those depend on; nothing of them is configured.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import archives, artifacts, debian
from .base import REPO, LabError, cache, digest, remove_tree, run, say, write

START = REPO / "tests/lab/images/zabbix/start"
SHELL = ("dash", "coreutils", "sed", "grep", "gzip", "libc-bin", "base-files")
POSTGRES = "/usr/lib/postgresql/15/bin"


@dataclass(frozen=True)
class Root:
    """An image.

    Attributes:
        name: in the project's table of images.
        packages: Debian's; the first gives it its version.
        command: what the image starts.
        without: of what they bring, what nothing here uses.
    """

    name: str
    packages: tuple[str, ...]
    command: str
    without: tuple[str, ...] = ()


#: Of no use to a program.
_NEVER = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/perl",
          "usr/share/perl5", "usr/lib/*/perl", "usr/lib/*/perl-base", "var/lib/dpkg",
          "usr/share/zoneinfo/right", "usr/share/zoneinfo/posix", "usr/bin/perl*")  # fmt: skip
ROOTS = (
    Root(
        "postgres",
        ("postgresql-15", *SHELL, "tzdata"),
        f"{POSTGRES}/postgres",
        # Its compiler, which is off here and larger than all else.
        ("usr/lib/*/libLLVM*", "usr/lib/postgresql/15/lib/bitcode", "usr/lib/llvm*"),
    ),
    Root(
        "zabbix-server-pgsql",
        ("zabbix-server-pgsql", "postgresql-client-15", *SHELL, "tzdata"),
        "/usr/sbin/zabbix_server",
        ("usr/lib/*/libLLVM*",),
    ),
    Root(
        "zabbix-web-nginx-pgsql",
        (
            "zabbix-frontend-php",
            "php8.2-fpm",
            "php8.2-pgsql",
            "nginx-light",
            "locales",
            *SHELL,
            "tzdata",
        ),
        "/start",
        ("usr/lib/*/libLLVM*",),
    ),
)
USERS = (
    "root:x:0:0:root:/:/none\npostgres:x:999:999::/:/none\nzabbix:x:1997:1995::/:/none\n"
    "nobody:x:65534:65534:nobody:/:/none\n"
)
GROUPS = "root:x:0:\npostgres:x:999:\nzabbix:x:1995:\nnogroup:x:65534:\n"


def published(arch: str) -> artifacts.Published:
    """Put the images into the lab's mirror: what a cluster's file says of them.

    Args:
        arch: Debian's name of the architecture.
    """
    docroot = artifacts.Docroot(cache("www"), arch)
    for name, (reference, archive) in built(arch).items():
        docroot.image(archive.stem, archive, reference)
        docroot.published.use[name] = reference
    docroot.save()
    return docroot.published


def built(arch: str) -> dict[str, tuple[str, Path]]:
    """The images, built once: name in the table -> reference, archive."""
    spec = digest(Path(__file__).read_bytes(), START.read_bytes(), arch)
    index = cache("archives", f"zabbix-{debian.release()}-{spec}.json")
    if index.exists():
        known = {
            name: (ref, Path(path)) for name, (ref, path) in json.loads(index.read_text()).items()
        }
        if all(path.exists() for _, path in known.values()):
            return known
    say("images: build Zabbix and PostgreSQL from Debian's packages")
    # Nothing is installed there, so every dependency comes.
    status = cache("archives", "nothing-installed")
    write(status, "")
    apt = debian.Apt(status=status)
    apt.update()
    found = {}
    for one in ROOTS:
        found[one.name] = _built(one, apt, arch)
    write(index, json.dumps({name: (ref, str(path)) for name, (ref, path) in found.items()}))
    return found


def _built(one: Root, apt: debian.Apt, arch: str) -> tuple[str, Path]:
    root = cache("archives", f"{one.name}.root")
    remove_tree(root)
    root.mkdir(parents=True)
    version = ""
    for package in apt.packages(one.packages):
        if package.name.startswith(f"{one.packages[0]}_"):
            version = debian.upstream_version(package)
        run(["dpkg-deb", "-x", package, root], step=f"unpack {package.name}")
    for pattern in (*_NEVER, *one.without):
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    _settled(one, root)
    reference = f"indigo.lab/{one.name}:{version}"
    layer = archives.tar(_members(root))
    archive = cache("archives", f"image-{one.name}-{version}-{arch}-{digest(layer)}.tar")
    archive.write_bytes(
        archives.docker_archive(
            reference,
            layer,
            arch=arch,
            command=[one.command],
            env=[f"PATH={POSTGRES}:/usr/sbin:/usr/bin:/sbin:/bin"],
        )
    )
    remove_tree(root)
    return reference, archive


def _settled(one: Root, root: Path) -> None:
    """What the packages' scripts would do, and what stands where upstream's image has it."""
    for path, text in {"etc/passwd": USERS, "etc/group": GROUPS}.items():
        write(root / path, text)
    for folder in ("tmp", "run", "data", "indigo", "etc/zabbix", "etc/nginx", "var/lib/nginx",
                   "var/lib/php"):  # fmt: skip
        (root / folder).mkdir(parents=True, exist_ok=True)
    if one.name == "zabbix-server-pgsql":
        sql = root / "usr/share/zabbix-server-pgsql"
        into = root / "usr/share/doc/zabbix-server-postgresql/create.sql.gz"
        into.parent.mkdir(parents=True)
        # Members of gzip one after the other are one stream.
        parts = [sql / f"{part}.sql.gz" for part in ("schema", "images", "data")]
        into.write_bytes(b"".join(part.read_bytes() for part in parts))
    if one.name == "zabbix-web-nginx-pgsql":
        shutil.copyfile(START, root / "start")
        # The front end complains on every page of a language without its locale.
        sources, into = root / "usr/share/i18n", root / "usr/lib/locale/en_US.utf8"
        into.parent.mkdir(exist_ok=True)
        run(
            ["localedef", "--no-archive", "--inputfile=en_US", "--charmap=UTF-8", into],
            step="make the locale en_US.UTF-8",
            env={"I18NPATH": str(sources)},
        )
        remove_tree(sources)


def _members(root: Path) -> dict[str, archives.Source | str]:
    """All files of a folder, in a fixed order, links as they are."""
    found: dict[str, archives.Source | str] = {}
    for folder, names, files in os.walk(root):
        names.sort()
        for name in sorted([*names, *files]):
            path = Path(folder, name)
            inside = str(path.relative_to(root))
            if path.is_symlink():
                found[inside] = os.readlink(path)
            elif path.is_dir():
                found[f"{inside}/"] = b""
            elif path.is_file():
                found[inside] = path
            else:
                raise LabError(f"{path}: expected a file, a folder or a link")
    return found
