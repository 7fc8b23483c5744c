#!/usr/bin/env bash
# Build the lab's image: build.sh ENGINE TAG LABEL BASE SUITE PACKAGE…
# From BASE where the engine (podman or docker) has it or a registry answers, else with mmdebstrap and Debian's packages.
# Prints one line that says which way it took; nothing when the image is there already.
set -euo pipefail
cd "$(dirname "$0")"
engine=$1 tag=$2 label=$3 base=$4 suite=$5
shift 5
has() { "$engine" image inspect "$1" >/dev/null 2>&1; }
! has "$tag" || exit 0

pulled=false
if has "$base" || { timeout 120 "$engine" pull --quiet "$base" >/dev/null 2>&1 && pulled=true; }; then
  "$engine" build --quiet --ulimit "nofile=$(ulimit -Hn):$(ulimit -Hn)" --label "$label=image" --tag "$tag" \
    --build-arg "BASE=$base" --build-arg "PACKAGES=$*" . >/dev/null
  # The built image keeps the layers; only the name goes, and only if it came with this run.
  ! $pulled || "$engine" image rm "$base" >/dev/null
  echo "built on $base"
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  if ! mmdebstrap --quiet --variant=minbase --skip=cleanup/apt/lists --include="$(IFS=,; echo "$*")" \
    --customize-hook='copy-in setup.sh lab_compiled.py /tmp' \
    --customize-hook='chroot "$1" sh /tmp/setup.sh' --customize-hook='rm "$1/tmp/setup.sh" "$1/tmp/lab_compiled.py"' \
    "$suite" "$work/root.tar" 2>"$work/log"; then
    tail -n 20 "$work/log" >&2
    echo "no registry answered for $base, and mmdebstrap could not build $suite" >&2
    exit 1
  fi
  "$engine" import --change "LABEL $label=image" --change 'CMD ["/sbin/init"]' "$work/root.tar" "$tag" >/dev/null
  echo "built with mmdebstrap, as no registry answered for $base"
fi
