"""TLS as a scanner sees it."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

from conftest import REDIS_ADDRESS

# What testssl.sh says of any private authority: its certificates name no place that lists the revoked ones. The role
# renews them by a run, and a key that was lost is answered by a new authority.
PRIVATE_AUTHORITY = {"cert_revocation"}


@pytest.fixture(scope="module")
def scanner(app1: Host) -> Host:
    """A host that may reach Redis, with testssl.sh."""
    app1.check_output(
        "command -v testssl >/dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive"
        " apt-get install -qq -y --no-install-recommends testssl.sh >/dev/null)"
    )
    return app1


def test_a_scanner_finds_nothing_above_low(scanner: Host) -> None:
    result = scanner.run(
        "rm -f /tmp/testssl.json; testssl --quiet --warnings off --color 0 --nodns min --ip one --sneaky"
        " --protocols --std --server-preference --fs --server-defaults --vulnerable"
        " --add-ca /etc/ssl/quantdesk/ca.crt --jsonfile /tmp/testssl.json %s:6380 </dev/null",
        REDIS_ADDRESS,
    )
    findings = json.loads(scanner.check_output("cat /tmp/testssl.json"))
    assert len(findings) > 50, result.stdout
    asked = {finding["id"]: finding["finding"] for finding in findings}
    assert asked["TLS1_2"].startswith("offered")
    assert asked["TLS1_1"].startswith("not offered")
    high = [
        finding
        for finding in findings
        if finding["severity"] in ("MEDIUM", "HIGH", "CRITICAL", "FATAL")
        and finding["id"].split(" ")[0] not in PRIVATE_AUTHORITY
    ]
    print(result.stdout)
    assert high == []
