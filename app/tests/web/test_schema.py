"""What OpenAPI says of the routes, and what they do: compared by schemathesis."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import AUTH, HANG, TOKEN, Server
from processes import Process

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
)
# Of each operation, on top of the cases at the edges of what its schema allows.
EXAMPLES = 25


def compare(address: str, report: Path) -> subprocess.CompletedProcess[str]:
    """Run schemathesis, the same cases each time."""
    hooks = Path(__file__).with_name("schema_hooks.py")
    words = ["run", f"{address}/schema/openapi.json", "--checks", ",".join(CHECKS)]
    words += ["--phases", "coverage,fuzzing", "--mode", "all", "--max-examples", str(EXAMPLES)]
    words += ["--generation-deterministic", "--suppress-health-check", "all", "--warnings", "off"]
    words += ["--request-timeout", str(HANG), "--no-color", "--report-ndjson-path", str(report)]
    return subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *words],
        cwd=report.parent,
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": str(hooks),
            "QUANTDESK_API": address,
            "QUANTDESK_TOKEN": TOKEN,
        },
        capture_output=True,
        text=True,
        timeout=20 * HANG,
        check=False,
    )


def statuses(schema: dict[str, Any]) -> dict[str, set[int]]:
    """For each operation, what it says it answers with."""
    return {
        f"{method.upper()} {path}": {int(status) for status in operation["responses"]}
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    }


def test_every_operation_does_what_is_said_of_it(
    tmp_path: Path,
    redis_server: Server,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    report = tmp_path / "report.ndjson"
    with Process(tmp_path, REDIS_URL=redis_server.url) as process:
        schema = httpx.get(f"{process.url}/schema/openapi.json", timeout=HANG).json()
        ended = compare(process.url, report)
        assert process.complaints == []
    assert ended.returncode == 0, ended.stdout + ended.stderr

    checks: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    answered: defaultdict[str, set[int]] = defaultdict(set)
    for line in report.read_text().splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for case, made in recorder.get("checks", {}).items():
            checks.update(check["name"] for check in made if check["status"] == "success")
            modes[recorder["cases"][case]["value"]["meta"]["generation"]["mode"]] += 1
            answered[recorder["label"]].add(
                recorder["interactions"][case]["response"]["status_code"]
            )
    # What was compared was enough, and at no operation did it stop at the door.
    described = statuses(schema)
    for operation, said in described.items():
        good = {status for status in answered[operation] if status < 300}
        assert good, f"{operation} was never seen to succeed"
        assert not said & {422} or 422 in answered[operation]
    assert set(checks) == set(CHECKS)
    assert min(checks.values()) > 300
    assert min(modes["positive"], modes["negative"]) > 150
    record_property("schemathesis_checks", checks.total())
    with capsys.disabled():
        print(
            f"\nschemathesis: {checks.total()} checks on {modes.total()} requests "
            f"({modes['positive']} good, {modes['negative']} bad) to {len(described)} operations"
        )


def test_refusals_are_described_too(tmp_path: Path, redis_server: Server) -> None:
    # Everything below /api/ is limited, but for what asks after health.
    with (
        Process(tmp_path, REDIS_URL=redis_server.url, RATE_LIMIT="1/hour") as process,
        httpx.Client(base_url=process.url, timeout=HANG) as http,
    ):
        described = statuses(http.get("/schema/openapi.json").json())
        assert http.get("/api/nowhere").status_code == 404
        for operation, said in described.items():
            method, path = operation.split()
            status = http.request(method, path.format(symbol="A", order_id="x")).status_code
            if path in ("/health", "/api/redis/health"):
                assert status == 200
                assert 429 not in said
            else:
                assert status == 429
                assert 429 in said, operation
        large = b" " * 70_000
        for operation, said in described.items():
            method, path = operation.split()
            if method in ("POST", "PUT") and path != "/api/redis/reset-stats":
                assert {400, 408, 413, 422, 429} <= said, operation
        answer = http.put("/api/prices/A", content=large, headers=AUTH)
        assert answer.status_code == 413
