"""Nobody notices a redeployment, a release that is no good, or a host that dies: 200 requests a second are counted."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import ExitStack

import pytest
from backends import all_up
from traffic import Traffic, ask, listen, reads, writes

from conftest import ENGINE, PREFIX, changed, connect, playbook

# A setting that each instance is restarted for.
NEXT = {"app_memory_max": "500M"}


@pytest.fixture
def traffic(admin_token: str) -> Traffic:
    """Three reads for each write, of a price that is there."""
    write = writes(admin_token)
    assert ask("PUT", write.path, {"price": "1"}, admin_token)[0] == 200
    return Traffic([reads(), reads(), reads(), write])


def test_a_host_that_dies_fails_no_read_and_comes_back_by_itself(traffic: Traffic) -> None:
    with traffic:
        time.sleep(1)
        subprocess.run([ENGINE, "kill", f"{PREFIX}app1"], check=True, capture_output=True)
        time.sleep(5)
        subprocess.run([ENGINE, "start", f"{PREFIX}app1"], check=True, capture_output=True)
        time.sleep(1)
    print(traffic.count, traffic.answers, traffic.slowest, traffic.problems)
    assert traffic.count > 300
    assert [problem for problem in traffic.problems if problem.startswith("GET")] == []
    # What was on its way to the host just then and might be done twice: at most one of each client's.
    assert len(traffic.problems) <= 20
    assert all_up()


@pytest.mark.usefixtures("traffic")
def test_a_host_whose_instances_refuse_at_once_fails_no_read() -> None:
    app1 = connect("app1")
    # One after another: each has to find out by itself who is gone.
    alone = Traffic([reads()], rate=20, clients=1)
    with ExitStack() as stack:
        # They keep the other host's instances busy: the balancer sends all else to those that have just gone.
        for _ in range(8):
            stack.enter_context(listen("price:TRAFFIC"))
        with alone:
            time.sleep(1)
            app1.check_output("systemctl stop quantdesk.target")
            time.sleep(3)
            app1.check_output("systemctl start quantdesk.target")
            time.sleep(1)
    print(alone.count, alone.answers, alone.slowest, alone.problems)
    assert alone.problems == []
    assert alone.count > 60
    assert all_up()


def test_a_redeployment_fails_no_request(traffic: Traffic) -> None:
    with traffic:
        began = time.monotonic()
        result = playbook("app.yml", "--extra-vars", json.dumps(NEXT))
        seconds = time.monotonic() - began
    print(f"{traffic.count} requests in {seconds:.0f} s, the slowest took {traffic.slowest:.2f} s; {traffic.answers}")
    assert result.returncode == 0, result.stdout
    assert min(changed(result.stdout)["app1"], changed(result.stdout)["app2"]) >= 1
    # One waits while its instance restarts: at most for load_balancer_server_timeout, or the balancer answers 504.
    # How long that is in seconds depends on what else this machine does.
    assert traffic.problems == []
    assert set(traffic.answers) == {"200"}
    assert traffic.count > 300


def test_a_release_that_is_no_good_stops_at_the_first_host_and_fails_no_request(traffic: Traffic) -> None:
    # Nothing is tried beforehand, so that the switch itself meets what is wrong. What a trial finds never gets so far;
    # that is shown in the scenario `standalone`.
    untried = {"app_candidate": False, "app_check_command": "", "app_migrate_command": ""}
    with traffic:
        wrong = {**NEXT, **untried, "app_command": "quantdesk --no-such-option", "app_health_timeout": 15}
        result = playbook("app.yml", "--extra-vars", json.dumps(wrong))
    assert result.returncode != 0
    assert "serves again" in result.stdout
    failed = result.stdout.rsplit("PLAY RECAP", 1)[1]
    assert [line.split()[0] for line in failed.splitlines() if "failed=1" in line] == ["app1"]
    assert traffic.problems == []
    left = connect("app1").check_output("ls /run/systemd/system /run/*.env 2>/dev/null; ls /etc/quantdesk")
    assert not [name for name in left.split() if "candidate" in name or "trial" in name or "previous" in name]
