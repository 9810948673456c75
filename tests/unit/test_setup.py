"""``salt-run indigo.setup``: reading setup.conf, the file that it writes, and what ssh is told."""

from __future__ import annotations

import base64
import subprocess

import pytest
import yaml
from indigo_model import setup, validate
from support import load

runner = load("_runners", "indigo_setup")

#: The form that the project's first clusters were set up with, with its blank line.
SEED = """\
LB1=192.0.2.11 name=balancer-a
LB2=192.0.2.12 name=balancer-b
VIP=192.0.2.10
ETCD1=192.0.2.21
ETCD2=192.0.2.22
ETCD3=192.0.2.23
MASTER1=192.0.2.31
MASTER2=192.0.2.32
NODE1=192.0.2.41
NODE2=192.0.2.42

"""
MASTER = {"id": "salt", "address": "192.0.2.5"}


def declared(conf, **kwargs):
    said, problems = setup.parse(conf)
    assert problems == []
    return setup.document(said, MASTER, **kwargs)


def test_the_seeds_file_declares_a_cluster() -> None:
    document, problems = declared(SEED, interfaces={"balancer-a": "ens3", "balancer-b": "ens4"})
    assert problems == []
    assert document["hosts"]["salt"] == {"address": "192.0.2.5", "roles": ["ca"]}
    assert document["hosts"]["etcd3"] == {"address": "192.0.2.23", "roles": ["etcd"]}
    assert document["vip"] == {"address": "192.0.2.10", "interface": "ens3"}
    assert document["hosts"]["balancer-b"]["interface"] == "ens4"
    assert "interface" not in document["hosts"]["balancer-a"]


def test_one_address_in_several_lines_is_one_host_with_several_roles() -> None:
    conf = "SALT=10.0.0.1 name=all\nVIP=10.0.0.9 interface=eth1 router_id=7\n" + "".join(
        f"{role}1=10.0.0.1\n" for role in ("LB", "ETCD", "MASTER", "NODE")
    )
    document, problems = declared(conf)
    assert problems == []
    assert document["hosts"] == {
        "all": {"address": "10.0.0.1", "roles": ["ca", "lb", "etcd", "master", "node"]}
    }
    assert document["vip"] == {"address": "10.0.0.9", "interface": "eth1", "router_id": 7}


def test_the_salt_master_may_be_one_of_the_hosts() -> None:
    said, _ = setup.parse(SEED)
    document, problems = setup.document(said, {"id": "other", "address": "192.0.2.41"})
    assert problems == []
    assert document["hosts"]["node1"]["roles"] == ["ca", "node"]
    assert "other" not in document["hosts"]


def test_a_missing_line_means_not_wanted() -> None:
    conf = "".join(line + "\n" for line in SEED.splitlines() if not line.startswith("NODE"))
    document, problems = declared(conf)
    assert problems == []
    assert not any("node" in host["roles"] for host in document["hosts"].values())


WRONG = """\
LB1=192.0.2.11 nmae=lb1
# a comment
LB2=192.0.2.300
VIP=<VIP_IP>
ETCD1=192.0.2.21
ETCD1=192.0.2.22
MASTR1=192.0.2.31
MASTER1=192.0.2.31 name=m
MASTER2=192.0.2.32 name=m
hello
OPENSTACK_URL=http://192.0.2.99:5000
SALT_VERSION=latest
SSH_USER=root; reboot
PODS=10.0.0.1/8
SALT_REPOSITORY=http://192.0.2.2/x $(id)
NODE1=192.0.2.31 name=n
"""


def test_all_wrong_lines_are_told_at_once_by_number() -> None:
    _, problems = setup.parse(WRONG)
    told = {problem.split(":")[0] for problem in problems if problem.startswith("line ")}
    numbers = (1, 3, 4, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16)
    assert told == {f"line {number}" for number in numbers}
    text = "\n".join(problems)
    assert "line 6: ETCD1: found it again; it is on line 5" in text
    assert "did you mean MASTER1?" in text
    assert "line 9: MASTER2: found m at 192.0.2.32; on line 8 it is at 192.0.2.31" in text
    assert "line 11: OPENSTACK_URL" in text
    assert "line 16: NODE1: found name=n for 192.0.2.31; on line 8 it is m" in text


@pytest.mark.parametrize("gone", ["VIP", "LB", "ETCD", "MASTER"])
def test_what_a_cluster_cannot_be_without_is_named(gone) -> None:
    conf = "".join(line + "\n" for line in SEED.splitlines() if not line.startswith(gone))
    _, problems = setup.parse(conf)
    assert len(problems) == 1 and problems[0].startswith(f"no line {gone}")


def test_what_the_model_finds_has_the_line_it_comes_from() -> None:
    _, problems = declared(SEED.replace("VIP=192.0.2.10", "VIP=192.0.2.41"))
    assert any(problem.startswith("line 9: hosts.node1.address") for problem in problems), problems
    _, problems = declared(SEED.replace("ETCD3=192.0.2.23\n", ""))
    assert any("etcd" in problem for problem in problems)


def test_more_keys_come_along_and_setup_conf_wins() -> None:
    more = {"versions": {"kubernetes": "1.30.1"}, "networks": {"hosts": "192.0.2.0/24"}}
    document, problems = declared(SEED, more=more)
    assert problems == []
    assert document["versions"] == {"kubernetes": "1.30.1"}
    assert set(document["networks"]) == {"hosts", "services", "pods"}
    _, problems = declared(SEED, more={"hosts": {}})
    assert problems == ["more: found the key hosts; expected it in setup.conf alone"]


def test_the_file_says_whether_it_was_edited() -> None:
    document, _ = declared(SEED)
    text = setup.text(document, "setup.conf")
    assert yaml.safe_load(text) == document
    assert validate.problems(validate.load(text, "x")) == []
    assert setup.unedited(text)
    assert not setup.unedited(text + "name: mine\n")
    assert not setup.unedited(text.split("\n", 1)[1])


# --- the script ----------------------------------------------------------------------------


def script(**kwargs):
    given = {"repository": "http://192.0.2.2/salt ./", "key": b"\x99key", **kwargs}
    return setup.host_script(
        {"a": "192.0.2.1", "b": "192.0.2.2"}, "192.0.2.5", "aa:bb", "3008.3", **given
    )


def test_the_script_is_shell_and_knows_the_master_before_it_speaks_to_it() -> None:
    text = script()
    assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0
    assert "@" not in text.replace("$@", "").replace("[@", "").replace("@*", "")
    assert text.index("master_finger: 'aa:bb'") < text.index("apt-get -qy install")
    assert '"salt-minion=3008.3*"' in text
    assert "signed-by=" in text and base64.b64encode(b"\x99key").decode() in text
    assert "indigo-salt.asc" in script(key=b"-----BEGIN PGP PUBLIC KEY BLOCK-----")


@pytest.mark.parametrize(("address", "id_"), [("192.0.2.1", "a"), ("192.0.2.2", "b")])
def test_a_host_finds_its_id_by_its_address(tmp_path, address, id_) -> None:
    (tmp_path / "ip").write_text(f"#!/bin/sh\necho '2: eth0 inet {address}/24 scope global eth0'\n")
    (tmp_path / "ip").chmod(0o755)
    text = script()
    finder = text[text.index("\nid=\n") : text.index("\nchanged=\n")] + '\necho "$id"\n'
    done = subprocess.run(
        ["sh"], input="say() { :; }\n" + finder, text=True, capture_output=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.strip() == id_


# --- the runner ----------------------------------------------------------------------------

PEM = "-----BEGIN PUBLIC KEY-----\nMIIB\nAAAA\n-----END PUBLIC KEY-----\n"
SHOWN = "indigo-key " + base64.b64encode(PEM.encode()).decode()


def test_keys_are_taken_from_hosts_that_succeeded() -> None:
    hosts = {"a": "192.0.2.1", "b": "192.0.2.2", "c": "192.0.2.3", "d": "192.0.2.4"}
    answers = {
        "a": {"stdout": f"\n{SHOWN}\n", "stderr": "", "retcode": 0},
        "b": {"stdout": "The host key needs to be accepted", "stderr": "", "retcode": 254},
        "c": {"stdout": SHOWN, "stderr": "E: no salt-minion\n", "retcode": 100},
    }
    shown, problems = runner.judged(hosts, answers)
    assert shown == {"a": PEM}
    assert [problem[:1] for problem in problems] == ["b", "c", "d"]
    assert "ssh 192.0.2.2 true" in problems[0]
    assert "no salt-minion" in problems[1]


class Keys:
    """The Salt master's keys, with one of that id in one folder."""

    def __init__(self, folder, pem):
        self.folder, self.pem, self.accepted = folder, pem, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def list_keys(self):
        return {self.folder: ["a"]}

    def key_str(self, _):
        return {self.folder: {"a": self.pem}}

    def accept(self, match_dict):
        self.accepted.append(match_dict)


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setattr(runner, "__opts__", {"hash_type": "sha256"}, raising=False)

    def use(folder, pem):
        made = Keys(folder, pem)
        monkeypatch.setattr(runner.salt.key, "get_key", lambda _: made)
        return made

    return use


def test_a_waiting_key_is_accepted_when_its_host_has_it(keys) -> None:
    made = keys("minions_pre", PEM.replace("\n", "\r\n"))
    assert ":" in runner._accepted("a", PEM)
    assert made.accepted == [{"minions_pre": ["a"]}]


@pytest.mark.parametrize("folder", ["minions_pre", "minions", "minions_denied"])
def test_another_key_under_that_id_is_never_accepted(keys, folder) -> None:
    made = keys(folder, PEM.replace("AAAA", "BBBB"))
    with pytest.raises(runner.CommandExecutionError, match="another key under that id"):
        runner._accepted("a", PEM)
    assert made.accepted == []


def test_the_file_is_written_in_one_move_and_the_old_one_kept(tmp_path) -> None:
    target = tmp_path / "cluster.yaml"
    assert runner._written(target, "# head\na: 1\n")
    assert not runner._written(target, "# another head\na: 1\n")
    assert runner._written(target, "# head\na: 2\n")
    kept = [path for path in tmp_path.iterdir() if path != target]
    assert target.read_text() == "# head\na: 2\n"
    assert [path.read_text() for path in kept] == ["# head\na: 1\n"]


def test_a_file_by_hand_is_left_alone_without_force(tmp_path) -> None:
    target = tmp_path / "cluster.yaml"
    model = {"indigo_model.setup_unedited": setup.unedited}
    assert runner._refused(model, target, False) == []
    target.write_text("name: mine\n")
    assert "force=True" in runner._refused(model, target, False)[0]
    assert runner._refused(model, target, True) == []
    target.write_text(setup.text({"name": "x"}, "setup.conf"))
    assert runner._refused(model, target, False) == []
