# Print what the role must know of a host, as name=value lines. Changes nothing.
#   look.sh VERSION TLS-CERTIFICATE TLS-KEY CLIENT-USER PACKAGE…
version=$1 cert=$2 key=$3 client=$4
shift 4
# Whatever language the host speaks, its answers are compared.
export LC_ALL=C
# Of what others may have named: unlike sh's echo, it makes no new line of a backslash.
say() { printf '%s\n' "$1"; }
# Nothing that somebody else has made in a schema is taken for PostgreSQL's own.
export PGOPTIONS='-c search_path=pg_catalog -c lc_messages=C'
missing=
for package in "$@"; do
  case $(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null) in
    ii*) ;;
    *) missing="$missing $package" ;;
  esac
done
echo "missing=${missing# }"
echo "groups=$(id -nG postgres 2>/dev/null)"
echo "client=$(id -u "$client" >/dev/null 2>&1 && echo yes)"
folder=/etc/postgresql/$version/main
echo "cluster=$([ -e "$folder/postgresql.conf" ] && echo yes)"
# The running server against what it was started and loaded from: a run that was interrupted is completed by the next one.
psql() { cd / && runuser -u postgres -- psql --no-psqlrc --cluster "$version/main" -qAt -c "$1" 2>/dev/null; }
loaded=$(psql "SELECT floor(extract(epoch FROM pg_conf_load_time()))")
echo "running=${loaded:+yes}"
if [ -n "$loaded" ]; then
  for file in "$folder/conf.d/managed.conf" "$folder/pg_hba.conf" "$folder/pg_ident.conf" "$cert" "$key"; do
    changed=$(stat --dereference --format %Y "$file" 2>/dev/null) && [ "$changed" -gt "$loaded" ] && echo "newer=$file"
  done
  say "pending=$(psql "SELECT string_agg(name, ' ') FROM pg_settings WHERE pending_restart" | tr '\n' ' ' | sed 's/ *$//')"
  pid=$(head -n 1 "/var/lib/postgresql/$version/main/postmaster.pid")
  tls=$(getent group "$(stat --format %G "$key" 2>/dev/null)" | cut -d: -f3)
  # Its confinement counts from the next start on.
  confined=/etc/systemd/system/postgresql@$version-main.service.d/managed.conf
  started=$(($(date +%s) - $(ps --format etimes= --pid "$pid")))
  [ ! -e "$confined" ] || [ "$(stat --format %Y "$confined")" -le $((started + 1)) ] || echo "unconfined=yes"
  # A process has the groups that its user had when it started.
  grep -qE "^Groups:.*\b${tls:-x}\b" "/proc/$pid/status" || echo "pending=group of the key"
fi
:
