"""The guests' disk: Debian with systemd and Python, and what only the lab adds to it."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import debian
from .base import cache, digest, remove_tree, run, say, write
from .topology import GATEWAY, MIRROR_URL

# A bare host. libseccomp2 serves Debian's runc and containerd, which upstream's
# archives would not need.
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "python3", "iproute2", "iputils-ping", "procps", "kmod",
    "mount", "netbase", "ca-certificates", "libseccomp2", "openssl",
)  # fmt: skip
VENV = "/opt/salt"  # where every guest sees the machine's Salt environment
MASKED = (
    "getty@.service", "getty.target", "console-getty.service", "serial-getty@.service",
    "systemd-logind.service", "systemd-modules-load.service", "proc-sys-fs-binfmt_misc.automount",
    "proc-sys-fs-binfmt_misc.mount", "systemd-binfmt.service", "systemd-remount-fs.service",
    "dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "systemd-udevd.service",
    "systemd-firstboot.service", "systemd-random-seed.service", "systemd-pstore.service",
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "fstrim.timer", "motd-news.timer", "systemd-tmpfiles-clean.timer", "e2scrub_reap.service",
)  # fmt: skip

HOST_UNIT = f"""\
[Unit]
Description=What a provisioned machine has before Salt comes
DefaultDependencies=no
Before=sysinit.target systemd-sysctl.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/mount --make-rshared /
ExecStart=/usr/sbin/ip route replace default via {GATEWAY} dev eth0
ExecStart=/bin/sh -c 'grep -q ^127.0.1.1 /etc/hosts || echo 127.0.1.1 $$(hostname) >> /etc/hosts'

[Install]
WantedBy=sysinit.target
"""


def _salt_unit(program: str, condition: str, after: str) -> str:
    # A minion's running job (which may be what restarts the minion) outlives it; a master's do not.
    kill = "process" if program == "salt-minion" else "control-group"
    return f"""\
[Unit]
Description=Salt {program.removeprefix("salt-")}
After=network.target {after}
ConditionPathExists={condition}

[Service]
Type=notify
NotifyAccess=all
ExecStart={VENV}/bin/python3 {VENV}/bin/{program}
Environment=LC_ALL=C.UTF-8
KillMode={kill}
Restart=always
RestartSec=1
TimeoutStartSec=120
TimeoutStopSec=3
LimitNOFILE=16384

[Install]
WantedBy=multi-user.target
"""


def files() -> dict[str, str]:
    """The files that the lab adds to Debian's, by path in the guest."""
    found = {
        "etc/machine-id": "",
        "etc/hostname": "localhost\n",
        "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        "etc/resolv.conf": "",  # nothing in the lab answers DNS: fail at once, do not wait
        "etc/fstab": "",
        "etc/apt/sources.list": "",
        "etc/apt/sources.list.d/indigo-lab.list": (
            f"deb [signed-by=/usr/share/keyrings/indigo-lab.gpg] {MIRROR_URL}/debian ./\n"
        ),
        # A guest writes the machine's kernel.* and vm.* settings, so only net.* stays of Debian's.
        "usr/lib/sysctl.d/50-default.conf": (
            "net.ipv4.conf.default.rp_filter = 2\nnet.ipv4.conf.*.rp_filter = 2\n"
            "-net.ipv4.conf.all.rp_filter\n"
        ),
        "etc/systemd/journald.conf.d/lab.conf": (
            "[Journal]\nReadKMsg=no\nForwardToConsole=no\nSystemMaxUse=64M\n"
        ),
        "etc/systemd/system/indigo-lab-host.service": HOST_UNIT,
        "etc/systemd/system/salt-minion.service": _salt_unit(
            "salt-minion", "/etc/salt/minion.d/lab.conf", "salt-master.service"
        ),
        "etc/systemd/system/salt-master.service": _salt_unit(
            "salt-master", "/etc/salt/pki/master", ""
        ),
    }
    for program in ("salt", "salt-run", "salt-call", "salt-key", "salt-cp"):
        found[f"usr/local/bin/{program}"] = (
            f'#!/bin/sh\nexec {VENV}/bin/python3 {VENV}/bin/{program} "$@"\n'
        )
    return found


def bare(arch: str) -> Path:
    """The rootfs of a bare host, built once."""
    key = debian.signing_key()
    name = digest(repr(PACKAGES), repr(MASKED), repr(sorted(files().items())), key.read_bytes())
    target = cache("rootfs", f"bare-{name}")
    if target.is_dir():
        return target
    say("rootfs: build the bare host with mmdebstrap (about a minute)")
    work = target.with_name(target.name + ".new")
    remove_tree(work)
    work.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"deb {line}" for line in debian.machine_sources()]
    run(
        ["mmdebstrap", "--mode=root", "--variant=minbase", f"--architectures={arch}",
         f"--include={','.join(PACKAGES)}", "--aptopt=Acquire::Languages none",
         "--aptopt=APT::Install-Recommends false", "--dpkgopt=force-unsafe-io",
         "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
         "--dpkgopt=path-exclude=/usr/share/locale/*", debian.release(), work, *lines],
        step="rootfs: mmdebstrap",
    )  # fmt: skip
    _finish(work, key)
    work.rename(target)
    return target


def _finish(root: Path, key: Path) -> None:
    for stale in [*root.glob("usr/lib/sysctl.d/*"), *root.glob("etc/sysctl.d/*")]:
        stale.unlink()
    for stale in root.glob("etc/apt/sources.list.d/*"):
        stale.unlink()
    for path, text in files().items():
        target = root / path
        target.unlink(missing_ok=True)
        write(target, text, 0o755 if path.startswith("usr/local/bin/") else 0o644)
    shutil.copyfile(key, root / "usr/share/keyrings/indigo-lab.gpg")
    units = root / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    for unit, target_unit in (
        ("indigo-lab-host.service", "sysinit.target"),
        ("salt-minion.service", "multi-user.target"),
        ("salt-master.service", "multi-user.target"),
    ):
        wants = units / f"{target_unit}.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit).symlink_to(f"/etc/systemd/system/{unit}")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for folder in ("opt/salt", "srv/indigo", "srv/indigo-site", "etc/salt", "var/lib/containerd",
                   "var/lib/kubelet", "srv/www"):  # fmt: skip
        (root / folder).mkdir(parents=True, exist_ok=True)


def prepared(base: Path, packages: list[Path]) -> Path:
    """The rootfs of a prepared host: the bare one with the cluster's packages, services off."""
    target = prepared_path(base, packages)
    if target.is_dir():
        return target
    say("rootfs: add the packages of a prepared host")
    work = target.with_name(target.name + ".new")
    remove_tree(work)
    run(["cp", "-a", base, work], step="rootfs: copy the bare host")
    write(work / "usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    debs = work / "var/cache/apt/archives"
    for package in packages:
        shutil.copy(package, debs / package.name)
    run(
        ["chroot", work, "sh", "-c", "dpkg -i /var/cache/apt/archives/*.deb"],
        step="rootfs: install the packages of a prepared host",
        env={"DEBIAN_FRONTEND": "noninteractive", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    for service in ("haproxy", "keepalived"):
        run(["chroot", work, "systemctl", "disable", "-q", service], step=f"disable {service}")
    for package in packages:
        (debs / package.name).unlink()
    (work / "usr/sbin/policy-rc.d").unlink()
    write(work / "etc/machine-id", "")
    for stale in [*work.glob("usr/lib/sysctl.d/*"), *work.glob("etc/sysctl.d/*")]:
        if stale.name != "50-default.conf":
            stale.unlink()
    work.rename(target)
    return target


def prepared_path(base: Path, packages: list[Path]) -> Path:
    """Where the rootfs of a prepared host lies, built or not."""
    name = digest(base.name, *[package.name for package in packages])
    return cache("rootfs", f"prepared-{name}")


def prune(keep: set[Path]) -> None:
    """Remove the rootfs folders of earlier versions of the lab from the cache."""
    for folder in cache("rootfs").iterdir():
        if folder not in keep:
            say(f"rootfs: remove the outdated {folder.name}")
            remove_tree(folder)
