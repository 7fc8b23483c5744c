#!/bin/bash
# Set a host up as others would have done before this project came: untidy.sh HOST. Once; later runs find it done.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
install() { apt-get -qq install --no-install-recommends "$1" || { apt-get -qq update && apt-get -qq install --no-install-recommends "$1"; }; }
case $1 in
db1) # Another's database, and a line that lets its clients in.
  install postgresql-15
  cd /
  runuser -u postgres -- psql --quiet --no-psqlrc <<'SQL'
CREATE ROLE shop LOGIN PASSWORD 'of-the-shop';
CREATE DATABASE shop OWNER shop;
SQL
  runuser -u postgres -- psql --quiet --no-psqlrc --dbname shop -c 'CREATE TABLE orders AS SELECT generate_series(1, 100) AS id'
  runuser -u postgres -- psql --quiet --no-psqlrc --dbname shop -c 'ALTER TABLE orders OWNER TO shop'
  echo 'host  shop  shop  samenet  scram-sha-256' >>/etc/postgresql/15/main/pg_hba.conf
  ;;
lb1) # A configuration that was written by hand.
  install haproxy
  printf '\nfrontend shop\n    mode http\n    bind *:8080\n    http-request return status 200\n' >>/etc/haproxy/haproxy.cfg
  systemctl restart haproxy
  ;;
esac
# What root makes by sudo is for root alone, unless it says otherwise.
printf 'Defaults umask=0077, umask_override\n' >/etc/sudoers.d/umask
chmod 0440 /etc/sudoers.d/umask
touch /root/untidy
