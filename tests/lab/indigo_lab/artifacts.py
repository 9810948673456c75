"""What the mirror serves: upstream's archives, images, the guests' package repository.

The folder is laid out as `wget -x` would: <upstream host>/<upstream path>.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import archives, containers, debian, kubernetes, wheels
from .base import LabError, cache, digest, remove_tree, run, say, sha256, write
from .topology import MIRROR_URL

# Images of add-ons that `--images` may bring, by the end of their names.
ADDONS = (
    "coredns",
    "metrics-server",
    "prometheus",
    "node-exporter",
    "influxdb",
    "traefik",
    "alertmanager",
    "grafana",
    "headlamp",
    "fluent-bit",
    "elasticsearch",
    "kibana",
    "cinder-csi-plugin",
    "csi-attacher",
    "csi-provisioner",
    "csi-resizer",
    "csi-snapshotter",
    "csi-node-driver-registrar",
    "livenessprobe",
    "openstack-cloud-controller-manager",
    "zabbix-server-pgsql",
    "zabbix-web-nginx-pgsql",
    "postgres",
    "im",
    "kube-state-metrics",
    "kapel",
    "ssm",
)
IMAGES = Path(__file__).resolve().parents[1] / "images"
# component -> path on the upstream host, as the tree's artifacts.py asks for it
UPSTREAM = {
    "kubernetes": "dl.k8s.io/v{version}/bin/linux/{arch}/{name}",
    "etcd": "github.com/etcd-io/etcd/releases/download/v{version}/"
    "etcd-v{version}-linux-{arch}.tar.gz",
    "containerd": "github.com/containerd/containerd/releases/download/v{version}/"
    "containerd-{version}-linux-{arch}.tar.gz",
    "runc": "github.com/opencontainers/runc/releases/download/v{version}/runc.{arch}",
    "cni-plugins": "github.com/containernetworking/plugins/releases/download/v{version}/"
    "cni-plugins-linux-{arch}-v{version}.tgz",
}
_DEBS = {
    "etcd-server": "etcd",
    "etcd-client": "etcd",
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "cni-plugins",
    "busybox-static": "web",
}


@dataclass
class Published:
    """What lies in the docroot.

    Attributes:
        versions: component -> the version that this lab's cluster runs.
        checksums: component -> version -> architecture -> "sha256:…" (kubernetes: per binary).
        images: name, source (URL) and hash of each image archive.
        use: name of an add-on's image in the project's table -> the image that stands for it here.
    """

    versions: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, dict[str, dict[str, str | dict[str, str]]]] = field(default_factory=dict)
    images: list[dict[str, str]] = field(default_factory=list)
    use: dict[str, str] = field(default_factory=dict)


class Docroot:
    """The mirror's folder; files come in whole, by rename.

    Args:
        root: the folder.
        arch: Debian's (and upstream's) name of the architecture.
    """

    def __init__(self, root: Path, arch: str) -> None:
        self.root, self.arch = root, arch
        self.published = Published()
        self._sums_file = root.with_name(root.name + ".sums.json")
        self._sums: dict[str, list[object]] = (
            json.loads(self._sums_file.read_text()) if self._sums_file.exists() else {}
        )

    def sum(self, path: Path) -> str:
        """`sha256:…` of a file, remembered while its size and time of change stay."""
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = self._sums.get(str(path))
        if not known or known[:2] != stamp:
            known = self._sums[str(path)] = [*stamp, sha256(path)]
        return f"sha256:{known[2]}"

    def save(self) -> None:
        """Remember the checksums."""
        write(self._sums_file, json.dumps(self._sums))

    def put(self, where: str, source: Path | bytes) -> Path:
        """Place a file under its path in the docroot: a hard link to what the cache holds."""
        target = self.root / where
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path) and target.exists():
            old, new = target.stat(), source.stat()
            if (old.st_size, old.st_mtime_ns) == (new.st_size, new.st_mtime_ns):
                return target
        temporary = target.with_name(target.name + ".new")
        temporary.unlink(missing_ok=True)
        if isinstance(source, bytes):
            if target.exists() and target.read_bytes() == source:
                return target
            temporary.write_bytes(source)
        elif source.is_relative_to(cache()):
            os.link(source, temporary)
        else:  # a file of the user's may change under us: copy
            shutil.copy2(source, temporary)
        temporary.replace(target)
        return target

    def component(self, name: str, version: str, source: Path | bytes) -> None:
        """Publish one archive (or plain binary) of a component and note its checksum."""
        where = UPSTREAM[name].format(version=version, arch=self.arch)
        total = self.sum(self.put(where, source))
        self.published.versions[name] = version
        self.published.checksums.setdefault(name, {})[version] = {self.arch: total}

    def kubernetes(self, folder: Path) -> str:
        """Publish the six binaries of a release and note their checksums; the release."""
        version = kubernetes.version(folder)
        sums: dict[str, str] = {}
        for name in kubernetes.BINARIES:
            where = UPSTREAM["kubernetes"].format(version=version, arch=self.arch, name=name)
            sums[name] = self.sum(self.put(where, folder / name))
        self.published.versions["kubernetes"] = version
        self.published.checksums.setdefault("kubernetes", {})[version] = {self.arch: sums}
        return version

    def image(self, name: str, archive: bytes | Path, reference: str) -> None:
        """Publish an image archive; a later one of the same reference stands for it."""
        path = self.put(f"images/{name}.tar", archive)
        self.published.images = [i for i in self.published.images if i["name"] != reference]
        self.published.images.append(
            {
                "name": reference,
                "source": f"{MIRROR_URL}/images/{name}.tar",
                "hash": self.sum(path),
            }
        )


def publish(
    arch: str,
    *,
    kubernetes_from: str | None = None,
    etcd_from: str | None = None,
    containerd_from: str | None = None,
    images_from: str | None = None,
) -> Docroot:
    """Fill the docroot with all that the hosts download, but the package repository."""
    docroot = Docroot(cache("www"), arch)
    docroot.kubernetes(kubernetes.binaries(kubernetes_from))
    files = _unpacked()
    _etcd(docroot, etcd_from, files)
    _containerd(docroot, containerd_from, files)
    plugins = files / "containernetworking-plugins/usr/lib/cni"
    version = (files / "containernetworking-plugins.version").read_text()
    _archive(docroot, "cni-plugins", version, {f"./{p.name}": p for p in sorted(plugins.iterdir())})
    _images(docroot, files / "busybox-static/bin/busybox", images_from)
    docroot.save()
    return docroot


def publish_newer(arch: str, suite: str = "trixie", patch: int = 9) -> Published:
    """Put what an upgrade can go to into the mirror, beside what `publish` put there.

    etcd 3.5 and containerd 1.7 of a newer suite of Debian, and the Kubernetes binaries once more,
    stamped as another patch, see `kubernetes.restamped`.

    Args:
        arch: Debian's name of the architecture.
        suite: of Debian.
        patch: which patch the Kubernetes binaries say.

    Returns:
        versions and checksums, for a cluster's file.
    """
    docroot = Docroot(cache("www"), arch)
    docroot.kubernetes(kubernetes.restamped(kubernetes.binaries(None), patch))
    files = _unpacked()
    _etcd(docroot, _DEBIAN + suite, files)
    _containerd(docroot, _DEBIAN + suite, files)
    docroot.save()
    return docroot.published


def publish_older(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Put an older release of packages into the guests' repository, beside what is there.

    apt chooses the newest where no version is asked for: other labs do not notice.

    Args:
        names: of packages that the repository has.

    Returns:
        the older and the usual version of each.
    """
    folder = cache("www", "debian")
    apt = debian.Apt()
    found: dict[str, tuple[str, str]] = {}
    for name in names:
        there = {debian.field(path, "Version"): path for path in folder.glob(f"{name}_*.deb")}
        usual = max(there, key=functools.cmp_to_key(lambda a, b: -1 if debian.earlier(a, b) else 1))
        if len(there) == 1:
            apt.update()
            package = apt.older(there[usual])
            there[debian.field(package, "Version")] = package
            debian.repository([*folder.glob("*.deb"), package], folder)
        (older,) = set(there) - {usual}
        found[name] = (older, usual)
    return found


def _unpacked() -> Path:
    """The files of Debian's packages that upstream's archives are made of, unpacked once."""
    target = cache("packages-" + debian.release())
    if target.is_dir():
        return target
    say("artifacts: download etcd, containerd, runc, CNI plugins from Debian")
    apt = debian.Apt()
    apt.update()
    work = target.with_name(target.name + ".new")
    remove_tree(work)
    for name, package in apt.single(list(_DEBS)).items():
        debian.unpack(package, work / name)
        (work / f"{name}.version").write_text(debian.upstream_version(package))
    work.rename(target)
    return target


# What `debian:SUITE` in place of a folder brings: packages whose programs run on bookworm as they
# are. runc of newer suites does not (it wants their C library): bookworm's serves containerd 2 too.
_OF_SUITE = {"etcd": ("etcd-server", "etcd-client"), "containerd": ("containerd",)}
_DEBIAN = "debian:"


def of_suite(name: str, suite: str) -> Path:
    """A folder with etcd's or containerd's programs of another suite of Debian, for its option.

    etcd is 3.4 in bookworm, 3.5 with etcdutl in trixie and sid; containerd 1.6, 1.7 and 2.

    Args:
        name: `etcd` or `containerd`.
        suite: such as `trixie`.
    """
    if not re.fullmatch(r"[a-z][a-z-]*", suite):
        raise LabError(f"--{name} {_DEBIAN}{suite}: expected a suite of Debian, such as trixie")
    target = cache(f"{name}-{suite}")
    if target.is_dir():
        return target
    say(f"artifacts: download {name} of Debian {suite}")
    apt = debian.Apt(suite=None if suite == debian.release() else suite)
    apt.update()
    work = target.with_name(target.name + ".new")
    remove_tree(work)
    work.mkdir()
    for package, file in apt.single(_OF_SUITE[name]).items():
        unpacked = debian.unpack(file, work.with_name(f"{work.name}-{package}"))
        for program in (unpacked / "usr/bin").iterdir():
            program.rename(work / program.name)
        remove_tree(unpacked)
    work.rename(target)
    return target


def folder_of(name: str, place: str) -> Path:
    """The folder that `--etcd` or `--containerd` names: its path, or `debian:SUITE`."""
    if place.startswith(_DEBIAN):
        return of_suite(name, place.removeprefix(_DEBIAN))
    return Path(place).resolve()


def _archive(
    docroot: Docroot, name: str, version: str, members: dict[str, archives.Source | str]
) -> None:
    """Pack and publish an archive unless the same files were packed before."""
    stamp = digest(
        *(
            f"{where} {source.stat().st_size} {source.stat().st_mtime_ns}"
            if isinstance(source, Path)
            else f"{where} {source!r}"
            for where, source in members.items()
        )
    )
    packed = cache("archives", f"{name}-{version}-{docroot.arch}-{stamp}.tar.gz")
    if not packed.exists():
        packed.parent.mkdir(parents=True, exist_ok=True)
        temporary = packed.with_name(packed.name + ".new")
        temporary.write_bytes(archives.tgz(members))
        temporary.rename(packed)
    docroot.component(name, version, packed)


def _said_version(program: Path, option: str) -> str:
    said = run([program, "--version"], step=f"{option}: ask {program} for its version").stdout
    match = re.search(r"\d+\.\d+\.\d+", said)
    if not match:
        raise LabError(f"{option}: {program} --version: found {said!r}, expected a version")
    return match.group()


def find(folder: Path, name: str) -> Path | None:
    """A program in a folder, or where packages and archives have it there."""
    for place in (folder / name, folder / "bin" / name, folder / "usr/bin" / name,
                  folder / "sbin" / name, folder / "usr/sbin" / name):  # fmt: skip
        if place.is_file():
            return place
    return None


def _etcd(docroot: Docroot, given: str | None, files: Path) -> None:
    programs: dict[str, Path] = {}
    if given:
        folder = folder_of("etcd", given)
        for name in ("etcd", "etcdctl", "etcdutl"):
            if found := find(folder, name):
                programs[name] = found
        if not {"etcd", "etcdctl"} <= set(programs):
            raise LabError(f"--etcd {given}: expected etcd and etcdctl there (or in bin/)")
        version = _said_version(programs["etcd"], "--etcd")
    else:
        programs = {
            "etcd": files / "etcd-server/usr/bin/etcd",
            "etcdctl": files / "etcd-client/usr/bin/etcdctl",
        }
        version = (files / "etcd-server.version").read_text()
    top = f"etcd-v{version}-linux-{docroot.arch}"
    members: dict[str, archives.Source | str] = {f"{top}/": b""}
    members.update({f"{top}/{name}": path for name, path in programs.items()})
    _archive(docroot, "etcd", version, members)


def _containerd(docroot: Docroot, given: str | None, files: Path) -> None:
    folder = folder_of("containerd", given) if given else files / "containerd"
    names = ("containerd", "containerd-shim-runc-v2", "ctr", "containerd-shim-runc-v1",
             "containerd-shim", "containerd-stress")  # fmt: skip
    programs = {name: found for name in names if (found := find(folder, name))}
    missing = [name for name in names[:3] if name not in programs]
    if missing:
        raise LabError(f"--containerd {given}: missing {', '.join(missing)} there (or in bin/)")
    version = (
        _said_version(programs["containerd"], "--containerd")
        if given
        else (files / "containerd.version").read_text()
    )
    members: dict[str, archives.Source | str] = {"bin/": b""}
    members.update({f"bin/{name}": path for name, path in programs.items()})
    _archive(docroot, "containerd", version, members)
    brought = find(folder, "runc") if given else None
    if brought:
        docroot.component("runc", _said_version(brought, "--containerd"), brought)
    else:
        version = (files / "runc.version").read_text()
        docroot.component("runc", version, files / "runc/usr/sbin/runc")


def _images(docroot: Docroot, busybox: Path, given: str | None) -> None:
    arch = docroot.arch
    pause = archives.tar({"pause": _pause()})
    docroot.image(
        "pause",
        archives.docker_archive("indigo.lab/pause:1", pause, arch=arch, command=["/pause"]),
        "indigo.lab/pause:1",
    )
    applets = run([busybox, "--list"], step="ask busybox for its applets").stdout.split()
    layer: dict[str, archives.Source | str] = {"bin/": b"", "bin/busybox": busybox}
    layer.update({f"bin/{name}": "busybox" for name in applets if name != "busybox"})
    layer.update({"tmp/": b"", "etc/": b"", "start": (IMAGES / "web/start").read_bytes()})
    docroot.image(
        "web",
        archives.docker_archive(
            "indigo.lab/web:1",
            archives.tar(layer),
            arch=arch,
            command=["/start"],
            ports=["8080/tcp"],
        ),
        "indigo.lab/web:1",
    )
    minor = int(docroot.published.versions["kubernetes"].split(".")[1])
    images = {**containers.built(arch), **wheels.built(arch, minor)}
    for name, (reference, archive) in images.items():
        docroot.image(archive.stem, archive, reference)
        docroot.published.use[name] = reference
    if given is None:
        return
    folder = Path(given).resolve()
    found = sorted(folder.glob("*.tar"))
    if not found:
        raise LabError(f"--images {given}: no *.tar there; expected docker archives")
    for path in found:
        names = archives.references(path)
        if not names:
            raise LabError(f"--images: {path} names no image (manifest.json without RepoTags)")
        for name in names:
            docroot.image(f"extra/{path.stem}", path, name)
            known = name.rsplit("/", 1)[-1].partition(":")[0]
            if known in ADDONS:
                docroot.published.use[known] = name


def _pause() -> bytes:
    """The pause program, compiled statically, the same bytes on every run."""
    source = IMAGES / "pause/pause.c"
    built = cache("archives", f"pause-{digest(source.read_bytes())}")
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as work:
            program = Path(work, "pause")
            run(
                ["gcc", "-Os", "-static", "-s", "-Wl,--build-id=none", "-o", program, source.name],
                step="compile the pause image",
                cwd=source.parent,
            )
            program.rename(built)
    return built.read_bytes()
