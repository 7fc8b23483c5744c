# Ask a live server, as name=value lines. Changes nothing. The password comes by standard input.
#   verify.sh ADDRESS PORT DATABASE USER CA VERSION UNIT
address=$1 port=$2 database=$3 user=$4 ca=$5 version=$6 unit=$7
IFS= read -r PGPASSWORD || [ -n "$PGPASSWORD" ]
export PGPASSWORD PGCONNECT_TIMEOUT=5
unset PGHOST PGSERVICE
cd /
try() { # NAME USER DATABASE SSLMODE
  answer=$(psql --no-psqlrc -qAt "host=$address port=$port dbname=$3 user=$2 sslmode=$4 sslrootcert=$ca" \
    -c "SELECT 'ok ' || CASE WHEN ssl THEN 'TLS' ELSE 'plaintext' END FROM pg_stat_ssl WHERE pid = pg_backend_pid()" 2>&1)
  echo "$1=$(tr '\n' ' ' <<<"$answer" | sed 's/ *$//')"
}
ask() { runuser -u postgres -- psql --no-psqlrc --cluster "$version/main" -qAt -c "$1" 2>&1 | tr '\n' ' ' | sed 's/ *$//'; }
try login "$user" "$database" verify-full
try plaintext "$user" "$database" disable
try superuser postgres postgres verify-full
PGPASSWORD=wrong-$RANDOM try wrong "$user" "$database" verify-full
echo "rights=$(ask "SELECT CASE WHEN rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
  THEN 'more than its database' ELSE 'none' END FROM pg_roles WHERE rolname = '$user'")"
echo "stored=$(ask "SELECT split_part(rolpassword, '\$', 1) FROM pg_authid WHERE rolname = '$user'")"
echo "tls=$(ask "SHOW ssl_min_protocol_version")"
echo "listening=$(ss -Hltn "sport = :$port" | awk '{print $4}' | tr '\n' ' ')"
echo "unit=$(systemctl is-active "$unit"), $(systemctl is-enabled "$unit")"
