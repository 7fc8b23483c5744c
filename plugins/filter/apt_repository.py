"""Jinja filters for a repository of apt that the operator names: what is wrong with it, and its files for a host."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

INPUTS = ("url", "suite", "components", "key", "fingerprint", "version")
ARMOUR = re.compile(r"-----BEGIN PGP (.+?)-----\s*?\n(.*?)-----END PGP \1-----", re.DOTALL)
# What each must be, beside the sentence that says so; a key has more to it.
FORMS = {
    "url": (r"https?://[A-Za-z0-9.:\[\]-]+(/[\w.~+%/-]*)?", "a URL with http:// or https://, without a password in it"),
    "suite": (r"[A-Za-z0-9./][\w.+~/-]*", "the suite, such as bookworm; or a path that ends with a slash"),
    "fingerprint": (r"([0-9A-F]{40}|[0-9A-F]{64})?", "the key's fingerprint, 40 or 64 hexadecimal digits, or none"),
    "version": (
        r"|7(\.[0-9]+)?|([0-9]+:)?7\.[0-9]+[0-9A-Za-z.+~-]*",
        "a version of a Redis 7 to hold, such as 6:7.2.11-1; the beginning of one, such as 7.2; or none",
    ),
}
Problem = dict[str, str]


def dearmour(text: str) -> bytes:
    """Return the public keys in a text as gpg --armor prints them; raises ValueError with what it has instead."""
    blocks = ARMOUR.findall(text)
    if not blocks:
        raise ValueError("no block of PGP")
    data = b""
    for kind, block in blocks:
        if kind != "PUBLIC KEY BLOCK":
            raise ValueError(f"a {kind.lower()}")
        # Headers end with an empty line, and the checksum begins with =.
        lines = re.sub(r"\A(?:[A-Za-z-]+:.*\n)*\s*", "", block).split()
        try:
            data += base64.b64decode("".join(line for line in lines if not re.match("=....$", line)), validate=True)
        except binascii.Error:
            raise ValueError("a block of PGP that is damaged") from None
    return data


def packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the packets of OpenPGP as kind and content (RFC 9580, 4.2); raises ValueError if these are none."""
    at = 0
    while at < len(data):
        first = data[at]
        if first < 0x80 or at + 2 > len(data):
            raise ValueError("no key of OpenPGP")
        at += 1
        if first & 0x40:
            kind, octet = first & 0x3F, data[at]
            size = 1 if octet < 192 else 2 if octet < 224 else 5 if octet == 255 else 0
            if not size:
                raise ValueError("no key of OpenPGP")
            field = data[at : at + size]
            length = field[0] if size == 1 else ((field[0] - 192) << 8) + field[1] + 192 if size == 2 else 0
            length = int.from_bytes(field[1:], "big") if size == 5 else length
        else:
            kind, size = first >> 2 & 0x0F, (1, 2, 4, 0)[first & 3]
            if not size:
                raise ValueError("no key of OpenPGP")
            length = int.from_bytes(data[at : at + size], "big")
        at += size
        if at + length > len(data):
            raise ValueError("a truncated key")
        yield kind, data[at : at + length]
        at += length


def fingerprints(data: bytes) -> list[str]:
    """Return the fingerprints of the keys in a keyring; raises ValueError with what it has instead."""
    found = list(packets(data))
    if any(kind in (5, 7) for kind, _ in found):
        raise ValueError("a private key")
    prints = []
    for kind, body in found:
        if kind == 6 and body[:1] == b"\4":
            hashed = b"\x99" + len(body).to_bytes(2, "big") + body
            # Not for security: it is what OpenPGP calls a key of version 4.
            prints.append(hashlib.sha1(hashed, usedforsecurity=False).hexdigest().upper())
        elif kind == 6 and body[:1] == b"\6":
            prints.append(hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper())
        elif kind == 6:
            raise ValueError("a key of a version that is neither 4 nor 6")
    if not prints:
        raise ValueError("no public key")
    return prints


def read_key(key: str) -> bytes:
    """Return a keyring from a text, or from a file on the controller; raises ValueError with what there is instead."""
    if "-----BEGIN" in key:
        return dearmour(key)
    try:
        data = Path(key).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{key}: {error.strerror}") from error
    if b"-----BEGIN" in data:
        return dearmour(data.decode("utf-8", "replace"))
    return data


def armour(data: bytes) -> str:
    """Return a keyring in the text form that apt reads; the checksum is optional, and RFC 9580 advises against it."""
    text = base64.b64encode(data).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN PGP PUBLIC KEY BLOCK-----", "", *lines, "-----END PGP PUBLIC KEY BLOCK-----", ""])


def plain_fingerprint(value: Any) -> str:
    """Return a fingerprint without the blanks that gpg puts into it."""
    return re.sub(r"[\s:]", "", str(value)).upper()


def problems(repository: Any) -> list[Problem]:
    """Return what is wrong with redis_repository, in the form of the plugin `checks`."""
    if not isinstance(repository, Mapping):
        return [
            {
                "name": "redis_repository",
                "problem": f"{repository!r}",
                "expected": f"a mapping with {', '.join(INPUTS)}",
            }
        ]
    found: list[Problem] = []

    def refuse(key: str, problem: str, expected: str) -> None:
        found.append({"name": f"redis_repository.{key}", "problem": problem, "expected": expected})

    for key in repository:
        if key not in INPUTS:
            refuse(str(key), "an input that there is not", f"one of {', '.join(INPUTS)}")
    for key, (form, expected) in FORMS.items():
        value = repository.get(key, "")
        text = plain_fingerprint(value) if key == "fingerprint" else value
        if not isinstance(text, str) or not re.fullmatch(form, text):
            # What stands before an @ may be a password.
            shown = re.sub(r"//[^/]*@", "//…@", str(value))
            refuse(key, shown or "nothing", expected)
    components, suite = repository.get("components", []), str(repository.get("suite", ""))
    named = isinstance(components, list) and all(re.fullmatch(r"[\w][\w.+/-]*", str(name)) for name in components)
    if not named or bool(components) == suite.endswith("/"):
        refuse("components", f"{components}", "a list such as [main]; an empty one if the suite ends with a slash")
    if (key := repository.get("key", "")) and isinstance(key, str):
        try:
            prints = fingerprints(read_key(key))
        except ValueError as error:
            refuse("key", str(error), "the repository's public key: a file on the controller, or its text")
        else:
            wanted = plain_fingerprint(repository.get("fingerprint", ""))
            if wanted and re.fullmatch(FORMS["fingerprint"][0], wanted) and prints != [wanted]:
                refuse("key", f"the key {' and '.join(prints)}", f"{wanted}, by redis_repository.fingerprint")
    else:
        refuse("key", "nothing" if not key else "no text", "the public key: a file on the controller, or its text")
    return found


def wanted(repository: Mapping[str, Any], header: str) -> dict[str, str]:
    """Return what a host must know of a repository; nothing of one that is wrong.

    Of the source, in the form of deb822, it lacks the line with the place of the key.
    """
    if problems(repository):
        return {}
    try:
        key = armour(read_key(repository["key"]))
    except ValueError as error:
        raise AnsibleFilterError(f"redis_repository.key: {error}") from error
    lines = {
        "Types": "deb",
        "URIs": repository["url"],
        "Suites": repository["suite"],
        "Components": " ".join(map(str, repository.get("components", []))),
    }
    text = "".join(f"{name}: {value}\n" for name, value in lines.items() if value)
    parts = {name: str(repository.get(name, "")) for name in ("url", "suite", "version")}
    return {**parts, "sources": f"{header.rstrip()}\n{text}", "key": key}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {"apt_repository_problems": problems, "apt_repository_wanted": wanted}
