"""What a node leaves behind is found and taken away, and nothing else."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError
from support import load

MOUNTINFO = """\
22 1 0:20 / / rw - overlay overlay rw
30 22 8:1 /c /var/lib/containerd rw - ext4 /dev/vda rw
31 22 8:1 /k /var/lib/kubelet rw - ext4 /dev/vda rw
40 31 0:40 / /var/lib/kubelet/pods/1/volumes/token rw - tmpfs tmpfs rw
41 31 0:41 / /var/lib/kubelet/pods/1/volumes/token/deep\\040er rw - tmpfs tmpfs rw
42 22 0:42 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/x/rootfs rw - overlay overlay rw
43 22 0:4 net:[4] /run/netns/cni-abc rw - nsfs nsfs rw
44 22 0:4 net:[5] /run/netns/mine rw - nsfs nsfs rw
45 22 0:45 / /var/lib/kubelet-backup/x rw - tmpfs tmpfs rw
"""

SAVED = """\
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A PREROUTING -j MINE
-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
COMMIT
"""


def test_mounts_go_from_the_deepest_and_the_disks_stay():
    assert load("_modules", "indigo_node").mounts(MOUNTINFO) == [
        "/var/lib/kubelet/pods/1/volumes/token/deep er",
        "/var/lib/kubelet/pods/1/volumes/token",
        "/run/containerd/io.containerd.runtime.v2.task/k8s.io/x/rootfs",
        "/run/netns/cni-abc",
    ]


def test_only_the_rules_of_kubernetes_go():
    assert load("_modules", "indigo_node").without_rules(SAVED) == (
        "*nat\n:PREROUTING ACCEPT [0:0]\n:MINE - [0:0]\n-A PREROUTING -j MINE\n"
        "-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\nCOMMIT\n"
    )


@pytest.fixture
def host(tmp_path: Path):
    """A module that sees a made-up /proc and /sys/fs/cgroup, and a real process as a pod's."""
    module = load("_modules", "indigo_node")
    module.CGROUPS, module.PROC = tmp_path / "cgroup", tmp_path / "proc"
    module.LINKS = ("no-such-link",)
    (module.PROC / "self").mkdir(parents=True)
    (module.PROC / "self/mountinfo").write_text("22 1 0:20 / / rw - overlay overlay rw\n")
    pod = module.CGROUPS / "cpu/kubepods/besteffort/pod1"
    pod.mkdir(parents=True)
    process = subprocess.Popen(["sleep", "60"])
    module.pod = pod / "cgroup.procs"
    module.pod.write_text(f"{process.pid}\n")
    module._saved = lambda family: ""
    yield module, process
    process.kill()
    process.wait()


def test_processes_of_pods_are_killed(host, monkeypatch):
    module, process = host
    assert module.leftovers() == {"processes": 1}
    kill = module.os.kill

    def kill_and_leave(pid: int, number: int) -> None:
        kill(pid, number)
        process.wait()
        module.pod.write_text("")

    monkeypatch.setattr(module.os, "kill", kill_and_leave)
    assert module.clear() == {"processes": 1}
    assert process.returncode == -signal.SIGKILL
    assert module.leftovers() == {}


def test_shims_count_and_other_processes_do_not(host):
    module, _ = host
    module.pod.write_text("")
    for pid, words in (
        (701, ["/opt/indigo/containerd-1/containerd-shim-runc-v2", "-namespace", "k8s.io"]),
        (702, ["/usr/bin/containerd-shim-runc-v2", "-namespace", "moby"]),
        (703, ["/bin/sh", "k8s.io"]),
    ):
        folder = module.PROC / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_bytes(b"\0".join(word.encode() for word in words) + b"\0")
    assert module._pids() == {701}


def test_pods_that_run_and_name_a_server_are_found(host, tmp_path):
    module, _ = host
    module.SANDBOXES = tmp_path / "containerd"
    for sandbox, text in (
        ("a1", "search x\nnameserver 169.254.20.10\nnameserver 10.96.0.10\n"),
        ("b2", "nameserver 10.96.0.10\n"),
        ("c3", "nameserver 169.254.20.10\n"),  # it ended
        ("d4", "nameserver 169.254.20.101\n"),
    ):
        folder = module.SANDBOXES / "io.containerd.grpc.v1.cri/sandboxes" / sandbox
        folder.mkdir(parents=True)
        (folder / "resolv.conf").write_text(text)
    for pid, sandbox in ((701, "a1"), (702, "b2"), (703, "d4")):
        words = ["/opt/x/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", sandbox, ""]
        (module.PROC / str(pid)).mkdir()
        (module.PROC / str(pid) / "cmdline").write_bytes("\0".join(words).encode())
    assert module.naming("169.254.20.10") == ["a1"]
    assert module.naming("10.96.0.10") == ["a1", "b2"]
    assert module.naming("10.0.0.1") == []


def test_a_process_that_stays_is_an_error(host, monkeypatch):
    module, _ = host
    monkeypatch.setattr(module.os, "kill", lambda pid, number: None)
    with pytest.raises(CommandExecutionError, match="do not end"):
        module.clear(timeout=0.2)


def state(test: bool = False, **functions):
    loaded = load("_states", "indigo_node")
    loaded.__opts__ = {"test": test}
    loaded.__salt__ = {f"indigo_node.{name}": value for name, value in functions.items()}
    return loaded


def test_cleared_in_both_modes():
    cleared = []
    functions = {
        "leftovers": lambda: {"processes": 2},
        "clear": lambda: cleared.append(True),
    }
    result = state(test=True, **functions).cleared("x")
    assert (result["result"], cleared) == (None, [])
    result = state(**functions).cleared("x")
    assert (result["result"], cleared) == (True, [True])
    assert result["changes"] == {"cleared": {"processes": 2}}
    assert state(leftovers=dict).cleared("x")["changes"] == {}


def test_emptied_keeps_the_folder_and_stops_at_mounts(tmp_path):
    (tmp_path / "pods/1").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/etc")
    result = state(test=True, mounted=lambda path: []).emptied(str(tmp_path))
    assert (result["result"], result["changes"]) == (None, {"removed": 3})
    result = state(mounted=lambda path: [f"{path}/pods/1"]).emptied(str(tmp_path))
    assert result["result"] is False
    assert "still mounted" in result["comment"]
    result = state(mounted=lambda path: []).emptied(str(tmp_path))
    assert (result["result"], list(tmp_path.iterdir())) == (True, [])
    result = state(mounted=lambda path: []).emptied(str(tmp_path))
    assert (result["result"], result["changes"]) == (True, {})
    assert state().emptied(str(tmp_path / "none"))["changes"] == {}
