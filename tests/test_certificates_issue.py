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


class Controller:
    """A controller's folder, and hosts, which are folders of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *names: str, check: bool = False) -> str:
        """Run what the role does on the controller for hosts of these names, and return the output."""
        hosts = {
            name: {"private_address": f"10.0.0.{number}", "certificates_path": f"{self.folder}/host{number}"}
            for number, name in enumerate(names, 1)
        }
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "certificates_ca_dir": f"{self.folder}/pki",
            "ansible_become": False,
        }
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": common}}))
        # Those of the role's own `become` need no sudo here.
        tasks = [
            {"name": part, "ansible.builtin.include_role": {"name": "certificates", "tasks_from": part, "public": True}}
            for part in ("preflight", "authority", "issue")
        ]
        (self.folder / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        done = subprocess.run(
            [
                Path(sys.executable).parent / "ansible-playbook",
                *(["--check"] if check else []),
                "-i",
                self.folder / "hosts.yml",
                self.folder / "play.yml",
            ],
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def install(self, name: str, number: int, key_of: str = "") -> None:
        """Put what was issued to a name on a host; with `key_of`, its certificate with the key of another one."""
        there, hosts = self.folder / f"host{number}", self.folder / "pki/hosts"
        there.mkdir(exist_ok=True)
        (there / "ca.crt").write_bytes((self.folder / "pki/ca.crt").read_bytes())
        (there / "host.crt").write_bytes((hosts / f"{name}.crt").read_bytes())
        (there / "host.key").write_bytes((hosts / f"{key_of or name}.key").read_bytes())

    def names(self, name: str) -> set[str]:
        """Return the names in what was issued to a name."""
        certificate = x509.load_pem_x509_certificate((self.folder / "pki/hosts" / f"{name}.crt").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return set(names.get_values_for_type(x509.DNSName))


def unchanged(output: str) -> bool:
    """Tell whether a run changed nothing."""
    return all("changed=0" in line for line in output.splitlines() if "changed=" in line)


def test_a_renamed_host_is_known_by_both_names_until_its_renewal(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    controller.run("app1", "other")
    controller.install("app1", 1)
    controller.install("other", 2)
    hosts = tmp_path / "pki/hosts"
    before = {path.name: path.read_bytes() for path in hosts.iterdir()}
    controller.run("app9", "other", check=True)
    assert {path.name: path.read_bytes() for path in hosts.iterdir()} == before
    assert "app9 was app1 until now" in controller.run("app9", "other")
    assert controller.names("app9") == {"app9", "app1", "localhost"}
    # Another host that is given the old name gets a key that this one has never had.
    assert not list(hosts.glob("app1.*"))
    assert (hosts / "app9.key").read_bytes() != before["app1.key"]
    assert (hosts / "other.crt").read_bytes() == before["other.crt"]
    controller.install("app9", 1)
    assert unchanged(controller.run("app9", "other"))
    # And back again, with what it was in between.
    controller.run("app1", "other")
    assert controller.names("app1") == {"app1", "app9", "localhost"}
    # As at a renewal, which forgets it.
    controller.install("app1", 1)
    (hosts / "app1.former").unlink()
    controller.run("app1", "other")
    assert controller.names("app1") == {"app1", "localhost"}


def test_who_shows_another_one_s_certificate_does_not_get_its_name(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    controller.run("app1", "redis1")
    # A host that was taken over has seen the certificate of redis1, as everybody may, and not its key.
    controller.install("redis1", 1, key_of="app1")
    controller.install("redis1", 2)
    output = controller.run("app9", "redis1")
    assert "until now" not in output
    assert controller.names("app9") == {"app9", "localhost"}
    assert (tmp_path / "pki/hosts/redis1.key").exists()


def test_a_copy_of_a_host_does_not_get_the_name_of_that(tmp_path: Path) -> None:
    controller = Controller(tmp_path)
    controller.run("app1")
    controller.install("app1", 1)
    controller.install("app1", 2)
    before = (tmp_path / "pki/hosts/app1.key").read_bytes()
    controller.run("app1", "app2")
    assert (tmp_path / "pki/hosts/app1.key").read_bytes() == before
    assert controller.names("app2") == {"app2", "localhost"}
