"""Jinja filters of the roles' preflights: what of a host's survey (plugins/modules/host_survey.py) is in a role's way.

Each returns a text for the report, or nothing. A host that was not asked has nothing.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

Survey = Mapping[str, Any]
NO_LOGIN = ("/nologin", "/false")
# A user with a smaller number is one of a package or a role.
FIRST_PERSON = 1000
# What role app makes in its folder.
RELEASES = ("releases", "current", "current.part")


def foreign_user(survey: Survey, name: str) -> str:
    """Return what a user is, unless it is a system's user without a login, as the roles make them."""
    user = survey.get("users", {}).get(name)
    if user is None or (user["uid"] < FIRST_PERSON and user["shell"].endswith(NO_LOGIN)):
        return ""
    return f"a user {name} with uid {user['uid']}, home {user['home']} and shell {user['shell']}"


def foreign_app(survey: Survey, name: str, root: str) -> str:
    """Return the files in the places of an application's that role app did not write."""
    units = [f"/etc/systemd/system/{name}{suffix}" for suffix in (".service", ".target", "@.service", "@.socket")]
    files = [path for path in (*units, f"/etc/{name}/{name}.env") if path in survey.get("unmarked", [])]
    entries = survey.get("folders", {}).get(root.rstrip("/"), [])
    return ", ".join([*files, *(f"{root}/{entry}" for entry in entries if entry not in RELEASES)])


# --- PostgreSQL ---


def cluster_of(survey: Survey, version: Any) -> Mapping[str, Any]:
    """Return the cluster that role database serves from; an empty mapping where there is none yet."""
    for cluster in survey.get("postgresql", []):
        if cluster["version"] == str(version) and cluster["name"] == "main":
            return dict(cluster)
    return {}


def others_on_port(survey: Survey, version: Any, port: Any) -> str:
    """Return other clusters that are to listen on a port; one that was upgraded keeps it, and does not start."""
    own = (str(version), "main")
    upgraded = upgraded_versions(survey, version)
    return ", ".join(
        f"cluster {cluster['version']}/{cluster['name']}"
        for cluster in survey.get("postgresql", [])
        if (cluster["version"], cluster["name"]) != own and str(cluster["port"]) == str(port)
        if cluster["name"] != "main" or cluster["version"] not in upgraded
    )


# A host whose distribution was upgraded has the cluster of the version before. Our data are in it until somebody runs
# pg_upgradecluster, which makes a cluster of the new version, with our pg_hba.conf, and sets the old one to `manual`.


def _ours(survey: Survey) -> list[Mapping[str, Any]]:
    """Return the clusters that role database has served from, the oldest version first."""
    found = [cluster for cluster in survey.get("postgresql", []) if cluster.get("ours") and cluster["name"] == "main"]
    return sorted(found, key=lambda cluster: float(cluster["version"]))


def serving_version(survey: Survey, packaged: Any) -> str:
    """Return the version of PostgreSQL to serve from: where our data are, else the distribution's.

    Of several clusters of ours it is the one that starts with the host.
    """
    ours = _ours(survey)
    chosen = [cluster for cluster in ours if cluster["start"] == "auto"] if len(ours) > 1 else ours
    return str(chosen[-1]["version"] if chosen else packaged)


def upgraded_versions(survey: Survey, version: Any) -> list[str]:
    """Return the versions of clusters of ours that were upgraded to another one and are kept."""
    return [
        cluster["version"]
        for cluster in _ours(survey)
        if cluster["version"] != str(version) and cluster["start"] != "auto"
    ]


def undecided_clusters(survey: Survey, packaged: Any) -> str:
    """Return our clusters, where they do not show in which of them the data are; nothing where they do."""
    ours = _ours(survey)
    if not ours:
        # One that was renamed is not served, and its data are ours all the same.
        renamed = [cluster for cluster in survey.get("postgresql", []) if cluster.get("ours")]
        return " and ".join(f"{cluster['version']}/{cluster['name']} ({cluster['start']})" for cluster in renamed)
    started = [cluster for cluster in ours if cluster["start"] == "auto"]
    if len(started) == 1 or [cluster["version"] for cluster in ours] == [str(packaged)]:
        return ""
    return " and ".join(f"{cluster['version']}/main ({cluster['start']})" for cluster in ours)


def unusable_cluster(survey: Survey, packaged: Any) -> str:
    """Return what the cluster lacks that our data are in; the distribution's own version is simply installed."""
    version = serving_version(survey, packaged)
    cluster = cluster_of(survey, version)
    if not cluster or version == str(packaged):
        return ""
    if not cluster["data"]:
        return f"cluster {version}/main without its data"
    return "" if cluster["program"] else f"cluster {version}/main in {cluster['data']} without postgresql-{version}"


def lost_data(survey: Survey) -> str:
    """Return the folders with data of a cluster that nothing serves any more, on a host where none is ours."""
    return "" if _ours(survey) else ", ".join(survey.get("postgresql_lost", []))


def upgrade_steps(survey: Survey, packaged: Any) -> str:
    """Return the commands that bring our data to the distribution's version of PostgreSQL."""
    old, new = serving_version(survey, packaged), str(packaged)
    there = cluster_of(survey, new)
    if not there:
        first = f"apt-get install postgresql-{new}"
    elif there["ours"] or foreign_cluster(there):
        # Whose data those are is not known here.
        first = f"pg_renamecluster {new} main other"
    else:
        # pg_upgradecluster makes it itself. A command that drops data is named only where there are none.
        first = f"pg_dropcluster --stop {new} main"
    return f"{first}; pg_upgradecluster -v {new} {old} main; systemctl disable postgresql@{old}-main"


def foreign_cluster(cluster: Mapping[str, Any]) -> str:
    """Return what is in a cluster, unless it is ours, or as its package made it."""
    if not cluster or cluster["ours"]:
        return ""
    where = f"cluster {cluster['version']}/{cluster['name']}"
    if not cluster["known"]:
        return f"{where}, which does not run or refuses postgres, so that its content is unknown"
    databases = [name for name in cluster["databases"] if name != "postgres"]
    roles = [name for name in cluster["roles"] if name != "postgres"]
    parts = [
        f"databases {', '.join(databases)}" if databases else "",
        f"users {', '.join(roles)}" if roles else "",
        "a pg_hba.conf that was edited" if cluster["hba"] == "changed" else "",
    ]
    return f"{where} with {' and '.join(filter(None, parts))}" if any(parts) else ""


def foreign_names(cluster: Mapping[str, Any], database: str, user: str) -> str:
    """Return the database and the user of our names, where they are another's or may more than ours."""
    if not cluster or cluster["ours"]:
        return ""
    owner = cluster["databases"].get(database)
    theirs = [name for name, other in cluster["databases"].items() if other == user and name != database]
    parts = [
        f"database {database} of {owner}" if owner not in (None, user) else "",
        f"user {user} with rights of an administrator" if cluster["roles"].get(user) else "",
        f"user {user}, who owns {', '.join(theirs)}" if theirs else "",
    ]
    return "; ".join(filter(None, parts))


def not_listening(cluster: Mapping[str, Any], listen: Iterable[str]) -> str:
    """Return the addresses that a cluster listens on today and would no longer."""
    if not cluster or cluster["ours"]:
        return ""
    today = [word.strip() for word in cluster.get("listen", "").split(",") if word.strip()]
    names = {"localhost": "127.0.0.1"}
    return ", ".join(word for word in today if names.get(word, word) not in listen)


# --- Packet filters ---


def _within(port: int, ranges: Iterable[Iterable[int]]) -> bool:
    return any(first <= port <= last for first, last in ranges)


def _ports(allow: Iterable[Mapping[str, Any]]) -> list[int]:
    return sorted({int(port) for rule in allow if rule["from"] for port in rule["ports"]})


def _manager(filters: Survey, name: str, ports: list[int]) -> tuple[list[int], bool]:
    """Return the ports that ufw or firewalld drops, and whether it has rules that say nothing of ports here."""
    found = filters[name]
    if not found["active"] or found["open"]:
        return [], False
    return [port for port in ports if not _within(port, found["accepts"])], bool(found["unknown"])


COMMANDS = {
    "ufw": ("ufw allow {port}/tcp", "ufw disable"),
    "firewalld": ("firewall-cmd --permanent --add-port={port}/tcp", "systemctl disable --now firewalld"),
}


def _dropped(survey: Survey, table: str, allow: Iterable[Mapping[str, Any]], certain: bool) -> list[str]:
    """Return who drops ports that ours lets in, for certain or perhaps."""
    filters = survey.get("filters")
    if not filters:
        return []
    ports = _ports(allow)
    found = []
    for name, (open_up, end) in COMMANDS.items():
        shut, unknown = _manager(filters, name, ports)
        if shut and unknown is not certain:
            commands = "; ".join(open_up.format(port=port) for port in shut)
            found.append(f"{name} is active and drops {', '.join(map(str, shut))} ({commands}; or {end})")
    for chain in filters["chains"]:
        if chain["table"] == f"inet {table}" or (chain["ufw"] and filters["ufw"]["active"]):
            continue
        if chain["firewalld"] and filters["firewalld"]["active"]:
            continue
        shut = [
            port
            for port in ports
            if (chain["closed"] and not _within(port, chain["accepts"])) or _within(port, chain["refuses"])
        ]
        shut = shut or (ports if chain["unknown"] and not certain else [])
        if shut and chain["unknown"] is not certain:
            found.append(f"table {chain['table']}, chain {chain['chain']}, drops {', '.join(map(str, shut))}")
    return found


def shut_ports(survey: Survey, table: str, allow: Iterable[Mapping[str, Any]]) -> str:
    """Return which packet filters drop, for certain, what ours lets in: a packet must pass each of them."""
    return "; ".join(_dropped(survey, table, allow, certain=True))


def doubtful_ports(survey: Survey, table: str, allow: Iterable[Mapping[str, Any]]) -> str:
    """Return which packet filters may drop what ours lets in: they have rules that are not understood here."""
    return "; ".join(_dropped(survey, table, allow, certain=False))


def cut_off(survey: Survey, table: str, allow: Iterable[Mapping[str, Any]], ssh: Iterable[Any]) -> str:
    """Return who listens for others today and can no longer be reached once our table is there; nothing where it is."""
    if table in survey.get("filters", {"made": [table]})["made"]:
        return ""
    known = {*_ports(allow), *map(int, ssh)}
    found = {
        f"{item['port']} of {item['program'] or 'an unknown program'}"
        for item in survey.get("listeners", [])
        if item["port"] not in known and not re.match(r"127\.|::1$", item["address"])
    }
    return ", ".join(sorted(found))


def passes_on(survey: Survey) -> str:
    """Return the interfaces between which a host passes packets on; nothing for one that does not."""
    found = survey.get("forwarding", {})
    return ", ".join(found.get("between", [])) if found.get("on") else ""


def outgoing_rules(outgoing: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many rules there are for each user of `firewall_outgoing`: one for each family of addresses."""
    found: dict[str, int] = {}
    for rule in outgoing:
        families = {":" in str(address) for address in rule["to"]} if rule["ports"] else set()
        found[rule["user"]] = found.get(rule["user"], 0) + len(families)
    return found


# What follows a scheme in the values of an environment, and what a URL without a port means. Those of http are none: an
# issuer and origins are names, which nobody connects to.
SCHEMES = {"redis": 6379, "rediss": 6379, "postgresql": 5432, "postgres": 5432}
DNS = 53


def endpoints(environment: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Return name, host and port for each URL, and for each Sentinel."""
    found = []
    for name, value in environment.items():
        scheme = str(value).partition("://")[0].partition("+")[0]
        if name == "REDIS_SENTINELS":
            for item in str(value).split(","):
                host, _, port = item.strip().rpartition(":")
                found.append((name, host.strip("[]"), int(port) if port.isdigit() else 0))
        elif "://" in str(value) and scheme in SCHEMES:
            try:
                url = urlsplit(str(value))
                host, number = url.hostname or "", url.port or SCHEMES[scheme]
            except ValueError:
                continue
            # The folder of a Unix socket is no host.
            if host and not host.lower().startswith("%2f"):
                found.append((name, "127.0.0.1" if host == "localhost" else host, number))
    return found


def _lets(rules: Iterable[Mapping[str, Any]], port: int, protocol: str, address: str = "") -> bool:
    """Return whether rules let somebody connect to a port, of an address or, without one, of some."""
    for rule in rules:
        if port in map(int, rule["ports"]) and rule.get("protocol", "tcp") == protocol and rule["to"]:
            networks = [ipaddress.ip_network(str(to)) for to in rule["to"]]
            if not address or any(ipaddress.ip_address(address) in network for network in networks):
                return True
    return False


def shut_off(
    environment: Mapping[str, Any], outgoing: Iterable[Mapping[str, Any]], user: str, resolvers: Iterable[str] = ()
) -> str:
    """Return what an environment names and its user may not connect to.

    `resolvers` are the host's name servers, as far as they are known; one that may be asked by udp and tcp is enough.
    """
    rules = [rule for rule in outgoing if rule["user"] == user]
    servers = list(resolvers)
    resolves = any(
        all(_lets(rules, DNS, protocol, server) for protocol in ("udp", "tcp")) for server in servers or [""]
    )
    found = []
    for name, host, port in endpoints(environment):
        try:
            address = str(ipaddress.ip_address(host))
        except ValueError:
            # Which addresses a name has is known on the host alone.
            if _lets(rules, port, "tcp") and not resolves:
                named = ", ".join(servers) or "the name servers"
                found.append(f"{name}: {host}:{port}, whose address is resolved at port 53 of {named}, udp and tcp")
                continue
            address = ""
        if not _lets(rules, port, "tcp", address):
            found.append(f"{name}: {host}:{port}")
    return ", ".join(found)


def plaintext_needed(survey: Survey, balancers: Iterable[Survey], environment: str) -> bool:
    """Return whether a balancer reaches this host's application in plaintext, as far as the preflight has asked.

    One that this run leaves out is taken to be as this host is: changed over where the application takes TLS alone.
    """
    asked = list(balancers)
    if any(balancer.get("haproxy", {}).get("backends") == "plaintext" for balancer in asked):
        return True
    return any(not balancer for balancer in asked) and environment not in survey.get("tls_required", [environment])


def plaintext_backends(backends: Any, addresses: Iterable[Any]) -> str:
    """Return the backends without `tls_name` at some addresses, those of hosts whose application serves TLS."""
    known = {str(address) for address in addresses}
    items = backends if isinstance(backends, (list, tuple)) else []
    found = [item for item in items if isinstance(item, Mapping) and not item.get("tls_name")]
    return ", ".join(str(item.get("name", "")) for item in found if str(item.get("address", "")) in known)


def foreign_table(survey: Survey, table: str) -> str:
    """Return a table of our name that this bundle did not make."""
    filters = survey.get("filters", {})
    if table in filters.get("made", []):
        return ""
    same = [f"table {item['family']} {item['name']}" for item in filters.get("tables", []) if item["name"] == table]
    return ", ".join(text for text in same if text.startswith("table inet "))


def as_surveyed(files: Iterable[Mapping[str, str]], survey: Mapping[str, Any]) -> bool:
    """Return whether a host had all files as they are to be when it was surveyed; false where that is not known.

    Each has a `path`, and `content` or its `sha256`, but for a folder; owner and group root and mode 0644 are usual.
    """
    seen = survey.get("files", {})
    for file in files:
        digest = hashlib.sha256(file["content"].encode()).hexdigest() if "content" in file else file.get("sha256", "")
        usual = {"owner": "root", "group": "root", "mode": "0644"}
        wanted = {"sha256": digest, **{name: file.get(name, value) for name, value in usual.items()}}
        if seen.get(file["path"]) != wanted:
            return False
    return True


class FilterModule:
    """Gives the filters their names."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {
            "as_surveyed": as_surveyed,
            "cluster_of": cluster_of,
            "cut_off": cut_off,
            "doubtful_ports": doubtful_ports,
            "endpoints": endpoints,
            "foreign_app": foreign_app,
            "foreign_cluster": foreign_cluster,
            "foreign_names": foreign_names,
            "foreign_table": foreign_table,
            "foreign_user": foreign_user,
            "lost_data": lost_data,
            "not_listening": not_listening,
            "others_on_port": others_on_port,
            "outgoing_rules": outgoing_rules,
            "passes_on": passes_on,
            "plaintext_backends": plaintext_backends,
            "plaintext_needed": plaintext_needed,
            "serving_version": serving_version,
            "shut_off": shut_off,
            "shut_ports": shut_ports,
            "undecided_clusters": undecided_clusters,
            "unusable_cluster": unusable_cluster,
            "upgrade_steps": upgrade_steps,
            "upgraded_versions": upgraded_versions,
        }
