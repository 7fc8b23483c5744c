# Print what the preflight of redis must know of a host, as name=value lines. Changes nothing. Comes behind servers.sh.
#   look.sh UNIT CONFIGURATION DATA-FOLDER USER PROGRAM QUESTION
# The program is module_utils/apt_state.py, and the question what it is asked of apt.
unit=$1 conf=$2 data=$3 user=$4 program=$5 question=$6
# Whatever language the host speaks, its answers are compared.
export LC_ALL=C
instance=${unit#redis-server}
instance=${instance%.service}
instance=${instance#@}
# Where the package's template for instances, and this role before each had a user of its own, have its configuration.
theirs=/etc/redis/redis${instance:+-$instance}.conf
# Of what others may have named: unlike sh's echo, it makes no new line of a backslash.
say() { printf '%s\n' "$1"; }
. /etc/os-release
distribution="$ID ${VERSION_ID%%.*}"
echo "distribution=$distribution"
own=$(grep -ls 'What is in this file counts from the next start on' /etc/systemd/system/redis-server*.service)
is_own() { case " $(echo $own) " in *" /etc/systemd/system/$1 "*) ;; *) false ;; esac; }
active= enabled= of=unit
while read -r line; do
  case $of$line in
    unit) of=package ;;
    unitActiveState=*) echo "active=${line#*=}" ;;
    packageActiveState=*) active=${line#*=} ;;
    packageUnitFileState=*) enabled=${line#*=} ;;
  esac
done <<END
$(systemctl show --property ActiveState,UnitFileState "$unit" redis-server.service 2>/dev/null)
END
# The package's own server as it came, without keys and without clients: nobody misses it.
shipped() {
  sum=$(dpkg-query --show --showformat='${Conffiles}' redis-server 2>/dev/null | awk '$1 == "/etc/redis/redis.conf" {print $2}')
  [ "$sum" ] && echo "$sum  /etc/redis/redis.conf" | md5sum --status --check 2>/dev/null
}
idle() { # PID
  shipped || return
  timeout 2 redis-cli INFO 2>/dev/null | tr -d '\r' | awk -F : -v pid="$1" '
    {said[$1] = $2}
    /^db[0-9]/ {keys = 1}
    END {exit !(said["process_id"] == pid && said["config_file"] == "/etc/redis/redis.conf" && said["loading"] == "0" &&
      said["role"] == "master" && said["connected_slaves"] == "0" && said["connected_clients"] == "1" &&
      said["number_of_functions"] + 0 == 0 && !keys)}'
}
# Servers that no unit of this role has started, as PID:UNIT, and the paths of data of an instance that has no unit of
# this role.
foreign= stopped= changed=
while read -r pid of; do
  [ "$pid" ] && ! is_own "$of" || continue
  if [ "$of" = redis-server.service ] && idle "$pid"; then active=idle; else foreign="$foreign $pid:$of"; fi
done <<END
$(servers)
END
if ! is_own "$unit"; then
  # The snapshot of a server that was never used has nothing in it either.
  [ ! -e "$data/dump.rdb" ] || [ "$active $data" = "idle /var/lib/redis" ] || foreign="$foreign $data/dump.rdb"
  [ ! -d "$data/appendonlydir" ] || foreign="$foreign $data/appendonlydir"
  # What the instance's configuration, which somebody else wrote, says of data: a server with ours would not look there.
  [ ! -e "$conf" ] || theirs=$conf
  if [ -e "$theirs" ] && ! { [ "$theirs" = /etc/redis/redis.conf ] && shipped; }; then
    changed=$theirs
    said() { awk -v name="$1" 'tolower($1) == name {gsub(/"/, "", $2); value = $2} END {print value}' "$theirs"; }
    place=$(said dir)
    for name in "$(said dbfilename)" "$(said appenddirname)" dump.rdb appendonlydir; do
      file=${place:-$data}/$name
      case $name in '' | */*) continue ;; esac
      case $file in "$data/dump.rdb" | "$data/appendonlydir") continue ;; esac
      [ ! -e "$file" ] || [ "$stopped" ] || stopped=$file
    done
  fi
  [ -z "$stopped" ] || foreign="$foreign $stopped"
fi
is_own "$unit" && echo own=yes || echo own=no
say "foreign=${foreign# }"
say "stopped=$stopped"
say "changed=$changed"
# Of the package's own unit, where the instance has another one: whether it starts with the host, and whether it runs.
if [ "$unit" = redis-server.service ] || is_own redis-server.service || [ -z "$enabled" ]; then echo package_unit=
else echo "package_unit=$enabled $active"; fi
echo "container=$(systemd-detect-virt --container)"
# How it overcommits memory, how long its queues of connections are, and whether it makes huge pages.
pages=never thp=/sys/kernel/mm/transparent_hugepage/enabled
[ ! -e "$thp" ] || grep -q '\[never\]' "$thp" || pages=other
echo "kernel=$(cat /proc/sys/vm/overcommit_memory /proc/sys/net/core/somaxconn | tr '\n' ' ')$pages"

# One line of JSON.
say "apt=$(python3 -c "$program" "$question" "$distribution")"
echo "groups=$(id --name --groups "$user" 2>/dev/null)"
# An instance with a name, as it was before each had a user of its own: its unit, which root alone writes, tells. What is
# left of it beside the others is known by a file that nobody else makes.
shared=no leftover=no folder=
if [ "$instance" ]; then
  ! is_own "$unit" || ! grep -q "^ExecStart=.* $theirs " "/etc/systemd/system/$unit" || shared=yes
  [ ! -e "/etc/redis/users-$instance.acl" ] || leftover=yes
fi
# Whose home the user has, and who owns the folder for the configuration, with its mode.
account=$(getent passwd "$user" | cut -d : -f 6)
place=$(dirname "$conf")
if [ -L "$place" ]; then folder="a link"; elif [ -d "$place" ]; then folder=$(stat --format '%U %a' "$place")
elif [ -e "$place" ]; then folder="a file"; fi
echo "shared=$shared"
echo "leftover=$leftover"
say "account=$account"
echo "folder=$folder"
# Not by awk, which writes numbers above 2^31 as 2.5e+10, or with a comma.
while read -r name size _; do [ "$name" != MemTotal: ] || echo "memory=$((size * 1024))"; done </proc/meminfo
[ -d "$data" ] && echo data=yes || echo data=no
[ -e "$data/dump.rdb" ] && echo dump=yes || echo dump=no
[ -d "$data/appendonlydir" ] && echo log=yes || echo log=no
# The ports and the memory of other instances on this host: "port name" for each.
for other in /etc/redis/redis.conf /etc/redis/redis-*.conf /etc/redis-*/redis.conf; do
  case $other in
    /etc/redis/redis.conf) of= ;;
    /etc/redis/*) of=${other#/etc/redis/redis-} of=${of%.conf} ;;
    *) of=${other#/etc/redis-} of=${of%/redis.conf} ;;
  esac
  # Redis may write there: no other name than one that an instance may have.
  case $of in *[!a-z0-9]*) continue ;; esac
  [ -e "$other" ] && [ "$other" != "$conf" ] && [ "$of" != "$instance" ] || continue
  systemctl is-enabled --quiet "redis-server${of:+@$of}.service" 2>/dev/null || continue
  awk -v file="$other" 'tolower($1) == "port" || tolower($1) == "tls-port" {if ($2) print "taken=" $2 " " file}' "$other"
done
# What a takeover must know: one that was interrupted, and the folder for the data.
[ -e "/var/lib/redis-adoption/redis${instance:+-$instance}.journal" ] && echo adopting=yes || echo adopting=no
[ -L "$data" ] && echo data_link=yes || echo data_link=no
say "data_strange=$(ls -A "$data" 2>/dev/null | grep -vE '\.(rdb|aof|manifest|conf)$|^(appendonlydir|before-(adoption|restore)-.*|\.restore.*)$' | tr '\n' ' ' | sed 's/ $//')"
near=$data
while [ ! -d "$near" ]; do near=$(dirname "$near"); done
echo "free=$(df --output=avail --block-size=1 "$near" 2>/dev/null | tail -n 1 | tr -d ' ')"
