"""What can be wrong with the file that declares the cluster, told all at once.

:data:`KEYS` is the one table of what a user may write: it drives the checks of single values
and the reference in ``docs/pillar.md``. What only shows when values are seen together (two hosts
with one address, networks that overlap) is checked after it, by the functions in ``_RELATIONS``.

Only IPv4 is supported: the ``routes`` network answers ARP for its pods.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from . import (
    accounting,
    alerting,
    artifacts,
    dashboards,
    etcd,
    images,
    infrastructures,
    ingress,
    logs,
    monitoring,
    openstack,
    zabbix,
)
from . import versions as table
from .addons import NODES_A_REPLICA
from .cluster import (
    API_PORT,
    BACKUP,
    CERTIFICATES,
    COMPONENTS,
    FIREWALLS,
    POD_NETWORKS,
    ROLES,
    SERVICES,
    TIMERS,
    UPGRADE,
    VIP_PORT,
)

__all__ = ["KEYS", "DocumentError", "Key", "load", "problems", "reference"]

try:
    _BaseLoader: Any = yaml.CSafeLoader  # ten times faster, where PyYAML was built with libyaml
except AttributeError:
    _BaseLoader = yaml.SafeLoader


class DocumentError(ValueError):
    """The text is not YAML that can declare a cluster."""


# --- reading -------------------------------------------------------------------------------


class _Loader(_BaseLoader):
    """A safe loader that says where a scalar stands that it cannot construct."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as err:
            # PyYAML lets these escape without a position: 2026-13-01, !!int x, !!bool x
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"{_short(repr(node.value))} is no {node.tag.rsplit(':')[-1]}",
                node.start_mark,
            ) from err


def load(text: str | bytes, source: str) -> dict[str, Any]:
    """Read the YAML of a cluster strictly.

    Args:
        text: The content of the file, text or UTF-8 bytes.
        source: Name of the file, for messages.

    Returns:
        The document: a mapping, not yet checked by :func:`problems`.

    Raises:
        DocumentError: No YAML, a repeated key, an empty file or no mapping. The message names the
            file, the line and column, what was found and what to do.

    Example:
        >>> load("name: lab", "cluster.yaml")
        {'name': 'lab'}
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
    except UnicodeDecodeError as err:
        line = err.object.count(b"\n", 0, err.start) + 1
        raise DocumentError(
            f"{source}, line {line}: found a byte that is not UTF-8; expected UTF-8 text; "
            "save the file as UTF-8"
        ) from err
    unprintable = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if unprintable:
        at = unprintable.start()
        raise DocumentError(
            f"{source}, line {text.count(chr(10), 0, at) + 1}, "
            f"column {at - text.rfind(chr(10), 0, at)}: found the control character "
            f"{unprintable.group()!r}; expected printable text; delete that character"
        )
    try:
        document = _construct(text, source)
    except yaml.MarkedYAMLError as err:
        raise DocumentError(_yaml_message(err, text, source)) from err
    except RecursionError as err:
        raise DocumentError(
            f"{source}: found brackets nested too deeply; expected a plain mapping; "
            "check that every [ and { is closed"
        ) from err
    if document is None:
        raise DocumentError(
            f"{source}: found an empty file; expected the keys {', '.join(_required_top())}; "
            "start from the example in docs/pillar.md"
        )
    if not isinstance(document, dict):
        raise DocumentError(
            f"{source}: found {_shown(document)}; expected a mapping with the keys "
            f"{', '.join(_required_top())}; start from the example in docs/pillar.md"
        )
    return document


def _construct(text: str, source: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        faults = list(_structural_faults(node, "", set(), set()))
        if faults:
            raise DocumentError("\n".join(f"{source}, {fault}" for fault in faults))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _structural_faults(
    node: yaml.Node, path: str, above: set[int], done: set[int]
) -> Iterator[str]:
    """Repeated keys, which YAML readers drop without a word, and aliases to themselves."""
    if id(node) in above:
        yield (
            f"{path or 'the document'}: found an alias to the structure it stands in; expected "
            "data that ends; write the values out"
        )
        return
    if isinstance(node, yaml.ScalarNode) or id(node) in done:
        return
    above.add(id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            inner = path
            if isinstance(key, yaml.ScalarNode):
                inner = f"{path}.{key.value}" if path else key.value
                line = key.start_mark.line + 1
                name = (key.tag, key.value)
                if name in first:
                    yield (
                        f"line {line}, column {key.start_mark.column + 1}: found the key {inner} a "
                        f"second time (first in line {first[name]}); expected every key once; "
                        "merge the two or delete one"
                    )
                first.setdefault(name, line)
            yield from _structural_faults(value, inner, above, done)
    else:
        for index, value in enumerate(node.value):
            yield from _structural_faults(value, f"{path}[{index}]", above, done)
    above.discard(id(node))
    done.add(id(node))


def _yaml_message(err: yaml.MarkedYAMLError, text: str, source: str) -> str:
    mark = err.problem_mark or err.context_mark
    where, line = source, ""
    if mark is not None:
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}"
        lines = text.splitlines()
        line = lines[mark.line] if mark.line < len(lines) else ""
    remedy = "check the indentation, the colons and the quotes there and in the line above"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        remedy = "indent with spaces, YAML takes no tabs"
    elif "{%" in line or "{{" in line:
        remedy = "write the value itself, this file is not a Jinja template"
    elif err.problem and "alias" in err.problem:
        remedy = "write a text that begins with * in quotes"
    elif err.problem and "tag" in err.problem:
        remedy = "delete the tag that begins with !"
    elif err.problem and "single document" in str(err.context):
        remedy = "delete the second --- and what belongs to another document"
    problem = re.sub(r"\s+", " ", str(err.problem or err.context or "a syntax error"))
    return f"{where}: found YAML that cannot be read ({problem}); expected plain YAML; {remedy}"


# --- the table of keys ---------------------------------------------------------------------

#: Looks at one value; says what was expected and what to do, or None when nothing is wrong.
Check = Callable[[Any], "tuple[str, str] | None"]


@dataclass(frozen=True)
class Key:
    """One key that a user may write.

    ``path`` has a part in angle brackets where any name may stand that passes ``check``, and
    ``[]`` for the items of a list. A key with keys below it is a mapping or that list; others
    have a ``check`` of their value.
    """

    path: str
    type: str
    meaning: str
    default: str = ""
    required: bool = False
    check: Check | None = None


def _shown(value: Any) -> str:
    """A found value in a few words, whatever it is.

    >>> _shown(1.3), _shown("a"), _shown([]), _shown(None), _shown(True)
    ('the number 1.3', "'a'", 'a list', 'nothing', 'the boolean true')
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (int, float)):
        try:
            return f"the number {_short(str(value))}"
        except ValueError:  # Python refuses to print integers of more than 4300 digits
            return "an enormous number"
    if isinstance(value, str):
        return _short(repr(value))
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"a YAML {type(value).__name__}"


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _key_shown(key: Any) -> str:
    return _short(key) if isinstance(key, str) else _shown(key)


def _listed(items: Iterable[Any]) -> str:
    return ", ".join(str(item) for item in items)


def _guess(word: Any, options: Iterable[str]) -> str | None:
    """The option that a misspelt word was probably meant to be."""
    if not isinstance(word, str):
        return None
    known = list(options)
    plain = word[:64].lower().replace("_", "-")
    close = difflib.get_close_matches(plain, known, n=1) or difflib.get_close_matches(
        plain.replace("-", "_"), known, n=1
    )
    return close[0] if close else None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
_FLAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,6}([-+][0-9A-Za-z.+-]+)?")
_CIDR = re.compile(r"\d{1,3}(\.\d{1,3}){3}/\d{1,2}")

#: Longest name of a node: X.509 allows 64 characters in a common name (RFC 5280, A.1) and the
#: kubelet's is `system:node:<name>`.
_NODE_NAME = 64 - len("system:node:")

#: Blocks that no host, VIP, pod or service can use (RFC 6890).
_SPECIAL = tuple(
    (ipaddress.IPv4Network(block), words)
    for block, words in (
        ("0.0.0.0/8", "means this host"),
        ("127.0.0.0/8", "is loopback"),
        ("169.254.0.0/16", "is link-local"),
        ("224.0.0.0/4", "is multicast"),
        ("240.0.0.0/4", "is reserved"),
    )
)


def _name(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and _LABEL.fullmatch(value):
        return None
    return (
        "a DNS label: 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends",
        "choose a name such as lab or prod-1" if isinstance(value, str) else "write it in quotes",
    )


def _domain(value: Any) -> tuple[str, str] | None:
    if (
        isinstance(value, str)
        and len(value) <= 200  # leaves room for names of services below it
        and all(_LABEL.fullmatch(label) for label in value.split("."))
    ):
        return None
    return (
        "a DNS domain in lower case without a dot at the end",
        "write one such as cluster.local",
    )


def _host_id(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, str):
        return ("a Salt minion id", "write it in quotes")
    if any(sign in value for sign in "*?[]"):
        return ("a Salt minion id, not a pattern of several", "declare every host by its own id")
    if all(_LABEL.fullmatch(label) for label in value.lower().split(".")) and len(value) <= 63:
        return None
    return (
        "a Salt minion id that is a DNS name of at most 63 characters (letters, digits, - and .), "
        "for it names the host in Kubernetes and etcd",
        "set such an `id` on the minion and write it here",
    )


def _address(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, str):
        return ("an IPv4 address", "write one such as 10.0.0.11")
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        if "/" in value:
            return ("an IPv4 address without a prefix", f"write {_short(value.split('/')[0])}")
        return ("an IPv4 address", "write one such as 10.0.0.11, not a host name")
    if address.version == 6:
        return ("an IPv4 address, IPv6 is not supported yet", "give the host's IPv4 address")
    for block, words in _SPECIAL:
        if address in block:
            return (
                f"an address that other hosts can reach, and {block} {words}",
                "give the address of a network that all hosts share",
            )
    return None


def _network(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, str):
        return ("an IPv4 network in CIDR notation", "write one such as 10.96.0.0/16")
    if ":" in value:
        return (
            "an IPv4 network, IPv6 is not supported yet",
            "write one such as 10.96.0.0/16",
        )
    if not _CIDR.fullmatch(value):
        return (
            "an IPv4 network in CIDR notation, address/prefix",
            "write one such as 10.96.0.0/16",
        )
    try:
        network = ipaddress.IPv4Network(value, strict=False)
    except ValueError:
        return (
            "numbers up to 255 and a prefix up to 32",
            "write a network such as 10.96.0.0/16",
        )
    if str(network) != value:
        return ("the first address of the network, without host bits", f"write {network}")
    for block, words in _SPECIAL:
        if network.overlaps(block):
            return (f"a network for hosts, and {block} {words}", "choose a private network")
    return None


def _networks(value: Any) -> tuple[str, str] | None:
    items = value if isinstance(value, list) else [value]
    if not items:
        return ("at least one network", "name the hosts' network or delete the key")
    return next((complaint for item in items if (complaint := _network(item))), None)


def _services(value: Any) -> tuple[str, str] | None:
    # The API server takes at most 20 bits: cmd/kube-apiserver/app/options/validation.go.
    return _network(value) or _prefix(value, 12, 24, "services")


def _pods(value: Any) -> tuple[str, str] | None:
    # At most 16 bits of /24s: pkg/controller/nodeipam/ipam/cidrset, clusterSubnetMaxDiff.
    return _network(value) or _prefix(value, 8, 24, "a /24 of pods per node")


def _prefix(value: str, widest: int, narrowest: int, what: str) -> tuple[str, str] | None:
    prefix = int(value.split("/")[1])
    if widest <= prefix <= narrowest:
        return None
    fit = min(max(prefix, widest), narrowest)
    network = ipaddress.IPv4Network((value.split("/")[0], fit), strict=False)
    return (f"a prefix from /{widest} to /{narrowest}, to hold {what}", f"write {network}")


def _interface(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and _INTERFACE.fullmatch(value) and value not in (".", ".."):
        return None
    return (
        "the name of a network interface, at most 15 characters",
        "write the name that `ip link` shows, such as eth0",
    )


def _integer(low: int, high: int, what: str = "") -> Check:
    def check(value: Any) -> tuple[str, str] | None:
        if _is_int(value) and low <= value <= high:
            return None
        quoted = isinstance(value, str) and value.isdecimal()
        return (
            f"a whole number from {low} to {high}{what}",
            "write it without quotes" if quoted else "choose one in that range",
        )

    return check


def _seconds(low: float, high: float, whole: bool = False) -> Check:
    def check(value: Any) -> tuple[str, str] | None:
        right_kind = _is_int(value) if whole else _is_number(value)
        if right_kind and low <= value <= high:
            return None
        kind = "a whole number" if whole else "a number"
        return (
            f"{kind} of seconds from {low:g} to {high:g}",
            "write the bare number, without a unit"
            if isinstance(value, str)
            else "choose one in that range",
        )

    return check


def _boolean(value: Any) -> tuple[str, str] | None:
    if isinstance(value, bool):
        return None
    return ("true or false", "write it without quotes")


def _clock(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        return None
    # YAML reads 01:30 as the number 90 where it is not in quotes.
    return ("a time of day, hh:mm, in quotes", 'write one such as "01:30"')


def _folder(value: Any) -> tuple[str, str] | None:
    plain = isinstance(value, str) and re.fullmatch(r"(/[A-Za-z0-9._-]+){2,}", value)
    if plain and ".." not in value.split("/"):
        return None
    return (
        "an absolute path of at least two folders, of letters, digits and . _ -",
        "write one such as /var/lib/indigo-backup",
    )


def _recipient(value: Any) -> tuple[str, str] | None:
    # A look at the text is all that is done here: this module has no cryptography. A host that
    # cannot seal for the key says so.
    if isinstance(value, str) and re.fullmatch(
        r"\s*-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+-----END PUBLIC KEY-----\s*", value
    ):
        return None
    if isinstance(value, str) and "PRIVATE" in value:
        return ("a public key", "write the other file's text; keep this one away from the cluster")
    return (
        "a public key in PEM (-----BEGIN PUBLIC KEY-----)",
        "write `recipient: |` and below it, indented, what `salt-run indigo_backup.keypair` made",
    )


def _one_of(options: tuple[str, ...]) -> Check:
    def check(value: Any) -> tuple[str, str] | None:
        if isinstance(value, str) and value in options:
            return None
        guess = _guess(value, options)
        return (
            f"one of {_listed(options)}",
            f"did you mean {guess}?" if guess else "choose one of them",
        )

    return check


#: The seed's third network, by its names.
_CONTRAIL = ("opencontrail", "contrail", "tungsten-fabric", "tungstenfabric", "opensdn")


def _pod_network(value: Any) -> tuple[str, str] | None:
    if value in _CONTRAIL:
        return (
            f"one of {_listed(POD_NETWORKS)}",
            "OpenContrail is not built here, docs/operations/network.md says why; flannel is what "
            "carries pods across networks",
        )
    return _one_of(POD_NETWORKS)(value)


#: What others call our roles.
_OTHER_WORDS = {
    "worker": "node",
    "workers": "node",
    "minion": "node",
    "control-plane": "master",
    "controlplane": "master",
    "controller": "master",
    "load-balancer": "lb",
    "loadbalancer": "lb",
    "haproxy": "lb",
    "keepalived": "lb",
    "pki": "ca",
}


def _meant_role(role: Any) -> str | None:
    """The role itself, or the one it was probably meant to be."""
    if not isinstance(role, str):
        return None
    if role in ROLES:
        return role
    plain = role.lower().replace("_", "-").replace(" ", "-")
    return _OTHER_WORDS.get(plain) or _guess(role, ROLES)


def _roles(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str):
        return ("a list of roles", f"write [{_short(value)}]")
    if not isinstance(value, list) or not value:
        return (f"a list with at least one of {_listed(ROLES)}", "say what the host is for")
    for role in value:
        if not isinstance(role, str) or role not in ROLES:
            meant = _meant_role(role)
            return (
                f"only roles of {_listed(ROLES)}, not {_shown(role)}",
                f"did you mean {meant}?" if meant else "delete it or choose one of them",
            )
    twice = next((role for role in value if value.count(role) > 1), None)
    if twice:
        return (f"every role once, not {twice} again", "delete the repeated one")
    return None


def _version(part: str) -> Check:
    """Check of one pinned version; ranges are those the tables and templates know."""

    def check(value: Any) -> tuple[str, str] | None:
        example = f'write it in quotes, such as "{table.DEFAULTS[part]}"'
        if isinstance(value, float):
            return (
                "a version in quotes, for YAML reads 1.30 as the number 1.3",
                example,
            )
        if not isinstance(value, str):
            return ("a version in quotes", example)
        if re.fullmatch(r"[vV]\d.*", value, re.DOTALL):
            return ("a version without the letter v", f'write "{_short(value[1:])}"')
        if not _VERSION.fullmatch(value) and not (
            part == "pause" and re.fullmatch(r"\d{1,4}\.\d{1,4}", value)
        ):
            return ("a full version, major.minor.patch", example)
        numbers = table.parse(value)[:2]
        low, high, words = _RANGES.get(part, ((0, 0), (9999, 9999), ""))
        if not low <= numbers <= high:
            return (words, f'pin a release in that range, such as "{table.DEFAULTS[part]}"')
        return None

    return check


_RANGES: Mapping[str, tuple[tuple[int, int], tuple[int, int], str]] = {
    "kubernetes": (
        (1, table.FIRST_MINOR),
        (1, table.LAST_MINOR),
        f"a Kubernetes release from 1.{table.FIRST_MINOR} to 1.{table.LAST_MINOR}",
    ),
    "etcd": ((3, 4), (3, 6), "an etcd release from 3.4 to 3.6"),
    "containerd": ((1, 6), (2, 9999), "a containerd release from 1.6 to 2.x"),
    "runc": ((1, 0), (1, 9999), "a runc release 1.x"),
    "cni-plugins": ((1, 0), (1, 9999), "a release 1.x of the CNI plugins"),
}


def _package_version(value: Any) -> tuple[str, str] | None:
    """Check of a package's version: exactly one, with its epoch and revision."""
    if isinstance(value, str) and re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.+:~^_-]*", value):
        return None
    return (
        "one version of a package, in quotes",
        "copy it from `apt-cache policy` or `dnf list --showduplicates` on a load balancer",
    )


def _scalar(value: Any) -> tuple[str, str] | None:
    if value is None or isinstance(value, (str, bool)) or _is_number(value):
        return None
    return (
        "one value (text, number or boolean), or nothing to remove the flag",
        "join a list with commas into one text",
    )


def _flag_name(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and _FLAG.fullmatch(value):
        return None
    if isinstance(value, str) and value.startswith("-"):
        return ("the name of a flag without dashes", f"write {_short(value.lstrip('-'))}")
    return ("the name of a flag", "write it as the program's --help does, without dashes")


def _component(value: Any) -> tuple[str, str] | None:
    return _one_of(COMPONENTS)(value)


def _option_value(value: Any) -> tuple[str, str] | None:
    several = value if isinstance(value, list) and value else [value]
    for one in several:
        plain = isinstance(one, str) and one.isprintable()
        if not plain and (several is value or not (isinstance(one, bool) or _is_number(one))):
            return ("one line of text, a number, a boolean, or a list of texts", "correct it")
    return None


def _upstream(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and value.startswith("/") and not any(map(str.isspace, value)):
        return None
    fault = _address(value)
    return ("an IPv4 address or the path of a file", fault[1]) if fault else None


def _matching(pattern: str, what: str, example: str) -> Check:
    def check(value: Any) -> tuple[str, str] | None:
        if isinstance(value, str) and re.fullmatch(pattern, value):
            return None
        return (what, f"write one such as {example}")

    return check


_size = _matching(r"[1-9]\d{0,5}(Mi|Gi|Ti)", "a size in Mi, Gi or Ti", "4Gi")
_span_of_time = _matching(r"[1-9]\d{0,4}[hdwy]", "a time in h, d, w or y", "15d")
_secret_name = _matching(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "a Secret's name", "site")
_target = _matching(r"\d{1,3}(\.\d{1,3}){3}:\d{1,5}", "an address and a port", "10.0.0.5:9100")
_url = _matching(r"https?://[^\s/]+(/\S*)?", "a URL", "http://10.0.0.5:8080/alerts")
_plain = _matching(r"[^\x00-\x1f\x7f]{1,255}", "a text of one line", "RegionOne")
_cloud_id = _matching(r"[0-9A-Za-z-]{1,64}", "an id, as OpenStack shows it", "5a1b…")
_served_file = _matching(
    r"salt://[\w.@+-]+(/[\w.@+-]+)*",
    "a file of the Salt file server",
    "salt://openstack/ca.pem, and put the file there",
)
_sha256 = _matching(r"[0-9a-f]{64}", "64 hexadecimal digits", "those that `sha256sum` shows")
_site = _matching(r"[A-Za-z0-9][\w.-]{0,254}", "a site's name, as GOCDB has it", "EXAMPLE-SITE")
_vo = _matching(r"[A-Za-z0-9][\w.-]{0,254}", "the name of a VO", "vo.example.org")
_submit_host = _matching(
    r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?(:\d{1,5})?",
    "a host's name, and a port where you want one",
    "kubernetes.example.org:8443",
)
_month = _matching(r"20\d\d-(0[1-9]|1[0-2])", "a year and a month", "2026-09")
_queue = _matching(r"[\w.-]{1,200}", "a name of APEL's broker", "gLite-APEL")
_class_name = _matching(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "a StorageClass's name", "fast")


def _accounted(value: Any) -> tuple[str, str] | None:
    # A CronJob has its name.
    fault = _name(value)
    if fault or len(value) <= accounting.LONGEST:
        return fault
    return (
        f"a namespace whose name has at most {accounting.LONGEST} characters",
        "let the pods run in one with a shorter name",
    )


def _benchmark(value: Any) -> tuple[str, str] | None:
    if _is_number(value) and 0 < value <= 1000:
        return None
    return (
        "a number above 0 and up to 1000: HS06 or HEPscore of one core",
        "write it without quotes" if isinstance(value, str) else "measure it, or ask your EGI",
    )


#: Lowest and highest of each field of a time of cron.
_CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


def _schedule(value: Any) -> tuple[str, str] | None:
    fields = value.split() if isinstance(value, str) else []
    if len(fields) == len(_CRON) and all(map(_cron_field, fields, _CRON)):
        return None
    return (
        "five fields of cron: minute, hour, day, month and day of the week, in numbers",
        'write one such as "15 3 * * *", in quotes',
    )


def _cron_field(text: str, bounds: tuple[int, int]) -> bool:
    for part in text.split(","):
        found = re.fullmatch(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/([1-9]\d?))?", part)
        if not found:
            return False
        ends = [int(one) for one in found.groups()[:2] if one]
        if any(not bounds[0] <= one <= bounds[1] for one in ends) or ends != sorted(ends):
            return False
    return True


def _service_name(value: Any) -> tuple[str, str] | None:
    # The name of its inventory has some more letters, and a label holds 63.
    fault = _name(value)
    if fault or len(value) <= 40:
        return fault
    return ("a DNS label of at most 40 characters", "choose a shorter name")


#: A label's name, perhaps with a domain before it, and its value (kubernetes.io "Labels").
_LABEL_NAME = re.compile(
    r"(?:([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


def _label_name(value: Any) -> tuple[str, str] | None:
    match = _LABEL_NAME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return ("the name of a label", "write one such as role or example.org/rack")
    domain = match.group(1) or ""
    for own in ("kubernetes.io", "k8s.io"):
        # A node may not say these of itself: the API's admission plugin NodeRestriction.
        if domain == own or domain.endswith(f".{own}"):
            return (f"a label outside {own}, which is Kubernetes' own", "choose another domain")
    return None


def _label_value(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and _LABEL_VALUE.fullmatch(value):
        return None
    remedy = "shorten it" if isinstance(value, str) else "write it in quotes"
    return ("at most 63 letters, digits and . _ -, with a letter or digit at both ends", remedy)


def _site_name(value: Any) -> tuple[str, str] | None:
    """A name that a site serves, or all names below one."""
    plain = value.removeprefix("*.") if isinstance(value, str) else ""
    labels = plain.split(".")
    if len(plain) <= 253 and len(labels) > 1 and all(_LABEL.fullmatch(one) for one in labels):
        return None
    return (
        "a DNS name of at least two parts, perhaps with *. before it",
        'write one such as www.example.org or "*.apps.example.org"',
    )


def _data(value: Any) -> tuple[str, str] | None:
    """A mapping that JSON can carry to the hosts."""
    if not isinstance(value, Mapping):
        return ("a mapping", "indent its keys below it, or delete it")
    fault = _not_json(value, set(), set())
    return (f"data that JSON can carry, not {fault}", "write that in quotes") if fault else None


def _not_json(value: Any, above: set[int], done: set[int]) -> str | None:
    if value is None or isinstance(value, (str, bool)) or _is_number(value):
        return None
    if not isinstance(value, (Mapping, list)):
        return _shown(value)
    if id(value) in above:
        return "an alias to the structure it stands in"
    if id(value) in done:
        return None
    above.add(id(value))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return f"the key {_shown(key)}"
    for item in value.values() if isinstance(value, Mapping) else value:
        fault = _not_json(item, above, done)
        if fault:
            return fault
    above.discard(id(value))
    done.add(id(value))
    return None


def _text(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and value.strip():
        return None
    return ("text", "write it in quotes")


#: What of an override each component reads.
_READS: Mapping[str, tuple[str, ...]] = {
    "haproxy": ("config",),
    "keepalived": ("config",),
    "etcd": ("flags",),
    "kube-apiserver": ("flags",),
    "kube-controller-manager": ("flags",),
    "kube-scheduler": ("flags",),
    "containerd": ("config",),
    "kubelet": ("flags", "config"),
    "kube-proxy": ("flags", "config"),
}

_SCHEMES = ("https://", "http://", "salt://", "file://")


def _mirror(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and not re.search(r"[\s{}]", value):
        if re.fullmatch(r"(https?|salt)://[^/].*", value) or re.fullmatch(r"file:///.+", value):
            return None
        if value.startswith("/") and value != "/":
            return None
    return (
        f"a URL ({_listed(_SCHEMES)}) or the absolute path of a folder",
        "write one such as https://mirror.example.org/files or /srv/mirror",
    )


def _url_pattern(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, str):
        return ("a URL with {version} and {arch} in it", "write it in quotes")
    try:
        filled = value.format(version="1.2.3", arch="amd64", binary="kubelet")
    except (KeyError, IndexError, ValueError, AttributeError):
        return ("no other fields than {version}, {arch} and {binary}", "correct the braces")
    complaint = _mirror(filled)
    return complaint and (complaint[0], "write one such as https://example.org/{version}/{arch}")


_HASH_LENGTHS = {"sha256": 64, "sha512": 128}


def _checksum(value: Any) -> tuple[str, str] | None:
    expected = "sha256: and 64 hexadecimal digits, or sha512: and 128"
    if not isinstance(value, str):
        return (expected, "write it in quotes")
    algorithm, colon, digits = value.partition(":")
    if not colon or algorithm not in _HASH_LENGTHS:
        bare = next((n for n, length in _HASH_LENGTHS.items() if length == len(value)), None)
        return (expected, f"write {bare}: before it" if bare else "copy the published checksum")
    if not re.fullmatch(r"[0-9a-fA-F]+", digits) or len(digits) != _HASH_LENGTHS[algorithm]:
        return (
            f"{_HASH_LENGTHS[algorithm]} hexadecimal digits after {algorithm}: and not "
            f"{len(digits)} characters",
            "copy the published checksum again",
        )
    return None


def _checksum_or_binaries(value: Any) -> tuple[str, str] | None:
    """A checksum; of Kubernetes, which is many downloads, a checksum per binary."""
    if not isinstance(value, Mapping):
        return _checksum(value)
    for name, item in value.items():
        if not isinstance(name, str):
            return ("names of binaries", f"write {_shown(name)} in quotes")
        complaint = _checksum(item)
        if complaint:
            return (f"for {_short(name)} {complaint[0]}, not {_shown(item)}", complaint[1])
    return None


_BINARIES = tuple(
    name for archive, _, names in artifacts.KUBERNETES.values() for name in (*names, archive)
)


def _any_version(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and _VERSION.fullmatch(value):
        return None
    return ("a full version as a key, without the letter v", 'write it in quotes, such as "1.2.3"')


KEYS: tuple[Key, ...] = (
    Key("name", "DNS label", "Name of the cluster.", required=True, check=_name),
    Key(
        "domain",
        "DNS domain",
        "Domain of services and pods.",
        default="cluster.local",
        check=_domain,
    ),
    Key("hosts", "mapping", "Every host of the cluster, by minion id.", required=True),
    Key(
        "hosts.<id>",
        "mapping",
        "One host. The id is that of its Salt minion; in lower case it is the name in Kubernetes "
        "and etcd.",
        check=_host_id,
    ),
    Key(
        "hosts.<id>.address",
        "IPv4 address",
        "Where the other hosts reach it.",
        required=True,
        check=_address,
    ),
    Key(
        "hosts.<id>.roles",
        "list",
        "What it is for, of " + ", ".join(f"`{role}`" for role in ROLES) + ". Roles combine. "
        "One host has `ca`; `etcd` is on an odd number of hosts, at most 7.",
        required=True,
        check=_roles,
    ),
    Key(
        "hosts.<id>.interface",
        "interface name",
        "On a load balancer the interface that takes the virtual address, where it is not "
        "`vip.interface`; on masters and nodes the one that carries `address`.",
        default="`vip.interface`; looked up on the host",
        check=_interface,
    ),
    Key(
        "hosts.<id>.labels",
        "mapping",
        "Labels of a node in Kubernetes. `role: loadbalancer` makes it one that carries the add-on "
        "`ingress`.",
        default="none",
    ),
    Key(
        "hosts.<id>.labels.<label>",
        "text",
        "Its value. A label that is no longer here is taken away; what others set stays.",
        check=_label_name,
    ),
    Key("vip", "mapping", "The virtual address of the Kubernetes API.", required=True),
    Key(
        "vip.address",
        "IPv4 address",
        "A free address in the load balancers' network.",
        required=True,
        check=_address,
    ),
    Key(
        "vip.interface",
        "interface name",
        "The load balancers' interface that takes the address.",
        required=True,
        check=_interface,
    ),
    Key(
        "vip.port",
        "1 to 65535",
        "Port of the API on the virtual address.",
        default=str(VIP_PORT),
        check=_integer(1, 65535),
    ),
    Key(
        "vip.router_id",
        "1 to 255",
        "VRRP's number of this virtual address; no other VRRP group in that network may use it.",
        default="51",
        check=_integer(1, 255),
    ),
    Key("networks", "mapping", "The networks, which must not overlap.", required=True),
    Key(
        "networks.services",
        "IPv4 network",
        "Addresses of services, /12 to /24. The first is the API's, the tenth that of DNS, the "
        "eleventh that of InfluxDB.",
        required=True,
        check=_services,
    ),
    Key(
        "networks.pods",
        "IPv4 network",
        "Addresses of pods, /8 to /24. Every node takes a /24.",
        required=True,
        check=_pods,
    ),
    Key(
        "networks.hosts",
        "IPv4 network, or a list",
        "Where the hosts and the virtual address are. When given, all addresses are checked "
        "against it before any host is asked.",
        default="not checked",
        check=_networks,
    ),
    Key(
        "network",
        ", ".join(f"`{kind}`" for kind in POD_NETWORKS),
        "What carries the pods' traffic between hosts: `routes` needs all masters and nodes on "
        "one network and no images; `flannel` works across networks.",
        default="routes",
        check=_pod_network,
    ),
    Key(
        "firewall",
        ", ".join(f"`{kind}`" for kind in FIREWALLS),
        "What keeps others from the cluster's ports on every host. It needs `networks.hosts`. "
        "What it does: [operations/ports.md](operations/ports.md).",
        default="none",
        check=_one_of(FIREWALLS),
    ),
    Key("versions", "mapping", "Releases to install, always in quotes."),
    *(
        Key(
            f"versions.{part}",
            "version",
            f"{_RANGES[part][2][0].upper()}{_RANGES[part][2][1:]}."
            if part in _RANGES
            else f"Release of {part}.",
            default=default,
            check=_version(part),
        )
        for part, default in table.DEFAULTS.items()
    ),
    Key(
        "packages",
        "mapping",
        "Versions of the distribution's packages, as its package manager writes them. What is not "
        "named here is what the distribution brings, and follows its updates. "
        "See [operations/upgrade.md](operations/upgrade.md).",
    ),
    *(
        Key(
            f"packages.{name}",
            "version of a package",
            f"Version of {name} on all {hosts}, for example `{example}`.",
            default="the distribution's",
            check=_package_version,
        )
        for name, hosts, example in (
            ("haproxy", "load balancers and masters", "2.6.12-1+deb12u4"),
            ("keepalived", "load balancers", "1:2.2.7-1+b2"),
        )
    ),
    Key("artifacts", "mapping", "Where the binaries come from."),
    Key(
        "artifacts.mirror",
        "URL or folder",
        "A mirror of upstream's release sites: `http://`, `https://`, `salt://`, `file://` or an "
        "absolute path. The host name of upstream's URL is the first folder in it.",
        default="upstream itself",
        check=_mirror,
    ),
    Key("artifacts.urls", "mapping", "Other places of single parts."),
    Key(
        "artifacts.urls.<part>",
        "URL",
        "Where one part or one Kubernetes binary is; `{version}`, `{arch}` and `{binary}` are "
        "filled in.",
        check=_one_of((*artifacts.URLS, *_BINARIES)),
    ),
    Key("artifacts.checksums", "mapping", "Checksums beside those that are known."),
    Key(
        "artifacts.checksums.<part>",
        "mapping",
        "Checksums of one part.",
        check=_one_of(
            tuple(dict.fromkeys(name for name in artifacts.URLS if name in table.DEFAULTS))
        ),
    ),
    Key(
        "artifacts.checksums.<part>.<version>",
        "mapping",
        "Checksums of one release.",
        check=_any_version,
    ),
    Key(
        "artifacts.checksums.<part>.<version>.<arch>",
        "checksum",
        "`sha256:` or `sha512:` and the digits, for "
        + " or ".join(f"`{arch}`" for arch in artifacts.ARCHITECTURES)
        + "; of `kubernetes` a mapping from binary to checksum.",
        check=_one_of(artifacts.ARCHITECTURES),
    ),
    Key("images", "mapping", "Container images that are put on every node."),
    Key(
        "images.pause",
        "image reference",
        "The image of every pod's sandbox.",
        default=f"registry.k8s.io/pause:{table.DEFAULTS['pause']}",
        check=_text,
    ),
    Key("images.use", "mapping", "Other images for add-ons, by their names in the table."),
    Key(
        "images.use.<image>",
        "image reference",
        "One from a mirror or from `images.archives`, in place of the pinned one; the names are in "
        "[addons.md](operations/addons.md).",
        check=_one_of(images.NAMES),
    ),
    Key(
        "images.archives",
        "list",
        "Archives of images to load on every node; those of an add-on only where it is wanted.",
        default="none",
    ),
    Key("images.archives[]", "mapping", "One archive, as `docker save` makes it."),
    Key(
        "images.archives[].name",
        "image reference",
        "An image in the archive, to see whether it is loaded.",
        default="file name of `source`",
        check=_text,
    ),
    Key(
        "images.archives[].source",
        "URL or folder",
        "Where the archive is.",
        required=True,
        check=_mirror,
    ),
    Key(
        "images.archives[].hash",
        "checksum",
        "`sha256:` or `sha512:` and the digits.",
        required=True,
        check=_checksum,
    ),
    Key(
        "overrides",
        "mapping",
        "Settings of single programs, merged last over what is derived.",
    ),
    Key(
        "overrides.<component>",
        "mapping",
        "One of " + ", ".join(f"`{name}`" for name in COMPONENTS) + ".",
        check=_component,
    ),
    Key(
        "overrides.<component>.flags",
        "mapping",
        "Command-line flags, without leading dashes, of "
        + ", ".join(f"`{name}`" for name, kinds in _READS.items() if "flags" in kinds)
        + ".",
    ),
    Key(
        "overrides.<component>.flags.<flag>",
        "text, number, boolean",
        "The value; nothing (`null`) removes the flag.",
        check=_flag_name,
    ),
    Key(
        "overrides.<component>.config",
        "mapping",
        "Keys of its configuration, of "
        + ", ".join(f"`{name}`" for name, kinds in _READS.items() if "config" in kinds)
        + "; nothing (`null`) removes a key.",
        check=_data,
    ),
    Key("timers", "mapping", "How long a failure goes unnoticed, in seconds."),
    Key(
        "timers.vip_advert",
        "0.01 to 40.95",
        "Interval of VRRP advertisements; the VIP moves after about three missed ones.",
        default=f"{TIMERS['vip_advert']:g}",
        check=_seconds(0.01, 40.95),
    ),
    Key(
        "timers.api_check",
        "0.1 to 60",
        "Interval of the load balancers' health checks of each API server.",
        default=f"{TIMERS['api_check']:g}",
        check=_seconds(0.1, 60),
    ),
    Key(
        "timers.node_status",
        "0.1 to 3600",
        "Interval at which kubelet looks at its node.",
        default=f"{TIMERS['node_status']:g}",
        check=_seconds(0.1, 3600),
    ),
    Key(
        "timers.node_grace",
        "1 to 86400",
        "Silence after which a node counts as not ready; at least three times `node_status`.",
        default=f"{TIMERS['node_grace']:g}",
        check=_seconds(1, 86400),
    ),
    Key(
        "timers.pod_eviction",
        "0 to 86400, whole",
        "How long pods stay bound to a node that is not ready.",
        default=f"{TIMERS['pod_eviction']:g}",
        check=_seconds(0, 86400, whole=True),
    ),
    Key("certificates", "mapping", "How long certificates are valid, and who looks after them."),
    Key(
        "certificates.days",
        "1 to 36500",
        "Days that a certificate is valid.",
        default=str(CERTIFICATES["days"]),
        check=_integer(1, 36500),
    ),
    Key(
        "certificates.renew_before",
        "1 to 36499",
        "Days before its end from which a certificate is renewed; less than `days`.",
        default=str(CERTIFICATES["renew_before"]),
        check=_integer(1, 36499),
    ),
    Key(
        "certificates.authority_days",
        "1 to 36500",
        "Days that the authorities are valid; at least `days`.",
        default=str(CERTIFICATES["authority_days"]),
        check=_integer(1, 36500),
    ),
    Key(
        "certificates.look",
        "0 to 604800",
        "Seconds between two looks of a host at its certificates: what is due is renewed. 0: only "
        "`state.apply` renews.",
        default=str(CERTIFICATES["look"]),
        check=_integer(0, 604800),
    ),
    Key("backup", "mapping", "Backups of etcd, see docs/operations/backup.md."),
    Key(
        "backup.every",
        "0 to 168, whole",
        "Hours from one backup to the next; 0 for none.",
        default=str(BACKUP["every"]),
        check=_integer(0, 168),
    ),
    Key(
        "backup.at",
        "hh:mm",
        "Time of day, in UTC, from which those hours are counted.",
        default=BACKUP["at"],
        check=_clock,
    ),
    Key(
        "backup.look",
        "10 to 86400, whole",
        "Seconds from one look, whether a backup is due, to the next.",
        default=str(BACKUP["look"]),
        check=_integer(10, 86400),
    ),
    Key(
        "backup.splay",
        "0 to 86400, whole",
        "Seconds by which a look is put off at most, by chance.",
        default=str(BACKUP["splay"]),
        check=_integer(0, 86400),
    ),
    Key("backup.keep", "mapping", "How many sets are kept beside the newest."),
    *(
        Key(
            f"backup.keep.{kind}",
            "0 to 1000, whole",
            f"The last set of each of so many {spans} that have one.",
            default=str(BACKUP["keep"][kind]),
            check=_integer(0, 1000),
        )
        for kind, spans in (("daily", "days"), ("weekly", "weeks"), ("monthly", "months"))
    ),
    Key(
        "backup.folder",
        "absolute path",
        "Where etcd's hosts keep sets.",
        default=BACKUP["folder"],
        check=_folder,
    ),
    Key(
        "backup.target",
        "absolute path",
        "One more folder, such as one of a file server that is mounted on etcd's hosts: who makes "
        "a set puts a copy there.",
        default="none",
        check=_folder,
    ),
    Key(
        "backup.copies",
        "boolean",
        "Whether every other etcd host gets a copy of each set.",
        default=str(BACKUP["copies"]).lower(),
        check=_boolean,
    ),
    Key(
        "backup.port",
        "1024 to 65535",
        "Port at which an etcd host hands a set to the others, for as long as that takes.",
        default=str(BACKUP["port"]),
        check=_integer(1024, 65535),
    ),
    Key(
        "backup.recipient",
        "PEM public key",
        "RSA key of the operator: the authorities' keys and the masters' tokens and keys go into "
        "the set sealed for it. `salt-run indigo_backup.keypair` makes one.",
        default="none: sets hold no keys",
        check=_recipient,
    ),
    Key("backup.defragment", "mapping", "When a member's database is rewritten."),
    Key(
        "backup.defragment.share",
        "1 to 99, whole",
        "Percent of it that must be free.",
        default=str(BACKUP["defragment"]["share"]),
        check=_integer(1, 99),
    ),
    Key(
        "backup.defragment.least",
        "0 to 100000, whole",
        "MiB of it that must be free.",
        default=str(BACKUP["defragment"]["least"]),
        check=_integer(0, 100000),
    ),
    Key("upgrade", "mapping", "How an upgrade goes, see docs/operations/upgrade.md."),
    Key(
        "upgrade.batch",
        "1 to 100, whole",
        "Nodes that are emptied and restarted at the same time.",
        default=str(UPGRADE["batch"]),
        check=_integer(1, 100),
    ),
    Key(
        "upgrade.drain",
        "1 to 86400, whole",
        "Seconds until the last pod of a node must be gone.",
        default=str(UPGRADE["drain"]),
        check=_integer(1, 86400),
    ),
    Key("addons", "mapping", "Add-ons to install, by name.", default="none"),
    Key(
        "addons.coredns",
        "mapping",
        "Names of services and pods, by CoreDNS; `{}` is enough.",
        default="not installed",
    ),
    Key(
        "addons.coredns.replicas",
        "1 to 100",
        "How many of them run, on different nodes.",
        default=f"one for {NODES_A_REPLICA} nodes, at least two",
        check=_integer(1, 100),
    ),
    Key(
        "addons.coredns.upstream",
        "list",
        "Who is asked for all other names: addresses, or a file such as a host's own; `[]` for "
        "nobody, as an air-gapped site wants it.",
        default="/etc/resolv.conf",
    ),
    Key(
        "addons.coredns.upstream[]",
        "IPv4 address or path",
        "One of those who are asked.",
        check=_upstream,
    ),
    Key(
        "addons.coredns.node_cache",
        "true or false",
        "Whether each node has a cache of names of its own, which its pods ask first. See "
        "[network.md](operations/network.md).",
        default="false",
        check=_boolean,
    ),
    Key(
        "addons.metrics-server",
        "mapping",
        "The use of processor and memory, for `kubectl top` and autoscalers; `{}` is enough.",
        default="not installed",
    ),
    Key(
        "addons.metrics-server.replicas",
        "1 to 5",
        "How many of them run, on different nodes.",
        default="two, where there are two nodes",
        check=_integer(1, 5),
    ),
    Key(
        "addons.prometheus",
        "mapping",
        "Metrics of hosts, pods and the cluster's own programs, by Prometheus, and alerts on them; "
        "`{}` is enough. See [monitoring.md](operations/monitoring.md).",
        default="not installed",
    ),
    Key(
        "addons.prometheus.replicas",
        "1 to 5",
        "How many of them run, on different nodes, each with everything.",
        default="two, where there are two nodes",
        check=_integer(1, 5),
    ),
    Key(
        "addons.prometheus.interval",
        "1 to 300, whole",
        "Seconds from one look at a target to the next.",
        default=str(monitoring.DEFAULTS["interval"]),
        check=_integer(1, 300),
    ),
    Key(
        "addons.prometheus.retention",
        "time",
        "How long metrics are kept, in h, d, w or y.",
        default=f"`{monitoring.DEFAULTS['retention']}`",
        check=_span_of_time,
    ),
    Key(
        "addons.prometheus.size",
        "size",
        "Room of each replica's data, in Mi, Gi or Ti: the oldest goes when four fifths are full.",
        default=f"`{monitoring.DEFAULTS['size']}`",
        check=_size,
    ),
    Key(
        "addons.prometheus.memory",
        "size",
        "Memory that each replica may take.",
        default=f"`{monitoring.DEFAULTS['memory']}`",
        check=_size,
    ),
    Key(
        "addons.prometheus.storage_class",
        "StorageClass",
        "Where the data lies.",
        default="on the node, for as long as the pod is there",
        check=_class_name,
    ),
    Key(
        "addons.prometheus.pods",
        "boolean",
        "Whether pods with the annotations `prometheus.io/scrape` and `prometheus.io/port` are "
        "scraped, too. Debian's build of Prometheus cannot.",
        default=str(monitoring.DEFAULTS["pods"]).lower(),
        check=_boolean,
    ),
    Key(
        "addons.prometheus.targets",
        "list",
        "What is scraped beside the cluster's own at `/metrics`, over plain HTTP, such as the file "
        "that `salt-run indigo.metrics` writes.",
        default="none",
    ),
    Key(
        "addons.prometheus.targets[]",
        "address:port",
        "One of them.",
        check=_target,
    ),
    Key(
        "addons.influxdb",
        "mapping",
        "The long term of what Prometheus finds, in InfluxDB; `{}` is enough. See "
        "[monitoring.md](operations/monitoring.md).",
        default="not installed",
    ),
    Key(
        "addons.influxdb.retention",
        "time",
        "How long metrics are kept, in h, d, w or y.",
        default=f"`{monitoring.INFLUXDB['retention']}`",
        check=_span_of_time,
    ),
    Key(
        "addons.influxdb.size",
        "size",
        "Room of its data, in Mi, Gi or Ti.",
        default=f"`{monitoring.INFLUXDB['size']}`",
        check=_size,
    ),
    Key(
        "addons.influxdb.memory",
        "size",
        "Memory that it may take.",
        default=f"`{monitoring.INFLUXDB['memory']}`",
        check=_size,
    ),
    Key(
        "addons.influxdb.storage_class",
        "StorageClass",
        "Where the data lies.",
        default="on the node, for as long as the pod is there",
        check=_class_name,
    ),
    Key(
        "addons.ingress",
        "mapping",
        "The way in for services, from the virtual address through the load balancers to Traefik "
        "on the nodes labelled `role: loadbalancer`; `{}` is enough. See "
        "[ingress.md](operations/ingress.md).",
        default="not installed",
    ),
    Key(
        "addons.ingress.http",
        "1 to 65535",
        "Port of the virtual address for HTTP.",
        default=str(ingress.DEFAULTS["http"]),
        check=_integer(1, 65535),
    ),
    Key(
        "addons.ingress.https",
        "1 to 65535",
        "Port of the virtual address for HTTPS.",
        default=str(ingress.DEFAULTS["https"]),
        check=_integer(1, 65535),
    ),
    Key(
        "addons.ingress.names",
        "list",
        "Names in the certificate that the cluster's own authority issues for it, beside the "
        "virtual address.",
        default="none",
    ),
    Key(
        "addons.ingress.names[]",
        "DNS name",
        "One of them, perhaps with `*.` before it.",
        check=_site_name,
    ),
    Key(
        "addons.ingress.certificate",
        "Secret's name",
        "A Secret of type `kubernetes.io/tls` in the namespace `ingress` with a certificate of the "
        "site's, in place of that one.",
        default="one of the cluster's own authority",
        check=_secret_name,
    ),
    Key(
        "addons.ingress.tcp",
        "list",
        "Ports of the virtual address that lead to services' node ports.",
        default="none",
    ),
    Key("addons.ingress.tcp[]", "mapping", "One such port."),
    Key(
        "addons.ingress.tcp[].port",
        "1 to 65535",
        "On the virtual address.",
        required=True,
        check=_integer(1, 65535),
    ),
    Key(
        "addons.ingress.tcp[].node_port",
        "1 to 65535",
        "`nodePort` of the service that it leads to.",
        required=True,
        check=_integer(1, 65535),
    ),
    Key(
        "addons.ingress.tcp[].proxy",
        "boolean",
        "Whether the program behind it speaks the PROXY protocol, and so learns the client's "
        "address.",
        default="false",
        check=_boolean,
    ),
    Key(
        "addons.ingress.memory",
        "size",
        "Memory that each controller may take.",
        default=f"`{ingress.DEFAULTS['memory']}`",
        check=_size,
    ),
    Key(
        "addons.alertmanager",
        "mapping",
        "Tells people of alerts, by Alertmanager; `{}` is enough to see them. See "
        "[monitoring.md](operations/monitoring.md).",
        default="not installed",
    ),
    Key(
        "addons.alertmanager.replicas",
        "1 to 3",
        "How many of them run, on different nodes; they tell each other what was sent.",
        default="two, where there are two nodes",
        check=_integer(1, 3),
    ),
    Key(
        "addons.alertmanager.webhooks",
        "list",
        "Who is told, by a POST of JSON.",
        default="none",
    ),
    Key(
        "addons.alertmanager.webhooks[]",
        "URL",
        "One of them. A URL that is a secret belongs into `secret`.",
        check=_url,
    ),
    Key(
        "addons.alertmanager.watchdog",
        "URL",
        "Who is told each minute that alerts arrive, and misses it when they no longer do.",
        default="nobody",
        check=_url,
    ),
    Key(
        "addons.alertmanager.wait",
        "0 to 3600, whole",
        "Seconds to collect alerts of one kind before the first message.",
        default=str(alerting.DEFAULTS["wait"]),
        check=_integer(0, 3600),
    ),
    Key(
        "addons.alertmanager.secret",
        "DNS label",
        "A Secret of your own in the namespace `alerting` whose `alertmanager.yaml` is the whole "
        "configuration: `webhooks`, `watchdog` and `wait` are then not used.",
        default="none",
        check=_name,
    ),
    Key(
        "addons.alertmanager.size",
        "size",
        "Room of silences and of what was sent, in Mi, Gi or Ti.",
        default=f"`{alerting.DEFAULTS['size']}`",
        check=_size,
    ),
    Key(
        "addons.alertmanager.storage_class",
        "StorageClass",
        "Where they lie.",
        default="on the node, for as long as the pod is there",
        check=_class_name,
    ),
    Key(
        "addons.grafana",
        "mapping",
        "Dashboards of every layer of the cluster, by Grafana; `{}` is enough. It needs "
        "`prometheus`. See [dashboards.md](operations/dashboards.md).",
        default="not installed",
    ),
    Key(
        "addons.grafana.memory",
        "size",
        "Memory that it may take.",
        default=f"`{dashboards.DEFAULTS['memory']}`",
        check=_size,
    ),
    Key(
        "addons.grafana.size",
        "size",
        "Room of what people make in it: users, dashboards of their own.",
        default=f"`{dashboards.DEFAULTS['size']}`",
        check=_size,
    ),
    Key(
        "addons.grafana.storage_class",
        "StorageClass",
        "Where that lies.",
        default="on the node, for as long as the pod is there",
        check=_class_name,
    ),
    Key(
        "addons.grafana.host",
        "DNS name",
        "Name in the URL by which an ingress controller leads to it; without one see it through "
        "`kubectl port-forward`.",
        default="none",
        check=_domain,
    ),
    Key(
        "addons.headlamp",
        "mapping",
        "The cluster in a browser, by Headlamp; `{}` is enough. See "
        "[dashboards.md](operations/dashboards.md).",
        default="not installed",
    ),
    Key(
        "addons.headlamp.replicas",
        "1 to 5",
        "How many of them run, on different nodes.",
        default="two, where there are two nodes",
        check=_integer(1, 5),
    ),
    Key(
        "addons.headlamp.host",
        "DNS name",
        "Name in the URL by which an ingress controller leads to it; without one see it through "
        "`kubectl port-forward`.",
        default="none",
        check=_domain,
    ),
    Key(
        "addons.logging",
        "mapping",
        "Lines of pods and nodes, by Fluent Bit, Elasticsearch and Kibana; `{}` is enough. See "
        "[logging.md](operations/logging.md).",
        default="not installed",
    ),
    Key(
        "addons.logging.retention",
        "time",
        "How long lines are kept, in h, d, w or y.",
        default=f"`{logs.DEFAULTS['retention']}`",
        check=_span_of_time,
    ),
    Key(
        "addons.logging.size",
        "size",
        "Room of all lines, in Mi, Gi or Ti. Without `storage_class` all are lost when they need "
        "more.",
        default=f"`{logs.DEFAULTS['size']}`",
        check=_size,
    ),
    Key(
        "addons.logging.memory",
        "size",
        "Memory of Elasticsearch; half of it is for Java.",
        default=f"`{logs.DEFAULTS['memory']}`",
        check=_size,
    ),
    Key(
        "addons.logging.storage_class",
        "StorageClass",
        "Where the lines lie.",
        default="on the node, for as long as the pod is there",
        check=_class_name,
    ),
    Key(
        "addons.logging.kibana",
        "boolean",
        "Whether Kibana shows them.",
        default="true",
        check=_boolean,
    ),
    Key(
        "addons.logging.host",
        "DNS name",
        "Name in the URL by which an ingress controller leads to Kibana.",
        default="none",
        check=_domain,
    ),
    Key(
        "addons.openstack",
        "mapping",
        "Disks of OpenStack's Cinder for claims, and load balancers of Octavia. The password is no "
        "key: it is in a file, see [openstack.md](operations/openstack.md).",
        default="not installed",
    ),
    Key(
        "addons.openstack.auth_url",
        "URL",
        "Keystone, version 3.",
        required=True,
        check=_url,
    ),
    Key(
        "addons.openstack.region",
        "text",
        "The region.",
        required=True,
        check=_plain,
    ),
    Key(
        "addons.openstack.application_credential",
        "id",
        "Id of an application credential, in place of a user: it is of one project, and can be "
        "taken back alone.",
        default="none",
        check=_cloud_id,
    ),
    Key(
        "addons.openstack.user",
        "text",
        "Name of the user who signs in, in place of an application credential.",
        default="none",
        check=_plain,
    ),
    Key(
        "addons.openstack.domain",
        "text",
        "The user's domain.",
        default=f"`{openstack.DEFAULTS['domain']}`",
        check=_plain,
    ),
    Key(
        "addons.openstack.project",
        "id",
        "Id of the user's project (tenant).",
        default="that of the application credential",
        check=_cloud_id,
    ),
    Key(
        "addons.openstack.ca",
        "salt:// URL",
        "Authority of the cloud's certificates where no public one signed them: a file in PEM.",
        default="those that the images trust",
        check=_served_file,
    ),
    Key(
        "addons.openstack.ca_sha256",
        "checksum",
        "Of that file.",
        default="none",
        check=_sha256,
    ),
    Key(
        "addons.openstack.storage_class",
        "StorageClass",
        "Name of the class that it brings.",
        default=f"`{openstack.DEFAULTS['storage_class']}`",
        check=_class_name,
    ),
    Key(
        "addons.openstack.default_class",
        "boolean",
        "Whether claims that name no class get that one.",
        default="false",
        check=_boolean,
    ),
    Key(
        "addons.openstack.type",
        "text",
        "Cinder's volume type. A class cannot be changed: see the page.",
        default="the cloud's",
        check=_plain,
    ),
    Key(
        "addons.openstack.zone",
        "text",
        "Cinder's availability zone.",
        default="that of the node",
        check=_plain,
    ),
    Key(
        "addons.openstack.any_zone",
        "boolean",
        "Whether servers of every zone can use disks of `zone`, as where the cloud's zones of "
        "disks are not those of servers.",
        default="false",
        check=_boolean,
    ),
    Key(
        "addons.openstack.volumes_per_node",
        "integer, 1 to 256",
        "Volumes that the cloud attaches to one server at most.",
        default="the driver's own: 256 up to Kubernetes 1.24, then none",
        check=_integer(1, 256),
    ),
    Key(
        "addons.openstack.keep",
        "boolean",
        "Whether a volume stays in the cloud when its claim is deleted.",
        default="false",
        check=_boolean,
    ),
    Key(
        "addons.openstack.snapshots",
        "boolean",
        "Whether it brings a VolumeSnapshotClass; the cluster must have its definition.",
        default="false",
        check=_boolean,
    ),
    Key(
        "addons.openstack.cloud_controller",
        "boolean",
        "Whether Octavia makes load balancers for services of type LoadBalancer.",
        default="false",
        check=_boolean,
    ),
    Key(
        "addons.openstack.subnet",
        "id",
        "Subnet of the nodes, where Octavia's load balancers are.",
        default="none",
        check=_cloud_id,
    ),
    Key(
        "addons.openstack.floating_network",
        "id",
        "External network whose addresses they get.",
        default="none: they are inside",
        check=_cloud_id,
    ),
    Key(
        "services",
        "mapping",
        "Workloads of your own, by name, see [services.md](operations/services.md).",
        default="none",
    ),
    Key(
        "services.zabbix",
        "mapping",
        "Not yours but ours: Zabbix, with an agent on every host; `{}` is enough. See "
        "[zabbix.md](operations/zabbix.md).",
        default="not installed",
    ),
    Key(
        "services.zabbix.host",
        "DNS name",
        "Name in the URL by which an ingress controller leads to the front end.",
        default="none",
        check=_domain,
    ),
    Key(
        "services.zabbix.size",
        "size",
        "Room of the database, in Mi, Gi or Ti.",
        default=f"`{zabbix.DEFAULTS['size']}`",
        check=_size,
    ),
    Key(
        "services.zabbix.memory",
        "size",
        "Memory of the database; a quarter of it is for its buffers.",
        default=f"`{zabbix.DEFAULTS['memory']}`",
        check=_size,
    ),
    Key(
        "services.zabbix.storage_class",
        "StorageClass",
        "Where the database lies, in place of `node`.",
        default="none",
        check=_class_name,
    ),
    Key(
        "services.zabbix.node",
        "minion id",
        "The node that has the database on its own disk.",
        default="the first",
        check=_text,
    ),
    Key(
        "services.zabbix.port",
        "1 to 65535",
        "Port of the virtual address that agents send to.",
        default=str(zabbix.DEFAULTS["port"]),
        check=_integer(1, 65535),
    ),
    Key(
        "services.zabbix.node_port",
        "1 to 65535",
        "Port of the nodes that it leads to, in the API server's range of node ports.",
        default=str(zabbix.DEFAULTS["node_port"]),
        check=_integer(1, 65535),
    ),
    Key(
        "services.im",
        "mapping",
        "The Infrastructure Manager; `{}` and its image in `images.use` are enough. See "
        "[im.md](operations/im.md).",
        default="not installed",
    ),
    Key(
        "services.im.memory",
        "size",
        "Memory that it may take.",
        default=f"`{infrastructures.DEFAULTS['memory']}`",
        check=_size,
    ),
    Key(
        "services.im.size",
        "size",
        "Room of its database.",
        default=f"`{infrastructures.DEFAULTS['size']}`",
        check=_size,
    ),
    Key(
        "services.im.storage_class",
        "StorageClass",
        "Where that lies.",
        default="on the node, for as long as the pod is there",
        check=_class_name,
    ),
    Key(
        "services.im.secret",
        "Secret's name",
        "A Secret of your own in the namespace `im`: each key is a user, its value the password.",
        default=f"one with the user `{infrastructures.USER}`, made up once",
        check=_secret_name,
    ),
    Key(
        "services.im.host",
        "DNS name",
        "Name in the URL by which an ingress controller leads to it.",
        default="none",
        check=_domain,
    ),
    Key(
        "services.im.config",
        "mapping",
        "Options of its own file `im.cfg`, section `[im]`.",
        default="its own defaults",
    ),
    Key(
        "services.im.config.<option>",
        "mapping",
        "One of them: text, number, boolean, or a list of texts.",
        check=_one_of(infrastructures.OPTIONS),
    ),
    Key(
        "services.accounting",
        "mapping",
        "What pods used, as records for APEL, by KAPEL; it needs `addons.prometheus` and an image "
        "in `images.use`. See [accounting.md](operations/accounting.md).",
        default="not installed",
    ),
    Key(
        "services.accounting.site",
        "name",
        "The site, as GOCDB names it.",
        required=True,
        check=_site,
    ),
    Key(
        "services.accounting.benchmark",
        "number",
        "HS06 or HEPscore of one core; KAPEL tells it as `si2k`, 250 times as much.",
        required=True,
        check=_benchmark,
    ),
    Key(
        "services.accounting.namespaces",
        "mapping",
        "Namespaces whose finished pods are counted, each with its VO.",
        required=True,
    ),
    Key(
        "services.accounting.namespaces.<namespace>",
        "name",
        "The VO of that namespace, which has at most 52 characters.",
        check=_accounted,
    ),
    Key(
        "services.accounting.submit_host",
        "name",
        "What the cluster is called in records; `/` and the namespace follow.",
        default="the virtual address and its port",
        check=_submit_host,
    ),
    Key(
        "services.accounting.schedule",
        "cron",
        "When it counts, in the time zone of the masters.",
        default=f"`{accounting.DEFAULTS['schedule']}`",
        check=_schedule,
    ),
    Key(
        "services.accounting.month",
        "year and month",
        "Count this month at each run, such as `2026-09`.",
        default="the present month and the last one",
        check=_month,
    ),
    Key(
        "services.accounting.memory",
        "size",
        "Memory that a run may take; upstream reckons with 10 KiB for each pod that ended.",
        default=f"`{accounting.DEFAULTS['memory']}`",
        check=_size,
    ),
    Key(
        "services.accounting.size",
        "size",
        "Room of the records of each namespace.",
        default=f"`{accounting.DEFAULTS['size']}`",
        check=_size,
    ),
    Key(
        "services.accounting.storage_class",
        "StorageClass",
        "Where they lie until they are sent.",
        default="with the pod of the run, whose log has them, too",
        check=_class_name,
    ),
    Key(
        "services.accounting.publish",
        "mapping",
        "Send records to APEL by SSM, whose image `images.use` has, too.",
        default="nothing is sent",
    ),
    Key(
        "services.accounting.publish.secret",
        "Secret's name",
        "A Secret of your own in the namespace `accounting` with `tls.crt` and `tls.key`, of the "
        "DN that GOCDB has for the site's gLite-APEL.",
        required=True,
        check=_secret_name,
    ),
    Key(
        "services.accounting.publish.host",
        "DNS name",
        "APEL's broker.",
        default=f"`{accounting.PUBLISH['host']}`",
        check=_domain,
    ),
    Key(
        "services.accounting.publish.project",
        "name",
        "Its project.",
        default=f"`{accounting.PUBLISH['project']}`",
        check=_queue,
    ),
    Key(
        "services.accounting.publish.destination",
        "name",
        "Its queue.",
        default=f"`{accounting.PUBLISH['destination']}`",
        check=_queue,
    ),
    Key(
        "services.<name>",
        "mapping",
        "One of them: a DNS label of at most 40 characters.",
        check=_service_name,
    ),
    Key(
        "services.<name>.source",
        "`salt://` folder",
        "Folder of the Salt master's file server with manifests (`*.yaml`), a `kustomization.yaml` "
        "or a Helm chart.",
        required=True,
        check=_matching(
            r"salt://[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*/?",
            "a folder of the Salt master's file server",
            "salt://services/wiki",
        ),
    ),
    Key(
        "services.<name>.namespace",
        "DNS label",
        "Namespace of objects that name none, and of a Helm release.",
        default="`default`",
        check=_name,
    ),
    Key(
        "services.<name>.values",
        "mapping",
        "Values of a Helm chart.",
        default="the chart's own",
        check=_data,
    ),
    Key(
        "services.<name>.check",
        "mapping",
        "A look at what it serves over HTTP, at every pod, once all of its pods are ready.",
        default="none",
    ),
    Key(
        "services.<name>.check.service",
        "DNS label",
        "The Service whose pods are asked, in `namespace`.",
        required=True,
        check=_name,
    ),
    Key(
        "services.<name>.check.path",
        "path",
        "What is asked for.",
        default="`/`",
        check=_matching(r"/[!-~]*", "a path that begins with a slash", "/healthz"),
    ),
    Key(
        "services.<name>.check.expect",
        "text",
        "What must be in the answer.",
        default="anything",
        check=_text,
    ),
)

#: What is checked below a key that has no keys of its own in the table.
_VALUES: Mapping[str, Check] = {
    "artifacts.urls.<part>": _url_pattern,
    "artifacts.checksums.<part>.<version>.<arch>": _checksum_or_binaries,
    "overrides.<component>.flags.<flag>": _scalar,
    "images.use.<image>": _text,
    "hosts.<id>.labels.<label>": _label_value,
    "services.im.config.<option>": _option_value,
    "services.accounting.namespaces.<namespace>": _vo,
}


# --- single values -------------------------------------------------------------------------


@dataclass
class _Branch:
    key: Key | None = None
    children: dict[str, _Branch] = field(default_factory=dict)


def _tree() -> _Branch:
    root = _Branch()
    for key in KEYS:
        branch = root
        for part in key.path.replace("[]", ".[]").split("."):
            branch = branch.children.setdefault(part, _Branch())
        branch.key = key
    return root


_TREE = _tree()


def _required_top() -> list[str]:
    return [key.path for key in KEYS if key.required and "." not in key.path]


def _problem(path: str, found: str, expected: str, remedy: str) -> str:
    return f"{path}: found {found}; expected {expected}; {remedy}"


def _walk(branch: _Branch, value: Any, path: str) -> Iterator[str]:
    """Problems of one value and of all below it that the table knows."""
    if "[]" in branch.children:
        if not isinstance(value, list):
            yield _problem(path, _shown(value), "a list", "begin each item with a dash")
            return
        for index, item in enumerate(value):
            yield from _walk(branch.children["[]"], item, f"{path}[{index}]")
        return
    if branch.children:
        if not isinstance(value, Mapping):
            words = "a mapping"
            named = [name for name in branch.children if not name.startswith("<")]
            if named:
                words += f" with keys of {_listed(named)}"
            remedy = "delete the key" if value is None and not _needed(branch) else ""
            yield _problem(path, _shown(value), words, remedy or "indent its keys below it")
            return
        yield from _walk_mapping(branch, value, path)
        return
    assert branch.key is not None
    check = _VALUES.get(branch.key.path, branch.key.check)
    complaint = check(value) if check else None
    if complaint:
        yield _problem(path, _shown(value), *complaint)


def _needed(branch: _Branch) -> bool:
    return branch.key is None or branch.key.required or "<" in branch.key.path


def _walk_mapping(branch: _Branch, value: Mapping[Any, Any], path: str) -> Iterator[str]:
    prefix = f"{path}." if path else ""
    wild = next((child for name, child in branch.children.items() if name[0] == "<"), None)
    plain = {name: child for name, child in branch.children.items() if child is not wild}
    # A misspelt key is told once, not as missing too.
    guesses = (
        {}
        if wild
        else {
            name: _guess(name, plain)
            for name in value
            if not isinstance(name, str) or name not in plain
        }
    )
    for name, child in plain.items():
        key = child.key
        if key and key.required and name not in value and name not in guesses.values():
            meaning = key.meaning.split(". ")[0].rstrip(".")
            yield _problem(
                f"{prefix}{name}",
                "no such key",
                f"it to be there ({key.type})",
                f"add it: {meaning[0].lower()}{meaning[1:]}",
            )
    for name, item in value.items():
        inner = f"{prefix}{_key_shown(name)}"
        if isinstance(name, str) and name in plain:
            yield from _walk(plain[name], item, inner)
        elif wild is not None and wild.key is not None:
            complaint = wild.key.check(name) if wild.key.check else None
            if complaint:
                yield _problem(inner, f"the key {_shown(name)}", *complaint)
            yield from _walk(wild, item, inner)
        else:
            guess = guesses.get(name)
            yield _problem(
                inner,
                "an unknown key",
                f"one of {_listed(plain)}",
                f"did you mean {guess}?" if guess else "delete it",
            )


# --- values seen together ------------------------------------------------------------------


@dataclass
class _Known:
    """What the document says for sure: values that are wrong by themselves are left out."""

    document: Mapping[str, Any]
    hosts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    addresses: dict[str, ipaddress.IPv4Address] = field(default_factory=dict)
    roles: dict[str, set[str]] = field(default_factory=dict)
    all_roles_known: bool = True
    vip: ipaddress.IPv4Address | None = None
    networks: dict[str, ipaddress.IPv4Network] = field(default_factory=dict)
    lans: list[ipaddress.IPv4Network] = field(default_factory=list)

    def at(self, path: str) -> Any:
        """The value at a path of plain keys if it is right by itself, else None."""
        value: Any = self.document
        branch = _TREE
        for part in path.split("."):
            if not isinstance(value, Mapping) or part not in value or part not in branch.children:
                return None
            value, branch = value[part], branch.children[part]
        return None if next(_walk(branch, value, path), None) else value

    def with_role(self, role: str) -> list[str]:
        return [id_ for id_, roles in self.roles.items() if role in roles]


def _known(document: Mapping[str, Any]) -> _Known:
    known = _Known(document)
    hosts = document.get("hosts")
    for id_, spec in hosts.items() if isinstance(hosts, Mapping) else ():
        if not isinstance(spec, Mapping):
            known.all_roles_known = False
            continue
        name = _key_shown(id_)
        known.hosts[name] = spec
        address = spec.get("address")
        if "address" in spec and _address(address) is None:
            known.addresses[name] = ipaddress.IPv4Address(address)
        listed = spec.get("roles")
        listed = [listed] if isinstance(listed, str) else listed
        if not isinstance(listed, list) or not listed:
            known.all_roles_known = False
            continue
        meant = [_meant_role(role) for role in listed]
        known.roles[name] = {role for role in meant if role}
        known.all_roles_known &= all(meant)
    vip = known.at("vip.address")
    known.vip = ipaddress.IPv4Address(vip) if vip else None
    for name in ("services", "pods"):
        network = known.at(f"networks.{name}")
        if network:
            known.networks[name] = ipaddress.IPv4Network(network)
    lans = known.at("networks.hosts")
    if lans:
        items = lans if isinstance(lans, list) else [lans]
        known.lans = [ipaddress.IPv4Network(item) for item in items]
    return known


def _and_more(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{items[0]} and {len(items) - 1} more"


def _host_relations(known: _Known) -> Iterator[str]:
    hosts = known.document.get("hosts")
    if isinstance(hosts, Mapping) and not hosts:
        yield _problem("hosts", "no host", "at least one", "declare every host of the cluster")
    by_name: dict[str, str] = {}
    for id_ in known.hosts:
        other = by_name.setdefault(id_.lower(), id_)
        if other != id_:
            yield _problem(
                f"hosts.{id_}",
                f"the name of hosts.{other} in other case",
                "ids that differ in lower case too, for Kubernetes knows hosts by that",
                "rename one of the two minions",
            )
    by_address: dict[ipaddress.IPv4Address, str] = {}
    for id_, address in known.addresses.items():
        path = f"hosts.{id_}.address"
        other = by_address.setdefault(address, id_)
        if other != id_:
            yield _problem(
                path,
                f"{address}, which is the address of hosts.{other} too",
                "one address per host",
                "correct one of the two",
            )
        elif address == known.vip:
            yield _problem(
                path,
                f"{address}, which is vip.address",
                "the host's own address",
                "give the VIP an address that no host has",
            )
        yield from _place(path, address, known.lans)
    for id_ in known.with_role("node"):
        if _NODE_NAME < len(id_) <= 63:
            yield _problem(
                f"hosts.{id_}",
                f"an id of {len(id_)} characters",
                f"at most {_NODE_NAME} for a node, whose certificate names it after `system:node:`",
                "shorten the minion's id",
            )


def _place(
    path: str, address: ipaddress.IPv4Address, lans: list[ipaddress.IPv4Network]
) -> Iterator[str]:
    """Whether an address is usable in one of the hosts' networks, where those are told."""
    if not lans:
        return
    lan = next((lan for lan in lans if address in lan), None)
    if lan is None:
        yield _problem(
            path,
            f"{address}, outside every network of networks.hosts",
            f"an address in {_listed(lans)}",
            "correct it, or add its network to networks.hosts",
        )
    elif lan.prefixlen < 31 and address in (lan.network_address, lan.broadcast_address):
        kind = "network" if address == lan.network_address else "broadcast"
        yield _problem(
            path,
            f"{address}, the {kind} address of {lan}",
            "an address between the first and the last of the network",
            "choose another one",
        )


_WHY = {
    "ca": "one host whose minion signs certificates",
    "lb": "at least one load balancer, which holds the VIP",
    "etcd": "1, 3, 5 or 7 members",
    "master": "at least one host that runs the control plane",
}


def _role_relations(known: _Known) -> Iterator[str]:
    if not known.hosts:
        return
    for role, expected in _WHY.items():
        if not known.with_role(role) and known.all_roles_known:
            yield _problem(
                "hosts", f"no host with the role {role}", expected, f"add {role} to a host's roles"
            )
    authorities = known.with_role("ca")
    if len(authorities) > 1:
        yield _problem(
            "hosts",
            f"the role ca on {_listed(authorities[:5])}",
            _WHY["ca"],
            "leave it to one of them, by default the Salt master's own minion",
        )
    members = known.with_role("etcd")
    if known.all_roles_known and len(members) > 7:
        yield _members_problem(members, "more would only slow writes down")


def _even_members(known: _Known) -> Iterator[str]:
    members = known.with_role("etcd")
    if members and known.all_roles_known and len(members) % 2 == 0 and len(members) < 8:
        yield _members_problem(
            members, f"{len(members)} survive no more failures than {len(members) - 1}"
        )


def _members_problem(members: list[str], why: str) -> str:
    return _problem(
        "hosts",
        f"{len(members)} hosts with the role etcd ({_listed(members[:8])})",
        f"1, 3, 5 or 7, for {why}",
        "add the role to a host or take it from one",
    )


#: Ports that programs of a role open on every address of a host, so that no VIP can use them.
_TAKEN = {
    "master": {API_PORT: "kube-apiserver", 10257: "controller-manager", 10259: "kube-scheduler"},
    "etcd": {2379: "etcd", 2380: "etcd"},
    "node": {10250: "kubelet", 10256: "kube-proxy"},
}


def _vip_relations(known: _Known) -> Iterator[str]:
    if known.vip is not None:
        yield from _place("vip.address", known.vip, known.lans)
    port = known.at("vip.port") or VIP_PORT
    balancers = set(known.with_role("lb"))
    for role, ports in _TAKEN.items():
        both = [id_ for id_ in known.with_role(role) if id_ in balancers]
        if both and port in ports:
            yield _problem(
                "vip.port",
                f"{port}, which {ports[port]} uses on {_and_more(both)}, a load balancer too",
                "a port that is free on the load balancers",
                f"choose another, such as {VIP_PORT}",
            )
    nodes = [id_ for id_ in known.with_role("node") if id_ in balancers]
    if nodes and 30000 <= port <= 32767:
        yield _problem(
            "vip.port",
            f"{port}, in the range of node ports, and {_and_more(nodes)} is a node too",
            "a port outside 30000 to 32767",
            f"choose another, such as {VIP_PORT}",
        )


def _network_relations(known: _Known) -> Iterator[str]:
    services, pods = known.networks.get("services"), known.networks.get("pods")
    if services and pods and services.overlaps(pods):
        yield _problem(
            "networks.pods",
            f"{pods}, which overlaps networks.services ({services})",
            "networks without common addresses",
            "change one of the two",
        )
    for name, network in known.networks.items():
        inside = [id_ for id_, address in known.addresses.items() if address in network]
        lan = next((lan for lan in known.lans if lan.overlaps(network)), None)
        if lan is not None:
            yield _problem(
                f"networks.{name}",
                f"{network}, which overlaps networks.hosts ({lan})",
                "networks without common addresses",
                "choose a network that nothing else uses",
            )
        elif inside:
            yield _problem(
                f"networks.{name}",
                f"{network}, which holds the address of hosts.{_and_more(inside)}",
                "a network that no host is in",
                "choose a network that nothing else uses",
            )
        elif known.vip is not None and known.vip in network:
            yield _problem(
                f"networks.{name}",
                f"{network}, which holds vip.address ({known.vip})",
                "a network that the VIP is not in",
                "choose a network that nothing else uses",
            )
    nodes = known.with_role("node")
    if pods and len(nodes) > 2 ** (24 - pods.prefixlen):
        need = 24 - (len(nodes) - 1).bit_length()
        yield _problem(
            "networks.pods",
            f"{pods}, which holds {2 ** (24 - pods.prefixlen)} networks /24 for {len(nodes)} nodes",
            "a /24 per node",
            f"choose a network of /{need} or wider" if need >= 8 else "declare fewer nodes",
        )
    if len(known.lans) > 1 and known.document.get("network", "routes") == "routes":
        members = (*known.with_role("master"), *nodes)
        carriers = [known.addresses[id_] for id_ in members if id_ in known.addresses]
        lans = sorted({lan for lan in known.lans for address in carriers if address in lan})
        if len(lans) > 1:
            yield _problem(
                "network",
                f"routes, with masters and nodes in {_listed(lans)}",
                "all masters and nodes in one network, where each answers for its own pods",
                "set network to flannel, or move the hosts into one network",
            )


def _firewall_relations(known: _Known) -> Iterator[str]:
    kind = known.at("firewall")
    networks = known.document.get("networks")
    if kind in (None, "none") or not isinstance(networks, Mapping) or "hosts" in networks:
        return
    yield _problem(
        "networks.hosts",
        f"no such key, and firewall: {kind}",
        "the networks of all hosts, from which the firewall lets nodes come",
        "add it, or set firewall to none",
    )


def _addon_relations(known: _Known) -> Iterator[str]:
    wanted = known.document.get("addons")
    if not isinstance(wanted, Mapping) or "prometheus" in wanted:
        return
    for name in ("alertmanager", "grafana"):
        if name in wanted:
            yield _problem(
                f"addons.{name}",
                "no addons.prometheus beside it",
                "Prometheus, whose alerts and metrics it shows",
                "add `prometheus: {}`, or take it out",
            )


def _names_relations(known: _Known) -> Iterator[str]:
    value: Any = known.document
    for part in ("overrides", "kubelet", "config"):
        value = value.get(part) if isinstance(value, Mapping) else None
    given = isinstance(value, Mapping) and "clusterDNS" in value
    if given and known.at("addons.coredns.node_cache"):
        yield _problem(
            "overrides.kubelet.config.clusterDNS",
            "it beside addons.coredns.node_cache: true",
            "one of the two, for with it pods do not ask their node's cache",
            "delete it, or set node_cache to false",
        )


def _openstack_relations(known: _Known) -> Iterator[str]:
    addons = known.document.get("addons")
    given = addons.get(openstack.NAME) if isinstance(addons, Mapping) else None
    if not isinstance(given, Mapping):
        return
    path = f"addons.{openstack.NAME}"
    if ("user" in given) == ("application_credential" in given):
        yield _problem(
            path,
            "both user and application_credential" if "user" in given else "nobody who signs in",
            "user, with project, or application_credential",
            "delete one of them" if "user" in given else "add one of them",
        )
    elif ("user" in given) != ("project" in given):
        yield _problem(
            f"{path}.project",
            "no such key" if "user" in given else "it beside application_credential",
            "it beside user, and there alone",
            "add it: `openstack project list` shows the id" if "user" in given else "delete it",
        )
    for one, other in (("ca", "ca_sha256"), ("ca_sha256", "ca")):
        if one in given and other not in given:
            yield _problem(
                f"{path}.{other}",
                f"no such key, and {one}",
                "both, or neither",
                "add it: `sha256sum` shows the sum" if one == "ca" else f"delete {one}",
            )
    if known.at(f"{path}.any_zone") and "zone" not in given:
        yield _problem(
            f"{path}.any_zone",
            "true without zone",
            "the zone of the disks beside it: else the cloud is asked for the server's",
            "add zone: `openstack availability zone list --volume` shows them, or set it to false",
        )
    wanted = known.at(f"{path}.cloud_controller")
    for key in ("subnet", "floating_network"):
        if key in given and not wanted:
            yield _problem(
                f"{path}.{key}",
                "it without cloud_controller: true",
                "it for load balancers alone",
                "delete it, or set cloud_controller: true",
            )
    if wanted:
        yield from _cloud_controller(known, path)


def _cloud_controller(known: _Known, path: str) -> Iterator[str]:
    """Whether there is what Octavia's load balancers need."""
    if "subnet" not in known.document["addons"][openstack.NAME]:
        yield _problem(
            f"{path}.subnet",
            "no such key, and cloud_controller: true",
            "the nodes' subnet: without --cloud-provider=external nobody can look it up",
            "add it: `openstack subnet list` shows the id",
        )
    release = known.at("versions.kubernetes") or table.DEFAULTS["kubernetes"]
    low, high = openstack.CONTROLLER_MINORS
    own = known.document.get("images")
    used = own.get("use") if isinstance(own, Mapping) else None
    if low <= table.minor(release) <= high or (
        isinstance(used, Mapping) and openstack.CONTROLLER in used
    ):
        return
    yield _problem(
        f"{path}.cloud_controller",
        f"true, with Kubernetes {release}",
        f"a release from 1.{low} to 1.{high}, for which a controller is pinned that is not newer, "
        "and at most one minor older",
        f"name an image of that minor under images.use.{openstack.CONTROLLER}, or set it to false",
    )


def _image_relations(known: _Known) -> Iterator[str]:
    given = known.document.get("services")
    pinned = known.at("images.use") or {}
    services = given if isinstance(given, Mapping) else {}
    wanted = {
        name: services[name] if isinstance(services[name], Mapping) else {}
        for name in SERVICES
        if name in services
    }
    for image in images.unpinned(wanted):
        if image.name not in pinned:
            yield _problem(
                f"images.use.{image.name}",
                f"no such key, and services.{image.addon}",
                "the image to run, for the table of images has no digest of upstream's",
                f"name one by digest, such as {image.reference}@sha256:…",
            )


def _version_relations(known: _Known) -> Iterator[str]:
    if "versions" in known.document and not isinstance(known.document["versions"], Mapping):
        return
    given = known.document.get("versions", {})

    def release(part: str) -> tuple[str, tuple[int, int], str] | None:
        text = known.at(f"versions.{part}") if part in given else table.DEFAULTS[part]
        if text is None:
            return None
        return text, table.parse(text)[:2], "" if part in given else " (the default)"

    kubernetes, containerd = release("kubernetes"), release("containerd")
    if kubernetes and containerd and known.with_role("node"):
        # Kubelets before 1.23 speak CRI v1alpha2 alone, which containerd dropped in 2.0
        # (containerd RELEASES.md); 1.35 is the last that supports containerd 1.x (its release
        # announcement, kubernetes.io).
        fit = None
        if kubernetes[1] < (1, 23) and containerd[1] >= (2, 0):
            fit = ("1.6 or 1.7", "1.7.29")
        elif kubernetes[1] > (1, 35) and containerd[1] < (2, 0):
            fit = ("2.x", table.DEFAULTS["containerd"])
        if fit:
            yield _problem(
                "versions.containerd",
                f"{containerd[0]}{containerd[2]}",
                f"containerd {fit[0]} with Kubernetes {kubernetes[0]}{kubernetes[2]}",
                f'pin a release of that, such as "{fit[1]}"',
            )


def _override_relations(known: _Known) -> Iterator[str]:
    overrides = known.document.get("overrides")
    for component, settings in overrides.items() if isinstance(overrides, Mapping) else ():
        if component not in COMPONENTS or not isinstance(settings, Mapping):
            continue
        for kind in ("flags", "config"):
            if settings.get(kind) and kind not in _READS[component]:
                (other,) = _READS[component]
                yield _problem(
                    f"overrides.{component}.{kind}",
                    f"{kind} of {component}",
                    f"{other} alone, for {component} is set up with nothing else here",
                    f"write them under overrides.{component}.{other}",
                )
        flags = settings.get("flags")
        if "flags" in _READS[component] and isinstance(flags, Mapping):
            for flag, value in flags.items():
                if not _flag_name(flag) and not _scalar(value):
                    yield from _flag_relations(known, component, flag, value)


def _flag_relations(known: _Known, component: str, flag: str, value: Any) -> Iterator[str]:
    """Whether a component has a flag in the release that is installed."""
    part = "etcd" if component == "etcd" else "kubernetes"
    release = known.at(f"versions.{part}") or table.DEFAULTS[part]
    path = f"overrides.{component}.flags.{flag}"
    flags = etcd.FLAGS if component == "etcd" else table.FLAGS[component]
    if component == "etcd" and flag in etcd.FIXED:
        yield _problem(
            path, "a flag that says who a member is", "what follows from the hosts", "delete it"
        )
    elif flag not in flags:
        guess = _guess(flag, flags)
        yield _problem(
            path,
            "an unknown flag",
            f"a flag of {component}",
            f"did you mean {guess}?" if guess else "delete it",
        )
    else:
        since, until = flags[flag]
        gone = not (since or 0) <= table.parse(release)[1] <= (until or 9999)
        if gone and value is not None and flag not in table.SUCCESSORS.get(component, {}):
            yield _problem(
                path,
                f"a flag that {component} {release} does not have",
                "flags of that release",
                "delete it, or set it to null to say that it is not wanted",
            )


def _timer_relations(known: _Known) -> Iterator[str]:
    given = known.document.get("timers", {})
    if not isinstance(given, Mapping):
        return
    values = {
        name: known.at(f"timers.{name}") if name in given else TIMERS[name]
        for name in ("node_status", "node_grace")
    }
    status, grace = values["node_status"], values["node_grace"]
    if status is not None and grace is not None and grace < 3 * status:
        # With less, one lost message is a dead node.
        yield _problem(
            "timers.node_grace",
            f"{grace:g} s with timers.node_status at {status:g} s",
            "at least three times node_status",
            f"set it to {3 * status:g} or more",
        )


def _certificate_relations(known: _Known) -> Iterator[str]:
    given = known.document.get("certificates", {})
    if not isinstance(given, Mapping):
        return
    days, renew, authority = (
        known.at(f"certificates.{name}") if name in given else CERTIFICATES[name]
        for name in ("days", "renew_before", "authority_days")
    )
    if days is not None and renew is not None and renew >= days:
        yield _problem(
            "certificates.renew_before",
            f"{renew} with certificates.days at {days}",
            "less than days, or every run would renew every certificate",
            f"set it to {max(1, days // 6)}" if days > 1 else "set days to 2 or more",
        )
    if days is not None and authority is not None and authority < days:
        yield _problem(
            "certificates.authority_days",
            f"{authority} with certificates.days at {days}",
            "at least days, for no certificate outlives its authority",
            f"set it to {days} or more",
        )


def _backup_relations(known: _Known) -> Iterator[str]:
    given = known.document.get("backup", {})
    if not isinstance(given, Mapping):
        return
    folder = known.at("backup.folder") if "folder" in given else BACKUP["folder"]
    if folder is not None and folder == known.at("backup.target"):
        yield _problem(
            "backup.target", f"{folder}, which is backup.folder", "another folder", "delete it"
        )
    port = known.at("backup.port") if "port" in given else BACKUP["port"]
    used = {port_: name for ports in _TAKEN.values() for port_, name in ports.items()}
    if port in used:
        yield _problem(
            "backup.port",
            f"{port}, which {used[port]} uses",
            "a port that is free on etcd's hosts",
            f"choose another, such as {BACKUP['port']}",
        )


def _label_relations(known: _Known) -> Iterator[str]:
    nodes = known.with_role("node")
    for id_, spec in known.hosts.items():
        if spec.get("labels") and id_ in known.roles and id_ not in nodes:
            yield _problem(
                f"hosts.{id_}.labels",
                "labels of a host without the role node",
                "labels of nodes alone, for only these are objects of Kubernetes",
                "add node to its roles, or delete them",
            )


def _ingress_relations(known: _Known) -> Iterator[str]:
    addons = known.document.get("addons")
    given = addons.get(ingress.NAME) if isinstance(addons, Mapping) else None
    if not isinstance(given, Mapping):
        return
    key, value = ingress.LABEL

    def labelled(id_: str) -> bool:
        labels = known.hosts[id_].get("labels")
        return isinstance(labels, Mapping) and labels.get(key) == value

    if known.all_roles_known and not any(map(labelled, known.with_role("node"))):
        yield _problem(
            "addons.ingress",
            f"no node with the label {key}: {value}",
            "at least one that carries it",
            f"add `labels: {{{key}: {value}}}` to a host with the role node",
        )
    yield from _ingress_ports(known, given)


def _ingress_ports(known: _Known, given: Mapping[str, Any]) -> Iterator[str]:
    """Whether each port of the virtual address is there once, and free on the load balancers."""
    balancers = set(known.with_role("lb"))
    taken = {known.at("vip.port") or VIP_PORT: "vip.port"}
    for role, used in _TAKEN.items():
        if balancers & set(known.with_role(role)):
            taken |= used
    asked = [
        (f"addons.ingress.{key}", given.get(key, ingress.DEFAULTS[key]))
        for key in ("http", "https")
    ]
    tcp = given.get("tcp")
    for index, one in enumerate(tcp if isinstance(tcp, list) else ()):
        if isinstance(one, Mapping):
            asked.append((f"addons.ingress.tcp[{index}].port", one.get("port")))
    nodes_too = balancers & set(known.with_role("node"))
    if nodes_too:
        own = (ingress.HTTP_PORT, ingress.HTTPS_PORT, ingress.HEALTH_PORT, ingress.PAGE_PORT)
        taken |= dict.fromkeys(own, "the controller")
    for path, port in asked:
        if not _is_int(port):
            continue
        user = taken.get(port)
        if user is None and nodes_too and 30000 <= port <= 32767:
            user = "a node port"
        if user:
            yield _problem(
                path,
                f"{port}, which {user} may have on a load balancer",
                "a port of the virtual address that nothing else uses",
                "choose another",
            )
        taken.setdefault(port, path)


def _zabbix_relations(known: _Known) -> Iterator[str]:
    services = known.document.get("services")
    if not isinstance(services, Mapping) or zabbix.NAME not in services:
        return
    node = known.at("services.zabbix.node")
    if node and node not in known.with_role("node"):
        yield _problem(
            "services.zabbix.node",
            _shown(node),
            "the id of a host with the role node",
            "correct it, or leave it out for the first node",
        )
    port = known.at("services.zabbix.port") or zabbix.DEFAULTS["port"]
    ways = ingress.DEFAULTS | (known.at("addons.ingress") or {})
    others = {known.at("vip.port") or VIP_PORT: "vip.port"}
    if known.at("addons.ingress") is not None:
        others |= {ways[key]: f"addons.ingress.{key}" for key in ("http", "https")}
        others |= {one["port"]: "addons.ingress.tcp" for one in ways["tcp"]}
    if port in others:
        yield _problem(
            "services.zabbix.port",
            f"{port}, which is {others[port]} too",
            "a port of the virtual address that nothing else uses",
            "choose another",
        )


def _accounting_relations(known: _Known) -> Iterator[str]:
    services = known.document.get("services")
    if not isinstance(services, Mapping) or accounting.NAME not in services:
        return
    given, path = services[accounting.NAME], f"services.{accounting.NAME}"
    if not isinstance(given, Mapping):
        return
    if given.get("namespaces") == {}:
        yield _problem(
            f"{path}.namespaces",
            "an empty mapping",
            "a namespace whose pods are to be counted, and its VO",
            "add one such as `batch: vo.example.org`",
        )
    addons = known.document.get("addons")
    if not isinstance(addons, Mapping) or "prometheus" not in addons:
        yield _problem(
            path,
            "no addons.prometheus",
            "Prometheus, which keeps what ran, and when",
            "add `prometheus: {}` under addons, or take it out",
        )
        return
    if "publish" not in given:
        return
    kept = known.at("addons.prometheus.retention") or monitoring.DEFAULTS["retention"]
    if int(kept[:-1]) * {"h": 1, "d": 24, "w": 168, "y": 8760}[kept[-1]] < 24 * accounting.REACH:
        yield _problem(
            "addons.prometheus.retention",
            f"{kept}, and {path}.publish",
            f"at least {accounting.REACH}d: each run counts this month and the last one anew",
            "set it to 90d, and size with it",
        )
    if not known.at("addons.prometheus.storage_class"):
        yield _problem(
            "addons.prometheus.storage_class",
            f"no such key, and {path}.publish",
            "disks on which data outlive a pod: what is lost is missing in the next record",
            "name a StorageClass",
        )


_RELATIONS: tuple[Callable[[_Known], Iterator[str]], ...] = (
    _host_relations,
    _role_relations,
    _vip_relations,
    _network_relations,
    _firewall_relations,
    _addon_relations,
    _names_relations,
    _openstack_relations,
    _image_relations,
    _version_relations,
    _override_relations,
    _timer_relations,
    _backup_relations,
    _certificate_relations,
    _label_relations,
    _ingress_relations,
    _zabbix_relations,
    _accounting_relations,
)


def lines(text: str, *path: str) -> tuple[int, int] | None:
    """First and last line of an entry of a document, with its key; comments are not counted.

    Args:
        text: YAML that :func:`load` can read.
        path: Keys from the top down.

    Returns:
        Line numbers from 1; None where there is no such entry.

    Example:
        >>> lines("hosts:\\n  a:\\n    roles: [ca]\\n  b: {}\\n", "hosts", "a")
        (2, 3)
    """
    node: Any = yaml.compose(text, Loader=_Loader)
    found = None
    for key in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        found = next((pair for pair in node.value if pair[0].value == key), None)
        if found is None:
            return None
        node = found[1]
    if found is None:
        return None
    first, end = found[0].start_mark.line, found[1].end_mark
    # A block ends where the next thing begins, behind blank lines and comments.
    last = end.line if end.column else end.line - 1
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        last = node.value[-1][1].end_mark.line
        if not node.value[-1][1].end_mark.column:
            last -= 1
    rows = text.splitlines()
    while last > first and (not rows[last].strip() or rows[last].lstrip().startswith("#")):
        last -= 1
    return first + 1, max(first, last) + 1


def problems(document: Any, parity: bool = True) -> list[str]:
    """Everything that is wrong with a document.

    What depends on the real hosts (that an interface exists, that the VIP is in its subnet) is
    left to the preflight checks on them.

    Args:
        document: What :func:`load` returned; any other data is judged too, and never raises.
        parity: Whether an even number of etcd members is a problem. It is not while members come
            and go one after the other.

    Returns:
        One sentence a problem, ``key: found …; expected …; what to do``. Empty for a document
        that :func:`cluster.parse` can read.

    Example:
        >>> problems({"nmae": "x"})[-1]
        'nmae: found an unknown key; expected one of name, domain, hosts, vip, networks, network, \
firewall, versions, packages, artifacts, images, overrides, timers, certificates, backup, upgrade, \
addons; did you mean name?'
    """
    if not isinstance(document, Mapping):
        return [
            _problem(
                "document",
                _shown(document),
                f"a mapping with the keys {_listed(_required_top())}",
                "start from the example in docs/pillar.md",
            )
        ]
    found = list(_walk_mapping(_TREE, document, ""))
    known = _known(document)
    for relation in _RELATIONS:
        found += relation(known)
    if parity:
        found += _even_members(known)
    return found


# --- the reference -------------------------------------------------------------------------

#: The smallest file that makes a highly available cluster.
EXAMPLE = """\
name: lab
vip: {address: 10.77.0.10, interface: eth0}
networks: {services: 10.96.0.0/16, pods: 10.244.0.0/16, hosts: 10.77.0.0/24}
hosts:
  salt: {address: 10.77.0.5, roles: [ca]}
  lb1: {address: 10.77.0.11, roles: [lb]}
  lb2: {address: 10.77.0.12, roles: [lb]}
  etcd1: {address: 10.77.0.21, roles: [etcd]}
  etcd2: {address: 10.77.0.22, roles: [etcd]}
  etcd3: {address: 10.77.0.23, roles: [etcd]}
  master1: {address: 10.77.0.31, roles: [master]}
  master2: {address: 10.77.0.32, roles: [master]}
  node1: {address: 10.77.0.41, roles: [node]}
  node2: {address: 10.77.0.42, roles: [node]}
"""


def reference() -> str:
    """The text of ``docs/pillar.md``, made of :data:`KEYS`."""
    lines = [
        "# The cluster file",
        "",
        "`pillar/cluster.yaml` declares the whole cluster. It is plain YAML, no template. What it",
        "does not say is derived, and all that is wrong with it is told at once:",
        "`salt-run salt.cmd indigo_model.problems`. This page is made from the table in",
        "`_modules/indigo_model/validate.py`; a test compares the two.",
        "",
        "```yaml",
        *EXAMPLE.splitlines(),
        "```",
        "",
        "Names in angle brackets are yours to choose; `[]` stands for each item of a list.",
    ]
    header = ["", "| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    lines += ["", "## At the top", *header]
    lines += [_row(key) for key in KEYS if key.path == _section(key)]
    section = None
    for key in KEYS:
        if key.path == _section(key):
            continue
        if _section(key) != section:
            section = _section(key)
            lines += ["", f"## {section}", *header]
        lines.append(_row(key))
    return "\n".join(lines) + "\n"


def _section(key: Key) -> str:
    return re.split(r"[.\[]", key.path)[0]


def _row(key: Key) -> str:
    default = "required" if key.required else key.default
    if default and not key.required and not re.search("[ `]", default) and default != "none":
        default = f"`{default}`"
    return f"| `{key.path}` | {key.type} | {default} | {key.meaning} |"
