"""A table of the kernel's packet filter, and what it should be: both as the kernel prints them."""

from __future__ import annotations

import difflib
import json
import pwd
import re
import subprocess
from dataclasses import dataclass
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import programs

NFT = "/usr/sbin/nft"
# Seconds that a program may take.
PATIENCE = 30
# Between the two lists that one shell prints.
BETWEEN = "=== in JSON ===\n"
USER = re.compile(r'\bskuid "([^"]+)"')


class Refused(Exception):
    """Rules that the kernel refuses, and nft's message about them."""


@dataclass
class Listing:
    """A table as text and as nftables' JSON without what differs from load to load; empty where there is none."""

    text: str = ""
    objects: tuple[str, ...] = ()

    def rules(self, chain: str) -> list[str]:
        """Return the rules of a chain, a line each."""
        body = re.search(rf"^\tchain {chain} {{\n(.*?)^\t}}$", self.text, re.MULTILINE | re.DOTALL)
        lines = body[1].splitlines() if body else []
        return [line.strip() for line in lines if not line.strip().startswith("type ")]

    def policy(self, chain: str) -> str:
        """Return what a chain does with the packets that no rule of it decides about; empty without that chain."""
        found = re.search(rf"^\tchain {chain} {{\n\t\ttype [^;]*; policy (\w+);$", self.text, re.MULTILINE)
        return found[1] if found else ""


def run(*words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program with a text as its input."""
    done: subprocess.CompletedProcess[str] = programs.run(words, input=text, timeout=PATIENCE)
    return done


def load(rules: str, *options: str) -> None:
    """Load rules, in one transaction; raises Refused."""
    done = run(NFT, *options, "--file", "-", text=rules)
    if done.returncode != 0:
        raise Refused(done.stderr.strip())


def objects(text: str) -> tuple[str, ...]:
    """Return the objects of a table, in order, without the handles that the kernel counts up."""
    found = []
    for item in json.loads(text or "{}").get("nftables", []):
        for kind, value in item.items():
            if kind != "metainfo":
                found.append(json.dumps({kind: {k: v for k, v in value.items() if k != "handle"}}, sort_keys=True))
    return tuple(found)


def listing(done: subprocess.CompletedProcess[str]) -> Listing:
    """Return what a shell has listed."""
    text, _, in_json = done.stdout.partition(BETWEEN)
    return Listing(text, objects(in_json))


def questions(table: str) -> str:
    """Return the commands that list a table."""
    shown = f"list table inet {table}"
    return f"{NFT} --stateless --guid {shown} && echo '{BETWEEN.strip()}' && {NFT} --json --stateless {shown}"


def live(table: str) -> Listing:
    """Return a table as it is in the kernel."""
    return listing(run("/bin/sh", "-c", questions(table)))


def wanted(table: str, rules: str) -> Listing:
    """Return a table as the kernel would have it after loading rules, in a network namespace of its own.

    Raises Refused.
    """
    done = run("unshare", "--net", "/bin/sh", "-c", f"{NFT} --file - && {questions(table)}", text=rules)
    if done.returncode != 0:
        raise Refused(done.stderr.strip())
    return listing(done)


def differences(table: str, should: Listing, there: Listing) -> list[str]:
    """Return what a table lacks (-) and what it has besides (+)."""
    if not there.text:
        return [f"- table inet {table}"]
    lines = difflib.unified_diff(should.text.splitlines(), there.text.splitlines(), n=0, lineterm="")
    found = [" ".join(line.split()) for line in lines if not line.startswith(("---", "+++", "@@")) and line[1:].strip()]
    if not found and should.objects != there.objects:
        return ["+ something that only nft --json list table shows"]
    return [f"{line[0]} {line[1:].strip()}" for line in found]


def named_users(rules: str) -> list[str]:
    """Return the users whose packets rules are about."""
    return sorted(set(USER.findall(rules)))


def unknown_users(rules: str) -> list[str]:
    """Return those of them that this host does not have."""
    return [name for name in named_users(rules) if not exists(name)]


def exists(user: str) -> bool:
    """Return whether this host has a user."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def without(rules: str, users: list[str]) -> str:
    """Return rules without the lines about some users, who have no process on this host."""
    lines = rules.splitlines(keepends=True)
    return "".join(line for line in lines if not set(USER.findall(line)) & set(users))


def openings(should: Listing, there: Listing) -> list[str]:
    """Return the rules that let a user connect somewhere, and that a table with such rules lacks."""
    present = there.rules("output")
    return [rule for rule in should.rules("output") if USER.search(rule) and " accept" in rule and rule not in present]


def confined(there: Listing) -> dict[str, int]:
    """Return the users whose connections are refused unless a rule allows them, with the number of such rules."""
    found: dict[str, int] = {}
    allowed: dict[str, int] = {}
    for rule in there.rules("output"):
        match = USER.search(rule)
        if match is None:
            continue
        if re.match(rf'meta skuid "{re.escape(match[1])}" (reject|drop)\b', rule):
            found.setdefault(match[1], allowed.get(match[1], 0))
        elif " accept" in rule:
            allowed[match[1]] = allowed.get(match[1], 0) + 1
    return found


def answer(table: str, there: Listing) -> dict[str, Any]:
    """Return the facts about a live table that verify.yml checks."""
    return {
        "policies": {chain: there.policy(chain) for chain in ("input", "forward")},
        "confined": confined(there),
    }
