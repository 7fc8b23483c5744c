"""verify.yml names what the balancer, the database and an application host have lost, the latter by their controls."""

from __future__ import annotations

import json

from backends import all_up

from conftest import LAB, connect, playbook

# What is taken away from each host, and how it comes back.
TAKE = {
    "lb1": """
cp -a /etc/haproxy/haproxy.cfg /root/
sed -i 's/ verify required/ verify none/; /deny status 403/d' /etc/haproxy/haproxy.cfg
sed -Ei '/stick-table|track-sc0|sc0_conn/d' /etc/haproxy/haproxy.cfg
systemctl reload haproxy
""",
    "db1": """
cp -a /etc/postgresql/15/main/pg_hba.conf /root/
echo 'host all all 0.0.0.0/0 scram-sha-256' >>/etc/postgresql/15/main/pg_hba.conf
systemctl reload postgresql@15-main
""",
    "app1": """
nft flush chain inet quantdesk output
systemctl disable --quiet nftables-quantdesk
cp -a /etc/quantdesk/quantdesk.env /root/
sed -i '/^TLS_REQUIRED=/s/true/false/' /etc/quantdesk/quantdesk.env
! cmp -s /etc/quantdesk/quantdesk.env /root/quantdesk.env
systemctl restart quantdesk@3002
""",
}
BACK = {
    "lb1": "mv /root/haproxy.cfg /etc/haproxy/haproxy.cfg; systemctl reload haproxy",
    "db1": "mv /root/pg_hba.conf /etc/postgresql/15/main/pg_hba.conf; systemctl reload postgresql@15-main",
    "app1": """
systemctl enable --quiet nftables-quantdesk; systemctl reload nftables-quantdesk
mv /root/quantdesk.env /etc/quantdesk/quantdesk.env; systemctl restart quantdesk@3002
""",
}


def test_names_what_was_taken_away() -> None:
    report = LAB / "lost.json"
    try:
        for name, script in TAKE.items():
            connect(name).check_output("bash -ec %s", script)
        result = playbook("verify.yml", "-e", f"verify_report={report}")
    finally:
        for name, script in BACK.items():
            connect(name).check_output("bash -c %s", script)
    assert result.returncode != 0
    problems = " ".join(result.stdout.rsplit("fatal:", 1)[1].split())
    assert "forbidden paths that reach a backend: found '/metrics" in problems
    assert "connections of clients: found 'not counted'" in problems
    assert "login in plaintext: found 'ok plaintext'" in problems
    checks = [check for check in json.loads(report.read_text())["checks"] if check["verdict"] == "FAILED"]
    numbers = {(check["host"], number) for check in checks for number in check["control"]}
    assert numbers == {("lb1", 62), ("lb1", 66), ("app1", 28), ("app1", 63), ("app1", 65), ("app1", 67)}
    assert all_up()
