#!/bin/sh
# All that a host's ssh connection runs here, whatever it asks for: its own repository, to which it can add and from which
# it can read. It cannot remove or overwrite anything but its locks.
# What is read below is in English.
export LC_ALL=C
# Without room made before, a file for which there is none is removed: as it stands nobody could write it once more.
umask 027
cd / || exit 1
user=$(id -un) && read -r folder <"/etc/ssh/backup-vault/$user.folder" || exit 1
exec env -i PATH=/usr/bin:/bin HOME=/nonexistent setpriv --no-new-privs \
  rclone serve restic --stdio --append-only --config= --cache-dir=/nonexistent --log-level=ERROR \
  --local-no-preallocate "$folder"
