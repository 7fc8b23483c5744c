"""Certificates that the user brings, and their change under a running server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from testinfra.host import Host

from conftest import LAB, REDIS_ADDRESS, RedisCli, changed, playbook

CA = LAB / "pki" / "ca"


def own_files(folder: Path) -> dict[str, str]:
    """Make a key and a certificate for redis1 by hand, without a name for loopback, signed by the lab's authority."""
    key, request, certificate = folder / "own.key", folder / "own.csr", folder / "own.crt"
    openssl: list[str | Path] = [
        "openssl",
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=own",
    ]
    names = ["-addext", f"subjectAltName=DNS:redis1,IP:{REDIS_ADDRESS}"]
    subprocess.run([*openssl, *names, "-keyout", key, "-out", request], check=True, capture_output=True)
    sign: list[str | Path] = [
        "openssl",
        "x509",
        "-req",
        "-in",
        request,
        "-CA",
        f"{CA}.crt",
        "-CAkey",
        f"{CA}.key",
        "-days",
        "60",
    ]
    subprocess.run([*sign, "-copy_extensions", "copy", "-out", certificate], check=True, capture_output=True)
    return {"ca": f"{CA}.crt", "cert": str(certificate), "key": str(key)}


def test_own_files_are_loaded_by_the_running_server(
    redis1: Host, redis_cli: RedisCli, app_cli: RedisCli, tmp_path: Path
) -> None:
    def subject() -> str:
        ask = f"openssl s_client -connect {REDIS_ADDRESS}:6380 </dev/null 2>/dev/null | openssl x509 -noout -subject"
        # OpenSSL 3.2 and later write no blanks.
        answer: str = redis1.check_output(ask).replace(" ", "")
        return answer

    pid = redis1.check_output("systemctl show redis-server --property MainPID --value")
    extra = {"certificates_source": "files", "certificates_files": own_files(tmp_path)}
    try:
        result = playbook("redis.yml", "--extra-vars", json.dumps(extra))
        assert result.returncode == 0, result.stdout
        assert subject() == "subject=CN=own"
        assert app_cli("PING") == ["PONG"]
        again = playbook("redis.yml", "--extra-vars", json.dumps(extra))
        assert changed(again.stdout)["redis1"] == 0, again.stdout
    finally:
        back = playbook("redis.yml")
    assert back.returncode == 0, back.stdout
    assert subject() == "subject=CN=redis1"
    assert redis_cli("PING") == ["PONG"]
    # Nobody was disconnected: it is the same process all along.
    assert redis1.check_output("systemctl show redis-server --property MainPID --value") == pid


def test_the_authority_s_key_is_the_operator_s_alone() -> None:
    assert (CA.with_suffix(".key").stat().st_mode & 0o777, CA.parent.stat().st_mode & 0o777) == (0o600, 0o700)
