# Print what the role must know of a host, as name=value lines. Changes nothing.
#   look.sh USER PATH FOLDER KEYS-FILE
user=$1 path=$2 folder=$3 keys=$4
id "$user" >/dev/null 2>&1 && echo user=yes
echo "chroot=$(stat --format '%U %a' "$path" 2>/dev/null)"
echo "folder=$(stat --format '%U %a' "$path/$folder" 2>/dev/null)"
echo "key=$(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub 2>/dev/null)"
# What others than its owner may read, and what begins like data that were never encrypted.
echo "open=$(find "$path/$folder" -perm /077 -printf '%p ' 2>/dev/null | head -c 200)"
echo "plain=$(find "$path/$folder" -type f -size +1k 2>/dev/null | head -n 500 \
  | xargs --no-run-if-empty --delimiter '\n' head --quiet --bytes 16 2>/dev/null \
  | grep --text --only-matching --max-count 1 -E 'REDIS0|PGDMP|SQLite format' | head -n 1)"
echo "sshd=$(sshd -T -C "user=$user,host=x,addr=127.0.0.1" 2>/dev/null \
  | grep -E '^(forcecommand|chrootdirectory|allowtcpforwarding|permittty) ' | sort | tr '\n' ';')"
# A run that was cut off may have left sshd with what it read before.
config=/etc/ssh/sshd_config.d/backup-vault.conf
read=$(systemctl show ssh.service --property StateChangeTimestamp --timestamp=unix --value 2>/dev/null | tr -d @)
[ ! -e "$config" ] || [ "$(stat --format %Y "$config")" -le "${read:-0}" ] || echo stale=yes
# Who may come in now; `granted` may come several times.
sed -n 's/^restrict[^ ]* /granted=/p' "$keys" 2>/dev/null
:
