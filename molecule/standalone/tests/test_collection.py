"""A foreign project with the collection and an inventory of its own, which makes a second Redis on redis1."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from testinfra.host import Host

from conftest import LAB, PROJECT, changed

PASSWORDS = {"redis_password": "foreign-default-0123", "redis_admin_password": "foreign-admin-0123"}
# Plaintext on loopback: no certificate, no packet filter, and nothing of inventory/base.
INPUTS = {
    **PASSWORDS,
    "redis_name": "foreign",
    "redis_port": 6399,
    "redis_tls_port": 0,
    "redis_bind": ["127.0.0.1"],
    "redis_clients": ["127.0.0.1"],
    "redis_maxmemory": "32mb",
    "private_address": "127.0.0.1",
}
PLAYBOOK = """
- name: A cache of our own
  hosts: cache
  become: true
  gather_facts: false
  roles:
    - role: quantdesk.redis.redis
"""
CLEAN = """
systemctl disable --now redis-server@foreign
rm -rf /etc/redis-foreign /etc/redis-admin-foreign.env /var/log/redis-foreign /etc/logrotate.d/redis-server-foreign
rm -rf /var/lib/redis-foreign /usr/local/sbin/redis-admin-foreign /etc/systemd/system/redis-server@foreign.service*
rm -rf /etc/systemd/system/redisforeign.slice
systemctl daemon-reload
userdel redis-foreign
"""


def ansible(folder: Path, program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of Ansible in the foreign project, without anything that this checkout has set."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return subprocess.run(
        [PROJECT / ".venv/bin" / program, *words],
        cwd=folder,
        env={**own, "ANSIBLE_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project."""
    folder = tmp_path_factory.mktemp("foreign project")
    (folder / "ansible.cfg").write_text(
        "[defaults]\ncollections_path = collections\ninventory = hosts.json\n"
        f"[ssh_connection]\nssh_args = -F '{LAB}/ssh/config'\n"
    )
    built = folder / "built"
    done = ansible(PROJECT, "ansible-galaxy", "collection", "build", "--output-path", built)
    assert done.returncode == 0, done.stdout + done.stderr
    done = ansible(
        folder, "ansible-galaxy", "collection", "install", "--offline", "-p", "collections", *built.iterdir()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "hosts.json").write_text(json.dumps({"cache": {"hosts": {"redis1": INPUTS}}}))
    (folder / "cache.yml").write_text(PLAYBOOK)
    return folder


def test_a_foreign_playbook_makes_a_redis_with_the_role_and_changes_nothing_again(project: Path, redis1: Host) -> None:
    try:
        first = ansible(project, "ansible-playbook", "cache.yml")
        assert first.returncode == 0, first.stdout + first.stderr
        print(first.stdout[first.stdout.index("PLAY RECAP") :])
        ask = f"REDISCLI_AUTH={PASSWORDS['redis_admin_password']} redis-cli -p 6399 --user admin"
        assert redis1.check_output(f"{ask} CONFIG GET maxmemory").split() == ["maxmemory", str(32 * 2**20)]
        assert "NOAUTH" in redis1.run("redis-cli -p 6399 PING").stdout
        again = ansible(project, "ansible-playbook", "cache.yml")
        assert again.returncode == 0, again.stdout + again.stderr
        assert changed(again.stdout) == {"redis1": 0}
    finally:
        redis1.run("sh -c %s", CLEAN)


def test_a_bad_input_of_a_foreign_inventory_is_refused_before_anything_changes(project: Path) -> None:
    done = ansible(project, "ansible-playbook", "cache.yml", "-e", "redis_maxmemory=much")
    assert done.returncode != 0
    assert "redis_maxmemory: found 'much'; expected a size" in done.stdout
    assert changed(done.stdout) == {"redis1": 0}
