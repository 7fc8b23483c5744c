"""The lines of Redis' ACL file and of ACL LIST: read, compared by meaning, written.

After https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

# Words that mean the same; Redis prints the right ones.
SYNONYMS = {"allkeys": "~*", "allchannels": "&*", "allcommands": "+@all", "nocommands": "-@all"}
# Rules that decide on ACL SETUSER, ACL DELUSER and ACL LIST together: its command and the categories that it is in.
ACL_RULES = {"@all", "@admin", "@dangerous", "@slow", "acl"}
# What each user of a list shows besides its rules.
FLAGS = {"on", "off", "nopass", "sanitize-payload", "skip-sanitize-payload"}


class AclError(ValueError):
    """A line or a rule that cannot be in an ACL file of ours; the message names it."""


@dataclass(frozen=True)
class User:
    """A user as the server understands it; two users that may the same are equal."""

    name: str
    enabled: bool
    hashes: frozenset[str]
    keys: frozenset[str]
    channels: frozenset[str]
    # In order: a later rule takes back an earlier one.
    commands: tuple[str, ...]
    # Without a password that it would ask for.
    open: bool = False
    # RESTORE of data that nobody checked.
    unsanitized: bool = False
    # Further sets of rules, in parentheses, as they stand; ours have none.
    selectors: str = ""

    def rules(self) -> list[str]:
        """Return everything but the name, as ACL SETUSER and the ACL file take it."""
        return [
            "on" if self.enabled else "off",
            *(["nopass"] if self.open else []),
            *(["skip-sanitize-payload"] if self.unsanitized else []),
            *(f"#{digest}" for digest in sorted(self.hashes)),
            *(sorted(self.keys) or ["resetkeys"]),
            # Redis prints resetchannels before a list of channels; without one it stands alone.
            *(["resetchannels", *sorted(self.channels)] if self.channels != {"&*"} else ["&*"]),
            *self.commands,
            *self.selectors.split(),
        ]

    def may_change_users(self) -> bool:
        """Return whether the user can log in and may run ACL SETUSER, ACL DELUSER and ACL LIST."""
        for subcommand in ("setuser", "deluser", "list"):
            rules = [rule for rule in self.commands if rule[1:] in ACL_RULES | {f"acl|{subcommand}"}]
            if not rules or rules[-1].startswith("-"):
                return False
        return self.enabled and (bool(self.hashes) or self.open)

    def line(self) -> str:
        """Return the user's line of an ACL file."""
        return " ".join(["user", self.name, *(rule for rule in self.rules() if rule != "resetkeys")])


def digest(password: str) -> str:
    """Return a password as Redis keeps it: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(password.encode()).hexdigest()


def commands(rules: Iterable[str]) -> tuple[str, ...]:
    """Return command rules as Redis keeps them: everything from the last +@all or -@all on, each rule once.

    A rule that is given again counts where it stands last, and takes its own opposite and its subcommands' with it.
    Between two categories the order means nothing then, and each start of Redis prints another one: they are sorted.
    """
    kept: list[str] = ["-@all"]
    for rule in rules:
        if rule[1:] == "@all":
            kept = [rule]
            continue
        kept = [other for other in kept if other[1:] != rule[1:] and not other[1:].startswith(f"{rule[1:]}|")]
        kept.append(rule)
    # A category is a group of its own; a command is sorted before its subcommands.
    groups = groupby(enumerate(kept), key=lambda item: item[0] if item[1][1] == "@" else -1)
    return tuple(rule for _, group in groups for rule in sorted((rule for _, rule in group), key=lambda rule: rule[1:]))


def build(name: str, words: Iterable[str]) -> User:
    """Return the user that ACL SETUSER makes of a new one with these words; raises AclError for unknown ones."""
    enabled, is_open, unsanitized = False, False, False
    hashes: set[str] = set()
    keys: set[str] = set()
    channels: set[str] = set()
    rules: list[str] = []
    for word in words:
        rule = SYNONYMS.get(word.lower(), word)
        if rule in FLAGS:
            enabled = {"on": True, "off": False}.get(rule, enabled)
            is_open = is_open or rule == "nopass"
            unsanitized = {"skip-sanitize-payload": True, "sanitize-payload": False}.get(rule, unsanitized)
        elif re.fullmatch(r"#[0-9a-f]{64}", rule):
            hashes.add(rule[1:])
        elif rule == "resetkeys":
            keys.clear()
        elif rule == "resetchannels":
            channels.clear()
        elif rule.startswith(("~", "%")):
            keys.add(f"~{rule[4:]}" if rule.upper().startswith(("%RW~", "%WR~")) else rule)
        elif rule.startswith("&"):
            channels.add(rule)
        elif rule.startswith(("+", "-")):
            rules.append(rule.lower())
        else:
            raise AclError(f"user {name}: {word!r} is no rule for keys (~), channels (&) or commands (+, -)")
    if "~*" in keys:
        keys = {"~*"}
    if "&*" in channels:
        channels = {"&*"}
    return User(
        name,
        enabled,
        frozenset(hashes),
        frozenset(keys),
        frozenset(channels),
        commands(rules),
        is_open,
        unsanitized,
    )


def parse(line: str) -> User:
    """Return the user of a line of ACL LIST or an ACL file; raises AclError for anything else."""
    words = line.split()
    if len(words) < 2 or words[0] != "user":
        raise AclError(f"not a user's line: {hide(line)!r}")
    # Redis prints selectors last.
    end = next((place for place, word in enumerate(words) if place > 1 and word.startswith("(")), len(words))
    return replace(build(words[1], words[2:end]), selectors=" ".join(words[end:]))


def parse_file(text: str) -> dict[str, User]:
    """Return the users of an ACL file by name; raises AclError where Redis would not load it: comments, duplicates."""
    users: dict[str, User] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        user = parse(line)
        if user.name in users:
            raise AclError(f"user {user.name} is there twice")
        users[user.name] = user
    return users


def render_file(users: Iterable[User]) -> str:
    """Return an ACL file, as ACL SAVE would write it."""
    return "".join(f"{user.line()}\n" for user in sorted(users, key=lambda user: user.name))


def hide(text: str) -> str:
    """Return a text without password hashes and passwords."""
    return re.sub(
        r"(^|(?<=\s))([#!])[0-9a-fA-F]{64}", r"\2(hidden)", re.sub(r"(^|(?<=\s))([<>])\S+", r"\2(hidden)", text)
    )
