# Ask a host about its backups, as name=value lines. Changes nothing.
#   verify.sh CONFIG STATE EXPOSURE SOURCE…
config=$1 state=$2 exposure=$3
shift 3
for name in "$@"; do
  echo "status.$name=$(databackup status "$name" 2>&1 | head -n 1 | sed 's/^<3>//')"
  databackup status "$name" >/dev/null 2>&1 && echo "ok.$name=yes"
  unit=databackup@$name.timer
  echo "timer.$name=$(systemctl is-active "$unit"), $(systemctl is-enabled "$unit" 2>&1)"
done
# Whatever of configuration and state anybody but root may read, the metrics excepted.
echo "open=$(find "$config" "$state" -type f -perm /077 ! -name '*.prom' ! -name '*.pub' -printf '%p ' 2>/dev/null)"
echo "owners=$(find "$config" "$state" ! -user root -printf '%p ' 2>/dev/null)"
# A name of a snapshot that is on its way is one too many: it has none.
echo "spool=$(find "$state/spool" -type f -printf '%p ' 2>/dev/null)"
# The repository's own word: its configuration cannot be read without the password.
echo "encrypted=$(databackup --json encrypted 2>/dev/null)"
# Planted journals, names that are paths, ports that another process has: what would mislead a restore.
echo "inspected=$(databackup --json inspect 2>/dev/null)"
exposed=
for unit in databackup-maintain databackup-recover $(printf 'databackup@%s ' "$@"); do
  systemd-analyze security --threshold="$exposure" "$unit.service" >/dev/null 2>&1 || exposed="$exposed $unit"
done
grep -q '^SystemCallFilter=' /usr/local/lib/databackup/run.properties 2>/dev/null || exposed="$exposed run.properties"
echo "exposed=${exposed# }"
echo "password=$(sha256sum <"$config/password" | cut -d' ' -f1)"
echo "failed=$(systemctl list-units --state failed --plain --no-legend 'databackup*' | cut -d' ' -f1 | tr '\n' ' ')"
