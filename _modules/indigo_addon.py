"""Add-ons in the cluster: what is there, what a file of manifests would change, whether they work.

Objects are applied by kubectl, server-side, under the field manager ``indigo``. Beside them lies an
inventory, a ConfigMap that names each object an add-on has brought, so that what a newer version of
it no longer has, or all of it, can be taken away again.

Source: kubernetes.io "Server-Side Apply"; kubectl's ``diff`` and ``apply`` with ``--server-side``.
"""

from __future__ import annotations

import base64
import calendar
import http.client
import io
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import ssl
import string
import struct
import subprocess
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

try:
    from salt.exceptions import CommandExecutionError
except ImportError:  # the pure functions are of use without Salt
    CommandExecutionError = RuntimeError  # type: ignore[assignment,misc]

MANAGER = "indigo"
NAMESPACE = "kube-system"
#: Label and name prefix of inventories.
LABEL = "indigo.addon"
PREFIX = "indigo-addon-"

#: Program that writes two folders as a tar; salt/addons installs it.
BOTH_SIDES = "/usr/local/lib/indigo/both-sides"

#: Asks pods: never through a proxy of the environment.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

#: What an object is found by: API group, kind, namespace, name.
Identity = tuple[str, str, str, str]


def __virtual__() -> str:
    return "indigo_addon"


# --- objects (pure) ------------------------------------------------------------------------------


def identity(manifest: Mapping[str, Any]) -> Identity:
    """What tells an object from all others, whatever its version.

    Example:
        >>> identity({"apiVersion": "apps/v1", "kind": "Deployment",
        ...           "metadata": {"name": "x", "namespace": "y"}})
        ('apps', 'Deployment', 'y', 'x')
    """
    group, _, _ = str(manifest["apiVersion"]).rpartition("/")
    metadata = manifest["metadata"]
    return group, str(manifest["kind"]), str(metadata.get("namespace", "")), str(metadata["name"])


def title(one: Identity) -> str:
    """An object in words: ``Deployment kube-system/coredns``.

    >>> title(("", "Namespace", "", "x"))
    'Namespace x'
    """
    _, kind, namespace, name = one
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def reference(one: Identity) -> list[str]:
    """The arguments by which kubectl finds an object.

    >>> reference(("apps", "Deployment", "y", "x"))
    ['--namespace=y', 'Deployment.apps', 'x']
    """
    group, kind, namespace, name = one
    where = [f"--namespace={namespace}"] if namespace else []
    return [*where, f"{kind}.{group}" if group else kind, name]


def inventory(name: str, objects: Iterable[Identity]) -> dict[str, Any]:
    """The manifest of an add-on's inventory."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{PREFIX}{name}",
            "namespace": NAMESPACE,
            "labels": {LABEL: name},
        },
        "data": {"objects": json.dumps(sorted(objects))},
    }


def differing(archive: bytes) -> set[str]:
    """Which objects ``kubectl diff`` found to differ, by the names that it gives their files.

    Who manages a field is no difference: controllers of old releases forget it when they update
    (a ServiceAccount's token, in 1.20).

    Args:
        archive: A tar of its two folders, with a file an object in each: live and merged.

    Returns:
        Names of files that are not the same in both, or only in one.
    """
    sides: dict[str, dict[str, Any]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened.getmembers():
            content = opened.extractfile(member)
            if content is None:
                continue
            folder, _, name = member.name.rpartition("/")
            found = yaml.safe_load(content) or {}
            found.get("metadata", {}).pop("managedFields", None)
            sides.setdefault(name, {})[folder] = found
    return {
        name
        for name, found in sides.items()
        if len(found) != 2
        or len({json.dumps(one, sort_keys=True, default=str) for one in found.values()}) > 1
    }


def file_name(manifest: Mapping[str, Any]) -> str:
    """The name that ``kubectl diff`` gives an object's file.

    >>> file_name({"apiVersion": "apps/v1", "kind": "D", "metadata": {"name": "x"}})
    'apps.v1.D..x'
    """
    group, kind, namespace, name = identity(manifest)
    version = str(manifest["apiVersion"]).rpartition("/")[2]
    return ".".join([*([group] if group else []), version, kind, namespace, name])


#: Kinds that run pods, and their names in the API's paths.
WORKLOADS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}


def lacking(kind: str, found: Mapping[str, Any]) -> str:
    """What a workload lacks of being as its manifest says: empty, or in words.

    Args:
        kind: One of :data:`WORKLOADS`.
        found: The object as the API gives it.

    Example:
        >>> lacking("Deployment", {"metadata": {"generation": 1}, "spec": {"replicas": 2},
        ...                        "status": {"observedGeneration": 1, "updatedReplicas": 2,
        ...                                   "readyReplicas": 1}})
        '1 of 2 replicas are ready'
    """
    status = found.get("status", {})
    if status.get("observedGeneration", 0) < found["metadata"].get("generation", 0):
        return "its controller has not looked at it yet"
    if kind == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        ready, new = status.get("numberReady", 0), status.get("updatedNumberScheduled", 0)
    else:
        wanted = found["spec"].get("replicas", 1)
        ready, new = status.get("readyReplicas", 0), status.get("updatedReplicas", 0)
        if kind == "StatefulSet" and status.get("updateRevision") == status.get("currentRevision"):
            new = wanted
    if ready < wanted:
        return f"{ready} of {wanted} replicas are ready"
    if new < wanted:
        return f"{new} of {wanted} replicas are up to date"
    # While the new ones do not get ready, a Deployment keeps old ones, which count as ready.
    old = status.get("replicas", 0) - new if kind == "Deployment" else 0
    return f"{old} replicas of before are still needed" if old > 0 else ""


def reason(pods: Iterable[Mapping[str, Any]]) -> str:
    """Why pods are not ready, as Kubernetes says it: of the first that has a reason.

    Example:
        >>> reason([{"metadata": {"name": "x"}, "status": {"containerStatuses": [
        ...     {"name": "c", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}}])
        'x: c: ImagePullBackOff'
    """
    starting = []
    for pod in sorted(pods, key=lambda one: one["metadata"]["name"]):
        name, status = pod["metadata"]["name"], pod.get("status", {})
        conditions = {one["type"]: one for one in status.get("conditions", [])}
        if conditions.get("Ready", {}).get("status") == "True":
            continue
        if conditions.get("PodScheduled", {}).get("status") == "False":
            return _joined(name, conditions["PodScheduled"])
        for key in ("initContainerStatuses", "containerStatuses"):
            for container in status.get(key, []):
                state = container.get("state", {})
                for one in (state.get("waiting"), container.get("lastState", {}).get("terminated")):
                    # This is how each one begins.
                    if one and one.get("reason") not in ("ContainerCreating", "PodInitializing"):
                        return _joined(f"{name}: {container['name']}", one)
        starting.append(f"{name} is starting")
    return starting[0] if starting else "no pod of it is there yet"


def _joined(what: str, told: Mapping[str, Any]) -> str:
    return ": ".join(str(one) for one in (what, told.get("reason"), told.get("message")) if one)


# --- in the cluster ------------------------------------------------------------------------------


def read(path: str) -> list[dict[str, Any]]:
    """The manifests of a file.

    Raises:
        CommandExecutionError: It cannot be read, or holds something else.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_addon.read /etc/kubernetes/addons/coredns.yaml
    """
    try:
        text = Path(path).read_text("utf-8")
    except OSError as err:
        raise CommandExecutionError(f"{path} cannot be read: {err}") from err
    return _objects(path, text)


def _objects(path: str, text: str) -> list[dict[str, Any]]:
    """The objects of a text, those of a List one by one."""
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as err:
        raise CommandExecutionError(f"{path} cannot be read: {err}") from err
    found = []
    for one in documents:
        several = isinstance(one, Mapping) and one.get("kind") == "List"
        found += (one.get("items") or []) if several else [one]
    found = [one for one in found if one is not None]
    for number, one in enumerate(found):
        known = isinstance(one, Mapping) and {"apiVersion", "kind", "metadata"} <= set(one)
        if not known or "name" not in one["metadata"]:
            raise CommandExecutionError(f"{path}: document {number + 1} is no Kubernetes object")
    return found


def build(folder: str, service: Mapping[str, Any]) -> str:
    """The manifests that a folder of the user's stands for.

    A folder with ``kustomization.yaml`` is built by ``kubectl kustomize``, one with ``Chart.yaml``
    by ``helm template``; of any other all files ``*.yaml`` and ``*.yml`` are taken as they are.
    Namespaces and definitions of resources come first, and an object of a namespace that names
    none gets that of the service.

    Args:
        folder: Absolute path on this host.
        service: ``name``, ``namespace`` and ``values`` (of a chart).

    Raises:
        CommandExecutionError: Nothing is there, a tool is missing or refuses, or it is no YAML of
            Kubernetes.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_addon.build /srv/wiki '{name: wiki, namespace: default, values: {}}'
    """
    path = Path(folder)
    if any((path / name).is_file() for name in KUSTOMIZATIONS):
        texts = {folder: _kubectl("kustomize", folder).decode()}
    elif (path / "Chart.yaml").is_file():
        texts = {folder: _helm(folder, service)}
    else:
        files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        texts = {str(file): file.read_text(encoding="utf-8") for file in files}
    objects = [one for where, text in texts.items() for one in _objects(where, text)]
    if not objects:
        raise CommandExecutionError(
            f"{folder} has no object of Kubernetes; expected *.yaml, kustomization.yaml or "
            "Chart.yaml: see `source` of the service in cluster.yaml"
        )
    scopes = _scopes(objects)
    for one in objects:
        if scopes[identity(one)[:2]]:
            one["metadata"].setdefault("namespace", service["namespace"])
        _name_protocols(one)
    objects.sort(key=lambda one: one["kind"] not in FIRST)
    return yaml.safe_dump_all(objects, sort_keys=False)


def _name_protocols(one: dict[str, Any]) -> None:
    """Write out the default protocol of ports: a server-side apply of 1.20 refuses ports without.

    Source: https://github.com/kubernetes-sigs/structured-merge-diff/issues/130.
    """
    if one.get("kind") == "Service" and one.get("apiVersion") == "v1":
        _each_port(one.get("spec"))
    pod = one.get("spec")
    for key in ("jobTemplate", "spec", "template", "spec"):
        inner = pod.get(key) if isinstance(pod, dict) else None
        pod = inner if isinstance(inner, dict) else pod
    for key in ("initContainers", "containers"):
        for container in (pod.get(key) or []) if isinstance(pod, dict) else []:
            _each_port(container)


def _each_port(holder: Any) -> None:
    ports = holder.get("ports") if isinstance(holder, dict) else None
    for port in ports if isinstance(ports, list) else []:
        if isinstance(port, dict):
            port.setdefault("protocol", "TCP")


#: Names that kustomize reads.
KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")

#: Kinds that others stand on.
FIRST = ("Namespace", "CustomResourceDefinition")


def _helm(folder: str, service: Mapping[str, Any]) -> str:
    helm = shutil.which("helm", path=os.environ.get("PATH", "") + ":/usr/local/bin")
    if helm is None:
        raise CommandExecutionError(
            f"{folder} is a Helm chart, and this host has no helm: install it here, or bring what "
            "`helm template` writes as plain manifests"
        )
    command = [helm, "template", service["name"], folder, f"--namespace={service['namespace']}"]
    try:
        done = subprocess.run(
            [*command, "--include-crds", "--no-hooks", "--values=-"],
            input=yaml.safe_dump(dict(service["values"])),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise CommandExecutionError(f"helm template {folder} failed: {err}") from err
    if done.returncode:
        raise CommandExecutionError(f"helm template {folder} failed: {done.stderr.strip()[-1000:]}")
    return done.stdout


def _scopes(objects: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], bool]:
    """By group and kind whether objects are in namespaces: as they define it, or as the API says.

    Raises:
        CommandExecutionError: The API has no such kind.
    """
    objects = list(objects)
    own = {
        (one["spec"]["group"], one["spec"]["names"]["kind"]): one["spec"]["scope"] == "Namespaced"
        for one in objects
        if one["kind"] == "CustomResourceDefinition"
    }
    known: dict[str, list[dict[str, Any]]] = {}
    for one in objects:
        key, version = identity(one)[:2], str(one["apiVersion"])
        if key in own:
            continue
        if version not in known:
            path = f"/apis/{version}" if "/" in version else f"/api/{version}"
            try:
                answer = __salt__["indigo_kube.get"](path, server=_server())
            except CommandExecutionError as err:
                raise CommandExecutionError(
                    f"{title(identity(one))}: this cluster has no {version}: {err}"
                ) from err
            known[version] = answer["resources"]
        found = [kind["namespaced"] for kind in known[version] if kind["kind"] == one["kind"]]
        if not found:
            raise CommandExecutionError(
                f"{title(identity(one))}: this cluster has no {one['kind']} in {version}"
            )
        own[key] = found[0]
    return own


def installed() -> dict[str, list[Identity]]:
    """Add-ons that are in the cluster, and the objects that each has brought.

    Raises:
        CommandExecutionError: The API does not answer.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_addon.installed
    """
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps?labelSelector={LABEL}"
    items = __salt__["indigo_kube.get"](path, server=_server())["items"]
    return {
        item["metadata"]["labels"][LABEL]: [
            tuple(one) for one in json.loads(item["data"]["objects"])
        ]
        for item in items
    }


def pending(
    manifests: str, before: Iterable[Iterable[str]] | None, without: Iterable[str] = ()
) -> dict[str, str]:
    """What applying a file of manifests would do, by object.

    Args:
        manifests: Path of the file.
        before: Identities of what the add-on has brought; None when it is not installed.
        without: Titles of objects that are not compared: the API would refuse to change them.

    Returns:
        Title of an object to ``created``, ``updated`` or ``removed``. One that the add-on is to
        bring and that exists already is ``created`` too: it becomes the add-on's.

    Raises:
        CommandExecutionError: kubectl or the API refuses.
    """
    objects = {identity(one): one for one in read(manifests)}
    known = {tuple(one) for one in before or ()}
    found = {title(one): "created" for one in objects if one not in known}
    found |= {title(one): "removed" for one in sorted(known - set(objects))}  # type: ignore[arg-type]
    if len(known & set(objects)) == len(objects) and not found:
        # Only when nothing is new: a new namespace cannot be compared before it is there.
        changed = _diff(manifests, without)
        found |= {
            title(one): "updated"
            for one, manifest in objects.items()
            if file_name(manifest) in changed
        }
    return found


def apply(name: str, manifests: str, before: Iterable[Iterable[str]] | None) -> None:
    """Bring an add-on into the cluster as a file declares it, and take away what it no longer has.

    The inventory names all that may be there before anything is, so a run that is killed leaves
    nothing that the next would not know of.

    Args:
        name: The add-on.
        manifests: Path of the file.
        before: Identities of what it has brought so far; None when it is not installed.

    Raises:
        CommandExecutionError: kubectl or the API refuses.
    """
    objects = {identity(one) for one in read(manifests)}
    known: set[Any] = {tuple(one) for one in before or ()}
    _apply(json.dumps(inventory(name, objects | known)))
    for options, text in _ways(manifests):
        _apply(text, options)
    failed = _delete({name: known - objects})
    if failed:
        raise CommandExecutionError(failed[name])
    _apply(json.dumps(inventory(name, objects)))


def remove(gone: Mapping[str, Iterable[Iterable[str]]]) -> dict[str, str]:
    """Take add-ons out of the cluster: the objects of all, then the inventory of each.

    Args:
        gone: Add-ons, and the identities of what each has brought.

    Returns:
        For each add-on that is not gone, what kubectl or the API said; the others are.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_addon.remove '{coredns: []}'
    """
    failed = _delete({name: {tuple(one) for one in gone[name]} for name in gone})  # type: ignore[misc]
    left = {name: {identity(inventory(name, ()))} for name in gone if name not in failed}
    return failed | _delete(left)


def has_secret(namespace: str, name: str) -> bool:
    """Whether a Secret is in the cluster.

    Raises:
        CommandExecutionError: The API does not answer.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_addon.has_secret grafana grafana-admin
    """
    path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
    status = __salt__["indigo_kube.request"]("GET", path, server=_server())["status"]
    if status not in (200, 404):
        raise CommandExecutionError(f"{path} answered {status}")
    return bool(status == 200)


def make_secret(namespace: str, name: str, keys: Iterable[str]) -> None:
    """Make a Secret whose values are made up here and are nowhere but in the cluster.

    Args:
        namespace: Its namespace, which exists.
        name: Its name.
        keys: What it holds; each gets 32 letters and digits.

    Raises:
        CommandExecutionError: The API refuses.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_addon.make_secret grafana grafana-admin '[password]'
    """
    letters = string.ascii_letters + string.digits
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {key: "".join(secrets.choice(letters) for _ in range(32)) for key in keys},
    }
    path = f"/api/v1/namespaces/{namespace}/secrets"
    answer = __salt__["indigo_kube.request"]("POST", path, manifest, server=_server())
    # Made by another run meanwhile: that one stays.
    if answer["status"] not in (201, 409):
        told = answer["body"].get("message", answer["status"])
        raise CommandExecutionError(f"Secret {namespace}/{name} cannot be made: {told}")


def works() -> dict[str, str]:
    """Whether each declared add-on and service does what it is for: empty, or what is wrong.

    First all that it runs must be ready; then it passes the check of its own use.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_addon.works
    """
    declared = __pillar__["indigo"].get("addons", {})
    wanted = {**declared.get("wanted", {}), **declared.get("services", {})}
    if not wanted:
        return {}
    try:
        there = installed()
    except CommandExecutionError as err:
        return dict.fromkeys(wanted, str(err))
    found = {}
    for name, settings in wanted.items():
        try:
            found[name] = _ready(name, there) or _CHECKS.get(name, _serves)(settings)
        except CommandExecutionError as err:
            found[name] = str(err)
    return found


#: Kubernetes tries these for ever, at growing distances, but waits for a person.
_NO_IMAGE = re.compile(r": (?:ErrImagePull|ErrImageNeverPull|ImagePullBackOff|InvalidImageName)\b")


def wait(timeout: float = 120, interval: float = 1, patience: float = 45) -> dict[str, str]:
    """Wait until every declared add-on works; what is wrong with each at the end.

    Args:
        timeout: Seconds to wait at most.
        interval: Seconds between two looks.
        patience: Seconds to wait for images alone, where nothing else is wrong: time for three
            tries of kubelet's, which come after 10 and 20 seconds.

    CLI Example:

    .. code-block:: bash

        salt master1 indigo_addon.wait timeout=60
    """
    began = moving = time.monotonic()
    while True:
        found = works()
        wrong = [why for why in found.values() if why]
        now = time.monotonic()
        if not all(_NO_IMAGE.search(why) for why in wrong):
            moving = now
        if not wrong or now > began + timeout or now > moving + patience:
            return found
        time.sleep(interval)


def _ready(name: str, there: Mapping[str, Iterable[Identity]]) -> str:
    """What of the pods of an add-on is not ready, with the reason that Kubernetes gives."""
    if name not in there:
        return "it is not in the cluster: run state.apply addons on this master"
    for one in there[name]:
        _, kind, namespace, object_name = one
        if kind not in WORKLOADS:
            continue
        path = f"/apis/apps/v1/namespaces/{namespace}/{WORKLOADS[kind]}/{object_name}"
        found = __salt__["indigo_kube.get"](path, server=_server())
        missing = lacking(kind, found)
        if missing:
            labels = found["spec"]["selector"]["matchLabels"]
            selector = ",".join(f"{key}={value}" for key, value in labels.items())
            path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"
            why = reason(__salt__["indigo_kube.get"](path, server=_server())["items"])
            return f"{title(one)}: {missing}: {why}"
    return ""


def _server() -> str:
    return str(__pillar__["indigo"]["components"]["kube-apiserver"]["url"])


def _kubectl(*words: str, stdin: str | None = None) -> bytes:
    """Run kubectl as admin on this master's own API server: its output."""
    view = __pillar__["indigo"]
    command = [
        view["binaries"]["kubectl"],
        f"--kubeconfig={view['paths']['kubernetes']}/admin.kubeconfig",
        f"--server={_server()}",
        *words,
    ]
    # kubectl hands the two folders that it compares to a program of one's choice.
    environment = {**os.environ, "KUBECTL_EXTERNAL_DIFF": BOTH_SIDES, "LC_ALL": "C"}
    for left in reversed(range(TRIES)):
        try:
            done = subprocess.run(
                command,
                input=None if stdin is None else stdin.encode(),
                env=environment,
                capture_output=True,
                timeout=120,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            raise CommandExecutionError(f"kubectl {words[0]} failed: {err}") from err
        if not done.returncode:
            break
        said = done.stderr.decode(errors="replace").strip()[-1000:]
        if not left or not PASSING.search(said):
            raise CommandExecutionError(f"kubectl {words[0]} failed ({done.returncode}): {said}")
        time.sleep(PAUSE)
    return done.stdout


#: What the API says while members of etcd restart: a request that was under way is lost. All that
#: is asked for here may be asked for again. An answer without a content type is one that a member
#: began and did not end: with TLS it cannot let its requests end first (etcd-io/etcd#8987).
PASSING = re.compile(
    r"rpc error: code = Unavailable|missing content-type|etcdserver: |connection refused"
    r"|unexpected EOF"
)
TRIES, PAUSE = 4, 3.0


_SERVER_SIDE = ("--server-side", "--force-conflicts", f"--field-manager={MANAGER}")

#: Applied by the client: the aggregator of 1.20 panics over a server-side apply ("FieldManager must
#: be installed to run apply"), for it switches that feature off for objects of its own.
BY_CLIENT = ("apiregistration.k8s.io",)


def _ways(manifests: str, without: Iterable[str] = ()) -> list[tuple[tuple[str, ...], str]]:
    """The text of a file as kubectl is given it: options, and what goes with them."""
    every = read(manifests)
    objects = [one for one in every if title(identity(one)) not in without]
    ours = [one for one in objects if identity(one)[0] in BY_CLIENT]
    if not ours and objects == every:
        return [(_SERVER_SIDE, Path(manifests).read_text("utf-8"))]
    others = [one for one in objects if one not in ours]
    return [
        (options, yaml.safe_dump_all(some, sort_keys=False))
        for options, some in ((_SERVER_SIDE, others), ((), ours))
        if some
    ]


def _diff(manifests: str, without: Iterable[str] = ()) -> set[str]:
    found = set()
    for options, text in _ways(manifests, without):
        archive = _kubectl("diff", *options, "--filename", "-", stdin=text)
        # Where nothing differs kubectl starts no program.
        found |= differing(archive) if archive else set()
    return found


def _apply(text: str, options: Iterable[str] = _SERVER_SIDE) -> None:
    _kubectl("apply", *options, "--filename", "-", stdin=text)


#: A claim goes when no pod has it, a volume when no claim does.
_LATE = {
    kind: place
    for place, kind in enumerate(("PersistentVolumeClaim", *FIRST, "PersistentVolume"), 1)
}


def _delete(gone: Mapping[str, Iterable[Identity]]) -> dict[str, str]:
    """Delete objects of add-ons: for each that failed, why. What others stand on goes last."""
    failed: dict[str, str] = {}
    owned = sorted((_LATE.get(one[1], 0), name, one) for name in gone for one in gone[name])
    for late, some in itertools.groupby(owned, key=lambda each: each[0]):
        tier = list(some)
        # What ends slowly, as a namespace with its pods does, does so all at the same time.
        for how in ("--wait=false", "--timeout=110s")[not late or len(tier) == 1 :]:
            for _, name, one in tier:
                if name not in failed:
                    try:
                        _delete_one(one, how)
                    except CommandExecutionError as err:
                        failed[name] = f"{title(one)}: {err}"
    return failed


def _delete_one(one: Identity, how: str) -> None:
    try:
        _kubectl("delete", "--ignore-not-found", how, *reference(one))
    except CommandExecutionError:
        # Of a group that the API does not have there is nothing, and kubectl cannot name it.
        if not one[0] or _served(one[0]):
            raise


def _served(group: str) -> bool:
    """Whether the API has a group; what does not answer counts as having it."""
    answer = __salt__["indigo_kube.request"]("GET", f"/apis/{group}", server=_server())
    return bool(answer["status"] != 404)


# --- checks of an add-on's own use ---------------------------------------------------------------


def query(name: str, number: int) -> bytes:
    """A DNS question for the IPv4 address of a name, as RFC 1035 writes it.

    >>> query("a.b", 1)[12:]
    b'\\x01a\\x01b\\x00\\x00\\x01\\x00\\x01'
    """
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return (
        struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    )


def answer(packet: bytes, number: int) -> list[str]:
    """The IPv4 addresses in a DNS answer whose records have the question's name.

    Raises:
        ValueError: Another answer, an error, or one that is cut off.
    """
    if len(packet) < 12:
        raise ValueError("an answer that is cut off")
    found, flags, questions, answers, _, _ = struct.unpack(">6H", packet[:12])
    if found != number or flags & 15:
        raise ValueError(f"an answer with code {flags & 15}")
    try:
        place = _after_name(packet, 12) + 4 * questions
        addresses = []
        for _ in range(answers):
            place = _after_name(packet, place)
            kind, _, _, length = struct.unpack(">2HIH", packet[place : place + 10])
            if kind == 1 and length == 4:
                addresses.append(socket.inet_ntoa(packet[place + 10 : place + 14]))
            place += 10 + length
    except (IndexError, struct.error, OSError) as err:
        raise ValueError("an answer that is cut off") from err
    return addresses


def _after_name(packet: bytes, place: int) -> int:
    while packet[place] and packet[place] < 192:
        place += packet[place] + 1
    return place + (2 if packet[place] else 1)


def resolve(name: str, server: str, port: int, timeout: float = 2) -> list[str]:
    """Ask one DNS server for the IPv4 addresses of a name.

    Raises:
        CommandExecutionError: It does not answer, or says that there is none.
    """
    number = secrets.randbelow(65536)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(timeout)
            asking.connect((server, port))
            asking.send(query(name, number))
            return answer(asking.recv(4096), number)
    except (OSError, ValueError) as err:
        raise CommandExecutionError(f"{server}:{port} asked for {name}: {err}") from err


def _endpoints(namespace: str, service: str, name: str | None = None) -> list[tuple[str, int]]:
    """Address and port of the ready pods behind a service: of one port's name, or the first.

    Of its EndpointSlices: Endpoints are deprecated since 1.33. Source: kubernetes.io
    "EndpointSlices"; their v1 came in 1.21, v1beta1 went in 1.25.
    """
    view = __pillar__["indigo"]
    minor = int(view["versions"]["kubernetes"].split(".")[1])
    version = "v1" if minor >= 21 else "v1beta1"
    path = (
        f"/apis/discovery.k8s.io/{version}/namespaces/{namespace}/endpointslices"
        f"?labelSelector=kubernetes.io/service-name={service}"
    )
    found = []
    for part in __salt__["indigo_kube.get"](path, server=_server()).get("items", []):
        ports = [one for one in part.get("ports") or () if name in (None, one.get("name"))]
        for one in part.get("endpoints") or ():
            if ports and (one.get("conditions") or {}).get("ready") is not False:
                found += [(address, ports[0]["port"]) for address in one["addresses"][:1]]
    return found


def _addresses(namespace: str, service: str, port: str) -> list[str]:
    """Addresses of the ready pods behind a service's port, by its name."""
    return [address for address, _ in _endpoints(namespace, service, port)]


def _dns(settings: Mapping[str, Any]) -> str:
    """Every replica of CoreDNS knows the API's service."""
    view = __pillar__["indigo"]
    ready = _addresses(NAMESPACE, "kube-dns", "dns")
    name = f"kubernetes.default.svc.{view['cluster']['domain']}"
    for address in ready:
        found = resolve(name, address, 1053)
        if found != [view["networks"]["api"]]:
            return f"{address} says that {name} is {', '.join(found) or 'unknown'}"
    if len(ready) < settings["replicas"]:
        return f"the service kube-dns leads to {len(ready)} of {settings['replicas']} replicas"
    return ""


def _usage(settings: Mapping[str, Any]) -> str:
    """The API tells the use of every declared node, as ``kubectl top nodes`` asks it."""
    items = __salt__["indigo_kube.get"](USAGE, server=_server())["items"]
    missing = sorted(set(settings["nodes"]) - {one["metadata"]["name"] for one in items})
    return f"it tells nothing of {', '.join(missing)}" if missing else ""


#: Where the API has the use of nodes, once metrics-server serves it.
USAGE = "/apis/metrics.k8s.io/v1beta1/nodes"


def unreached(
    expect: Mapping[str, Iterable[str]], targets: Iterable[Mapping[str, Any]]
) -> list[str]:
    """What Prometheus should scrape and does not, in words.

    Args:
        expect: By job the hosts that it must reach.
        targets: ``activeTargets`` of its API.

    Example:
        >>> unreached({"etcd": ["a", "b"]}, [{"labels": {"job": "etcd", "host": "a"},
        ...     "health": "down", "lastError": "refused"}])
        ['etcd on a: refused', 'etcd on b: not scraped yet']
    """
    said = {
        (one["labels"]["job"], one["labels"].get("host")): (one["health"], one.get("lastError"))
        for one in targets
    }
    found = []
    for job, hosts in expect.items():
        for host in hosts:
            health, error = said.get((job, host), ("unknown", None))
            if health != "up":
                found.append(f"{job} on {host}: {error or 'not scraped yet'}")
    return found


def _metrics(settings: Mapping[str, Any]) -> str:
    """Every replica of Prometheus reaches all that is declared, and can be asked."""
    addresses = _addresses("monitoring", "prometheus", "web")
    if len(addresses) < settings["replicas"]:
        wanted = settings["replicas"]
        return f"the service prometheus leads to {len(addresses)} of {wanted} replicas"
    for address in addresses:
        base = f"http://{address}:9090/api/v1"
        targets = _asked(f"{base}/targets?state=active")["activeTargets"]
        missing = unreached(settings["expect"], targets)
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            return f"{address} does not reach {'; '.join(missing[:3])}{more}"
        query = urllib.parse.quote("sum by (job) (up)")
        result = _asked(f"{base}/query?query={query}", timeout=10)["result"]
        up = {one["metric"].get("job"): int(float(one["value"][1])) for one in result}
        for job, hosts in settings["expect"].items():
            if up.get(job, 0) < len(hosts):
                return (
                    f"{address} says that {up.get(job, 0)} of {len(hosts)} targets of {job} are up"
                )
    return ""


def _asked(
    url: str,
    key: str | None = "data",
    timeout: float = 5,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    told: Container[int] = (),
) -> Any:
    """What an answer in JSON has under a key; Prometheus' API has all under ``data``.

    Args:
        told: Statuses of errors whose text is an answer, too.

    Raises:
        CommandExecutionError: No answer, or an error.
    """
    try:
        question = urllib.request.Request(url, body, dict(headers or {}))  # noqa: S310 - of a pod
        try:
            answer = _OPENER.open(question, timeout=timeout)
        except urllib.error.HTTPError as err:
            if err.code not in told:
                raise
            answer = err
        with answer:
            found = json.load(answer)
        return found if key is None else found[key]
    except (OSError, ValueError, KeyError) as err:
        raise CommandExecutionError(f"{url.partition('?')[0]} does not answer: {err}") from err


def _long_term(settings: Mapping[str, Any]) -> str:
    """InfluxDB has its database, and what Prometheus found lately is in it."""
    addresses = _addresses("metrics-archive", "influxdb", "http")
    if not addresses:
        return "the service influxdb leads to no pod"
    base = f"http://{addresses[0]}:{settings['port']}/query"
    database = settings["database"]
    names = _answered(base, "SHOW DATABASES")
    if [database] not in [row for one in names for row in one.get("values", [])]:
        return f"{addresses[0]} has no database {database}"
    lately = 'SELECT last("value") FROM "up" WHERE time > now() - 10m'
    if settings["fed"] and not _answered(base, lately, db=database):
        return f"{addresses[0]} got nothing from Prometheus in the last ten minutes"
    return ""


def _alarm(settings: Mapping[str, Any]) -> str:
    """Every replica of Alertmanager knows the others, and has the alert that always fires."""
    addresses = _addresses("alerting", "alertmanager", "web")
    wanted = settings["replicas"]
    if len(addresses) < wanted:
        return f"the service alertmanager leads to {len(addresses)} of {wanted} replicas"
    for address in addresses:
        base = f"http://{address}:{settings['port']}/api/v2"
        peers = len(_asked(f"{base}/status", "cluster").get("peers", ()))
        if wanted > 1 and peers < wanted:
            return f"{address} knows of {peers} of {wanted} replicas"
        named = urllib.parse.quote('alertname="Watchdog"')
        if not _asked(f"{base}/alerts?filter={named}", None):
            return f"{address} has got no alert from Prometheus, not even the one that always fires"
    return ""


#: Where the headers are that Grafana refused.
WRONG = "indigo_addon.wrong"


def _dashboards(settings: Mapping[str, Any]) -> str:
    """Grafana has every dashboard, and gets answers from Prometheus."""
    addresses = _addresses("grafana", "grafana", "web")
    if not addresses:
        return "the service grafana leads to no pod"
    headers = _as("admin", "grafana", "grafana-admin", "password")
    base = f"http://{addresses[0]}:{settings['port']}/api"
    url = f"{base}/search?tag=indigo"
    # A password is tried once in a job: at the fifth wrong one Grafana refuses the right one, too.
    if __context__.get(WRONG) == headers:
        return f"{base}/search does not answer: 401, to the password of the Secret grafana-admin"
    try:
        there = {one["uid"] for one in _asked(url, None, headers=headers)}
    except CommandExecutionError as err:
        if getattr(err.__cause__, "code", None) == 401:
            __context__[WRONG] = headers
        raise
    missing = sorted(set(settings["dashboards"]) - there)
    if missing:
        return f"{addresses[0]} has no dashboard {', '.join(missing)}"
    # A source that is not well is an error of this kind, whose text says why.
    said = _asked(f"{base}/datasources/uid/prometheus/health", None, headers=headers, told=(400,))
    if said.get("status") != "OK":
        return f"{addresses[0]} gets no answers from Prometheus: {said.get('message')}"
    return ""


def _as(user: str, namespace: str, name: str, key: str) -> dict[str, str]:
    """What a request carries of a user whose password is in a Secret."""
    pair = f"{user}:{_secret(namespace, name, key)}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _secret(namespace: str, name: str, key: str) -> str:
    """What a Secret holds under a key."""
    path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
    data = __salt__["indigo_kube.get"](path, server=_server())["data"]
    return base64.b64decode(data[key]).decode()


def _lines(settings: Mapping[str, Any]) -> str:
    """Lines of every node came lately, and the oldest go when they are as old as declared."""
    addresses = _addresses("logging", "elasticsearch", "http")
    if not addresses:
        return "the service elasticsearch leads to no pod"
    headers = _as("elastic", "logging", "logging", "elastic")
    base = f"http://{addresses[0]}:{settings['port']}"
    name = settings["lifecycle"]
    policies = _asked(f"{base}/_ilm/policy/{name}", None, headers=headers)
    age = policies[name]["policy"]["phases"].get("delete", {}).get("min_age")
    if age != settings["age"]:
        return f"{addresses[0]} deletes lines after {age}, not after {settings['age']}"
    question = {
        "size": 0,
        "query": {"range": {"@timestamp": {"gte": "now-10m"}}},
        "aggs": {"nodes": {"terms": {"field": "node", "size": 10000}}},
    }
    asked = {"source": json.dumps(question), "source_content_type": "application/json"}
    url = f"{base}/{settings['streams']}/_search?{urllib.parse.urlencode(asked)}"
    # Before the first line there is nothing to search, and so nothing that was counted.
    found = _asked(url, None, headers=headers).get("aggregations", {})
    came = {one["key"] for one in found.get("nodes", {}).get("buckets", ())}
    missing = sorted(set(settings["nodes"]) - came)
    return f"no line came from {', '.join(missing)} in the last ten minutes" if missing else ""


def _browser(settings: Mapping[str, Any]) -> str:
    """Every replica of Headlamp serves its page, and reaches the API for whoever has a token."""
    addresses = _addresses("headlamp", "headlamp", "web")
    if len(addresses) < settings["replicas"]:
        return f"the service headlamp leads to {len(addresses)} of {settings['replicas']} replicas"
    for address in addresses:
        # The API says this to anybody, which is all that Headlamp may ask without a token.
        url = f"http://{address}:4466/clusters/main/livez"
        try:
            said = _text(url)
        except (OSError, http.client.HTTPException) as err:
            return f"{url} does not answer: {err}"
        if said != "ok":
            return f"{address} got {said[:200]!r} for the API's health"
    return ""


def unregistered(
    driver: str, nodes: Iterable[str], items: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Nodes whose kubelet has no driver of that name.

    Args:
        driver: Its name.
        nodes: Declared nodes.
        items: All CSINode objects.

    Example:
        >>> unregistered("d", ["a", "b"], [{"metadata": {"name": "a"},
        ...                                 "spec": {"drivers": [{"name": "d"}]}}])
        ['b']
    """
    there = {
        one["metadata"]["name"]
        for one in items
        if driver in [found["name"] for found in (one["spec"].get("drivers") or ())]
    }
    return sorted(set(nodes) - there)


def _disks(settings: Mapping[str, Any]) -> str:
    """The driver of Cinder is registered on every node: there it knows which server it is on."""
    items = __salt__["indigo_kube.get"](DRIVERS, server=_server())["items"]
    missing = unregistered(settings["driver"], settings["nodes"], items)
    if missing:
        return f"{settings['driver']} is not registered on {', '.join(missing)}"
    return ""


#: Where the API has the drivers of each node's kubelet.
DRIVERS = "/apis/storage.k8s.io/v1/csinodes"


def _hosts_heard(settings: Mapping[str, Any]) -> str:
    """Every front end answers for the API, and the server has heard of every host lately."""
    addresses = _addresses("zabbix", "web", "web")
    if len(addresses) < settings["replicas"]:
        return f"the service web leads to {len(addresses)} of {settings['replicas']} replicas"
    for address in addresses:
        base = f"http://{address}:{settings['ports']['web']}/api_jsonrpc.php"
        version = _rpc(base, "apiinfo.version", [])
    password = _secret("zabbix", "zabbix", "admin")
    session = _rpc(base, "user.login", {"username": "Admin", "password": password})
    try:
        hosts = _rpc(base, "host.get", {"output": ["host"]}, session)
        names = {one["hostid"]: one["host"] for one in hosts}
        missing = sorted(set(settings["hosts"]) - set(names.values()))
        if missing:
            return f"Zabbix {version}: no agent has registered from {_some(missing)}"
        query = {"output": ["hostid", "lastclock"], "filter": {"key_": "agent.ping"}}
        query["hostids"] = [id_ for id_, host in names.items() if host in settings["hosts"]]
        heard: dict[str, int] = {}
        for one in _rpc(base, "item.get", query, session):
            host = names[one["hostid"]]
            heard[host] = max(heard.get(host, 0), int(one["lastclock"]))
    finally:
        _rpc(base, "user.logout", [], session)
    silent = [name for name in settings["hosts"] if time.time() - heard.get(name, 0) > SILENCE]
    return f"no agent was heard of in {SILENCE} s from {_some(silent)}" if silent else ""


#: Seconds without a word from a host's agent, which says something every minute.
SILENCE = 300


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _rpc(url: str, method: str, parameters: Any, session: str | None = None) -> Any:
    """The result of a call of Zabbix' API.

    Raises:
        CommandExecutionError: No answer, or an error in it.
    """
    call = {"jsonrpc": "2.0", "method": method, "params": parameters, "id": 1}
    # In the call as releases before 6.4 want it; 7.0 takes it still.
    body = json.dumps(call | ({"auth": session} if session else {})).encode()
    headers = {"Content-Type": "application/json-rpc"}
    answer = _asked(url, None, timeout=10, headers=headers, body=body)
    if "result" not in answer:
        error = answer.get("error", {})
        told = error.get("data") or error.get("message") or "no result"
        raise CommandExecutionError(f"{url}: {method}: {told}")
    return answer["result"]


def _infrastructures(settings: Mapping[str, Any]) -> str:
    """The Infrastructure Manager answers, lets its user in, and nobody else."""
    addresses = _addresses("im", "im", "rest")
    if not addresses:
        return "the service im leads to no pod"
    base = f"http://{addresses[0]}:{settings['port']}"
    _asked(f"{base}/version", "version", headers={"Accept": "application/json"})
    for who, headers in (
        ("without a user", {}),
        ("to a user whom nobody made", _introduced("nobody", secrets.token_hex(16))),
    ):
        said = _status(f"{base}/infrastructures", headers)
        if said != 401:
            return f"{base}/infrastructures answers {said} {who}; expected a refusal, 401"
    user = settings["user"]
    if user:
        password = _secret("im", settings["users"], user)
        said = _status(f"{base}/infrastructures", _introduced(user, password))
        if said != 200:
            return f"{base}/infrastructures answers {said} to its own user {user}"
    return ""


def _introduced(user: str, password: str) -> dict[str, str]:
    """What a request to the Infrastructure Manager carries of a user.

    Its release 2.0.0 takes HTTP's own way, Basic, only where it has a Vault.
    """
    named = f"type = InfrastructureManager; username = {user}; password = {password}"
    return {"Authorization": named}


def _status(url: str, headers: Mapping[str, str]) -> int:
    """The status of an answer.

    Raises:
        CommandExecutionError: No answer.
    """
    question = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 - of a pod
    try:
        with _OPENER.open(question, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as err:
        return err.code
    except (OSError, http.client.HTTPException) as err:
        raise CommandExecutionError(f"{url} does not answer: {err}") from err


def unfinished(jobs: Iterable[Mapping[str, Any]]) -> str:
    """Why the last run of a CronJob that came to its end failed; empty when it did not.

    Example:
        >>> unfinished([{"metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
        ...     "status": {"conditions": [{"type": "Failed", "status": "True",
        ...                                "reason": "BackoffLimitExceeded"}]}}])
        'job x: BackoffLimitExceeded'
    """
    ended = []
    for job in jobs:
        for one in (job.get("status") or {}).get("conditions") or ():
            if one["type"] in ("Complete", "Failed") and one["status"] == "True":
                ended.append((job["metadata"]["creationTimestamp"], job["metadata"]["name"], one))
    if not ended:
        return ""
    _, name, last = max(ended, key=lambda one: one[:2])
    return _joined(f"job {name}", last) if last["type"] == "Failed" else ""


def settled(pods: Iterable[Mapping[str, Any]], now: float) -> bool:
    """Whether any of some pods was on a node already :data:`SCRAPED` seconds ago.

    >>> settled([{"status": {"startTime": "1970-01-01T00:00:00Z"}}, {"status": {}}], 1000)
    True
    """
    started = [(one.get("status") or {}).get("startTime") for one in pods]
    return any(
        now - calendar.timegm(time.strptime(one, "%Y-%m-%dT%H:%M:%SZ")) > SCRAPED
        for one in started
        if one
    )


#: Seconds in which Prometheus is to know of a pod: the longest interval is 300.
SCRAPED = 330


def _accounted(settings: Mapping[str, Any]) -> str:
    """Prometheus hears of the pods that are counted, and each last run came to a good end."""
    addresses = _addresses("monitoring", "prometheus", "web")
    if not addresses:
        return "the service prometheus leads to no pod"
    known: dict[str, set[str]] = {}
    for address in addresses:
        base = f"http://{address}:9090/api/v1/query"
        up = _asked(f"{base}?query={urllib.parse.quote(settings['up'])}")["result"]
        if not up or up[0]["value"][1] != "1":
            return f"{address} does not reach kube-state-metrics at {settings['address']}"
        started = urllib.parse.quote("count by (namespace) (kube_pod_start_time)")
        found = _asked(f"{base}?query={started}", timeout=10)["result"]
        known[address] = {one["metric"].get("namespace", "") for one in found}
    for namespace in settings["namespaces"]:
        path = f"/api/v1/namespaces/{namespace}/pods?limit=50"
        pods = __salt__["indigo_kube.get"](path, server=_server())["items"]
        silent = [address for address, names in known.items() if namespace not in names]
        if silent and settled(pods, time.time()):
            return f"{silent[0]} has heard of no pod of {namespace}, which has some"
        label = urllib.parse.quote(f"indigo/accounted={namespace}")
        path = f"/apis/batch/v1/namespaces/accounting/jobs?labelSelector={label}"
        jobs = __salt__["indigo_kube.get"](path, server=_server())["items"]
        why = unfinished(jobs)
        if why:
            return f"the last run for {namespace} failed: {why}"
        if any((one.get("status") or {}).get("active") for one in jobs):
            path = f"/api/v1/namespaces/accounting/pods?labelSelector={label}"
            why = reason(__salt__["indigo_kube.get"](path, server=_server())["items"])
            if _NO_IMAGE.search(why):
                return f"the run for {namespace} waits: {why}"
    return ""


def _answered(base: str, query: str, **more: str) -> list[dict[str, Any]]:
    """The series of InfluxDB's answer to one query.

    Raises:
        CommandExecutionError: No answer, or an error in it.
    """
    (result,) = _asked(f"{base}?{urllib.parse.urlencode({'q': query, **more})}", "results")
    if "error" in result:
        raise CommandExecutionError(f"{base}: {query}: {result['error']}")
    return list(result.get("series", []))


def _gates(settings: Mapping[str, Any]) -> str:
    """Through the virtual address the controllers route by name, in plain and over TLS."""
    items = _endpoints(INGRESS, "traefik", "health")
    if len(items) < len(settings["gates"]):
        names = ", ".join(settings["gates"])
        return f"{len(items)} controllers are ready; expected one on each of {names}"
    vip = settings["vip"]
    for port, tls in ((settings["http"], False), (settings["https"], True)):
        where = f"{vip}:{port}"
        try:
            status, said = _asked_by_name(settings, port, tls)
        except (OSError, http.client.HTTPException) as err:
            return f"{where} does not answer: {err}"
        if status != 200:
            return f"{where} answers {status} for {settings['check']['name']}: {said[:100]}"
    for one in settings["tcp"]:
        if problem := _refused(vip, one["port"]):
            return f"{vip}:{one['port']} {problem}: node port {one['node_port']} has no ready pod"
    return ""


#: Namespace of the add-on `ingress`.
INGRESS = "ingress"


def _asked_by_name(settings: Mapping[str, Any], port: int, tls: bool) -> tuple[int, str]:
    """Status and text that the virtual address answers for the name that is there to check."""
    check, vip = settings["check"], settings["vip"]
    with socket.create_connection((vip, port), timeout=3) as plain:
        link = http.client.HTTPConnection(vip, port)
        if tls:
            context = ssl.create_default_context(cafile=settings["authority"])
            if not settings["authority"]:
                # One of the site's: who signed it, and for which names, is between it and clients.
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            link.sock = context.wrap_socket(plain, server_hostname=vip)
        else:
            link.sock = plain
        with link.sock:
            link.request("GET", check["path"], headers={"Host": check["name"]})
            answer = link.getresponse()
            return answer.status, answer.read(1000).decode(errors="replace").strip()


def _refused(address: str, port: int) -> str:
    """Why nobody is behind a port, or empty: haproxy then takes a connection and ends it."""
    try:
        with socket.create_connection((address, port), timeout=3) as link:
            link.settimeout(0.3)
            return "" if link.recv(1) else "ends each connection at once"
    except TimeoutError:
        return ""
    except OSError as err:
        return f"does not answer: {err}"


def _text(url: str) -> str:
    """The first mebibyte of what a pod answers."""
    with _OPENER.open(url, timeout=5) as answer:
        return str(answer.read(1 << 20).decode(errors="replace"))


def _serves(settings: Mapping[str, Any]) -> str:
    """Each pod behind the service that the user named gives the answer that the user named."""
    check = settings["check"]
    if not check:
        return ""
    namespace, service = settings["namespace"], check["service"]
    pods = _endpoints(namespace, service)
    if not pods:
        return f"the service {namespace}/{service} leads to no pod"
    expect = str(check.get("expect", ""))
    for address, port in pods:
        url = f"http://{address}:{port}{check.get('path', '/')}"
        try:
            said = _text(url)
        except (OSError, http.client.HTTPException) as err:
            return f"{url} does not answer: {err}"
        if expect not in said:
            return f"{url} answers without {expect!r}"
    return ""


_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "coredns": _dns,
    "metrics-server": _usage,
    "prometheus": _metrics,
    "influxdb": _long_term,
    INGRESS: _gates,
    "alertmanager": _alarm,
    "grafana": _dashboards,
    "headlamp": _browser,
    "logging": _lines,
    "openstack": _disks,
    "zabbix": _hosts_heard,
    "im": _infrastructures,
    "accounting": _accounted,
}
