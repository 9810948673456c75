"""Debian packages: the machine's own, downloads, and the guests' small repository."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from pathlib import Path

from .base import LabError, cache, digest, locked, remove_tree, run, say, write

# What the machine needs to build and run the lab: package -> a file that proves it is there.
MACHINE = {
    "podman": "/usr/bin/podman",
    "runc": "/usr/sbin/runc",
    "netavark": "/usr/lib/podman/netavark",
    "conmon": "/usr/bin/conmon",
    "iptables": "/usr/sbin/iptables",
    "iproute2": "/usr/sbin/ip",
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "gnupg": "/usr/bin/gpg",
    "gpg-agent": "/usr/bin/gpg-agent",
    "openssl": "/usr/bin/openssl",
    "python3.11-venv": "/usr/lib/python3.11/ensurepip/__init__.py",
    "dpkg-dev": "/usr/bin/dpkg-source",
    "gcc": "/usr/bin/gcc",
    "libc6-dev": "/usr/include/stdlib.h",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
    "util-linux": "/usr/bin/nsenter",
}
# Only a build of Kubernetes from source needs these.
BUILD = {
    "golang-go": "/usr/bin/go",
    "make": "/usr/bin/make",
    "jq": "/usr/bin/jq",
    "rsync": "/usr/bin/rsync",
    "patch": "/usr/bin/patch",
    "xz-utils": "/usr/bin/xz",
    "which": "/usr/bin/which",
}
# What a cluster host installs from its distribution.
CLUSTER = ("haproxy", "keepalived", "iptables", "conntrack", "ipset", "socat", "ethtool")
# What it installs only where the cluster's file asks for it, or the site's own: no prepared host
# has it.
OPTIONAL = ("nftables", "firewalld", "zabbix-agent")


def release() -> str:
    """The machine's Debian code name; the guests run the same release."""
    found = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    name = found.get("VERSION_CODENAME", "").strip('"')
    if found.get("ID", "").strip('"') != "debian" or name != "bookworm":
        raise LabError(
            f"machine: /etc/os-release says {found.get('PRETTY_NAME', 'nothing')}, "
            "expected Debian 12 (bookworm); run the lab on a Debian 12 machine"
        )
    return name


def architecture() -> str:
    """The machine's Debian architecture, as upstream names it too (amd64, arm64)."""
    return run(["dpkg", "--print-architecture"]).stdout.strip()


def ensure(packages: dict[str, str]) -> None:
    """Install on the machine the packages whose files are missing."""

    def lacking() -> list[str]:
        return [name for name, proof in packages.items() if not Path(proof).exists()]

    if not lacking():
        return
    # Tests run side by side.
    with locked("packages.lock", "installation of packages"):
        missing = lacking()
        if not missing:
            return
        say(f"machine: install {' '.join(missing)}")
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "-q", "update"], step="machine: apt-get update", env=env)
        run(
            ["apt-get", "-qy", "install", "--no-install-recommends", *missing],
            step=f"machine: install {' '.join(missing)}",
            env=env,
        )


def one_line_sources(files: Iterable[tuple[str, str]]) -> list[str]:
    """The machine's binary package sources as one-line entries without their `deb` word.

    Args:
        files: (file name, text) of apt's source lists, both formats.

    Returns:
        such as `[signed-by=/usr/share/keyrings/x.gpg] http://mirror/debian bookworm main`.

    >>> one_line_sources([("a.list", "deb http://m/debian bookworm main # x")])
    ['http://m/debian bookworm main']
    """
    found: list[str] = []
    for name, text in files:
        if name.endswith(".sources"):
            for stanza in re.split(r"\n\s*\n", text):
                fields = _fields(stanza)
                if "deb" not in fields.get("types", "").split():
                    continue
                if fields.get("enabled", "yes").lower() in ("no", "false"):
                    continue
                signed = fields.get("signed-by", "")
                option = f"[signed-by={signed}] " if signed.startswith("/") else ""
                for uri in fields.get("uris", "").split():
                    for suite in fields.get("suites", "").split():
                        found.append(
                            f"{option}{uri} {suite} {fields.get('components', '')}".strip()
                        )
        else:
            for raw in text.splitlines():
                line = raw.split("#")[0].strip()
                if line.startswith("deb ") or line.startswith("deb\t"):
                    found.append(line[4:].strip())
    return found


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    key = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace() and key:
            fields[key] += " " + line.strip()
        elif ":" in line:
            key, value = line.split(":", 1)
            key = key.strip().lower()
            fields[key] = value.strip()
    return fields


def machine_sources() -> list[str]:
    """The entries of the machine's own apt lists that serve its Debian release."""
    lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    lists = [path for path in lists if path.suffix in (".list", ".sources") and path.is_file()]
    files = [(path.name, path.read_text()) for path in lists]
    name = release()
    wanted = {name, f"{name}-updates", f"{name}-security"}
    found = [
        line
        for line in one_line_sources(files)
        if wanted & set(re.sub(r"^\[[^]]*\]\s*", "", line).split()[1:2])
    ]
    if not found:
        raise LabError(
            f"machine: no source for {name} in /etc/apt/sources.list or sources.list.d; "
            "the lab takes its packages from where the machine takes its own: add one"
        )
    return found


def of_suite(lines: Iterable[str], suite: str) -> list[str]:
    """The same mirrors, for another suite of Debian.

    >>> of_suite(["[signed-by=/k] http://m/debian bookworm main", "http://m/s bookworm-security x"],
    ...          "trixie")
    ['[signed-by=/k] http://m/debian trixie main']
    """
    found = [re.sub(rf"(?<=\s){release()}(?=\s)", suite, line) for line in lines]
    return [new for old, new in zip(lines, found, strict=True) if new != old]


class Apt:
    """apt with its own lists and caches, so that the machine's configuration stays as it is.

    Args:
        status: the dpkg status file of the system that packages are wanted for.
        suite: of Debian, from the mirror of the machine's own; that one where none is named.
    """

    def __init__(self, status: Path | None = None, suite: str | None = None) -> None:
        self.home = cache("apt" if suite is None else f"apt-{suite}")
        lines = machine_sources()
        if suite is not None:
            lines = of_suite(lines, suite)
        write(
            self.home / "etc/sources.list",
            "".join(f"deb {line}\ndeb-src {line}\n" for line in lines),
        )
        for folder in ("lists/partial", "archives/partial", "etc/empty", "etc/preferences"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        settings = {
            "Dir::Etc::sourcelist": self.home / "etc/sources.list",
            "Dir::Etc::sourceparts": self.home / "etc/empty",
            "Dir::Etc::preferencesparts": self.home / "etc/preferences",
            "Dir::State::lists": self.home / "lists",
            "Dir::State::status": status or Path("/var/lib/dpkg/status"),
            "Dir::Cache::archives": self.home / "archives",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
        self.config = self.home / f"apt-{digest(text)}.conf"
        write(self.config, text)

    def __call__(self, *words: str, cwd: Path | None = None) -> str:
        return run(
            ["apt-get", "-q", *words],
            step=f"apt-get {' '.join(words[:3])}",
            cwd=cwd,
            env={"APT_CONFIG": str(self.config), "DEBIAN_FRONTEND": "noninteractive"},
        ).stdout

    def update(self) -> None:
        """Read the package lists."""
        self("update")

    def source(self, name: str, into: Path) -> Path:
        """Download and unpack a source package; the folder with its files."""
        work = into / f"{name}.src"
        work.mkdir(parents=True)
        self("source", "--download-only", name, cwd=work)
        descriptions = sorted(work.glob("*.dsc"))
        if not descriptions:
            raise LabError(f"apt source {name}: no .dsc came; is there a deb-src for it?")
        folder = into / name
        run(
            ["dpkg-source", "--no-check", "-x", descriptions[-1], folder],
            step=f"unpack the source of {name}",
        )
        return folder

    def packages(self, names: Sequence[str]) -> list[Path]:
        """Download packages and every dependency that the target system lacks.

        Returns:
            the .deb files, sorted.
        """
        folder = self.home / "archives"
        for old in folder.glob("*.deb"):
            old.unlink()
        self("install", "-y", "--no-install-recommends", "--download-only", *names)
        found = sorted(folder.glob("*.deb"))
        missing = [name for name in names if not list(folder.glob(f"{name}_*.deb"))]
        if missing:
            raise LabError(f"apt: no package came for {', '.join(missing)}")
        return found

    def single(self, names: Sequence[str]) -> dict[str, Path]:
        """Download these packages alone, without what they depend on."""
        folder = self.home / "single"
        folder.mkdir(exist_ok=True)
        for name in names:
            if not list(folder.glob(f"{name}_*.deb")):
                self("download", name, cwd=folder)
        return {name: sorted(folder.glob(f"{name}_*.deb"))[-1] for name in names}

    def older(self, package: Path) -> Path:
        """The newest release of a package before this one.

        Where the lists have none, it is the same package with another version written into it.
        """
        name, version = field(package, "Package"), field(package, "Version")
        lines = run(
            ["apt-cache", "madison", name],
            step=f"apt-cache madison {name}",
            env={"APT_CONFIG": str(self.config)},
        ).stdout.splitlines()
        # Those of sources are listed, too.
        listed = [line.split("|")[1].strip() for line in lines if line.endswith(" Packages")]
        before = [one for one in listed if earlier(one, version)]
        folder = self.home / "older"
        remove_tree(folder)
        folder.mkdir()
        if before:
            self("download", f"{name}={before[0]}", cwd=folder)
            return next(folder.glob(f"{name}_*.deb"))
        return restamped(package, f"{version}~lab1", folder)


def field(package: Path, name: str) -> str:
    """A field of a .deb's description."""
    return run(["dpkg-deb", "-f", package, name]).stdout.strip()


def earlier(one: str, other: str) -> bool:
    """Whether a version comes before another one, as dpkg orders them."""
    return run(["dpkg", "--compare-versions", one, "lt", other], check=False).returncode == 0


def restamped(package: Path, version: str, into: Path) -> Path:
    """The same package with another version written into its description.

    Args:
        package: the .deb.
        version: what the copy says of itself.
        into: the folder for it.
    """
    work = into / "work"
    run(["dpkg-deb", "-R", package, work])
    control = work / "DEBIAN/control"
    text = re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text())
    write(control, text)
    plain = version.replace(":", "_")
    target = into / f"{field(package, 'Package')}_{plain}_{field(package, 'Architecture')}.deb"
    run(["dpkg-deb", "--build", work, target], step=f"pack {target.name}")
    remove_tree(work)
    return target


def upstream_version(package: Path) -> str:
    """The upstream part of a .deb's version: 1.6.20~ds1-1+b3 is 1.6.20."""
    return plain_version(field(package, "Version"))


def plain_version(text: str) -> str:
    """The first dotted number of a version after its epoch and `really`.

    >>> plain_version("1.20.5+really1.20.2-1.1"), plain_version("1:3.4.23+dfsg-4")
    ('1.20.2', '3.4.23')
    """
    match = re.search(r"\d+(\.\d+)+", text.split("really")[-1])
    if not match:
        raise LabError(f"version: found {text!r}, expected something like 1.2.3")
    return match.group()


def unpack(package: Path, into: Path) -> Path:
    """Unpack a .deb's files into a fresh folder."""
    remove_tree(into)
    into.mkdir(parents=True)
    run(["dpkg-deb", "-x", package, into])
    return into


def signing_key() -> Path:
    """The public key of the guests' repository; its pair is made once and kept in the cache."""
    home = cache("gnupg")
    public = cache("gnupg", "indigo-lab.gpg")
    if not public.exists():
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        run(
            ["gpg", "--homedir", home, "--batch", "--passphrase", "", "--quick-generate-key",
             "Indigo lab <lab@indigo.invalid>", "ed25519", "sign", "never"],
            step="make the repository's signing key",
        )  # fmt: skip
        key = run(["gpg", "--homedir", home, "--batch", "--armor", "--export"]).stdout
        write(public.with_suffix(".asc"), key)
        run(["gpg", "--homedir", home, "--batch", "--yes", "--output", public, "--export"])
    return public


def repository(packages: Sequence[Path], into: Path) -> None:
    """Make a signed flat repository of .deb files (hard links where possible)."""
    into.mkdir(parents=True, exist_ok=True)
    wanted = {package.name.replace("%3a", "_"): package for package in packages}
    for old in into.glob("*.deb"):
        if old.name not in wanted:
            old.unlink()
    entries = []
    for name, package in sorted(wanted.items()):
        target = into / name
        data = package.read_bytes()
        if not target.exists() or target.stat().st_size != len(data):
            target.unlink(missing_ok=True)
            target.write_bytes(data)
        control = run(["dpkg-deb", "-f", package]).stdout.rstrip("\n")
        entries.append(
            f"{control}\nFilename: ./{name}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
    index = "\n".join(entries).encode()
    files = {"Packages": index, "Packages.gz": gzip.compress(index, mtime=0)}
    for name, data in files.items():
        (into / name).write_bytes(data)
    text = release_file(files, formatdate(usegmt=True))
    signed = run(
        ["gpg", "--homedir", cache("gnupg"), "--batch", "--clearsign", "--output", "-"],
        stdin=text,
        step="sign the repository",
    ).stdout
    write(into / "InRelease", signed)


def release_file(files: dict[str, bytes], date: str) -> str:
    """The Release text of a flat repository whose index files are given."""
    lines = ["Origin: Indigo lab", "Label: Indigo lab", "Suite: lab", f"Date: {date}", "SHA256:"]
    lines += [
        f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}"
        for name, data in sorted(files.items())
    ]
    return "\n".join(lines) + "\n"
