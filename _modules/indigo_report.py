"""What a host puts into ``salt-run indigo.report``: what it runs, how, and what it said of late.

Secrets never leave the host: every value that its own files of secrets hold is taken out of every
text, wherever it stands, and so is what looks like a secret of someone else.
"""

from __future__ import annotations

import base64
import glob
import json
import re
import subprocess
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: What a text is cut to, from its end, in characters.
LONGEST = 200_000

#: Lines of the journal of each unit.
LINES = 400

REMOVED = "[removed]"

#: Files with a token or keys, each as a whole or in lines, as shell patterns.
SECRETS = (
    "/etc/kubernetes/tokens/*",
    "/etc/kubernetes/tokens.csv",
    "/etc/kubernetes/tokens.set",
    "/etc/kubernetes/encryption.yaml",
    "/etc/kubernetes/openstack.secret",
    "/etc/kubernetes/pki/*.key",
    "/etc/etcd/pki/*.key",
    "/etc/indigo/ca/*/*.key",
    "/etc/salt/pki/minion/*.pem",
    "/etc/salt/pki/master/*.pem",
)

#: Files that are put in, as shell patterns. None holds a secret by itself.
FILES = (
    "/etc/containerd/config.toml",
    "/etc/cni/net.d/*",
    "/etc/etcd/initial.env",
    "/etc/firewalld/policies/indigo-*.xml",
    "/etc/haproxy/haproxy.cfg",
    "/etc/hosts",
    "/etc/indigo/firewall/rules.nft",
    "/etc/keepalived/keepalived.conf",
    "/etc/kubernetes/audit-policy.yaml",
    "/etc/kubernetes/authentication.yaml",
    "/etc/kubernetes/kube-proxy.yaml",
    "/etc/kubernetes/kubelet.yaml",
    "/etc/os-release",
    "/etc/resolv.conf",
    "/etc/sysctl.d/90-indigo-*.conf",
    "/proc/meminfo",
    "/proc/pressure/*",
)

COMMANDS = {
    "kernel": ["uname", "-a"],
    "uptime": ["uptime"],
    "disks": ["df", "-h"],
    "addresses": ["ip", "address"],
    "routes": ["ip", "route", "show", "table", "all"],
    "sockets": ["ss", "-lntupw"],
    "failed-units": ["systemctl", "--failed", "--no-pager", "--plain"],
    "time": ["timedatectl", "show"],
    "rules.nft": ["nft", "list", "table", "inet", "indigo"],
}
#: On masters, from their own API server.
KUBERNETES = {
    "nodes": ["get", "nodes", "-o", "wide"],
    "pods": ["get", "pods", "--all-namespaces", "-o", "wide"],
    "services": ["get", "services", "--all-namespaces", "-o", "wide"],
    "leases": ["get", "leases", "-n", "kube-system"],
    "events": ["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
}


def __virtual__() -> str:
    return "indigo_report"


def collect() -> dict[str, str]:
    """Texts about this host by file name, without secrets; changes nothing.

    CLI Example:

    .. code-block:: bash

        salt node1 indigo_report.collect
    """
    view = __pillar__.get("indigo", {})
    texts: dict[str, str] = {"pillar.json": json.dumps(view, indent=1, sort_keys=True)}
    texts["status.json"] = _status()
    for name, command in COMMANDS.items():
        texts[f"commands/{name}"] = _run(command)
    for unit in [*__salt__["indigo_status.units"](view.get("roles", [])), "salt-minion"]:
        texts[f"units/{unit}"] = _run(["systemctl", "cat", "--no-pager", unit])
        show = ["systemctl", "show", "--no-pager", unit]
        texts[f"units/{unit}.properties"] = _run(show)
        journal = ["journalctl", "--no-pager", "-o", "short-iso", "-n", str(LINES), "-u", unit]
        texts[f"journal/{unit}"] = _run(journal)
    if "master" in view.get("roles", []):
        kubectl = ["/usr/local/bin/kubectl", "--kubeconfig=/etc/kubernetes/admin.kubeconfig"]
        for name, words in KUBERNETES.items():
            texts[f"kubernetes/{name}"] = _run([*kubectl, "--request-timeout=10s", *words])
    for path in _found(FILES):
        texts[f"files{path}"] = _read(path)
    minion = str(__opts__.get("log_file", "/var/log/salt/minion"))
    texts["journal/salt-minion.log"] = "\n".join(_read(minion).splitlines()[-LINES:])
    known = secrets_in(_read(path) for path in _found(SECRETS))
    return {name: clean(text[-LONGEST:], known) for name, text in sorted(texts.items()) if text}


def _status() -> str:
    """The host's own report, or what kept it from one: what is broken must not hide the rest."""
    try:
        return json.dumps(__salt__["indigo_status.report"](), indent=1)
    except Exception:
        return traceback.format_exc()


def _found(patterns: Iterable[str]) -> list[str]:
    return [path for pattern in patterns for path in sorted(glob.glob(pattern))]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _run(command: list[str]) -> str:
    """What a command says, or why it says nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
    except FileNotFoundError:
        return ""
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no answer in 30 s\n"
    return done.stdout + done.stderr


# A token, a key in base64, a line of a PEM file. Names have no such length without a hyphen or a
# dot, or else no digit.
_VALUE = re.compile(r"(?=[A-Za-z+/_=]*[0-9])[A-Za-z0-9+/_=]{20,}")


def secrets_in(texts: Iterable[str]) -> set[str]:
    """Values in files of secrets that must not be seen elsewhere, and their usual disguises.

    >>> found = secrets_in(["0123456789abcdef0123456789abcdef,admin,admin\\n"])
    >>> "0123456789abcdef0123456789abcdef" in found, len(found)
    (True, 3)
    """
    found: set[str] = set()
    for text in texts:
        for value in _VALUE.findall(text):
            found |= {value, value.encode().hex(), base64.b64encode(value.encode()).decode()}
    return found


_PATTERNS = (
    # A private key, whoever's.
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*-----|$)", re.DOTALL), ""),
    # A token of a service account, or any other JSON Web Token.
    (re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}(\.[\w-]*)?"), ""),
    (re.compile(r"(?i)(\b(?:authorization|bearer)\b[:=\s\"']+(?:bearer\s+)?)[^\s\"',]+"), r"\1"),
    (
        re.compile(r"(?i)(\b\w*(?:password|passwd|passphrase|auth_pass)\w*[\"']?\s*[:=\s]\s*)\S+"),
        r"\1",
    ),
    # Who a mirror lets in: https://name:password@host
    (re.compile(r"(\w://)[^/\s:@\"']*:[^/\s@\"']*@"), r"\1"),
)


def clean(text: str, known: Iterable[str]) -> str:
    """A text without secrets: those that are known, and what looks like one.

    Args:
        text: Any text.
        known: Values to remove wherever they stand.

    Example:
        >>> clean("user s3cr3t at https://me:pass@host/x", ["s3cr3t"])
        'user [removed] at https://[removed]@host/x'
    """
    for value in sorted(known, key=len, reverse=True):
        if value in text:
            text = text.replace(value, REMOVED)
    for pattern, kept in _PATTERNS:
        end = "@" if pattern.pattern.endswith("@") else ""
        text = pattern.sub(
            lambda match, kept=kept, end=end: match.expand(kept) + REMOVED + end, text
        )
    return text


def clean_text(text: str) -> str:
    """:func:`clean` with what this host's own files of secrets hold.

    Args:
        text: Any text, for example the cluster file on the Salt master.
    """
    return clean(text, secrets_in(_read(path) for path in _found(SECRETS)))


def versions() -> dict[str, Any]:
    """What Salt and this host are, for the head of a report."""
    names = ("saltversion", "pythonversion", "os", "osrelease", "kernelrelease", "osarch")
    return {name: __grains__.get(name) for name in names}
