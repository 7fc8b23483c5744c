"""The filters of the role redis, and the search for secrets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from conftest import PROJECT, ansible, ansible_plays, load

readme = load("docs/role_readme.py")
redis = load("plugins/filter/redis.py")


def test_a_previous_password_goes_to_its_user_alone() -> None:
    users = [{"name": "a", "password": "x"}, {"name": "b", "password": "y"}]
    assert redis.with_previous(users, {"b": "old"}) == [
        {"name": "a", "password": "x"},
        {"name": "b", "password": "y", "previous_password": "old"},
    ]
    assert "previous_password" not in users[1]


def test_a_previous_hash_goes_to_its_user_beside_those_it_has() -> None:
    users = [{"name": "a", "password": "x"}, {"name": "b", "password_hashes": ["1"]}]
    assert redis.with_previous(users, {}, {"b": ["2"], "c": ["3"]}) == [
        {"name": "a", "password": "x"},
        {"name": "b", "password_hashes": ["1", "2"]},
    ]
    assert users[1] == {"name": "b", "password_hashes": ["1"]}


def test_a_user_with_a_hash_alone_shares_no_password() -> None:
    users = [{"name": "a", "password": "x"}, {"name": "b", "password_hashes": ["x"]}]
    assert redis.sharing_passwords(users) == []


def test_an_instance_has_its_own_ports_or_the_given_ones() -> None:
    instances = [{}, {"port": 6379}, {"tls_port": "6381"}, {"port": "0", "tls_port": 0}]
    assert redis.ports(instances, 0, 6380) == [6380, 6379, 6380, "6381"]
    assert redis.ports([{}], "6379", "0") == ["6379"]


def test_what_is_no_input_of_an_instance_is_named() -> None:
    instances = [{"name": "cache", "maxmem": 1, "upgrade": True, "settings": {}}, {"tls_port": 1, "redis_port": 1}]
    assert redis.unknown_inputs(instances) == [
        "maxmem (in cache)",
        "upgrade (in cache; redis_upgrade is for the whole host)",
        "redis_port (in the instance without a name)",
    ]


def test_the_playbooks_pass_every_input_of_an_instance() -> None:
    tasks = yaml.safe_load((PROJECT / "playbooks/tasks/redis_instance.yml").read_text())
    names = {f"redis_{name}" for name in redis.instance_inputs()}
    assert tasks[0]["vars"] == {name: f"{{{{ lookup('quantdesk.redis.redis_instance', '{name}') }}}}" for name in names}
    spec = readme.read_spec(redis.SPEC.parents[1])["options"]
    assert set(spec) > redis.HOST_WIDE


def test_users_who_share_a_password_are_named() -> None:
    users = [{"name": name, "password": word} for name, word in (("a", "x"), ("b", "y"), ("c", "x"))]
    assert redis.sharing_passwords(users) == ["a", "c"]
    assert redis.sharing_passwords(users[:2]) == []


def test_a_port_of_another_instance_is_named_with_its_file() -> None:
    assert redis.port_clashes([0, 6380], {"6380": "/etc/redis/redis.conf"}) == ["6380 (/etc/redis/redis.conf)"]
    assert redis.port_clashes(["6381"], {"6380": "/etc/redis/redis.conf"}) == []


def test_an_instance_then_the_inventory_then_the_role_says_what_an_input_is(tmp_path: Path) -> None:
    names = ["tls_port", "maxmemory", "maxmemory_policy", "start_timeout", "tcp_keepalive"]
    (tmp_path / "shown.yml").write_text(
        yaml.safe_dump(
            [
                {
                    "ansible.builtin.debug": {"msg": " ".join(f"{{{{ redis_{name} }}}}" for name in names) + " end"},
                    "vars": {
                        f"redis_{name}": f"{{{{ lookup('quantdesk.redis.redis_instance', 'redis_{name}') }}}}"
                        for name in names
                    },
                }
            ]
        )
    )
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        yaml.safe_dump(
            {
                "all": {
                    "hosts": {"localhost": None},
                    "vars": {
                        "redis_maxmemory": "{{ 16 * 4 }}mb",
                        "redis_maxmemory_policy": "noeviction",
                        # Of another input, which the instance may have otherwise.
                        "redis_tcp_keepalive": "{{ redis_tls_port }}",
                        "redis_instances": [
                            {"maxmemory": "4gb", "tls_port": 7000},
                            {"maxmemory_policy": "{{ 'lru' }}"},
                        ],
                    },
                }
            }
        )
    )
    play = {
        "tasks": [
            {
                "ansible.builtin.include_tasks": str(tmp_path / "shown.yml"),
                "loop": "{{ redis_instances }}",
                "loop_control": {"loop_var": "redis_instance"},
            }
        ]
    }
    well, output = ansible_plays(tmp_path, {"inputs": play}, "-i", str(inventory))["inputs"]
    assert well, output
    assert "7000 4gb noeviction 188 7000 end" in output
    assert "6380 64mb lru 62 6380 end" in output


def test_a_variable_is_told_for_each_instance_at_once(tmp_path: Path) -> None:
    known = {
        "redis_instances": [{"name": "a", "port": 7000}, {"name": "b", "maxmemory": "{{ redis_maxmemory }}4"}],
        "redis_port": 6379,
        "redis_maxmemory": "1{{ 2 }}",
        "__shown": {"text": "{{ redis_name }} {{ redis_port }} {{ __size }}", "port": "{{ redis_port }}"},
        "__size": "{{ redis_maxmemory }}mb",
        "wanted": [{"text": "a 7000 12mb", "port": 7000}, {"text": "b 6379 124mb", "port": 6379}],
    }

    def play(expression: str, **more: object) -> dict[str, object]:
        said = {"that": f"{expression} == wanted", "fail_msg": f"{{{{ {expression} | to_json }}}}"}
        return {"vars": {**known, **more}, "tasks": [{"ansible.builtin.assert": said}]}

    plays = {
        "each": play("query('quantdesk.redis.redis_each', '__shown')"),
        "nothing": play("query('quantdesk.redis.redis_each', '__nowhere')"),
        # The host's own stay as they are.
        "host": play("[redis_port, redis_maxmemory]", wanted=[6379, "12"]),
    }
    found = ansible_plays(tmp_path, plays)
    assert found["each"][0], found["each"][1]
    assert found["host"][0], found["host"][1]
    assert not found["nothing"][0]
    assert "'__nowhere' is undefined" in found["nothing"][1]


@pytest.mark.parametrize(("more", "confined"), [("", True), (" ~*", False)])
def test_rules_are_confined_as_the_record_says(more: str, confined: bool) -> None:
    rules = "~a:* &a:* +@all -@scripting -scan -randomkey -pubsub -client|tracking"
    assert redis.confined(rules + more, "default") is confined


def test_a_secret_on_a_command_line_or_in_a_file_is_found(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("password = in-this-file-it-stands\n")
    # The arguments reach the module by standard input: only this shell has the secret on its command line.
    (tmp_path / "arguments.json").write_text(
        json.dumps(
            {
                "secrets": {"first": "this-one-is-an-argument", "second": "in-this-file-it-stands", "third": ""},
                "files": [str(file)],
            }
        )
    )
    process = subprocess.Popen(["sh", "-c", "read line; : this-one-is-an-argument"], stdin=subprocess.PIPE)
    try:
        playbook = tmp_path / "play.yml"
        playbook.write_text(
            json.dumps(
                [
                    {
                        "hosts": "localhost",
                        "connection": "local",
                        "gather_facts": False,
                        "tasks": [
                            {
                                "quantdesk.redis.find_secrets": "{{ lookup('ansible.builtin.file', '"
                                + str(tmp_path / "arguments.json")
                                + "') | from_json }}",
                                "register": "searched",
                            },
                            {"debug": {"var": "searched.found"}},
                        ],
                    }
                ]
            )
        )
        code, output = ansible("ansible-playbook", "-vvv", playbook)
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert code == 0, output
    assert f"first in the command line of {process.pid} (sh)" in output
    assert f"second in {file}" in output
    assert "third" not in output.split("searched.found")[1]
    assert "this-one-is-an-argument" not in output
    assert "in-this-file-it-stands" not in output
