"""Ansible module: build a Python application's wheel and gather all that it depends on. See DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wheelhouse
short_description: Build one archive that a host can install a Python application from, without a package index
description:
  - Runs on the controller. Builds the wheel of O(source) and downloads the wheels of its lock file for the Python of
    the target, checked against the hashes of the lock.
  - The archive is named after everything that it is made from, and is built once.
options:
  source: {description: Folder with pyproject.toml., type: path, required: true}
  lock: {description: "Lock file with hashes, as pip reads it.", type: path, required: true}
  dest: {description: Folder for archives., type: path, required: true}
  python: {description: "Whole version of the target's Python, such as 3.11.2.", type: str, required: true}
  machine: {description: "Architecture of the target, such as x86_64.", type: str, required: true}
  wheels:
    description:
      - A tar with wheels, such as a backup of those of an earlier release, to take in place of a package index. Only
        the wheels in it are looked at, and of these only such as have a hash that the lock file names. The
        application's own wheel is built from O(source) in any case.
    type: path
  platforms:
    description: Wheel platforms that the target takes, such as manylinux_2_28_x86_64.
    type: list
    elements: str
    required: true
author: The quantdesk-redis maintainers (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Build what a host with Debian 12 installs
  quantdesk.redis.wheelhouse:
    source: app
    lock: app/requirements.txt
    dest: .build
    python: 3.11.2
    machine: x86_64
    platforms: [manylinux_2_36_x86_64]
"""

RETURN = r"""
path: {description: The archive (tar) on the controller., type: str, returned: always}
release: {description: "Version and content of the application, in one name.", type: str, returned: always}
"""

import fcntl  # noqa: E402 - Ansible wants the documentation first
import hashlib  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import tarfile  # noqa: E402
import tempfile  # noqa: E402
import tomllib  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible_collections.quantdesk.redis.plugins.module_utils.programs import ENGLISH  # noqa: E402
from packaging.requirements import Requirement  # noqa: E402

# A wheel's name, and nothing that leads elsewhere.
WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+!-]*\.whl")
# What no wheel is made from.
IGNORED = {"__pycache__", "tests", "dist", "build"}
# What has pip take the wheels that are offered, and nothing else, whatever this user's configuration names.
NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


def source_files(source: Path) -> Iterator[Path]:
    """Yield the files that the wheel can depend on, in a fixed order."""
    for path in sorted(source.rglob("*")):
        parts = path.relative_to(source).parts
        if path.is_file() and not any(p in IGNORED or p.startswith(".") or p.endswith(".egg-info") for p in parts):
            yield path


def requirements_for(lock: str, python: str, machine: str) -> str:
    """Return the requirements of a lock file that hold on the target, without their conditions.

    pip evaluates conditions for the Python that runs it, even when it downloads for another one: on a controller
    with 3.11.7 it would leave out what a 3.11.2 needs.
    """
    target = {
        "implementation_name": "cpython",
        "implementation_version": python,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "sys_platform": "linux",
    }
    kept = []
    for line in lock.replace("\\\n", " ").splitlines():
        text = line.split(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        words = text.split(" --hash=")
        requirement = Requirement(words[0].strip())
        if requirement.marker is None or requirement.marker.evaluate(target):
            requirement.marker = None
            kept.append(" --hash=".join([str(requirement), *(word.strip() for word in words[1:])]))
    return "\n".join(kept) + "\n"


def fingerprint(source: Path, lock: Path, target: list[str]) -> str:
    """Return 12 hexadecimal digits that change when the sources, the lock or the target do."""
    digest = hashlib.sha256("\0".join(target).encode())
    for path in [*source_files(source), lock]:
        content = path.read_bytes()
        digest.update(
            f"{path.relative_to(source) if path.is_relative_to(source) else path.name}\0{len(content)}\0".encode()
        )
        digest.update(content)
    return digest.hexdigest()[:12]


def main() -> None:
    """Run as Ansible runs a module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "lock": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "wheels": {"type": "path"},
            "python": {"type": "str", "required": True},
            "machine": {"type": "str", "required": True},
            "platforms": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    source, lock = Path(module.params["source"]).resolve(), Path(module.params["lock"]).resolve()
    python, machine = module.params["python"], module.params["machine"]
    target = [python, machine, *module.params["platforms"]]
    try:
        version = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        release = f"{version}-{fingerprint(source, lock, target)}"
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        module.fail_json(msg=f"app_source {source} holds no project that can be built: {type(error).__name__}: {error}")
    archive = Path(module.params["dest"]) / f"{release}.tar"
    if archive.exists() or module.check_mode:
        module.exit_json(changed=not archive.exists(), path=str(archive), release=release)

    archive.parent.mkdir(parents=True, exist_ok=True)
    # Hosts with the same Python ask for the same archive at once: the first one builds it.
    folder = os.open(archive.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    missing = not archive.exists()
    if missing:
        build(module, source, lock, archive)
    module.exit_json(changed=missing, path=str(archive), release=release)


def unpack(archive: Path, folder: Path) -> None:
    """Write the wheels of a tar into a folder. Nobody has checked what is in it: links and paths are not followed."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.rsplit("/", 1)[-1]
            if not member.isfile() or not WHEEL.fullmatch(name) or (folder / name).exists():
                continue
            content = tar.extractfile(member)
            if content is not None:
                with content, (folder / name).open("xb") as file:
                    shutil.copyfileobj(content, file)


def build(module: AnsibleModule, source: Path, lock: Path, archive: Path) -> None:
    """Build the wheel, gather what it depends on, and put both into an archive; fails the module when pip does."""
    python, machine = module.params["python"], module.params["machine"]
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        work = Path(folder)
        wheels = work / "wheels"
        # The builder writes beside the sources; a copy keeps the checkout clean.
        for path in source_files(source):
            copy = work / "source" / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--quiet"]
        module.run_command(
            [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(work / "source")],
            check_rc=True,
            environ_update=ENGLISH,
        )
        requirements = wheels / "requirements.txt"
        requirements.write_text(requirements_for(lock.read_text(encoding="utf-8"), python, machine))
        index: list[str] = []
        if module.params["wheels"]:
            try:
                unpack(Path(module.params["wheels"]), work / "offered")
            except (OSError, tarfile.TarError) as error:
                module.fail_json(msg=f"app_wheels {module.params['wheels']}: expected a tar with wheels: {error}")
            index = ["--no-index", "--find-links", str(work / "offered")]
        platforms = [word for platform in module.params["platforms"] for word in ("--platform", platform)]
        # pip takes an empty file for a mistake.
        if requirements.read_text(encoding="utf-8").strip():
            code, out, err = module.run_command(
                [
                    *(*pip, "download", *index, "--require-hashes", "--no-deps", "--only-binary=:all:"),
                    *("--dest", str(wheels), "--python-version", python, "--implementation", "cp", *platforms),
                    *("-r", str(requirements)),
                ],
                environ_update={**ENGLISH, **(NO_INDEX if index else {})},
            )
            if code != 0 and index:
                module.fail_json(
                    msg=f"app_wheels {module.params['wheels']}: found wheels that are not those of the lock file "
                    f"{lock}, or not all of them; expected each wheel that it names, with a hash that it names. They "
                    f"are of another release, or were changed. pip reports: {(err or out).strip()[-600:]}"
                )
            if code != 0:
                module.fail_json(msg=(err or out).strip()[-2000:] or f"pip download ended with {code}", rc=code)
        unfinished = work / archive.name
        with tarfile.open(unfinished, "w") as tar:
            tar.add(wheels, arcname=".")
        unfinished.replace(archive)


if __name__ == "__main__":
    main()
