"""What is on a host already that roles must not overwrite, shut out or be shut out by. Reads only."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.quantdesk.redis.plugins.module_utils import programs
from ansible_collections.quantdesk.redis.plugins.module_utils.listeners import listeners, ssh_connection

Json = dict[str, Any]
# Seconds that a program may take.
PATIENCE = 10
# Of what an operator is shown, so many are enough to know what it is.
SHOWN = 8


def output(*words: str) -> str:
    """Return what a program prints; nothing where there is none, or where it fails."""
    try:
        done = programs.run(words, timeout=PATIENCE, cwd="/")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def text_of(path: str | Path) -> str:
    """Return a file's text; nothing for what cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- Users and files ---


def users() -> Json:
    """Return the host's users by name."""
    return {user.pw_name: {"uid": user.pw_uid, "home": user.pw_dir, "shell": user.pw_shell} for user in pwd.getpwall()}


def folders(above: str) -> dict[str, list[str]]:
    """Return by path the names in each folder of a folder."""
    found: dict[str, list[str]] = {}
    for folder in sorted(Path(above).glob("*")):
        try:
            if folder.is_dir():
                found[str(folder)] = sorted(os.listdir(folder))[:SHOWN]
        except OSError:
            continue
    return found


def unmarked(marker: str, *patterns: str) -> list[str]:
    """Return the files that some patterns match and that lack a marker; links, as systemd makes them, are no files."""
    paths = [path for pattern in patterns for path in Path("/").glob(pattern.lstrip("/"))]
    return sorted(
        str(path) for path in paths if not path.is_symlink() and path.is_file() and marker not in text_of(path)
    )


def tls_required(*patterns: str) -> list[str]:
    """Return the environment files by which an application takes TLS alone."""
    paths = [path for pattern in patterns for path in Path("/").glob(pattern.lstrip("/"))]
    return sorted(str(path) for path in paths if re.search(r'^TLS_REQUIRED="true"$', text_of(path), re.MULTILINE))


def resolvers(path: str = "/etc/resolv.conf") -> list[str]:
    """Return the name servers that programs of this host ask; 127.0.0.53 is systemd-resolved, on the host itself."""
    servers = re.findall(r"^nameserver[ \t]+([0-9A-Fa-f.:]+)", text_of(path), re.MULTILINE)
    # The C library takes no more.
    return servers[:3]


# --- HAProxy ---


def in_plaintext(admin: str) -> bool:
    """Return whether the HAProxy that runs reaches its servers in plaintext, as it says; none does where none runs."""
    said = b""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(admin)
            client.sendall(b"show servers state app\n")
            while piece := client.recv(65536):
                said += piece
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError:
        # It runs, and what it does is not known.
        return True
    lines = [line.split() for line in said.decode(errors="replace").splitlines()]
    names = next((line[1:] for line in lines if line[:1] == ["#"]), [])
    servers = [dict(zip(names, line, strict=True)) for line in lines if names and len(line) == len(names)]
    return not servers or any(server.get("srv_use_ssl") != "1" for server in servers)


def haproxy(marker: str, path: str = "/etc/haproxy/haproxy.cfg") -> Json:
    """Return the owner of HAProxy's configuration: missing, the package's, this bundle's (ours), or foreign."""
    text = text_of(path)
    if not os.path.exists(path):
        return {"file": path, "origin": "missing", "sections": []}
    if marker in text:
        servers = re.findall(r"^ +server .*$", text, re.MULTILINE)
        tls = all(" ssl verify required " in f"{server} " for server in servers)
        admin = re.search(r"^ +stats socket (/\S+)", text, re.MULTILINE)
        # A run that was interrupted may have written a file that the process has not taken over.
        tls = tls and not (admin and in_plaintext(admin[1]))
        return {"file": path, "origin": "ours", "sections": [], "backends": "TLS" if tls else "plaintext"}
    packaged = re.search(
        rf"^ *{re.escape(path)} ([0-9a-f]{{32}})", output("dpkg-query", "-Wf${Conffiles}\n", "haproxy"), re.M
    )
    same = (
        packaged is not None and hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest() == packaged[1]
    )
    sections = re.findall(r"^(?:frontend|listen|backend)[ \t]+\S+", text, re.MULTILINE)
    return {"file": path, "origin": "package" if same else "foreign", "sections": sections[:SHOWN]}


# --- PostgreSQL ---

# Who may log in to a cluster that pg_createcluster has just made; older ones say md5.
PACKAGE_HBA = {
    "local all postgres peer",
    "local all all peer",
    "local replication all peer",
    *(
        f"host {database} all {address} scram-sha-256"
        for database in ("all", "replication")
        for address in ("127.0.0.1/32", "::1/128")
    ),
}
# Where Debian's packages have programs and data, in a folder for each version.
PROGRAMS = "/usr/lib/postgresql"
DATA = "/var/lib/postgresql"
# What stands below it in our pg_hba.conf is not ours.
KEPT = "# --- From before: these lines are others', and stay as they are ---\n"
# One question for all that matters of a cluster. In older ones anybody may have functions in the schema public: none
# is to be taken for PostgreSQL's own.
QUESTION = """
SET search_path = pg_catalog;
SELECT json_build_object(
  'databases', (SELECT json_object_agg(datname, pg_get_userbyid(datdba)) FROM pg_database WHERE NOT datistemplate),
  'roles', (SELECT json_object_agg(rolname, rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
            FROM pg_roles WHERE oid >= 16384 OR rolname = 'postgres'),
  'listen', current_setting('listen_addresses'),
  'connections', current_setting('max_connections')::int)
"""


def rules(hba: str) -> list[str]:
    """Return the lines of a pg_hba.conf that say something, with single blanks."""
    lines = (" ".join(line.split("#", 1)[0].split()) for line in hba.splitlines())
    return [line for line in lines if line]


def setting(conf: str, name: str) -> str:
    """Return a setting of a postgresql.conf; the last counts."""
    found = re.findall(rf"^\s*{name}\s*(?:=|\s)\s*('[^'\n]*'|[^\s#]+)", conf, re.MULTILINE | re.IGNORECASE)
    return found[-1].strip("'") if found else ""


def started(folder: Path) -> str:
    """Return how a cluster starts, by its start.conf: auto (with the host), manual or disabled."""
    words = re.findall(r"^\s*([a-z]+)", text_of(folder / "start.conf"), re.MULTILINE)
    return words[0] if words else "auto"


def cluster(folder: Path, marker: str) -> Json:
    """Return what is known of a PostgreSQL cluster from its folder of settings, and from itself where it runs."""
    version, name = folder.parent.name, folder.name
    conf, hba = text_of(folder / "postgresql.conf"), text_of(folder / "pg_hba.conf")
    ours = marker in hba
    included = bool(re.search(r"^\s*include_dir\s*=?\s*'?conf\.d'?", conf, re.MULTILINE))
    # The package's file names the folder behind all of its own settings.
    more = "\n".join(text_of(path) for path in sorted((folder / "conf.d").glob("*.conf"))) if included else ""
    data = setting(conf, "data_directory") or f"{DATA}/{version}/{name}"
    packaged = {rule.replace(" md5", " scram-sha-256") for rule in rules(hba)} == PACKAGE_HBA
    found: Json = {
        "version": version,
        "name": name,
        "port": int(setting(more, "port") or setting(conf, "port") or 5432),
        "start": started(folder),
        # Its program and its data: after an upgrade of the distribution one may be there without the other.
        "program": os.path.exists(f"{PROGRAMS}/{version}/bin/postgres"),
        "data": data if os.path.exists(f"{data}/PG_VERSION") else "",
        "ours": ours,
        "hba": "ours" if ours else "package" if packaged else "changed",
        # What others had there before, of a file that is ours by now, too.
        "kept": hba.partition(KEPT)[2] if ours else hba,
        "conf.d": included,
        "known": False,
        "databases": {},
        "roles": {},
    }
    if not ours:
        told = output(
            "runuser", "-u", "postgres", "--", "psql", "-X", "--cluster", f"{version}/{name}", "-qAtc", QUESTION
        )
        if told.strip():
            found |= {"known": True, **json.loads(told)}
    return found


def clusters(marker: str, above: str = "/etc/postgresql") -> list[Json]:
    """Return all PostgreSQL clusters of Debian's kind."""
    return [cluster(path.parent, marker) for path in sorted(Path(above).glob("*/*/postgresql.conf"))]


def lost_data(above: str = "/etc/postgresql") -> list[str]:
    """Return the folders with a PostgreSQL cluster's data that no folder of settings belongs to."""
    found = [path.parent for path in sorted(Path(DATA).glob("*/*/PG_VERSION"))]
    return [str(path) for path in found if not Path(above, path.parent.name, path.name, "postgresql.conf").exists()]


# --- Packet filters ---

Range = tuple[int, int]


class Chain:
    """What one base chain does with new TCP connections from elsewhere, as far as that can be read from its rules."""

    def __init__(self) -> None:
        self.accepts: list[Range] = []
        self.refuses: list[Range] = []
        # Accepts any port, of some addresses at least.
        self.all = False
        # Has something that is not understood here.
        self.unknown = False


def _words(right: Any) -> list[Any] | None:
    """Return the elements of the right side of a match; None for a named set, which is elsewhere."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    elif isinstance(right, str) and right.startswith("@"):
        return None
    return right if isinstance(right, list) else [right]


def _ranges(right: Any) -> list[Range] | None:
    found: list[Range] = []
    for word in _words(right) or []:
        if isinstance(word, dict) and "range" in word:
            found.append((int(word["range"][0]), int(word["range"][1])))
        elif isinstance(word, int):
            found.append((word, word))
        else:
            return None
    return found or None


class Rule:
    """One rule: whether it may concern a new TCP connection from elsewhere, of which ports, and what it does then."""

    def __init__(self, expressions: list[Any]) -> None:
        self.applies = True
        self.unknown = False
        # Whether it concerns all such connections.
        self.plain = True
        self.ports: list[Range] | None = None
        self.verdict = ""
        self.target = ""
        for expression in expressions:
            name: str = next(iter(expression)) if isinstance(expression, dict) else str(expression)
            value: Any = expression[name] if isinstance(expression, dict) else None
            if name == "match":
                self._match(value)
            elif name in ("accept", "drop", "reject", "return"):
                self.verdict = name
            elif name in ("jump", "goto"):
                self.verdict, self.target = name, value["target"]
            elif name == "xt" and isinstance(value, dict):
                # Of what iptables made, nft shows the names alone.
                self._extension(str(value.get("name")))
            elif name not in ("counter", "log", "comment", "limit"):
                self.unknown = True
            elif name == "limit":
                self.plain = False

    def _extension(self, name: str) -> None:
        if name in ("icmp", "icmp6"):
            self.applies = False
        elif name == "REJECT":
            self.verdict = "reject"
        elif name not in ("comment", "LOG"):
            self.unknown = True

    def _match(self, match: Json) -> None:
        left, right, equal = match["left"], match["right"], match["op"] in ("==", "in")
        payload = left.get("payload", {}) if isinstance(left, dict) else {}
        key = left.get("meta", {}).get("key", "") if isinstance(left, dict) else ""
        protocol = payload.get("protocol", "")
        if protocol in ("tcp", "th") and payload.get("field") == "dport":
            self.ports = _ranges(right) if equal else None
            self.unknown = self.unknown or self.ports is None
        elif key == "l4proto" or (protocol, payload.get("field")) in (("ip", "protocol"), ("ip6", "nexthdr")):
            words = _words(right)
            self.unknown = self.unknown or words is None or not equal
            self.applies = self.applies and (words is None or bool({"tcp", 6} & set(map(_plain, words))) is equal)
        elif protocol in ("udp", "icmp", "icmpv6", "sctp", "dccp", "ah", "esp"):
            self.applies = False
        elif isinstance(left, dict) and left.get("ct", {}).get("key") == "state":
            self.applies = self.applies and ("new" in (_words(right) or [])) is equal
        elif key in ("iifname", "iif"):
            self.applies = self.applies and not (equal and _words(right) == ["lo"])
            self.plain = False
        elif key == "pkttype":
            self.applies = self.applies and not (equal and "host" not in (_words(right) or []))
        else:
            # Addresses and the like: of some connections it is true.
            self.plain = False
            self.unknown = self.unknown or protocol not in ("ip", "ip6", "ether")


def _plain(word: Any) -> Any:
    return word if isinstance(word, (str, int)) else str(word)


def walk(rules_of: dict[str, list[list[Any]]], name: str, chain: Chain, seen: frozenset[str] = frozenset()) -> bool:
    """Note what a chain does; return whether nothing that follows where it was called from is reached."""
    for expressions in rules_of.get(name, []):
        rule = Rule(expressions)
        if not rule.applies or (not rule.verdict and not rule.unknown):
            continue
        if rule.unknown:
            chain.unknown = True
        elif rule.verdict == "accept":
            if rule.ports is None:
                chain.all = True
                if rule.plain:
                    return True
            else:
                chain.accepts += rule.ports
        elif rule.verdict in ("drop", "reject") and rule.plain:
            if rule.ports is None:
                return True
            chain.refuses += rule.ports
        elif rule.verdict in ("jump", "goto") and rule.target not in seen:
            inner = Chain()
            ends = walk(rules_of, rule.target, inner, seen | {name})
            chain.unknown = chain.unknown or inner.unknown
            chain.accepts += rule.ports or [] if inner.all and rule.ports else inner.accepts
            chain.all = chain.all or (inner.all and rule.ports is None)
            if rule.plain and rule.ports is None:
                chain.refuses += inner.refuses
                if ends:
                    return True
        elif rule.verdict == "return" and rule.plain and rule.ports is None:
            return False
    return False


def packet_filter(ruleset: Json) -> Json:
    """Return the tables of a ruleset (nft --json list ruleset), and the input chains that do not let everything in.

    A packet must pass each of them: what one of them drops, no other can let in.
    """
    tables: list[Json] = []
    bases: list[Json] = []
    rules_of: dict[str, dict[str, list[list[Any]]]] = {}
    names: dict[str, set[str]] = {}
    for item in ruleset.get("nftables", []):
        if "table" in item:
            tables.append({"family": item["table"]["family"], "name": item["table"]["name"]})
        elif "chain" in item:
            where = f"{item['chain']['family']} {item['chain']['table']}"
            names.setdefault(where, set()).add(item["chain"]["name"])
            if item["chain"].get("hook") == "input" and item["chain"].get("type") == "filter":
                bases.append(item["chain"])
        elif "rule" in item:
            where = f"{item['rule']['family']} {item['rule']['table']}"
            rules_of.setdefault(where, {}).setdefault(item["rule"]["chain"], []).append(item["rule"].get("expr", []))
    chains: list[Json] = []
    for base in bases:
        where = f"{base['family']} {base['table']}"
        chain = Chain()
        ends = walk(rules_of.get(where, {}), base["name"], chain)
        closed = not chain.all and (ends or base.get("policy") == "drop")
        # Where all else is let in, a rule that is not understood drops something in particular.
        if closed or chain.refuses:
            chains.append(
                {
                    "table": where,
                    "chain": base["name"],
                    "closed": closed,
                    "accepts": chain.accepts,
                    "refuses": chain.refuses,
                    "unknown": chain.unknown,
                    # These have commands of their own, and are asked by them.
                    "ufw": any(name.startswith(("ufw-", "ufw6-")) for name in names[where]),
                    "firewalld": base["table"] == "firewalld",
                }
            )
    return {"tables": tables, "chains": chains}


# What firewalld's services and ufw's applications open; of others it is not known here.
SERVICES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("ssh", "OpenSSH", "SSH"), (22,)),
    **dict.fromkeys(("http", "WWW", "Nginx HTTP", "Apache"), (80,)),
    **dict.fromkeys(("https", "WWW Secure", "Nginx HTTPS", "Apache Secure"), (443,)),
    **dict.fromkeys(("WWW Full", "Nginx Full", "Apache Full"), (80, 443)),
    **{"postgresql": (5432,), "redis": (6379,), "dhcpv6-client": (), "mdns": (), "cockpit": (9090,)},
}


def ufw(status: str) -> Json:
    """Return what `ufw status verbose` says: the TCP ports that it lets in, and names that it has for some."""
    if not re.search(r"^Status: active", status, re.MULTILINE):
        return {"active": False, "open": True, "accepts": [], "unknown": []}
    found: Json = {"active": True, "open": "allow (incoming)" in status, "accepts": [], "unknown": []}
    for line in status.splitlines():
        match = re.match(r"(.+?)\s+(?:ALLOW|LIMIT)(?: IN)?\s+\S", line)
        if match is None or match[1].endswith("ALLOW") or "ALLOW FWD" in line or "ALLOW OUT" in line:
            continue
        whole = re.sub(r" \(v6\)| on \S+$", "", match[1])
        # It may begin with an address of this host.
        to = whole.split()[-1]
        ports = re.fullmatch(r"([0-9,:]+)(?:/tcp)?", to)
        if to == "Anywhere":
            found["open"] = True
        elif whole in SERVICES:
            found["accepts"] += [[port, port] for port in SERVICES[whole]]
        elif ports:
            found["accepts"] += [_range(part, ":") for part in ports[1].split(",")]
        elif not to.endswith("/udp"):
            found["unknown"].append(whole)
    return found


def _range(text: str, between: str) -> list[int]:
    first, _, last = text.partition(between)
    return [int(first), int(last or first)]


def firewalld(zones: str = "", default: str = "") -> Json:
    """Return what `firewall-cmd --list-all-zones` says: the TCP ports that zones in use let in, the default one too."""
    found: Json = {"active": bool(zones.strip()), "open": False, "accepts": [], "unknown": []}
    for zone in re.split(r"\n(?=\S)", zones.strip("\n")):
        heading, *lines = zone.splitlines() or [""]
        if "active" not in heading.partition("(")[2] and heading.split(" ")[0] != default:
            continue
        values = dict(re.findall(r"^\s+([a-z-]+): ?(.*)$", zone, re.MULTILINE))
        found["open"] = found["open"] or values.get("target") == "ACCEPT"
        found["accepts"] += [
            _range(port[:-4], "-") for port in values.get("ports", "").split() if port.endswith("/tcp")
        ]
        for line in lines:
            if 'protocol="tcp"' in line and "accept" in line and (port := re.search(r'port port="([0-9-]+)"', line)):
                found["accepts"].append(_range(port[1], "-"))
            elif "rule" in line and "accept" in line:
                found["unknown"].append(" ".join(line.split()))
        for name in values.get("services", "").split():
            found["accepts"] += [[port, port] for port in SERVICES.get(name, ())]
            found["unknown"] += [name] if name not in SERVICES else []
    return found


def made_tables(marker: str) -> list[str]:
    """Return the names of the tables that files of this bundle's make."""
    files = [path for path in Path("/etc").glob("nftables-*.conf") if marker in text_of(path)]
    return sorted(path.stem.removeprefix("nftables-") for path in files)


def filters(marker: str) -> Json:
    """Return all that filters packets here."""
    ruleset = output("nft", "--json", "list", "ruleset") if shutil.which("nft") else ""
    enabled = "ENABLED=yes" in text_of("/etc/ufw/ufw.conf")
    running = shutil.which("firewall-cmd") and output("systemctl", "is-active", "firewalld")
    questions = ("--list-all-zones", "--get-default-zone") if running else ()
    return {
        **packet_filter(json.loads(ruleset or "{}")),
        "made": made_tables(marker),
        "ufw": ufw(output("ufw", "status", "verbose") if enabled else ""),
        "firewalld": firewalld(*(output("firewall-cmd", question).strip("\n") for question in questions)),
    }


# --- What is passed on ---

# Interfaces that containers, virtual machines and tunnels have.
PASSING = re.compile(r"(?:docker|br-|cni|cali|flannel|veth|virbr|vnet|lxc|lxd|podman|tun|tap|wg|vmbr)")


def interfaces(links: list[Json]) -> list[str]:
    """Return the interfaces, of `ip --json address`, that have an address of a network, loopback apart."""
    return [
        str(link["ifname"])
        for link in links
        if "LOOPBACK" not in link.get("flags", []) and "UP" in link.get("flags", [])
        if any(address.get("scope") == "global" for address in link.get("addr_info", []))
    ]


def forwarding(root: str = "/") -> Json:
    """Return whether this host passes packets on, and the interfaces between which it can."""
    paths = ("proc/sys/net/ipv4/ip_forward", "proc/sys/net/ipv6/conf/all/forwarding")
    names = interfaces(json.loads(output("ip", "--json", "address") or "[]"))
    return {
        "on": any(text_of(f"{root}{path}").strip() == "1" for path in paths),
        # Two of them, or one that only has packets to pass on.
        "between": names if len(names) > 1 or any(PASSING.match(name) for name in names) else [],
    }


def states(paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return by path owner, group and mode of plain files and folders that can be read, and the digest of a file."""
    found = {}
    for path in paths:
        try:
            about = os.lstat(path)
            if stat.S_ISREG(about.st_mode):
                digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            elif stat.S_ISDIR(about.st_mode):
                digest = ""
            else:
                continue
            owner, group = pwd.getpwuid(about.st_uid).pw_name, grp.getgrgid(about.st_gid).gr_name
        except (OSError, KeyError):
            continue
        found[path] = {"sha256": digest, "owner": owner, "group": group, "mode": f"{stat.S_IMODE(about.st_mode):04o}"}
    return found


def survey(marker: str, files: Iterable[str] = ()) -> Json:
    """Return all of it; `files` are paths whose state is wanted."""
    return {
        "files": states(files),
        "nft": shutil.which("nft") is not None,
        "ssh_connection": ssh_connection(),
        "listeners": [asdict(found) for found in listeners()],
        "users": users(),
        "folders": folders("/opt"),
        "unmarked": unmarked(marker, "/etc/systemd/system/*.*", "/etc/*/*.env"),
        "tls_required": tls_required("/etc/*/*.env"),
        "resolvers": resolvers(),
        "haproxy": haproxy(marker),
        "postgresql": clusters(marker),
        "postgresql_lost": lost_data(),
        "filters": filters(marker),
        "forwarding": forwarding(),
    }
