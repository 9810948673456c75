"""Hosts come and go: tiers grow and shrink, what is unsafe is refused, any host is replaced.

One deploy brings all that comes, one run of ``indigo.remove`` takes all that goes: what is tested
is who changes, and what is left of whom.
"""

from __future__ import annotations

import json
import time

import pytest
import yaml
from cluster import WEB, answering, deploy, kubectl, ready_nodes, status, until, well
from indigo_lab.topology import Host

pytestmark = pytest.mark.slow

LB4 = Host("lb4", "10.77.0.14", ("lb",))
ETCD4 = Host("etcd4", "10.77.0.24", ("etcd",))
ETCD5 = Host("etcd5", "10.77.0.25", ("etcd",))
MASTER3 = Host("master3", "10.77.0.33", ("master",))
COMING = (LB4, ETCD4, ETCD5, MASTER3)

#: A client with a token of its own, from a host that trusts the API: prints the status.
_CALLER = """
import ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cafile="/etc/kubernetes/pki/ca.crt")
asked = urllib.request.Request(sys.argv[1] + "/api/v1/nodes/" + sys.argv[2])
asked.add_header("Authorization", "Bearer " + sys.stdin.read().strip())
try:
    print(urllib.request.urlopen(asked, timeout=10, context=context).status)
except urllib.error.HTTPError as err:
    print(err.code)
"""

BUDGET = """
apiVersion: policy/{version}
kind: PodDisruptionBudget
metadata: {{name: web}}
spec:
  minAvailable: 3
  selector: {{matchLabels: {{app: web}}}}
"""


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab, first_deploy):
    assert first_deploy.code == 0
    well(lab)


def declared(lab):
    """The cluster's file, as data."""
    return yaml.safe_load(lab.cluster_file.read_bytes())


def declare(lab, *hosts, without=()):
    """Write hosts into the cluster's file, or take them out."""
    document = declared(lab)
    for host in hosts:
        document["hosts"][host.name] = {"address": host.address, "roles": list(host.roles)}
    for name in without:
        del document["hosts"][name]
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")


def members(lab, through="etcd1"):
    """etcd's members as etcdctl lists them: name to whether it is a learner."""
    script = (
        "ETCDCTL_API=3 ETCDCTL_ENDPOINTS=https://127.0.0.1:2379 "
        "ETCDCTL_CACERT=/etc/etcd/pki/ca.crt ETCDCTL_CERT=/etc/etcd/pki/member.crt "
        "ETCDCTL_KEY=/etc/etcd/pki/member.key /opt/indigo/etcd-*/etcdctl member list -w json"
    )
    found = json.loads(lab.exec(through, ["sh", "-c", script], check=True).stdout)
    return {one["name"]: bool(one.get("isLearner")) for one in found["members"]}


def keys(lab):
    """Minions whose keys the Salt master has accepted."""
    done = lab.exec("salt", ["salt-key", "-L", "--out=json"], check=True)
    return set(json.loads(done.stdout)["minions"])


def run(lab, what, *arguments, seconds=600):
    """A function of the runner: exit code, data, what it told meanwhile, seconds."""
    started = time.monotonic()
    done = lab.salt_run(f"indigo.{what}", *arguments, "--out=json", timeout=seconds)
    took = time.monotonic() - started
    try:
        data = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        data = {}
    return done.returncode, data, done.stdout + done.stderr, took


def refused(lab, *arguments, what="remove"):
    """What the runner says of a request that it must refuse, without having changed anything."""
    before = lab.salt_run("salt.cmd", "indigo_model.leaving", "--out=json").stdout
    code, _, told, _ = run(lab, what, *arguments)
    assert code != 0, told
    assert lab.salt_run("salt.cmd", "indigo_model.leaving", "--out=json").stdout == before
    return told


def changed(done):
    """Hosts on which a deploy changed something, with the names of the states."""
    found = {}
    for _, host, state in done.states():
        if state.get("changes"):
            found.setdefault(host, []).append(str(state["name"]))
    return found


def status_of(lab, token, node):
    """HTTP status of a request to the API, through the VIP, with a token."""
    call = ["python3", "-c", _CALLER, "https://10.77.0.10:8443", node]
    return lab.exec("lb1", call, stdin=token, check=True).stdout.strip()


def backends(lab, balancer):
    """Masters that a load balancer knows."""
    text = lab.exec(balancer, ["cat", "/etc/haproxy/haproxy.cfg"], check=True).stdout
    return {line.split()[1] for line in text.splitlines() if line.split()[:1] == ["server"]}


# Growth ------------------------------------------------------------------------------------------


@pytest.mark.foundation
def test_four_hosts_come_with_one_deploy_and_only_who_must_know_changes(lab, figure):
    for host in COMING:
        lab.add(host)
    declare(lab, *COMING)
    done = deploy(lab)
    assert done.code == 0, done.told
    figure(f"lb4, etcd4, etcd5, master3 added by one deploy: {done.seconds:.1f} s")
    # New members came as learners, one after the other, and vote now.
    assert members(lab) == dict.fromkeys(("etcd1", "etcd2", "etcd3", "etcd4", "etcd5"), False)
    touched = changed(done)
    assert {"lb4", "etcd4", "etcd5", "master3"} <= set(touched)
    # Masters learn of etcd's members and of each other, load balancers of masters and each other.
    assert set(touched) <= {
        "lb1", "lb2", "lb3", "lb4", "etcd4", "etcd5", "master1", "master2", "master3",
    }, touched  # fmt: skip
    assert backends(lab, "lb4") == backends(lab, "lb1") == {"master1", "master2", "master3"}
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {}), again.told
    well(lab)
    assert ready_nodes(lab) == {"node1", "node2", "node3"}


# Refusals ----------------------------------------------------------------------------------------


def test_what_is_unsafe_is_refused_and_says_what_to_do_first(lab):
    assert "certificate authorities" in refused(lab, "host=salt")
    assert "is not declared" in refused(lab, "host=node9")
    told = refused(lab, "host=lb1,lb2,lb3,lb4")
    assert "last load balancer" in told
    assert "last master" in refused(lab, "host=master1,master2,master3", "force=True")
    # Two of five are off: none of the living may leave, whatever is said; the dead may.
    for host in ("etcd4", "etcd5"):
        lab.kill(host)
    try:
        told = refused(lab, "host=etcd1", "force=True")
        assert "of the 4 members left 2 are healthy, a quorum takes 3" in told
        assert "does not answer" in refused(lab, "host=etcd5")
    finally:
        for host in ("etcd4", "etcd5"):
            lab.start(host)
    for host in ("etcd4", "etcd5"):
        answering(lab, host)
    assert set(members(lab)) == {"etcd1", "etcd2", "etcd3", "etcd4", "etcd5"}


def test_a_drain_keeps_to_the_budget_and_says_which_one_held_it(lab):
    newer = "policy/v1\n" in lab.kubectl("api-versions").stdout
    budget = BUDGET.format(version="v1" if newer else "v1beta1")
    done = lab.kubectl("apply", "-f", "-", stdin=f"{WEB}---{budget}")
    assert done.returncode == 0, done.stderr
    ready = ("get", "deployment", "web")
    assert until(lambda: kubectl(lab, *ready).get("status", {}).get("readyReplicas") == 3, 90), (
        kubectl(lab, *ready)
    )
    code, _, told, _ = run(lab, "drain", "host=node3", "deadline=5")
    assert code != 0
    assert "default/web-" in told
    assert "disruption budget web needs 3" in told
    # It takes pods as before.
    assert "unschedulable" not in kubectl(lab, "get", "node", "node3")["spec"]
    # The removal begins with the drain: it fails before anything has changed.
    refused(lab, "host=node3", "deadline=3")
    assert "unschedulable" not in kubectl(lab, "get", "node", "node3")["spec"]
    lab.kubectl("delete", "poddisruptionbudget", "web", timeout=60)
    # A pod's 30 seconds to end are many more on a machine that has much to do.
    code, data, told, _ = run(lab, "drain", "host=node3", "deadline=150")
    assert code == 0, told
    assert len(data["node3"]["evicted"]) >= 1
    assert kubectl(lab, "get", "node", "node3")["spec"]["unschedulable"] is True
    code, _, told, _ = run(lab, "uncordon", "host=node3")
    assert code == 0, told
    assert "unschedulable" not in kubectl(lab, "get", "node", "node3")["spec"]


# Removal -----------------------------------------------------------------------------------------

GOING = ("lb4", "etcd4", "etcd5", "master3", "node3")


@pytest.mark.foundation
def test_five_hosts_go_and_nothing_of_them_is_left(lab, figure):
    token = lab.exec("node3", ["cat", "/etc/kubernetes/tokens/kubelet"], check=True).stdout
    assert status_of(lab, token, "node3") == "200"
    hosts = f"host={','.join(GOING)}"
    code, data, told, _ = run(lab, "remove", hosts, "test=True")
    assert code == 0, told
    assert "etcd5: member etcd5 leaves etcd" in data["would"]
    assert keys(lab) >= set(GOING)
    # Killed when it has only begun to take them out: nothing must bring them back.
    script = (
        f"salt-run indigo.remove {hosts} >/dev/null 2>&1 & pid=$!; for i in $(seq 1200); do "
        "ls /var/cache/salt/master/indigo/leaving/node3.json && break; sleep 0.1; done; "
        "kill -KILL $pid; wait $pid"
    )
    lab.exec("salt", ["sh", "-c", script], timeout=300)
    told = deploy(lab).told
    assert "its removal was begun and is not finished" in told
    assert "salt-run indigo.remove host=etcd4" in told
    code, data, told, seconds = run(lab, "remove", hosts)
    assert code == 0, told
    figure(f"lb4, etcd4, etcd5, master3, node3 removed, after a kill half-way: {seconds:.1f} s")
    assert members(lab) == dict.fromkeys(("etcd1", "etcd2", "etcd3"), False)
    assert keys(lab).isdisjoint(GOING)
    names = {node["metadata"]["name"] for node in kubectl(lab, "get", "nodes")["items"]}
    assert names == {"node1", "node2"}
    assert status_of(lab, token, "node3") == "401"
    assert backends(lab, "lb1") == {"master1", "master2"}
    for master in ("master1", "master2"):
        listed = lab.exec(master, ["grep", "-c", "node3", "/etc/kubernetes/tokens.csv"])
        assert listed.stdout.strip() == "0"
    for host in GOING:
        left = "ls -d /etc/kubernetes /etc/etcd /var/lib/etcd /etc/haproxy /opt/indigo 2>/dev/null"
        assert lab.exec(host, ["sh", "-c", left]).stdout == ""
    # The lines are still there: a deploy says which to delete, and brings nobody back.
    told = deploy(lab).told
    assert "found a host that indigo.remove took out" in told
    assert members(lab) == dict.fromkeys(("etcd1", "etcd2", "etcd3"), False)
    declare(lab, without=GOING)
    done = deploy(lab)
    assert (done.code, done.changes) == (0, {}), done.told
    well(lab)


def test_a_host_that_was_removed_comes_back_as_a_new_one(lab):
    for host in ("lb4", "etcd4", "etcd5", "master3"):
        lab.remove(host)
    lab.rebuild("node3")
    node = lab.host("node3")
    declare(lab, node)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert set(changed(done)) <= {"node3", "master1", "master2"}
    well(lab)
    assert ready_nodes(lab) == {"node1", "node2", "node3"}


# Replacement -------------------------------------------------------------------------------------


def fingerprint(lab, master):
    """Fingerprint of the token set of a master."""
    done = lab.salt(master, "indigo_tokens.state", "--out=json", "--static", timeout=60)
    return json.loads(done.stdout)[master]["set"]["fingerprint"]


def test_the_first_member_and_the_holder_of_the_tokens_are_replaced(lab, figure):
    tokens = fingerprint(lab, "master2")
    assert "it is no new machine" in refused(lab, "host=etcd1", what="replace")
    before = kubectl(lab, "get", "namespace", "kube-system")["metadata"]["uid"]
    lab.kill("etcd1")
    told = refused(lab, "host=etcd1", what="replace")
    assert "salt-key -a etcd1" in told
    assert "etcd1" not in keys(lab)
    assert set(members(lab, "etcd2")) == {"etcd2", "etcd3"}
    lab.rebuild("etcd1")  # accepts the new key, too
    code, _, told, seconds = run(lab, "replace", "host=etcd1")
    assert code == 0, told
    figure(f"etcd1 replaced by a new machine: {seconds:.1f} s after its key was accepted")
    assert members(lab) == dict.fromkeys(("etcd1", "etcd2", "etcd3"), False)
    lab.rebuild("master1")
    code, _, told, seconds = run(lab, "replace", "host=master1")
    assert code == 0, told
    figure(f"master1 replaced by a new machine: {seconds:.1f} s")
    assert fingerprint(lab, "master1") == tokens
    assert kubectl(lab, "get", "namespace", "kube-system")["metadata"]["uid"] == before
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {}), again.told
    well(lab)


def authorities(lab, holder):
    """The backup that docs/operations/certificates.md has an operator take."""
    pack = "tar -C /etc/indigo -cf - ca | base64 -w0"
    return lab.exec(holder, ["sh", "-c", pack], check=True).stdout


def put_back(lab, host, backup):
    """What the same page has an operator do on the successor."""
    unpack = "mkdir -p -m 0700 /etc/indigo && base64 -d | tar -C /etc/indigo -xpf -"
    lab.exec(host, ["sh", "-c", unpack], stdin=backup, check=True)


def give_authorities(lab, old, new):
    """Move role ca to another host, with what it holds, as the page says.

    Args:
        old: Its holder. What has no other role is declared no more.
        new: Its holder from now on.
    """
    put_back(lab, new, authorities(lab, old))
    document = declared(lab)
    hosts = document["hosts"]
    hosts[old]["roles"].remove("ca")
    if not hosts[old]["roles"]:
        del hosts[old]
    hosts.setdefault(new, {"address": lab.host(new).address, "roles": []})["roles"].append("ca")
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    done = deploy(lab)
    assert done.code == 0, done.told
    lab.exec(old, ["rm", "-rf", "/etc/indigo/ca"], check=True)


def test_the_host_of_the_authorities_is_replaced_from_its_backup(lab, figure):
    give_authorities(lab, "salt", "lb3")
    backup = authorities(lab, "lb3")
    lab.rebuild("lb3")
    told = refused(lab, "host=lb3", what="replace")
    assert "put /etc/indigo/ca from a backup on it" in told
    put_back(lab, "lb3", backup)
    code, _, told, seconds = run(lab, "replace", "host=lb3")
    assert code == 0, told
    figure(f"the CA host replaced by a new machine: {seconds:.1f} s")
    # It signs: a new machine gets all its certificates from it.
    lab.rebuild("node3")
    code, _, told, seconds = run(lab, "replace", "host=node3")
    assert code == 0, told
    figure(f"a node replaced by a new machine: {seconds:.1f} s")
    well(lab)
    give_authorities(lab, "lb3", "salt")
    again = deploy(lab)
    assert (again.code, again.changes) == (0, {}), again.told
    well(lab)


def test_a_lost_authority_is_never_made_anew(lab):
    move = "mv /etc/indigo/ca /root/ca"
    lab.exec("salt", ["sh", "-c", move], check=True)
    try:
        done = deploy(lab)
        assert done.code != 0
        assert "Put /etc/indigo/ca from a backup on salt" in done.told
        assert lab.exec("salt", ["ls", "/etc/indigo/ca"]).returncode != 0
    finally:
        lab.exec("salt", ["sh", "-c", "rm -rf /etc/indigo/ca; mv /root/ca /etc/indigo/ca"])
    done = deploy(lab)
    assert done.code == 0, done.told
    assert status(lab)["problems"] == []
    lab.kubectl("delete", "deployment,service", "web", timeout=60)
