"""From plaintext to TLS behind balancers: the application takes TLS alone once every balancer speaks it."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_bad_input import names, run, variables

from conftest import PROJECT, ansible, load

look = load("plugins/module_utils/host_neighbours.py")
judge = load("plugins/filter/neighbours.py")

MARKER = "Ansible managed"
STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr \
srv_agent_port
4 app 1 app1-3002 10.0.0.2 2 0 1 1 6 6 3 4 6 0 0 0 - 3002 - {} 0 - - 0
4 app 2 app1-3003 10.0.0.2 2 0 1 1 6 6 3 4 6 0 0 0 - 3003 - {} 0 - - 0

"""


@pytest.mark.parametrize(
    ("said", "speaks"),
    [
        (STATE.format(1, 1), "TLS"),
        # Its file was written, and a run was interrupted before the process took it over.
        (STATE.format(0, 0), "plaintext"),
        (STATE.format(1, 0), "plaintext"),
        ("Can't find backend.\n\n", "plaintext"),
        # It does not run: what it would speak is in its file.
        (None, "TLS"),
    ],
)
def test_a_balancer_speaks_what_its_process_says(tmp_path: Path, said: str | None, speaks: str) -> None:
    admin = tmp_path / "admin.sock"
    file = tmp_path / "haproxy.cfg"
    text = f"# {MARKER}\nglobal\n    stats socket {admin} user root\nbackend app\n    server a 10.0.0.2:3002{{}}\n"
    tls = " ssl verify required ca-file /ca.crt verifyhost app1"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(admin))

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                assert client.recv(100) == b"show servers state app\n"
                client.sendall((said or "").encode())

        file.write_text(text.format(tls))
        if said is not None:
            listener.listen()
            threading.Thread(target=answer, daemon=True).start()
        assert look.haproxy(MARKER, str(file))["backends"] == speaks
    file.write_text(text.format(""))
    assert look.haproxy(MARKER, str(file))["backends"] == "plaintext"


def survey(backends: str) -> dict[str, Any]:
    """Return what a balancer's host tells."""
    return {"haproxy": {"origin": "ours", "backends": backends}}


@pytest.mark.parametrize(
    ("before", "after", "limit", "switched"),
    [
        (("plaintext", "plaintext"), ("TLS", "TLS"), "all", True),
        (("TLS", "plaintext"), ("TLS", "TLS"), "all", True),
        # Its servers have no tls_name.
        (("plaintext", "plaintext"), ("TLS", "plaintext"), "all", False),
        (("plaintext", "plaintext"), ("TLS", "TLS"), "all,!lb2", False),
        # It was done before.
        (("TLS", "TLS"), ("TLS", "TLS"), "all", False),
    ],
)
def test_the_application_takes_tls_alone_once_every_balancer_speaks_it(
    tmp_path: Path, before: tuple[str, str], after: tuple[str, str], limit: str, switched: bool
) -> None:
    balancers, app = yaml.safe_load((PROJECT / "playbooks/parts/load_balancer.yml").read_text())
    asking = balancers["tasks"][-1]
    known = {"ansible.builtin.set_fact": {"host_survey": "{{ before }}", "cacheable": True}}
    asking["block"] = [
        {"ansible.builtin.set_fact": {"host_survey": "{{ after }}", "cacheable": True}}
        if "quantdesk.redis.host_survey" in task
        else task
        for task in asking["block"]
    ]
    (taking,) = app["tasks"]
    del taking["ansible.builtin.include_role"]
    taking["ansible.builtin.debug"] = {"msg": "switched: {{ app_tasks }}, {{ app_plaintext }}"}
    plays = [
        {**balancers, "become": False, "tasks": [known, asking]},
        {**app, "become": False, "tasks": [taking]},
    ]
    hosts = {
        name: {"before": survey(was), "after": survey(now)}
        for name, was, now in zip(("lb1", "lb2"), before, after, strict=True)
    }
    groups = {"load_balancer": {"hosts": hosts}, "app": {"hosts": {"app1": {"app_tls_cert_file": "/host.crt"}}}}
    inventory, file = tmp_path / "hosts.json", tmp_path / "plays.yml"
    inventory.write_text(json.dumps({"all": {"children": groups}}))
    file.write_text(yaml.safe_dump(plays))
    code, output = ansible("ansible-playbook", "-i", "inventory/base", "-i", inventory, "--limit", limit, file)
    assert code == 0, output
    assert ("switched: switch, False" in output) is switched, output


def test_a_backend_without_a_name_on_a_host_that_serves_tls_is_refused(tmp_path: Path) -> None:
    backend = {"name": "two-3002", "address": "192.0.2.10", "port": 3002}
    serving = {**variables(), "app_tls_cert_file": "/etc/ssl/host.crt", "app_tls_key_file": "/etc/ssl/host.key"}
    plain = {**variables(), "load_balancer_backends": [backend]}
    named = {**variables(), "load_balancer_backends": [{**backend, "tls_name": "app_1"}]}
    result = run(tmp_path, {"one": variables()}, {"two": serving}, load_balancer={"plain": plain, "named": named})
    name = "load_balancer_backends without tls_name"
    assert name in names(result, "plain"), result.stdout
    assert names(result, "named") == [], result.stdout
    assert f"{name}: found 'two-3002'; expected a tls_name" in result.stdout


def test_backends_elsewhere_may_be_plaintext() -> None:
    backends = [{"name": "a", "address": "10.0.0.1"}, {"name": "b", "address": "10.0.0.2", "tls_name": "b"}]
    assert judge.plaintext_backends(backends, ["10.0.0.2"]) == ""
    assert judge.plaintext_backends(backends, ["10.0.0.1", "10.0.0.2"]) == "a"
    assert judge.plaintext_backends("none", ["10.0.0.1"]) == ""
