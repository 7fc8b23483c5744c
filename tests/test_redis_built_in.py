"""The records of the built-in users: the rules that the role makes of them, and the checks of verify.yml on each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ports import free_port

from conftest import PROJECT, ansible_plays, load, start

readme = load("docs/role_readme.py")
records = load("plugins/module_utils/redis_built_in.py")
resp = load("plugins/module_utils/resp.py")

ROLE = PROJECT / "roles/redis"
SPEC = readme.read_spec(ROLE)["options"]
DEFAULTS = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
INSTANCE = (PROJECT / "playbooks/tasks/redis_instance.yml").read_text()
INPUTS = sorted({name for user in records.BUILT_IN for name in user.inputs})
NAMES = [user.name for user in records.BUILT_IN]
RIGHTS = [(user.name, right.name) for user in records.BUILT_IN for right in user.rights]


def values(**changes: Any) -> dict[str, Any]:
    """Return the inputs as the role's defaults have them, for an environment `lab`, with a password for everybody."""
    known = {name: DEFAULTS.get(name) for name in INPUTS}
    text: dict[str, Any] = json.loads(json.dumps(known).replace("{{ env_name | default('production') }}", "lab"))
    passwords = {user.password: f"{user.name}-0123456789abcdef" for user in records.BUILT_IN}
    return {**text, **passwords, **changes}


def rules(name: str, **changes: Any) -> str:
    """Return the rules of a user."""
    found: str = records.BY_NAME[name].declared(values(**changes))["rules"]
    return found


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_of_a_record_is_one_of_the_role_and_of_each_instance(name: str) -> None:
    assert name in SPEC
    assert f"lookup('quantdesk.redis.redis_instance', '{name}')" in INSTANCE


@pytest.mark.parametrize("user", records.BUILT_IN, ids=lambda user: user.name)
def test_a_required_user_has_a_required_password_and_any_other_none_by_default(user: Any) -> None:
    assert SPEC[user.password].get("required", False) is user.required
    assert DEFAULTS.get(user.password, "") == ""


def test_rules_are_made_of_the_inventory_s_inputs() -> None:
    assert rules("app", redis_app_keys=["a:*", "b:*"], redis_app_channels=[], redis_app_commands=["get", "eval"]) == (
        "~a:* ~b:* +get +eval"
    )
    assert rules("default", redis_default_rules="~x:*  +@all -scan") == "~x:* +@all -scan"
    assert rules("admin") == "~* &* +@all"


def test_a_switch_is_one_as_yaml_and_as_a_text() -> None:
    default = records.BY_NAME["default"]
    for value, on in ((True, True), ("true", True), ("yes", True), (False, False), ("false", False), ("no", False)):
        assert default.declared(values(redis_default_user=value))["enabled"] is on
    assert "enabled" not in records.BY_NAME["app"].declared(values())


def test_an_input_that_is_missing_is_named() -> None:
    given = values()
    del given["redis_app_keys"]
    with pytest.raises(KeyError, match="redis_app_keys"):
        records.declared(given)


@pytest.mark.parametrize(
    ("own", "confined"),
    [
        (rules("default"), True),
        (rules("default") + " +time", True),
        (rules("default").replace(" -scan", ""), False),
        (rules("default") + " ~*", False),
        (rules("default") + " &*", False),
        ("+@all", False),
    ],
)
def test_default_is_asked_only_while_it_is_confined(own: str, confined: bool) -> None:
    assert records.BY_NAME["default"].confined(own) is confined


def test_what_a_user_may_with_its_own_is_asked_only_where_it_has_some() -> None:
    app = records.BY_NAME["app"]
    keys, channels = app.rights[2], app.rights[3]
    own = records.permissions(app, keys, "~qd:lab:* +get")
    assert [(one.command, one.may) for one in own] == [
        (("GET", "a-key-of-nobody"), False),
        (("GET", "qd:lab:x"), True),
    ]
    assert [one.may for one in records.permissions(app, keys, "+get")] == [False]
    assert [one.may for one in records.permissions(app, channels, "~a +publish")] == [False, False]
    # Somebody else's key, for those who have none.
    exporter = records.BY_NAME["exporter"]
    asked = records.permissions(exporter, exporter.rights[0], exporter.rules, "qd:lab:x")
    assert ("GET", "qd:lab:x") in [one.command for one in asked]


def test_scripts_are_as_declared() -> None:
    app = records.BY_NAME["app"]
    for words, may in (("~a +get +eval", True), ("~a +get", False)):
        asked = {one.command: one.may for one in records.permissions(app, app.rights[1], words)}
        assert asked[("EVAL", "return 1", "0")] is may


def test_an_answer_is_wrong_in_words() -> None:
    may = records.Permission("app", ("GET", "x"), True)
    may_not = records.Permission("app", ("FLUSHALL",), False)
    refusal = "This user has no permissions to run the 'flushall' command"
    assert (may.wrong("OK"), may_not.wrong(refusal)) == ("", "")
    assert may_not.wrong("OK") == "app may FLUSHALL"
    assert may.wrong(refusal) == "app may not GET x"
    assert may.wrong(None) == "app GET x: no answer"
    # A user that does not exist is refused everything: that is no proof of anything.
    assert may_not.wrong("error: ERR User 'app' not found") == "app FLUSHALL: error: ERR User 'app' not found"
    assert may_not.wrong(resp.ErrorReply("ERR unknown")) == "app FLUSHALL: ERR unknown"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A connection to a server with all built-in users."""
    port = free_port()
    process = start(tmp_path_factory.mktemp("redis"), "--port", str(port), port=port)
    try:
        with resp.Client("127.0.0.1", port) as connection:
            make_users(connection)
            yield connection
    finally:
        process.terminate()
        process.wait(10)


def make_users(connection: Any) -> None:
    """Make all built-in users on a server, and log in as the one who may do everything."""
    # The one that this connection is comes last.
    for user in reversed(records.declared(values())):
        words = [f">{user['password']}", *user["rules"].split()]
        connection.call("ACL", "SETUSER", user["name"], "reset", "on", *words)
    connection.call("AUTH", "admin", values()["redis_admin_password"])


@pytest.mark.parametrize(("name", "row"), RIGHTS)
def test_redis_itself_lets_each_do_what_its_record_says(client: Any, name: str, row: str) -> None:
    user = records.BY_NAME[name]
    (right,) = (right for right in user.rights if right.name == row)
    asked = records.permissions(user, right, rules(name), "qd:lab:x")
    replies = client.pipeline([[*one.question()] for one in asked])
    assert [one.wrong(reply) for one, reply in zip(asked, replies, strict=True)] == [""] * len(asked)


@pytest.mark.parametrize(("name", "row"), RIGHTS)
def test_each_row_knows_a_user_that_may_everything(client: Any, name: str, row: str) -> None:
    user = records.BY_NAME[name]
    (right,) = (right for right in user.rights if right.name == row)
    asked = records.permissions(user, right, rules(name), "qd:lab:x")
    (before,) = (line for line in client.call("ACL", "LIST") if line.split()[1] == name)
    client.call("ACL", "SETUSER", name, "~*", "&*", "+@all")
    try:
        replies = client.pipeline([[*one.question()] for one in asked])
    finally:
        client.call("ACL", "SETUSER", name, "reset", *before.split()[2:])
    wrong = [one.wrong(reply) for one, reply in zip(asked, replies, strict=True)]
    assert [text for one, text in zip(asked, wrong, strict=True) if not one.may and not text] == []
    assert f"{name} may " in wrong[0]


def test_the_role_s_users_are_the_records_with_the_inventory_s_inputs(tmp_path: Path) -> None:
    show = {"ansible.builtin.assert": {"that": "shown == wanted", "fail_msg": "{{ shown | to_json }}"}}
    task = {**show, "vars": {"shown": "{{ query('quantdesk.redis.redis_built_in_users') }}"}}
    given = values(redis_app_keys=["mine:*"])
    play = {"vars": {**given, "wanted": records.declared(given)}, "tasks": [task]}
    lacking = {"vars": {"redis_password": "x" * 16, "wanted": []}, "tasks": [task]}
    names = "{{ query('quantdesk.redis.redis_built_in_users', names_only=true) }}"
    named = {"vars": {"shown": names, "wanted": NAMES}, "tasks": [show]}
    found = ansible_plays(tmp_path, {"all": play, "lacking": lacking, "names": named})
    assert found["all"][0], found["all"][1]
    assert found["names"][0], found["names"][1]
    assert not found["lacking"][0]
    assert "'redis_default_user' is undefined" in found["lacking"][1]
