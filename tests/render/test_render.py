"""Every SLS compiles for every role, system, Kubernetes minor and network, and means something.

What varies is covered so: every system with every role in one release, and every minor with both
networks on one system. `test_states_read_only_the_view` is why that is enough.
"""

from __future__ import annotations

import configparser
import functools
import itertools
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from indigo_model import upgrade
from indigo_model.cluster import FIREWALLS
from render_compiler import ALL, LATEST, MINORS, ROOT, SYSTEMS, Minion, declared, pillar, release

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it under its old name
    import tomli as tomllib

SALT = ROOT / "salt"
NETWORKS = ("routes", "flannel")
#: A host of the separate-roles cluster for each role.
HOSTS = {role: f"{role}1" for role in ALL}


@pytest.fixture(autouse=True, scope="module")
def commands_of_other_systems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands that modules of Salt's look for before they load, and that never run here."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("semanage", "setsebool", "semodule"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
        (folder / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:{folder}")
        yield


@functools.cache
def minion(system: str) -> Minion:
    return Minion(system)


def _files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in SALT.glob(pattern))


def absent_sls(host_roles: list[str]) -> list[str]:
    """The inverse of a host's roles, one by one and together."""
    return [*(f"{role}.absent" for role in host_roles), "common.absent"]


def none_of(faults: list[str]) -> None:
    """Fail with every fault once, and how often it was found."""
    found = Counter(fault.strip() for fault in faults)
    assert not found, "\n" + "\n".join(f"{count:4} x {fault}" for fault, count in found.items())


# --- faults of compiled states -------------------------------------------------------------


def state_faults(system: str, data: Mapping[str, Any], sls: list[str]) -> list[str]:
    """Everything that is wrong with some SLS under one pillar."""
    subject = minion(system)
    subject.use(data)
    compiled = subject.compile(sls)
    faults = list(compiled.errors)
    if not compiled.errors and not compiled.chunks:
        faults.append(f"{sls} has no state")
    for chunk in compiled.chunks:
        faults += subject.call_faults(chunk)
        faults += id_faults(str(chunk["__id__"]))
        faults += rule_faults(chunk)
        if (chunk["state"], chunk["fun"]) == ("file", "managed"):
            faults += file_faults(subject, chunk)
    # The name of other states is no thing on the host.
    things = [c for c in compiled.chunks if c["state"] in ("file", "pkg", "user", "indigo_service")]
    names = Counter((c["state"], c["name"]) for c in things)
    faults += [f"{name} is declared {n} times" for name, n in names.items() if n > 1]
    return faults


def id_faults(id_: str) -> Iterator[str]:
    """State IDs are plain English: output and requisites read as prose."""
    if " " not in id_ or len(id_) > 100 or re.search(r"[{}_|]{2}|None|\s$", id_):
        yield f"the ID {id_!r} is no plain English sentence"


#: States that have a better one here, and why.
_UNWANTED = {
    "cmd.run": "check in a state of our own",
    "cmd.script": "check in a state of our own",
    "pkg.latest": "a second run must change nothing",
    "service.running": "indigo_service.running converges after a kill too",
    "service.dead": "use indigo_service.stopped",
    "module.run": "a state of our own can be tested",
}


def rule_faults(chunk: Mapping[str, Any]) -> Iterator[str]:
    """Rules of this tree that Salt does not know."""
    name = f"{chunk['state']}.{chunk['fun']}"
    if name in _UNWANTED:
        yield f"{chunk['__id__']}: {name} is not wanted here: {_UNWANTED[name]}"
    for key in ("unless", "onlyif", "parallel"):
        if key in chunk:
            yield f"{chunk['__id__']}: {key} starts a process on every run"


_WORDS_OF_A_BUG = re.compile(
    r"(?<!level: )\bNone\b|\bUndefined\b|\{\{(?!\.)|\{%|<function |b'|\bTrue\b|\bFalse\b"
)


def file_faults(subject: Minion, chunk: Mapping[str, Any]) -> Iterator[str]:
    """A managed file renders, is what its name says, and holds no trace of the template."""
    id_, name = chunk["__id__"], str(chunk["name"])
    if "contents" not in chunk and "source" not in chunk:
        yield f"{id_}: neither source nor contents"
        return
    # Unquoted it is a number, and which one depends on the YAML reader.
    if not re.fullmatch(r"0[0-7]{3}", str(chunk.get("mode"))):
        yield f"{id_}: mode is {chunk.get('mode')!r}, and not four digits in quotes"
    try:
        text = subject.content(chunk)
    except Exception as err:  # whatever a template raises is its fault
        yield f"{id_}: {name} does not render: {type(err).__name__}: {str(err)[:300]}"
        return
    if text is None:
        return
    if not text.strip():
        yield f"{id_}: {name} is empty"
    for line in text.splitlines():
        # Quoted values are whatever the other program's language says.
        if _WORDS_OF_A_BUG.search(line) and not line.lstrip().startswith("#"):
            yield f"{id_}: {name} has the line {line!r}"
    try:
        syntax(name, text)
    except (ValueError, KeyError, SyntaxError, yaml.YAMLError, configparser.Error) as err:
        yield f"{id_}: {name} is broken: {err}"


def syntax(name: str, text: str) -> None:
    """Parse a file by what its name says it is; raises ValueError and the parsers' own errors."""
    suffix = Path(name).suffix
    if suffix in (".yaml", ".yml", ".kubeconfig"):
        # Only the manifests of an add-on are several documents.
        documents = list(yaml.safe_load_all(text)) if "/addons/" in name else [yaml.safe_load(text)]
        if not all(isinstance(document, dict) for document in documents):
            raise ValueError("no mapping")
    elif suffix in (".json", ".conflist"):
        # The template of a CNI configuration has Go's own fields.
        json.loads(re.sub(r"\{\{\.\w+\}\}", "10.0.0.0/24", text))
    elif suffix == ".xml":
        ElementTree.fromstring(text)
    elif suffix == ".toml":
        tomllib.loads(text)
    elif suffix in (".service", ".socket", ".timer", ".target"):
        unit(text)
    elif name.startswith("/etc/sysctl.d/"):
        for line in text.splitlines():
            if line.strip() and not re.fullmatch(r"-?[\w./-]+ ?= ?\S+( \S+)*|#.*", line):
                raise ValueError(f"{line!r} sets nothing")
    elif name.endswith((".nft", "keepalived.conf")) and text.count("{") != text.count("}"):
        raise ValueError("braces are not balanced")


def unit(text: str) -> dict[str, list[tuple[str, str]]]:
    """Parse a systemd unit strictly: sections, assignments, continuations, comments.

    Raises:
        ValueError: A line that systemd would ignore or misread.
    """
    sections: dict[str, list[tuple[str, str]]] = {}
    current = None
    joined = re.sub(r"\\\n", " ", text)
    if "\\" in joined:
        raise ValueError("a backslash that continues nothing")
    for line in joined.splitlines():
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        if match := re.fullmatch(r"\[([A-Z][A-Za-z-]+)\]", stripped):
            current = sections.setdefault(match.group(1), [])
        elif current is None:
            raise ValueError(f"{line!r} stands before any section")
        elif match := re.fullmatch(r"([A-Z][A-Za-z0-9]+)=(.*)", stripped):
            current.append((match.group(1), match.group(2)))
        else:
            raise ValueError(f"{line!r} is no assignment")
    if not any({"Unit", kind} <= set(sections) for kind in ("Service", "Timer", "Socket")):
        raise ValueError(f"sections are {sorted(sections)}")
    if "Socket" in sections and "ListenStream" not in dict(sections["Socket"]):
        raise ValueError("no ListenStream")
    starts = [value for key, value in sections.get("Service", ()) if key == "ExecStart"]
    if "Service" in sections and not starts:
        raise ValueError("no ExecStart")
    for value in starts:
        if not value.lstrip("-+!@:").startswith("/"):
            raise ValueError(f"ExecStart={value!r} is no absolute path")
    for name, entries in sections.items():
        for key, count in Counter(key for key, _ in entries).items():
            if count > 1 and not key.startswith(("Exec", "Environment", "Read", "After", "Wants")):
                raise ValueError(f"{name} has {key} {count} times")
    return sections


# --- the matrix ----------------------------------------------------------------------------


def _ids(value: Any) -> str:
    return str(value)


@pytest.mark.parametrize("system", SYSTEMS, ids=_ids)
def test_every_role_on_every_system(system: str) -> None:
    """top.sls assigns a host its roles' layers, and they compile."""
    faults = []
    for kind, host in [("single", "all1"), *(("ha", host) for host in HOSTS.values())]:
        data = pillar(kind, host)
        minion(system).use(data)
        sls = minion(system).top()
        layers = {"addons"} & set(data["indigo"])
        assert set(sls) == {"common", *data["indigo"]["roles"], *layers}
        faults += [f"{host}: {fault}" for fault in state_faults(system, data, sls)]
    none_of(faults)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("minor", MINORS, ids=lambda minor: f"1.{minor}")
def test_every_minor_on_masters_and_nodes(minor: int, network: str) -> None:
    kubernetes = release(minor)
    faults = []
    for role in ("master", "node"):
        data = pillar("ha", HOSTS[role], kubernetes, network)
        layers = sorted({"addons"} & set(data["indigo"]))
        found = state_faults("debian12", data, ["common", role, *layers])
        faults += [f"{role}: {fault}" for fault in found]
    none_of(faults)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("system", ["debian12", "rocky9"])
def test_one_host_with_all_roles_over_both_networks(system: str, network: str) -> None:
    data = pillar("single", "all1", LATEST, network)
    none_of(state_faults(system, data, ["common", *ALL, "addons"]))


@pytest.mark.parametrize("firewall", [kind for kind in FIREWALLS if kind != "none"])
@pytest.mark.parametrize("system", ["debian12", "rocky9"])
def test_every_role_behind_a_firewall(system: str, firewall: str) -> None:
    faults = []
    for kind, host in [("single", "all1"), *(("ha", host) for host in HOSTS.values())]:
        data = pillar(kind, host, firewall=firewall)
        sls = ["common", *data["indigo"]["roles"]]
        faults += [f"{host}: {fault}" for fault in state_faults(system, data, sls)]
    none_of(faults)


@pytest.mark.parametrize("system", ["debian12", "rocky9"])
def test_what_a_deploy_applies_to_hosts(system: str) -> None:
    faults = []
    for host in (*HOSTS.values(), "all1"):
        data = pillar("single" if host == "all1" else "ha", host)
        faults += [f"{host}: {fault}" for fault in state_faults(system, data, ["indigo.host"])]
        # What an upgrade applies before it: on the CA host alone there is nothing to fetch.
        faults += [f"{host}: {fault}" for fault in state_faults(system, data, ["indigo.fetched"])]
        for stage in upgrade.STAGES.values():
            if stage.role in data["indigo"]["roles"]:
                faults += [f"{host}: {f}" for f in state_faults(system, data, list(stage.sls))]
    none_of(faults)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("system", ["debian12", "rocky9"])
def test_every_role_can_be_removed(system: str, network: str) -> None:
    faults = []
    for kind, host in [("single", "all1"), *(("ha", host) for host in HOSTS.values())]:
        data = pillar(kind, host, LATEST, network)
        for sls in absent_sls(data["indigo"]["roles"]):
            found = state_faults(system, data, [sls])
            faults += [f"{host}, {sls}: {fault}" for fault in found]
    none_of(faults)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd on this machine")
@pytest.mark.parametrize("network", NETWORKS)
def test_systemd_knows_every_line_of_the_units(network: str, tmp_path: Path) -> None:
    """systemd only warns of a directive that it does not know, and goes on without it."""
    subject = minion("debian12")
    subject.use(pillar("single", "all1", LATEST, network, "nftables"))
    units = []
    for chunk in subject.compile(["common", *ALL]).chunks:
        if chunk["state"] == "file" and str(chunk["name"]).endswith(
            (".service", ".timer", ".socket")
        ):
            units.append(tmp_path / Path(chunk["name"]).name)
            units[-1].write_text(subject.content(chunk) or "")
    assert len(units) > 8
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    # The machine of the tests has none of the binaries.
    none_of([line for line in said.splitlines() if "is not executable: No such file" not in line])


@pytest.mark.parametrize("role", ALL)
def test_every_role_has_an_inverse(role: str) -> None:
    assert (SALT / role / "absent.sls").is_file()


@pytest.mark.parametrize("firewall", FIREWALLS)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("role", ALL)
def test_the_inverse_removes_what_the_role_brings(role: str, network: str, firewall: str) -> None:
    """Files, folders, units and packages: what a host's states bring, its inverse takes away."""
    data = pillar("ha", HOSTS[role], LATEST, network, firewall)
    subject = minion("debian12")
    subject.use(data)
    brought = subject.compile(["common", role])
    taken = subject.compile(["common.absent", f"{role}.absent"])
    none_of(brought.errors + taken.errors)
    gone = {str(c["name"]) for c in taken.chunks if (c["state"], c["fun"]) == ("file", "absent")}
    gone |= {str(c["name"]) for c in taken.chunks if c["fun"].endswith("_absent")}
    gone |= {path for c in taken.chunks if c["fun"] == "firewalld_absent" for path in c["files"]}
    stopped = {c["name"] for c in taken.chunks if c["fun"] == "stopped"}
    faults = []
    for chunk in brought.chunks:
        path = str(chunk["name"])
        if chunk["state"] == "file" and path not in SHARED_FOLDERS | KEPT:
            above = {path, *(str(parent) for parent in Path(path).parents)}
            if not above & gone:
                faults.append(f"{chunk['__id__']}: {path} stays")
        elif (chunk["state"], chunk["fun"]) == ("indigo_service", "running") and (
            path not in stopped
        ):
            faults.append(f"{chunk['__id__']}: {path} is not stopped")
    none_of(faults)


@pytest.mark.parametrize("monitored", [True, False])
def test_what_serves_keepalived_comes_and_goes_whole_with_prometheus(monitored: bool) -> None:
    data = json.loads(json.dumps(pillar("ha", "lb1")))
    if not monitored:
        data["indigo"]["components"]["keepalived"]["metrics"] = []
    subject = minion("debian12")
    subject.use(data)
    compiled = subject.compile(["lb"])
    none_of(compiled.errors)
    found = {
        (chunk["fun"], Path(chunk["name"]).name)
        for chunk in compiled.chunks
        if "keepalived-metrics" in str(chunk["name"])
    }
    files = ("keepalived-metrics", "keepalived-metrics.socket", "keepalived-metrics@.service")
    unit_, file_ = ("running", "managed") if monitored else ("stopped", "absent")
    assert found == {(unit_, "keepalived-metrics.socket"), *((file_, name) for name in files)}


#: Folders of the system that other software may use too.
SHARED_FOLDERS = {"/usr/local/bin"}

#: What is kept on purpose: the backups of a cluster may be all that is left of it.
KEPT = {"/var/lib/indigo-backup", "/var/lib/indigo-backup/.since"}


def test_every_inverse_is_reached() -> None:
    """What no role is called is removed with the roles that include it."""
    included = "\n".join(path.read_text("utf-8") for path in _files("*/absent.sls"))
    for path in _files("*/absent.sls"):
        folder = path.parent.name
        # The add-ons are the cluster's: they stay when one of its masters goes.
        assert folder in (*ALL, "common", "addons") or f"- {folder}.absent" in included, path


def test_a_second_run_of_the_compiler_gives_the_same_order() -> None:
    """Nothing in the tree depends on the order of a set or on time."""
    data = pillar("single", "all1")
    orders = []
    for _ in range(2):
        minion("debian12").use(data)
        compiled = minion("debian12").compile(["common", *ALL])
        orders.append([(chunk["state"], chunk["__id__"]) for chunk in compiled.chunks])
    assert orders[0] == orders[1] and len(orders[0]) > 20


# --- orchestration -------------------------------------------------------------------------

#: SLS that run on the Salt master; the others in salt/indigo are applied to hosts.
ORCHESTRATIONS = (
    "deploy",
    "recover",
    "restore",
    "rotate.ca",
    "rotate.certificates",
    "rotate.encryption",
    "rotate.serviceaccount",
    "rotate.tokens",
    "upgrade",
)


@pytest.mark.parametrize("kind", ["ha", "single"])
@pytest.mark.parametrize("name", ORCHESTRATIONS)
def test_orchestrations_compile(name: str, kind: str, tmp_path: Path) -> None:
    from render_compiler import document

    (tmp_path / "cluster.yaml").write_text(json.dumps(document(kind)), "utf-8")
    subject = Minion("debian12", pillar_root=tmp_path)
    subject.use({})
    compiled = subject.compile([f"indigo.{name}"])
    none_of(compiled.errors)
    faults = list(
        itertools.chain.from_iterable(
            (*subject.call_faults(chunk), *id_faults(chunk["__id__"])) for chunk in compiled.chunks
        )
    )
    none_of(faults)
    hosts = set(declared(kind).hosts)
    steps = [chunk for chunk in compiled.chunks if "sls" in chunk]
    # The others' steps are states of ours alone.
    assert steps or name != "deploy"
    for step in steps:
        if step["state"] == "salt":
            assert step["tgt_type"] == "list" and set(step["tgt"]) <= hosts, step
        for sls in [step["sls"]] if isinstance(step["sls"], str) else step["sls"]:
            path = SALT / sls.replace(".", "/")
            assert path.with_suffix(".sls").is_file() or (path / "init.sls").is_file(), sls


def test_the_list_of_orchestrations_is_complete() -> None:
    on_hosts = {"host", "bench", "fetched"}
    found = {path.stem for path in _files("indigo/*.sls")}
    found |= {f"rotate.{path.stem}" for path in _files("indigo/rotate/*.sls")}
    assert found == on_hosts | set(ORCHESTRATIONS)


# --- the tests above can fail ---------------------------------------------------------------

BROKEN = """
no sentence:
  test.nop: []

A state that does not exist:
  file.mangled:
    - name: /a

A wrong argument:
  indigo_service.running:
    - name: x
    - fiels: []

A missing argument:
  file.symlink:
    - name: /b

A process on every run:
  file.absent:
    - name: /c
    - unless: "true"

{id}:
  file.managed:
    - name: /etc/x.service
    - mode: 0644
    - contents: |
        [Service]
        ExecStart=relative
"""


def test_faults_of_states_are_found(tmp_path: Path) -> None:
    (tmp_path / "broken.sls").write_text(BROKEN.replace("{id}", "None is here"))
    (tmp_path / "dangling.sls").write_text(
        "A lonely state:\n  test.nop:\n    - require:\n      - file: nobody\n"
    )
    subject = Minion("debian12", file_root=tmp_path)
    subject.use({"indigo": {}})
    dangling = subject.compile(["dangling"])
    assert "Referenced state does not exist" in dangling.errors[0]
    compiled = subject.compile(["broken"])
    assert compiled.errors == []
    found = "\n".join(
        fault
        for chunk in compiled.chunks
        for fault in (
            *subject.call_faults(chunk),
            *id_faults(chunk["__id__"]),
            *rule_faults(chunk),
            *(file_faults(subject, chunk) if chunk["fun"] == "managed" else ()),
        )
    )
    for expected in (
        "file.mangled does not exist",
        "indigo_service.running takes no argument fiels",
        "file.symlink needs target",
        "unless starts a process",
        "'None is here' is no plain English sentence",
        "mode is 644",
        "/etc/x.service is broken: sections are ['Service']",
    ):
        assert expected in found, found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "a: [\n"),
        ("a.yaml", "- a\n"),
        ("a.conflist", "{"),
        ("a.toml", "a = "),
        ("a.service", "[Unit]\n[Service]\nExecStart=/bin/true \\"),
        ("a.service", "[Unit]\n[Service]\nType=exec\n"),
        ("a.service", "[Unit]\n[Service]\nExecStart=true\n"),
        ("a.service", "[Unit]\n[Service]\nExecStart=/bin/true\n  --flag\n"),
        ("a.service", "[Unit]\n[Service]\nExecStart=/bin/true\nType=exec\nType=exec\n"),
        ("a.socket", "[Unit]\n[Socket]\nAccept=yes\n"),
        ("/etc/sysctl.d/a.conf", "net.ipv4.ip_forward\n"),
        ("/etc/keepalived/keepalived.conf", "vrrp_instance a {\n"),
    ],
)
def test_faults_of_files_are_found(name: str, text: str) -> None:
    with pytest.raises((ValueError, yaml.YAMLError)):
        syntax(name, text)


# --- rules of the tree ---------------------------------------------------------------------


def test_states_read_only_the_view() -> None:
    """SLS and templates read `pillar.indigo`, and of the grains what the system is."""
    wrong = []
    for path in _files("**/*.sls", "**/*.jinja"):
        text = path.read_text("utf-8")
        for found in re.findall(r"\bgrains(?:\.get\(['\"]|\.|\[['\"])(\w+)", text):
            if found not in ("os_family", "osarch", "selinux"):
                wrong.append(f"{path.relative_to(ROOT)}: grains.{found}")
        # An orchestration has a pillar of its own: what its command line gives it.
        inside = path.relative_to(SALT).with_suffix("").parts
        given = inside[0] == "indigo" and ".".join(inside[1:]) in ORCHESTRATIONS
        for found in re.findall(r"\bpillar(?:\.get\(['\"]|\.|\[['\"])(\w+)", text):
            if found not in ("indigo", "sls") and not given:
                wrong.append(f"{path.relative_to(ROOT)}: pillar.{found}")
        if re.search(r"salt\[?['\".]*(mine|pillar)\.", text):
            wrong.append(f"{path.relative_to(ROOT)}: mine or pillar functions")
    none_of(wrong)


def test_every_template_is_used() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in _files("**/*.sls", "**/*.jinja"))
    for path in _files("**/files/*"):
        name = str(path.relative_to(SALT))
        # A loop may build the name: salt://node/files/{{ name }}.service.jinja
        loose = re.sub(r"[^/.]*\.", ".", name.rsplit("/", 1)[1], count=1)
        folder = name.rsplit("/", 1)[0]
        pattern = rf"salt://{folder}/\{{\{{ *\w+ *\}}\}}{re.escape(loose)}"
        assert f"salt://{name}" in sources or re.search(pattern, sources), name


def test_the_pillar_of_a_host_does_not_grow_with_the_nodes() -> None:
    """Adding a node changes no other host's pillar but the CA's and the masters' identities."""
    from indigo_model import cluster as model
    from indigo_model import derive
    from render_compiler import document

    few = document("ha")
    many = document("ha")
    many["hosts"].update(
        {f"more{n}": {"address": f"10.77.0.{100 + n}", "roles": ["node"]} for n in range(50)}
    )
    # By default their number follows that of the nodes, and is one number still.
    few["addons"] = many["addons"] = {"coredns": {"replicas": 2}}
    # The check of Zabbix knows every host by name: on the first master, as that of Prometheus does.
    few["services"] = many["services"] = {}
    before, after = model.parse(few), model.parse(many)
    for id_, host in before.hosts.items():
        if "ca" not in host.roles:
            assert derive.pillar(before, host) == derive.pillar(after, after.hosts[id_]), id_
