"""Where Redis comes from, with a real apt: the distribution's archives, a signed repository, what is held, refusals."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from apt_host import ARCHITECTURE, NAMES, Host, Signer, Web, repositories
from ports import free_port

from conftest import PROJECT, ansible_plays, load

apt_state = load("plugins/module_utils/apt_state.py")

# ansible.builtin.apt looks for its Python binding there.
BINDING = subprocess.run(["/usr/bin/python3", "-c", "import apt"], capture_output=True, check=False).returncode == 0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ARCHITECTURE or not BINDING or not shutil.which("gpg"), reason="no apt or gpg: requirements/install test"
    ),
]
ROLE = PROJECT / "roles/redis"
OLD, NEW = "5:7.0.15-1~deb12u7", "5:7.0.15-1~deb12u10"
# A newer one of its line is there, one of another line, and a Redis 8.
HELD = "6:7.2.11-1site1"
SITE = ("6:8.0.2-1site1", "6:7.4.9-1site1", "6:7.2.12-1site1", HELD)


@pytest.fixture(scope="module")
def signers() -> Iterator[tuple[Signer, Signer]]:
    """The keys of the distribution and of somebody else."""
    keys = Signer("distribution"), Signer("site")
    yield keys
    for key in keys:
        key.close()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A web server."""
    served = Web(tmp_path_factory.mktemp("web"))
    yield served
    served.close()


@pytest.fixture
def bare(tmp_path: Path, web: Web, signers: tuple[Signer, Signer]) -> Host:
    """A host whose lists are as new as the archives, which have nothing yet."""
    folder = tmp_path / f"host-{tmp_path.name}"
    folder.mkdir()
    return Host(folder, web, *signers)


@pytest.fixture
def host(bare: Host) -> Host:
    """A host like Debian 12, and a repository of the site that it does not know yet."""
    bare.main.add_redis(OLD)
    bare.main.add("other", "1")
    bare.main.publish(days_old=200)
    bare.security.add_redis(NEW)
    bare.security.publish(days_old=1)
    bare.sources("debian", bare.main, bare.security)
    bare.update()
    bare.site.add_redis(*SITE)
    # It must not get anything else onto the host, however new it is.
    bare.site.add("other", "9")
    bare.site.publish(days_old=400)
    return bare


def problems(answer: dict[str, Any]) -> list[str]:
    """Return what stands against a run, as the report would say it."""
    return [f"{one['name']}: found {one['problem']}; expected {one['expected']}" for one in answer["problems"]]


# --- The distribution's own package ---


def test_a_package_is_fixed_when_a_recent_security_archive_has_nothing_newer(host: Host) -> None:
    before = host.state()
    answer = host.offers()
    assert (answer["installed"], answer["offered"], answer["target"]) == ("", NEW, NEW)
    assert answer["lacks"] == {NEW: []}
    assert answer["archive"] == []
    assert not answer["fetched"]
    assert host.state() == before


def test_a_package_is_not_fixed_when_the_security_archive_has_a_newer_one(host: Host) -> None:
    host.install(*(f"{name}={OLD}" for name in NAMES))
    answer = host.offers()
    assert (answer["installed"], answer["target"]) == (OLD, OLD)
    # In words of the archive, and of the table besides.
    assert answer["lacks"][OLD] == [f"the security archive has {NEW}", f"it lacks the security fixes of {NEW}"]
    assert answer["lacks"][NEW] == []
    assert host.offers(upgrade=True)["target"] == NEW


def test_a_version_that_is_known_to_be_bad_is_so_whatever_the_archive_has(bare: Host) -> None:
    bare.main.add_redis(OLD)
    bare.main.publish()
    bare.security.publish()
    bare.sources("debian", bare.main, bare.security)
    bare.update()
    answer = bare.offers()
    assert answer["archive"] == []
    assert answer["lacks"] == {OLD: [f"it lacks the security fixes of {NEW}"]}


def test_without_a_security_archive_nobody_can_tell(host: Host) -> None:
    host.sources("debian", host.main)
    answer = host.offers()
    assert answer["archive"] == ["there is no security archive among apt's sources"]


def test_a_security_archive_without_the_package_s_component_does_not_count(bare: Host) -> None:
    """On Ubuntu Redis is in universe, and a host may have the security archive of main alone."""
    bare.main.fields |= {"Origin": "Ubuntu", "Suite": "noble", "Codename": "noble"}
    bare.security.fields |= {"Origin": "Ubuntu", "Suite": "noble-security", "Codename": "noble"}
    bare.main.component = "universe"
    bare.main.add_redis("5:7.0.15-1build2")
    bare.main.publish()
    bare.security.publish()
    bare.sources("ubuntu", bare.main, bare.security)
    bare.update()
    assert bare.offers()["archive"] == ["of the security archive, apt has main and not universe, where Redis is"]
    bare.security.component = "universe"
    bare.security.publish()
    bare.sources("ubuntu", bare.main, bare.security)
    bare.update()
    answer = bare.offers()
    assert answer["archive"] == []
    assert answer["lacks"] == {"5:7.0.15-1build2": []}


def test_fixes_for_subscribers_are_looked_at_and_do_not_stand_for_the_security_archive() -> None:
    """As Ubuntu has them, where no test has run."""

    def source(suite: str, component: str, days_old: float) -> dict[str, Any]:
        date = time.time() - days_old * 86400
        named = {"name": suite, "code": "noble", "component": component, "date": date}
        return {"uri": "http://example.com", "suite": suite, **named}

    noble, universe, main, esm = (
        source(*words)
        for words in (
            ("noble", "universe", 900),
            ("noble-security", "universe", 8),
            ("noble-security", "main", 1),
            ("noble-apps-security", "main", 1),
        )
    )
    known = {"noble": noble, "universe": universe, "main": main, "esm": esm}
    archives = apt_state.security_archives(known)
    assert list(archives) == ["universe", "main", "esm"]
    assert apt_state.archive_problems(archives, {"universe"}, 7) == [
        "the index of http://example.com noble-security is 8 days old"
    ]
    assert apt_state.archive_problems(archives, {"universe"}, 9) == []
    assert apt_state.archive_problems({"esm": esm}, {"universe"}, 9) == [
        "of the security archive, apt has main and not universe, where Redis is"
    ]


def test_an_index_that_is_too_old_is_fetched_aside_and_refused_if_the_archive_itself_is(host: Host) -> None:
    host.security.publish(days_old=9)
    # apt goes back to no older one.
    host.forget()
    host.update()
    assert host.offers(days=10)["archive"] == []
    before = host.state()
    # A mirror that nobody has brought up to date.
    answer = host.offers()
    assert answer["archive"] == [f"the index of {host.security.url} bookworm-security is 9 days old"]
    assert answer["fetched"]
    # A host that has not asked for a while: what it would get counts, and its own lists stay.
    host.security.add_redis("5:7.0.15-1~deb12u11")
    host.security.publish()
    answer = host.offers()
    assert (answer["archive"], answer["offered"], answer["fetched"]) == ([], "5:7.0.15-1~deb12u11", True)
    assert host.state() == before


def test_a_bare_host_without_lists_is_told_what_it_would_get(host: Host) -> None:
    host.forget()
    before = host.state()
    answer = host.offers()
    assert (answer["target"], answer["archive"], answer["fetched"]) == (NEW, [], True)
    assert host.state() == before


def test_what_another_archive_has_is_not_the_distribution_s(host: Host) -> None:
    (host.folder / "etc/apt/keyrings/distribution.asc").write_text(host.signer.public + host.other.public)
    host.sources("by-hand", host.site)
    host.update()
    answer = host.offers()
    # Its pin keeps a Redis 8 away as soon as it is written.
    assert answer["offered"] == SITE[0]
    host.write(answer)
    answer = host.offers()
    assert answer["offered"] == SITE[1]
    assert answer["lacks"][SITE[1]] == [
        f"it is not the distribution's, which has {NEW} and publishes fixes for no other"
    ]


def test_an_upgrade_of_the_distribution_does_not_take_redis_8(host: Host) -> None:
    host.install(*NAMES, "other")
    host.write(host.offers())
    assert host.offers()["differ"] == []
    # Debian 13 in place of 12.
    host.main.paragraphs.clear()
    host.security.paragraphs = [text for text in host.security.paragraphs if "redis" not in text]
    host.main.add_redis("5:8.0.2-3+deb13u1")
    host.main.add("other", "2")
    host.main.publish()
    host.security.publish()
    host.update()
    assert host.upgrade() == {"other": "2"}
    answer = host.offers()
    assert (answer["installed"], answer["target"], answer["theirs"]) == (NEW, NEW, "5:8.0.2-3+deb13u1")
    assert answer["lacks"][NEW] == ["the distribution has no Redis 7, and publishes no fixes for one"]
    # Without the pin it would.
    (host.folder / "etc/apt/preferences.d/managed-redis.pref").unlink()
    assert host.upgrade()["redis-server"] == "5:8.0.2-3+deb13u1"


# --- A repository of somebody else ---


def test_a_repository_is_tried_whole_without_a_change_of_the_host(host: Host) -> None:
    before = host.state()
    answer = host.offers(host.repository(version=HELD, fingerprint=host.other.fingerprint))
    assert problems(answer) == []
    assert (answer["target"], answer["offered"], answer["newer"]) == (HELD, SITE[1], SITE[2])
    assert answer["lacks"] == {HELD: []}
    assert len(answer["files"]) == 3
    assert sorted(answer["differ"]) == sorted(answer["files"])
    assert host.state() == before


def test_a_repository_may_be_a_single_folder(host: Host) -> None:
    host.site.suite = "./"
    host.site.publish()
    answer = host.offers(host.repository(suite="./", components=[], version=HELD))
    assert problems(answer) == []
    host.write(answer)
    host.update()
    answer = host.offers(host.repository(suite="./", components=[], version=HELD))
    assert (answer["target"], answer["differ"], answer["fetched"]) == (HELD, [], False)


@pytest.mark.parametrize(
    ("version", "target", "newer"),
    [("", SITE[1], ""), ("7", SITE[1], ""), ("7.2", SITE[2], ""), (HELD, HELD, SITE[2])],
)
def test_the_beginning_of_a_version_chooses_the_newest_of_it(host: Host, version: str, target: str, newer: str) -> None:
    answer = host.offers(host.repository(version=version))
    assert problems(answer) == []
    assert (answer["target"], answer["newer"]) == (target, newer)


def test_what_is_held_moves_with_the_role_alone(host: Host) -> None:
    # As the site's repository has it first, and the security archive of the distribution something newer.
    host.site.paragraphs.clear()
    first = "5:7.0.15-1~deb12u9+site1"
    host.site.add_redis(first)
    host.site.add("other", "9")
    host.site.publish()
    host.install("other")
    host.write(host.offers(host.repository(version="7.0")))
    host.update()
    host.install(*NAMES)
    assert host.upgrade() == {}
    # The second run has nothing to do, and fetches nothing.
    answer = host.offers(host.repository(version="7.0"))
    assert (answer["installed"], answer["target"], answer["differ"], answer["fetched"]) == (first, first, [], False)
    # Newer ones of the line, of the next, and of Redis 8; another package of the repository; the distribution's own.
    host.site.add_redis(*SITE, "5:7.0.15-1~deb12u11+site1")
    host.security.add_redis("5:7.0.15-1~deb12u12")
    host.site.publish()
    host.security.publish()
    host.update()
    assert host.upgrade() == {}
    answer = host.offers(host.repository(version="7.0"))
    assert (answer["target"], answer["newer"], answer["differ"]) == (first, "5:7.0.15-1~deb12u11+site1", [])
    # The repository no longer has what is held.
    host.site.paragraphs = [text for text in host.site.paragraphs if first not in text]
    host.site.publish()
    host.update()
    assert host.offers(host.repository(version="7.0"))["target"] == first
    assert host.offers(host.repository(version=first))["target"] == first
    # The role moves it, of its line.
    answer = host.offers(host.repository(version="7.0"), upgrade=True)
    assert problems(answer) == []
    assert answer["target"] == "5:7.0.15-1~deb12u11+site1"
    host.write(answer)
    assert host.upgrade()["redis-server"] == "5:7.0.15-1~deb12u11+site1"


def test_the_plugin_installs_the_version_that_is_held_and_only_once(host: Host, tmp_path: Path) -> None:
    host.install(*NAMES)
    host.write(host.offers(host.repository(version=HELD)))
    names = [f"{name}={HELD}" for name in NAMES]

    def play(check: bool, names: list[str] = names) -> dict[str, Any]:
        return {
            "environment": {"APT_CONFIG": str(host.config)},
            "tasks": [
                {
                    "name": "Install",
                    "quantdesk.redis.packages": {"name": names},
                    "register": "installed",
                    "check_mode": check,
                },
                {"name": "Tell", "ansible.builtin.debug": {"msg": "changed: {{ installed.changed }}"}},
            ],
        }

    lost = [f"{name}=6:7.2.99-1" for name in NAMES]
    plays = {"check": play(True), "lost": play(False, lost), "first": play(False), "second": play(False)}
    done = ansible_plays(tmp_path, plays)
    assert done["check"][0], done["check"][1]
    assert "changed: True" in done["check"][1]
    assert not done["lost"][0]
    output = " ".join(done["lost"][1].split())
    assert f"{', '.join(lost)}: found no such package in that version, and all sources of apt answered" in output
    assert done["first"][0], done["first"][1]
    assert "changed: True" in done["first"][1]
    assert "changed: False" in done["second"][1]
    answer = host.offers(host.repository(version=HELD))
    assert (answer["installed"], answer["differ"], answer["fetched"], problems(answer)) == (HELD, [], False, [])
    assert host.upgrade() == {}


def test_going_back_to_the_distribution_s_package_removes_the_repository_and_nothing_else(host: Host) -> None:
    host.write(host.offers(host.repository(version=HELD)))
    host.update()
    host.install(*NAMES)
    before = host.state()
    answer = host.offers()
    assert host.state() == before
    # It is as if the repository were gone: nobody mends what is installed.
    assert answer["lacks"][HELD] == [f"it is not the distribution's, which has {NEW} and publishes fixes for no other"]
    assert [Path(path).name for path in answer["left"]] == ["managed-redis.sources", "managed-redis.asc"]
    host.write(answer)
    host.update()
    answer = host.offers()
    assert (answer["installed"], answer["target"], answer["left"], answer["differ"]) == (HELD, HELD, [], [])
    assert host.upgrade() == {}
    # For a build from source the pins go, too.
    assert [Path(path).name for path in host.offers(kind="source")["left"]] == ["managed-redis.pref"]


def role(host: Host, folder: Path, check: bool = False, **inputs: Any) -> dict[str, Any]:
    """Return a play in which the role's own tasks look at a host, set apt up, and install."""
    package = folder / "package.yml"
    # It would keep services from starting on this very machine.
    package.write_text(re.sub("(?m)^ *policy_rc_d: .*\n", "", (ROLE / "tasks/package.yml").read_text()))
    look = {"name": "quantdesk.redis.redis", "tasks_from": "look", "public": True}
    return {
        "environment": {"APT_CONFIG": str(host.config)},
        "vars": {"ansible_become": False, "private_address": "10.0.0.1", "certificates_path": "/etc/ssl/x", **inputs},
        "tasks": [
            {"ansible.builtin.include_role": {**look, "apply": {"check_mode": check}}},
            {"ansible.builtin.include_tasks": {"file": str(package), "apply": {"check_mode": check}}},
        ],
    }


def test_the_role_installs_from_a_repository_once_and_goes_back(host: Host, tmp_path: Path) -> None:
    host.forget()
    chosen: dict[str, Any] = {"redis_install": "repository", "redis_repository": host.repository(version=HELD)}
    before = host.state()
    plays = ansible_plays(tmp_path, {"check": role(host, tmp_path, check=True, **chosen)})
    assert plays["check"][0], plays["check"][1]
    assert plays["check"][1].count("changed: [localhost]") == 2
    assert host.state() == before
    plays = ansible_plays(
        tmp_path,
        {
            "first": role(host, tmp_path, **chosen),
            "second": role(host, tmp_path, **chosen),
            "back": role(host, tmp_path, redis_install="package"),
            "again": role(host, tmp_path, redis_install="package"),
        },
    )
    assert [name for name, (well, _) in plays.items() if not well] == [], plays
    changes = {name: text.count("changed: [localhost]") for name, (_, text) in plays.items()}
    # Back again, the pins are others, and each of two files goes.
    assert changes == {"first": 2, "second": 0, "back": 3, "again": 0}, plays
    answer = host.offers()
    assert (answer["installed"], answer["left"]) == (HELD, [])


def closed(host: Host) -> dict[str, Any]:
    """Return a repository that does not answer."""
    return host.repository(url=f"http://127.0.0.1:{free_port()}/site")


def refuse_signature(host: Host) -> dict[str, Any]:
    """Return a repository with the key of somebody else."""
    return host.repository(key=host.signer.public)


def unsigned(host: Host) -> dict[str, Any]:
    """Return a repository that nobody has signed."""
    host.site.signer = None
    host.site.publish()
    return host.repository()


def expired(host: Host) -> dict[str, Any]:
    """Return a repository that ended to be valid."""
    host.site.publish(valid_until=formatdate(time.time() - 86400, usegmt=True))
    return host.repository()


def nameless(host: Host) -> dict[str, Any]:
    """Return a repository that apt cannot tell from others."""
    host.site.fields = {"Suite": "site"}
    host.site.publish()
    return host.repository()


def alike(host: Host) -> dict[str, Any]:
    """Return a repository that says of itself that it is the distribution."""
    host.site.fields = host.main.fields
    host.site.publish()
    return host.repository()


def only_eight(host: Host) -> dict[str, Any]:
    """Return a repository without a Redis 7."""
    host.site.paragraphs.clear()
    host.site.add_redis(SITE[0])
    host.site.publish()
    return host.repository()


def needy(host: Host) -> dict[str, Any]:
    """Return a repository whose package needs what it has itself, and the distribution has not."""
    host.site.add_redis("6:7.2.13-1site1", depends="other (>= 9)")
    host.site.publish()
    return host.repository(version="7.2")


def downgrade(host: Host) -> dict[str, Any]:
    """Return a repository with an older version than what is installed."""
    host.site.add_redis("4:7.4.9-1site1")
    host.site.publish()
    host.install(*NAMES)
    return host.repository(version="4:7.4.9-1site1")


def twice(host: Host) -> dict[str, Any]:
    """Return a repository that somebody has configured by hand, with a key of another name."""
    host.sources("by-hand", host.site)
    return host.repository()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (closed, ["redis_repository: found http://127.0.0.1:", "refused", "expected a repository that answers"]),
        (refuse_signature, ["redis_repository: found", "NO_PUBKEY", "redis_repository.key has signed"]),
        (unsigned, ["redis_repository: found", "is not signed", "redis_repository.key has signed"]),
        (expired, ["redis_repository: found", "is expired", "expected a repository that answers"]),
        (nameless, ["no Origin and no Label; expected one of them"]),
        (alike, ["has Origin, Label and Suite of http://127.0.0.1:", "expected others"]),
        (
            lambda host: host.repository(version="6:7.2.99-1"),
            ["redis_repository.version: found 6:7.2.99-1, where the repository has 6:8.0.2-1site1, 6:7.4.9-1site1"],
        ),
        (lambda host: host.repository(version="7.3"), ["redis_repository.version: found 7.3, where"]),
        (only_eight, ["redis_repository.version: found no version, where the repository has 6:8.0.2-1site1; expected"]),
        (needy, ["redis_repository.version: found 6:7.2.13-1site1, which apt cannot install", "Depends: other (>= 9)"]),
        (
            downgrade,
            [f"redis_repository.version: found 4:7.4.9-1site1, where {NEW} is installed; expected that one or"],
        ),
        (twice, ["redis_repository.url: found http", "by-hand.list has already", "take it out of that file"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_repository_that_will_not_do_is_refused_and_nothing_changes(
    host: Host, prepare: Any, words: list[str]
) -> None:
    repository = prepare(host)
    before = host.state()
    answer = host.offers(repository)
    assert len(answer["problems"]) == 1, problems(answer)
    told = problems(answer)[0]
    assert [word for word in words if word not in told] == [], told
    assert host.state() == before


def test_a_version_of_the_repository_that_is_known_to_be_bad_is_named_so(host: Host) -> None:
    host.site.add_redis("6:7.4.3-1site1")
    host.site.publish()
    answer = host.offers(host.repository(version="6:7.4.3-1site1"))
    assert answer["lacks"] == {"6:7.4.3-1site1": ["it lacks the security fixes of 7.4.9"]}


def test_a_repository_with_the_version_of_the_running_package_goes_on_when_it_is_down(host: Host, web: Web) -> None:
    host.write(host.offers(host.repository(version=HELD)))
    host.update()
    host.install(*NAMES)
    (web.folder / host.site.name).rename(web.folder / f"{host.site.name}-gone")
    answer = host.offers(host.repository(version=HELD))
    assert (problems(answer), answer["target"], answer["fetched"]) == ([], HELD, False)


# --- The input itself ---

GOOD = {"url": "https://example.com/deb", "suite": "bookworm", "components": ["main"]}


def refused(repository: Any) -> list[str]:
    """Return what is wrong with an input."""
    return [f"{one['name']}: {one['problem']}" for one in repositories.problems(repository)]


def test_a_key_is_a_text_or_a_file_in_either_form_and_is_known_by_its_fingerprint(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    key = signers[1]
    (tmp_path / "text.asc").write_text(f"-- from the site --\n{key.public}")
    (tmp_path / "binary.gpg").write_bytes(key.binary())
    blanks = " ".join(key.fingerprint[at : at + 4] for at in range(0, 40, 4)).lower()
    texts = set()
    for one in (key.public, str(tmp_path / "text.asc"), str(tmp_path / "binary.gpg")):
        repository = {**GOOD, "key": one, "fingerprint": blanks}
        assert refused(repository) == []
        texts.add(repositories.wanted(repository, "")["key"])
    # And gpg reads what a host gets.
    (text,) = texts
    shown = ["gpg", "--homedir", str(tmp_path), "--with-colons", "--show-keys"]
    done = subprocess.run(shown, input=text, capture_output=True, text=True, check=True)
    assert f":{key.fingerprint}:" in done.stdout


def test_a_key_that_is_none_is_refused_and_a_private_one_not_shown(
    signers: tuple[Signer, Signer], tmp_path: Path
) -> None:
    key, other = signers
    (tmp_path / "cut").write_bytes(key.binary()[:200])
    (tmp_path / "text").write_text("a key\n")
    for bad, found in {
        "/nonexistent.asc": "/nonexistent.asc: No such file or directory",
        "": "nothing",
        str(tmp_path / "cut"): "a truncated key",
        str(tmp_path / "text"): "no key of OpenPGP",
        key.private(): "a private key block",
        key.public.replace("\n\n", "\n\n%%%", 1): "a block of PGP that is damaged",
    }.items():
        assert refused({**GOOD, "key": bad}) == [f"redis_repository.key: {found}"]
        assert repositories.wanted({**GOOD, "key": bad}, "") == {}
    wrong = {**GOOD, "key": key.public, "fingerprint": other.fingerprint}
    assert refused(wrong) == [f"redis_repository.key: the key {key.fingerprint}"]


def test_each_input_of_a_repository_is_checked_by_name(signers: tuple[Signer, Signer]) -> None:
    good = {**GOOD, "key": signers[1].public}
    assert refused(good) == []
    assert refused({**good, "suite": "./", "components": []}) == []
    for name, value in {
        "url": "ftp://example.com/deb",
        "suite": "book worm",
        "components": [],
        "fingerprint": "5FC7",
        "version": "8.0.2",
        "version ": "7.2",
    }.items():
        assert [line.split(": ")[0] for line in refused({**good, name: value})] == [f"redis_repository.{name}"]
    for version in ("6:8.0.2-1", "7.2 ", "latest", "7.2.*", 7.2):
        assert [line.split(": ")[0] for line in refused({**good, "version": version})] == ["redis_repository.version"]
    assert refused("https://example.com")[0].startswith("redis_repository: ")
    assert [line.split(": ")[0] for line in refused({})] == [
        f"redis_repository.{name}" for name in ("url", "suite", "components", "key")
    ]
    assert refused({**good, "url": "https://me:sesame@example.com/deb"}) == [
        "redis_repository.url: https://…@example.com/deb"
    ]
