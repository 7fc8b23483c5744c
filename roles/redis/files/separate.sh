# Give an instance what it had in the folders that all instances shared: separate.sh copy|remove NAME
# Root neither reads nor writes a file here: the old ones are read as redis, the new ones written as redis-NAME. So a link
# or a file that redis has put in a place leads no further than redis itself may go. Prints what it has done.
set -euo pipefail
# Whatever language the host speaks, its answers are compared.
export LC_ALL=C
step=$1 name=$2
as() { setpriv --reuid="$1" --regid="$1" --init-groups -- "${@:2}"; }
give() { # OLD NEW COMMAND-THAT-READS…
  [ -e "$1" ] || [ -L "$1" ] || return 0
  ! as "redis-$name" test -e "$2" || return 0
  case $(stat --format '%F, %h' "$1") in
    "regular file, 1" | "regular empty file, 1") ;;
    *) echo "$1: found $(stat --format '%F, names: %h' "$1"); expected a plain file with one name" >&2; return 1 ;;
  esac
  as redis "${@:3}" "$1" | as "redis-$name" sh -c 'umask 077; cat >"$1.part"' sh "$2"
  as "redis-$name" mv "$2.part" "$2"
  echo "$2"
}
case $step in
  copy)
    give "/etc/redis/redis-$name.conf" "/etc/redis-$name/redis.conf" cat
    give "/etc/redis/users-$name.acl" "/etc/redis-$name/users.acl" cat
    ;;
  remove)
    # As logrotate would have left them.
    old=/var/log/redis/redis-server-$name.log new=/var/log/redis-$name/redis-server.log
    for number in $(seq 12 -1 1); do give "$old.$number.gz" "$new.$((number + 1)).gz" cat; done
    give "$old" "$new.1.gz" gzip --stdout
    as redis rm -f "$old" "$old".{1..12}.gz "/etc/redis/redis-$name.conf" "/etc/redis/redis-$name.conf.previous" \
      "/etc/redis/users-$name.acl.previous"
    # Last: by it a run that is interrupted here is known to the next one.
    as redis rm -f "/etc/redis/users-$name.acl"
    echo "/etc/redis/redis-$name.conf"
    ;;
esac
