"""The users that the role redis makes: what each is for, its rules, and the checks of verify.yml on it.

A user stands here once. The role's ACL, the rows of verify.yml, the table in docs/controls.md and the test of the
mutations are made from these records. What the inventory decides stays there: a rule names its inputs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# An input in a rule: `{redis_default_rules}` is rules as they are, `~{redis_app_keys}` a rule for each item of a list.
INPUT = re.compile(r"(?P<prefix>[~&+]?)\{(?P<name>redis_[a-z_]+)\}")
# What stands for the user's own first key and channel in a command.
KEY, CHANNEL = "OWN-KEY", "OWN-CHANNEL"
OTHER_KEY, OTHER_CHANNEL = "a-key-of-nobody", "a-channel-of-nobody"


@dataclass(frozen=True)
class Right:
    """A row of verify.yml about a user: commands, asked by ACL DRYRUN, which carries nothing out."""

    name: str
    # What was found when all is as it should be.
    well: str
    may: tuple[str, ...] = ()
    may_not: tuple[str, ...] = ()
    # Commands that the user may run where this rule is among its own, and otherwise not.
    by_rule: tuple[tuple[str, str], ...] = ()
    # Number in docs/controls.md, where it has one.
    control: int | None = None


@dataclass(frozen=True)
class BuiltIn:
    """A user of the role; it is made where its password is not empty."""

    name: str
    purpose: str
    # Words of an ACL, with inputs in braces.
    rules: str
    rights: tuple[Right, ...] = ()
    # Rules that a site may replace: the rights are asked only while these are there, and none of the others.
    confined_by: frozenset[str] = frozenset()
    unconfined_by: frozenset[str] = frozenset()
    # The control that compares its rules with these, by ACL LIST, where it has one besides 16.
    compared: int | None = None
    # Whether it can be switched off by an input of its own, redis_NAME_user.
    switch: bool = False
    # Whether it always exists; the password of any other user may be empty.
    required: bool = False

    @property
    def password(self) -> str:
        """The input that holds its password."""
        return "redis_password" if self.name == "default" else f"redis_{self.name}_password"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that its record needs."""
        switch = (f"redis_{self.name}_user",) if self.switch else ()
        return (self.password, *switch, *(match["name"] for match in INPUT.finditer(self.rules)))

    def declared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the user as redis_users takes it; raises KeyError for an input that is not there."""
        found = {"name": self.name, "password": inputs[self.password], "rules": " ".join(self._words(inputs))}
        return {**found, "enabled": truth(inputs[f"redis_{self.name}_user"])} if self.switch else found

    def _words(self, inputs: Mapping[str, Any]) -> list[str]:
        words: list[str] = []
        for word in self.rules.split():
            match = INPUT.fullmatch(word)
            if match is None:
                words.append(word)
            elif match["prefix"]:
                words += [f"{match['prefix']}{item}" for item in inputs[match["name"]]]
            else:
                words += str(inputs[match["name"]]).split()
        return words

    def confined(self, rules: str) -> bool:
        """Return whether rules are confined as the record says, so that its rights can be asked for."""
        words = set(rules.split())
        return self.confined_by <= words and not self.unconfined_by & words


BUILT_IN = (
    BuiltIn(
        "default",
        "clients without a user name",
        "{redis_default_rules}",
        required=True,
        switch=True,
        confined_by=frozenset({"+@all", "-@scripting", "-scan", "-randomkey", "-pubsub", "-client|tracking"}),
        unconfined_by=frozenset({"~*", "&*"}),
        rights=(
            Right(
                "rights of default",
                "its environment, without scripts",
                control=57,
                may=(f"GET {KEY}", "INFO"),
                may_not=(
                    f"GET {OTHER_KEY}",
                    f"PUBLISH {OTHER_CHANNEL} x",
                    f"SUBSCRIBE {OTHER_CHANNEL}",
                    "PSUBSCRIBE *",
                    "EVAL 'return 1' 0",
                    "FUNCTION LIST",
                    "SCRIPT FLUSH",
                    "SCAN 0",
                    "RANDOMKEY",
                    "PUBSUB CHANNELS",
                    "CLIENT TRACKING on BCAST",
                    "CONFIG GET maxmemory",
                ),
            ),
        ),
    ),
    BuiltIn("admin", "Ansible and the command redis-admin", "~* &* +@all", required=True),
    BuiltIn(
        "app",
        "the application",
        "~{redis_app_keys} &{redis_app_channels} +{redis_app_commands}",
        rights=(
            Right(
                "commands that app may not run",
                "all refused",
                control=19,
                may_not=(
                    "FLUSHALL",
                    "FLUSHDB",
                    "KEYS *",
                    "DEBUG SLEEP 0",
                    "SHUTDOWN",
                    "REPLICAOF NO ONE",
                    "MODULE LIST",
                    f"RESTORE {KEY} 0 x",
                    f"MIGRATE host 1 {KEY} 0 1",
                    "SAVE",
                    "ACL LIST",
                ),
            ),
            Right(
                "scripts as app",
                "as declared",
                control=20,
                may_not=("SCRIPT FLUSH", "FUNCTION LIST"),
                by_rule=(("EVAL 'return 1' 0", "+eval"),),
            ),
            Right("keys that app reaches", "its own", control=21, may=(f"GET {KEY}",), may_not=(f"GET {OTHER_KEY}",)),
            Right(
                "channels that app reaches",
                "its own",
                control=22,
                may=(f"PUBLISH {CHANNEL} x",),
                may_not=(f"PUBLISH {OTHER_CHANNEL} x", f"SUBSCRIBE {OTHER_CHANNEL}"),
            ),
        ),
    ),
    # https://github.com/oliver006/redis_exporter asks for more: CONFIG GET would show it every secret, SLOWLOG GET the
    # arguments of commands. It works without.
    BuiltIn(
        "exporter",
        "figures for monitoring",
        "+ping +info +client|setname +latency|latest +latency|histogram +slowlog|len",
        rights=(
            Right(
                "rights of exporter",
                "figures, no data",
                control=23,
                may=("INFO",),
                may_not=(f"GET {KEY}", "CONFIG GET requirepass", "SLOWLOG GET"),
            ),
        ),
    ),
    # A snapshot comes over the replication protocol: to the client, not into a file beside the data.
    BuiltIn(
        "backup",
        "snapshots, over the replication protocol",
        "+ping +info +psync +replconf",
        rights=(
            Right(
                "rights of backup",
                "snapshots, no data",
                may=("PSYNC ? -1",),
                may_not=(f"GET {KEY}", "CONFIG GET requirepass"),
            ),
        ),
    ),
    # https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/#acl-rules-for-sentinel-and-replicas
    BuiltIn("replica", "replicas", "+psync +replconf +ping", compared=24),
    # There with all channels: it uses one.
    BuiltIn(
        "sentinel",
        "Sentinel",
        "&__sentinel__:hello +multi +slaveof +ping +exec +subscribe +config|rewrite +role +publish +info"
        " +client|setname +client|kill +script|kill",
        compared=24,
    ),
)
BY_NAME = {user.name: user for user in BUILT_IN}


def truth(value: Any) -> bool:
    """Return what the inventory, or `-e` as a text, says of a switch."""
    return str(value).lower() in ("true", "yes", "on", "1", "y", "t")


def declared(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all built-in users as redis_users takes them, those without a password too; raises KeyError."""
    return [user.declared(inputs) for user in BUILT_IN]


@dataclass(frozen=True)
class Permission:
    """A command that a user may run, or may not."""

    user: str
    command: tuple[str, ...]
    may: bool

    def question(self) -> tuple[str, ...]:
        """Return the command that asks a server for it without using it."""
        return ("ACL", "DRYRUN", self.user, *self.command)

    def wrong(self, answer: Any) -> str:
        """Return what a server's answer says against it, such as `app may FLUSHALL`; nothing where it is as wanted."""
        command, text = " ".join(self.command), "no answer" if answer is None else str(answer)
        # A refusal is a text. An error is what the server could not judge: a user that is not there is refused all.
        if answer is None or isinstance(answer, Exception) or text.startswith("error: "):
            return f"{self.user} {command}: {text}"
        if (text == "OK") is self.may:
            return ""
        return f"{self.user} {'may' if text == 'OK' else 'may not'} {command}"


def permissions(user: BuiltIn, right: Right, rules: str, others_key: str = "x") -> list[Permission]:
    """Return what a right asks of a user with these rules.

    A user without keys of its own may not reach `others_key`; what it may do with its own is not asked then.
    """
    words = rules.split()
    own = {KEY: own_key(rules), CHANNEL: _first(words, "&")}
    wanted = [
        *((command, False) for command in right.may_not),
        *((command, True) for command in right.may),
        *((command, rule in words) for command, rule in right.by_rule),
    ]
    found = []
    for text, may in wanted:
        command = shlex.split(text)
        if may and any(own.get(word) == "" for word in command):
            continue
        found.append(Permission(user.name, tuple(own.get(word, word) or others_key for word in command), may))
    return found


def table() -> str:
    """Return the users as a table in Markdown, which docs/controls.md holds."""

    def code(words: Iterable[str]) -> str:
        return ", ".join(f"`{word}`".replace("|", "\\|") for word in words)

    lines = ["| user | for | rules | may | may not | control |", "|---|---|---|---|---|---|"]
    for user in BUILT_IN:
        may = [command for right in user.rights for command in right.may]
        may += [f"{command} with {rule}" for right in user.rights for command, rule in right.by_rule]
        may_not = [command for right in user.rights for command in right.may_not]
        numbers = [right.control for right in user.rights] + [user.compared]
        controls = ", ".join(str(number) for number in numbers if number is not None)
        cells = [code([user.name]), user.purpose, code([user.rules]), code(may), code(may_not), controls or "16"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(re.sub(" +", " ", line) for line in lines) + "\n"


def own_key(rules: str) -> str:
    """Return a key that the first pattern of the rules fits; nothing without one."""
    return _first(rules.split(), "~")


def _first(words: Iterable[str], kind: str) -> str:
    return next((word[1:].replace("*", "x") for word in words if word.startswith(kind)), "")
