"""What the role certificates issues to hosts with the names that Ansible accepts, on this machine."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from conftest import ansible

LONG = "redis-cache-primary-node-of-the-trading-desk-in-frankfurt-rack-17.example.com"
# Names, and their addresses in the inventory.
HOSTS = {
    "plain": "10.0.0.1",
    LONG: "10.0.0.2",
    "203.0.113.5": "10.0.0.3",
    "Redis_One": "10.0.0.4",
    "2001:DB8::5": "2001:db8:0::6",
}


def play(
    folder: Path, hosts: dict[str, Any], common: dict[str, Any], tasks: list[dict[str, Any]], *options: str
) -> str:
    """Run tasks for hosts, which are folders of this machine, and return the output."""
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": common}}))
    (folder / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "all:!localhost", "gather_facts": False, "tasks": tasks}])
    )
    code, output = ansible("ansible-playbook", *options, "-i", folder / "hosts.yml", folder / "play.yml")
    assert code == 0, output
    return output


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The authority's folder after two runs, and what they printed."""
    folder = tmp_path_factory.mktemp("issued")
    hosts = {name: {"private_address": address} for name, address in HOSTS.items()}
    common = {
        "certificates_path": f"{folder}/host",
        "certificates_group": "root",
        "certificates_ca_dir": f"{folder}/pki",
    }
    tasks = [
        {
            "name": part,
            "ansible.builtin.include_role": {
                "name": "quantdesk.redis.certificates",
                "tasks_from": part,
                "public": True,
            },
        }
        for part in ("authority", "issue")
    ]
    printed = [play(folder, hosts, common, tasks) for _ in range(2)]
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

    def run(self, *names: str, check: bool = False, **inputs: object) -> str:
        """Run the role for hosts of these names, and return the output."""
        hosts = {
            name: {"private_address": f"10.0.0.{number}", "certificates_path": f"{self.folder}/host{number}"}
            for number, name in enumerate(names, 1)
        }
        common = {
            "ansible_become": False,
            "certificates_ca_dir": f"{self.folder}/pki",
            "certificates_group": "root",
            **inputs,
        }
        # As the playbooks do: the preflight first, and the role after that.
        tasks = [
            {
                "name": "Ask",
                "ansible.builtin.include_role": {"name": "quantdesk.redis.certificates", "tasks_from": "preflight"},
            },
            {"name": "Remember", "ansible.builtin.set_fact": {"preflight_passed": True}},
            {"name": "Issue and install", "ansible.builtin.import_role": {"name": "quantdesk.redis.certificates"}},
        ]
        return play(self.folder, hosts, common, tasks, *(["--check"] if check else []))

    def install(self, number: int, certificate: str, key: str) -> None:
        """Put what was issued to some names on a host."""
        there, hosts = self.folder / f"host{number}", self.folder / "pki/hosts"
        (there / "host.crt").write_bytes((hosts / f"{certificate}.crt").read_bytes())
        (there / "host.key").write_bytes((hosts / f"{key}.key").read_bytes())

    def names(self, name: str) -> set[str]:
        """Return the names in what was issued to a name."""
        certificate = x509.load_pem_x509_certificate((self.folder / "pki/hosts" / f"{name}.crt").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return set(names.get_values_for_type(x509.DNSName))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the role gives its files to root")
def test_a_renamed_host_is_known_by_both_names_until_its_renewal(tmp_path: Path) -> None:
    controller, hosts = Controller(tmp_path), tmp_path / "pki/hosts"
    controller.run("app1", "redis1", "evil", "db1", "gone")
    # One that was taken over has seen the certificate of another one, as everybody may, and not its key; that other one
    # has left the inventory. And one is a copy of a host that is still there.
    controller.install(3, certificate="gone", key="evil")
    controller.install(4, certificate="redis1", key="redis1")
    before = {path.name: path.read_bytes() for path in hosts.iterdir()}
    renamed = ("app9", "redis1", "evil2", "copy")
    controller.run(*renamed, check=True)
    assert {path.name: path.read_bytes() for path in hosts.iterdir()} == before
    output = controller.run(*renamed)
    assert "app9 was app1 until now" in output
    assert output.count("until now") == 1
    assert controller.names("app9") == {"app9", "app1", "localhost"}
    assert controller.names("evil2") == {"evil2", "localhost"}
    assert controller.names("copy") == {"copy", "localhost"}
    # Another host that is given the old name gets a key that this one has never had.
    assert not list(hosts.glob("app1.*"))
    assert (hosts / "app9.key").read_bytes() != before["app1.key"]
    for untouched in ("redis1.crt", "redis1.key", "gone.crt", "gone.key"):
        assert (hosts / untouched).read_bytes() == before[untouched]
    recap = [line for line in controller.run(*renamed).splitlines() if "changed=" in line]
    assert len(recap) == 4
    assert all("changed=0" in line for line in recap), recap
    # And back again, with what it was in between; until the renewal, which is due at once here.
    controller.run("app1", *renamed[1:])
    assert controller.names("app1") == {"app1", "app9", "localhost"}
    controller.run("app1", *renamed[1:], certificates_days=500, certificates_renew_days=450)
    assert controller.names("app1") == {"app1", "localhost"}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the role gives its files to root")
def test_check_mode_does_not_fail_without_an_authority_or_on_a_bare_host(tmp_path: Path) -> None:
    controller, made = Controller(tmp_path), (tmp_path / "pki", tmp_path / "host1", tmp_path / "host2")
    assert "changed=" in controller.run("app1", check=True)
    assert not any(path.exists() for path in made)
    controller.run("app1")
    assert "changed=" in controller.run("app1", "redis1", check=True)
    assert [path.exists() for path in made] == [True, True, False]
    assert not list((tmp_path / "pki/hosts").glob("redis1.*"))
