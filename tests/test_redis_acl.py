"""Lines of Redis' ACL file: read, compared by meaning, written."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import load

acl = load("plugins/module_utils/redis_acl.py")

WORD = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="()\"'\\"), min_size=1, max_size=8)
KEYS = st.lists(st.builds("{}{}".format, st.sampled_from(["~", "%R~", "%W~", "%RW~"]), WORD), max_size=4)
CHANNELS = st.lists(WORD.map("&{}".format), max_size=4)
COMMANDS = st.lists(
    st.builds(
        "{}{}".format,
        st.sampled_from("+-"),
        st.sampled_from(["get", "set", "config|get", "@all", "@read", "@dangerous"]),
    ),
    max_size=6,
)
HASHES = st.lists(st.text("0123456789abcdef", min_size=64, max_size=64).map("#{}".format), max_size=3)
STATE = st.sampled_from([["on"], ["off"], ["on", "nopass"], ["on", "sanitize-payload"]])


@settings(max_examples=60, deadline=None)
@given(STATE, HASHES, KEYS, CHANNELS, COMMANDS)
def test_what_is_written_is_read_as_the_same(
    state: list[str], hashes: list[str], keys: list[str], channels: list[str], commands: list[str]
) -> None:
    user = acl.build("u", [*state, *hashes, *keys, *channels, *commands])
    assert acl.parse(user.line()) == user
    assert acl.parse_file(acl.render_file([user])) == {"u": user}


@settings(max_examples=60, deadline=None)
@given(HASHES, KEYS, CHANNELS, COMMANDS, st.randoms(use_true_random=False))
def test_the_order_of_passwords_keys_and_channels_means_nothing(
    hashes: list[str], keys: list[str], channels: list[str], commands: list[str], chance: object
) -> None:
    words = [*hashes, *keys, *channels]
    mixed = list(words)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    assert acl.build("u", [*words, *commands]) == acl.build("u", [*commands, *mixed])


def test_the_order_of_commands_means_something() -> None:
    assert acl.build("u", ["+@all", "-@dangerous"]) != acl.build("u", ["-@dangerous", "+@all"])
    assert acl.build("u", ["+get", "-get"]).commands == ("-@all", "-get")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("allkeys", "~*"),
        ("allchannels", "&*"),
        ("allcommands", "+@all"),
        ("nocommands", ""),
        ("%RW~a", "~a"),
        ("~a ~*", "~*"),
        ("+GET", "+get"),
        ("+get +get", "+get"),
        ("~a resetkeys ~b", "~b"),
        ("&a resetchannels", ""),
        ("+get -@all +set", "+set"),
    ],
)
def test_two_ways_to_say_the_same(one: str, other: str) -> None:
    assert acl.build("u", one.split()) == acl.build("u", other.split())


def test_a_password_is_kept_as_its_sha256() -> None:
    # printf %s secret | sha256sum
    assert acl.digest("secret") == "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"


@pytest.mark.parametrize("line", ["", "user", "nobody on", "user u bogus", "user u #abc"])
def test_a_line_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(acl.AclError):
        acl.parse(line)


def test_an_error_shows_no_hash() -> None:
    with pytest.raises(acl.AclError) as error:
        acl.parse(f"usr u #{'a' * 64}")
    assert "#(hidden)" in str(error.value)
    assert "aaaa" not in str(error.value)


def test_hidden_is_every_hash_and_password() -> None:
    assert acl.hide(f"user u on #{'a' * 64} >plain ~k +get") == "user u on #(hidden) >(hidden) ~k +get"


@pytest.mark.parametrize("text", ["# a comment\nuser u on\n", "user u on\nuser u off\n", "user u on >plain\n"])
def test_a_file_that_redis_would_not_load_or_that_tells_a_password_is_refused(text: str) -> None:
    with pytest.raises(acl.AclError):
        acl.parse_file(text)


def test_a_user_with_selectors_is_read_and_equals_none_of_ours() -> None:
    line = "user u on sanitize-payload ~a resetchannels -@all +get (~b resetchannels -@all +set)"
    user = acl.parse(line)
    assert user != acl.build("u", ["on", "~a", "+get"])
    assert user.rules()[-4:] == ["(~b", "resetchannels", "-@all", "+set)"]
    assert acl.parse(user.line()) == user


def test_unsanitized_data_is_a_difference() -> None:
    assert acl.build("u", ["skip-sanitize-payload"]) != acl.build("u", ["sanitize-payload"])
    assert "skip-sanitize-payload" in acl.build("u", ["skip-sanitize-payload"]).rules()


@pytest.mark.parametrize(
    ("rules", "may"),
    [
        ("+@all", True),
        ("+@all -acl", False),
        ("+@all -@dangerous", False),
        ("+@all -@dangerous +acl", True),
        ("+@admin", True),
        ("+acl|setuser +acl|list", False),
        ("+acl|setuser +acl|list +acl|deluser", True),
        ("+get", False),
        ("", False),
    ],
)
def test_who_may_change_users(rules: str, may: bool) -> None:
    password = f"#{acl.digest('secret')}"
    assert acl.build("u", ["on", password, *rules.split()]).may_change_users() is may
    assert acl.build("u", ["off", password, *rules.split()]).may_change_users() is False
    assert acl.build("u", ["on", *rules.split()]).may_change_users() is False


def test_hidden_is_also_what_takes_passwords_away() -> None:
    assert acl.hide(f"<plain !{'a' * 64}") == "<(hidden) !(hidden)"


def test_the_order_of_commands_between_two_categories_means_nothing() -> None:
    # Each start of Redis 7.0 prints another one.
    one = "+@all -@dangerous +set +config -config|set +get"
    assert acl.build("u", one.split()) == acl.build(
        "u", ["+@all", "-@dangerous", "+get", "+config", "-config|set", "+set"]
    )
    assert acl.build("u", ["-config|set", "+config"]) == acl.build("u", ["+config"])
    assert acl.build("u", ["+@read", "-get"]) != acl.build("u", ["-get", "+@read"])
