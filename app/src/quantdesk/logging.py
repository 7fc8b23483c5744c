"""Log lines: JSON for machines, text for people, one line per record either way."""

import datetime as dt
import logging
import sys
from typing import Any, Final

import msgspec

from quantdesk.settings import LogFormat, LogLevel

# What every record carries; anything else came from the caller's `extra`.
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    "asctime",
    "color_message",
    "message",
    "taskName",
}


def _time(record: logging.LogRecord) -> str:
    moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, whose escapes keep it on one line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """One line per record, and a traceback below it where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; what a caller sent can't begin a line of its own."""
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        text = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{extra}"
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(level: LogLevel, form: LogFormat) -> None:
    """Send every logger's records to stderr in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    # uvicorn logs each WebSocket and each malformed request: as often as a client likes.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
