"""Units and files of the master and node layers, rendered by Salt and read by systemd."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import salt.utils.templates
import yaml
from indigo_model import master, node, versions
from indigo_model.cluster import Cluster, Host, Vip
from support import ROOT

HOST = Host("All", "10.77.0.50", ("etcd", "master", "node"), interface="eth0")


def pillar(kubernetes: str = "1.36.2", network: str = "routes", host: Host = HOST) -> dict:
    cluster = Cluster(
        name="lab",
        hosts={"All": host},
        vip=Vip("10.77.0.10", "eth0"),
        services="10.96.0.0/16",
        pods="10.244.0.0/16",
        network=network,
        versions=versions.resolve({"kubernetes": kubernetes}),
    )
    names = "kube-apiserver kube-controller-manager kube-scheduler"
    names += " kubelet kube-proxy containerd flanneld"
    return {
        "name": host.name,
        "address": host.address,
        "cluster": {"name": "lab"},
        "networks": {"services": cluster.services, "pods": cluster.pods},
        "binaries": dict.fromkeys(names.split(), "/bin/true"),
        **master.view(cluster, host),
        **node.view(cluster, host),
        "components": {
            **master.view(cluster, host).get("components", {}),
            **node.view(cluster, host).get("components", {}),
        },
    }


def render(source: str, indigo: dict, resolved: bool = False, **context) -> str:
    result = salt.utils.templates.JINJA(
        str(ROOT / "salt" / source),
        to_str=True,
        opts={"cachedir": "/nonexistent", "file_roots": {"base": [str(ROOT / "salt")]}},
        saltenv="base",
        grains={},
        pillar={"indigo": indigo},
        salt={"file.file_exists": lambda path: resolved},
        context=context,
        tmplpath=source,
    )
    assert result["result"], result["data"]
    return result["data"]


def units(indigo: dict) -> dict[str, str]:
    found = {
        f"{name}.service": render(
            "master/files/component.service.jinja",
            indigo,
            name=name,
            title=name,
            component=indigo["components"][name],
            binary=indigo["binaries"][name],
        )
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    }
    for name in ("containerd", "kubelet", "kube-proxy"):
        found[f"{name}.service"] = render(f"node/files/{name}.service.jinja", indigo)
    if indigo["network"]["kind"] == "routes":
        found["indigo-routes.service"] = render(
            "network/files/indigo-routes.service.jinja", indigo, interface="eth0"
        )
    else:
        found["flanneld.service"] = render("network/files/flanneld.service.jinja", indigo)
    name = "indigo-dns-cache.service"
    found[name] = render(f"network/files/{name}.jinja", indigo)
    return found


@pytest.mark.parametrize("network", ["routes", "flannel"])
@pytest.mark.parametrize("kubernetes", ["1.20.2", "1.36.2"])
def test_systemd_takes_every_unit(tmp_path: Path, kubernetes: str, network: str):
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-analyze is needed: install systemd"
    rendered = units(pillar(kubernetes, network))
    for name, text in rendered.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", *(str(tmp_path / name) for name in rendered)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        check=False,
    )
    own = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "Unknown" in line]
    assert (done.returncode, own) == (0, []), done.stderr


@pytest.mark.parametrize("kubernetes", ["1.20.2", "1.36.2"])
def test_every_flag_is_in_the_unit_once(kubernetes: str):
    indigo = pillar(kubernetes)
    for name, text in units(indigo).items():
        component = indigo["components"].get(name.removesuffix(".service"), {})
        for flag, value in component.get("flags", {}).items():
            lines = [line for line in text.splitlines() if f"--{flag}={value}" in line]
            assert len(lines) == 1, (name, flag)
        # A flag on the last line must not go on in the next setting.
        assert not re.search(r"\\\n(?!  --)", text), name


def test_awkward_values_reach_the_component_as_they_are():
    awkward = """{"a": "50% of $HOME"} it's"""
    text = render(
        "master/files/component.service.jinja",
        pillar(),
        name="kube-scheduler",
        title="x",
        component={
            "user": "x",
            "environment": {"PATIENCE": "5"},
            "arguments": master.arguments({"plain": "a,b=c", "awkward": awkward}),
        },
        binary="/bin/true",
    )
    assert "\nEnvironment=PATIENCE=5\n" in text
    assert "\n  --plain=a,b=c \\\n" in text
    line = next(line for line in text.splitlines() if "awkward" in line)
    # systemd reads C escapes in double quotes, and halves %% and $$.
    assert json.loads(line).replace("%%", "%").replace("$$", "$") == f"--awkward={awkward}"


def test_the_control_plane_runs_as_its_own_accounts():
    rendered = units(pillar())
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        text = rendered[f"{name}.service"]
        assert f"\nUser={name}\n" in text
        assert "\nNoNewPrivileges=yes\n" in text
        assert "\nCapabilityBoundingSet=\n" in text
    assert "\nType=notify\n" in rendered["kube-apiserver.service"]
    assert "\nLogsDirectory=kubernetes\n" in rendered["kube-apiserver.service"]
    assert "LogsDirectory" not in rendered["kube-scheduler.service"]


def test_a_master_routes_to_pods_and_refuses_cluster_addresses():
    only = Host("m", "10.77.0.31", ("master",), interface="eth0")
    text = render("network/files/indigo-routes.service.jinja", pillar(host=only), interface="eth0")
    assert "route replace 10.244.0.0/16 dev eth0 src 10.77.0.31" in text
    assert "route replace unreachable 10.96.0.0/16" in text
    assert "iptables" not in text
    both = units(pillar())["indigo-routes.service"]
    assert "route replace 10.96.0.0/16 dev eth0 src 10.77.0.50" in both
    assert "unreachable" not in both


def test_the_caches_unit_takes_back_what_it_sets():
    text = units(pillar())["indigo-dns-cache.service"]
    for line in (
        "ExecStart=/sbin/ip address replace 169.254.20.10/32 dev lo scope host",
        "ExecStart=/bin/sh -c 'echo 1 > /proc/sys/net/ipv4/icmp_ratelimit'",
        "ExecStop=-/sbin/ip address del 169.254.20.10/32 dev lo",
        "ExecStop=-/bin/sh -c 'echo 1000 > /proc/sys/net/ipv4/icmp_ratelimit'",
    ):
        assert f"\n{line}\n" in text


def test_sysctls_of_a_node():
    text = render("network/files/sysctl.conf.jinja", pillar(), interface="eth0.7")
    settings = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert settings == [
        "net/ipv4/ip_forward = 1",
        "net/ipv4/conf/eth0.7/proxy_arp = 1",
        "net/ipv4/neigh/eth0.7/proxy_delay = 0",
        "-net/bridge/bridge-nf-call-iptables = 1",
    ]


@pytest.mark.parametrize("resolved", [False, True])
def test_kubelet_reads_the_resolver_that_pods_can_reach(resolved: bool):
    indigo = pillar()
    document = yaml.safe_load(render("node/files/kubelet.yaml.jinja", indigo, resolved))
    there = document.pop("resolvConf", None)
    assert there == ("/run/systemd/resolve/resolv.conf" if resolved else None)
    assert document == indigo["components"]["kubelet"]["config"]
    indigo["components"]["kubelet"]["config"]["resolvConf"] = "/etc/mine"
    document = yaml.safe_load(render("node/files/kubelet.yaml.jinja", indigo, resolved))
    assert document["resolvConf"] == "/etc/mine"


def test_documents_come_out_as_they_are():
    indigo = pillar()
    proxy = indigo["components"]["kube-proxy"]["config"]
    assert yaml.safe_load(render("node/files/kube-proxy.yaml.jinja", indigo)) == proxy
    audit = indigo["components"]["kube-apiserver"]["audit"]
    text = render("master/files/document.yaml.jinja", indigo, document=audit)
    assert yaml.safe_load(text) == audit
    cni = indigo["network"]["cni"]
    text = render("network/files/document.json.jinja", indigo, document=cni)
    assert json.loads(text) == cni


def test_a_kubeconfig_names_its_token_and_holds_none():
    config = {
        "name": "kubelet",
        "server": "https://10.77.0.10:8443",
        "authority": "/etc/kubernetes/pki/ca.crt",
        "token": "/etc/kubernetes/tokens/kubelet",
    }
    document = yaml.safe_load(render("kubeconfig/files/kubeconfig.jinja", pillar(), config=config))
    assert document["users"] == [
        {"name": "kubelet", "user": {"tokenFile": "/etc/kubernetes/tokens/kubelet"}}
    ]
    assert document["clusters"][0]["cluster"]["server"] == "https://10.77.0.10:8443"
    assert document["current-context"] == document["contexts"][0]["name"] == "kubelet"
