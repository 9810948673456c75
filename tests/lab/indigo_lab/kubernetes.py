"""The Kubernetes binaries: built from Debian's source package, or brought from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from . import debian
from .base import LabError, cache, digest, remove_tree, run, say

BINARIES = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
    "kubectl",
)  # fmt: skip
_REFLECT = "github.com/modern-go/reflect2"


def binaries(given: str | None) -> Path:
    """A folder with the six binaries of one release.

    Args:
        given: a folder, a URL under which they lie, or None for Debian's source package.

    Raises:
        LabError: a binary is missing, or the build failed (the message holds the log's end).
    """
    if given is None:
        return _debian()
    if re.match(r"https?://", given):
        return _download(given.rstrip("/"))
    folder = Path(given).resolve()
    missing = [name for name in BINARIES if not (folder / name).is_file()]
    if missing:
        raise LabError(
            f"--kubernetes {given}: missing {', '.join(missing)}; "
            f"expected the plain binaries {', '.join(BINARIES)}"
        )
    return folder


def version(folder: Path) -> str:
    """The release of the binaries, as their kubelet says."""
    program = folder / "kubelet"
    said = run([program, "--version"], step=f"ask {program} for its version").stdout
    match = re.search(r"v(\d+\.\d+\.\d+[^\s]*)", said)
    if not match:
        raise LabError(f"{program} --version: found {said!r}, expected `Kubernetes v1.2.3`")
    return match.group(1)


def restamped(folder: Path, patch: int) -> Path:
    """The same programs, saying another patch of their release: what a build would stamp.

    The version is a text that the linker puts into a program; one of the same length is put in its
    place, so nothing else differs from a build with that version. It stands for a patch release
    where none can be had: it shows the way of an upgrade, and says nothing of that release.

    Args:
        folder: with the six binaries.
        patch: the patch number, with as many digits as theirs.
    """
    old = version(folder)
    new = f"{old.rpartition('.')[0]}.{patch}"
    if len(new) != len(old):
        raise LabError(f"patch {patch}: expected as many digits as the last number of {old} has")
    target = cache("kubernetes", f"{folder.name}-says-{new}")
    if target.is_dir():
        return target
    work = Path(tempfile.mkdtemp(prefix=".restamp-", dir=target.parent))
    for name in BINARIES:
        data = (folder / name).read_bytes()
        (work / name).write_bytes(data.replace(f"v{old}".encode(), f"v{new}".encode()))
        (work / name).chmod(0o755)
    found = version(work)
    if found != new:
        remove_tree(work)
        raise LabError(f"{folder}: the programs say {found} where {new} was put in")
    work.rename(target)
    return target


def _download(url: str) -> Path:
    target = cache("kubernetes", f"url-{digest(url)}")
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".download-", dir=target.parent))
    for name in BINARIES:
        say(f"kubernetes: download {url}/{name}")
        try:
            with (
                urllib.request.urlopen(f"{url}/{name}") as answer,
                (work / name).open("wb") as file,
            ):
                shutil.copyfileobj(answer, file, 1 << 20)
        except (OSError, urllib.error.URLError) as exc:
            remove_tree(work)
            raise LabError(
                f"--kubernetes {url}: {name}: {exc}; expected the plain binaries under that URL"
            ) from exc
        (work / name).chmod(0o755)
    work.rename(target)
    return target


def _debian() -> Path:
    """Debian's source package with its crash under newer Go mended, built once.

    The vendored modern-go/reflect2 1.0.1 dereferences nil in reflect.mapiterinit when it is built
    with Go 1.18 or newer (github.com/modern-go/reflect2 issue 24); Debian packages the mended
    1.0.2.
    """
    target = cache("kubernetes", "debian-" + debian.release())
    if target.is_dir():
        return target
    debian.ensure(debian.BUILD)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(".build-*"):  # of a build that was killed
        remove_tree(left)
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=target.parent))
    say("kubernetes: download Debian's source packages")
    apt = debian.Apt()
    apt.update()
    source = apt.source("kubernetes", work)
    mended = apt.source("golang-github-modern-go-reflect2", work)
    vendored = source / "vendor" / _REFLECT
    for folder, act in ((vendored, "remove"), (mended, "copy")):
        for file in [*folder.glob("*.go"), *folder.glob("*.s")]:
            if act == "remove":
                file.unlink()
            elif not file.name.endswith("_test.go"):
                shutil.copy(file, vendored / file.name)
    log = cache("kubernetes", "build.log")
    say(f"kubernetes: build from source (4-6 minutes on 2 cores; log: {log})")
    run(
        ["make", "WHAT=" + " ".join(f"cmd/{name}" for name in BINARIES)],
        step="kubernetes: build",
        cwd=source,
        env={
            "CGO_ENABLED": "0",  # static, as upstream's release of the servers is
            "GOFLAGS": "-mod=vendor",
            "GOPROXY": "off",
            "GOCACHE": str(work / "go-cache"),
            "HOME": str(work),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        },
        log=log,
    )
    built = work / "bin"
    built.mkdir()
    for name in BINARIES:
        shutil.copy(source / "_output/bin" / name, built / name)
    check = version(built)
    for name in BINARIES:
        with (built / name).open("rb") as done:
            os.fsync(done.fileno())
    built.rename(target)
    run(["chmod", "-R", "u+w", work])
    remove_tree(work)
    say(f"kubernetes: built {check}")
    return target
