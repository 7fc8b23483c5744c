"""What a Redis server was started with: its configuration file with all that this includes, and its arguments."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.processes import Process, link
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_conf import (
    LIMITS,
    OWNED,
    STARTUP,
    Entry,
    Lines,
    found,
    parse,
    quote,
    to_live,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_defaults import DEFAULTS, HOST

# Bytes of a file.
LIMIT = 4 << 20
# How deep files may include others.
DEPTH = 16
# What Redis 7 takes and ignores.
IGNORED = {"list-max-ziplist-entries", "list-max-ziplist-value"}
USUAL = ("/etc/redis/*.conf", "/etc/redis*.conf", "/etc/valkey/*.conf", "/etc/keydb/*.conf")

# The kernel keeps 15 characters of a program's name, so a version behind it may be cut.
SERVER = re.compile(r"(redis|valkey|keydb)-(server|sentinel)")
# Debian's redis-server is a link to this program.
CHECKER = re.compile(r"(redis|valkey|keydb)-check-(rdb|aof)")


@dataclass
class Configuration:
    """What a server was started with: its file with all that this includes, and its arguments."""

    file: str = ""
    problem: str = ""
    entries: list[Entry] = field(default_factory=list)
    # Its arguments, which count after the file.
    given: list[Entry] = field(default_factory=list)

    def lines(self, name: str) -> Lines:
        """Return a directive's lines; of most directives the last one counts."""
        return found([*self.entries, *self.given], name)

    def names(self) -> set[str]:
        """Return the directives that have a line."""
        return {entry.name for entry in [*self.entries, *self.given] if entry.name}

    def value(self, name: str) -> str:
        """Return a directive's value as CONFIG GET would; Redis' default where it has no line."""
        lines = self.lines(name)
        if not lines:
            return str(DEFAULTS.get(name, ""))
        # Those of some directives add up.
        return str(to_live(lines if name in ("save", LIMITS) else lines[-1:]))

    def renamed(self) -> dict[str, str]:
        """Return the commands that have another name, or none."""
        lines = self.lines("rename-command")
        return {words[0].upper(): words[1] if len(words) > 1 else "" for words in lines if words}

    def logins(self) -> list[dict[str, Any]]:
        """Return the logins that it holds in clear, the one with most rights first."""
        password = self.value("requirepass")
        result = [{"username": "default", "password": password}] if password else []
        for words in self.lines("user"):
            for word in words[1:]:
                if word.startswith(">") and "on" in words and {"+@all", "allcommands"} & set(words):
                    result.append({"username": words[0], "password": word[1:]})
        return result[:4]


def is_server(name: str, program: str) -> bool:
    """Return whether a process is a Redis, Valkey or KeyDB, from its name and its program."""
    file = os.path.basename(program)
    if SERVER.match(name) or SERVER.match(file):
        return True
    return bool(CHECKER.fullmatch(file)) and not re.match(r"(redis|valkey|keydb)-(check|cli|bench)", name)


def arguments(words: list[str]) -> tuple[str, list[Entry]]:
    """Return the configuration file and the directives among the words that a server is started with."""
    file, lines = "", list[list[str]]()
    for at, word in enumerate(words[1:]):
        if word.startswith("--") and len(word) > 2:
            lines.append([word[2:]])
        elif lines:
            lines[-1].append(word)
        elif at == 0 and word != "-":
            file = word
    return file, parse("".join(" ".join([name, *map(quote, rest)]) + "\n" for name, *rest in lines))


def text_of(path: str) -> str:
    """Return a configuration's text; raises OSError. A device or a pipe is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a file", path)
        return file.read(LIMIT).decode(errors="surrogateescape")


def load(one: Process, path: str, depth: int = 0) -> Configuration:
    """Return a configuration file with what it includes, and the first thing that is wrong with it."""
    result = Configuration(file=path)
    try:
        text = text_of(one.path(path))
    except OSError as error:
        result.problem = f"{path}: {error.strerror}"
        return result
    for number, entry in enumerate(parse(text), 1):
        line = entry.raw.strip()
        if not line or line.startswith("#"):
            continue
        if not entry.name:
            result.problem = result.problem or f"{path}, line {number}: unbalanced quotes"
        elif entry.name == "include":
            pattern = os.path.join(one.cwd or "/", " ".join(entry.words))
            for other in _included(one, pattern):
                part = (
                    load(one, other, depth + 1) if depth < DEPTH else Configuration(problem=f"{path}: includes itself")
                )
                result.entries += part.entries
                result.problem = result.problem or part.problem
        elif entry.name not in DEFAULTS and entry.name not in HOST | STARTUP | OWNED | IGNORED:
            # Nothing else of a line that is not understood: it may be part of a secret.
            name = entry.name if re.fullmatch(r"[a-z][a-z0-9_.-]{1,40}", entry.name) else "it"
            result.problem = result.problem or f"{path}, line {number}: {name} is not a directive of Redis 7.0"
        result.entries.append(entry)
    return result


def _included(one: Process, pattern: str) -> list[str]:
    """Return the files that an `include` stands for, as the server names them."""
    if not re.search(r"[*?\[]", pattern):
        return [pattern]
    place = one.path("/").rstrip("/")
    return [path[len(place) :] for path in sorted(glob.glob(place + pattern))]


def configuration(one: Process, unit: Mapping[str, str]) -> Configuration:
    """Return what a server was started with, from its command line, or else from its unit."""
    words = one.words
    if not words and (started := re.search(r"argv\[\]=(.*?) ;", unit.get("ExecStart", ""))):
        words = started[1].split()
        # Of a script that starts it, nothing is known.
        words = words if is_server(os.path.basename(words[0]), words[0]) else []
    file, given = arguments(words)
    if file and not file.startswith("/"):
        # Redis has been in the folder of its data since.
        places = [unit.get("WorkingDirectory", ""), one.cwd, link(f"/proc/{one.parent}/cwd")]
        paths = [os.path.join(place, file) for place in places if place.startswith("/")]
        file = next((os.path.normpath(path) for path in paths if os.path.isfile(one.path(path))), "")
    result = load(one, file) if file else Configuration()
    result.given = given
    return result


def _is_in(one: Process, folder: str) -> bool:
    """Return whether a process is in a folder; a relative one may have been any."""
    try:
        return not folder.startswith("/") or os.path.samefile(one.path(folder), f"/proc/{one.pid}/cwd")
    except OSError:
        return False


def by_looks(one: Process, known: Configuration, ports: set[int], socket: str) -> Configuration:
    """Return the only one of the usual files that names a server's port or socket, and its folder.

    Redis writes its title over its command line, and says what its file is only to those who are logged in.
    """
    patterns = [*USUAL, "/usr/local/etc/redis*.conf", "/usr/local/etc/redis/*.conf", f"{one.cwd}/*.conf"]
    matching = []
    for path in dict.fromkeys(path for pattern in patterns for path in _included(one, pattern)):
        candidate = load(one, path)
        named = {candidate.value("port"), candidate.value("tls-port")} & set(map(str, ports))
        place = candidate.value("unixsocket")
        folder = candidate.value("dir")
        if (named or (place and os.path.join(one.cwd, place) == socket)) and _is_in(one, folder):
            matching.append(candidate)
    if len(matching) != 1:
        return known
    matching[0].given = known.given
    return matching[0]
