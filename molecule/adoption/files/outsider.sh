#!/bin/bash
# Servers on the outsider that are refused, each for its own reason.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq redis-server redis-tools >/dev/null
systemctl disable --now --quiet redis-server

start() { # PORT OPTIONS…
  local port=$1
  shift
  mkdir -p "/srv/$port" && chown redis: "/srv/$port"
  printf '%s\n' "port $port" "bind 127.0.0.1" "dir /srv/$port" "daemonize yes" "$@" >"/srv/$port/redis.conf"
  chown redis: "/srv/$port/redis.conf"
  runuser -u redis -- /usr/bin/redis-server "/srv/$port/redis.conf"
}
start 7010
start 7011 'replicaof 127.0.0.1 7010'
start 7012 'rename-command FLUSHALL wipe-all'
start 7013 'user default on >not-to-be-guessed ~* +@all'
start 7014
sleep 1
head -c 4000000 /dev/zero | redis-cli -p 7014 -x SET big >/dev/null
# The file tells no password.
sed -i '/^user/d' /srv/7013/redis.conf
