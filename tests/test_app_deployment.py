"""The modules app_deployment and app_trial: what they decide, and in which order they act; without systemd."""

from __future__ import annotations

import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from conftest import PROJECT, load

load("plugins/module_utils/redis_files.py")
units = load("plugins/module_utils/app_units.py")
deployment = load("plugins/modules/app_deployment.py")
trial = load("plugins/modules/app_trial.py")


class Ended(Exception):
    """A module has ended: with `fail_json` when `failed`."""

    def __init__(self, failed: bool, answer: dict[str, Any]) -> None:
        super().__init__(answer.get("msg", ""))
        self.failed = failed
        self.answer = answer


class Module:
    """As much of AnsibleModule as the two use."""

    def __init__(self, params: dict[str, Any], check_mode: bool = False) -> None:
        self.params = params
        self.check_mode = check_mode

    def load_file_common_arguments(self, file: dict[str, Any], path: str) -> dict[str, Any]:
        return {**file, "path": path}

    def set_fs_attributes_if_different(self, arguments: dict[str, Any], changed: bool) -> bool:
        return changed

    def exit_json(self, **answer: Any) -> None:
        raise Ended(False, answer)

    def fail_json(self, **answer: Any) -> None:
        raise Ended(True, answer)


class Systemd:
    """Records what systemctl is asked for; instances in `sick` do not get healthy, sockets are busy so many times."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.running: set[str] = set()
        self.sick: set[str] = set()
        self.busy = 0
        self.enabled = True

    def __call__(self, *words: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        self.calls.append(" ".join(words))
        code = 0
        verb, names = words[0], [word for word in words[1:] if not word.startswith("-")]
        if verb == "is-active":
            code = 0 if names[0] in self.running else 3
        elif verb == "start" and names[0].endswith(".socket") and self.busy:
            self.busy, code = self.busy - 1, 1
        elif verb in ("start", "restart"):
            self.running |= set(names)
        elif verb == "stop":
            self.running -= set(names)
        return subprocess.CompletedProcess(words, code, "", "")

    def show(self, unit: str) -> dict[str, str]:
        state = "active" if unit in self.running or unit.endswith(".target") else "inactive"
        return {"ActiveState": state, "UnitFileState": "enabled" if self.enabled else "disabled", "MainPID": "1"}

    def listed(self, *patterns: str) -> dict[str, str]:
        return dict.fromkeys(self.running, "active")

    def wait_healthy(self, url: str, unit: str, seconds: float, over: Callable[[str], bool]) -> None:
        if unit in self.sick:
            raise units.Unwell(f"{url} answers 503")

    def acts(self) -> list[str]:
        """Return what changed something, without what was only prepared or asked."""
        return [call for call in self.calls if call.split()[0] not in ("is-active", "reset-failed", "daemon-reload")]


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    """A systemd under which two instances of `app` run, with sockets."""
    fake = Systemd()
    fake.running = {f"app@{port}.{kind}" for port in (1, 2) for kind in ("service", "socket")}
    for name in ("show", "listed", "wait_healthy"):
        monkeypatch.setattr(deployment, name, getattr(fake, name))
        monkeypatch.setattr(trial, name, getattr(fake, name), raising=False)
    for module in (deployment, trial):
        monkeypatch.setattr(module, "systemctl", fake)
        monkeypatch.setattr(module, "journal", lambda *_: "its last words")
    monkeypatch.setattr(deployment, "started_at", lambda pid: time.time() + 60)
    monkeypatch.setattr(deployment, "ask", lambda url: (200, '{"status": "healthy"}'))
    monkeypatch.setattr(deployment, "owner_of", lambda path: "644 root:root")
    return fake


@pytest.fixture
def params(tmp_path: Path) -> dict[str, Any]:
    """A host on which release 1 runs as declared, in two instances."""
    unit, environment = tmp_path / "app@.service", tmp_path / "app.env"
    unit.write_text("unit")
    environment.write_text("A=1\n")
    (tmp_path / "current").symlink_to("/releases/1")
    own = {"owner": "root", "group": "root", "mode": "0644"}
    return {
        "name": "app",
        "ports": [1, 2],
        "socket": True,
        "address": "127.0.0.1",
        "health_path": "/health",
        "timeout": 1.0,
        "stop_timeout": 1.0,
        "settle": 0.0,
        "current": str(tmp_path / "current"),
        "release": "/releases/1",
        "replaces": "",
        "files": [{"path": str(unit), "content": "unit", **own}],
        "environment": {"path": str(environment), **own},
        "environment_text": "A=1\n",
        "reads": [],
        "packages": [],
        "user": "",
    }


def run(params: dict[str, Any], **changes: Any) -> Ended:
    """Look, and switch when there is a reason; return how the module ended."""
    module = Module({**params, **changes})
    seen = deployment.look(module)
    switch = deployment.Switch(module, seen)
    try:
        switch.forward()
    except (units.Unwell, OSError) as error:
        return Ended(True, {"msg": str(error), "now": switch.back(), "reasons": seen.reasons})
    return Ended(False, {"reasons": seen.reasons, "written": seen.written})


def look(params: dict[str, Any], **changes: Any) -> Any:
    """Return what the module sees."""
    return deployment.look(Module({**params, **changes}, check_mode=True))


@pytest.mark.usefixtures("systemd")
def test_what_runs_as_declared_is_left_alone(params: dict[str, Any]) -> None:
    seen = look(params)
    assert (seen.changes, seen.reasons, seen.trial) == (False, {}, False)


@pytest.mark.parametrize(
    ("changes", "reason", "trial_wanted"),
    [
        ({"release": "/releases/2"}, "the release is 2 now", True),
        ({"socket": False}, "it is to listen by itself", False),
    ],
)
@pytest.mark.usefixtures("systemd")
def test_what_differs_is_a_reason_for_every_instance(
    params: dict[str, Any], changes: dict[str, Any], reason: str, trial_wanted: bool
) -> None:
    seen = look(params, **changes)
    assert seen.reasons == {"app@1.service": reason, "app@2.service": reason}
    assert seen.trial is trial_wanted


@pytest.mark.usefixtures("systemd")
def test_a_changed_environment_is_a_reason_and_is_tried(params: dict[str, Any]) -> None:
    params["environment_text"] = "A=2\n"
    seen = look(params)
    assert seen.trial
    assert set(seen.reasons.values()) == {f"{params['environment']['path']} changed"}


def test_a_process_older_than_the_link_is_a_reason_alone(
    params: dict[str, Any], systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after a run that was interrupted between two instances.
    monkeypatch.setattr(deployment, "started_at", lambda pid: 1000.0)
    seen = look(params)
    assert set(seen.reasons.values()) == {"it runs the release from before the last change"}
    assert not seen.trial


@pytest.mark.parametrize(("age", "restarts"), [(120, False), (-120, True)], ids=["older", "newer"])
@pytest.mark.usefixtures("systemd")
def test_a_file_that_it_reads_at_its_start_is_a_reason_once_it_is_newer(
    params: dict[str, Any], tmp_path: Path, age: int, restarts: bool
) -> None:
    # An instance started a minute ahead of now.
    (tmp_path / "ca.crt").write_text("")
    at = time.time() - age
    os.utime(tmp_path / "ca.crt", (at, at))
    seen = look(params, reads=[str(tmp_path / "ca.crt"), "/nonexistent/ca.crt"])
    assert bool(seen.reasons) is restarts
    assert not seen.trial


def test_an_instance_that_stopped_or_is_not_healthy_is_started_and_no_other(
    params: dict[str, Any], systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.running.remove("app@2.service")
    assert look(params).reasons == {"app@2.service": "it does not run"}
    monkeypatch.setattr(deployment, "ask", lambda url: (503, ""))
    assert look(params).reasons["app@1.service"] == "it is not healthy (503)"


def test_instances_are_replaced_one_after_another_and_sockets_stay(params: dict[str, Any], systemd: Systemd) -> None:
    assert not run(params, release="/releases/2").failed
    assert systemd.acts() == ["restart app@1.service", "restart app@2.service", "enable --now app.target"]
    assert os.readlink(params["current"]) == "/releases/2"


def test_an_instance_more_and_one_less(params: dict[str, Any], systemd: Systemd) -> None:
    assert not run(params, ports=[1, 3]).failed
    assert systemd.acts() == [
        "start app@3.socket",
        "restart app@3.service",
        "stop app@2.socket app@2.service",
        "enable --now app.target",
    ]


def test_a_failed_switch_brings_everything_back_and_leaves_the_rest_alone(
    params: dict[str, Any], systemd: Systemd
) -> None:
    link, environment = params["current"], Path(params["environment"]["path"])
    for path in (link, environment):
        os.utime(path, (1000, 1000), follow_symlinks=False)
    unit = {**params["files"][0], "path": str(environment.with_name("new.socket"))}
    systemd.sick = {"app@1.service"}
    ended = run(params, release="/releases/2", environment_text="A=2\n", files=[*params["files"], unit])
    assert ended.failed
    assert "answers 503" in ended.answer["msg"]
    assert os.readlink(link) == "/releases/1"
    assert environment.read_text() == "A=1\n"
    assert not Path(unit["path"]).exists()
    # Times, too: the second instance was not touched, and is not to be restarted by the next run.
    assert os.lstat(link).st_mtime == environment.stat().st_mtime == 1000
    assert not [call for call in systemd.calls if "app@2" in call]


def test_a_failed_switch_says_what_serves(
    params: dict[str, Any], systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([units.Unwell("no answer")])

    def once(url: str, unit: str, seconds: float, over: Callable[[str], bool]) -> None:
        for problem in answers:
            raise problem

    with monkeypatch.context() as patch:
        patch.setattr(deployment, "wait_healthy", once)
        assert run(params, release="/releases/2").answer["now"] == "The previous release 1 serves again."
    systemd.sick = {"app@1.service"}
    assert "is NOT healthy either" in run(params, release="/releases/2").answer["now"]


def release(folder: Path, made_for: str, program: str = "") -> str:
    """Make an installed release whose Python is a program of the host, `made_for` itself if none is named."""
    made = folder / "releases" / f"1-{made_for}"
    (made / "venv/bin").mkdir(parents=True)
    (made / f"venv/lib/{made_for}/site-packages").mkdir(parents=True)
    (made / "venv/bin/python").symlink_to(folder / "host" / (program or made_for))
    (made / "installed").touch()
    return str(made)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with Python 3.13, which `python3` leads to."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/python3.13").write_text("#!/bin/sh\n")
    (tmp_path / "host/python3.13").chmod(0o755)
    (tmp_path / "host/python3").symlink_to("python3.13")
    return tmp_path


def test_a_release_whose_python_is_gone_or_another_one_is_not_installed(host: Path) -> None:
    good, gone = release(host, "python3.13", "python3"), release(host, "python3.11")
    assert deployment.installed(good)
    assert not deployment.installed(gone)
    replaced = release(host, "python3.12", "python3")
    assert not deployment.installed(replaced)
    assert deployment.broken(host / "releases") == {
        "1-python3.11": f"its Python {host}/host/python3.11 is gone",
        "1-python3.12": "it was installed for python3.12, and python3.13 is in its place",
    }
    # One whose installation was interrupted is installed again anyway, and is none that once started.
    Path(gone, "installed").unlink()
    assert "1-python3.11" not in deployment.broken(host / "releases")
    assert deployment.broken(host / "nowhere") == {}


@pytest.mark.usefixtures("systemd")
def test_a_running_release_that_cannot_start_again_is_tried_and_replaced_one_by_one(
    params: dict[str, Any], host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = release(host, "python3.11")
    Path(params["current"]).unlink()
    Path(params["current"]).symlink_to(here)
    params["release"] = here
    seen = look(params)
    assert (seen.trial, seen.changes) == (True, True)
    assert set(seen.reasons.values()) == {f"its Python {host}/host/python3.11 is gone"}
    # Installed again under its name, it is newer than the processes that run.
    (host / "host/python3.11").symlink_to("/bin/true")
    assert look(params).reasons == {}
    monkeypatch.setattr(deployment, "started_at", lambda pid: os.stat(f"{here}/installed").st_mtime - 1)
    os.utime(params["current"], (1000, 1000), follow_symlinks=False)
    for file in (params["files"][0]["path"], params["environment"]["path"]):
        os.utime(file, (1000, 1000))
    seen = look(params)
    assert set(seen.reasons.values()) == {"it runs the release from before the last change"}
    assert not seen.trial


def test_verify_is_told_of_a_release_that_runs_and_cannot_start(
    params: dict[str, Any], systemd: Systemd, host: Path
) -> None:
    Path(params["current"]).unlink()
    Path(params["current"]).symlink_to(release(host, "python3.11"))
    module = Module({**params, "release": ""}, check_mode=True)
    told = deployment.shown(module, deployment.look(module))
    assert told["broken"] == {"1-python3.11": f"its Python {host}/host/python3.11 is gone"}
    assert (told["pending"], told["reasons"]) == (False, {})


def test_a_way_back_to_a_release_that_cannot_start_is_told(
    params: dict[str, Any], systemd: Systemd, host: Path
) -> None:
    Path(params["current"]).unlink()
    Path(params["current"]).symlink_to(release(host, "python3.11"))
    systemd.sick = {"app@1.service"}
    now = run(params, release=release(host, "python3.13")).answer["now"]
    assert "1-python3.11 was brought back, and is NOT healthy either" in now
    assert now.endswith(f"its Python {host}/host/python3.11 is gone.")


def test_a_first_installation_that_fails_leaves_nothing(params: dict[str, Any], systemd: Systemd) -> None:
    systemd.running.clear()
    systemd.enabled = False
    systemd.sick = {"app@1.service"}
    Path(params["current"]).unlink()
    Path(params["environment"]["path"]).unlink()
    ended = run(params)
    assert ended.answer["now"] == "Nothing ran before it, so it is stopped."
    assert not os.path.lexists(params["current"])
    assert not Path(params["environment"]["path"]).exists()
    assert systemd.running == set()


@pytest.mark.usefixtures("systemd")
def test_a_certificate_that_is_not_taken_over_stops_nothing(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "shown_certificate", lambda url: b"the old one")
    monkeypatch.setattr(deployment, "certificate_on_disk", lambda path: b"the new one")
    text = 'TLS_CERT_FILE="/host.crt"\n'
    Path(params["environment"]["path"]).write_text(text)
    ended = run(params, environment_text=text, timeout=0.1)
    assert ended.failed
    assert "continues with another certificate than /host.crt" in ended.answer["msg"]
    assert ended.answer["now"] == "No instance was restarted: running ones continue."


@pytest.fixture
def legacy(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a unit file of the service from before there were instances."""
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/etc/systemd/system/app.service" or real(path))


@pytest.mark.usefixtures("legacy")
def test_the_service_from_before_gives_its_port_to_the_socket(params: dict[str, Any], systemd: Systemd) -> None:
    systemd.running = {"app.service"}
    # The old process holds the port for another moment.
    systemd.busy = 3
    assert not run(params, replaces="app.service", ports=[1]).failed
    assert systemd.acts() == [
        "stop --no-block app.service",
        *["start app@1.socket"] * 4,
        "restart app@1.service",
        "disable --now app.service",
        "enable --now app.target",
    ]


@pytest.mark.usefixtures("legacy")
def test_the_service_from_before_comes_back_when_instances_fail(params: dict[str, Any], systemd: Systemd) -> None:
    systemd.running = {"app.service"}
    systemd.sick = {"app@1.service"}
    assert run(params, replaces="app.service", ports=[1], release="/releases/2").failed
    assert systemd.running == {"app.service"}
    assert "disable --now app.service" not in systemd.calls


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:4]))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a server that answers."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_healthy_is_a_200_and_nothing_else(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "show", lambda unit: {"ActiveState": "active"})
    # However long the server takes on a machine that is short of time.
    ask = units.ask
    monkeypatch.setattr(units, "ask", lambda url, _timeout: ask(url, 60))
    units.wait_healthy(f"{server}/200", "app@1.service", 1, lambda state: False)
    for status in ("204", "302", "503"):
        with pytest.raises(units.Unwell, match=f"answers {status} after 0 s"):
            units.wait_healthy(f"{server}/{status}", "app@1.service", 0.2, lambda state: False)
    nobody = f"http://127.0.0.1:{free_port()}/"
    with pytest.raises(units.Unwell, match=r"does not answer \(ConnectionRefusedError"):
        units.wait_healthy(nobody, "app@1.service", 0.2, lambda state: False)


def test_what_is_over_is_not_waited_for(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "show", lambda unit: {"ActiveState": "failed"})
    began = time.monotonic()
    with pytest.raises(units.Unwell, match=r"app@1\.service is failed"):
        units.wait_healthy(f"{server}/503", "app@1.service", 120, lambda state: state == "failed")
    assert time.monotonic() - began < 60


def test_a_process_has_a_start_and_a_confinement() -> None:
    assert abs(units.started_at(os.getpid()) - time.time()) < 3600
    assert units.started_at(os.getpid()) > units.started_at(1) - 1
    assert " NoNewPrivs:" in units.confinement(os.getpid())
    assert units.confinement(2**22 + 1) == "none"


def attempt(monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: Any) -> Ended:
    """Run app_trial on files in a folder, and return how it ended."""
    own = {"owner": "root", "group": "root", "mode": "0644"}
    params = {
        "unit": "app-candidate@.service",
        "socket": True,
        "files": [{"path": str(folder / "unit"), "content": "unit", **own}],
        "environment": {"path": str(folder / "env"), **own},
        "environment_text": "A=1",
        "health_path": "/",
        "timeout": 1.0,
        "subject": "app 2",
        "otherwise": "app 1 continues.",
        **changes,
    }
    check = bool(params.pop("check", False))
    monkeypatch.setattr(trial, "AnsibleModule", lambda **_: Module(params, check))
    monkeypatch.setattr(trial, "free_port", lambda: 9)
    with pytest.raises(Ended) as ended:
        trial.main()
    return ended.value


def test_a_trial_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, systemd: Systemd) -> None:
    assert not attempt(monkeypatch, tmp_path).failed
    assert systemd.acts() == [
        "start app-candidate@9.socket",
        "start app-candidate@9.service",
        "stop app-candidate@9.socket app-candidate@9.service",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_fails_says_why_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, systemd: Systemd
) -> None:
    systemd.sick = {"app-candidate@9.service"}
    ended = attempt(monkeypatch, tmp_path)
    assert ended.failed
    for words in ("app 2 did not become healthy", "answers 503", "app 1 continues.", "its last words"):
        assert words in ended.answer["msg"]
    assert list(tmp_path.iterdir()) == []
    assert "app-candidate@9.service" not in systemd.running


def test_a_job_is_started_under_its_own_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, systemd: Systemd) -> None:
    systemd.sick = {"app-check.service"}
    # Nobody asks a job for its health.
    assert not attempt(monkeypatch, tmp_path, unit="app-check.service", socket=False).failed
    assert systemd.acts() == ["start app-check.service", "stop app-check.service"]


def test_check_mode_tries_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, systemd: Systemd) -> None:
    assert not attempt(monkeypatch, tmp_path, check=True).failed
    assert systemd.calls == []


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[str]:
    """The URL of a server with a certificate that names somebody else, in host.crt of the folder."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(tmp_path / "host.key"), "-out", str(tmp_path / "host.crt"), "-subj", "/CN=elsewhere"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "host.crt", tmp_path / "host.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_an_instance_over_tls_is_known_by_the_certificate_on_the_disk(tls_server: str, tmp_path: Path) -> None:
    assert units.ask(f"{tls_server}/200", 60)[0] == 200
    assert units.ask(f"{tls_server}/200".replace("https", "http"), 60)[0] == 0
    shown = units.shown_certificate(tls_server, 60)
    assert shown == units.certificate_on_disk(str(tmp_path / "host.crt")) != b""
    # What is between it and its authority follows it in the file.
    chain = tmp_path / "chain.crt"
    chain.write_text("text\n" + (tmp_path / "host.crt").read_text() * 2)
    assert units.certificate_on_disk(str(chain)) == shown
    assert units.certificate_on_disk(str(tmp_path / "host.key")) == b""
    assert units.certificate_on_disk(str(tmp_path / "missing")) == b""
    assert units.shown_certificate(f"https://127.0.0.1:{free_port()}", 60) == b""


@pytest.mark.parametrize(
    ("environment", "path"),
    [
        ('A="1"\nTLS_CERT_FILE="/etc/ssl/host.crt"\nB="2"\n', "/etc/ssl/host.crt"),
        ('TLS_CERT_FILE=""\n', ""),
        ('X_TLS_CERT_FILE="/etc/ssl/host.crt"\n', ""),
        ("", ""),
    ],
)
def test_whether_an_instance_serves_tls_is_in_its_environment(environment: str, path: str) -> None:
    assert units.certificate_file(environment) == path


def test_a_host_without_the_environment_file_is_asked_all_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "app.env"
    given = {"address": "127.0.0.1", "ports": [], "name": "app", "environment": str(file), "login": "", "socket": ""}

    def asked() -> Any:
        words: list[str | Path] = [sys.executable, PROJECT / "roles/app/files/ask.py", json.dumps(given)]
        return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    assert asked() == {"development": [], "logins": {}, "sockets": {}}
    file.write_text('AUTH_DEVELOPMENT_USERS="true"\n')
    assert asked()["development"] == [str(file)]
