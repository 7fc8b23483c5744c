"""The checks of verify.yml about an instance of Redis."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils.audit import (
    FAILED,
    Check,
    Unknown,
    Verdict,
    equals,
    holds,
    not_applicable,
    plain,
)
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_built_in import BUILT_IN, BY_NAME, BuiltIn, Right
from ansible_collections.quantdesk.redis.plugins.module_utils.redis_seen import Answer, Difference, Seen

# Days that a certificate must still be valid, and for which an append-only file that was cut is a failure.
CERTIFICATE_DAYS = 30
TOLD = 86400
NO_TLS = "redis_tls_port is 0"
NO_MUTUAL_TLS = "mutual TLS is off (redis_tls_auth_clients)"
NO_SENTINEL = "topology standalone has no Sentinel"
# The kernel's words for a process without privileges, and with a filter of system calls.
CONFINED = "CapEff:0000000000000000 NoNewPrivs:1 Seccomp:2"


def joined(parts: Any, otherwise: str) -> str:
    """Return parts in one line; other words where there is none."""
    return "; ".join(map(str, parts)) or otherwise


# --- What it answers ---


def ping(seen: Seen) -> Verdict:
    return equals(seen.answer("local").first(), "PONG")


def over_tls(seen: Seen) -> str:
    """Return the part of a row's name about the way in."""
    return ", over TLS" if seen.wanted.tls else ""


def version(seen: Seen) -> Verdict:
    replies = seen.answer("local").replies
    match = re.search(r"redis_version:([0-9.]+)", str(replies[1])) if len(replies) > 1 else None
    if match is None:
        raise Unknown("no answer to INFO")
    return holds(match[1].startswith("7."), match[1], "7.x")


def security_fixes(seen: Seen) -> Verdict:
    host = seen.host
    expected = "a version than which the archive that it is from has nothing newer, and that is not known to lack fixes"
    by_name = {host.version_accepted} - {""}
    if host.install == "source":
        return holds(host.source_version in by_name, host.source_version, expected)
    apt = packages(seen)
    misses = list(apt["lacks"].get(apt["installed"], ["it is not installed"]))
    misses += [f"the repository has {apt['newer']}"] if apt["newer"] else []
    found = f"{apt['installed']}, as {'; '.join(misses)}" if misses else apt["installed"]
    return holds(not misses or apt["installed"] in by_name, found, expected)


def archive(seen: Seen) -> Verdict:
    if seen.host.install == "source":
        return not_applicable("built from source: fixes come with a new redis_source_version")
    apt = packages(seen)
    amiss = [*apt["archive"], *(one["problem"] for one in apt["problems"])]
    amiss += [f"{path} is not as declared" for path in [*apt["differ"], *apt["left"]]]
    return equals(joined(amiss, "as declared"), "as declared")


def packages(seen: Seen) -> dict[str, Any]:
    """Return what apt has told; raises Unknown where there is none."""
    try:
        found: dict[str, Any] = seen.shared.apt
    except (OSError, KeyError) as error:
        raise Unknown(f"apt: {error}") from error
    return found


def accepted(seen: Seen) -> str:
    """Return the part of a row's name about a version that was accepted."""
    return " (redis_version_accepted)" if seen.host.version_accepted else ""


def anonymous(seen: Seen) -> Verdict:
    return refused_with(seen.answer("anonymous"), "NOAUTH")


def wrong_password(seen: Seen) -> Verdict:
    return refused_with(seen.answer("wrong"), "WRONGPASS")


def refused_with(answer: Answer, word: str) -> Verdict:
    """Return the verdict on a connection that is to be refused with a word."""
    return holds(word in answer.error, answer.first(), word)


def users(seen: Seen) -> Verdict:
    words = {"removed": "undeclared", "added": "missing", "updated": "different"}
    differ = [f"{word} {name}" for kind, word in words.items() for name in seen.users.users.get(kind, [])]
    return equals(seen.users.problem or ", ".join(differ) or "as declared", "as declared")


def plaintext_port(seen: Seen) -> Verdict:
    if seen.wanted.port:
        return not_applicable(f"redis_port is {seen.wanted.port}, as declared")
    return equals(seen.live("port"), "0")


# --- TLS ---


def plaintext(seen: Seen) -> Verdict:
    if not seen.wanted.tls:
        return not_applicable(NO_TLS, "a refusal")
    answer = seen.answer("plaintext")
    return holds(answer.error != "" and "NOAUTH" not in answer.error, answer.first(), "a refusal")


def plaintext_on_6379(seen: Seen) -> Verdict:
    if 6379 in (seen.wanted.port, seen.wanted.tls_port):
        return not_applicable("6379 is a declared port", "no listener")
    answer = seen.answer("plaintext port")
    return holds(not answer.connected, answer.first(), "no listener")


def handshake(seen: Seen, name: str) -> Verdict:
    """Return the verdict on a handshake that is to be refused."""
    if not seen.wanted.tls:
        return not_applicable(NO_TLS, "refused")
    answer = seen.answer(name)
    found = "a connection" if answer.connected else f"refused: {answer.error}"
    return holds(not answer.connected and "SSL" in answer.error, found, "refused")


def old_tls(seen: Seen) -> Verdict:
    return handshake(seen, "tls 1.1")


def cbc_ciphers(seen: Seen) -> Verdict:
    return handshake(seen, "cbc")


def mutual(seen: Seen, name: str) -> Verdict:
    """Return the verdict on a client that is to be refused for its certificate."""
    if not (seen.wanted.tls and seen.wanted.tls_auth_clients):
        return not_applicable(NO_MUTUAL_TLS, "refused")
    answer = seen.answer(name)
    return holds(answer.error != "" and "NOAUTH" not in answer.error, answer.first(), "refused")


def no_certificate(seen: Seen) -> Verdict:
    return mutual(seen, "no certificate")


def foreign_certificate(seen: Seen) -> Verdict:
    return mutual(seen, "foreign certificate")


def names(seen: Seen) -> Verdict:
    expected = f"{' and '.join(seen.wanted.names)} among them"
    if not seen.wanted.tls:
        return not_applicable(NO_TLS, expected)
    there = list(seen.answer("local").certificate.get("names", []))
    return holds(set(seen.wanted.names) <= set(there), " ".join(there), expected)


def certificate_days(seen: Seen) -> Verdict:
    expected = f"{CERTIFICATE_DAYS} or more"
    if not seen.wanted.tls:
        return not_applicable(NO_TLS, expected)
    days = int(seen.answer("local").certificate.get("days", 0))
    return holds(days >= CERTIFICATE_DAYS, days, expected)


def key(seen: Seen) -> Verdict:
    if not seen.wanted.tls:
        return not_applicable(NO_TLS, "0400 or 0440")
    allowed = [f"{mode} {owner}" for mode in ("400", "440") for owner in ("root", seen.wanted.user)]
    return holds(seen.key in allowed, seen.key, "0400 or 0440")


def replication(seen: Seen) -> Verdict:
    return equals(seen.live("tls-replication"), "yes") if seen.wanted.tls else not_applicable(NO_TLS)


def served_certificate(seen: Seen) -> Verdict:
    if not seen.wanted.tls:
        return not_applicable(NO_TLS)
    served = seen.answer("local").certificate.get("sha256", "")
    return equals("the one on the disk" if served == seen.certificate else "an older one", "the one on the disk")


# --- What users may ---


def config_as_app(seen: Seen) -> Verdict:
    if not seen.wanted.user_named("app"):
        return not_applicable("there is no user app", "NOPERM")
    answer = seen.answer("app")
    reply = answer.replies[1] if len(answer.replies) > 1 else answer.error
    return holds("NOPERM" in str(reply) and len(answer.replies) > 1, reply, "NOPERM")


def rights(user: BuiltIn, right: Right) -> Check[Seen]:
    """Return the check of what a built-in user may and may not."""

    def judge(seen: Seen) -> Verdict:
        declared = seen.wanted.user_named(user.name)
        if user.switch and not (declared and declared["enabled"]):
            return not_applicable(f"redis_{user.name}_user is false")
        if not declared:
            return not_applicable(f"there is no user {user.name}")
        if not user.confined(declared["rules"]):
            return not_applicable(f"the inventory has its own redis_{user.name}_rules")
        return equals(joined(seen.wrong(right.name), right.well), right.well)

    def declares(seen: Seen) -> str:
        words = seen.wanted.user_named(user.name).get("rules", "").split()
        chosen = [command.split()[0] for command, rule in right.by_rule if rule in words]
        return f", {' and '.join(chosen)} by declaration" if chosen else ""

    return Check(right.name, right.control, judge, declares if right.by_rule else None)


COMPARED = [user.name for user in BUILT_IN if user.compared is not None]


def compared_users(seen: Seen) -> Verdict:
    if not any(map(seen.wanted.user_named, COMPARED)):
        return not_applicable(f"there is no user {' or '.join(COMPARED)}, as topology standalone needs none")
    updated = COMPARED if seen.users.problem else seen.users.users.get("updated", [])
    differ = [name for name in COMPARED if name in updated]
    return equals(" and ".join(differ) or "the documented minimum", "the documented minimum")


def acl_log(seen: Seen) -> Verdict:
    expected = "the CONFIG GET that was refused above"
    if not seen.wanted.user_named("app"):
        return not_applicable("there is no user app", expected)
    entries = seen.answer("log").replies
    words = set(flat(entries))
    logged = {"config|get", "app"} <= words
    return holds(logged, "the refused CONFIG GET of app" if logged else "no entry of app", expected)


def flat(value: Any) -> list[str]:
    """Return the words of a reply, of its lists and of theirs."""
    return [word for part in value for word in flat(part)] if isinstance(value, (list, tuple)) else [str(value)]


# --- Its settings ---


def reason(item: Any) -> str:
    """Return in words why a directive needs a restart."""
    return f"{item['directive']} is {item['running']}, wanted {item['wanted']}"


def directives(seen: Seen) -> Verdict:
    found: Difference = seen.directives
    differ = [*found.applied, *map(reason, found.restart)]
    return equals(found.problem or ", ".join(differ) or "as declared", "as declared")


def listening(seen: Seen) -> Verdict:
    return equals(" ".join(sorted(seen.listening)), " ".join(sorted(seen.wanted.sockets)))


def bind(seen: Seen) -> Verdict:
    return equals(seen.live("bind"), " ".join(map(str, seen.wanted.directives["bind"])))


def protected_mode(seen: Seen) -> Verdict:
    return equals(seen.live("protected-mode"), "yes")


def dangerous_commands(seen: Seen) -> Verdict:
    kinds = ("enable-debug-command", "enable-module-command", "enable-protected-configs")
    return equals(" ".join(map(seen.live, kinds)), "no no no")


def maxmemory(seen: Seen) -> Verdict:
    return equals(int(seen.live("maxmemory")), seen.wanted.maxmemory)


def maxmemory_policy(seen: Seen) -> Verdict:
    return equals(seen.live("maxmemory-policy"), str(seen.wanted.directives["maxmemory-policy"]))


def appendonly(seen: Seen) -> Verdict:
    return equals(seen.live("appendonly"), "yes" if seen.wanted.switched_on("appendonly") else "no")


def appendfsync(seen: Seen) -> Verdict:
    return equals(seen.live("appendfsync"), str(seen.wanted.directives["appendfsync"]))


def save(seen: Seen) -> Verdict:
    return equals(seen.live("save"), " ".join(map(str, seen.wanted.directives["save"])))


def maxclients(seen: Seen) -> Verdict:
    return equals(int(seen.live("maxclients")), int(seen.wanted.directives["maxclients"]))


def output_buffers(seen: Seen) -> Verdict:
    name = "client-output-buffer-limit"
    return equals("as declared" if name not in seen.directives.applied else seen.live(name), "as declared")


# --- Its unit, process and files ---


def unit(seen: Seen) -> Verdict:
    states = (seen.unit.get("ActiveState", "unknown"), seen.unit.get("UnitFileState", "unknown"))
    return equals(", ".join(states), "active, enabled")


# With the tail of its file cut, as a power failure leaves it, Redis starts by itself and drops what was never written
# to its end. No repair brings that back, so it must not fail for ever, nor until somebody restarts Redis to silence it.
# But the owner of the data must know: it fails for a day, so that each daily run shows it once, and is told after that.
def append_only_file(seen: Seen) -> Verdict:
    expected = "whole, or cut more than a day ago"
    if not seen.wanted.switched_on("appendonly"):
        return not_applicable("redis_appendonly is false", expected)
    cut = seen.cut
    return holds(cut is None or cut.age > TOLD, cut.text if cut else "whole", expected)


def exposure(seen: Seen) -> Verdict:
    figure, limit = seen.exposure, seen.wanted.exposure
    return holds(bool(figure) and float(figure) <= limit, figure or "unknown", f"{limit:g} or less")


def process_user(seen: Seen) -> Verdict:
    return equals(seen.process_user, seen.wanted.user)


def confinement(seen: Seen) -> Verdict:
    return equals(seen.confinement, CONFINED)


def readable(seen: Seen) -> Verdict:
    return equals(" ".join(seen.readable) or "none", "none")


def foreign(seen: Seen) -> Verdict:
    return equals(" ".join(seen.foreign) or "none", "none")


def reached(seen: Seen) -> Verdict:
    return equals(", ".join(seen.reached) or "nothing", "nothing")


def folders(seen: Seen) -> Verdict:
    wanted = seen.wanted
    # The package makes the log's folder for the one without a name, and systemd sets its mode at each start.
    modes = {wanted.folder: wanted.folder_mode.lstrip("0"), wanted.data: "750", wanted.log_folder: "750"}
    declared = {f"{wanted.user} {mode} {path}" for path, mode in modes.items()}
    return equals(", ".join(one for one in seen.folders if one not in declared) or "as declared", "as declared")


def plain_files(seen: Seen) -> Verdict:
    return equals(joined(seen.odd_files, "plain files of its own"), "plain files of its own")


def passwords(seen: Seen) -> Verdict:
    clear, hashes = seen.passwords
    expected = "none clear, one hash or more for each user"
    return holds(clear == 0 and hashes >= len(seen.wanted.users), f"{clear} clear, {hashes} hashed", expected)


def secrets(seen: Seen) -> Verdict:
    return equals(joined(seen.secrets, "none"), "none")


def kernel(seen: Seen) -> Verdict:
    host, said = seen.host, seen.shared.kernel
    expected = f"overcommit 1, huge pages never, somaxconn {host.somaxconn} or more"
    if not host.kernel:
        return not_applicable(f"{host.name} is a container: its kernel belongs to another host", expected)
    found = f"overcommit {said['overcommit']}, huge pages {said['huge pages']}, somaxconn {said['somaxconn']}"
    well = (
        said["overcommit"] == "1" and said["huge pages"] in ("never", "") and int(said["somaxconn"]) >= host.somaxconn
    )
    return holds(well, found, expected)


# --- What a live host cannot show, or this topology has no place for ---


def sentinel(seen: Seen) -> Verdict:
    """Return the verdict on what is asked of Sentinel."""
    if seen.host.topology != "sentinel":
        return not_applicable(NO_SENTINEL)
    return Verdict(plain("nothing (Sentinel is not queried yet)"), "", FAILED)


def output(seen: Seen) -> Verdict:
    return not_applicable("about Ansible's output, not about a host: tests/test_secrets_in_output.py")


# Of a host with several instances, the first one tells of the host.
UNDECLARED = "Redis processes that are no declared instance, as PID, unit and port"


def undeclared(seen: Seen) -> Verdict:
    return equals(",".join(seen.shared.undeclared) or "none", "none")


# The table: a name, a number in docs/controls.md, and what judges it.
CHECKS: list[Check[Seen]] = [
    # What it answers.
    Check("PING as admin", None, ping, over_tls),
    Check("version that runs", None, version),
    Check("security fixes", 1, security_fixes, accepted),
    Check("archive that security fixes come from", 2, archive),
    Check("PING without a password", 17, anonymous),
    Check("login with a wrong password", 16, wrong_password),
    Check("users, compared with the inventory", 16, users),
    Check("plaintext port", 3, plaintext_port),
    # TLS.
    Check("PING in plaintext to the TLS port", 5, plaintext),
    Check("PING in plaintext to port 6379", 5, plaintext_on_6379),
    Check("TLS 1.1 and older", 6, old_tls),
    Check("TLS 1.2 with CBC ciphers", 7, cbc_ciphers),
    Check("no client certificate", 8, no_certificate),
    Check("client certificate of a foreign authority", 9, foreign_certificate),
    Check("names in the certificate", 10, names),
    Check("days until the certificate ends", 11, certificate_days),
    Check("mode of the certificate's key", 12, key),
    Check("replication over TLS", 13, replication),
    Check("certificate that is served", 42, served_certificate),
    # What users may.
    Check("CONFIG GET as app", 18, config_as_app),
    # The application's first, as the control before is about it, too.
    *(rights(user, right) for user in sorted(BUILT_IN, key=lambda user: user.name != "app") for right in user.rights),
    Check(f"rights of {' and '.join(COMPARED)}", BY_NAME["replica"].compared, compared_users),
    Check("ACL LOG", 40, acl_log),
    # Its settings.
    Check("directives, compared with the inventory", None, directives),
    Check("listening sockets", 4, listening),
    Check("bind", None, bind),
    Check("protected-mode", 27, protected_mode),
    Check("commands for debugging, modules and protected settings", 26, dangerous_commands),
    Check("maxmemory", None, maxmemory),
    Check("maxmemory-policy", None, maxmemory_policy),
    Check("appendonly", None, appendonly),
    Check("appendfsync", None, appendfsync),
    Check("save", None, save),
    Check("maxclients", 38, maxclients),
    Check("client-output-buffer-limit", 38, output_buffers),
    # Its unit, process and files.
    Check("unit", None, unit),
    Check("append-only file at the last start", None, append_only_file),
    Check("exposure in systemd-analyze security, of 10", 30, exposure),
    Check("user of the process", 31, process_user),
    Check("confinement of the process", 32, confinement),
    Check("files that others may read", 33, readable),
    Check("configuration that another user of the host can read", 41, foreign),
    Check("access of other instances' users to its configuration, data and log", 55, reached),
    Check("owner and mode of its folders", 56, folders),
    Check("redis.conf and users.acl, which root reads and writes", 58, plain_files),
    Check("passwords in the ACL file", 25, passwords),
    Check("secrets on command lines, in the journal, log, unit and configuration", 34, secrets),
    Check("kernel", 39, kernel),
    # What a live host cannot show, or this topology has no place for.
    Check("Sentinel without a password", 14, sentinel),
    Check("Sentinel in plaintext", 15, sentinel),
    Check("a failing task prints no secret", 35, output),
    Check(UNDECLARED, 4, undeclared),
]


def rows(seen: Seen, first: bool) -> list[dict[str, Any]]:
    """Return the rows of an instance; those of its host where it is the first one there."""
    asked = [check for check in CHECKS if first or check.name != UNDECLARED]
    return [check.row(seen.wanted.subject, seen).as_dict() for check in asked]
