"""Take each protection of the lab away, one at a time, and expect verify.yml to fail for exactly that control.

    python tests/audit_mutate.py [CONTROL…]

Needs a lab that is up (`make up`), and takes about ten seconds a mutation. Each is put back, also when something fails;
at the end the hosts must pass again. Prints a line for each, then killed/total, and the controls that no mutation of a
live host can reach, with the reason. Ends with 1 when one survived or another control failed besides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
LAB = PROJECT / ".lab" / os.environ.get("LAB", "")
# The host's own, for the shell there.
ADDRESS = "$(hostname -I | cut -d' ' -f1)"
CONF, ACL = "/etc/redis/redis.conf", "/etc/redis/users.acl"
UNIT = "/etc/systemd/system/redis-server.service"
TLS = "/etc/ssl/quantdesk"
APP_ENV = "/etc/quantdesk/quantdesk.env"
APP_SOCKETS = "/opt/quantdesk/current/venv/lib/python3*/site-packages/quantdesk/sockets.py"
# Its unit is done when it serves.
APP_RESTART = "systemctl restart 'quantdesk@*.service'"
POSTGRESQL = "/etc/postgresql/15/main"
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass
class Mutation:
    """A protection that is taken away by shell commands on a host, and put back by others."""

    control: int
    name: str
    take: str
    back: str
    host: str = "redis1"
    # Controls that hang on the same protection, and may fail with it.
    along: set[int] = field(default_factory=set)
    # Files on the controller that are there for the time of the mutation.
    files: dict[str, str] = field(default_factory=dict)
    # Mutual TLS is on for the time of the mutation, with a converge before and after.
    mutual: bool = False


def live(control: int, name: str, take: str, back: str, along: Iterable[int] = ()) -> Mutation:
    """Return a mutation by two CONFIG SETs."""
    return Mutation(control, name, f"redis-admin CONFIG SET {take}", f"redis-admin CONFIG SET {back}", along=set(along))


def user(control: int, name: str, rule: str, along: Iterable[int] = ()) -> Mutation:
    """Return a mutation that gives a user a right. The users are then not the declared ones either, which is 16."""
    declared = f"set -f; set -- $(grep '^user {name} ' {ACL}); shift 2"
    back = f'{declared}; redis-admin ACL SETUSER {name} reset "$@"'
    return Mutation(
        control, f"{name} gets {rule}", f"redis-admin ACL SETUSER {name} '{rule}'", back, along={16, *along}
    )


def file(control: int, name: str, path: str, take: str, along: Iterable[int] = ()) -> Mutation:
    """Return a mutation of a file, which is copied away before and put back after, with owner, mode and times."""
    copy = f"/root/audit-{control}"
    return Mutation(control, name, f"cp -a {path} {copy}; {take}", f"rm -rf {path}; mv {copy} {path}", along=set(along))


def unit(
    control: int, name: str, setting: str, *, and_take: str = "true", and_back: str = "true", along: Iterable[int] = ()
) -> Mutation:
    """Return a mutation of the unit by a drop-in, with a restart before and after, and what else goes with it."""
    folder = f"{UNIT}.d"
    restart = "systemctl daemon-reload; systemctl restart redis-server"
    take = f"printf '[Service]\\n{setting}\\n' > {folder}/zz-audit.conf; {restart}; {and_take}"
    return Mutation(control, name, take, f"rm {folder}/zz-audit.conf; {and_back}; {restart}", along=set(along))


def postgresql(control: int, name: str, take: str, back: str) -> Mutation:
    """Return a mutation by two statements of the superuser in its own database."""
    ask = 'cd /; runuser -u postgres -- psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --command "{}"'
    return Mutation(control, name, ask.format(take), ask.format(back), host="db1")


LOAD = f"redis-admin CONFIG SET tls-ca-cert-file {TLS}/ca.crt tls-cert-file {TLS}/host.crt tls-key-file {TLS}/host.key"
NEW_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /root/audit-key -subj /CN=audit "
    f"-days {{days}} -addext subjectAltName={{names}} -out {TLS}/host.crt 2>/dev/null; "
    f"cat /root/audit-key > {TLS}/host.key; cat {TLS}/host.crt >> {TLS}/ca.crt; "
    f"{LOAD}"
)


def certificate(control: int, name: str, names: str, days: int) -> Mutation:
    """Return a mutation that serves a certificate of its own making, trusted on the host for that time."""
    return Mutation(
        control,
        name,
        f"cp -a {TLS} /root/audit-tls; {NEW_CERTIFICATE.format(names=names, days=days)}",
        # The authority last: until then the server is asked with what it shows now.
        f"cp -a /root/audit-tls/host.* {TLS}/; {LOAD}; cp -a /root/audit-tls/ca.crt {TLS}/; {LOAD}; "
        "rm -r /root/audit-tls",
        along={68},
    )


MUTATIONS = [
    Mutation(
        1,
        "an older package",
        "cp -a /var/lib/dpkg/status /root/audit-1; "
        "sed -i '/^Package: redis-server$/,/^$/s/^Version: .*/Version: 5:7.0.15-1~deb12u7/' /var/lib/dpkg/status",
        "mv /root/audit-1 /var/lib/dpkg/status",
    ),
    Mutation(
        2,
        "no security archive among apt's sources",
        "mkdir /root/audit-2; cp -a /etc/apt/sources.list /etc/apt/sources.list.d /root/audit-2/ 2>/dev/null || true; "
        "for f in /etc/apt/sources.list /etc/apt/sources.list.d/*; do [ ! -f $f ] || sed -i '/security/d' $f; done; "
        # Of a deb822 source, the line with the suite must go: what is left of the paragraph is no source any more.
        "rm -f /var/cache/apt/*.bin",
        "cp -a /root/audit-2/. /etc/apt/; rm -r /root/audit-2 /var/cache/apt/*.bin",
    ),
    Mutation(
        2,
        "apt may take Redis 8",
        "mv /etc/apt/preferences.d/managed-redis.pref /root/audit-2",
        "mv /root/audit-2 /etc/apt/preferences.d/managed-redis.pref",
    ),
    live(3, "a plaintext port", "port 6399", "port 0", along={4}),
    live(4, "one more address", f'bind "127.0.0.1 {ADDRESS} 127.0.0.2"', f'bind "127.0.0.1 {ADDRESS}"'),
    Mutation(
        4,
        "a server that is no declared instance",
        "systemd-run --quiet --unit audit-4 redis-server --port 6399 --bind 127.0.0.1 --save ''",
        "systemctl stop audit-4",
    ),
    live(5, "plaintext on 6379", "port 6379", "port 0", along={3, 4}),
    live(
        6,
        "TLS 1.1",
        f"tls-protocols 'TLSv1.1 TLSv1.2 TLSv1.3' tls-ciphers '{CIPHERS}:ECDHE+AES:@SECLEVEL=0'",
        f"tls-protocols 'TLSv1.2 TLSv1.3' tls-ciphers {CIPHERS}",
        along={7},
    ),
    live(7, "CBC ciphers", f"tls-ciphers {CIPHERS}:ECDHE+AES", f"tls-ciphers {CIPHERS}"),
    Mutation(
        8, "client certificates are optional", "redis-admin CONFIG SET tls-auth-clients optional", "", mutual=True
    ),
    Mutation(
        9, "nobody asks for certificates", "redis-admin CONFIG SET tls-auth-clients no", "", along={8}, mutual=True
    ),
    certificate(10, "a certificate without the address", "DNS:redis1,DNS:localhost,IP:127.0.0.1", 90),
    certificate(11, "a certificate that ends soon", f"DNS:redis1,DNS:localhost,IP:127.0.0.1,IP:{ADDRESS}", 20),
    Mutation(12, "a key for all", f"chmod 444 {TLS}/host.key", f"chmod 440 {TLS}/host.key"),
    live(13, "replication in plaintext", "tls-replication no", "tls-replication yes"),
    user(16, "default", "+config", along={57}),
    Mutation(
        17,
        "no password for default",
        "redis-admin ACL SETUSER default nopass",
        user(17, "default", "").back,
        along={16},
    ),
    user(18, "app", "+config"),
    user(19, "app", "+flushall"),
    user(20, "app", "+script"),
    user(21, "app", "~*"),
    user(22, "app", "&*"),
    user(23, "exporter", "+config"),
    user(24, "sentinel", "+@all"),
    file(
        25,
        "a password in clear in the ACL file",
        ACL,
        f"sed -i '/^user backup /s/#[0-9a-f]*/>cleartext-of-backup/' {ACL}",
    ),
    unit(
        26,
        "DEBUG is on",
        f"ExecStart=\\nExecStart=/usr/bin/redis-server {CONF} --supervised systemd --enable-debug-command yes",
    ),
    live(27, "protected mode is off", "protected-mode no", "protected-mode yes"),
    Mutation(
        28,
        "a rule more in the packet filter",
        "nft insert rule inet quantdesk input tcp dport 6381 accept",
        "systemctl reload nftables-quantdesk",
    ),
    unit(
        29,
        "anybody may knock",
        "IPAddressDeny=\\nIPAddressAllow=",
        # The unit's own filter of addresses is a second lock behind the packet filter: both must go.
        and_take="nft insert rule inet quantdesk input tcp dport 6380 accept",
        and_back="systemctl reload nftables-quantdesk",
        along={28, 30},
    ),
    unit(30, "no private network filter", "IPAddressDeny=\\nIPAddressAllow=\\nPrivateUsers=false\\nProtectClock=false"),
    unit(
        31,
        "runs as root",
        "User=root\\nGroup=root\\nPrivateUsers=false\\nCapabilityBoundingSet=CAP_DAC_OVERRIDE",
        # What root has written is nobody else's.
        and_back="chown -R redis:redis /var/lib/redis /var/log/redis /etc/redis",
        # systemd gives its folders to the user of the unit.
        along={30, 32, 56},
    ),
    unit(32, "a capability", "CapabilityBoundingSet=CAP_NET_ADMIN\\nAmbientCapabilities=CAP_NET_ADMIN", along={30}),
    file(33, "a dump that others may read", "/var/lib/redis/dump.rdb", "chmod 644 /var/lib/redis/dump.rdb"),
    Mutation(
        34,
        "a password on a command line",
        '. /etc/redis-admin.env; nohup sh -c ": $REDISCLI_AUTH; sleep 120" >/dev/null 2>&1 & echo $! > /root/audit-34',
        "pkill --parent $(cat /root/audit-34) || true; kill $(cat /root/audit-34) || true; rm /root/audit-34",
    ),
    Mutation(
        36,
        "a vault file in clear",
        "true",
        "true",
        files={"inventory/lab/group_vars/all/vault_audit.yml": "vault_nothing: in clear\n"},
    ),
    live(38, "another limit of clients", "maxclients 9000", "maxclients 10000"),
    live(40, "no ACL log", "acllog-max-len 0; redis-admin ACL LOG RESET", "acllog-max-len 128"),
    Mutation(
        41,
        "a configuration for all",
        f"chmod o+x /etc/redis; chmod o+r {CONF}",
        f"chmod o-x /etc/redis; chmod o-r {CONF}",
        along={33, 56},
    ),
    Mutation(
        55,
        "another instance's user in the group of this one",
        "useradd --system --groups redis redis-audit",
        "userdel redis-audit",
    ),
    Mutation(56, "a folder for all", "chmod 755 /var/lib/redis", "chmod 750 /var/lib/redis"),
    user(57, "default", "+eval"),
    Mutation(
        58, "users.acl is a file with another name", f"ln {ACL} /root/audit-58", "rm /root/audit-58", along={16, 24}
    ),
    file(
        42,
        "a certificate that nobody loaded",
        f"{TLS}/host.crt",
        f"openssl req -x509 -key {TLS}/host.key -subj /CN=redis1 -days 90 > {TLS}/host.crt",
        along={68},
    ),
    Mutation(
        28,
        "a rule more, in the file as well",
        "cp -a /etc/nftables-quantdesk.conf /root/audit-28; sed -i '/iifname/a tcp dport 6381 accept' "
        "/etc/nftables-quantdesk.conf; systemctl reload nftables-quantdesk",
        "mv /root/audit-28 /etc/nftables-quantdesk.conf; systemctl reload nftables-quantdesk",
    ),
    Mutation(
        28,
        "the rules may be written by anybody",
        "chmod 666 /etc/nftables-quantdesk.conf",
        "chmod 600 /etc/nftables-quantdesk.conf",
    ),
    Mutation(
        28,
        "a stop of nftables.service takes the table",
        "mv /etc/systemd/system/nftables.service.d /root/audit-28; systemctl daemon-reload",
        "mv /root/audit-28 /etc/systemd/system/nftables.service.d; systemctl daemon-reload",
    ),
    Mutation(
        63,
        "no packet filter at the next boot",
        "systemctl disable --quiet nftables-quantdesk",
        "systemctl enable --quiet nftables-quantdesk",
    ),
    Mutation(
        64,
        "packets are passed on",
        "nft add chain inet quantdesk forward '{ policy accept ; }'",
        "systemctl reload nftables-quantdesk",
        along={28},
    ),
    Mutation(
        65,
        "the application connects to whom it likes",
        "nft flush chain inet quantdesk output",
        "systemctl reload nftables-quantdesk",
        host="app1",
        along={28},
    ),
    file(68, "an authority besides the site's", f"{TLS}/ca.crt", f"cat {TLS}/host.crt >> {TLS}/ca.crt"),
    Mutation(
        59,
        "users may name themselves, from the next start on",
        f"cp -a {APP_ENV} /root/audit-59; echo 'AUTH_DEVELOPMENT_USERS=\"true\"' >> {APP_ENV}",
        f"mv /root/audit-59 {APP_ENV}",
        host="app1",
    ),
    Mutation(
        60,
        "users name themselves",
        f"cp -a {APP_ENV} /root/audit-60; sed -i 's/^APP_ENV=.*/APP_ENV=test/' {APP_ENV}; "
        f"echo AUTH_DEVELOPMENT_USERS=true >> {APP_ENV}; {APP_RESTART}",
        f"mv /root/audit-60 {APP_ENV}; {APP_RESTART}",
        host="app1",
        along={59},
    ),
    Mutation(
        61,
        "WebSockets for everybody",
        f"cp -a {APP_SOCKETS} /root/audit-61; sed -i 's/^        if admin:$/        if True:/' {APP_SOCKETS}; "
        f"! cmp -s {APP_SOCKETS} /root/audit-61; {APP_RESTART}",
        f"mv /root/audit-61 {APP_SOCKETS}; {APP_RESTART}",
        host="app1",
    ),
    postgresql(
        47,
        "the application's role reads files of the server",
        "GRANT pg_read_server_files TO quantdesk",
        "REVOKE pg_read_server_files FROM quantdesk",
    ),
    Mutation(
        48,
        "another user of the host comes in where backups do",
        f"cp -a {POSTGRESQL}/pg_ident.conf /root/audit-48; "
        f"echo 'databackup nobody quantdesk' >> {POSTGRESQL}/pg_ident.conf; systemctl reload postgresql@15-main",
        f"mv /root/audit-48 {POSTGRESQL}/pg_ident.conf; systemctl reload postgresql@15-main",
        host="db1",
    ),
    postgresql(
        49,
        "anybody makes functions where the superuser works",
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    ),
]
UNREACHED = {
    14: "topology standalone has no Sentinel",
    15: "topology standalone has no Sentinel",
    35: "about Ansible's output: tests/test_secrets_in_output.py takes no_log away there",
    37: "the small lab has no backups: molecule/recovery/tests/test_backup.py takes the protections away there",
    **dict.fromkeys(
        (43, 44, 45, 46), "the small lab has no backups: test_verify_backup.py does it in molecule/recovery"
    ),
    66: "the small lab has no balancer: molecule/scaled/tests/test_verify_services.py takes the protection away",
    67: "the small lab's application serves plaintext: molecule/scaled/tests/test_verify_services.py lets it do so",
    62: "the small lab has no balancer: molecule/scaled/tests/test_verify_services.py takes its limits away there",
    **dict.fromkeys(
        range(50, 55), "the small lab has no backups: molecule/recovery/tests takes the protections away there"
    ),
    39: "the lab's kernel belongs to this machine; tests/test_redis_checks.py judges invented figures",
}


def shell(host: str, command: str) -> None:
    """Run a command as root on a host of the lab; raises RuntimeError with what it said when it fails."""
    done = subprocess.run(
        ["ssh", "-F", LAB / "ssh/config", host, "sudo", "bash", "-e"],
        input=command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{host}: {command}: {done.stderr or done.stdout}")


def playbook(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook against the lab."""
    return subprocess.run(
        [PROJECT / ".venv/bin/ansible-playbook", f"playbooks/{name}", *arguments],
        cwd=PROJECT,
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def failed_controls(mutual: bool) -> tuple[set[int], list[str]]:
    """Run verify.yml and return the controls that failed, and the lines of what failed without a control."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "audit.json")
        # Only the host that is mutated and the one that knocks: the application's is not asked for.
        done = playbook("verify.yml", "-e", json.dumps({"verify_report": str(report), **MUTUAL[mutual]}))
        if not report.exists():
            raise RuntimeError(f"verify.yml did not get to its report:\n{done.stdout[-2000:]}{done.stderr[-500:]}")
        checks = [check for check in json.loads(report.read_text())["checks"] if check["verdict"] == "FAILED"]
    return {number for check in checks for number in check["control"]}, [
        f"{check['check']}: {check['found']}" for check in checks
    ]


# Over mutual TLS the application would need a certificate of its own: it is left out then.
MUTUAL: dict[bool, dict[str, object]] = {False: {}, True: {"redis_tls_auth_clients": True}}


@contextmanager
def taken(mutation: Mutation) -> Iterator[None]:
    """Take a protection away for the time of the block."""
    for path, text in mutation.files.items():
        (PROJECT / path).write_text(text)
    try:
        if mutation.mutual:
            done = playbook("redis.yml", "-e", json.dumps(MUTUAL[True]))
            if done.returncode != 0:
                raise RuntimeError(done.stdout[-2000:])
        shell(mutation.host, mutation.take)
        yield
    finally:
        for path in mutation.files:
            (PROJECT / path).unlink()
        if mutation.mutual:
            playbook("redis.yml")
        else:
            shell(mutation.host, mutation.back)


def main(wanted: set[int]) -> int:
    """Run the mutations and return 0 when each was found by exactly its control."""
    began = time.monotonic()
    clean, problems = failed_controls(False)
    if clean or problems:
        print(f"The lab does not pass as it is: {'; '.join(problems)}. Run `make up` first.")
        return 1
    hosts = (LAB / "ssh/config").read_text().split()
    mutations = [mutation for mutation in MUTATIONS if not wanted or mutation.control in wanted]
    for mutation in mutations:
        if mutation.host not in hosts:
            print(f"not here  control {mutation.control:2}  this lab has no host {mutation.host}; molecule/scaled has")
    mutations = [mutation for mutation in mutations if mutation.host in hosts]
    killed = 0
    for mutation in mutations:
        try:
            with taken(mutation):
                found, lines = failed_controls(mutation.mutual)
        except RuntimeError as error:
            found, lines = set(), [str(error)]
        exact = mutation.control in found and found <= {mutation.control} | mutation.along
        killed += exact
        others = sorted(found - {mutation.control})
        print(
            f"{'killed  ' if exact else 'SURVIVED'}  control {mutation.control:2}  {mutation.name}"
            + (f"  (with {', '.join(map(str, others))})" if others else "")
            + ("" if exact else f"  found: {lines}"),
            flush=True,
        )
    after, problems = failed_controls(False)
    for control, reason in UNREACHED.items():
        print(f"not here  control {control:2}  {reason}")
    print(f"{killed}/{len(mutations)} killed in {time.monotonic() - began:.0f} s")
    if after or problems:
        print(f"The lab does not pass again: {'; '.join(problems)}")
    return 0 if killed == len(mutations) and not problems else 1


if __name__ == "__main__":
    sys.exit(main({int(word) for word in sys.argv[1:]}))
