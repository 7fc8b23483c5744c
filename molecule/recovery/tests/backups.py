"""What the scenario's tests share: databackup on a host, data of all types, and the digest of what is live."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from testinfra.backend.base import CommandResult
from testinfra.host import Host

from conftest import LAB

# Found in no repository, spool or log, if backups are what they say.
PLAINTEXT = "the-value-that-nobody-may-read"

# All types, packed and large, binary, with and without an end; some keys are the application's own.
FILL = """
local text = '%s'
for i = 1, 400 do
  redis.call('SET', 'qd:lab:text:' .. i, text .. string.rep('x', i))
  redis.call('SET', 'qd:lab:soon:' .. i, i, 'EX', 86400)
  redis.call('HSET', 'qd:lab:quote:' .. i %% 20, 'bid:' .. i, i / 7, 'ask', i / 3)
  redis.call('SADD', 'qd:lab:desk:' .. i %% 7, 'trader-' .. i)
  redis.call('SADD', 'qd:lab:numbers', i * 70000)
  redis.call('ZADD', 'qd:lab:board', i / 9, 'symbol-' .. i)
  redis.call('RPUSH', 'qd:lab:tape:' .. i %% 3, string.rep('t', i %% 90))
  redis.call('XADD', 'qd:lab:trades', i .. '-1', 'price', i, 'size', i * 10)
  redis.call('PFADD', 'qd:lab:seen', i)
  redis.call('SETBIT', 'qd:lab:bits', i * 3, 1)
end
redis.call('SET', 'qd:lab:binary', '\\0\\255\\r\\n\\1' .. string.char(200, 201))
redis.call('GEOADD', 'qd:lab:places', 13.4, 52.5, 'Berlin')
redis.call('XGROUP', 'CREATE', 'qd:lab:trades', 'settlement', '0')
redis.call('XREADGROUP', 'GROUP', 'settlement', 'one', 'COUNT', '3', 'STREAMS', 'qd:lab:trades', '>')
return redis.call('DBSIZE')
"""


CONF = "/etc/redis/redis.conf"
PLANTED = "/etc/planted-by-redis"
ASIDE = "before-restore-20260101T000000Z"
# As an earlier version wrote it, by user redis: the folder that is "put back" is one of redis' making.
JOURNAL = json.dumps(
    {"backup": "12345678", "aside": "x/y/z/w", "had": ["../../../etc/planted-by-redis"], "active": False}
)
PLANT = f"""
set -eu
cd /var/lib/redis
mkdir -p x/y/z/w x/etc etc
echo planted >x/etc/planted-by-redis
echo '{JOURNAL}' >.restore.json
sed -i '/^dbfilename/d' {CONF}
echo 'dbfilename ../../../etc/planted-by-redis' >>{CONF}
"""


def databackup(host: Host, *words: str, code: int = 0) -> dict[str, Any]:
    """Run databackup on a host and return its result."""
    done = host.run(f"databackup --json {' '.join(words)}")
    assert done.rc == code, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def account(environment: str, name: str) -> str:
    """Return the account of a host's repository."""
    return f"bak-{hashlib.sha256(f'{environment}/{name}'.encode()).hexdigest()[:12]}"


def script(host: str, text: str) -> subprocess.CompletedProcess[str]:
    """Run a script with secrets in it as root on a host: sudo writes command lines into the journal, and no input."""
    command = ["ssh", "-F", str(LAB / "ssh/config"), host, "sudo", "bash", "-s"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=300)


def python(host: Host, code: str) -> CommandResult:
    """Run Python on a host."""
    return host.run(f"python3 - <<'END'\n{code}\nEND")


def fill(host: Host) -> int:
    """Write data of all types into Redis, in place of what it has; return the number of keys."""
    host.check_output("redis-admin FLUSHALL")
    done = host.run(f"redis-admin --eval /dev/stdin <<'END'\n{FILL % PLAINTEXT}\nEND")
    assert done.rc == 0, done.stdout + done.stderr
    return int(done.stdout.strip().split()[-1])


def live(host: Host) -> dict[str, Any]:
    """Return keys and digest of what Redis has now, by a snapshot of its own that is read on the host."""
    code = """
import json, sys
sys.path.insert(0, "/usr/local/sbin/databackup")
from databackup import settings
from databackup.redis import rdb
from databackup.redis.replication import Snapshot
from databackup.redis.server import connect, credentials
options = settings.source("redis").options
with connect(options["server"], credentials(options["credentials_file"])) as client:
    summary = rdb.summarize(Snapshot(client).chunks())
print(json.dumps({"keys": summary.keys, "digest": summary.digest}))
"""
    found: dict[str, Any] = json.loads(python(host, code).stdout)
    return found


@contextmanager
def plant(host: Host) -> Iterator[None]:
    """Have a journal and a name that lead to /etc, as user redis can write both with no other right."""
    host.check_output(f"cp -a {CONF} /root/redis.conf && rm -f {PLANTED}")
    done = host.run(f"setpriv --reuid redis --regid redis --clear-groups bash <<'END'\n{PLANT}\nEND")
    assert done.rc == 0, done.stderr
    try:
        yield
    finally:
        host.check_output(f"cp -a /root/redis.conf {CONF} && cd /var/lib/redis && rm -rf x etc .restore.json {PLANTED}")
        host.run("systemctl reset-failed")
