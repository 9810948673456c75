"""A user's own services: plain manifests and a kustomization come, change, break and go."""

from __future__ import annotations

import json

import pytest
import yaml
from cluster import changes, deploy, deployment, kubectl, status, until, well

PROFILE = "compact"
MASTER = "host1"
FILES = "/srv/indigo-files/services"

WEB = f"""{deployment("web", 1)}---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
"""
NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: wiki}\n"
KUSTOMIZATION = "resources: [web.yaml]\nnamePrefix: other-\n"

WANTED = {
    "wiki": {
        "source": "salt://services/wiki",
        "namespace": "wiki",
        "check": {"service": "web", "expect": "web-"},
    },
    "other": {"source": "salt://services/other", "check": {"service": "other-web"}},
}


def put(lab, path, text):
    """Write a file into the Salt master's file server."""
    name = f"{FILES}/{path}"
    lab.exec("salt", ["mkdir", "-p", name.rpartition("/")[0]], check=True)
    lab.exec("salt", ["tee", name], stdin=text, check=True)


def declare(lab, services):
    document = yaml.safe_load(lab.cluster_file.read_text())
    document.pop("services", None)
    if services:
        document["services"] = services
    lab.cluster_file.write_text(yaml.safe_dump(document, sort_keys=False))
    lab.salt(MASTER, "saltutil.refresh_pillar", "wait=True")


def applied(lab):
    """``state.apply addons``: exit code, changes of services, what failed."""
    done = lab.salt(MASTER, "state.apply", "addons", "--out=json", timeout=300)
    found, failed = {}, {}
    for one in json.loads(done.stdout)[MASTER].values():
        if one["result"] is False:
            failed[one["name"].rpartition("/")[2]] = one["comment"]
        if one["name"].startswith(("service-", "No other")):
            found |= one["changes"]
    return done.returncode, found, failed


def works(lab):
    """What the services' checks say, of those that do not work."""
    done = lab.salt(MASTER, "indigo_addon.works", "--out=json", timeout=60)
    return {name: why for name, why in json.loads(done.stdout)[MASTER].items() if why}


@pytest.fixture(scope="module", autouse=True)
def _deployed(lab):
    done = deploy(lab)
    if done.code:
        pytest.fail(f"no cluster to bring services to: {done.told}")
    yield
    declare(lab, None)
    applied(lab)
    lab.exec("salt", ["rm", "-rf", FILES], check=True)
    well(lab)


def test_manifests_and_a_kustomization_come_and_serve(lab):
    put(lab, "wiki/web.yaml", WEB)
    put(lab, "wiki/namespace.yaml", NAMESPACE)
    put(lab, "other/web.yaml", WEB)
    put(lab, "other/kustomization.yaml", KUSTOMIZATION)
    declare(lab, WANTED)
    done = deploy(lab)
    assert done.code == 0, done.told
    assert status(lab)["addons"] == {"service-wiki": "ok", "service-other": "ok"}
    names = {
        (one["metadata"]["namespace"], one["metadata"]["name"])
        for one in kubectl(lab, "get", "deployments", "-A")["items"]
    }
    assert names == {("wiki", "web"), ("default", "other-web")}
    assert applied(lab) == (0, {}, {})


def test_what_is_changed_in_the_folder_is_changed_in_place(lab):
    put(lab, "other/web.yaml", WEB.replace("replicas: 1", "replicas: 2"))
    assert applied(lab) == (0, {"Deployment default/other-web": "updated"}, {})
    assert until(lambda: works(lab) == {}, 60, 1), works(lab)


def test_one_that_is_broken_fails_alone_and_says_why(lab):
    put(lab, "wiki/web.yaml", WEB.replace("indigo.lab/web:1", "indigo.lab/no:1"))
    put(lab, "other/web.yaml", WEB.replace("kind: Deployment", "kind: Deploiment"))
    put(lab, "chart/Chart.yaml", "name: chart\n")
    # A deploy does that by itself, a state.apply does not.
    assert lab.salt_run("fileserver.clear_file_list_cache").returncode == 0
    declare(lab, WANTED | {"chart": {"source": "salt://services/chart"}})
    code, found, failed = applied(lab)
    assert code != 0
    assert found == {"Deployment wiki/web": "updated"}
    assert "Deploiment other-web: this cluster has no Deploiment" in failed["service-other.yaml"]
    assert "this host has no helm" in failed["service-chart.yaml"]
    told = until(lambda: (now := works(lab)) and "ErrImageNeverPull" in str(now) and now, 60, 1)
    assert told and "Deployment wiki/web: " in told["service-wiki"], works(lab)
    assert "service-other" not in told  # what ran before goes on


def test_they_go_whole(lab):
    put(lab, "wiki/web.yaml", WEB)
    put(lab, "other/web.yaml", WEB)
    declare(lab, WANTED)
    assert applied(lab)[2] == {}
    assert until(lambda: works(lab) == {}, 60, 1), works(lab)
    declare(lab, {"other": WANTED["other"]})
    assert applied(lab) == (0, {"service-wiki": "removed"}, {})
    assert lab.kubectl("get", "namespace", "wiki").returncode != 0
    assert works(lab) == {}
    declare(lab, None)
    assert applied(lab) == (0, {"service-other": "removed"}, {})
    assert kubectl(lab, "get", "deployments", "-A")["items"] == []
    assert not lab.exec(MASTER, ["ls", "/etc/kubernetes/services"], check=True).stdout
    result = lab.salt(MASTER, "state.apply", "--out=json", timeout=300)
    assert result.returncode == 0
    assert changes(json.loads(result.stdout)[MASTER]) == {}
