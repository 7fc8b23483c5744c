"""Keep what Python has compiled of a zip file, by its source; imported by each Python of a lab's host, and in tests.

A module of Ansible comes as a zip file with all that it imports. Python compiles that again for each task, which is a
third of a task's work on a host.
"""

import marshal
import os
import zipimport
from types import CodeType

_compile = zipimport._compile_source  # type: ignore[attr-defined]  # Python has no name for it


def _compile_once(path: str, source: bytes) -> CodeType:
    from hashlib import sha256

    kept = f"{os.environ.get('TEST_COMPILED', '/var/cache/lab-compiled')}/{sha256(source).hexdigest()}"
    try:
        with open(kept, "rb") as file:
            return marshal.load(file)  # type: ignore[no-any-return]
    except (OSError, EOFError, ValueError):
        pass
    code = _compile(path, source)
    try:
        with open(f"{kept}.{os.getpid()}", "xb") as partial:
            marshal.dump(code, partial)
        os.rename(partial.name, kept)
    except OSError:
        pass
    return code  # type: ignore[no-any-return]


zipimport._compile_source = _compile_once  # type: ignore[attr-defined]
