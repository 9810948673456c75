"""The Infrastructure Manager by its key alone: it comes, works, outlives its pod, and goes.

Its image is made of Debian's Python and PyPI's wheels, without Ansible's collections. The cloud is
the package's own ``Dummy``, which makes machines that are none.
"""

from __future__ import annotations

import base64
import json

import pytest
import yaml
from cluster import addon_works, apply_addons, changes, deploy, disk, kubectl, status, until, well
from indigo_lab import pythons
from indigo_model import infrastructures

pytestmark = pytest.mark.slow

PROFILE = "single"
HOST = "salt"

#: Where its database lies on the host: kubelet mounts it into the pod.
FOLDER = "/var/lib/kubelet/disk-of-im"

#: One machine, and nothing to be set up on it: nobody is at its address.
MACHINE = """
network net (outbound = 'no')
system front (
  cpu.count >= 1 and memory.size >= 512m and net_interface.0.connection = 'net' and
  disk.0.image.url = 'mock0://nowhere/image' and disk.0.os.name = 'linux'
)
contextualize ()
deploy front 1
"""

#: Asks the service as its own user; arguments: method, path, cloud or nothing. Prints what came.
#: The password comes from the standard input.
ASK = """
import json, sys, urllib.error, urllib.request
address, method, path, cloud = sys.argv[1:]
password, _, body = sys.stdin.read().partition("\\n")
head = {"Accept": "application/json", "Content-Type": "text/plain"}
if password:
    head["Authorization"] = (
        "type = InfrastructureManager; username = indigo; password = " + password
        + (r"\\nid = cloud; type = " + cloud if cloud else "")
    )
asked = urllib.request.Request(
    f"http://{address}:8800{path}", body.encode() or None, head, method=method
)
try:
    answer = urllib.request.urlopen(asked, timeout=30)
except urllib.error.HTTPError as err:
    answer = err
print(json.dumps([answer.status, answer.read().decode()]))
"""


def declare(lab, services, **use):
    """Want these services, with the image's archive where it is used."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    document.pop("services", None)
    if services:
        document["services"] = services
    document["images"]["use"].update(use)
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt(HOST, "saltutil.refresh_pillar", "wait=True")


def offer(lab):
    """Put the image into the mirror and into the site's file."""
    entry = pythons.offered("im")
    document = yaml.safe_load(lab.cluster_file.read_text())
    document["images"]["archives"].append(entry)
    document["images"]["use"]["im"] = entry["name"]
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt(HOST, "saltutil.refresh_pillar", "wait=True")


def applied(lab):
    """``state.apply addons``: exit code, and what its states changed, in one mapping."""
    return apply_addons(lab, HOST, ("im", infrastructures.SECRET))


def works(lab):
    """What the check says; empty when it works."""
    return addon_works(lab, HOST, "im")


def pod(lab):
    """Its one pod."""
    (found,) = kubectl(lab, "get", "pods", "-n", "im")["items"]
    return found


def follows(lab, uid):
    """Wait until another pod than this one serves."""

    def serves():
        found = kubectl(lab, "get", "pods", "-n", "im")["items"]
        new = len(found) == 1 and found[0]["metadata"]["uid"] != uid
        return new and not works(lab) and ask(lab, "GET", "/version")[0] == 200

    assert until(serves, 120, 1), works(lab)


def password(lab):
    """That of the user which the add-on made."""
    found = kubectl(lab, "get", "secret", "-n", "im", infrastructures.SECRET)["data"]
    return base64.b64decode(found["indigo"]).decode()


def ask(lab, method, path, body="", cloud="", word=None):
    """Status and text that the service's own address answers; 0 and why where nobody does."""
    address = kubectl(lab, "get", "service", "-n", "im", "im")["spec"]["clusterIP"]
    word = password(lab) if word is None else word
    done = lab.exec(
        HOST,
        ["python3", "-c", ASK, address, method, path, cloud],
        stdin=f"{word}\n{body}",
        timeout=60,
    )
    return tuple(json.loads(done.stdout)) if done.returncode == 0 else (0, done.stderr)


def listed(lab):
    """Names of the infrastructures that its user has."""
    status_, text = ask(lab, "GET", "/infrastructures")
    assert status_ == 200, text
    return [one["uri"].rpartition("/")[2] for one in json.loads(text)["uri-list"]]


def left(lab):
    """Whatever of it is still in the cluster."""
    kinds = "namespace,configmap,pod,secret,persistentvolumeclaim,serviceaccount,service"
    columns = "custom-columns=IN:.metadata.namespace,NAME:.metadata.name"
    done = lab.kubectl("get", kinds, "-A", "-o", columns, timeout=60)
    assert done.returncode == 0, done.stderr
    own = {"im", "indigo-addon-im"}
    return [line for line in done.stdout.splitlines() if own & set(line.split())]


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    done = deploy(lab)
    if done.code:
        pytest.fail(f"no cluster to bring it to: {done.told}")
    before = lab.cluster_file.read_text()
    offer(lab)
    with disk(lab, HOST, FOLDER):
        yield
        lab.cluster_file.write_text(before)
        lab.salt(HOST, "saltutil.refresh_pillar", "wait=True")
        applied(lab)
    well(lab)


def test_its_key_alone_and_a_deploy_bring_it(lab, figure):
    declare(lab, {"im": {}})
    done = deploy(lab)
    assert done.code == 0, done.told
    figure(f"Infrastructure Manager, from its key to its check: {done.seconds:.1f} s")
    found = status(lab)
    assert (found["addons"], found["exit"]) == ({"im": "ok"}, 0), found["problems"]
    assert ask(lab, "GET", "/version") == (200, '{"version":"2.0.0"}')
    assert listed(lab) == []


def test_it_lets_nobody_in_but_its_user_whose_password_is_in_the_cluster_alone(lab):
    assert ask(lab, "GET", "/infrastructures", word="")[0] == 401
    assert ask(lab, "GET", "/infrastructures", word="guess")[0] == 401
    word = password(lab)
    assert len(word) == 32
    kept = lab.exec(
        HOST, ["grep", "-rlFf-", "/etc", "/var/cache/salt", "/var/log/salt"], stdin=word
    )
    assert kept.returncode == 1, kept.stdout


def test_its_pod_has_no_more_rights_than_it_needs(lab):
    found = pod(lab)["spec"]
    (container,) = found["containers"]
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"] == "1Gi"
    spaces = kubectl(lab, "get", "namespace", "im")["metadata"]["labels"]
    assert spaces["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_second_run_changes_nothing(lab):
    assert applied(lab) == (0, {})
    done = deploy(lab)
    assert (done.code, done.changes) == (0, {}), done.told


def test_options_and_a_disk_are_changed_in_place(lab):
    config = {"MAX_VM_FAILS": 5, "DEFAULT_DOMAIN": "lab"}
    declare(lab, {"im": {"config": config}})
    before = pod(lab)["metadata"]["uid"]
    assert applied(lab) == (0, {"ConfigMap im/im": "updated", "Deployment im/im": "updated"})
    follows(lab, before)
    before = pod(lab)["metadata"]["uid"]
    declare(lab, {"im": {"config": config, "storage_class": "disks"}})
    # What is new is told alone.
    assert applied(lab) == (0, {"PersistentVolumeClaim im/im": "created"})
    follows(lab, before)
    assert applied(lab) == (0, {})
    claim = kubectl(lab, "get", "persistentvolumeclaim", "-n", "im", "im")
    assert claim["status"]["phase"] == "Bound"
    assert lab.exec(HOST, ["test", "-s", f"{FOLDER}/inf.dat"]).returncode == 0


def test_an_infrastructure_comes_outlives_the_pod_and_goes(lab):
    code, text = ask(lab, "POST", "/infrastructures", MACHINE, "Dummy")
    assert code == 200, text
    name = json.loads(text)["uri"].rpartition("/")[2]

    def state(expected):
        code, text = ask(lab, "GET", f"/infrastructures/{name}/state", cloud="Dummy")
        return code == 200 and json.loads(text)["state"]["state"] == expected

    assert until(lambda: state("configured"), 60, 1), ask(
        lab, "GET", f"/infrastructures/{name}/state", cloud="Dummy"
    )
    assert listed(lab) == [name]
    lost = pod(lab)["metadata"]
    gone = lab.kubectl("delete", "pod", "-n", "im", lost["name"], "--force", "--grace-period=0")
    assert gone.returncode == 0, gone.stderr
    follows(lab, lost["uid"])
    assert listed(lab) == [name]
    assert state("configured")
    code, text = ask(lab, "DELETE", f"/infrastructures/{name}", cloud="Dummy")
    assert code == 200, text
    assert until(lambda: listed(lab) == [], 30, 1)


def test_users_of_the_site_stand_for_its_own(lab):
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: people, namespace: im}\n"
    made = lab.kubectl("apply", "-f", "-", stdin=f"{secret}stringData: {{indigo: theirs}}\n")
    assert made.returncode == 0, made.stderr
    before = pod(lab)["metadata"]["uid"]
    declare(lab, {"im": {"storage_class": "disks", "secret": "people"}})
    assert applied(lab)[0] == 0
    follows(lab, before)
    assert ask(lab, "GET", "/infrastructures", word="theirs")[0] == 200
    assert ask(lab, "GET", "/infrastructures")[0] == 401


def test_one_that_cannot_start_says_why(lab):
    good = yaml.safe_load(lab.cluster_file.read_text())["images"]["use"]["im"]
    declare(lab, {"im": {"storage_class": "disks"}}, im="indigo.lab/broken:1")
    assert applied(lab)[0] == 0
    why = until(lambda: "ImagePull" in (now := works(lab)) and now, 120, 2)
    assert why and why.startswith("Deployment im/im: 0 of 1 replicas are ready: im-"), works(lab)
    assert f"add-on im: {why}"[:60] in "\n".join(status(lab)["problems"])
    declare(lab, {"im": {"storage_class": "disks"}}, im=good)
    assert applied(lab)[0] == 0
    assert until(lambda: works(lab) == "", 120, 2), works(lab)


def test_its_disk_grows_and_is_not_left_behind(lab):
    before = pod(lab)["metadata"]["uid"]
    declare(lab, {"im": {"storage_class": "disks", "size": "2Gi"}})
    assert applied(lab) == (0, {"PersistentVolumeClaim im/im": "grown to 2Gi"})
    assert applied(lab) == (0, {})
    declare(lab, {"im": {"size": "2Gi"}})
    refused = lab.salt(HOST, "state.apply", "addons", "--out=json", timeout=300)
    assert refused.returncode != 0
    assert "services.im.storage_class: found none, but claim im/im has its data" in refused.stdout
    claim = kubectl(lab, "get", "persistentvolumeclaim", "-n", "im", "im")
    assert claim["spec"]["resources"]["requests"] == {"storage": "2Gi"}
    assert pod(lab)["metadata"]["uid"] == before


def test_it_goes_whole(lab):
    declare(lab, None)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert left(lab) == []
    assert not lab.exec(HOST, ["ls", "/etc/kubernetes/addons"], check=True).stdout
    result = lab.salt(HOST, "state.apply", "--out=json", timeout=300)
    assert result.returncode == 0
    assert changes(json.loads(result.stdout)[HOST]) == {}
