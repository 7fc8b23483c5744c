"""Both hosts are lost with their volumes; rebuild.yml brings them back from the backup, and says how long it took."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from backups import databackup, fill, live
from testinfra.host import Host

from conftest import ENGINE, LAB, PREFIX, connect, eventually, playbook


def destroy(*names: str) -> None:
    """Remove hosts of the lab with all that they had."""
    subprocess.run([ENGINE, "rm", "--force", "--volumes", *(PREFIX + name for name in names)], check=True)


def create() -> None:
    """Make the lab's missing hosts, bare."""
    done = playbook("../molecule/default/create.yml")
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def rebuilt(redis1: Host, app1: Host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Fill, back up, write on, lose both hosts, and rebuild them; return what each step had."""
    fill(redis1)
    before: dict[str, Any] = {"redis": databackup(redis1, "backup redis")}
    for name in ("quantdesk", "wheels"):
        before[name] = databackup(app1, f"backup {name}")
    assert live(redis1)["digest"] == before["redis"]["digest"]
    redis1.check_output("redis-admin SET qd:lab:after-the-backup 1")
    destroy("redis1", "app1")
    lost = time.time()
    create()
    # This controller has nothing of the application's but its source: neither wheels nor an index to get them from.
    kept = tmp_path_factory.mktemp("build")
    shutil.move(LAB / "build", kept)
    # The drill shows it to people.
    report = os.environ.get("RECOVERY_REPORT") or tmp_path_factory.mktemp("report")
    try:
        done = playbook(
            "rebuild.yml",
            *("-e", "rebuild_confirm=lab", "-e", f"rebuild_lost_at={lost}", "-e", f"rebuild_report={report}"),
        )
    finally:
        shutil.rmtree(LAB / "build", ignore_errors=True)
        shutil.move(kept / "build", LAB / "build")
    assert done.returncode == 0, done.stdout
    return {"before": before, "lost": lost, "report": report, "output": done.stdout}


def test_the_data_are_those_of_the_backup(rebuilt: dict[str, Any], redis1: Host, app1: Host) -> None:
    # verify.yml, with which a rebuild ends, has asked the application, which counts requests in Redis for a minute.
    wanted = {"keys": rebuilt["before"]["redis"]["items"], "digest": rebuilt["before"]["redis"]["digest"]}
    assert eventually(lambda: live(redis1), wanted.__eq__, 150) == wanted
    assert redis1.check_output("redis-admin EXISTS qd:lab:after-the-backup") == "0"
    assert redis1.check_output("redis-admin TTL qd:lab:soon:1") != "-1"
    assert databackup(app1, "backup quantdesk")["digest"] == rebuilt["before"]["quantdesk"]["digest"]


def test_the_report_says_what_was_lost_and_how_long_it_took(rebuilt: dict[str, Any]) -> None:
    folder = Path(rebuilt["report"])
    told = json.loads((folder / "rebuild.json").read_text())
    assert told["ok"] is True
    for item in told["restored"]:
        assert item["found"] == item["expected"] == item["in_backup"]
    assert {item["source"] for item in told["restored"]} == {"redis", "quantdesk"}
    backup = rebuilt["before"]["redis"]["time"]
    assert told["rpo_seconds"] >= 0
    assert backup[:19] in json.dumps(told)
    assert sum(phase["seconds"] for phase in told["phases"]) == pytest.approx(told["rto_seconds"], abs=1)
    assert "Rebuilt in" in (folder / "rebuild.txt").read_text()
    assert "<svg" in (folder / "rebuild.html").read_text()
    assert "Rebuilt in" in rebuilt["output"]


def test_it_needed_no_package_index_and_the_timers_run_again(rebuilt: dict[str, Any], redis1: Host) -> None:
    assert "Fetch the wheels to this controller" in rebuilt["output"]
    for host, name in ((redis1, "redis"), (connect("app1"), "wheels")):
        assert host.service(f"databackup@{name}.timer").is_running
        assert "backup" in host.check_output(f"databackup status {name} 2>&1")


def test_it_refuses_hosts_with_data_and_an_order_without_a_name(rebuilt: dict[str, Any], redis1: Host) -> None:
    before = live(redis1)
    result = playbook("rebuild.yml", "-e", "rebuild_confirm=production")
    assert result.returncode != 0
    problems = " ".join(result.stdout.split())
    assert "rebuild_confirm: found 'production'" in problems
    assert "data on the host: found '/var/lib/redis" in problems
    assert live(redis1) == before
