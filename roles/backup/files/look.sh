# Print what the role must know of a host, as name=value lines. Changes nothing.
#   look.sh CONFIG STATE COMMAND LIBRARY HOST PACKAGE…
config=$1 state=$2 command=$3 library=$4 host=$5
shift 5
# Whatever language the host speaks, its answers are compared.
export LC_ALL=C
# Unlike sh's echo, it makes no new line of a backslash.
say() { printf '%s\n' "$1"; }
missing=
for package in "$@"; do
  case $(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null) in
    ii*) ;;
    *) missing="$missing $package" ;;
  esac
done
echo "missing=${missing# }"
say "program=$(sha256sum "$command" 2>/dev/null | cut -d' ' -f1) $(stat --format '%a %U %G' "$command" 2>/dev/null)"
[ ! -e "$library/__main__.py" ] && echo "modules=no" || echo "modules=yes"
say "key=$(cat "$config/ssh/id_ed25519.pub" 2>/dev/null)"
# The hosts that it would send backups to; `known` may come several times.
sed -n 's/^[^#]/known=&/p' "$config/ssh/known_hosts" 2>/dev/null
# Where its backups go.
sed -n 's/^ *"location": "\(.*\)",\{0,1\}$/location=\1/p' "$config/repository.json" 2>/dev/null
# The host's name when they were set up, and sources with a backup under the name that it has now.
host_of() { sed -n "s/^$2\"host\": \"\(.*\)\",\{0,1\}\$/\1/p" "$1" 2>/dev/null | head -n 1; }
sources= backed= former=
for file in "$config"/source-*.json; do
  [ -e "$file" ] || continue
  name=${file##*/source-} name=${name%.json}
  sources="$sources $name"
  former=$(host_of "$file" "  ")
  # Earlier versions did not note it.
  of=$(host_of "$state/$name.json" "    ")
  [ "${of:-$former}" = "$host" ] && grep -qs '"success"\|"skipped"' "$state/$name.json" && backed="$backed $name"
done
say "former=$former"
say "sources=${sources# }"
say "backed=${backed# }"
timers=
for unit in /etc/systemd/system/timers.target.wants/databackup*.timer; do
  [ -e "$unit" ] && systemctl --quiet is-active "${unit##*/}" && timers="$timers ${unit##*/}"
done
say "timers=${timers# }"
[ ! -e /etc/systemd/system/multi-user.target.wants/databackup-recover.service ] || echo "recover=yes"
# systemd has read other files than are there now.
for unit in databackup@.service databackup@.timer databackup-maintain.service databackup-maintain.timer; do
  [ "$(systemctl show --property NeedDaemonReload --value "$unit" 2>/dev/null)" != yes ] || echo "reload=yes"
done
:
