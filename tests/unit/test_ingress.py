"""The way in for services: haproxy, controllers, labels, certificates, and the check."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import pytest
import salt.utils.templates
from indigo_model import addons, derive, ingress, lb, node, pki, ports, versions
from indigo_model.cluster import Cluster, Host, Vip
from salt.exceptions import CommandExecutionError
from support import ROOT, load

module = load("_modules", "indigo_addon")
objects = load("_modules", "indigo_object")
state = load("_states", "indigo_object")

GATE = {"role": "loadbalancer"}


def cluster(wanted: dict[str, Any] | None = None, **more: Any) -> Cluster:
    hosts = {
        "ca": Host("ca", "10.0.0.5", ("ca",)),
        **{f"lb{i}": Host(f"lb{i}", f"10.0.0.1{i}", ("lb",)) for i in (1, 2)},
        **{f"m{i}": Host(f"m{i}", f"10.0.0.3{i}", ("master",)) for i in (1, 2)},
        "n1": Host("n1", "10.0.0.41", ("node",)),
        "n2": Host("n2", "10.0.0.42", ("node",), labels=GATE),
        "n3": Host("n3", "10.0.0.43", ("node",), labels=GATE | {"rack": "r1"}),
    }
    more.setdefault("versions", versions.resolve({}))
    more["addons"] = {} if wanted is None else {"ingress": wanted}
    vip = Vip("10.0.0.10", "eth0")
    return Cluster("x", hosts, vip, "10.96.0.0/16", "10.244.0.0/16", **more)


def configuration(declared: Cluster) -> str:
    result = salt.utils.templates.JINJA(
        str(ROOT / "salt/lb/files/haproxy.cfg.jinja"),
        to_str=True,
        opts={"cachedir": "/nonexistent", "file_roots": {"base": [str(ROOT / "salt")]}},
        saltenv="base",
        grains={},
        pillar={"indigo": {"components": lb.view(declared, declared.hosts["lb1"])["components"]}},
        salt={},
        context={},
        tmplpath="lb/files/haproxy.cfg.jinja",
    )
    assert result["result"], result["data"]
    return result["data"]


# --- load balancers ------------------------------------------------------------------------------


def test_nobody_who_does_not_want_it_has_any_of_it():
    declared = cluster()
    assert "ingress" not in configuration(declared)
    for host in declared.hosts.values():
        assert "ingress" not in str(ports.of_host(declared, host))
        assert "ingress" not in str(derive.pillar(declared, host)["indigo"]["pki"]["certificates"])


def test_labelled_nodes_are_what_haproxy_leads_to():
    found = {way["bind"]: way for way in ingress.proxies(cluster({}), 8000)}
    assert set(found) == {"10.0.0.10:80", "10.0.0.10:443"}
    assert [one["endpoint"] for one in found["10.0.0.10:443"]["servers"]] == [
        "10.0.0.42:10443",
        "10.0.0.43:10443",
    ]


def test_a_tcp_port_leads_to_the_node_port_and_is_told_of_clients_only_where_it_understands():
    tcp = [{"port": 5432, "node_port": 30432}, {"port": 25, "node_port": 30025, "proxy": True}]
    text = configuration(cluster({"tcp": tcp}))
    plain, told = (text.split(f"\nbackend ingress-tcp-{port}")[1] for port in (5432, 25))
    assert "server n2 10.0.0.42:30432" in plain and "httpchk" not in plain.split("frontend")[0]
    assert "send-proxy-v2" not in plain.split("server n2")[0]
    assert "send-proxy-v2" in told.split("server n2")[0]


def test_a_controller_that_stops_keeps_what_it_has_and_one_that_is_lost_does_not():
    text = configuration(cluster({})).split("\nbackend ingress-http\n")[1].split("frontend")[0]
    assert "http-check disable-on-404" in text
    assert "port 10081" in text and "shutdown-sessions send-proxy-v2" in text
    (manifest,) = (ROOT / "salt/addons/ingress").glob("manifests.yaml.jinja")
    assert "--ping.terminatingstatuscode=404" in manifest.read_text()


@pytest.mark.parametrize("ways", [0, 1, 30])
def test_whoever_fills_it_keeps_nobody_from_the_api(ways):
    tcp = [{"port": 5000 + one, "node_port": 30000 + one} for one in range(ways)]
    found = ingress.proxies(cluster({"tcp": tcp}), 8000)
    assert len(found) == ways + 2
    assert 0 < sum(way["maxconn"] for way in found) <= 4000


def test_a_change_of_it_concerns_its_own_hosts_alone():
    before, after = cluster(), cluster({})
    changed = {
        id_
        for id_, host in after.hosts.items()
        if derive.fingerprint(derive.pillar(before, before.hosts[id_]))
        != derive.fingerprint(derive.pillar(after, host))
    }
    # Load balancers, the first master and the authority; labels were there before.
    assert changed == {"lb1", "lb2", "m1", "ca"}


# --- labels --------------------------------------------------------------------------------------


def test_every_node_has_its_own_labels():
    declared = cluster({})
    found = {host.id: node.view(declared, host).get("labels") for host in declared.hosts.values()}
    assert found["n1"] == {} and found["n3"] == {"role": "loadbalancer", "rack": "r1"}
    assert found["m1"] is None


@pytest.fixture
def label(monkeypatch, tmp_path):
    """The state, with a node whose labels are in a mapping."""
    live: dict[str, str] = {"kubernetes.io/os": "linux"}
    asked: list[str] = []

    def change(_name, due, *_access):
        for key, value in due.items():
            live.pop(key, None)
            live.update({} if value is None else {key: value})

    def labels(*_access, timeout):
        asked.append("labels")
        return dict(live)

    monkeypatch.setattr(
        state,
        "__salt__",
        {
            "indigo_object.labels": labels,
            "indigo_object.labels_to_change": objects.labels_to_change,
            "indigo_object.label": change,
        },
        raising=False,
    )

    def run(wanted, test=False):
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        return state.labelled("n", wanted, str(tmp_path / "record"), "s", "a", "t")

    run.live, run.asked, run.record = live, asked, tmp_path / "record"
    return run


def test_labels_come_change_and_go_and_those_of_others_stay(label):
    assert label({"role": "x"}, test=True)["result"] is None
    assert "role" not in label.live and not label.record.exists()
    assert label({"role": "x", "rack": "1"})["changes"]["role"] == {"old": None, "new": "x"}
    assert label({"role": "x", "rack": "1"})["changes"] == {}
    label.live["other"] = "theirs"
    assert set(label({"rack": "2"})["changes"]) == {"role", "rack"}
    assert label({})["changes"] == {"rack": {"old": "2", "new": None}}
    assert label.live == {"kubernetes.io/os": "linux", "other": "theirs"}
    assert not label.record.exists()


def test_a_node_without_labels_asks_nobody(label):
    assert label({})["result"] is True
    assert label.asked == []


def test_a_label_that_was_refused_is_not_forgotten(label, monkeypatch):
    def refuse(*_arguments):
        raise CommandExecutionError("answered 403")

    monkeypatch.setitem(state.__salt__, "indigo_object.label", refuse)
    assert label({"role": "x"})["result"] is False
    assert label.record.read_text() == '["role"]'


# --- certificates --------------------------------------------------------------------------------


def test_the_first_master_alone_holds_the_certificate_with_the_sites_names():
    declared = cluster({"names": ["*.example.org"]})
    rows = {
        id_: [
            row for row in pki.view(declared, host)["pki"]["certificates"] if "ingress" in str(row)
        ]
        for id_, host in declared.hosts.items()
    }
    assert {id_ for id_, found in rows.items() if found} == {"m1"}
    (row,) = rows["m1"]
    assert row["sans"] == ["DNS:*.example.org", "IP:10.0.0.10"]
    assert row["usages"] == ["serverAuth"]
    assert pki.signing_policies(declared)["m1.ingress"]["minions"] == "m1"


@pytest.mark.parametrize("wanted", [None, {"certificate": "site"}])
def test_one_that_is_not_wanted_is_taken_away(wanted):
    declared = cluster(wanted)
    view = pki.view(declared, declared.hosts["m1"])["pki"]
    assert view["gone"] == [
        {"path": "/etc/kubernetes/pki/ingress.crt", "key": "/etc/kubernetes/pki/ingress.key"}
    ]
    assert "m1.ingress" not in pki.signing_policies(declared)
    assert pki.view(declared, declared.hosts["n1"])["pki"]["gone"] == []


def test_a_certificate_of_the_sites_is_the_one_that_is_mounted():
    found = addons.wanted(cluster({"certificate": "site"}))["ingress"]
    assert (found["secret"], found["secrets"], found["authority"]) == ("site", [], None)


@pytest.fixture
def files(tmp_path):
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_text(f"content of {name}")
    return str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")


@pytest.mark.parametrize(
    ("found", "test", "result", "changes"),
    [
        ("absent", False, True, {"Secret ingress/x": "created"}),
        ("differs", False, True, {"Secret ingress/x": "updated"}),
        ("differs", True, None, {"Secret ingress/x": "updated"}),
        (None, False, True, {}),
    ],
)
def test_the_secret_follows_its_files_and_tells_nothing_of_them(
    monkeypatch, files, found, test, result, changes
):
    applied: list[Any] = []
    functions = {
        "indigo_object.tls_secret": objects.tls_secret,
        "indigo_object.difference": lambda *_arguments: found,
        "indigo_object.apply": lambda manifest, *_access: applied.append(manifest),
    }
    monkeypatch.setattr(state, "__salt__", functions, raising=False)
    monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
    done = state.certificate("ingress/x", *files, "s", "a", "t")
    assert (done["result"], done["changes"]) == (result, changes)
    assert "content" not in str(done) and "Y29udGVud" not in str(done)
    assert len(applied) == (found is not None and not test)


def test_a_secret_without_its_files_says_what_makes_them(tmp_path):
    with pytest.raises(CommandExecutionError, match=r"state\.apply common\.certificates"):
        objects.tls_secret("ingress/x", str(tmp_path / "no.crt"), str(tmp_path / "no.key"))


# --- ports ---------------------------------------------------------------------------------------


def test_the_firewall_lets_load_balancers_to_the_controllers_and_everybody_to_the_address():
    declared = cluster({}, firewall="nftables", lans=("10.0.0.0/24",))
    guards = {
        host.id: {
            one["port"]: one["sources"] for one in derive.view(declared, host)["firewall"]["guards"]
        }
        for host in declared.hosts.values()
    }
    assert guards["n2"]["10080"] == guards["n2"]["10443"] == ["10.0.0.11", "10.0.0.12"]
    assert guards["n2"]["10081"] == ["10.0.0.0/24"]
    assert guards["n2"]["10082"] == []
    assert "10080" not in guards["n1"]
    opened = derive.view(declared, declared.hosts["lb1"])["firewall"]["open"]
    assert {"80", "443"} <= {one["port"] for one in opened}


def test_preflight_finds_the_ports_of_the_address_free():
    declared = cluster({"http": 8080, "tcp": [{"port": 25, "node_port": 30025}]})
    found = ports.view(declared, declared.hosts["lb1"])["ports"]
    own = {one["port"]: (one["address"], one["program"]) for one in found}
    for port in (8080, 443, 25):
        assert own[port] == ("10.0.0.10", "/usr/sbin/haproxy")


# --- the check of its own use --------------------------------------------------------------------


@contextlib.contextmanager
def listening(answer: bytes | None):
    """A server on loopback that gives one answer to whoever asks; None: it ends the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    link, _ = server.accept()
                    with link:
                        if answer is not None and link.recv(4096):
                            link.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def answered(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK".encode()


@pytest.fixture
def check(monkeypatch):
    """The check, with controllers on the named nodes and a port of this host's for HTTP."""

    def run(ready: int, http: int, tcp: int | None = None) -> str:
        found = [("10.0.0.4", 10081)] * ready
        monkeypatch.setattr(module, "_endpoints", lambda *_arguments: found)
        once = module._asked_by_name
        # What TLS adds is shown in the lab.
        monkeypatch.setattr(
            module, "_asked_by_name", lambda settings, port, tls: once(settings, port, False)
        )
        settings = addons.wanted(cluster({}))["ingress"]
        ways = [] if tcp is None else [{"port": tcp, "node_port": 30001}]
        return module._gates(
            settings | {"vip": "127.0.0.1", "http": http, "https": http, "tcp": ways}
        )

    return run


def test_it_works_when_a_request_by_name_comes_through(check):
    with listening(answered("200 OK")) as port:
        assert check(2, port) == ""


def test_a_controller_that_is_not_ready_is_told(check):
    assert check(1, 1) == "1 controllers are ready; expected one on each of n2, n3"


def test_an_address_that_does_not_answer_or_not_so_is_told(check):
    with listening(answered("404 Not Found")) as port:
        assert check(2, port) == f"127.0.0.1:{port} answers 404 for check.ingress.invalid: OK"
    with listening(None) as port:
        assert check(2, port).startswith(f"127.0.0.1:{port} does not answer: ")


def test_a_port_behind_which_nobody_is_is_told(check):
    with listening(answered("200 OK")) as port, listening(None) as closed:
        told = f"127.0.0.1:{closed} ends each connection at once: node port 30001 has no ready pod"
        assert check(2, port, closed) == told
    # One that waits for its client to speak works.
    with listening(answered("200 OK")) as port, listening(b"") as silent:
        assert check(2, port, silent) == ""
