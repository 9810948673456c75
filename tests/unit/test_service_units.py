"""Units and the files they were started with, against a small systemd in memory."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
from salt.exceptions import CommandExecutionError
from support import load


class Systemd:
    """As much of systemd as the module asks: units with invocations and a start time."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.units: dict[str, dict[str, str]] = {}
        self.log: list[str] = []
        self.fails: set[str] = set()
        self.count = 0
        self.reloads = 0

    def add(self, name: str, text: str = "[Unit]\n") -> None:
        path = self.folder / f"{name}.service"
        path.write_text(text)
        self.units[f"{name}.service"] = {
            "LoadState": "loaded",
            "ActiveState": "inactive",
            "SubState": "dead",
            "UnitFileState": "disabled",
            "MainPID": "0",
            "InvocationID": "",
            "ExecMainStartTimestampMonotonic": "0",
            "FragmentPath": str(path),
            "DropInPaths": "",
            "NeedDaemonReload": "no",
            "Result": "success",
        }

    def start(self, name: str) -> None:
        self.count += 1
        self.units[name].update(
            ActiveState="active",
            SubState="running",
            MainPID=str(1000 + self.count),
            InvocationID=f"i{self.count}",
            ExecMainStartTimestampMonotonic=str(int(time.monotonic() * 1e6)),
        )

    def __call__(self, *arguments: str, timeout: float = 0) -> tuple[int, str, str]:
        verb, *rest = [word for word in arguments if not word.startswith("--")]
        if verb == "daemon-reload":
            self.reloads += 1
            for name, unit in self.units.items():
                unit["NeedDaemonReload"] = "no"
                if (self.folder / "etc" / name).exists():
                    unit["FragmentPath"] = str(self.folder / "etc" / name)
            return 0, "", ""
        (name,) = rest
        if verb == "show":
            missing = {"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"}
            unit = self.units.get(name, missing)
            return 0, "".join(f"{key}={value}\n" for key, value in unit.items()), ""
        self.log.append(f"{verb} {name}")
        unit = self.units[name]
        if verb in self.fails:
            unit.update(ActiveState="failed", SubState="failed", Result="exit-code", MainPID="0")
            return 1, "", f"Job for {name} failed."
        if verb == "restart":
            self.start(name)
        elif verb == "stop":
            unit.update(ActiveState="inactive", SubState="dead", MainPID="0", InvocationID="")
        elif verb in ("enable", "disable"):
            unit["UnitFileState"] = f"{verb}d"
        return 0, "", ""


@pytest.fixture
def host(tmp_path):
    module = load("_modules", "indigo_service")
    systemd = Systemd(tmp_path)
    systemd.add("etcd")
    module._systemctl = systemd
    module.STAMPS = tmp_path / "run"
    module.UNITS = tmp_path / "etc"
    module.UNITS.mkdir()
    state = load("_states", "indigo_service")
    functions = (
        "show",
        "stale",
        "adopt",
        "enable",
        "restart",
        "stop",
        "daemon_reload",
    )
    state.__salt__ = {f"indigo_service.{name}": getattr(module, name) for name in functions}
    state.__salt__["indigo_service.reload"] = module.reload_
    state.__running__ = {}
    config = tmp_path / "etcd.conf"
    config.write_text("one")
    old = time.time() - 1000
    os.utime(config, (old, old))

    def running(*, test=False, **more):
        state.__opts__ = {"test": test}
        return state.running("etcd", **{"files": [str(config)], **more})

    return SimpleNamespace(
        module=module,
        state=state,
        systemd=systemd,
        unit=systemd.units["etcd.service"],
        config=config,
        running=running,
        tmp=tmp_path,
    )


def test_a_stopped_unit_is_enabled_and_started_once(host):
    assert host.running(test=True)["result"] is None
    assert host.systemd.log == []
    ret = host.running()
    assert ret["result"] is True
    assert set(ret["changes"]) == {"enabled", "started"}
    assert host.systemd.log == ["enable etcd.service", "restart etcd.service"]
    for test in (True, False):
        again = host.running(test=test)
        assert (again["result"], again["changes"]) == (True, {})
    assert len(host.systemd.log) == 2


def test_a_changed_file_restarts(host):
    host.running()
    host.config.write_text("two")
    assert host.running(test=True)["changes"] == {"restarted": [str(host.config)]}
    ret = host.running()
    assert ret["changes"] == {"restarted": [str(host.config)]}
    assert host.systemd.log[-1] == "restart etcd.service"
    assert host.running()["changes"] == {}


def test_a_changed_file_reloads_where_that_is_enough(host):
    host.running(reload=True)
    host.config.write_text("two")
    assert host.running(reload=True)["changes"] == {"reloaded": [str(host.config)]}
    assert host.systemd.log[-1] == "reload etcd.service"
    assert host.running(reload=True)["changes"] == {}


def test_another_program_restarts_where_a_reload_is_enough_for_files(host):
    program = host.tmp / "haproxy"
    program.write_text("2.6")
    old = time.time() - 1000
    os.utime(program, (old, old))
    more = {"reload": True, "programs": [str(program)]}
    host.running(**more)
    assert host.running(**more)["changes"] == {}
    # In test mode an earlier state says that it would exchange it.
    host.state.__running__ = {"a": {"name": str(program), "result": None}}
    assert host.running(test=True, **more)["changes"] == {"restarted": [str(program)]}
    host.state.__running__ = {}
    program.write_text("2.7")
    assert host.running(**more)["changes"] == {"restarted": [str(program)]}
    assert host.systemd.log[-1] == "restart etcd.service"
    assert host.running(**more)["changes"] == {}


def test_a_unit_that_has_not_come_up_is_restarted_where_it_could_not_reload(host):
    host.running(reload=True)
    host.unit["ActiveState"] = "activating"  # keepalived, say, without a configuration to run
    assert host.running(reload=True)["changes"] == {}
    host.config.write_text("two")
    ret = host.running(reload=True)
    assert ret["changes"] == {"restarted": [str(host.config)]}
    assert host.systemd.log[-1] == "restart etcd.service"
    assert host.unit["ActiveState"] == "active"


def test_a_changed_unit_file_restarts_even_where_reload_is_enough_for_files(host):
    host.running(reload=True)
    (host.tmp / "etcd.service").write_text("[Unit]\nDescription=new\n")
    host.unit["NeedDaemonReload"] = "yes"
    ret = host.running(reload=True)
    assert ret["changes"] == {"restarted": [host.unit["FragmentPath"]]}
    assert host.systemd.reloads == 1


def test_a_touched_unit_file_with_the_same_text_restarts_nothing(host):
    host.running()
    (host.tmp / "etcd.service").write_text("[Unit]\n")
    host.unit["NeedDaemonReload"] = "yes"
    assert host.running()["changes"] == {}
    assert host.systemd.reloads == 1


def test_a_unit_that_comes_to_stand_before_the_packages_is_loaded(host):
    host.running()  # as a package starts its service
    time.sleep(0.02)
    ours = host.module.UNITS / "etcd.service"
    ours.write_text("[Unit]\nDescription=ours\n")
    ret = host.running()
    assert host.systemd.reloads == 1
    assert str(ours) in ret["changes"]["restarted"]
    assert host.running()["changes"] == {}
    assert host.systemd.reloads == 1


def test_a_drop_in_that_comes_or_goes_restarts(host):
    host.running()
    drop_in = host.tmp / "10.conf"
    time.sleep(0.02)
    drop_in.write_text("[Service]\n")
    host.unit["DropInPaths"] = str(drop_in)
    assert host.running()["changes"] == {"restarted": [str(drop_in)]}
    host.unit["DropInPaths"] = ""
    drop_in.unlink()
    assert host.running()["changes"] == {"restarted": [str(drop_in)]}
    assert host.running()["changes"] == {}


def test_killed_between_writing_and_restarting_the_next_run_restarts(host):
    host.running()
    host.config.write_text("two")  # and here the apply was killed
    host.module.STAMPS.joinpath("etcd.service.json").unlink()  # even with the stamp lost
    assert host.running()["changes"] == {"restarted": [str(host.config)]}


def test_killed_between_the_restart_and_its_stamp_nothing_restarts_again(host):
    host.running()
    host.config.write_text("two")
    time.sleep(0.02)
    host.systemd.start("etcd.service")  # and here the apply was killed
    assert host.running()["changes"] == {}
    # The unit has been adopted: from now on contents count, not times.
    host.config.write_text("two")
    assert host.running()["changes"] == {}
    host.config.write_text("three")
    assert host.running()["changes"] == {"restarted": [str(host.config)]}


def test_a_unit_that_systemd_restarted_runs_with_what_is_on_disk(host):
    host.running()
    host.config.write_text("two")
    time.sleep(0.02)
    host.systemd.start("etcd.service")
    assert host.running(test=True)["changes"] == {}


def test_folders_count_with_all_their_files(host):
    folder = host.tmp / "pki"
    folder.mkdir()
    (folder / "ca.crt").write_text("1")
    host.running(files=[str(folder)])
    assert host.running(files=[str(folder)])["changes"] == {}
    (folder / "ca.crt").write_text("2")
    assert host.running(files=[str(folder)])["changes"] == {"restarted": [str(folder)]}


def test_a_file_that_vanishes_counts(host):
    host.running()
    host.config.unlink()
    assert host.running()["changes"] == {"restarted": [str(host.config)]}


def test_in_test_mode_what_earlier_states_would_change_counts(host):
    host.running()
    host.state.__running__ = {
        "file_|-x_|-x_|-managed": {"name": str(host.config), "result": None, "changes": {}}
    }
    ret = host.running(test=True)
    assert ret["result"] is None
    assert ret["changes"] == {"restarted": [str(host.config)]}


def test_a_crash_loop_is_started_anew(host):
    host.running()
    host.unit.update(ActiveState="activating", SubState="auto-restart", MainPID="0")
    assert "started" in host.running()["changes"]


def test_a_unit_that_waits_for_its_peers_is_left_alone(host):
    host.running()
    host.unit.update(ActiveState="activating", SubState="start")
    assert host.running()["changes"] == {}


def test_without_waiting_the_start_is_queued(host):
    assert host.running(wait=False)["result"] is True
    assert host.running(wait=False)["changes"] == {}


def test_a_start_that_fails_says_where_to_look(host):
    host.systemd.fails.add("restart")
    ret = host.running()
    assert ret["result"] is False
    assert "journalctl -u etcd" in ret["comment"]
    assert "failed" in ret["comment"]


def test_a_reload_that_is_refused_is_tried_again(host):
    host.running(reload=True)
    host.config.write_text("broken")
    host.systemd.fails.add("reload")
    assert host.running(reload=True)["result"] is False
    host.systemd.fails.clear()
    host.systemd.start("etcd.service")
    host.config.write_text("two")
    assert host.running(reload=True)["changes"] == {"reloaded": [str(host.config)]}


@pytest.mark.parametrize(
    ("load_state", "test", "result"),
    [
        ("masked", False, False),
        ("masked", True, False),
        ("bad-setting", False, False),
        ("bad-setting", True, None),
    ],
)
def test_a_unit_that_cannot_start_at_all(host, load_state, test, result):
    host.unit["LoadState"] = load_state
    ret = host.running(test=test)
    assert ret["result"] is result
    assert host.systemd.log == []


def test_a_unit_that_is_not_there(host):
    host.systemd.units.clear()
    assert host.running(test=True)["result"] is None
    ret = host.running()
    assert ret["result"] is False
    assert "no unit file" in ret["comment"]


def test_stopping_also_forgets_and_is_done_once(host):
    host.running()
    host.state.__opts__ = {"test": True}
    assert host.state.stopped("etcd")["result"] is None
    host.state.__opts__ = {"test": False}
    assert set(host.state.stopped("etcd")["changes"]) == {"stopped", "disabled"}
    assert host.state.stopped("etcd")["changes"] == {}
    assert list(host.module.STAMPS.iterdir()) == []
    assert host.state.stopped("nothing")["result"] is True


def test_the_stamp_is_for_root_and_holds_no_content(host):
    host.config.write_text("a secret token")
    host.running()
    stamp = host.module.STAMPS / "etcd.service.json"
    assert stamp.stat().st_mode & 0o777 == 0o600
    assert "secret" not in stamp.read_text()


def test_a_stepped_clock_does_not_mislead(host, monkeypatch):
    properties = {"ExecMainStartTimestampMonotonic": str(int((time.monotonic() - 60) * 1e6))}
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real + 3600)
    assert host.module._started_at(properties) == pytest.approx(real + 3540, abs=1)


def test_systemd_that_does_not_answer_is_an_error(host):
    host.module._systemctl = lambda *_, **__: (1, "", "Failed to connect to bus")
    with pytest.raises(CommandExecutionError, match="Failed to connect to bus"):
        host.module.show("etcd")
