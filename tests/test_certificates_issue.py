"""What the role certificates issues to hosts with the names that Ansible accepts, on this machine."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from conftest import PROJECT

LONG = "redis-cache-primary-node-of-the-trading-desk-in-frankfurt-rack-17.example.com"
# Names, and their addresses in the inventory.
HOSTS = {
    "plain": "10.0.0.1",
    LONG: "10.0.0.2",
    "203.0.113.5": "10.0.0.3",
    "Redis_One": "10.0.0.4",
    "2001:DB8::5": "2001:db8:0::6",
}


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The authority's folder after two runs, and what they printed."""
    folder = tmp_path_factory.mktemp("issued")
    hosts = {name: {"private_address": address} for name, address in HOSTS.items()}
    common = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "certificates_path": f"{folder}/host",
        "certificates_group": "root",
        "certificates_ca_dir": f"{folder}/pki",
    }
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": common}}))
    tasks = [
        {"name": part, "ansible.builtin.include_role": {"name": "certificates", "tasks_from": part, "public": True}}
        for part in ("authority", "issue")
    ]
    (folder / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    program = Path(sys.executable).parent / "ansible-playbook"
    printed = []
    for _ in range(2):
        done = subprocess.run(
            [program, "-i", folder / "hosts.yml", folder / "play.yml"],
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        printed.append(done.stdout)
    return folder / "pki", printed


@pytest.mark.parametrize("name", HOSTS)
def test_is_for_its_name_and_its_addresses(issued: tuple[Path, list[str]], name: str) -> None:
    certificate = x509.load_pem_x509_certificate((issued[0] / "hosts" / f"{name}.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = set(names.get_values_for_type(x509.IPAddress))
    assert {ipaddress.ip_address(HOSTS[name]), ipaddress.ip_address("127.0.0.1")} <= addresses
    try:
        assert ipaddress.ip_address(name) in addresses
    except ValueError:
        assert name.lower() in names.get_values_for_type(x509.DNSName)


def test_a_second_run_issues_none_again(issued: tuple[Path, list[str]]) -> None:
    assert "changed=0" in issued[1][1]
    assert not [line for line in issued[1][1].splitlines() if "changed=" in line and "changed=0" not in line]
