# Let PostgreSQL take its files over: reload, and a restart for what it reads at its start only. Says why it restarted.
#   load.sh VERSION
set -eu
# Whatever language the host speaks, its answers are compared.
export LC_ALL=C
version=$1
# Nothing that somebody else has made in a schema is taken for PostgreSQL's own.
export PGOPTIONS='-c search_path=pg_catalog -c lc_messages=C'
psql() { cd / && runuser -u postgres -- psql --no-psqlrc --cluster "$version/main" -qAt -c "$1"; }
# Both views read the files as they are now, before the server does.
problems=$(psql "SELECT format('%s:%s: %s', sourcefile, sourceline, error) FROM pg_file_settings WHERE error IS NOT NULL
                 AND error NOT LIKE '%without restarting%'
  UNION ALL SELECT format('pg_hba.conf:%s: %s', line_number, error) FROM pg_hba_file_rules WHERE error IS NOT NULL
  UNION ALL SELECT format('pg_ident.conf:%s: %s', line_number, error) FROM pg_ident_file_mappings WHERE error IS NOT NULL")
if [ -n "$problems" ]; then
  echo "PostgreSQL refuses the changes, and continues with the earlier settings: $problems" >&2
  exit 1
fi
systemctl reload "postgresql@$version-main"
# The server has been told, and does it within a moment.
sleep 0.5
pending=$(psql "SELECT string_agg(name, ' ') FROM pg_settings WHERE pending_restart")
pid=$(head -n 1 "/var/lib/postgresql/$version/main/postmaster.pid")
grep -qE "^Groups:.*\b$(getent group "$2" | cut -d: -f3)\b" "/proc/$pid/status" || pending="$pending group:$2"
[ -n "$pending" ] || exit 0
systemctl restart "postgresql@$version-main"
echo "restarted for $pending"
