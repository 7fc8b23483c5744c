"""What is known of a source's last backups: a file for people and playbooks, and metrics for Prometheus."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from databackup.settings import Source


def _path(source: Source) -> Path:
    return Path(source.state) / f"{source.name}.json"


def read(source: Source) -> dict[str, Any]:
    """Return the last success and the last failure."""
    try:
        loaded: dict[str, Any] = json.loads(_path(source).read_text(encoding="utf-8"))
        return loaded
    except (OSError, ValueError):
        return {}


def _write(path: Path, text: str, mode: int) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.chmod(mode)
    partial.replace(path)


def _record(source: Source, words: dict[str, Any]) -> None:
    Path(source.state).mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {**read(source), **words}
    _write(_path(source), json.dumps(known, indent=2) + "\n", 0o600)
    success = known.get("success", {})
    lines = []
    for name, text, value in (
        ("last_run_success", "Whether the last run made a backup.", int("failure" not in known)),
        ("last_run_timestamp_seconds", "When the last run ended.", known["run"]),
        ("last_success_timestamp_seconds", "As of when the last backup is.", success.get("at")),
        ("duration_seconds", "What the last backup took.", success.get("seconds")),
        ("size_bytes", "Data in the last backup.", success.get("bytes")),
        ("items", "Keys or rows in the last backup.", success.get("items")),
    ):
        if value is not None:
            lines += [
                f"# HELP databackup_{name} {text}",
                f"# TYPE databackup_{name} gauge",
                f'databackup_{name}{{source="{source.name}",environment="{source.environment}"}} {value}',
            ]
    folder = Path(source.metrics or source.state)
    if folder.is_dir():
        # No secret is in it, and the collector is another user.
        _write(folder / f"databackup-{source.name}.prom", "\n".join(lines) + "\n", 0o644)


def record_success(source: Source, result: dict[str, Any]) -> None:
    """Keep that a run made a backup, or rightly made none."""
    now = time.time()
    words: dict[str, Any] = {"run": round(now, 3)}
    if "skipped" in result:
        words["skipped"] = result["skipped"]
    else:
        at = datetime.fromisoformat(result["time"]).timestamp()
        words["success"] = {
            "at": at,
            "id": result["id"],
            "host": source.host,
            "items": result["items"],
            "bytes": result["bytes"],
            "digest": result["digest"],
            "seconds": result["seconds"],
        }
    known = read(source)
    if "failure" in known or "skipped" in known:
        known.pop("failure", None)
        known.pop("skipped", None)
        _write(_path(source), json.dumps(known) + "\n", 0o600)
    _record(source, words)


def record_failure(source: Source, message: str) -> None:
    """Keep why a run made none."""
    _record(source, {"run": round(time.time(), 3), "failure": message})


def tell(source: Source) -> dict[str, Any]:
    """Return whether there is a backup that is young enough, and a sentence about it."""
    known = read(source)
    if "skipped" in known and "failure" not in known:
        late = time.time() - known["run"] > source.max_age
        return {"ok": not late, "text": known["skipped"] + (", but no recent run reported it" if late else ""), **known}
    success = known.get("success")
    failure = f"; the last run failed: {known['failure']}" if "failure" in known else ""
    if not success:
        return {"ok": False, "text": "there is no backup yet" + failure, **known}
    if success.get("host", source.host) != source.host:
        # It was renamed: what there is of it is in another repository than that which is asked from now on.
        text = f"there is no backup yet under the name {source.host}; those until now are of {success['host']}"
        return {"ok": False, "text": text + failure, **known}
    age = time.time() - success["at"]
    text = f"backup {success['id'][:8]} of {datetime.fromtimestamp(success['at'], UTC):%Y-%m-%dT%H:%M:%SZ}, {age:.0f} s ago"
    ok = age <= source.max_age and not failure
    return {
        "ok": ok,
        "text": text + (f" (limit {source.max_age} s)" if age > source.max_age else "") + failure,
        **known,
    }
