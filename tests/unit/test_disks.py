"""Disks of add-ons: what grows, what is replaced, what is refused, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from indigo_model import addons, disks
from salt.exceptions import CommandExecutionError
from support import load
from test_addons import cluster

module = load("_modules", "indigo_disk")
state = load("_states", "indigo_addon")

NOTHING: dict[str, list[Any]] = {
    name: [] for name in ("refused", "grown", "kept", "anew", "dropped")
}
SET = ("StatefulSet", "n", "x")
CLASSES = {"fast": True, "slow": False, "other": True}


def spec(size: str, storage_class: str | None) -> dict[str, Any]:
    (claim,), _ = disks.storage({"size": size, "storage_class": storage_class or "-"})
    return {**claim["spec"], "storageClassName": storage_class or ""}


def statefulset(disk: tuple[str, str] | None) -> dict[str, Any]:
    """One as the file or the API has it: its template of a size and class, or none."""
    templates = [{"metadata": {"name": "data"}, "spec": spec(*disk)}] if disk else []
    metadata = {"namespace": "n", "name": "x"}
    return {
        "kind": "StatefulSet",
        "metadata": metadata,
        "spec": {"volumeClaimTemplates": templates},
    }


def claim(
    name: str, size: str, storage_class: str | None = "fast", phase: str = "Bound"
) -> dict[str, Any]:
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": "n", "name": name},
        "spec": spec(size, storage_class),
        "status": {"phase": phase},
    }


def by_place(*objects: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    return {(one["kind"], "n", one["metadata"]["name"]): one for one in objects}


def decided(
    wanted: list[dict[str, Any]], *live: dict[str, Any], before: Any = None, key: str = "addons.x"
) -> dict[str, list[Any]]:
    """What a plan has to do, without what it has not."""
    found = by_place(*live)
    # Claims that a StatefulSet makes are in no inventory.
    own = [one for one in found if not one[2][-1].isdigit() or "database" in one[2]]
    plan = module.decide(key, wanted, before or own, found, CLASSES)
    assert set(plan) == set(NOTHING)
    return {name: one for name, one in plan.items() if one}


# --- decisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [("1024Mi", "1Gi"), ("1024Ti", "1Pi"), ("0.5Gi", "512Mi"), ("1e3", "1k"), ("2000m", "2")],
)
def test_a_size_is_the_same_however_it_is_written(one, other):
    assert module.octets(one) == module.octets(other)


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1gi", "much", "1e3Gi3"])
def test_what_is_no_size_is_told(text):
    with pytest.raises(ValueError, match="no quantity"):
        module.octets(text)


def test_what_is_as_declared_is_left_alone():
    here = statefulset(("1Gi", "fast"))
    assert decided([statefulset(("1024Mi", "fast"))], here, claim("data-x-0", "1Gi")) == {}
    assert decided([statefulset(None)], statefulset(None)) == {}
    # A claim of another's, beside it in the namespace.
    assert decided([here], here, claim("data-xy-0", "9Gi"), claim("more-x-0", "9Gi")) == {}


def test_a_larger_size_grows_every_claim_and_its_pods_stay():
    live = [statefulset(("1Gi", "fast")), claim("data-x-0", "1Gi"), claim("data-x-11", "1Gi")]
    assert decided([statefulset(("2Gi", "fast"))], *live) == {
        "grown": [("n", "data-x-0", "2Gi"), ("n", "data-x-11", "2Gi")],
        "kept": [("n", "x")],
    }


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_that_was_ended_in_the_middle_is_brought_to_its_end(replaced):
    wanted = statefulset(("2Gi", "fast"))
    claims = [claim("data-x-0", "2Gi"), claim("data-x-1", "1Gi")]
    grown = {"grown": [("n", "data-x-1", "2Gi")]}
    if replaced:  # its StatefulSet is away: to apply it is all that is left
        assert decided([wanted], *claims, before=[SET]) == grown
    else:
        there = statefulset(("1Gi", "fast"))
        assert decided([wanted], there, *claims) == {**grown, "kept": [("n", "x")]}


def test_a_claim_that_somebody_made_larger_by_hand_stays():
    here = statefulset(("1Gi", "fast"))
    assert decided([here], here, claim("data-x-0", "5Gi")) == {}


@pytest.mark.parametrize(
    ("was", "now", "claims", "told"),
    [
        (
            ("2Gi", "fast"),
            ("1Gi", "fast"),
            [claim("data-x-0", "2Gi")],
            "addons.x.size: found 1Gi, but claim n/data-x-0 has 2Gi, and a disk gets no smaller: "
            "set it to 2Gi or more, or take addons.x away, ",
        ),
        (
            ("1Gi", "slow"),
            ("2Gi", "slow"),
            [claim("data-x-0", "1Gi", "slow")],
            "addons.x.size: found 2Gi, but claim n/data-x-0 has 1Gi of class slow, which lets no "
            "disk grow: if its driver can, kubectl patch storageclass slow -p "
            "'{\"allowVolumeExpansion\":true}' and try again; or set it to 1Gi, ",
        ),
        (
            ("1Gi", "gone"),
            ("2Gi", "gone"),
            [claim("data-x-0", "1Gi", "gone")],
            "addons.x.size: found 2Gi, but claim n/data-x-0 has 1Gi of class gone, which is not "
            "there any more: bring it, or set it to 1Gi",
        ),
        (
            ("1Gi", "fast"),
            ("2Gi", "fast"),
            [claim("data-x-0", "1Gi"), claim("data-x-1", "1Gi", phase="Pending")],
            "addons.x.size: found 2Gi, but claim n/data-x-1 has 1Gi and still waits for a disk: "
            "see kubectl -n n describe pvc data-x-1, ",
        ),
        (
            ("1Gi", "fast"),
            ("1Gi", "other"),
            [claim("data-x-0", "1Gi")],
            "addons.x.storage_class: found other, but claim n/data-x-0 has its data on a disk of "
            "class fast, which would stay behind: set it to fast, or take addons.x away, ",
        ),
        (
            ("1Gi", "fast"),
            None,
            [claim("data-x-0", "1Gi"), claim("data-x-1", "1Gi", phase="Pending")],
            "addons.x.storage_class: found none, but claim n/data-x-0 has its data on a disk of "
            "class fast, which would stay behind: set it to fast, ",
        ),
    ],
)
def test_what_would_lose_data_is_refused_by_its_key(was, now, claims, told):
    plan = decided([statefulset(now)], statefulset(was), *claims)
    (found,) = plan["refused"]
    assert found.startswith(told)


def test_what_was_asked_for_in_vain_may_be_taken_back_as_far_as_the_disk_goes():
    asked = claim("data-x-0", "9Ti")
    asked["status"]["capacity"] = {"storage": "1Gi"}
    live = [statefulset(("9Ti", "fast")), asked]
    assert decided([statefulset(("2Gi", "fast"))], *live) == {
        "grown": [("n", "data-x-0", "2Gi")],
        "kept": [("n", "x")],
    }
    (told,) = decided([statefulset(("512Mi", "fast"))], *live)["refused"]
    assert "claim n/data-x-0 has 1Gi, and a disk gets no smaller: set it to 1Gi or more" in told
    # One by hand is as large as it likes, and what was asked for is what counts.
    asked["spec"], asked["status"]["capacity"] = spec("1Gi", "fast"), {"storage": "5Gi"}
    (told,) = decided([statefulset(("512Mi", "fast"))], *live)["refused"]
    assert "has 1Gi, and a disk gets no smaller" in told


def test_data_that_lies_with_pods_goes_with_them():
    live = [statefulset(None)]
    assert decided([statefulset(("1Gi", "fast"))], *live) == {"anew": [("n", "x")]}


@pytest.mark.parametrize("now", [("1Gi", "fast"), ("2Gi", "fsat"), None])
def test_what_waits_for_a_disk_that_never_comes_is_made_anew(now):
    live = [statefulset(("1Gi", "fsat")), claim("data-x-0", "1Gi", "fsat", "Pending")]
    assert decided([statefulset(now)], *live) == {
        "anew": [("n", "x")],
        "dropped": [("n", "data-x-0")],
    }


def test_the_claim_of_a_deployment_grows_or_is_refused_too():
    assert decided([claim("x", "2Gi")], claim("x", "1Gi")) == {"grown": [("n", "x", "2Gi")]}
    assert decided([claim("x", "1Gi")], claim("x", "1Gi")) == {}
    (told,) = decided([claim("x", "1Gi")], claim("x", "2Gi"))["refused"]
    assert told.startswith("addons.x.size: found 1Gi, but claim n/x has 2Gi")
    (told,) = decided([], claim("x", "1Gi"))["refused"]
    assert told.startswith("addons.x.storage_class: found none, but claim n/x has its data on")
    waiting = claim("x", "1Gi", "fsat", "Pending")
    assert decided([claim("x", "1Gi")], waiting) == {"dropped": [("n", "x")]}
    assert decided([], waiting) == {}


def test_a_database_on_a_node_stays_there():
    key = "services.zabbix"
    here = claim("database-n1", "8Gi", None)
    (told,) = decided([claim("database-n2", "8Gi", None)], here, key=key)["refused"]
    assert told.startswith("services.zabbix.node: found another node, but claim n/database-n1 has")
    (told,) = decided([claim("database", "8Gi")], here, key=key)["refused"]
    assert told.startswith("services.zabbix.storage_class: found fast, but claim n/database-n1 has")
    assert "on a disk of a node, which would stay behind: leave it away, or take" in told
    for size in ("4Gi", "9Gi"):
        (told,) = decided([claim("database-n1", size, None)], here, key=key)["refused"]
        assert told.startswith(f"services.zabbix.size: found {size}, but claim n/database-n1 has")
        assert told.endswith("is all there is: set it to 8Gi")


def test_settings_say_where_the_file_has_them():
    found = addons.wanted(cluster(prometheus={}, zabbix={}, im={}))
    keys = {name: one["key"] for name, one in found.items()}
    assert keys == {
        "prometheus": "addons.prometheus",
        "zabbix": "services.zabbix",
        "im": "services.im",
    }


# --- in the cluster ------------------------------------------------------------------------------


class Api:
    """Claims and StatefulSets of a namespace; notes what is done to them."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.objects = {
            f"{module.PATHS[one['kind']].format('n')}/{one['metadata']['name']}": one
            for one in objects
        }
        self.done: list[tuple[Any, ...]] = []
        self.refuses = ""

    def get(self, path: str, server: str) -> dict[str, Any]:
        if path == module.CLASSES:
            items = [
                {"metadata": {"name": name}, **({"allowVolumeExpansion": True} if grows else {})}
                for name, grows in CLASSES.items()
            ]
            return {"items": items}
        # Lists tell no kind.
        found = [one for where, one in self.objects.items() if where.rpartition("/")[0] == path]
        return {"items": [{k: v for k, v in one.items() if k != "kind"} for one in found]}

    def request(
        self, method: str, path: str, body: Any = None, content: str = "", server: str = ""
    ) -> dict[str, Any]:
        name, _, query = path.partition("?")
        short = name.rpartition("/")[2]
        if method == "GET":
            return {"status": 200 if name in self.objects else 404, "body": {}}
        if method == "PATCH":
            assert content == "application/merge-patch+json"
            if short == self.refuses:
                return {"status": 403, "body": {"message": "exceeded quota"}}
            size = body["spec"]["resources"]["requests"]["storage"]
            if not query:
                self.objects[name]["spec"]["resources"]["requests"]["storage"] = size
            self.done.append(("grow" if not query else "ask", short, size))
            return {"status": 200, "body": {}}
        self.done.append((method, short, body["propagationPolicy"]))
        return {"status": 200 if self.objects.pop(name, None) else 404, "body": {}}


@pytest.fixture
def api(monkeypatch, tmp_path):
    """Put objects into the API and others into a file; the API and the file's path."""

    def make(wanted: list[dict[str, Any]], *objects: dict[str, Any]) -> tuple[Api, str]:
        found, path = Api(*objects), tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump_all(wanted))
        functions = {
            "indigo_kube.get": found.get,
            "indigo_kube.request": found.request,
            "indigo_addon.read": lambda file: list(yaml.safe_load_all(Path(file).read_text())),
        }
        monkeypatch.setattr(module, "__salt__", functions, raising=False)
        view = {"components": {"kube-apiserver": {"url": "https://x"}}}
        monkeypatch.setattr(module, "__pillar__", {"indigo": view}, raising=False)
        monkeypatch.setattr(module, "PAUSE", 0)
        monkeypatch.setattr(module, "TIMEOUT", 0)
        return found, str(path)

    return make


BEFORE = [["apps", "StatefulSet", "n", "x"], ["", "Service", "other", "y"]]


def test_all_is_asked_before_one_is_changed_and_a_second_run_does_nothing(api):
    live = [statefulset(("1Gi", "fast")), claim("data-x-0", "1Gi"), claim("data-x-1", "1Gi")]
    wanted = statefulset(("2Gi", "fast"))
    found, path = api([wanted], *live)
    plan = module.plan("addons.x", path, BEFORE)
    assert [one[0] for one in found.done] == ["ask", "ask"]
    module.carry_out(plan)
    assert found.done[2:] == [
        ("grow", "data-x-0", "2Gi"),
        ("grow", "data-x-1", "2Gi"),
        ("DELETE", "x", "Orphan"),
    ]
    found, path = api([wanted], wanted, *live[1:])  # applied again
    assert module.plan("addons.x", path, BEFORE) == NOTHING


def test_what_the_api_refuses_changes_nothing(api):
    live = [statefulset(("1Gi", "fast")), claim("data-x-0", "1Gi"), claim("data-x-1", "1Gi")]
    found, path = api([statefulset(("2Gi", "fast"))], *live)
    found.refuses = "data-x-1"
    (told,) = module.plan("addons.x", path, BEFORE)["refused"]
    assert told == ("addons.x.size: found 2Gi, but claim n/data-x-1 cannot grow: exceeded quota")
    assert [one[0] for one in found.done] == ["ask"]


def test_pods_go_before_the_claims_that_they_wait_for(api):
    waiting = claim("data-x-0", "1Gi", "fsat", "Pending")
    found, path = api([statefulset(("1Gi", "fast"))], statefulset(("1Gi", "fsat")), waiting)
    module.carry_out(module.plan("addons.x", path, BEFORE))
    assert found.done == [("DELETE", "x", "Background"), ("DELETE", "data-x-0", "Background")]


def test_what_does_not_go_is_told(api, monkeypatch):
    found, _ = api([], statefulset(None))
    ask = found.request
    stays = {"status": 200, "body": {}}
    monkeypatch.setitem(
        module.__salt__,
        "indigo_kube.request",
        lambda method, *rest, **more: stays if method == "GET" else ask(method, *rest, **more),
    )
    with pytest.raises(CommandExecutionError, match="StatefulSet n/x was deleted and is not gone"):
        module.carry_out({**NOTHING, "kept": [("n", "x")]})


def test_an_addon_that_is_not_there_has_no_disks(api):
    found, path = api([statefulset(("1Gi", "fast"))])
    assert module.plan("addons.x", path, None) == NOTHING
    assert found.done == []


# --- the state -----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the state over a plan; what it returns, and what was done in which order."""

    def runner(plan: dict[str, list[Any]], test: bool = False, **more: Any):
        done: list[Any] = []
        file = tmp_path / "x.yaml"
        file.write_text("was")

        def rendered(source, target, template, context):
            assert (source, template, context) == ("salt://x", "jinja", {"a": 1})
            Path(target).write_text("will be")
            return target

        def pending(path, before, without):
            done.append(("compare", Path(path).read_text(), without))
            return {"ConfigMap n/x": "updated"}

        functions = {
            "indigo_addon.installed": lambda: {"x": BEFORE},
            "indigo_addon.pending": pending,
            "indigo_addon.apply": lambda *_: done.append("apply"),
            "indigo_disk.plan": lambda key, *_: {**NOTHING, **plan},
            "indigo_disk.changes": module.changes,
            "indigo_disk.carry_out": lambda plan: done.append("carry out"),
            "cp.get_template": rendered,
        }
        monkeypatch.setattr(state, "__salt__", functions, raising=False)
        monkeypatch.setattr(state, "__opts__", {"test": test}, raising=False)
        more = {"source": "salt://x", "context": {"a": 1}, **more}
        return state.present("x", str(file), key="addons.x", **more), done

    return runner


GROWN = {"grown": [("n", "data-x-0", "2Gi")], "kept": [("n", "x")]}


@pytest.mark.parametrize("test", [False, True])
def test_disks_change_before_the_rest_is_applied_and_a_preview_tells_it(run, test):
    ret, done = run(GROWN, test)
    moved = {
        "PersistentVolumeClaim n/data-x-0": "grown to 2Gi",
        "StatefulSet n/x": "replaced, its pods stay",
    }
    assert ret["changes"] == {"ConfigMap n/x": "updated", **moved}
    # What the file will be is looked at in test mode alone: else it is there already.
    compared = ("compare", "will be" if test else "was", list(moved))
    assert done == ([compared] if test else [compared, "carry out", "apply"])
    assert ret["result"] is (None if test else True)


@pytest.mark.parametrize("test", [False, True])
def test_a_refusal_changes_nothing_and_fails_a_preview_too(run, test):
    ret, done = run({"refused": ["addons.x.size: found 1Gi", "addons.x.size: again"]}, test)
    assert (ret["result"], ret["changes"], done) == (False, {}, [])
    assert ret["comment"] == "addons.x.size: found 1Gi\naddons.x.size: again"


def test_without_disks_in_question_nothing_of_them_is_done(run):
    ret, done = run({})
    assert (ret["changes"], done) == (
        {"ConfigMap n/x": "updated"},
        [("compare", "was", []), "apply"],
    )


def test_a_statefulset_that_is_replaced_is_not_compared(tmp_path, monkeypatch):
    module_ = load("_modules", "indigo_addon")
    path = tmp_path / "x.yaml"
    one = {"apiVersion": "apps/v1", **statefulset(None)}
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}}
    path.write_text(yaml.safe_dump_all([one, other]))
    texts: list[str] = []
    monkeypatch.setattr(module_, "_kubectl", lambda *_, stdin: texts.append(stdin) or b"")
    known = [("apps", "StatefulSet", "n", "x"), ("", "ConfigMap", "n", "c")]
    assert module_.pending(str(path), known, ["StatefulSet n/x"]) == {}
    assert module_.pending(str(path), known) == {}
    assert "StatefulSet" not in texts[0] and "ConfigMap" in texts[0]
    assert texts[1] == path.read_text()
