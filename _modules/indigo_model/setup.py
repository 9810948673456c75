"""From ``setup.conf``, a line a host, to the file that declares the cluster, and to minions.

The form is that of the first Indigo clusters (``LB1=192.0.2.11 name=lb1``). A line that is not
there says that the thing is not wanted. All that is wrong is told at once, by its line's number.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from . import validate

__all__ = ["Setup", "document", "host_script", "parse", "text", "unedited"]

#: Lines that are numbered, one a host, and the role that they give.
ROLES = {"LB": "lb", "ETCD": "etcd", "MASTER": "master", "NODE": "node"}

#: Lines that stand once: what they say.
ONCE = {
    "VIP": "the virtual address of the Kubernetes API",
    "SALT": "the Salt master's own host, which signs the certificates",
    "NAME": "name of the cluster",
    "SERVICES": "network of services",
    "PODS": "network of pods",
    "SSH_USER": "whom ssh logs in as",
    "SSH_KEY": "file with ssh's private key, on the Salt master",
    "SALT_VERSION": "release of Salt on the hosts",
    "SALT_REPOSITORY": "where packages of that release are",
    "SALT_REPOSITORY_KEY": "file with the key that signs them, on the Salt master",
    "OPENSTACK_URL": "Keystone, whose cloud has disks for claims",
    "OPENSTACK_REGION": "its region",
    "OPENSTACK_USER": "who signs in there",
    "OPENSTACK_PASS": "that user's password",
    "OPENSTACK_DOMAIN": "that user's domain",
    "OPENSTACK_TENANTID": "id of that user's project",
    "OPENSTACK_CA_URL": "authority of the cloud, a file of the Salt file server",
    "OPENSTACK_CA_SHA256": "its SHA-256",
}

#: What may follow an address.
OPTIONS = {"host": ("name", "interface"), "VIP": ("interface", "port", "router_id")}

#: Lines about the add-on ``openstack``, and its keys; that with the password has none.
OPENSTACK = {
    "OPENSTACK_URL": "auth_url",
    "OPENSTACK_REGION": "region",
    "OPENSTACK_USER": "user",
    "OPENSTACK_DOMAIN": "domain",
    "OPENSTACK_TENANTID": "project",
    "OPENSTACK_CA_URL": "ca",
    "OPENSTACK_CA_SHA256": "ca_sha256",
}
PASSWORD = "OPENSTACK_PASS"  # noqa: S105 - the line's key

#: By key of the add-on, its line.
_LINES = {f"addons.openstack.{key}": line for line, key in OPENSTACK.items()}

#: What the values look like that get into a shell script, or into ssh's arguments.
SHAPES = {
    "SALT_VERSION": (r"\d{4}\.\d+", "a release, such as 3008.3"),
    "SALT_REPOSITORY": (
        r"(https?|file)://[\w./:@%+~-]+( [\w./+~-]+)*",
        "for apt a URL, a suite and components, such as http://192.0.2.2/salt stable main",
    ),
    "SSH_USER": (r"[a-z_][a-z0-9_-]*", "a user's name"),
    "SSH_KEY": (r"/[\w./+~@-]+", "an absolute path"),
    "SALT_REPOSITORY_KEY": (r"/[\w./+~@-]+", "an absolute path"),
}

DEFAULTS = {"NAME": "indigo", "SERVICES": "10.254.0.0/16", "PODS": "10.244.0.0/16"}

#: Stands for an interface that is not known yet.
UNKNOWN = "indigo0"

_LINE = re.compile(r"(?P<key>[A-Za-z][A-Za-z0-9_]*)\s*=\s*(?P<value>.*)")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", re.IGNORECASE)


@dataclass
class Setup:
    """What a ``setup.conf`` says."""

    #: By minion id: address, roles and, where given, interface; in the order of the file.
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    vip: dict[str, Any] = field(default_factory=dict)
    #: Everything else, by its key.
    values: dict[str, str] = field(default_factory=dict)
    #: By minion id, ``vip`` or key, the line that says it.
    lines: dict[str, int] = field(default_factory=dict)
    #: OpenStack's password: in no document, message or text of this object.
    password: str = field(default="", repr=False)


def parse(conf: str) -> tuple[Setup, list[str]]:
    """Read a ``setup.conf``.

    Args:
        conf: The text of the file.

    Returns:
        What it says, and all that is wrong with it: ``line N: KEY: found …; expected …``. Only
        without problems is the first complete.

    Example:
        >>> parse("LB1=10.0.0.1 name=lb1")[0].hosts
        {'lb1': {'address': '10.0.0.1', 'roles': ['lb']}}
        >>> parse("LB1=10.0.0.1 nmae=lb1")[1][0]
        'line 1: LB1: found nmae=lb1; expected name=… or interface=…'
    """
    setup = Setup()
    found: list[tuple[int, str]] = []
    rows: list[tuple[int, str, str, dict[str, str]]] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(conf.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if not line:
            continue
        try:
            key, value, options = _line(line)
            if key in seen:
                raise ValueError(f"{key}: found it again; it is on line {seen[key]}. Delete one")
            seen[key] = number
        except ValueError as err:
            found.append((number, str(err)))
            # A wrong line is one problem, and not its absence another.
            seen.setdefault(line.partition("=")[0].strip(), number)
            continue
        rows.append((number, key, value, options))
    for number, key, value, options in rows:
        try:
            _take(setup, number, key, value, options)
        except ValueError as err:
            found.append((number, str(err)))
    problems = [f"line {number}: {problem}" for number, problem in sorted(found)]
    if "SALT_REPOSITORY" in seen and "SALT_REPOSITORY_KEY" not in seen:
        problems.append(
            f"line {seen['SALT_REPOSITORY']}: SALT_REPOSITORY: found no SALT_REPOSITORY_KEY; "
            "expected one: packages that nobody signed are not installed"
        )
    if "vip" not in setup.lines and "VIP" not in seen:
        problems.append("no line VIP=…: expected a free address in the load balancers' network")
    for prefix, role in ROLES.items():
        there = any(re.fullmatch(rf"{prefix}\d+", key) for key in seen)
        if not there and role != "node":
            problems.append(f"no line {prefix}1=…: expected at least one")
    return setup, problems


def _line(line: str) -> tuple[str, str, dict[str, str]]:
    matched = _LINE.fullmatch(line)
    if line.startswith(PASSWORD):
        # What is wrong with it is told without it.
        word = matched["value"].strip() if matched and matched["key"] == PASSWORD else ""
        if not word or re.fullmatch("<[^<>]*>", word):
            raise ValueError(
                f"{PASSWORD}: found no value; expected {PASSWORD}= and the password, or no such "
                "line"
            )
        return PASSWORD, word, {}
    if not matched:
        raise ValueError(f"found {line!r}; expected KEY=value, such as LB1=192.0.2.11 name=lb1")
    key, value = matched["key"], matched["value"].strip()
    if "<" in value or not value:
        raise ValueError(f"{key}: found {value or 'nothing'}; write a value, or delete the line")
    prefix = re.fullmatch(r"([A-Z]+)(\d+)", key)
    if prefix and prefix[1] in ROLES:
        words = value.split()
        return key, words[0], _options(key, words[1:], OPTIONS["host"])
    if key in ("SALT", "VIP"):
        words = value.split()
        return key, words[0], _options(key, words[1:], OPTIONS.get(key, OPTIONS["host"]))
    if key in ONCE:
        return key, value, {}
    expected = [*(f"{name}1" for name in ROLES), *ONCE]
    near = difflib.get_close_matches(key.upper(), expected, 1, 0.5)
    raise ValueError(
        f"{key}: found an unknown key; expected LBn, ETCDn, MASTERn, NODEn, {', '.join(ONCE)}"
        + (f"; did you mean {near[0]}?" if near else "")
    )


def _options(key: str, words: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known or not value or name in given:
            raise ValueError(
                f"{key}: found {word}; expected {' or '.join(f'{one}=…' for one in known)}"
            )
        given[name] = value
    return given


def _take(setup: Setup, number: int, key: str, value: str, options: Mapping[str, str]) -> None:
    """Note what one line says; raises ValueError where it contradicts those before."""
    if key in ("SERVICES", "PODS"):
        try:
            ipaddress.IPv4Network(value)
        except ValueError as err:
            raise ValueError(f"{key}: found {value} ({err}); expected a network a.b.c.d/n") from err
    if key in SHAPES and not re.fullmatch(SHAPES[key][0], value):
        raise ValueError(f"{key}: found {value!r}; expected {SHAPES[key][1]}")
    if key == PASSWORD:
        setup.password = value
        setup.lines[key] = number
        return
    if key in ONCE and key not in ("VIP", "SALT"):
        setup.values[key] = value
        setup.lines[key] = number
        return
    try:
        address = str(ipaddress.IPv4Address(value))
    except ValueError as err:
        raise ValueError(f"{key}: found {value!r}; expected an IPv4 address") from err
    if key == "VIP":
        setup.vip = {"address": address}
        for name, given in options.items():
            setup.vip[name] = int(given) if given.isdigit() and name != "interface" else given
        setup.lines["vip"] = number
        return
    role = "ca" if key == "SALT" else ROLES[key.rstrip("0123456789")]
    known = next((id_ for id_, one in setup.hosts.items() if one["address"] == address), None)
    id_ = options.get("name") or known or key.lower()
    if not _NAME.fullmatch(id_):
        raise ValueError(f"{key}: found name={id_}; expected letters, digits, hyphens and dots")
    if known and known != id_:
        raise ValueError(
            f"{key}: found name={id_} for {address}; on line {setup.lines[known]} it is {known}. "
            "A host has one name"
        )
    host = setup.hosts.setdefault(id_, {"address": address, "roles": []})
    setup.lines.setdefault(id_, number)
    if host["address"] != address:
        raise ValueError(
            f"{key}: found {id_} at {address}; on line {setup.lines[id_]} it is at "
            f"{host['address']}. A name stands for one host"
        )
    if role in host["roles"]:
        raise ValueError(f"{key}: found {address} twice as {role}; delete one of the lines")
    host["roles"].append(role)
    if "interface" in options:
        host["interface"] = options["interface"]


def document(
    setup: Setup,
    master: Mapping[str, str],
    interfaces: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The cluster that a ``setup.conf`` declares.

    Args:
        setup: What it says, without problems.
        master: ``id`` and ``address`` of the Salt master's own host, for a file without ``SALT``.
        interfaces: By id of a load balancer, its interface in the network of the virtual address;
            None while nobody was asked.
        more: Further keys of the cluster's file; what ``setup.conf`` says wins.

    Returns:
        The document, and what the model finds wrong with it, with the lines it comes from.
    """
    hosts = {id_: dict(one) for id_, one in setup.hosts.items()}
    if not any("ca" in one["roles"] for one in hosts.values()):
        known = next((i for i, one in hosts.items() if one["address"] == master["address"]), None)
        if known:
            hosts[known]["roles"] = ["ca", *hosts[known]["roles"]]
        else:
            own = {"address": master["address"], "roles": ["ca"]}
            hosts = {master["id"]: own, **hosts}
    vip = dict(setup.vip)
    balancers = [id_ for id_, one in hosts.items() if "lb" in one["roles"]]
    found = interfaces or {}
    if "interface" not in vip:
        vip["interface"] = next((found[id_] for id_ in balancers if id_ in found), UNKNOWN)
    for id_ in balancers:
        if found.get(id_, vip["interface"]) != vip["interface"]:
            hosts[id_].setdefault("interface", found[id_])
    values = {**DEFAULTS, **setup.values}
    extra = dict(more or {})
    made = {
        **{"name": values["NAME"], "vip": vip, "hosts": hosts},
        "networks": {
            **(extra.get("networks") or {}),
            "services": values["SERVICES"],
            "pods": values["PODS"],
        },
    }
    cloud = {key: setup.values[line] for line, key in OPENSTACK.items() if line in setup.values}
    others = extra.get("addons") or {}
    if (cloud or setup.password) and isinstance(others, Mapping):
        theirs = others.get("openstack") or {}
        made["addons"] = {
            **others,
            "openstack": {**theirs, **cloud} if isinstance(theirs, Mapping) else theirs,
        }
    made = {**made, **{key: value for key, value in extra.items() if key not in made}}
    problems = [_placed(setup, problem) for problem in validate.problems(made)]
    problems += [
        f"more: found the key {key}; expected it in setup.conf alone"
        for key in ("hosts", "vip", "name")
        if key in extra
    ]
    return made, problems


def _placed(setup: Setup, problem: str) -> str:
    """A problem of the model, with the line that it comes from where one says it."""
    key = problem.split(":")[0]
    parts = key.split(".")
    for name, line in setup.lines.items():
        if key == f"hosts.{name}" or key.startswith(f"hosts.{name}."):
            return f"line {line}: {problem}"
    names = {"networks.services": "SERVICES", "networks.pods": "PODS", "name": "NAME"}
    names |= _LINES
    line = setup.lines.get(names.get(key, parts[0]), 0)
    if not line and key.startswith("addons.openstack"):
        # What is missing: at the first line that asks for it.
        asked = (setup.lines[one] for one in (*OPENSTACK, PASSWORD) if one in setup.lines)
        line = min(asked, default=0)
        missing = {"addons.openstack": "OPENSTACK_USER", **_LINES}.get(key)
        problem += f" (the line {missing}=…)" if missing else ""
    return f"line {line}: {problem}" if line else problem


# --- the file ------------------------------------------------------------------------------

_HEAD = "# Written by `salt-run indigo.setup` from {source}; sum {digest}.\n"
_HEAD_SEEN = re.compile(r"# Written by `salt-run indigo\.setup` from .*; sum ([0-9a-f]{16})\.\n")


def text(made: Mapping[str, Any], source: str) -> str:
    """The cluster's file, with a sum by which a later change by hand shows.

    >>> unedited(text({"name": "x"}, "setup.conf"))
    True
    """
    body = "# Edit it as you like: then it is yours, and indigo.setup leaves it alone.\n"
    body += yaml.safe_dump(dict(made), sort_keys=False, default_flow_style=None, width=100)
    return _HEAD.format(source=source, digest=_sum(body)) + body


def unedited(found: str) -> bool:
    """Whether a file is one of :func:`text` that nobody changed.

    >>> unedited("name: mine\\n")
    False
    """
    head = _HEAD_SEEN.match(found)
    return bool(head) and head[1] == _sum(found[head.end() :])


def _sum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


# --- minions -------------------------------------------------------------------------------

_SCRIPT = r"""
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
say() { echo "$*" >&2; }
fail() { say "$*"; exit 3; }
[ "$(id -u)" = 0 ] || fail "not root: set SSH_USER=root, or allow sudo without a password"
command -v systemctl >/dev/null || fail "no systemd on this host"
id=
for word in $(ip -o -4 address show); do
    case $word in
@CASES@
    esac
done
[ -n "$id" ] || fail "the host has none of the addresses in setup.conf"
changed=
put() { # put FILE: standard input becomes the file; notes whether that changed it
    cat > "$1.new"
    if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; changed=1; fi
}
umask 022
mkdir -p /etc/salt/minion.d
put /etc/salt/minion.d/indigo-setup.conf <<END
# Written by indigo.setup.
id: $id
master: @MASTER@
master_finger: '@FINGER@'
acceptance_wait_time: 2
END
have=$(salt-call --version 2>/dev/null | cut -d' ' -f2) || have=
if [ "$have" != "@VERSION@" ]; then
    if command -v apt-get >/dev/null; then
        if [ -n "@REPOSITORY@" ]; then
            mkdir -p /etc/apt/keyrings
            echo "@KEY@" | base64 -d | put /etc/apt/keyrings/indigo-salt.@SUFFIX@
            echo "deb [signed-by=/etc/apt/keyrings/indigo-salt.@SUFFIX@] @REPOSITORY@" |
                put /etc/apt/sources.list.d/indigo-salt.list
        fi
        apt-get -q update >&2
        apt-get -qy install --no-install-recommends python3 ca-certificates \
            "salt-minion=@VERSION@*" >&2
    elif command -v dnf >/dev/null; then
        if [ -n "@REPOSITORY@" ]; then
            echo "@KEY@" | base64 -d | put /etc/pki/rpm-gpg/indigo-salt
            put /etc/yum.repos.d/indigo-salt.repo <<END
[indigo-salt]
name=Salt, for Indigo
baseurl=@REPOSITORY@
gpgcheck=1
gpgkey=file:///etc/pki/rpm-gpg/indigo-salt
END
        fi
        dnf -qy install python3 ca-certificates "salt-minion-@VERSION@*" >&2
    else
        fail "found neither apt-get nor dnf; install salt-minion @VERSION@ by hand"
    fi
    changed=1
    have=$(salt-call --version 2>/dev/null | cut -d' ' -f2) || have=
    [ "$have" = "@VERSION@" ] || fail "Salt is '$have' after the installation, not @VERSION@"
fi
systemctl enable -q salt-minion
[ -z "$changed" ] || systemctl restart --no-block salt-minion
systemctl start --no-block salt-minion
tries=0
while [ ! -s /etc/salt/pki/minion/minion.pub ]; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || fail "salt-minion makes no key: see journalctl -u salt-minion"
    sleep 0.5
done
echo "indigo-key $(base64 -w0 < /etc/salt/pki/minion/minion.pub)"
"""


def host_script(
    hosts: Mapping[str, str],
    master: str,
    finger: str,
    version: str,
    repository: str = "",
    key: bytes = b"",
) -> str:
    """The shell script that makes a bare host a minion. It may run again at any time.

    Each host finds its id by its address. It gets packages of one release from the package manager,
    knows the master's fingerprint before it first speaks to it, and prints the public key that it
    will show, so that only this one is accepted.

    Args:
        hosts: Minion id to address.
        master: Address of the Salt master.
        finger: Fingerprint of its public key.
        version: Release of Salt.
        repository: For apt what follows ``deb [...]``, for dnf a URL; empty where the host's own
            configuration has the packages.
        key: Content of the file with the repository's key.
    """
    cases = "\n".join(f"        {address}/*) id={id_} ;;" for id_, address in sorted(hosts.items()))
    armored = key.lstrip().startswith(b"-----BEGIN")
    values = {
        "CASES": cases,
        "MASTER": master,
        "FINGER": finger,
        "VERSION": version,
        "REPOSITORY": repository,
        "KEY": base64.b64encode(key).decode(),
        "SUFFIX": "asc" if armored else "gpg",
    }
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], _SCRIPT).lstrip()
