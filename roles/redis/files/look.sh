# Print what the preflight of redis must know of a host, as name=value lines. Changes nothing.
#   look.sh UNIT CONFIGURATION DATA-FOLDER "DISTRIBUTION=FIRST-VERSION-WITH-FIXES"…
# Where apt has no lists yet, they are fetched into a folder that goes again.
unit=$1 conf=$2 data=$3
shift 3
. /etc/os-release
distribution="$ID ${VERSION_ID%%.*}"
minimum=
for known in "$@"; do [ "${known%%=*}" != "$distribution" ] || minimum=${known#*=}; done
echo "distribution=$distribution"
echo "active=$(systemctl is-active "$unit" 2>/dev/null)"
echo "container=$(systemd-detect-virt --container)"

version_of() { LC_ALL=C apt-cache "$@" policy redis-server 2>/dev/null | sed -n 's/^ *Candidate: //p' | grep -v '(none)'; }

installed=$(dpkg-query --show --showformat='${db:Status-Abbrev}${Version}' redis-server 2>/dev/null)
case $installed in ii*) installed=${installed#ii } ;; *) installed= ;; esac
set --
# Empty until apt needs options.
offered=$(version_of)
if [ -z "$offered" ]; then
  lists=$(mktemp -d)
  trap 'rm -rf "$lists"' EXIT
  chmod 755 "$lists"
  set -- -o "Dir::State::Lists=$lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
  # Which sources failed and why, as what they have may be missing below. None of them may hold the preflight up for long.
  failed=$(LC_ALL=C apt-get "$@" -o Acquire::http::Timeout=15 -o Acquire::https::Timeout=15 -o Acquire::Retries=1 \
    -qq update 2>&1 | sed -nE '/^E: Some index files/d; s/^[EW]: Failed to fetch ([^ ]+) +/\1: /p; t; s/^E: //p' \
    | sort -u | head -n 5 | paste -sd ';' | sed 's/;/; /g')
  [ -z "$failed" ] || echo "failed_sources=$failed"
  offered=$(version_of "$@")
fi
echo "installed=$installed"
echo "offered=$offered"
for version in "$installed" "$offered"; do
  if [ -z "$version" ]; then echo none
  elif [ -z "$minimum" ] && [ "$version" = "$offered" ]; then echo yes
  elif [ -n "$minimum" ] && dpkg --compare-versions "$version" ge "$minimum"; then echo yes
  else echo no; fi
done | { read -r a; read -r b; echo "installed_fixed=$a"; echo "offered_fixed=$b"; }
LC_ALL=C apt-cache "$@" policy 2>/dev/null | grep -qE 'n=[a-z]+-security|a=[a-z]+-security' &&
  echo security_source=yes || echo security_source=no
echo "groups=$(id --name --groups redis 2>/dev/null)"
echo "memory=$(awk '/^MemTotal:/ {print $2 * 1024}' /proc/meminfo)"
[ -d "$data" ] && echo data=yes || echo data=no
[ -e "$data/dump.rdb" ] && echo dump=yes || echo dump=no
[ -d "$data/appendonlydir" ] && echo log=yes || echo log=no
# The ports and the memory of other instances on this host: "port name" for each.
for other in /etc/redis/redis*.conf; do
  [ -e "$other" ] && [ "$other" != "$conf" ] || continue
  name=${other#/etc/redis/redis}
  name=${name%.conf}
  name=${name#-}
  systemctl is-enabled --quiet "redis-server${name:+@$name}.service" 2>/dev/null || continue
  awk -v file="$other" 'tolower($1) == "port" || tolower($1) == "tls-port" {if ($2) print "taken=" $2 " " file}' "$other"
done
