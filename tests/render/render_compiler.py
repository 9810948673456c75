"""Salt's own compiler over this tree, without a daemon: fake grains, real views, real loaders.

A :class:`Minion` is made once per operating system, for the loaders decide by grains which
module is `pkg` there; pillars are swapped in the loaders, which look them up at every call.
"""

from __future__ import annotations

import functools
import inspect
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import salt.config
import salt.loader
import salt.state
from indigo_model import addons, derive, validate, versions
from indigo_model import cluster as model

ROOT = Path(__file__).resolve().parents[2]

#: The operating systems of the support matrix: what Salt's grains say there.
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "debian12": {"os": "Debian", "os_family": "Debian", "osrelease": "12", "osmajorrelease": 12},
    "debian13": {"os": "Debian", "os_family": "Debian", "osrelease": "13", "osmajorrelease": 13},
    "ubuntu22.04": {
        "os": "Ubuntu",
        "os_family": "Debian",
        "osrelease": "22.04",
        "osmajorrelease": 22,
    },
    "ubuntu24.04": {
        "os": "Ubuntu",
        "os_family": "Debian",
        "osrelease": "24.04",
        "osmajorrelease": 24,
    },
    "fedora": {"os": "Fedora", "os_family": "RedHat", "osrelease": "42", "osmajorrelease": 42},
    "rocky9": {"os": "Rocky", "os_family": "RedHat", "osrelease": "9.5", "osmajorrelease": 9},
}

ALL = ("ca", "lb", "etcd", "master", "node")
MINORS = range(versions.FIRST_MINOR, versions.LAST_MINOR + 1)
LATEST = versions.DEFAULTS["kubernetes"]

#: Keys of a state that are Salt's, not the function's.
SALTS_OWN = salt.state.STATE_INTERNAL_KEYWORDS | {"name", "require_in"}


def release(minor: int) -> str:
    """A release of a minor: the default's own, else its first patch that matters not here."""
    return LATEST if versions.minor(LATEST) == minor else f"1.{minor}.2"


def document(
    kind: str, kubernetes: str = LATEST, network: str = "routes", firewall: str = "none"
) -> dict[str, Any]:
    """A cluster file: `ha` has a host per role, `single` one host that has them all."""
    roles = (
        {"all1": list(ALL)}
        if kind == "single"
        else {
            "ca1": ["ca"],
            **{f"lb{n}": ["lb"] for n in (1, 2)},
            **{f"etcd{n}": ["etcd"] for n in (1, 2, 3)},
            **{f"master{n}": ["master"] for n in (1, 2)},
            **{f"node{n}": ["node"] for n in (1, 2)},
        }
    )
    digest = "sha256:" + "0" * 64
    pinned = {"kubernetes": kubernetes}
    if versions.minor(kubernetes) < 23:
        pinned["containerd"] = "1.7.29"
    parts = {**versions.DEFAULTS, **pinned}
    binaries = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    sums = {part: {parts[part]: dict.fromkeys(("amd64", "arm64"), digest)} for part in parts}
    sums["kubernetes"] = {
        kubernetes: {
            arch: dict.fromkeys((*binaries, "kubelet", "kube-proxy"), digest)
            for arch in ("amd64", "arm64")
        }
    }
    del sums["pause"]
    return {
        "name": "render",
        "vip": {"address": "10.77.0.10", "interface": "eth0"},
        "networks": {
            "services": "10.96.0.0/16",
            "pods": "10.244.0.0/16",
            "hosts": "10.77.0.0/24",
        },
        "network": network,
        "firewall": firewall,
        "hosts": {
            id_: {
                "address": f"10.77.0.{20 + n}",
                "roles": listed,
                **({"labels": {"role": "loadbalancer"}} if "node" in listed else {}),
            }
            for n, (id_, listed) in enumerate(roles.items())
        },
        "versions": pinned,
        "packages": {"haproxy": "2.6.12-1+deb12u4", "keepalived": "1:2.2.7-1+b2"},
        "artifacts": {"checksums": sums},
        "images": {
            "archives": [{"source": "https://mirror.example.org/a.tar", "hash": digest}],
            "use": {
                name: f"registry.example.org/{name}@{digest}" for name in ("im", "kapel", "ssm")
            },
        },
        "addons": {name: {} for name in addons.ADDONS if name not in model.SERVICES}
        # Both ways: on one host over routes it is off.
        | {"coredns": {"node_cache": (kind, network) != ("single", "routes")}}
        | {
            "ingress": {"tcp": [{"port": 5432, "node_port": 30432}]},
            "openstack": {
                "auth_url": "https://keystone.example.org:5000/v3",
                "region": "RegionOne",
                "user": "indigo",
                "project": "5a1b",
                "ca": "salt://openstack/ca.pem",
                "ca_sha256": digest.removeprefix("sha256:"),
            },
        },
        "services": {"wiki": {"source": "salt://addons/files"}}
        | {name: {} for name in model.SERVICES}
        | {
            "accounting": {
                "site": "EXAMPLE",
                "benchmark": 15,
                "namespaces": {"batch": "vo.example.org"},
            },
        },
    }


@functools.cache
def declared(
    kind: str, kubernetes: str = LATEST, network: str = "routes", firewall: str = "none"
) -> model.Cluster:
    """The cluster of :func:`document`, which must be a valid one."""
    data = document(kind, kubernetes, network, firewall)
    found = validate.problems(data)
    assert not found, found
    return model.parse(data)


@functools.cache
def pillar(
    kind: str,
    host: str,
    kubernetes: str = LATEST,
    network: str = "routes",
    firewall: str = "none",
) -> dict[str, Any]:
    """The pillar of one host, as the Salt master hands it out: through JSON."""
    declaration = declared(kind, kubernetes, network, firewall)
    return json.loads(json.dumps(derive.pillar(declaration, declaration.hosts[host])))


@dataclass
class Compiled:
    """What became of some SLS: chunks in the order in which they would run, and all errors."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    high: dict[str, Any] = field(default_factory=dict)


class Minion:
    """A minion that compiles states and runs none."""

    def __init__(
        self, system: str, pillar_root: Path | None = None, file_root: Path | None = None
    ) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="indigo-render-")
        opts = salt.config.minion_config(None)
        opts.update(
            {
                "id": "render",
                "root_dir": self.folder.name,
                "cachedir": f"{self.folder.name}/cache",
                "extension_modules": f"{self.folder.name}/cache/extmods",
                "file_client": "local",
                "local": True,
                "file_roots": {"base": [str(file_root or ROOT / "salt")]},
                "pillar_roots": {"base": [str(pillar_root or ROOT / "pillar")]},
                "module_dirs": [str(ROOT / "_modules")],
                "states_dirs": [str(ROOT / "_states")],
                "grains": {
                    "kernel": "Linux",
                    "init": "systemd",
                    "osarch": "amd64" if "RedHat" not in SYSTEMS[system]["os_family"] else "x86_64",
                    "oscodename": "",
                    "osfullname": SYSTEMS[system]["os"],
                    "id": "render",
                    "path": "/usr/sbin:/usr/bin",
                    "selinux": {"enabled": SYSTEMS[system]["os_family"] == "RedHat"},
                    **SYSTEMS[system],
                },
            }
        )
        Path(opts["cachedir"]).mkdir()
        # What modules ask the machine they load on, answered as the system to be would.
        context = {"salt.utils.systemd.booted": True, "salt.utils.systemd.version": 252}
        if opts["grains"]["os_family"] == "RedHat":
            context["yum_bin"] = "dnf"
        self.high_state = salt.state.HighState(opts, context=context, initial_pillar={"indigo": {}})
        self.state = self.high_state.state
        # Looked up on the real host while its states are rendered.
        self.state.functions["indigo_host.interface"] = lambda address: "eth0"

    def use(self, data: Mapping[str, Any]) -> None:
        """Give the minion another pillar."""
        fresh = json.loads(json.dumps(data))
        self.state.opts["pillar"] = fresh
        renderers = self.state.rend._dict  # a filter around the loader
        for loader in (self.state.functions, self.state.states, renderers):
            loader.pack["__pillar__"] = fresh

    def top(self) -> list[str]:
        """SLS that top.sls assigns to the minion."""
        # Matchers have a copy of the pillar that they were loaded with.
        self.high_state.matchers = salt.loader.matchers(self.state.opts)
        matches = self.high_state.top_matches(self.high_state.get_top())
        return matches.get("base", [])

    def compile(self, sls: Iterable[str]) -> Compiled:
        """Compile SLS as a highstate of them would be, up to the order of execution."""
        self.high_state.building_highstate = type(self.high_state.building_highstate)()
        high, errors = self.high_state.render_highstate({"base": list(sls)})
        result = Compiled(errors=list(errors))
        high, found = self.state.reconcile_extend(high)
        result.errors += found
        result.errors += self.state.verify_high(high)
        high, found = self.state.requisite_in(high)
        result.errors += found
        result.high = self.state.apply_exclude(high)
        if not result.errors:
            result.chunks, found = self.state.compile_high_data(result.high)
            result.errors += found
        return result

    def call_faults(self, chunk: Mapping[str, Any]) -> list[str]:
        """What is wrong with a state's function and its arguments."""
        name = f"{chunk['state']}.{chunk['fun']}"
        if name not in self.state.states:
            reason = self.state.states.missing_fun_string(name)
            return [f"{chunk['__id__']}: {name} does not exist ({reason})"]
        parameters = _parameters(self.state.states[name])
        given = {
            key for key in chunk if key not in _COMPILER_KEYS and not str(key).startswith("__")
        }
        unknown = given - set(parameters) - SALTS_OWN - _THROUGH_KWARGS.get(name, set())
        needed = {
            key for key, value in parameters.items() if value.default is inspect.Parameter.empty
        }
        faults = [f"{chunk['__id__']}: {name} takes no argument {key}" for key in sorted(unknown)]
        missing = needed - given - {"name"}
        return faults + [f"{chunk['__id__']}: {name} needs {key}" for key in sorted(missing)]

    def content(self, chunk: Mapping[str, Any]) -> str | None:
        """What a `file.managed` would write, None when its source is no file of this tree."""
        source = chunk.get("source")
        if "contents" in chunk:
            return str(chunk["contents"])
        if not isinstance(source, str) or not source.startswith("salt://"):
            return None
        text = (ROOT / "salt" / source.removeprefix("salt://")).read_text("utf-8")
        if not chunk.get("template"):
            return text
        context = {
            key: value for part in _as_list(chunk.get("context")) for key, value in part.items()
        }
        defaults = {
            key: value for part in _as_list(chunk.get("defaults")) for key, value in part.items()
        }
        rendered = self.state.functions["file.apply_template_on_contents"](
            text, chunk["template"], json.loads(json.dumps(context)), defaults, "base"
        )
        assert isinstance(rendered, str), rendered
        return rendered


_COMPILER_KEYS = {"state", "fun", "name", "order", "name_order"}

#: Arguments that functions of Salt's document and take through **kwargs.
_THROUGH_KWARGS: Mapping[str, set[str]] = {
    "file.directory": {"mode"},
    "pkg.installed": {"install_recommends"},
}


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in kinds
    }


def _as_list(value: Any) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
