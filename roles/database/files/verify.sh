# Ask a live server, as name=value lines. Changes nothing. The password comes by standard input.
#   verify.sh ADDRESS PORT DATABASE USER CA VERSION UNIT MAP CLIENT-USER
address=$1 port=$2 database=$3 user=$4 ca=$5 version=$6 unit=$7 map=$8 client=$9
# Whatever language the host speaks, its answers are compared.
export LC_ALL=C
IFS= read -r PGPASSWORD || [ -n "$PGPASSWORD" ]
export PGPASSWORD PGCONNECT_TIMEOUT=5
unset PGHOST PGSERVICE
# Nothing that somebody else has made in a schema is taken for PostgreSQL's own.
export PGOPTIONS='-c search_path=pg_catalog'
cd /
try() { # NAME USER DATABASE SSLMODE
  answer=$(psql --no-psqlrc -qAt "host=$address port=$port dbname=$3 user=$2 sslmode=$4 sslrootcert=$ca" \
    -c "SELECT 'ok ' || CASE WHEN ssl THEN 'TLS' ELSE 'plaintext' END FROM pg_stat_ssl WHERE pid = pg_backend_pid()" 2>&1)
  echo "$1=$(tr '\n' ' ' <<<"$answer" | sed 's/ *$//')"
}
ask() { # SQL
  runuser -u postgres -- psql --no-psqlrc --cluster "$version/main" -qAt -c "$1" 2>&1 | tr '\n' ' ' | sed 's/ *$//'
}
come() { # ROLE DATABASE: log in on the host as the user who runs the clients of backups
  runuser -u "$client" -- psql --no-psqlrc -h /var/run/postgresql -p "$port" -U "$1" -d "$2" -qAt \
    -c "SELECT session_user || CASE WHEN current_setting('is_superuser') = 'on' THEN ', superuser' ELSE '' END" 2>&1 |
    tail -n 1
}
try login "$user" "$database" verify-full
try plaintext "$user" "$database" disable
try superuser postgres postgres verify-full
PGPASSWORD=wrong-$RANDOM try wrong "$user" "$database" verify-full
# Attributes, and the roles that it is a member of.
echo "rights=$(ask "SELECT coalesce(string_agg(name, ', '), 'none') FROM pg_roles r, LATERAL (
    SELECT unnest(ARRAY[CASE WHEN rolsuper THEN 'superuser' END, CASE WHEN rolcreaterole THEN 'createrole' END,
      CASE WHEN rolcreatedb THEN 'createdb' END, CASE WHEN rolreplication THEN 'replication' END,
      CASE WHEN rolbypassrls THEN 'bypassrls' END])
    UNION ALL SELECT 'member of ' || pg_get_userbyid(roleid) FROM pg_auth_members WHERE member = r.oid) AS has (name)
  WHERE rolname = '$user' AND name IS NOT NULL")"
# In the superuser's own database, where it administers the others.
echo "creates=$(ask "SELECT coalesce(string_agg(nspname, ', ' ORDER BY nspname), 'nothing') FROM pg_namespace
  WHERE nspname NOT LIKE 'pg\_t%' AND has_schema_privilege('$user', oid, 'CREATE')")"
echo "map=$(ask "SELECT string_agg(sys_name || ' as ' || pg_username, ', ' ORDER BY sys_name, pg_username)
  FROM pg_ident_file_mappings WHERE map_name = '$map'")"
# The first line that matches decides.
echo "lines=$(ask "SELECT string_agg(array_to_string(user_name, ',') || ' ' || auth_method ||
    coalesce(' ' || array_to_string(options, ' '), ''), ', ' ORDER BY line_number)
  FROM pg_hba_file_rules WHERE type = 'local' AND ('$database' = ANY (database) OR 'all' = ANY (database))")"
echo "client=$(come "$user" "$database"); $(come postgres "$database"); $(come postgres postgres)"
# A database whose indexes were sorted by another C library's rules; C and C.UTF-8 have none that change.
echo "sorted=$(ask "SELECT datcollversion || ', and ' || pg_database_collation_actual_version(oid) || ' is here'
  FROM pg_database WHERE datname = '$database' AND datcollversion <> pg_database_collation_actual_version(oid)")"
# Clusters of this role that were upgraded: at the next boot one that is enabled would take the port.
boots=
for link in /etc/systemd/system/multi-user.target.wants/postgresql@*-main.service; do
  other=${link##*@} other=${other%-main.service}
  [ "$other" = "$version" ] || [ ! -e "/etc/postgresql/$other/main/conf.d/managed.conf" ] || boots="$boots $other/main"
done
echo "boots=${boots# }"
echo "stored=$(ask "SELECT split_part(rolpassword, '\$', 1) FROM pg_authid WHERE rolname = '$user'")"
echo "tls=$(ask "SHOW ssl_min_protocol_version")"
echo "listening=$(ss -Hltn "sport = :$port" | awk '{print $4}' | tr '\n' ' ')"
echo "exposure=$(systemd-analyze security --no-pager "$unit" 2>/dev/null | sed -nE 's/.*Overall exposure level.*: ([0-9.]+) .*/\1/p')"
process=$(systemctl show --property MainPID --value "$unit")
echo "process=$(ps --format user= --pid "$process"), $(sed -nE 's/^(NoNewPrivs|Seccomp|CapEff|CapBnd):\s*0*([0-9a-f]+)$/\1 \2/p' \
  "/proc/$process/status" | paste -sd, | sed 's/,/, /g')"
echo "unit=$(systemctl is-active "$unit"), $(systemctl is-enabled "$unit")"
