"""Sessions for the tests of what needs one."""

from conftest import Running


async def log_in(app: Running, user: str | None = None) -> dict[str, str]:
    """Begin a session; return the headers that a client sends with it."""
    answer = await app.client.post("/api/sessions", json={"user": user} if user else {})
    assert answer.status_code == 201, answer.text
    session_id = answer.cookies["session"]
    # The client would send it along with every request, also with those of other users.
    app.client.cookies.clear()
    return {"Cookie": f"session={session_id}"}


def id_in(headers: dict[str, str]) -> str:
    return headers["Cookie"].removeprefix("session=")
