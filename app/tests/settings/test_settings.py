import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantdesk.settings import RateLimit, Settings, SettingsError, load_settings


@pytest.fixture
def base(tmp_path: Path) -> dict[str, str]:
    return {"STATE_DIRECTORY": str(tmp_path)}


def problems(environ: dict[str, str]) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    return dict(problem.split(": ", 1) for problem in caught.value.problems)


def test_defaults(base: dict[str, str], tmp_path: Path) -> None:
    found = load_settings(base)
    assert found.redis is None
    assert (found.host, found.port, found.env_name) == ("127.0.0.1", 3002, "development")
    assert found.database_url == f"sqlite+aiosqlite:///{tmp_path}/quantdesk.db"
    ttl = found.ttl
    assert (ttl.price, ttl.portfolio, ttl.order, ttl.session, ttl.presence) == (1, 5, 2, 3600, 65)
    assert found.rate_limit == RateLimit(100, 60)
    assert (found.log_level, found.log_format) == ("info", "text")


def test_database_defaults_to_the_users_state_folder(tmp_path: Path) -> None:
    found = load_settings({"XDG_STATE_HOME": str(tmp_path)})
    assert found.database_url.endswith(f"{tmp_path}/quantdesk/quantdesk.db")
    assert stat.S_IMODE((tmp_path / "quantdesk").stat().st_mode) == 0o700


def test_production_logs_json(base: dict[str, str]) -> None:
    assert load_settings(base | {"APP_ENV": "production"}).log_format == "json"


def test_node_env_stands_in_for_app_env(base: dict[str, str]) -> None:
    assert load_settings(base | {"NODE_ENV": "production"}).production
    assert not load_settings(base | {"NODE_ENV": "production", "APP_ENV": "test"}).production
    assert "NODE_ENV" in problems(base | {"NODE_ENV": "prod"})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache", ("cache", 6379, 0, None, None, False)),
        ("rediss://u:p%40ss@cache:7000/3", ("cache", 7000, 3, "u", "p@ss", True)),
        ("redis://:secret@[::1]:6379/", ("::1", 6379, 0, None, "secret", False)),
    ],
)
def test_redis_url(
    base: dict[str, str], url: str, expected: tuple[str, int, int, str | None, str | None, bool]
) -> None:
    redis = load_settings(base | {"REDIS_URL": url}).redis
    assert redis is not None
    password = redis.password.reveal() if redis.password else None
    found = (redis.host, redis.port, redis.database, redis.username, password, redis.tls)
    assert found == expected


def test_variables_beat_the_url(base: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from-file\n")
    environ = base | {
        "REDIS_URL": "redis://old:older@cache",
        "REDIS_USERNAME": "new",
        "REDIS_PASSWORD_FILE": str(file),
        "REDIS_TLS": "true",
        "REDIS_CONNECT_TIMEOUT": "250",
        "REDIS_COMMAND_TIMEOUT": "100",
    }
    redis = load_settings(environ).redis
    assert redis is not None
    assert redis.password is not None
    assert (redis.username, redis.password.reveal(), redis.tls) == ("new", "from-file", True)
    assert (redis.connect_timeout, redis.command_timeout) == (0.25, 0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APP_ENV", "prod"),
        ("CACHE_TTL_ORDER", "1.5"),
        ("CACHE_TTL_PORTFOLIO", "five"),
        ("CACHE_TTL_PRESENCE", "-65"),
        ("CACHE_TTL_PRICE", "0"),
        ("CACHE_TTL_PRICE", "-1"),
        ("CACHE_TTL_SESSION", "99999999999999999999"),
        ("DATABASE_URL", "mysql://db/quantdesk"),
        ("DATABASE_URL", "sqlite:////nowhere/at/all.db"),
        ("ENV_NAME", "a:b"),
        ("ENV_NAME", "a b"),
        ("HOST", "not a host"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "٣٠٠٢"),
        ("RATE_LIMIT", "0/minute"),
        ("RATE_LIMIT", "100/fortnight"),
        ("REDIS_CA_FILE", "/nowhere/ca.pem"),
        ("REDIS_COMMAND_TIMEOUT", "0"),
        ("REDIS_CONNECT_TIMEOUT", "5s"),
        ("REDIS_PASSWORD_FILE", "/nowhere/password"),
        ("REDIS_SENTINELS", "sentinel"),
        ("REDIS_SENTINELS", "sentinel:"),
        ("REDIS_SENTINELS", ":26379"),
        ("REDIS_SENTINELS", "sentinel:0"),
        ("REDIS_SENTINELS", "sentinel:65536"),
        ("REDIS_SENTINELS", "sentinel:00000165535999"),
        ("REDIS_SENTINELS", "sentinel:x"),
        ("REDIS_SENTINELS", "sentinel:٢٦٣٧٩"),
        ("REDIS_SENTINELS", "-sentinel:26379"),
        ("REDIS_SENTINELS", "a b:26379"),
        ("REDIS_SENTINELS", "a:26379,"),
        ("REDIS_SENTINELS", "a:26379,,b:26379"),
        ("REDIS_SENTINELS", "a:26379;b:26379"),
        ("REDIS_SENTINELS", "redis://a:26379"),
        ("REDIS_STATE_URL", "http://cache:6379"),
        ("REDIS_STATE_URL", "redis://cache:70000"),
        ("REDIS_TLS", "maybe"),
        ("REDIS_URL", "http://cache:6379"),
        ("REDIS_URL", "cache:6379"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://cache:0"),
        ("REDIS_URL", "redis://cache:70000"),
        ("REDIS_URL", "redis://cache/zero"),
        ("REDIS_URL", "rediss://cache?ssl_cert_reqs=none"),
        ("TRUSTED_PROXIES", "proxy"),
        ("TRUSTED_PROXIES", "10.0.0.5,"),
        ("TRUSTED_PROXIES", "10.0.0.5 10.0.0.6"),
        ("TRUSTED_PROXIES", "10.0.0.5/24"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "2001:db8::/129"),
        ("TRUSTED_PROXIES", "10.0.0.5:8080"),
    ],
)
def test_malformed_value_is_named(base: dict[str, str], name: str, value: str) -> None:
    assert list(problems(base | {name: value})) == [name]


SENTINELS = {"REDIS_SENTINELS": "a:26379, [::1]:26380,10.0.0.1:1", "REDIS_SENTINEL_MASTER": "main"}


def test_sentinels_tell_where_the_url_does_not(base: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("of-sentinel\n")
    environ = base | SENTINELS | {"REDIS_SENTINEL_PASSWORD_FILE": str(file)}
    redis = load_settings(environ).redis
    assert redis is not None
    assert redis.sentinels == (("a", 26379), ("::1", 26380), ("10.0.0.1", 1))
    assert redis.sentinel_master == "main"
    assert redis.sentinel_password is not None
    assert redis.sentinel_password.reveal() == "of-sentinel"
    assert (redis.host, redis.port, redis.password, redis.tls) == ("", 0, None, False)
    # What a URL says besides an address holds for the primary as well.
    redis = load_settings(environ | {"REDIS_URL": "rediss://user:pw@ignored:7/3"}).redis
    assert redis is not None
    assert redis.password is not None
    found = (redis.host, redis.port, redis.username, redis.password.reveal(), redis.database)
    assert found == ("", 0, "user", "pw", 3)
    assert redis.tls
    assert len(redis.sentinels) == 3
    assert "of-sentinel" not in repr(redis)


def test_sentinels_need_the_name_of_the_primary(base: dict[str, str]) -> None:
    found = problems(base | {"REDIS_SENTINELS": "a:26379"})
    assert list(found) == ["REDIS_SENTINEL_MASTER"]


def test_production_refuses_sentinels_without_tls_and_password(base: dict[str, str]) -> None:
    environ = base | SENTINELS | {"APP_ENV": "production"}
    # Wherever they are: the primary may be elsewhere.
    environ |= {"REDIS_SENTINELS": "127.0.0.1:26379"}
    assert set(problems(environ)) == {"REDIS_URL", "REDIS_PASSWORD"}
    safe = environ | {"REDIS_TLS": "true", "REDIS_PASSWORD": "a-password"}
    assert load_settings(safe).redis is not None


def test_state_has_a_redis_of_its_own(base: dict[str, str]) -> None:
    environ = base | {
        "REDIS_URL": "redis://cache",
        "REDIS_STATE_URL": "redis://state:7000/2",
        "REDIS_USERNAME": "app",
        "REDIS_PASSWORD": "shared",
        "REDIS_TLS": "true",
    }
    found = load_settings(environ)
    assert found.redis is not None
    assert found.redis_state is not None
    state = found.redis_state
    assert (found.redis.host, found.redis.port, found.redis.database) == ("cache", 6379, 0)
    assert (state.host, state.port, state.database, state.tls) == ("state", 7000, 2, True)
    # What they do not share is in its URL.
    for server in (found.redis, state):
        assert (server.username, server.password and server.password.reveal()) == ("app", "shared")
    state_url = {"REDIS_STATE_URL": "redis://keeper:own@state"}
    other = load_settings(environ | state_url).redis_state
    assert other is not None
    assert other.password is not None
    assert (other.username, other.password.reveal()) == ("keeper", "own")
    assert load_settings(base | {"REDIS_URL": "redis://cache"}).redis_state is None


def test_state_is_not_asked_from_sentinel(base: dict[str, str]) -> None:
    environ = base | SENTINELS | {"REDIS_STATE_URL": "redis://state"}
    state = load_settings(environ).redis_state
    assert state is not None
    assert (state.host, state.sentinels) == ("state", ())


def test_second_redis_without_a_first_is_refused(base: dict[str, str]) -> None:
    assert list(problems(base | {"REDIS_STATE_URL": "redis://state"})) == ["REDIS_URL"]


def test_production_refuses_plaintext_to_the_second_redis_too(base: dict[str, str]) -> None:
    environ = base | {"APP_ENV": "production", "REDIS_URL": "redis://127.0.0.1"}
    found = problems(environ | {"REDIS_STATE_URL": "redis://:hunter2hunter2@state.example.net"})
    assert list(found) == ["REDIS_STATE_URL"]
    assert "hunter2" not in found["REDIS_STATE_URL"]


def test_user_of_either_redis_needs_a_password(base: dict[str, str]) -> None:
    environ = base | {"REDIS_URL": "redis://:pw@cache"}
    found = problems(environ | {"REDIS_STATE_URL": "redis://keeper@state"})
    assert list(found) == ["REDIS_PASSWORD"]


def test_trusted_proxies_are_addresses_and_networks(base: dict[str, str]) -> None:
    assert load_settings(base).trusted_proxies == ()
    environ = base | {"TRUSTED_PROXIES": "10.0.0.5, 10.1.0.0/24,2001:db8::/32,::1"}
    found = load_settings(environ).trusted_proxies
    assert found == ("10.0.0.5/32", "10.1.0.0/24", "2001:db8::/32", "::1/128")


def test_half_a_client_certificate_is_refused(base: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "some.pem"
    file.write_text("not a certificate")
    assert list(problems(base | {"REDIS_CERT_FILE": str(file)})) == ["REDIS_KEY_FILE"]
    assert list(problems(base | {"REDIS_KEY_FILE": str(file)})) == ["REDIS_CERT_FILE"]
    assert list(problems(base | {"REDIS_CA_FILE": str(file)})) == ["REDIS_CA_FILE"]
    both = {"REDIS_CERT_FILE": str(file), "REDIS_KEY_FILE": str(file)}
    assert list(problems(base | both)) == ["REDIS_CERT_FILE"]


def test_one_message_lists_all_problems(base: dict[str, str]) -> None:
    found = problems(
        base
        | {
            "APP_ENV": "production",
            "PORT": "http",
            "CACHE_TTL_PRICE": "0",
            "REDIS_URL": "redis://cache.example.net",
            "ADMIN_TOKEN": "short",
        }
    )
    assert set(found) == {"PORT", "CACHE_TTL_PRICE", "REDIS_URL", "REDIS_PASSWORD", "ADMIN_TOKEN"}
    assert found["PORT"] == "found 'http', expected a whole number from 1 to 65535"


def test_secret_in_two_places_is_refused(base: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    environ = base | {"ADMIN_TOKEN": "other", "ADMIN_TOKEN_FILE": str(file)}
    assert list(problems(environ)) == ["ADMIN_TOKEN_FILE"]


def test_empty_secret_file_is_refused(base: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("\n")
    assert list(problems(base | {"ADMIN_TOKEN_FILE": str(file)})) == ["ADMIN_TOKEN_FILE"]


@pytest.mark.parametrize(
    "redis",
    [
        {"REDIS_URL": "redis://127.0.0.1"},
        {"REDIS_URL": "redis://localhost"},
        {"REDIS_URL": "rediss://:password@cache.example.net"},
        {"REDIS_URL": "redis://:password@cache.example.net", "REDIS_TLS": "true"},
    ],
)
def test_production_accepts_safe_redis(base: dict[str, str], redis: dict[str, str]) -> None:
    assert load_settings(base | redis | {"APP_ENV": "production"}).redis is not None


def test_production_refuses_plaintext_redis_elsewhere(base: dict[str, str]) -> None:
    environ = base | {"REDIS_URL": "redis://:hunter2hunter2@cache.example.net"}
    assert load_settings(environ).redis is not None
    found = problems(environ | {"APP_ENV": "production"})
    assert list(found) == ["REDIS_URL"]
    assert "hunter2" not in found["REDIS_URL"]


SECRETS = st.text("abcdefghijkmnop0123456789%/#?@: \\", min_size=12, max_size=30).filter(
    lambda text: any(c.isalnum() for c in text)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=SECRETS.map(lambda text: f"zz{text}zz"))
@pytest.mark.parametrize(
    "template",
    ["redis://:{}@cache", "redis://:{}", "redis://u:{}@cache:bad", "{}", "ftp://{}@h", "redis:{}"],
)
def test_no_problem_and_no_repr_shows_a_secret(
    base: dict[str, str], template: str, secret: str
) -> None:
    environ = base | {
        "REDIS_URL": template.format(secret),
        "DATABASE_URL": f"postgresql://u:{secret}@db/quantdesk",
        "ADMIN_TOKEN": f"{secret} ",
        "REDIS_STATE_URL": template.format(secret),
        "REDIS_SENTINEL_PASSWORD": secret,
        "PORT": "bad",
    }
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    assert secret not in str(caught.value)
    assert secret not in repr(caught.value)
    del environ["DATABASE_URL"], environ["PORT"]
    environ |= {"REDIS_URL": "redis://cache", "REDIS_PASSWORD": secret, "ADMIN_TOKEN": "zzzzzzzz"}
    environ |= {"REDIS_STATE_URL": "redis://state"} | SENTINELS
    good: Settings = load_settings(environ)
    assert secret not in repr(good)
    assert secret not in str(good.redis)
    assert secret not in str(good.redis_state)
    assert "zzzzzzzz" not in repr(good)
