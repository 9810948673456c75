"""What a host is, for tests that say that nothing on it changed."""

from __future__ import annotations

from cluster import on_all
from indigo_lab.lab import Lab

#: Left out, and nothing else: what the Salt minion and systemd write while they are only asked.
#: `/proc`, `/sys`, `/dev` and `/run` are no files on a disk; units are compared by themselves.
_LEFT_OUT = (
    "/var/cache/salt",  # Salt's copies of modules and pillar: preflight brings them up to date
    "/var/log/salt",
    "/var/log/journal",
    "/etc/salt/pki/master",  # the Salt master notes when a key was last looked at
)

#: The disk, and the folders that the lab mounts from elsewhere.
_ROOTS = ("/", "/tmp", "/etc/salt", "/var/lib/containerd", "/var/lib/kubelet")

# Of every file: type, mode, owner, size, link target and the time of its last change of any kind,
# which no program can set. So an equal line means equal content, also of what is not read here.
# Where a deploy writes, content is compared as well.
_SCRIPT = f"""
set -eu
prune() {{ printf -- '-path %s -o ' {" ".join(_LEFT_OUT)}; }}
for root in {" ".join(_ROOTS)}; do
    find "$root" -xdev \\( $(prune) -false \\) -prune -o ! -type d \\
        -printf 'file %p %y %m %U %G %s %C@ %l\\n'
    find "$root" -xdev \\( $(prune) -false \\) -prune -o -type d -printf 'folder %p %m %U %G\\n'
done
find /etc /opt /root /home /srv /usr/local /var/lib /var/cache /var/log -xdev \\
    \\( $(prune) -false \\) -prune -o -type f -exec sha256sum {{}} + | sed 's/^/content /'
systemctl list-unit-files --no-legend --no-pager | sed 's/^/enabled /'
systemctl list-units --all --plain --no-legend --no-pager --type=service,socket,timer,path \\
    | awk '{{print "unit", $1, $2, $3, $4}}'
ip -o address | sed 's/^/address /; s/valid_lft.*//'
ip route | sed 's/^/route /'
sysctl -a 2>/dev/null | grep -E '^net\\.ipv4\\.(ip_|conf\\.)' | sed 's/^/sysctl /'
"""


def fingerprint(lab: Lab, host: str) -> set[str]:
    """Facts of one host, a line each: files, units, addresses, routes, sysctls."""
    done = lab.exec(host, ["sh", "-c", _SCRIPT], check=True, timeout=180)
    return set(done.stdout.splitlines())


def fingerprints(lab: Lab) -> dict[str, set[str]]:
    """The facts of every host."""
    return on_all(lab, lambda host: fingerprint(lab, host))


def differences(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, list[str]]:
    """By host, the facts that came (+) or went (-); empty when nothing changed."""
    found = {
        host: [f"- {line}" for line in sorted(before[host] - after[host])]
        + [f"+ {line}" for line in sorted(after[host] - before[host])]
        for host in before
        if host in after
    }
    return {host: lines for host, lines in found.items() if lines}
