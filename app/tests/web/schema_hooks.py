"""What schemathesis has to know to get past the door: loaded by its command, not by pytest."""

import os
import re
from typing import Any

import httpx
import schemathesis
from schemathesis import Case, HookContext

API = os.environ["QUANTDESK_API"]
AUTH = {"Authorization": f"Bearer {os.environ['QUANTDESK_TOKEN']}"}
ORDER = {"symbol": "A", "side": "buy", "quantity": 1}

_http = httpx.Client(base_url=API, timeout=60)


def log_in() -> str:
    answer = _http.post("/api/sessions", json={"user": "alice"})
    _http.cookies.clear()
    return f"session={answer.cookies['session']}"


_http.put("/api/prices/A", json={"price": "10"}, headers=AUTH).raise_for_status()
_session = log_in()
_placed = _http.post("/api/orders", json=ORDER, headers={"Cookie": _session})
_order_id: str = _placed.raise_for_status().json()["data"]["id"]


@schemathesis.hook
def before_call(_: HookContext, case: Case[Any], _kwargs: dict[str, Any]) -> None:
    """Give every right, and have what is asked for there half of the time."""
    case.headers.update(AUTH)
    if case.path != "/api/sessions":
        # Some end the session that they come with.
        case.headers["Cookie"] = log_in() if case.method == "DELETE" else _session
    parameters = case.path_parameters
    order_id = str(parameters.get("order_id", ""))
    if re.fullmatch(r"[0-9a-f-]{36}", order_id) and order_id[0] < "8":
        parameters["order_id"] = _order_id
    symbol = str(parameters.get("symbol", ""))
    if case.method == "POST" and isinstance(case.body, dict):
        symbol = str(case.body.get("symbol", ""))
    if re.fullmatch(r"[A-Z0-9][A-Z0-9._-]{0,31}", symbol) and len(symbol) % 2:
        _http.put(f"/api/prices/{symbol}", json={"price": "10"}, headers=AUTH)
