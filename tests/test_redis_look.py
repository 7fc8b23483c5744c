"""What the preflight of redis asks a host: look.sh, with units and data of this role and of somebody else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ports import free_port

from conftest import PROJECT, start

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0
    or subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs root, and a mount namespace of its own",
)
FILES = PROJECT / "roles/redis/files"
OURS = (PROJECT / "roles/redis/templates/redis.service.j2").read_text()
PACKAGE = "[Unit]\nDescription=Advanced key-value store\n"


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The host's folder for unit files, and programs that answer for it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-cache", "apt-get", "dpkg-query", "systemd-detect-virt"):
        program = programs / name
        program.write_text("#!/bin/sh\necho '  Candidate: 1'\n" if name == "apt-cache" else "#!/bin/sh\n")
        program.chmod(0o755)
    folder = tmp_path / "units"
    folder.mkdir()
    return folder


def look(units: Path, unit: str, states: str, data: Path, conf: Path | str = "/nowhere/redis.conf") -> dict[str, str]:
    """Return what look.sh prints of a host whose systemd says `states` of the unit and of the package's own."""
    systemctl = units.parent / "bin/systemctl"
    systemctl.write_text(f"#!/bin/sh\nprintf '{states}'\n")
    systemctl.chmod(0o755)
    script = f'mount --bind {units} /etc/systemd/system && exec sh -c "$0" look.sh "$@"'
    text = "".join((FILES / name).read_text() for name in ("servers.sh", "look.sh"))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, text, unit, conf, data, "redis"],
        env={**os.environ, "PATH": f"{units.parent}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def states(active: str, package_active: str = "inactive", package_enabled: str = "") -> str:
    """Return what `systemctl show` prints of two units."""
    package = f"ActiveState={package_active}\\nUnitFileState={package_enabled}\\n"
    return f"ActiveState={active}\\nUnitFileState=enabled\\n\\n{package}"


def test_a_server_that_no_unit_of_the_role_started_is_foreign(units: Path, tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, "--port", str(port), port=port)
    try:
        (units / "redis-server.service").write_text(OURS)
        seen = look(units, "redis-server.service", states("active"), tmp_path / "none")
        assert seen["active"] == "active"
        assert f"{process.pid}:-" in seen["foreign"].split()
    finally:
        process.kill()
        process.wait(10)
    seen = look(units, "redis-server.service", states("active"), tmp_path / "none")
    assert f"{process.pid}:-" not in seen["foreign"].split()


@pytest.mark.parametrize("name", ["dump.rdb", "appendonlydir"])
def test_data_are_foreign_until_the_role_has_written_the_instance_s_unit(
    units: Path, tmp_path: Path, name: str
) -> None:
    data = tmp_path / "data"
    (data / "appendonlydir").mkdir(parents=True)
    (data / "dump.rdb").touch()
    unit = "redis-server@cache.service"

    def foreign() -> bool:
        return f"{data}/{name}" in look(units, unit, states("inactive"), data)["foreign"].split()

    assert foreign()
    # That of another instance, and the package's own.
    (units / "redis-server@state.service").write_text(OURS)
    (units / unit).write_text(PACKAGE)
    assert foreign()
    (units / unit).write_text(OURS)
    assert not foreign()


@pytest.mark.parametrize(
    ("unit", "own", "enabled", "expected"),
    [
        ("redis-server@cache.service", False, "enabled", "enabled inactive"),
        ("redis-server@cache.service", False, "masked", "masked inactive"),
        # It is not installed.
        ("redis-server@cache.service", False, "", ""),
        # An instance without a name, which was declared or was once.
        ("redis-server@cache.service", True, "enabled", ""),
        ("redis-server.service", False, "enabled", ""),
    ],
)
def test_the_package_s_own_unit_is_told_of_to_an_instance_with_a_name(
    units: Path, tmp_path: Path, unit: str, own: bool, enabled: str, expected: str
) -> None:
    if own:
        (units / "redis-server.service").write_text(OURS)
    seen = look(units, unit, states("active", package_enabled=enabled), tmp_path / "none")
    assert seen["package_unit"] == expected


@pytest.mark.parametrize(
    ("lines", "files", "stopped"),
    [
        ("dir {old}\ndbfilename legacy.rdb\n", ["old/legacy.rdb"], "old/legacy.rdb"),
        ('dir "{old}"\n', ["old/dump.rdb"], "old/dump.rdb"),
        ("dir {old}\nappendonly yes\n", ["old/appendonlydir"], "old/appendonlydir"),
        ("dir {data}\ndbfilename legacy.rdb\n", ["data/legacy.rdb"], "data/legacy.rdb"),
        # What a server with our configuration would load, or judge by itself; and nothing at all.
        ("dir {data}\n", ["data/dump.rdb"], ""),
        ("dir {old}\n", [], ""),
    ],
)
def test_data_of_an_old_configuration_whose_server_does_not_run_are_found(
    units: Path, tmp_path: Path, lines: str, files: list[str], stopped: str
) -> None:
    for folder in ("old", "data"):
        (tmp_path / folder).mkdir()
    for file in files:
        (tmp_path / file).touch()
    conf = tmp_path / "redis.conf"
    conf.write_text(lines.format(old=tmp_path / "old", data=tmp_path / "data"))
    seen = look(units, "redis-server.service", states("inactive"), tmp_path / "data", conf)
    assert seen["stopped"] == (stopped and str(tmp_path / stopped))
    assert seen["changed"] == str(conf)
    (units / "redis-server.service").write_text(OURS)
    seen = look(units, "redis-server.service", states("inactive"), tmp_path / "data", conf)
    assert (seen["stopped"], seen["changed"]) == ("", "")


# An instance with a name, as it was before each had a user of its own, and as it is.
SHARED = OURS.replace("{{ __redis_conf }}", "/etc/redis/redis-state.conf")
OWN = OURS.replace("{{ __redis_conf }}", "/etc/redis-state/redis.conf")


@pytest.mark.parametrize(
    ("unit", "shared"), [(SHARED, "yes"), (OWN, "no"), (PACKAGE + "ExecStart=x /etc/redis/redis-state.conf y\n", "no")]
)
def test_an_instance_that_shares_what_it_has_is_known_by_its_unit(
    units: Path, tmp_path: Path, unit: str, shared: str
) -> None:
    (units / "redis-server@state.service").write_text(unit)
    seen = look(units, "redis-server@state.service", states("inactive"), tmp_path / "none")
    assert (seen["shared"], seen["leftover"]) == (shared, "no")


def test_the_home_of_a_user_and_the_owner_of_a_folder_are_told(units: Path, tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o700)
    unit = "redis-server@state.service"
    seen = look(units, unit, states("inactive"), tmp_path / "none", folder / "redis.conf")
    # The user that `look` asks for is the package's, or none.
    home = subprocess.run(["getent", "passwd", "redis"], capture_output=True, text=True, check=False).stdout
    assert seen["account"] == (home.split(":")[5] if home else "")
    assert seen["folder"] == "root 700"
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert look(units, unit, states("inactive"), tmp_path / "none", folder / "redis.conf")["folder"] == "a link"


def test_a_name_in_the_data_s_folder_makes_no_line_of_its_own(units: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("x\\nown=yes\\nfree=1", "y\nown=yes\nfree=1"):
        (data / name).touch()
    seen = look(units, "redis-server.service", states("inactive"), data)
    assert seen["own"] == "no"
    assert int(seen["free"]) > 1


def test_the_memory_is_a_number_of_bytes_also_of_a_large_host(units: Path, tmp_path: Path) -> None:
    meminfo = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    seen = look(units, "redis-server.service", states("active"), tmp_path / "none")
    assert seen["memory"] == str(int(meminfo.split()[1]) * 1024)
