#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# base.sh ARCHIVE: a minimal Debian with Python as a tar archive. Runs in a mount namespace of
# its own, so that what debootstrap mounts ends with it.
set -euo pipefail
archive=$1
root=$(mktemp -d "$archive.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT

debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv \
  bookworm "$root"
umount -R "$root/proc" "$root/sys" 2>/dev/null || :
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
  "$root"/usr/share/{doc,info,locale,man}/*
ln -s python3 "$root/usr/bin/python"
rm "$root"/usr/lib/python3*/EXTERNALLY-MANAGED # as in the public image: pip may install
: >"$root/etc/pip.conf"                        # the build mounts the machine's over it
tar --create --file "$archive.draft" --directory "$root" --one-file-system .
mv "$archive.draft" "$archive"
