"""The module redis_users, run as Ansible runs it, against real servers with an ACL file."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import resource
import stat
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ports import free_port

from conftest import ansible_module, load, server_command

resp = load("plugins/module_utils/resp.py")
acl = load("plugins/module_utils/redis_acl.py")
# In the order in which they need each other.
for library in ("redis_defaults", "redis_conf", "redis_files", "redis_server", "redis_trial"):
    load(f"plugins/module_utils/{library}.py")
redis_users = load("plugins/modules/redis_users.py")

ADMIN, APP = "admin-secret-0123456789", "app-secret-0123456789"
ADMIN_RULES, APP_RULES = "~* &* +@all", "~app:* &app:* +ping +get +set +client|id"


@dataclass
class Host:
    """A folder with an ACL file, and maybe a server on it."""

    folder: Path
    port: int
    binary: str

    @property
    def file(self) -> Path:
        return self.folder / "users.acl"

    def connect(self, user: str = "admin", password: str = ADMIN) -> Any:
        """Return a connection that is logged in."""
        client = resp.Client("127.0.0.1", self.port)
        client.call("AUTH", user, password)
        return client

    def ask(self, *words: str, user: str = "admin", password: str = ADMIN) -> Any:
        """Return the reply to one command."""
        with self.connect(user, password) as client:
            return client.call(*words)


def user(name: str, password: str | None, rules: str, **more: Any) -> dict[str, Any]:
    """Return a declared user."""
    return {"name": name, "rules": rules, **({"password": password} if password else {}), **more}


def users(*more: dict[str, Any], app: str = APP, rules: str = APP_RULES) -> list[dict[str, Any]]:
    """Return the users that most tests declare."""
    return [user("admin", ADMIN, ADMIN_RULES), user("app", app, rules), *more]


def arguments(host: Host, declared: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return the module's arguments."""
    return {
        "path": str(host.file),
        "users": declared,
        "server": {"port": host.port},
        "logins": [{"username": "admin", "password": ADMIN}],
        "server_binary": host.binary,
        **more,
    }


def run(host: Host, declared: list[dict[str, Any]], check: bool = False, **more: Any) -> dict[str, Any]:
    """Return the module's result; no output may hold a password or a hash."""
    plain = {"_ansible_check_mode": check, "_ansible_no_log": False, "_ansible_remote_tmp": "/tmp"}
    words, printed = {**arguments(host, declared, **more), **plain}, io.StringIO()
    with warnings.catch_warnings():
        # The module leaves its connection to the end of its process.
        warnings.simplefilter("ignore", ResourceWarning)
        with patch_module_args(words), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            redis_users.main()
        gc.collect()
    output = printed.getvalue()
    for item in declared:
        for secret in filter(None, (item.get("password"), item.get("previous_password"))):
            assert secret not in output
            assert acl.digest(secret) not in output
    result: dict[str, Any] = json.loads(output)
    return result


def names(result: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Return what was added, updated and removed."""
    assert "msg" not in result, result
    return result["added"], result["updated"], result["removed"]


def state(host: Host) -> tuple[Any, str | None]:
    """Return the server's users and the file."""
    return sorted(host.ask("ACL", "LIST")), host.file.read_text() if host.file.exists() else None


@contextlib.contextmanager
def running(host: Host) -> Iterator[Host]:
    """Run the host's server, with a configuration that it can rewrite."""
    config = host.folder / "redis.conf"
    config.write_text(f'bind 127.0.0.1\nport {host.port}\ndir {host.folder}\nsave ""\naclfile {host.file}\n')
    process = subprocess.Popen([host.binary, str(config)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                # The kernel takes connections before the server has read its files: only an answer says that it has.
                with resp.Client("127.0.0.1", host.port) as client, contextlib.suppress(resp.ErrorReply):
                    client.call("PING")
                break
            except (OSError, resp.ProtocolError):
                assert time.monotonic() < deadline, "the server does not listen"
                time.sleep(0.02)
        yield host
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def down(tmp_path: Path) -> Host:
    """A host whose server does not run."""
    return Host(tmp_path, free_port(), server_command(tmp_path))


@pytest.fixture
def up(down: Host) -> Iterator[Host]:
    """A host whose server runs with the users that most tests declare, and `default` off."""
    assert run(down, users())["server"] == "down"
    with running(down):
        yield down


def test_the_first_run_with_the_server_down_writes_the_file(down: Host) -> None:
    result = run(down, users(), mode="0640")
    assert result["changed"] is True
    assert names(result) == (["admin", "app", "default"], [], [])
    assert APP not in down.file.read_text()
    assert acl.digest(APP) in down.file.read_text()
    assert stat.S_IMODE(down.file.stat().st_mode) == 0o640
    assert run(down, users(), mode="0640")["changed"] is False
    assert run(down, users(), mode="0600")["changed"] is True
    assert stat.S_IMODE(down.file.stat().st_mode) == 0o600


def test_a_server_without_users_gets_them_and_locks_default(down: Host) -> None:
    down.file.write_text("user default on nopass ~* &* +@all\n")
    with running(down):
        result = run(down, users())
        assert (names(result), result["server"]) == ((["admin", "app"], ["default"], []), "up")
        with resp.Client("127.0.0.1", down.port) as stranger, pytest.raises(resp.ErrorReply, match="NOAUTH"):
            stranger.call("PING")
        assert run(down, users())["changed"] is False


def test_a_password_changes_under_a_client_that_reads_and_writes(up: Host) -> None:
    new = "app-new-secret-0123456789"
    stop, trouble, turns = threading.Event(), [], [0]
    client = up.connect("app", APP)
    identity = client.call("CLIENT", "ID")

    def work() -> None:
        while not stop.is_set():
            try:
                assert client.call("SET", "app:n", str(turns[0])) == "OK"
                assert client.call("GET", "app:n") == str(turns[0])
                turns[0] += 1
            except Exception as error:
                trouble.append(error)
                return

    def works_on() -> None:
        """Wait until it has read and written ten times more."""
        before, deadline = turns[0], time.monotonic() + 30
        while turns[0] < before + 10 and not trouble:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        works_on()
        assert names(run(up, users(app=new))) == ([], ["app"], [])
        works_on()
    finally:
        stop.set()
        worker.join(10)
    assert trouble == []
    assert client.call("CLIENT", "ID") == identity
    client.close()
    assert up.ask("PING", user="app", password=new) == "PONG"
    with pytest.raises(resp.ErrorReply, match="WRONGPASS"):
        up.ask("PING", user="app", password=APP)


def test_the_previous_password_is_taken_while_it_is_declared(up: Host) -> None:
    new = "app-new-secret-0123456789"
    both = [users()[0], user("app", new, APP_RULES, previous_password=APP)]
    assert names(run(up, both)) == ([], ["app"], [])
    assert up.ask("PING", user="app", password=APP) == up.ask("PING", user="app", password=new) == "PONG"
    assert run(up, both)["changed"] is False
    assert names(run(up, users(app=new))) == ([], ["app"], [])


def test_a_hash_stands_for_a_password_that_is_not_known_here(up: Host) -> None:
    old, more = acl.digest("old-secret-0123456789"), acl.digest("other-secret-0123456789")
    hashed = user("reports", None, "~reports:* +ping", password_hashes=[old, more])
    both = users(hashed)
    both[1]["password_hashes"] = [old]
    assert names(run(up, both)) == (["reports"], ["app"], [])
    assert names(run(up, both)) == ([], [], [])
    assert up.ask("PING", user="reports", password="old-secret-0123456789") == "PONG"
    assert up.ask("PING", user="reports", password="other-secret-0123456789") == "PONG"
    assert up.ask("PING", user="app", password="old-secret-0123456789") == "PONG"
    assert up.ask("PING", user="app", password=APP) == "PONG"
    with pytest.raises(resp.ErrorReply, match="WRONGPASS"):
        up.ask("PING", user="reports", password=APP)
    assert names(run(up, users())) == ([], ["app"], ["reports"])


@pytest.mark.parametrize("word", ["", "0" * 63, "0" * 64 + "\n", "A" * 64, "g" * 64, "#" + "0" * 64])
def test_what_is_no_hash_is_refused(down: Host, word: str) -> None:
    result = run(down, users(user("reports", None, "+ping", password_hashes=[word])))
    assert "user reports: a hash of a password is 64 small hexadecimal digits. Nothing was changed" in result["msg"]
    assert not down.file.exists()


def test_users_come_change_and_go(up: Host) -> None:
    extra = user("extra", "extra-secret-0123456789", "~e:* +get")
    assert names(run(up, users(extra))) == (["extra"], [], [])
    assert run(up, users(extra))["changed"] is False
    assert names(run(up, users({**extra, "enabled": False}))) == ([], ["extra"], [])
    with pytest.raises(resp.ErrorReply, match="WRONGPASS"):
        up.ask("PING", user="extra", password=extra["password"])
    gone = run(up, users(rules="~app:* +get"))
    assert names(gone) == ([], ["app"], ["extra"])
    assert "+set" in json.dumps(gone["diff"])
    assert "#(hidden)" in json.dumps(gone["diff"])
    assert "extra" not in up.file.read_text()
    assert "extra" in Path(f"{up.file}.previous").read_text()


def test_what_redis_itself_writes_is_no_difference(up: Host) -> None:
    odd = [
        user("a", "secret-a-0123456789", "allkeys allchannels +@all -@dangerous +info"),
        user("b", "secret-b-0123456789", "%R~x %W~y %RW~z ~z &q &p +CONFIG|get +@READ -get"),
        user("c", "secret-c-0123456789", "~a ~a +get +get -get +select|0"),
        user("d", "secret-d-0123456789", "%R~a %W~a +config|get -config"),
        user("e", "secret-e-0123456789", ""),
    ]
    assert run(up, users(*odd))["changed"] is True
    assert run(up, users(*odd))["changed"] is False
    assert up.ask("ACL", "SAVE") == "OK"
    saved = up.file.read_text()
    assert run(up, users(*odd))["changed"] is False
    assert up.file.read_text() == saved


@pytest.mark.parametrize("check", [False, True])
def test_what_redis_refuses_is_told_in_its_words_and_changes_nothing(up: Host, check: bool) -> None:
    before = state(up)
    result = run(up, users(rules="~app:* +nosuchcommand"), check=check)
    assert result["failed"]
    assert "user app" in result["msg"]
    assert "'+nosuchcommand': Unknown command or category name in ACL" in result["msg"]
    assert state(up) == before


def test_what_redis_refuses_is_told_when_it_is_down_too(down: Host) -> None:
    run(down, users())
    before = down.file.read_text()
    result = run(down, users(rules="+nosuchcommand"))
    assert "Unknown command or category name in ACL" in result["msg"]
    assert down.file.read_text() == before


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (users(user("app", "another-0123456789", "+get")), "declared twice"),
        (users(user("two words", "another-0123456789", "+get")), "a name is"),
        (users(user("x", "another-0123456789", "+get\nuser y on")), "one line"),
        (users(user("x", "another-0123456789", '~"a"')), "without quotes"),
        (users(user("x", "another-0123456789", "(~a +get)")), "parentheses"),
        *(
            (users(user("x", "another-0123456789", f"+get {rule}")), "no rules")
            for rule in (">p", "<p", "nopass", "on")
        ),
        *(
            (users(user("x", "another-0123456789", f"+get {rule}")), "no rules")
            for rule in ("off", "reset", "#a", "!a")
        ),
    ],
)
def test_what_is_no_user_is_refused_before_anything(down: Host, declared: list[dict[str, Any]], words: str) -> None:
    result = run(down, declared)
    assert result["failed"]
    assert words in result["msg"]
    assert not down.file.exists()


def test_a_wrong_login_changes_nothing(up: Host) -> None:
    before = state(up)
    result = run(up, users(app="x-0123456789"), logins=[{"username": "admin", "password": "wrong"}])
    assert result["failed"]
    assert "refuses every login" in result["msg"]
    assert state(up) == before


def test_the_one_that_is_logged_in_does_not_lock_itself_out(up: Host) -> None:
    before = state(up)
    for declared in ([users()[1]], [user("admin", ADMIN, "~* &* +@all -acl"), users()[1]]):
        result = run(up, declared)
        assert result["failed"]
        assert "would lock itself out" in result["msg"]
    assert state(up) == before


def test_check_mode_predicts_and_changes_nothing(up: Host) -> None:
    before = state(up)
    extra = user("extra", "extra-secret-0123456789", "+get")
    result = run(up, [users()[0], extra], check=True)
    assert result["changed"] is True
    assert names(result) == (["extra"], [], ["app"])
    assert state(up) == before
    assert run(up, users(), check=True)["changed"] is False


def test_a_bare_host_in_check_mode_is_no_failure_and_otherwise_one(down: Host) -> None:
    missing = str(down.folder / "missing" / "users.acl")
    assert run(down, users(), check=True, path=missing)["changed"] is True
    result = run(down, users(), path=missing)
    assert result["failed"]
    assert str(down.folder / "missing") in result["msg"]


def test_the_login_is_left_for_root_and_used_when_the_declared_one_is_not_yet_known(up: Host) -> None:
    file = up.folder / "admin.env"
    keep: dict[str, Any] = {"credentials_file": str(file), "credentials_user": "admin"}
    assert run(up, users(), **keep)["changed"] is True
    assert file.read_text() == f"REDISCLI_USER=admin\nREDISCLI_AUTH={ADMIN}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run(up, users(), **keep)["changed"] is False
    new = "admin-new-secret-0123456789"
    declared = [user("admin", new, ADMIN_RULES), users()[1]]
    login: dict[str, Any] = {"logins": [{"username": "admin", "password": new}]}
    assert names(run(up, declared, **keep, **login)) == ([], ["admin"], [])
    assert new in file.read_text()
    assert up.ask("PING", password=new) == "PONG"
    assert run(up, declared, **keep, **login)["changed"] is False


def test_config_rewrite_and_acl_save_in_between_are_no_change(up: Host) -> None:
    assert up.ask("CONFIG", "REWRITE") == "OK"
    assert run(up, users())["changed"] is False
    assert up.ask("ACL", "SAVE") == "OK"
    saved = up.file.read_text()
    assert run(up, users())["changed"] is False
    assert up.file.read_text() == saved


def test_no_secret_is_in_the_most_talkative_output(up: Host) -> None:
    new = "app-new-secret-0123456789"
    given = arguments(up, users(app=new), credentials_file=str(up.folder / "e"), credentials_user="admin")
    code, output = ansible_module("quantdesk.redis.redis_users", given, "-vvvv", "--diff")
    assert code == 0, output
    assert "#(hidden)" in output
    for secret in (ADMIN, APP, new):
        assert secret not in output
        assert acl.digest(secret) not in output
    assert up.ask("PING", user="app", password=new) == "PONG"


def test_users_are_removed_by_one_who_loses_the_right_to(up: Host) -> None:
    # `chief` logs in here, and is an ordinary user afterwards.
    chief = user("chief", "chief-secret-0123456789", ADMIN_RULES)
    extra = user("extra", "extra-secret-0123456789", "+get")
    run(up, users(chief, extra))
    logins = [{"username": item["name"], "password": item["password"]} for item in (chief, users()[0])]
    assert names(run(up, users({**chief, "rules": "+ping"}), logins=logins)) == ([], ["chief"], ["extra"])
    run(up, users(chief, extra))
    assert names(run(up, users(), logins=logins)) == ([], [], ["chief", "extra"])
    assert run(up, users(), logins=logins)["changed"] is False


def test_a_login_that_the_next_run_would_not_know_is_refused(up: Host) -> None:
    before = state(up)
    declared = [user("admin", "admin-new-secret-0123456789", ADMIN_RULES), users()[1]]
    assert "would lock itself out" in run(up, declared)["msg"]
    assert state(up) == before


def test_a_user_without_a_password_is_off(up: Host) -> None:
    run(up, users(user("guest", None, "~* +get")))
    described = up.ask("ACL", "GETUSER", "guest")
    assert "off" in described[1]
    assert described[3] == []
    assert run(up, users(user("guest", None, "~* +get")))["changed"] is False
    assert "previous" in run(up, users(user("guest", None, "+get", previous_password="p-0123456789")))["msg"]


def test_users_made_by_hand_are_put_right(up: Host) -> None:
    up.ask("ACL", "SETUSER", "app", "(~x +get)")
    up.ask("ACL", "SETUSER", "admin", "skip-sanitize-payload")
    up.ask("ACL", "SETUSER", "stranger", "on", "nopass", "+@all", "(%R~x +get)")
    assert names(run(up, users())) == ([], ["admin", "app"], ["stranger"])
    assert run(up, users())["changed"] is False


@pytest.mark.parametrize("text", ["# a comment\n{}", "user app off\n{}", "{}user old on >plain +@all\n", "nonsense\n"])
def test_a_file_that_is_not_to_stay_is_written_again(up: Host, text: str) -> None:
    good = up.file.read_text()
    up.file.write_text(text.format(good))
    result = run(up, users())
    assert (result["changed"], names(result)) == (True, ([], [], []))
    assert "plain" not in json.dumps(result)
    assert up.file.read_text() == good


def test_when_the_file_cannot_be_put_in_place_the_server_is_as_before(up: Host) -> None:
    up.ask("ACL", "SETUSER", "app", "(~x +get)")
    before = state(up)[0]
    up.file.unlink()
    # A rename over a folder that is not empty fails, for root, too.
    (up.file / "occupied").mkdir(parents=True)
    up.file.with_suffix(".acl.previous").unlink(missing_ok=True)
    result = run(up, users(user("extra", "extra-secret-0123456789", "+get")))
    assert result["failed"]
    assert str(up.file) in result["msg"]
    assert "EISDIR" in result["msg"]
    assert sorted(up.ask("ACL", "LIST")) == before


def test_when_the_file_cannot_be_written_the_server_is_as_before(up: Host) -> None:
    before = state(up)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Stands for a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))
    try:
        result = run(up, users(app="app-new-secret-0123456789"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(up.file) in result["msg"]
    assert "EFBIG" in result["msg"]
    assert state(up) == before
    assert {path.name for path in up.folder.iterdir() if "users" in path.name} == {"users.acl"}


def test_a_credentials_file_that_cannot_be_written_is_named(up: Host) -> None:
    before = state(up)
    target = str(up.folder / "absent" / "admin.env")
    result = run(up, users(), credentials_file=target, credentials_user="admin")
    assert "ENOENT" in result["msg"]
    assert "The users are as declared" in result["msg"]
    assert state(up) == before


def test_a_credentials_file_has_its_mode_back_and_takes_one_line(up: Host) -> None:
    keep: dict[str, Any] = {"credentials_file": str(up.folder / "admin.env"), "credentials_user": "admin"}
    run(up, users(), **keep)
    (up.folder / "admin.env").chmod(0o644)
    assert run(up, users(), **keep)["changed"] is True
    assert stat.S_IMODE((up.folder / "admin.env").stat().st_mode) == 0o600
    lines = [user("admin", "0123456789\nREDISCLI_USER=x", ADMIN_RULES), users()[1]]
    assert "found a password with a line break" in run(up, lines, **keep)["msg"]
    # No shell reads it.
    code = [user("admin", "x$(touch owned)0123456789", ADMIN_RULES), users()[1]]
    assert run(up, code, **keep)["changed"] is True
    assert "REDISCLI_AUTH=x$(touch owned)0123456789\n" in (up.folder / "admin.env").read_text()
    assert "not declared" in run(up, [users()[1]], **keep)["msg"]
