#!/bin/sh
# Runs inside the image: what a cloud image has and a minimal Debian lacks, so that the lab is reached like production.
set -eu
useradd --create-home --shell /bin/bash ops
printf 'ops ALL=(ALL) NOPASSWD: ALL\n' > /etc/sudoers.d/ops
chmod 0440 /etc/sudoers.d/ops
# The operator's key is mounted read-only when the container starts.
printf 'AuthorizedKeysFile /etc/ssh/lab_authorized_keys\nPasswordAuthentication no\nUseDNS no\n' \
  > /etc/ssh/sshd_config.d/lab.conf
# As in Debian's own container images: nobody reads descriptions of packages here.
echo 'Acquire::Languages "none";' > /etc/apt/apt.conf.d/lab
install --mode=0644 /tmp/lab_compiled.py /usr/lib/python3/dist-packages/
echo 'import lab_compiled' > /usr/lib/python3/dist-packages/lab_compiled.pth
install --directory --mode=1777 /var/cache/lab-compiled
# These wait for hardware or a console that a container has not got.
systemctl mask getty.target systemd-logind.service systemd-udevd.service systemd-resolved.service 2>/dev/null
systemctl enable ssh.service 2>/dev/null
# policy-rc.d of container base images would keep every service from starting.
rm -f /usr/sbin/policy-rc.d
