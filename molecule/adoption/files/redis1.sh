#!/bin/bash
# Old servers on redis1, each in its own way, with keys of its own.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq redis-server redis-tools >/dev/null

fill() { # PORT KEYS OPTIONS…: strings, one of each other kind, and some that expire
  local port=$1 keys=$2
  shift 2
  {
    for number in $(seq "$keys"); do echo "SET key:$port:$number value-$number"; done
    echo "RPUSH list:$port a b c"
    echo "HSET hash:$port one 1 two 2"
    echo "ZADD sorted:$port 1 a 2 b"
    echo "XADD stream:$port * field value"
    echo "SET volatile:$port soon EX 86400"
    echo "SELECT 4"
    echo "SET elsewhere:$port x"
  } | redis-cli -p "$port" "$@" >/dev/null
}

# 6379: the package's, as a guide of the web says.
sed -i -e "s/^# *requirepass .*/requirepass $PASSWORD/" /etc/redis/redis.conf
echo 'rename-command CONFIG ""' >>/etc/redis/redis.conf
mkdir -p /etc/systemd/system/redis-server.service.d
printf '[Service]\nLimitNOFILE=4096\n' >/etc/systemd/system/redis-server.service.d/limits.conf
systemctl daemon-reload
systemctl restart redis-server
export REDISCLI_AUTH=$PASSWORD
fill 6379 1000

# 7001: a unit of its own, append-only file, the same password as the new one will have.
mkdir -p /srv/log && chown redis: /srv/log
cat >/etc/redis-log.conf <<CONF
port 7001
bind 127.0.0.1 -::1
dir /srv/log
appendonly yes
requirepass $PASSWORD
CONF
chown redis: /etc/redis-log.conf && chmod 640 /etc/redis-log.conf
cat >/etc/systemd/system/my-redis.service <<'UNIT'
[Unit]
Description=Redis of the desk
[Service]
User=redis
ExecStart=/usr/bin/redis-server /etc/redis-log.conf
Restart=always
[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --now --quiet my-redis

# 7002: by hand, elsewhere, under another name, without a password.
unset REDISCLI_AUTH
mkdir -p /srv/redis && chown nobody /srv/redis
printf 'port 7002\nbind 127.0.0.1\ndir /srv/redis\ndbfilename legacy.rdb\ndaemonize yes\n' >/srv/redis/redis.conf
runuser -u nobody -- /usr/bin/redis-server /srv/redis/redis.conf

# 7003: the package's template, with users in its file.
cat >/etc/redis/redis-users.conf <<CONF
port 7003
bind 127.0.0.1
dir /var/lib/redis-users
user default on nopass ~public:* +get
user root on >$OLD_PASSWORD ~* &* +@all
CONF
chown redis: /etc/redis/redis-users.conf
mkdir -p /var/lib/redis-users && chown redis: /var/lib/redis-users
systemctl enable --now --quiet redis-server@users

# 7004, to be set aside, and 7005, to be left alone: no snapshots at all.
for port in 7004 7005; do
  mkdir -p "/srv/$port" && chown redis: "/srv/$port"
  runuser -u redis -- /usr/bin/redis-server --port "$port" --bind 127.0.0.1 --dir "/srv/$port" --save '' --daemonize yes >/dev/null
done
for port in 7001 7002 7003 7004 7005; do
  for _ in $(seq 50); do redis-cli -p "$port" PING >/dev/null 2>&1 && break; sleep 0.1; done
done
REDISCLI_AUTH=$PASSWORD fill 7001 500
fill 7002 300
REDISCLI_AUTH=$OLD_PASSWORD fill 7003 200 --user root
fill 7004 50
fill 7005 50
