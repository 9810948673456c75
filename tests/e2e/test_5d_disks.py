"""An add-on's disk grows where it is, and what would lose its data is refused.

The lab has no driver that makes disks: one is declared by hand, on a folder of the host. The API
and its admission are asked in earnest; that a disk has really grown is for a driver to show.
"""

from __future__ import annotations

import json
from urllib.parse import urlencode

import pytest
import yaml
from cluster import deploy, disk, kubectl, until, well

pytestmark = pytest.mark.slow

PROFILE = "single"
HOST = "salt"
SPACE = "metrics-archive"
STATE = "influxdb is in the cluster"
SET = "StatefulSet metrics-archive/influxdb"
CLAIM = "PersistentVolumeClaim metrics-archive/data-influxdb-0"

FOLDER = "/var/lib/kubelet/disk-of-influxdb"


def declare(lab, settings):
    """Want InfluxDB with these settings, or, with None, not."""
    document = yaml.safe_load(lab.cluster_file.read_text())
    document.pop("addons", None)
    if settings is not None:
        document["addons"] = {"influxdb": {"size": "256Mi", "memory": "512Mi", **settings}}
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt(HOST, "saltutil.refresh_pillar", "wait=True")


def applied(lab, *arguments):
    """``state.apply addons``: exit code, and the state of the add-on."""
    done = lab.salt(HOST, "state.apply", "addons", *arguments, "--out=json", timeout=300)
    states = json.loads(done.stdout)[HOST]
    (found,) = [one for one in states.values() if one["__id__"] == STATE]
    return done.returncode, found


def there(lab):
    """UIDs of its StatefulSet, its pod and its claim, and the size that the claim asks for."""
    found = [
        kubectl(lab, "get", kind, "-n", SPACE, name)
        for kind, name in (
            ("statefulset", "influxdb"),
            ("pod", "influxdb-0"),
            ("pvc", "data-influxdb-0"),
        )
    ]
    size = found[2]["spec"]["resources"]["requests"]["storage"]
    return [*(one["metadata"]["uid"] for one in found), size]


def query(lab, statement):
    """What the database answers to a statement."""
    (pod,) = kubectl(lab, "get", "pods", "-n", SPACE)["items"]
    url = f"http://{pod['status']['podIP']}:8086/query?" + urlencode({"db": "site", "q": statement})
    post = f"r.Request({url!r}, method='POST')"
    ask = f"import urllib.request as r; print(r.urlopen({post}, timeout=5).read().decode())"
    return lab.exec(HOST, ["python3", "-c", ask], timeout=30, check=True).stdout


def ready(lab, claim="disks"):
    """Wait until its one pod is ready, on a disk of this class or, with None, on the node."""

    def serves():
        items = kubectl(lab, "get", "pods", "-n", SPACE)["items"]
        sets = kubectl(lab, "get", "statefulset", "-n", SPACE)["items"]
        claims = kubectl(lab, "get", "pvc", "-n", SPACE)["items"]
        return (
            [one["status"].get("readyReplicas") for one in sets] == [1]
            and [one["status"].get("observedGeneration") for one in sets]
            == [one["metadata"]["generation"] for one in sets]
            and len(items) == 1
            and "deletionTimestamp" not in items[0]["metadata"]
            and [(one["spec"]["storageClassName"], one["status"]["phase"]) for one in claims]
            == ([(claim, "Bound")] if claim else [])
        )

    assert until(serves, 120, 1), lab.kubectl("get", "pods,pvc,events", "-n", SPACE).stdout


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    done = deploy(lab)
    if done.code:
        pytest.fail(f"no cluster to bring it to: {done.told}")
    before = lab.cluster_file.read_text()
    with disk(lab, HOST, FOLDER, "2Gi"):
        yield
        lab.cluster_file.write_text(before)
        lab.salt(HOST, "saltutil.refresh_pillar", "wait=True")
        lab.salt(HOST, "state.apply", "addons", timeout=300)
    well(lab)


def test_data_of_pods_comes_to_a_disk_with_new_pods_and_a_wrong_class_is_mended(lab):
    declare(lab, {})
    assert applied(lab)[0] == 0
    ready(lab, None)
    declare(lab, {"storage_class": "dsiks"})
    code, found = applied(lab)
    assert (code, found["changes"]) == (0, {SET: "replaced with its pods"}), found
    waits = until(lambda: kubectl(lab, "get", "pvc", "-n", SPACE)["items"], 60, 1)
    assert [one["status"]["phase"] for one in waits] == ["Pending"]
    declare(lab, {"storage_class": "disks"})
    code, found = applied(lab)
    assert (code, found["changes"]) == (0, {SET: "replaced with its pods", CLAIM: "made anew"})
    ready(lab)
    code, found = applied(lab)
    assert (code, found["changes"]) == (0, {})
    query(lab, "CREATE DATABASE site")
    assert '"site"' in query(lab, "SHOW DATABASES")


def test_a_larger_size_grows_the_claim_and_the_pod_runs_on(lab):
    before = there(lab)
    assert before[3] == "256Mi"
    declare(lab, {"storage_class": "disks", "size": "512Mi"})
    moved = {CLAIM: "grown to 512Mi", SET: "replaced, its pods stay"}
    code, found = applied(lab, "test=True")
    assert (code, found["result"], found["changes"]) == (0, None, moved), found
    assert there(lab) == before
    code, found = applied(lab)
    assert (code, found["changes"]) == (0, moved), found
    ready(lab)
    after = there(lab)
    assert after[0] != before[0]
    assert after[1:] == [*before[1:3], "512Mi"]
    pod = kubectl(lab, "get", "pod", "-n", SPACE, "influxdb-0")["metadata"]
    assert [one["uid"] for one in pod["ownerReferences"]] == [after[0]]
    code, found = applied(lab)
    assert (code, found["changes"]) == (0, {})
    assert there(lab) == after


def test_a_run_that_was_ended_before_the_new_statefulset_is_brought_to_its_end(lab):
    before = there(lab)
    gone = lab.kubectl("delete", "statefulset", "-n", SPACE, "influxdb", "--cascade=orphan")
    assert gone.returncode == 0, gone.stderr
    declare(lab, {"storage_class": "disks", "size": "768Mi"})
    code, found = applied(lab)
    assert (code, found["changes"]) == (0, {CLAIM: "grown to 768Mi", SET: "updated"}), found
    ready(lab)
    assert there(lab)[1:] == [*before[1:3], "768Mi"]
    assert applied(lab)[1]["changes"] == {}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"storage_class": "disks", "size": "256Mi"},
            "addons.influxdb.size: found 256Mi, but claim metrics-archive/data-influxdb-0 has "
            "768Mi, and a disk gets no smaller: set it to 768Mi or more, ",
        ),
        (
            {"storage_class": "others", "size": "768Mi"},
            "addons.influxdb.storage_class: found others, but claim "
            "metrics-archive/data-influxdb-0 has its data on a disk of class disks, ",
        ),
        (
            {"size": "768Mi"},
            "addons.influxdb.storage_class: found none, but claim "
            "metrics-archive/data-influxdb-0 has its data on a disk of class disks, ",
        ),
    ],
)
def test_what_would_lose_data_is_refused_and_changes_nothing(lab, settings, told):
    before = there(lab)
    # Something else that is declared with it is not done either.
    declare(lab, {**settings, "memory": "640Mi"})
    for arguments in (["test=True"], []):
        code, found = applied(lab, *arguments)
        assert (code != 0, found["result"], found["changes"]) == (True, False, {}), found
        assert found["comment"].startswith(told), found["comment"]
        assert "take addons.influxdb away, deploy, and bring it again" in found["comment"]
    assert there(lab) == before
    assert "640Mi" not in str(kubectl(lab, "get", "statefulset", "-n", SPACE, "influxdb"))


def test_a_class_that_lets_no_disk_grow_is_told_with_the_way_out(lab):
    before = there(lab)
    closed = ["patch", "storageclass", "disks", "-p", '{"allowVolumeExpansion":false}']
    assert lab.kubectl(*closed).returncode == 0
    declare(lab, {"storage_class": "disks", "size": "1Gi"})
    code, found = applied(lab)
    assert code != 0
    assert found["comment"].startswith(
        "addons.influxdb.size: found 1Gi, but claim metrics-archive/data-influxdb-0 has 768Mi of "
        "class disks, which lets no disk grow: if its driver can, kubectl patch storageclass disks "
    )
    assert there(lab) == before
    # What the message says to do.
    asked = found["comment"].partition("kubectl patch ")[2].partition(" and try again")[0]
    name, _, body = asked.partition(" -p ")
    opened = lab.kubectl("patch", *name.split(), "-p", body.strip("'"))
    assert opened.returncode == 0, opened.stderr
    assert applied(lab)[0] == 0
    ready(lab)
    assert there(lab)[1:] == [*before[1:3], "1Gi"]
    assert '"site"' in query(lab, "SHOW DATABASES")


def test_taken_away_and_brought_again_it_begins_anew(lab):
    declare(lab, None)
    done = lab.salt(HOST, "state.apply", "addons", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert kubectl(lab, "get", "pvc", "-A")["items"] == []
    declare(lab, {})
    assert applied(lab)[0] == 0
    ready(lab, None)
    assert '"site"' not in query(lab, "SHOW DATABASES")
