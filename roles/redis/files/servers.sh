# Defines `servers`, which prints "PID UNIT" for each Redis, Valkey or KeyDB server of this host, and its Sentinels; "-" for
# one that no unit of the system's has started. Changes nothing. A container's own units are not this host's.
# Whatever language the host speaks, its answers are compared.
export LC_ALL=C
group_of() { # PID: sets `group`, its path in the tree of control groups, which systemd keeps in version 1 or 2
  group=
  [ -r "/proc/$1/cgroup" ] || return
  while IFS=: read -r _ controllers path; do
    case $controllers in
      name=systemd) group=$path; return ;;
      '') group=$path ;;
    esac
  done 2>/dev/null <"/proc/$1/cgroup"
}
servers() {
  group_of 1
  # This host may be a container itself.
  root=${group%/init.scope}
  # By the name of the process, and by its program: Debian's redis-server is a link to redis-check-rdb.
  { grep -lsE '^(redis|valkey|keydb)-(server|sentinel)' /proc/[0-9]*/comm
    find /proc/[0-9]*/exe -maxdepth 0 \( -lname '*/redis-server*' -o -lname '*/valkey-server*' -o -lname '*/keydb-server*' \
      -o -lname '*/redis-check-rdb*' -o -lname '*/valkey-check-rdb*' \) 2>/dev/null
  } | cut -d / -f 3 | sort -nu | {
    known=' '
    while read -r pid; do
      name= parent=
      [ -r "/proc/$pid/status" ] || continue
      while read -r key value _; do
        case $key in Name:) name=$value ;; PPid:) parent=$value; break ;; esac
      done 2>/dev/null <"/proc/$pid/status"
      case $name in '' | *-check-rdb | *-check-aof) continue ;; esac
      # Its child, which writes a file.
      case $known in *" $parent "*) continue ;; esac
      known="$known$pid "
      group_of "$pid"
      rest=${group#"$root"/}
      while :; do
        case ${rest%%/*} in *.slice) rest=${rest#*/} ;; *) break ;; esac
      done
      case ${rest%%/*} in user@*) echo "$pid -" ;; *.service) echo "$pid ${rest%%/*}" ;; *) echo "$pid -" ;; esac
    done
  }
}
