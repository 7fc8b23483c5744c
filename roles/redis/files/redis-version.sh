# Print the version of redis-server that is installed, else the one that apt would install, else nothing.
# Changes nothing: where apt has no lists yet, they are fetched into a folder that goes again.
installed=$(dpkg-query --show --showformat='${db:Status-Abbrev}${Version}' redis-server 2>/dev/null)
case $installed in ii*) echo "${installed#ii }"; exit 0 ;; esac
candidate() { LC_ALL=C apt-cache "$@" policy redis-server | sed -n 's/^ *Candidate: //p' | grep -v '(none)'; }
candidate && exit 0
lists=$(mktemp -d)
trap 'rm -rf "$lists"' EXIT
chmod 755 "$lists"
set -- -o "Dir::State::Lists=$lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
apt-get "$@" -qq update >/dev/null 2>&1
candidate "$@"
