"""A controller with another authority is refused; what one has left half-changed, the right one puts right."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from testinfra.host import Host

from conftest import LAB, RedisCli, eventually, playbook, published

FOLDER = "/etc/ssl/quantdesk"
# An authority that is younger than the lab's, and a certificate by it for this host, in place of what is there.
REPLACE = f"""
set -eu
cd $(mktemp -d)
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj '/CN=Somebody else' \
  -keyout ca.key -out ca.crt
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=host -keyout host.key -out host.csr
echo 'subjectAltName=DNS:localhost,IP:127.0.0.1' >names
openssl x509 -req -in host.csr -CA ca.crt -CAkey ca.key -days 9 -extfile names -out host.crt
for name in ca.crt host.crt host.key; do [ ! -e {FOLDER}/$name ] || cat $name >{FOLDER}/$name; done
"""


def sums(*hosts: Host) -> list[str]:
    """Return what identifies the files of each host."""
    return [host.check_output(f"sh -c 'sha256sum {FOLDER}/*'") for host in hosts]


def test_a_controller_without_the_authority_is_refused_and_makes_none(redis1: Host, app1: Host, tmp_path: Path) -> None:
    before = sums(redis1, app1)
    result = playbook("site.yml", "-e", f"certificates_ca_dir={tmp_path}/pki")
    assert result.returncode != 0
    problems = " ".join(result.stdout.split())
    assert "Nothing has been changed on any host" in problems
    assert "authority that the host trusts: found 'QuantDesk private CA, SHA-256 " in problems
    assert "Copy that folder from the controller that made the authority" in problems
    assert "[app1, redis1]" in problems or "[redis1, app1]" in problems
    assert not (tmp_path / "pki").exists()
    assert sums(redis1, app1) == before


def test_hosts_with_the_files_of_another_authority_are_put_right(redis1: Host, app1: Host, app_cli: RedisCli) -> None:
    right = sums(redis1, app1)
    redis1.check_output("redis-admin SET qd:lab:kept 1")
    for host, unit in ((redis1, "redis-server"), (app1, "quantdesk@3002")):
        done = host.run(f"bash <<'END'\n{REPLACE}END")
        assert done.rc == 0, done.stderr
        # With the files that it has read, the one trusts nobody and the other one is trusted by nobody.
        host.check_output("systemctl restart %s", unit)
    eventually(lambda: redis1.run("redis-admin PING").rc, lambda code: code == 0)
    pid = redis1.check_output("systemctl show redis-server --property MainPID --value")
    result = playbook("redis.yml", "playbooks/app.yml")
    assert result.returncode == 0, result.stdout
    assert sums(redis1, app1) == right
    assert app1.check_output(f"cat {FOLDER}/ca.crt") == (LAB / "pki/ca.crt").read_text().strip()
    assert app_cli("GET qd:lab:kept") == ["1"]
    assert redis1.check_output("redis-admin GET qd:lab:kept") == "1"
    assert redis1.check_output("systemctl show redis-server --property MainPID --value") == pid
    with urllib.request.urlopen(f"http://127.0.0.1:{published(3002)}/health", timeout=10) as answer:
        assert answer.status == 200
