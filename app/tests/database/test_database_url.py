from pathlib import Path

import pytest

from authority import Authority
from quantdesk.database.postgres_address import parse_address
from quantdesk.settings import SettingsError, load_settings

SECRET = "hunter2hunter2"


def problems(url: str, **environ: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings({"DATABASE_URL": url, **environ})
    assert SECRET not in str(caught.value)
    assert all(problem.startswith("DATABASE_URL: found ") for problem in caught.value.problems)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://db/quantdesk", ("db", 5432, "quantdesk", None, None)),
        ("postgres://u:p@db:6432/q", ("db", 6432, "q", "u", "p")),
        ("postgresql+asyncpg://u@10.0.0.1/q", ("10.0.0.1", 5432, "q", "u", None)),
        ("postgresql://u%40x:p%3A%2F%3F%23%25@[::1]:1/a%20b", ("::1", 1, "a b", "u@x", "p:/?#%")),
        ("postgresql://u:@db.example.net/q", ("db.example.net", 5432, "q", "u", "")),
        ("postgresql://%2FVar%2Frun:7/q", ("/Var/run", 7, "q", None, None)),
    ],
)
def test_address(url: str, expected: tuple[str, int, str, str | None, str | None]) -> None:
    address = parse_address(url)
    assert address is not None
    found = (address.host, address.port, address.database, address.user, address.password)
    assert found == expected
    assert load_settings({"DATABASE_URL": url}).database_url == url


def test_sqlite_is_no_address() -> None:
    assert parse_address("sqlite+aiosqlite:////tmp/quantdesk.db") is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:",
        "postgresql://",
        "postgresql://db",
        "postgresql://db/",
        "postgresql:///q",
        f"postgresql://:{SECRET}@db/q",
        f"postgresql://u:{SECRET}/x@db/q",
        f"postgresql://u:{SECRET}#x@db/q",
        f"postgresql://u:1/{SECRET}?x@db/q",
        f"postgresql://u:{SECRET}@db:port/q",
        f"postgresql://u:{SECRET}@db:0/q",
        f"postgresql://u:{SECRET}@db:65536/q",
        f"postgresql://u:{SECRET}@db/q/r",
        f"postgresql://u:{SECRET}%@db/q",
        f"postgresql://u:{SECRET}%zz@db/q",
        f"postgresql://u:{SECRET}%ff@db/q",
        f"postgresql://u:{SECRET}%00@db/q",
        f"postgresql://u:{SECRET}@-db-/q",
        f"postgresql://u:{SECRET}@[10.0.0]/q",
        f"postgresql://u:{SECRET}@one,two/q",
        f"postgresql://u:{SECRET} @db/q",
        f"postgresql+psycopg2://u:{SECRET}@db/q",
        f"postgresql://u:{SECRET}@db/q?x",
        f"postgresql://u:{SECRET}@db/q?connect_timeout=5",
        f"postgresql://u:{SECRET}@db/q?sslmode=prefer",
        f"postgresql://u:{SECRET}@db/q?sslmode=verify-ca",
        f"postgresql://u:{SECRET}@db/q?sslmode=disable&sslmode=require",
        f"postgresql://u:{SECRET}@db/q?sslrootcert=/etc/hosts",
        f"postgresql://u:{SECRET}@db/q?sslmode=require&sslrootcert=/etc/hosts",
        f"postgresql://u:{SECRET}@db/q?sslmode=verify-full&sslrootcert=/etc/hosts",
        f"postgresql://u:{SECRET}@db/q?sslmode=verify-full&sslrootcert=/nowhere/ca.pem",
        f"mysql://u:{SECRET}@db/q",
        f"{SECRET}",
        f"sqlite://{SECRET}",
    ],
)
def test_unacceptable_url_is_one_problem_that_shows_no_secret(url: str) -> None:
    assert len(problems(url)) == 1


def test_production_wants_proof_of_a_server_elsewhere(tmp_path: Path) -> None:
    root = Authority.make(tmp_path / "authority").ca_file
    elsewhere = f"postgresql://u:{SECRET}@db.example.net/q"
    for url in (elsewhere, f"{elsewhere}?sslmode=require", f"{elsewhere}?sslmode=disable"):
        assert load_settings({"DATABASE_URL": url}).database_url == url
        (problem,) = problems(url, APP_ENV="production")
        assert "sslmode=verify-full" in problem
    for url in (
        f"{elsewhere}?sslmode=verify-full",
        f"{elsewhere}?sslmode=verify-ca&sslrootcert={root}",
        f"postgresql://u:{SECRET}@127.0.0.1/q",
        f"postgresql://u:{SECRET}@localhost/q",
        f"postgresql://u:{SECRET}@[::1]/q",
        "postgresql://%2Frun%2Fpostgresql/q",
    ):
        settings = load_settings({"DATABASE_URL": url, "APP_ENV": "production"})
        assert settings.database_url == url
        assert SECRET not in repr(settings)
        assert SECRET not in repr(parse_address(url))
