# Ask a host about its backups, as name=value lines. Changes nothing.
#   verify.sh CONFIG STATE EXPOSURE SOURCE…
config=$1 state=$2 exposure=$3
# Whatever language the host speaks, its answers are compared.
export LC_ALL=C
# Of what others may have named: unlike sh's echo, it makes no new line of a backslash.
say() { printf '%s\n' "$1"; }
shift 3
for name in "$@"; do
  told=$(databackup status "$name" 2>&1) && say "ok.$name=yes"
  say "status.$name=$(say "$told" | head -n 1 | sed 's/^<3>//')"
  unit=databackup@$name.timer
  say "timer.$name=$(systemctl is-active "$unit"), $(systemctl is-enabled "$unit" 2>&1)"
done
say "version=$(databackup --version 2>/dev/null)"
# Whatever of configuration and state anybody but root may read, the metrics excepted.
say "open=$(find "$config" "$state" -type f -perm /077 ! -name '*.prom' ! -name '*.pub' -printf '%p ' 2>/dev/null | tr '\n' ' ')"
say "owners=$(find "$config" "$state" ! -user root -printf '%p ' 2>/dev/null | tr '\n' ' ')"
# A name of a snapshot that is on its way is one too many: it has none.
say "spool=$(find "$state/spool" -type f -printf '%p ' 2>/dev/null | tr '\n' ' ')"
# The repository's own word: its configuration cannot be read without the password.
say "encrypted=$(databackup --json encrypted 2>/dev/null)"
# Planted journals, names that are paths, ports that another process has: what would mislead a restore.
say "inspected=$(databackup --json inspect 2>/dev/null)"
exposed=
for unit in databackup-maintain databackup-recover $(printf 'databackup@%s ' "$@"); do
  systemd-analyze security --threshold="$exposure" "$unit.service" >/dev/null 2>&1 || exposed="$exposed $unit"
done
grep -q '^SystemCallFilter=' /usr/local/lib/databackup/run.properties 2>/dev/null || exposed="$exposed run.properties"
say "exposed=${exposed# }"
say "password=$(sha256sum <"$config/password" | cut -d' ' -f1)"
say "failed=$(systemctl list-units --state failed --plain --no-legend 'databackup*' | cut -d' ' -f1 | tr '\n' ' ')"
