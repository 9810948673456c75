"""The CIS Kubernetes Benchmark's checks of masters, etcd and nodes, as a table of our own.

Numbers are those of version 1.11 of the benchmark (Kubernetes 1.29 to 1.31); the words are ours. A
check that does not pass carries the reason. What a row says is evaluated against rendered units and
files, for every release; what only a running host has (keys, certificates) is looked at in the lab.
"""

# ruff: noqa: E501 - sentences in a table

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: Flags of each program, as its rendered unit has them.
Flags = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Entry:
    """A file or folder as the states make it, or as a host has it."""

    path: str
    mode: int
    user: str
    group: str


@dataclass(frozen=True)
class Facts:
    """What one host is rendered with."""

    flags: Flags
    kubelet: Mapping[str, Any]
    kube_proxy: Mapping[str, Any]
    audit: Mapping[str, Any]
    files: tuple[Entry, ...]
    authorities: Mapping[str, str]  # certificate to the authority that signs it
    persons: tuple[str, ...]  # client certificates that could stand for a person
    readers: frozenset[str]  # accounts that certificates and keys belong to


#: Whether a check passes; None where there is nothing to look at in what is rendered.
Judge = Callable[[Facts], "bool | None"]


@dataclass(frozen=True)
class Check:
    """One row: number, where, what is asked in our words, and why it does not pass, if so."""

    number: str
    role: str
    asks: str
    judge: Judge
    reason: str = ""
    #: For files: patterns, the loosest mode, and the owner, so that a host can be asked, too.
    paths: tuple[str, ...] = ()
    mode: int = 0o7777
    owner: str = ""


def _flag(component: str, name: str, good: Callable[[str | None], bool]) -> Judge:
    return lambda facts: good(facts.flags[component].get(name))


def _is(*wanted: str) -> Callable[[str | None], bool]:
    return lambda value: value in wanted


def _set(value: str | None) -> bool:
    return bool(value)


def _unset(value: str | None) -> bool:
    return value is None


def _not(*unwanted: str) -> Callable[[str | None], bool]:
    return lambda value: value not in unwanted


def _has(word: str) -> Callable[[str | None], bool]:
    return lambda value: word in (value or "").split(",")


def _lacks(word: str) -> Callable[[str | None], bool]:
    return lambda value: word not in (value or "").split(",")


def _all(*judges: Judge) -> Judge:
    return lambda facts: all(judge(facts) for judge in judges)


def _kubelet(path: str, good: Callable[[Any], bool]) -> Judge:
    def judge(facts: Facts) -> bool:
        value: Any = facts.kubelet
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return good(value)

    return judge


def _files(
    number: str, role: str, asks: str, paths: Iterable[str], *,
    mode: int = 0o7777, owner: str = "", reason: str = "",
) -> Check:  # fmt: skip
    given = tuple(paths)

    def judge(facts: Facts) -> bool | None:
        found = [entry for entry in facts.files if matches(entry.path, given)]
        return all(tight(entry, mode, owner) for entry in found) if found else None

    return Check(number, role, asks, judge, reason, given, mode, owner)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path is one of those that a check is about."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def tight(entry: Entry, mode: int, owner: str) -> bool:
    """Whether nobody may do more than the mode says, and the owner is the right one.

    >>> tight(Entry("/x", 0o600, "root", "root"), 0o644, "root:root")
    True
    >>> tight(Entry("/x", 0o640, "root", "root"), 0o600, "")
    False
    """
    return not entry.mode & ~mode & 0o777 and owner in ("", f"{entry.user}:{entry.group}")


_UNIT = (
    "It is a systemd unit, not a pod's manifest, and holds no secret: its flags name files. systemd "
    "tells any user what is in a unit (`systemctl cat`), whatever the mode of the file."
)
_OWNER = (
    "Each program runs under an account of its own, and what it alone reads is that account's, 0600. "
    "With root as the owner the programs would have to run as root."
)
_CIPHERS = (
    "TLS 1.2 at least is set, and with it Go's own choice of suites, which leaves weak ones out and "
    "follows its releases; a fixed list would age. A site sets one under `overrides`."
)
_ROTATION = (
    "Kubelets have no client certificate, they come with a token; their serving certificate is renewed "
    "by `state.apply`, long before it ends ([certificates](operations/certificates.md))."
)
_ADDRESS = (
    "It listens on the host's own address, with TLS and authentication, so that monitoring reaches it. "
    "`firewall: nftables` keeps all others away ([ports](operations/ports.md))."
)

API, KCM, SCHEDULER = "kube-apiserver", "kube-controller-manager", "kube-scheduler"
PKI = "/etc/kubernetes/pki"

CHECKS: tuple[Check, ...] = (
    *(
        row
        for number, component in (("1.1.1", API), ("1.1.3", KCM), ("1.1.5", SCHEDULER))
        for row in (
            _files(number, "master", f"{component}'s unit: mode 600 at most",
                   [f"/etc/systemd/system/{component}.service"], mode=0o600, reason=_UNIT),
            _files(f"1.1.{int(number[-1]) + 1}", "master", f"{component}'s unit belongs to root",
                   [f"/etc/systemd/system/{component}.service"], owner="root:root"),
        )
    ),
    _files("1.1.7", "etcd", "etcd's unit: mode 600 at most", ["/etc/systemd/system/etcd.service"],
           mode=0o600, reason=_UNIT),
    _files("1.1.8", "etcd", "etcd's unit belongs to root", ["/etc/systemd/system/etcd.service"],
           owner="root:root"),
    _files("1.1.9", "node", "CNI's configuration: mode 600 at most", ["/etc/cni/net.d/*"],
           mode=0o600,
           reason="It names bridges and networks and nothing secret; with `routes` containerd writes "
           "it from a template, with a mode of its own."),
    _files("1.1.10", "node", "CNI's configuration belongs to root", ["/etc/cni/net.d/*"],
           owner="root:root"),
    _files("1.1.11", "etcd", "etcd's data: mode 700 at most", ["/var/lib/etcd"], mode=0o700),
    _files("1.1.12", "etcd", "etcd's data belongs to etcd", ["/var/lib/etcd"], owner="etcd:etcd"),
    _files("1.1.13", "master", "the admin's kubeconfig: mode 600",
           ["/etc/kubernetes/admin.kubeconfig"], mode=0o600),
    _files("1.1.14", "master", "the admin's kubeconfig belongs to root",
           ["/etc/kubernetes/admin.kubeconfig"], owner="root:root"),
    _files("1.1.15", "master", "the scheduler's kubeconfig: mode 600 at most",
           ["/etc/kubernetes/scheduler.kubeconfig"], mode=0o600),
    _files("1.1.16", "master", "the scheduler's kubeconfig belongs to root",
           ["/etc/kubernetes/scheduler.kubeconfig"], owner="root:root", reason=_OWNER),
    _files("1.1.17", "master", "the controller-manager's kubeconfig: mode 600 at most",
           ["/etc/kubernetes/controller-manager.kubeconfig"], mode=0o600),
    _files("1.1.18", "master", "the controller-manager's kubeconfig belongs to root",
           ["/etc/kubernetes/controller-manager.kubeconfig"], owner="root:root", reason=_OWNER),
    Check("1.1.19", "master", "certificates, keys and their folder belong to root",
          lambda f: f.readers == {"root"}, f"The folder does. {_OWNER}"),
    _files("1.1.20", "master", "certificates: mode 644 at most", [f"{PKI}/*.crt"], mode=0o644),
    _files("1.1.21", "master", "their keys: mode 600", [f"{PKI}/*.key"], mode=0o600),
    Check("1.2.1", "master", "no anonymous requests", _flag(API, "anonymous-auth", _is("false")),
          "The load balancers' health checks carry no credentials. From 1.32 on an anonymous caller "
          "gets `/livez`, `/readyz` and `/healthz` and nothing else (AuthenticationConfiguration); "
          "before that RBAC gives it health and version alone."),
    Check("1.2.2", "master", "no tokens from a file", _flag(API, "token-auth-file", _unset),
          "The programs of the cluster have one random token each, sealed on the way, 0600 where "
          "they are, replaced without downtime ([tokens](operations/tokens.md)). No person has one "
          "but the admin on the masters."),
    Check("1.2.3", "master", "services cannot name external addresses",
          _flag(API, "enable-admission-plugins", _has("DenyServiceExternalIPs")),
          "Such addresses are how services are published on plain hosts. Where users who are not "
          "trusted may write services, add the plug-in under `overrides`."),
    Check("1.2.4", "master", "the API server shows kubelets a client certificate",
          _all(_flag(API, "kubelet-client-certificate", _set),
               _flag(API, "kubelet-client-key", _set))),
    Check("1.2.5", "master", "the API server verifies kubelets",
          _flag(API, "kubelet-certificate-authority", _set)),
    Check("1.2.6", "master", "not everything is allowed",
          _flag(API, "authorization-mode", lambda v: bool(v) and "AlwaysAllow" not in v)),
    Check("1.2.7", "master", "nodes are limited to their own",
          _flag(API, "authorization-mode", _has("Node"))),
    Check("1.2.8", "master", "RBAC decides", _flag(API, "authorization-mode", _has("RBAC"))),
    Check("1.2.9", "master", "events are limited in rate",
          _flag(API, "enable-admission-plugins", _has("EventRateLimit")),
          "Its limits depend on the size of a cluster, and a wrong one loses events that matter. API "
          "Priority and Fairness, on by itself, keeps event writers from starving others."),
    Check("1.2.10", "master", "nothing is admitted unseen",
          _flag(API, "enable-admission-plugins", _lacks("AlwaysAdmit"))),
    Check("1.2.11", "master", "images are always pulled anew",
          _flag(API, "enable-admission-plugins", _has("AlwaysPullImages")),
          "With it a registry that is down stops every pod that starts; clusters here may have no "
          "registry at all. Sites that share nodes among tenants add it under `overrides`."),
    Check("1.2.12", "master", "service accounts are admitted",
          _flag(API, "disable-admission-plugins", _lacks("ServiceAccount"))),
    Check("1.2.13", "master", "namespaces that end take nothing new",
          _flag(API, "disable-admission-plugins", _lacks("NamespaceLifecycle"))),
    Check("1.2.14", "master", "kubelets write only their own",
          _flag(API, "enable-admission-plugins", _has("NodeRestriction"))),
    Check("1.2.15", "master", "no profiling of the API server", _flag(API, "profiling", _is("false"))),
    Check("1.2.16", "master", "an audit log is written", _flag(API, "audit-log-path", _set)),
    Check("1.2.17", "master", "it is kept 30 days",
          _flag(API, "audit-log-maxage", lambda v: int(v or 0) >= 30)),
    Check("1.2.18", "master", "ten old files of it are kept",
          _flag(API, "audit-log-maxbackup", lambda v: int(v or 0) >= 10)),
    Check("1.2.19", "master", "it is rotated at 100 MB",
          _flag(API, "audit-log-maxsize", lambda v: int(v or 0) >= 100)),
    Check("1.2.20", "master", "requests end in time (a minute, by itself)",
          _flag(API, "request-timeout", _unset)),
    Check("1.2.21", "master", "tokens of deleted service accounts are refused",
          _flag(API, "service-account-lookup", _is(None, "true"))),  # type: ignore[arg-type]
    Check("1.2.22", "master", "tokens of service accounts have a key of their own",
          _flag(API, "service-account-key-file", lambda v: bool(v) and v.endswith("/sa.pub"))),
    Check("1.2.23", "master", "the API server shows etcd a certificate",
          _all(_flag(API, "etcd-certfile", _set), _flag(API, "etcd-keyfile", _set))),
    Check("1.2.24", "master", "the API serves with TLS",
          _all(_flag(API, "tls-cert-file", _set), _flag(API, "tls-private-key-file", _set))),
    Check("1.2.25", "master", "clients' certificates are verified", _flag(API, "client-ca-file", _set)),
    Check("1.2.26", "master", "the API server verifies etcd", _flag(API, "etcd-cafile", _set)),
    Check("1.2.27", "master", "Secrets are encrypted at rest",
          _flag(API, "encryption-provider-config", _set)),
    Check("1.2.28", "master", "with a real cipher (the lab reads etcd's own files: "
          "tests/e2e/test_3_secrets.py)", _flag(API, "encryption-provider-config", _set)),
    Check("1.2.29", "master", "a list of strong suites", _flag(API, "tls-cipher-suites", _set),
          _CIPHERS),
    Check("1.2.30", "master", "tokens of pods last an hour and no more",
          _flag(API, "service-account-extend-token-expiration", _is("false")),
          "Clients that read their token once would be thrown out after an hour. The API server "
          "counts those that do (`serviceaccount_stale_tokens_total`); a site that has none sets the "
          "flag under `overrides`."),
    Check("1.3.1", "master", "a limit of pods that ended",
          _flag(KCM, "terminated-pod-gc-threshold", _set),
          "Upstream's limit, 12500, holds; a smaller one deletes what somebody may still look at."),
    Check("1.3.2", "master", "no profiling of the controller-manager",
          _flag(KCM, "profiling", _is("false"))),
    Check("1.3.3", "master", "each controller has its own account",
          _flag(KCM, "use-service-account-credentials", _is("true"))),
    Check("1.3.4", "master", "service accounts' tokens are signed with their key",
          _flag(KCM, "service-account-private-key-file", _set)),
    Check("1.3.5", "master", "pods are given the authority of the API",
          _flag(KCM, "root-ca-file", _set)),
    Check("1.3.6", "master", "kubelets' certificates are rotated through the API",
          _flag(KCM, "feature-gates", _has("RotateKubeletServerCertificate=true")), _ROTATION),
    Check("1.3.7", "master", "the controller-manager listens on loopback",
          _flag(KCM, "bind-address", _is("127.0.0.1")), _ADDRESS),
    Check("1.4.1", "master", "no profiling of the scheduler",
          _flag(SCHEDULER, "profiling", _is("false"))),
    Check("1.4.2", "master", "the scheduler listens on loopback",
          _flag(SCHEDULER, "bind-address", _is("127.0.0.1")), _ADDRESS),
    Check("2.1", "etcd", "etcd serves with TLS",
          _all(_flag("etcd", "cert-file", _set), _flag("etcd", "key-file", _set))),
    Check("2.2", "etcd", "etcd asks clients for a certificate",
          _flag("etcd", "client-cert-auth", _is("true"))),
    Check("2.3", "etcd", "no certificates that etcd makes itself",
          _flag("etcd", "auto-tls", _not("true"))),
    Check("2.4", "etcd", "members speak TLS with each other",
          _all(_flag("etcd", "peer-cert-file", _set), _flag("etcd", "peer-key-file", _set))),
    Check("2.5", "etcd", "members ask each other for a certificate",
          _flag("etcd", "peer-client-cert-auth", _is("true"))),
    Check("2.6", "etcd", "nor for members", _flag("etcd", "peer-auto-tls", _not("true"))),
    Check("2.7", "etcd", "etcd has an authority of its own",
          lambda f: f.authorities["etcd-member"] not in
          {a for name, a in f.authorities.items() if not name.endswith(("etcd-member",
           "etcd-client"))}),
    Check("3.1.1", "master", "people do not come with certificates", lambda f: not f.persons),
    Check("3.1.2", "master", "people do not come with tokens of service accounts", lambda f: None,
          "Who comes how is the site's choice; this tree makes no service account for a person. The "
          "admin's token is one of the token file."),
    Check("3.1.3", "master", "no bootstrap tokens",
          _flag(API, "enable-bootstrap-token-auth", _not("true"))),
    Check("3.2.1", "master", "there is an audit policy", _flag(API, "audit-policy-file", _set)),
    Check("3.2.2", "master", "it notes who reads secrets, who enters pods, and who changes what",
          lambda f: audited(f.audit)),
    _files("4.1.1", "node", "kubelet's unit: mode 600 at most",
           ["/etc/systemd/system/kubelet.service"], mode=0o600, reason=_UNIT),
    _files("4.1.2", "node", "kubelet's unit belongs to root",
           ["/etc/systemd/system/kubelet.service"], owner="root:root"),
    _files("4.1.3", "node", "kube-proxy's kubeconfig: mode 600 at most",
           ["/etc/kubernetes/kube-proxy.kubeconfig"], mode=0o600),
    _files("4.1.4", "node", "kube-proxy's kubeconfig belongs to root",
           ["/etc/kubernetes/kube-proxy.kubeconfig"], owner="root:root"),
    _files("4.1.5", "node", "kubelet's kubeconfig: mode 600 at most",
           ["/etc/kubernetes/kubelet.kubeconfig"], mode=0o600),
    _files("4.1.6", "node", "kubelet's kubeconfig belongs to root",
           ["/etc/kubernetes/kubelet.kubeconfig"], owner="root:root"),
    _files("4.1.7", "node", "the authority's certificate: mode 644 at most", [f"{PKI}/ca.crt"],
           mode=0o644),
    _files("4.1.8", "node", "the authority's certificate belongs to root", [f"{PKI}/ca.crt"],
           owner="root:root"),
    _files("4.1.9", "node", "kubelet's configuration: mode 600 at most",
           ["/etc/kubernetes/kubelet.yaml"], mode=0o600),
    _files("4.1.10", "node", "kubelet's configuration belongs to root",
           ["/etc/kubernetes/kubelet.yaml"], owner="root:root"),
    Check("4.2.1", "node", "kubelets answer nobody they do not know",
          _kubelet("authentication.anonymous.enabled", lambda v: v is False)),
    Check("4.2.2", "node", "kubelets ask the API who may",
          _kubelet("authorization.mode", lambda v: v == "Webhook")),
    Check("4.2.3", "node", "kubelets verify clients' certificates",
          _kubelet("authentication.x509.clientCAFile", bool)),
    Check("4.2.4", "node", "no port for reading without credentials",
          _kubelet("readOnlyPort", lambda v: v == 0)),
    Check("4.2.5", "node", "idle streams end (after four hours, by itself)",
          _kubelet("streamingConnectionIdleTimeout", lambda v: v not in (0, "0", "0s"))),
    Check("4.2.6", "node", "kubelets keep their chains of rules",
          _kubelet("makeIPTablesUtilChains", lambda v: v in (None, True))),
    Check("4.2.7", "node", "nodes have their host's own name",
          _flag("kubelet", "hostname-override", _unset),
          "A node's name is its minion id, as declared and as its certificate says; NodeRestriction "
          "holds for that name all the same."),
    Check("4.2.8", "node", "events are kept (upstream's rate)",
          _kubelet("eventRecordQPS", lambda v: v is None or v >= 0)),
    Check("4.2.9", "node", "kubelets serve with TLS",
          _all(_kubelet("tlsCertFile", bool), _kubelet("tlsPrivateKeyFile", bool))),
    Check("4.2.10", "node", "kubelets rotate their client certificate",
          _kubelet("rotateCertificates", lambda v: v is not False), _ROTATION),
    Check("4.2.11", "node", "kubelets rotate their serving certificate",
          _kubelet("serverTLSBootstrap", bool), _ROTATION),
    Check("4.2.12", "node", "a list of strong suites", _kubelet("tlsCipherSuites", bool), _CIPHERS),
    Check("4.2.13", "node", "a limit of processes in a pod",
          _kubelet("podPidsLimit", lambda v: isinstance(v, int) and v > 0),
          "What is enough depends on what runs; a limit that is too small kills it at random. A site "
          "sets `overrides.kubelet.config.podPidsLimit`."),
    Check("4.2.14", "node", "seccomp's default profile for all pods",
          _kubelet("seccompDefault", bool),
          "Pods that need a call beyond it would break, and releases before 1.25 have it not on by "
          "themselves. A site sets `overrides.kubelet.config.seccompDefault`."),
    Check("4.2.15", "node", "kubelet's unit refuses addresses",
          lambda f: None,
          "A list of addresses in the unit would have to follow every change of the cluster. The table "
          "of [ports](operations/ports.md) does, with `firewall: nftables`."),
    Check("4.3.1", "node", "kube-proxy's metrics are on loopback",
          lambda f: str(f.kube_proxy.get("metricsBindAddress", "")).startswith("127.0.0.1")),
)  # fmt: skip


def audited(policy: Mapping[str, Any]) -> bool:
    """Whether a policy notes reads of Secrets, ways into pods, and every change."""

    def level(verb: str, resource: str) -> str:
        for rule in policy["rules"]:
            if "nonResourceURLs" in rule or "userGroups" in rule:
                continue
            named = [name for one in rule.get("resources", []) for name in one["resources"]]
            if verb in rule.get("verbs", [verb]) and (not named or resource in named):
                return str(rule["level"])
        return "None"

    noted = [("get", "secrets"), ("list", "secrets"), ("get", "pods/exec"), ("get", "nodes/proxy")]
    noted += [("create", "pods/exec"), ("create", "pods"), ("update", "configmaps")]
    noted += [("delete", "namespaces"), ("create", "serviceaccounts/token"), ("patch", "roles")]
    # No bodies: a log with Secrets in it would be one more place to guard.
    return all(level(verb, resource) == "Metadata" for verb, resource in noted)


def flags_of(unit: str) -> dict[str, str]:
    """The flags of a rendered unit's command line.

    >>> flags_of("ExecStart=/x \\\\\\n  --a=1 \\\\\\n  --b=c,d\\n")
    {'a': '1', 'b': 'c,d'}
    """
    command = re.search(r"^ExecStart=(.*)", unit.replace("\\\n", " "), re.M)
    words = re.findall(r'"(?:--)([\w-]+)=((?:[^"\\]|\\.)*)"|(?:^|\s)--([\w-]+)=(\S+)', command[1])
    return {one or other: value or plain for one, value, other, plain in words}


# --- the units' sandboxes ------------------------------------------------------------------

#: Exposure of each unit as ``systemd-analyze security --offline`` of systemd 252 says: 0 is shut,
#: 10 is open. And why, where it is open.
EXPOSURE: Mapping[str, tuple[float, str]] = {
    "etcd": (1.7, "no capability, own account"),
    "kube-apiserver": (1.7, "no capability, own account"),
    "kube-controller-manager": (1.7, "no capability, own account"),
    "kube-scheduler": (1.7, "no capability, own account"),
    "etcd-proxy": (1.9, "no capability, the API server's account"),
    "keepalived-metrics@": (2.0, "root without a capability, for one question each"),
    "haproxy": (2.0, "own account"),
    "zabbix-agent": (3.6, "no capability, own account; it reads what other accounts run"),
    "kube-proxy": (4.7, "root with the capabilities of a packet filter"),
    "indigo-dns-cache": (5.8, "runs ip once at boot, with the capability for that"),
    "keepalived": (6.9, "root: it sets addresses, and runs the check of haproxy"),
    "flanneld": (6.8, "root with the capabilities of network links, one of the kernel's modules"),
    "indigo-firewall": (9.5, "runs nft once at boot, before anything listens"),
    "containerd": (9.6, "starts containers as root: no sandbox of its own would hold"),
    "kubelet": (9.6, "mounts volumes and writes sysctls for pods: no sandbox would hold"),
    "indigo-routes": (9.6, "runs ip once at boot"),
}


def reference() -> str:
    """The text of ``docs/cis.md``."""
    passed = [check for check in CHECKS if not check.reason]
    lines = [
        "# The CIS Kubernetes Benchmark",
        "",
        "Its checks of masters, etcd and nodes, with the numbers of version 1.11 and in our own words: "
        f"{len(passed)} of {len(CHECKS)}",
        "pass, the others say why not. This page is made from `tests/render/cis.py`; tests evaluate each "
        "row against the units and",
        "files of every Kubernetes release from 1.20 to 1.36 (`tests/render/test_cis.py`), and against the "
        "processes and files of a",
        "running cluster (`tests/e2e/test_4i_cis.py`). A row that says why it does not pass, and does, "
        "fails the test, too.",
        "",
        "Section 5 of the benchmark is about what users put into the cluster, and is theirs.",
        "",
        "| Check | On | Asks for | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one.number} | {one.role} | {one.asks} | {one.reason or 'passes'} |" for one in CHECKS
    ]
    lines += [
        "",
        "## The units' sandboxes",
        "",
        "What `systemd-analyze security` of systemd 252 says of our units: 0 is shut, 10 is open. Tests "
        "fail when one opens further.",
        "",
        "| Unit | Exposure | |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {score} | {why} |" for name, (score, why) in EXPOSURE.items()]
    return "\n".join(lines) + "\n"
