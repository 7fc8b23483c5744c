"""Who may begin a session: whoever an issuer's signed assertion is about, and nobody else."""

import asyncio
import base64
import datetime as dt
import hmac
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import text

from conftest import AUTH, Running, Server, Start
from logins import AUDIENCE, ISSUER, Issuer, jwks
from quantdesk.database import clock
from quantdesk.settings import SettingsError, load_settings

LOGIN = "/api/sessions"
PRODUCTION = {"APP_ENV": "production", "ADMIN_TOKEN": "t" * 32}
# The order of P-256's points: with s, -s too is a signature.
P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def forged(header: dict[str, Any] | str, claims: dict[str, Any], signature: bytes = b"x") -> str:
    """Return an assertion that no library would write."""
    head = header if isinstance(header, str) else json.dumps(header)
    return f"{b64(head.encode())}.{b64(json.dumps(claims).encode())}.{b64(signature)}"


def signed_by(issuer: Issuer, header: dict[str, Any], claims: dict[str, Any]) -> str:
    """Return an assertion with a good signature, whatever it holds."""
    signed = forged(header, claims).rpartition(".")[0]
    algorithm = jwt.get_algorithm_by_name(issuer.algorithm)
    signature = algorithm.sign(signed.encode(), algorithm.prepare_key(issuer.key))
    return f"{signed}.{b64(signature)}"


async def begin(app: Running, assertion: object) -> httpx.Response:
    answer = await app.client.post(LOGIN, json={"assertion": assertion})
    app.client.cookies.clear()
    return answer


async def refused(app: Running, assertion: object, because: str, status: int = 401) -> None:
    answer = await begin(app, assertion)
    assert answer.status_code == status, answer.text
    assert because in answer.json()["error"]["message"]
    assert "Set-Cookie" not in answer.headers
    if status == 401:
        assert answer.json()["error"]["code"] == "unauthorized"
        assert answer.headers["WWW-Authenticate"] == 'Assertion realm="quantdesk"'
    assert await sessions(app) == 0


async def sessions(app: Running, table: str = "sessions") -> int:
    async with app.services.database.engine.connect() as connection:
        count: int = (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()  # noqa: S608  # one of this module's own
        return count


KEYS: dict[str, Callable[[], Issuer]] = {
    "ES256": lambda: Issuer(key=ec.generate_private_key(ec.SECP256R1())),
    "RS256": lambda: Issuer(key=rsa.generate_private_key(65537, 2048)),
    "EdDSA": lambda: Issuer(key=ed25519.Ed25519PrivateKey.generate()),
}


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(params=KEYS)
def any_issuer(request: pytest.FixtureRequest) -> Issuer:
    return KEYS[request.param]()


async def test_signed_assertion_begins_the_session_of_its_user(
    start: Start, any_issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(**PRODUCTION, **any_issuer.env)
    assertion = any_issuer.sign("alice")
    answer = await begin(app, assertion)
    assert (answer.status_code, answer.json()["data"]["user"]) == (201, "alice")
    assert assertion not in caplog.text
    assert assertion.rpartition(".")[2] not in caplog.text


@pytest.mark.parametrize("body", [{"user": "alice"}, {}, None, {"user": "alice", "assertion": "x"}])
@pytest.mark.parametrize("app_env", ["production", "development", "test"])
async def test_nobody_begins_one_by_naming_a_user(
    start: Start, issuer: Issuer, body: dict[str, str] | None, app_env: str
) -> None:
    settings = {"APP_ENV": app_env, "ADMIN_TOKEN": "t" * 32, "AUTH_DEVELOPMENT_USERS": ""}
    for configured in (issuer.env, {}):
        app = await start(**settings, **configured)
        headers = {"Content-Type": "application/json"}
        answer = await app.client.post(LOGIN, content=json.dumps(body or {}), headers=headers)
        both = body is not None and len(body) == 2
        assert answer.status_code == (422 if both else 401)
        if not both:
            because = "assertion of the user's identity" if configured else "no authenticator"
            assert because in answer.json()["error"]["message"]
        assert "Set-Cookie" not in answer.headers
        assert await sessions(app) == 0


async def test_without_an_authenticator_no_assertion_counts(start: Start, issuer: Issuer) -> None:
    app = await start(**PRODUCTION)
    await refused(app, issuer.sign("alice"), "no authenticator is configured (AUTH_KEYS)")
    # Nor in development, where a name alone does: who sends one expects it to be checked.
    app = await start(AUTH_DEVELOPMENT_USERS="true")
    await refused(app, issuer.sign("alice"), "no authenticator is configured")


async def test_development_users_are_refused_in_production(issuer: Issuer) -> None:
    environ = {**PRODUCTION, **issuer.env, "AUTH_DEVELOPMENT_USERS": "true"}
    with pytest.raises(SettingsError, match=r"(?m)^  AUTH_DEVELOPMENT_USERS: found true, expected"):
        load_settings(environ)
    assert not load_settings({**environ, "AUTH_DEVELOPMENT_USERS": "false"}).development_users


async def test_assertion_that_is_signed_by_another_proves_nothing(
    start: Start, any_issuer: Issuer
) -> None:
    app = await start(**PRODUCTION, **any_issuer.env)
    thief = KEYS[any_issuer.algorithm]()
    await refused(app, thief.sign("alice"), "signature is wrong")
    head, claims, signature = any_issuer.sign("alice").split(".")
    root = b64(json.dumps(any_issuer.claims("root")).encode())
    await refused(app, f"{head}.{root}.{signature}", "signature is wrong")
    await refused(app, f"{head}.{claims}.", "signature is wrong")
    await refused(app, f"{head}.{claims}", "malformed")


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, 1, ["ES256"]])
async def test_assertion_that_says_it_needs_no_signature_proves_nothing(
    start: Start, issuer: Issuer, alg: object
) -> None:
    app = await start(**PRODUCTION, **issuer.env)
    for kid in ({"kid": issuer.kid}, {}):
        header = {"alg": alg, "typ": "JWT", **kid}
        for signature in (b"", b"x"):
            assertion = forged(header, issuer.claims("alice"), signature)
            answer = await begin(app, assertion)
            assert answer.status_code == 401, answer.text
            assert await sessions(app) == 0


async def test_public_key_is_no_shared_secret(start: Start, any_issuer: Issuer) -> None:
    """The attack on libraries that take the algorithm from the assertion."""
    app = await start(**PRODUCTION, **any_issuer.env)
    jwk = json.dumps(any_issuer.jwk)
    secrets = [any_issuer.pem, any_issuer.pem.rstrip("\n"), jwk, jwks(any_issuer), ""]
    for bits in (256, 384, 512):
        for secret in secrets:
            header = {"alg": f"HS{bits}", "typ": "JWT", "kid": any_issuer.kid}
            signed = forged(header, any_issuer.claims("alice")).rpartition(".")[0]
            code = hmac.new(secret.encode(), signed.encode(), f"sha{bits}").digest()
            await refused(app, f"{signed}.{b64(code)}", "another algorithm")


async def test_algorithm_is_the_keys_and_no_other_of_its_kind(start: Start) -> None:
    key = rsa.generate_private_key(65537, 2048)
    issuer = Issuer(key=key)
    app = await start(**PRODUCTION, **issuer.env)
    for algorithm in ("RS384", "RS512", "PS256"):
        assertion = jwt.encode(issuer.claims("alice"), key, algorithm, {"kid": issuer.kid})
        await refused(app, assertion, "another algorithm")
    thief = Issuer(issuer.kid)
    await refused(app, thief.sign("alice"), "another algorithm")


@pytest.mark.parametrize("where", ["jku", "jwk", "x5u", "x5c"])
async def test_key_that_the_assertion_brings_along_is_not_looked_at(
    start: Start, issuer: Issuer, where: str
) -> None:
    app = await start(**PRODUCTION, **issuer.env)
    thief = Issuer()
    own: dict[str, Any] = {
        "jku": "http://127.0.0.1:9/keys.json",
        "jwk": thief.jwk,
        "x5u": "file:///etc/passwd",
        "x5c": [b64(b"a certificate")],
    }
    for kid in (issuer.kid, "mine", "../../../dev/null", "' OR 1=1 --", "\x00", "", 7, None, ["x"]):
        header = {"alg": "ES256", "typ": "JWT", where: own[where], "kid": kid}
        answer = await begin(app, signed_by(thief, header, thief.claims("alice")))
        assert answer.status_code == 401, answer.text
        assert await sessions(app) == 0


CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "another issuer": ({"iss": "https://evil.example"}, "another issuer"),
    "issuer in a list": ({"iss": [ISSUER]}, ""),
    "issuer with a slash": ({"iss": ISSUER + "/"}, "another issuer"),
    "no issuer": ({"iss": None}, "lacks the claim iss"),
    "another audience": ({"aud": "payroll"}, "another audience"),
    "other audiences too": ({"aud": [AUDIENCE, "payroll"]}, "other audiences"),
    "no audience": ({"aud": None}, "lacks the claim aud"),
    "empty audience": ({"aud": []}, ""),
    "expired": ({"iat": int(time.time()) - 100, "exp": int(time.time()) - 31}, "expired"),
    "no end": ({"exp": None}, "lacks the claim exp"),
    "end that is no number": ({"exp": "soon"}, "malformed"),
    "no beginning": ({"iat": None}, "lacks the claim iat"),
    "beginning that is no number": ({"iat": "now"}, ""),
    "issued in the future": ({"iat": int(time.time()) + 3600}, "not valid yet"),
    "not valid yet": ({"nbf": int(time.time()) + 3600}, "not valid yet"),
    "long ago": (
        {"iat": int(time.time()) - 400, "exp": int(time.time()) + 3600},
        "older than 300 s",
    ),
    "no user": ({"sub": None}, "lacks the claim sub"),
    "user that is no text": ({"sub": 7}, ""),
    "user in a list": ({"sub": ["alice"]}, ""),
}


@pytest.mark.parametrize("case", CLAIMS)
async def test_claims_that_are_not_for_this_desk_and_now_prove_nothing(
    start: Start, issuer: Issuer, case: str
) -> None:
    app = await start(**PRODUCTION, **issuer.env)
    claims, because = CLAIMS[case]
    header = {"alg": "ES256", "kid": issuer.kid}
    await refused(app, signed_by(issuer, header, issuer.claims("alice", **claims)), because)


async def test_clocks_may_differ_by_the_leeway(start: Start, issuer: Issuer) -> None:
    app = await start(**PRODUCTION, **issuer.env, AUTH_LEEWAY="300", AUTH_MAX_AGE="300")
    now = int(time.time())
    cases = {"iat": ({now + 200: 201, now + 600: 401, now - 500: 201, now - 700: 401})}
    cases["exp"] = {now - 200: 201, now - 400: 401}
    for claim, moments in cases.items():
        for moment, status in moments.items():
            answer = await begin(app, issuer.sign("alice", None, **{claim: moment}))
            assert answer.status_code == status, (claim, moment - now)


@pytest.mark.parametrize(
    "headers",
    [
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": False},
        {"crit": []},
        {"typ": "at+jwt"},
        {"typ": "logout+jwt"},
    ],
)
async def test_assertion_of_another_kind_proves_nothing(
    start: Start, issuer: Issuer, headers: dict[str, Any]
) -> None:
    app = await start(**PRODUCTION, **issuer.env)
    header = {"alg": "ES256", "kid": issuer.kid, **headers}
    await refused(app, signed_by(issuer, header, issuer.claims("alice")), "")


@pytest.mark.parametrize(
    "user", ["", "alice bob", "alice\n", "älice", "a:b", "a" * 65, "a\x00", "<b>"]
)
async def test_user_who_has_no_users_name_begins_none(
    start: Start, issuer: Issuer, user: str
) -> None:
    app = await start(**PRODUCTION, **issuer.env)
    await refused(app, issuer.sign(user), "must match", 422)
    # It was not used up: nothing was begun with it.
    assert await sessions(app, "assertions") == 0


async def test_user_may_be_told_by_another_claim(start: Start, issuer: Issuer) -> None:
    app = await start(**PRODUCTION, **issuer.env, AUTH_USER_CLAIM="preferred_username")
    answer = await begin(app, issuer.sign("7f3a-…", preferred_username="alice"))
    assert answer.json()["data"]["user"] == "alice"
    await begin(app, issuer.sign("alice"))
    assert await sessions(app) == 1


@pytest.mark.parametrize(
    "assertion",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "a.b.c.d.e",
        "\x00",
        "ä",
        forged("[" * 5000, {}),
        forged('{"a":' * 1000, {}),
        forged("{", {}),
        forged("null", {}),
        forged("[]", {}),
        forged('"ES256"', {}),
        forged('{"alg": "ES256", "kid": "one"}', {}),
        f"{b64(json.dumps({'alg': 'ES256', 'kid': 'one'}).encode())}.{'A' * 8000}.x",
    ],
)
async def test_what_is_no_assertion_proves_nothing(
    start: Start, issuer: Issuer, assertion: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = await start(**PRODUCTION, **issuer.env)
    await refused(app, assertion, "")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_huge_assertion_is_refused_before_it_is_looked_at(
    start: Start, issuer: Issuer
) -> None:
    app = await start(**PRODUCTION, **issuer.env)
    await refused(app, issuer.sign("alice", more="x" * 9000), "at most 8192", 422)
    await refused(app, "x" * 70_000, "", 413)
    for wrong in (7, None, ["x"], {"x": 1}, True):
        await refused(app, wrong, "", 422)


async def test_assertion_begins_one_session_on_whichever_instance(
    start: Start, issuer: Issuer, redis_server: Server
) -> None:
    first, second = [await start(redis_server, **PRODUCTION, **issuer.env) for _ in "12"]
    assertion = issuer.sign("alice")
    assert (await begin(first, assertion)).status_code == 201
    for app in (first, second):
        answer = await begin(app, assertion)
        assert answer.status_code == 401
        assert "has begun a session before" in answer.json()["error"]["message"]
    # The database remembers it, not Redis, which may forget or be away.
    redis_server.kill()
    assert (await begin(second, assertion)).status_code == 401
    assert await sessions(first) == 1


async def test_of_many_that_show_one_assertion_at_once_one_begins_a_session(
    start: Start, issuer: Issuer, database_url: str
) -> None:
    apps = [await start(**PRODUCTION, **issuer.env, DATABASE_URL=database_url) for _ in "12"]
    assertion = issuer.sign("alice")
    answers = await asyncio.gather(*(begin(app, assertion) for app in apps * 8))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 15
    assert await sessions(apps[0]) == 1


async def test_used_assertion_written_in_another_way_is_the_same(
    start: Start, issuer: Issuer
) -> None:
    """Of an ECDSA signature there are two; and a decoder may ignore bits and characters."""
    app = await start(**PRODUCTION, **issuer.env)
    assertion = issuer.sign("alice")
    assert (await begin(app, assertion)).status_code == 201
    signed, _, signature = assertion.rpartition(".")
    raw = unb64(signature)
    r, s = (int.from_bytes(part, "big") for part in (raw[:32], raw[32:]))
    assert decode_dss_signature(encode_dss_signature(r, P256 - s)) == (r, P256 - s)
    other = r.to_bytes(32, "big") + (P256 - s).to_bytes(32, "big")
    answers = [
        await begin(app, f"{signed}.{b64(other)}"),
        await begin(app, f"{signed}.{signature}="),
        await begin(app, f"{signed}.{signature[:-1]}{chr(ord(signature[-1]) + 1)}"),
        await begin(app, assertion + "\n"),
        await begin(app, " " + assertion),
    ]
    # The first of them is a good signature.
    assert "has begun a session before" in answers[0].text
    assert {answer.status_code for answer in answers} == {401}
    assert await sessions(app) == 1


async def test_used_assertions_are_remembered_until_they_are_useless_and_no_longer(
    start: Start, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await start(**PRODUCTION, **issuer.env)
    for _ in range(3):
        assert (await begin(app, issuer.sign("alice"))).status_code == 201
    async with app.services.database.engine.connect() as connection:
        rows = (await connection.execute(text("SELECT forget_after FROM assertions"))).scalars()
        ends = [dt.datetime.fromisoformat(row).replace(tzinfo=dt.UTC) for row in rows]
    # The end of 120 s, the leeway of 30 s, and a margin for other hosts' clocks.
    now = dt.datetime.now(dt.UTC)
    assert all(now + dt.timedelta(seconds=150) < end for end in ends)
    assert all(end <= now + dt.timedelta(seconds=451) for end in ends)
    monkeypatch.setattr(clock, "now", lambda: max(ends) + dt.timedelta(seconds=1))
    assertion = issuer.sign("alice", exp=int(time.time()) + 240)
    assert (await begin(app, assertion)).status_code == 201
    assert await sessions(app, "assertions") == 1


async def test_session_before_the_login_is_never_the_one_after_it(
    start: Start, issuer: Issuer
) -> None:
    """Session fixation: an attacker plants a cookie, and waits for its owner to log in."""
    app = await start(**PRODUCTION, **issuer.env)
    planted = (await begin(app, issuer.sign("mallory"))).cookies["__Host-session"]
    for value in (planted, "A" * 43):
        headers = {"Cookie": f"__Host-session={value}; session={value}"}
        body = {"assertion": issuer.sign("alice")}
        answer = await app.client.post(LOGIN, json=body, headers=headers)
        app.client.cookies.clear()
        assert answer.status_code == 201
        assert answer.cookies["__Host-session"] != value
        read = await app.client.get(f"{LOGIN}/current", headers=headers)
        assert read.status_code == 401


# Keys: what is accepted as one, and how they change.


def private_pem(issuer: Issuer) -> str:
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return issuer.key.private_bytes(*form).decode()


def with_member(issuer: Issuer, **members: object) -> str:
    return json.dumps({"keys": [{**issuer.jwk, **members}]})


# 1024 bits.
SMALL_RSA = """-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCXK3kz0SIU7K5KGRwzphxXvG/q
BI2/ek04pfY4I4C6+DP2VoZ1qdwuxZQXNoTVzLUcvff7Ux2ekHJFR9/Kta0E7E16
EsSLrwrP+xwcmZYaGd8GhsALkcF0gDWECqIt8PH6zdX0aHZwo7z6n1US2X/sMjf9
K5sTN1keCl7CwHePfwIDAQAB
-----END PUBLIC KEY-----
"""
BAD_KEYS: dict[str, Callable[[], str]] = {
    "nothing that is a key": lambda: "secret",
    "JSON without keys": lambda: '{"a": 1}',
    "a list": lambda: "[]",
    "deep JSON": lambda: "[" * 60_000,
    "no keys": lambda: '{"keys": []}',
    "keys that are no objects": lambda: '{"keys": [1]}',
    "a shared key": lambda: '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}',
    "a private JWK": lambda: with_member(Issuer(), d="c2VjcmV0"),
    "a private PEM": lambda: private_pem(Issuer()),
    "a damaged PEM": lambda: Issuer().pem.replace("M", "N"),
    "two PEM blocks": lambda: Issuer().pem + Issuer().pem,
    "a small RSA key": lambda: SMALL_RSA,
    "another curve": lambda: Issuer(key=ec.generate_private_key(ec.SECP384R1())).pem,
    "an encryption key": lambda: with_member(Issuer(), use="enc"),
    "a key that verifies nothing": lambda: with_member(Issuer(), key_ops=["encrypt"]),
    "another algorithm": lambda: with_member(Issuer(), alg="HS256"),
    "a point off the curve": lambda: with_member(Issuer(), x=b64(b"\x01" * 32)),
    "two of one name": lambda: jwks(Issuer("a"), Issuer("a")),
    "a name that is no text": lambda: with_member(Issuer(), kid=7),
    "too much": lambda: " " * 70_000,
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_what_is_no_public_key_stops_the_start_and_is_not_shown(case: str, tmp_path: Path) -> None:
    text = BAD_KEYS[case]()
    environ = {"AUTH_ISSUER": ISSUER, "AUTH_AUDIENCE": AUDIENCE}
    file = tmp_path / "keys"
    file.write_text(text)
    for name, value in (("AUTH_KEYS", text), ("AUTH_KEYS_FILE", str(file))):
        if name == "AUTH_KEYS" and not text.strip():
            continue
        with pytest.raises(SettingsError) as caught:
            load_settings({**environ, name: value})
        (problem,) = caught.value.problems
        assert problem.startswith(f"{name}: found ")
        assert "expected public keys as a JWKS" in problem
        assert text[:40] not in problem or len(text) < 10


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"AUTH_ISSUER": ISSUER}, {"AUTH_KEYS"}),
        ({"AUTH_AUDIENCE": AUDIENCE}, {"AUTH_KEYS"}),
        ({"AUTH_KEYS": Issuer().pem}, {"AUTH_ISSUER", "AUTH_AUDIENCE"}),
        ({"AUTH_KEYS_FILE": "/nowhere"}, {"AUTH_KEYS_FILE", "AUTH_ISSUER", "AUTH_AUDIENCE"}),
        ({**Issuer().env, "AUTH_KEYS_FILE": "/nowhere"}, {"AUTH_KEYS_FILE"}),
        (
            {**Issuer().env, "AUTH_MAX_AGE": "0", "AUTH_LEEWAY": "301"},
            {"AUTH_MAX_AGE", "AUTH_LEEWAY"},
        ),
        ({**Issuer().env, "AUTH_USER_CLAIM": "a b"}, {"AUTH_USER_CLAIM"}),
        ({"ALLOWED_ORIGINS": "*"}, {"ALLOWED_ORIGINS"}),
        ({"ALLOWED_ORIGINS": "https://a.example/"}, {"ALLOWED_ORIGINS"}),
        ({"ALLOWED_ORIGINS": "https://A.example"}, {"ALLOWED_ORIGINS"}),
        ({"ALLOWED_ORIGINS": "https://a.example:443"}, {"ALLOWED_ORIGINS"}),
        ({"ALLOWED_ORIGINS": "null"}, {"ALLOWED_ORIGINS"}),
        ({"SOCKET_RATE_LIMIT": "many"}, {"SOCKET_RATE_LIMIT"}),
        ({"SOCKETS_PER_SESSION": "0"}, {"SOCKETS_PER_SESSION"}),
    ],
)
def test_settings_that_do_not_make_an_authenticator_stop_the_start(
    environ: dict[str, str], names: set[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    assert {problem.split(":")[0] for problem in caught.value.problems} == names


def test_issuers_other_keys_are_left_alone() -> None:
    """Such as one for encryption, which an OpenID provider publishes beside those it signs with."""
    signing = Issuer("sign")
    other = {**Issuer(key=rsa.generate_private_key(65537, 2048)).jwk, "use": "enc", "kid": "enc"}
    text = json.dumps({"keys": [other, signing.jwk]})
    loaded = load_settings({**signing.env, "AUTH_KEYS": text})
    assert loaded.auth is not None
    assert [(key.id, key.algorithm) for key in loaded.auth.keys] == [("sign", "ES256")]


async def test_one_key_may_be_without_a_name(start: Start) -> None:
    for algorithm in KEYS:
        issuer = KEYS[algorithm]()
        # As an environment file must have it: on one line.
        app = await start(
            **{**PRODUCTION, **issuer.env, "AUTH_KEYS": " ".join(issuer.pem.split("\n"))}
        )
        assert (await begin(app, issuer.sign("alice"))).status_code == 201
        unnamed = jwt.encode(issuer.claims("alice"), issuer.key, issuer.algorithm)
        assert (await begin(app, unnamed)).status_code == 201
        assert (await begin(app, KEYS[algorithm]().sign("alice"))).status_code == 401


async def test_keys_are_rotated_in_their_file_without_a_restart(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Issuer("old"), Issuer("new")
    file = tmp_path / "keys.json"

    def publish(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        os.replace(fresh, file)

    publish(jwks(old))
    env = {**PRODUCTION, **old.env, "AUTH_KEYS": "", "AUTH_KEYS_FILE": str(file)}
    app = await start(**env)

    async def statuses() -> list[int]:
        return [(await begin(app, one.sign("alice"))).status_code for one in (old, new)]

    assert await statuses() == [201, 401]
    publish(jwks(old, new))
    assert await statuses() == [201, 201]
    # With several keys an assertion must say which.
    unnamed = jwt.encode(new.claims("alice"), new.key, "ES256")
    assert (await begin(app, unnamed)).status_code == 401
    publish(jwks(new))
    assert await statuses() == [401, 201]
    for broken in ("", "{", jwks(new)[:-5], private_pem(old)):
        publish(broken)
        assert await statuses() == [401, 201]
    file.unlink()
    assert await statuses() == [401, 201]
    assert "could not be read again" in caplog.text
    publish(jwks(old))
    assert await statuses() == [201, 401]


async def test_admin_token_begins_no_session(start: Start, issuer: Issuer) -> None:
    app = await start(**issuer.env, AUTH_DEVELOPMENT_USERS="")
    answer = await app.client.post(LOGIN, json={"user": "alice"}, headers=AUTH)
    assert answer.status_code == 401
