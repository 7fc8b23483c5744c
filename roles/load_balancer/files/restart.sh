# Restart HAProxy, for a unit file that a reload does not read, without refusing a connection: another process listens on the
# same ports (SO_REUSEPORT) until the new one does.
# restart.sh CONFIGURATION ADMIN-SOCKET
set -euo pipefail
export LC_ALL=C
configuration=$1 socket=$2 bridge=haproxy-bridge
systemctl daemon-reload
master=$(systemctl show haproxy --property MainPID --value)

if [ "$master" = 0 ]; then
  systemctl restart haproxy
  exit
fi

# Of a run that was interrupted.
systemctl stop $bridge 2>/dev/null || true
trap 'systemctl kill --signal USR1 $bridge 2>/dev/null || true; rm -rf /run/$bridge' EXIT
install --directory --mode 0700 /run/$bridge
# When it ends, it closes its connections one after another: at once would be also those that are about to send a request.
sed "s|$socket|/run/$bridge/admin.sock|; s|^global\$|global\n    close-spread-time 20s|" "$configuration" >/run/$bridge/haproxy.cfg
# It gets the sockets of the running process, where that hands them over. Its own connections end within a minute.
old=()
if [ -S "$socket" ]; then old=(-x "$socket"); fi
systemd-run --quiet --collect --unit $bridge --property RuntimeMaxSec=60 \
  /usr/sbin/haproxy -db -f /run/$bridge/haproxy.cfg "${old[@]}" || true
for attempt in $(seq 100); do
  if [ -S /run/$bridge/admin.sock ] || ! systemctl --quiet is-active $bridge; then break; fi
  sleep 0.1
done
# Without it, connections are refused for the moment of a plain restart.
if ! systemctl --quiet is-active $bridge; then
  systemctl restart haproxy
  exit
fi
# Requests that are under way are answered; what takes longer than five seconds, such as a WebSocket, is cut.
for signal in USR1 TERM; do
  kill -$signal "$master" 2>/dev/null || break
  for attempt in $(seq 100); do
    kill -0 "$master" 2>/dev/null || break 2
    sleep 0.05
  done
done
if kill -0 "$master" 2>/dev/null; then systemctl restart haproxy; fi
# Where the unit has Restart=always, systemd does so anyway, a moment later.
systemctl start haproxy
