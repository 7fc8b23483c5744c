"""Jinja filters about where services are: `redis_endpoints`, which the inventory has, and what is made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.quantdesk.redis.plugins.test.inputs import is_address

Endpoint = Mapping[str, Any]


def url_host(host: Any) -> str:
    """Return a name or address as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in str(host) else str(host)


def _chosen(instances: list[Mapping[str, Any]], name: str, other: int) -> Mapping[str, Any]:
    named = [instance for instance in instances if instance.get("name") == name]
    return named[0] if named else instances[other]


def redis_endpoints(hosts: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return where `cache` and `state` are, from the variables of the hosts of Redis: on the first of them.

    Instances of these names are taken, else the first and the last one. Nothing for no hosts.
    """
    for host in hosts:
        instances = list(host["redis_instances"])
        chosen = {"cache": _chosen(instances, "cache", 0), "state": _chosen(instances, "state", -1)}
        found = {}
        for name, instance in chosen.items():
            tls_port = int(instance.get("tls_port", host["redis_tls_port"]))
            port = tls_port or int(instance.get("port", host["redis_port"]))
            address = {"host": host["private_address"], "port": port}
            found[name] = {"mode": "standalone", "addresses": [address], "tls": bool(tls_port)}
        return found
    return {}


def redis_url(endpoint: Endpoint) -> str:
    """Return the URL of an endpoint's first address, without a login."""
    first = endpoint["addresses"][0]
    return f"redis{'s' if endpoint.get('tls', True) else ''}://{url_host(first['host'])}:{first['port']}"


def redis_environment(endpoints: Mapping[str, Endpoint]) -> dict[str, str]:
    """Return the endpoints as variables of the application's environment; state is named where it is another server."""
    urls = {name: redis_url(endpoints[name]) for name in ("cache", "state") if name in endpoints}
    found = {"REDIS_URL": urls["cache"]} if "cache" in urls else {}
    if urls.get("state", urls.get("cache")) != urls.get("cache"):
        found["REDIS_STATE_URL"] = urls["state"]
    return found


def redis_outgoing(endpoints: Mapping[str, Endpoint], user: str) -> list[dict[str, Any]]:
    """Return for firewall_outgoing what a user may connect to, to reach all endpoints and their Sentinels.

    One item for each address. Those that have names are left out, as a packet filter knows addresses only.
    """
    ports: dict[str, set[int]] = {}
    for endpoint in endpoints.values():
        for place in (*endpoint["addresses"], *endpoint.get("sentinels", ())):
            if is_address(place["host"]):
                ports.setdefault(str(place["host"]), set()).add(int(place["port"]))
    return [{"user": user, "name": "redis", "ports": sorted(found), "to": [host]} for host, found in ports.items()]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by the names that templates use."""
        return {
            "url_host": url_host,
            "redis_endpoints": redis_endpoints,
            "redis_environment": redis_environment,
            "redis_outgoing": redis_outgoing,
        }
