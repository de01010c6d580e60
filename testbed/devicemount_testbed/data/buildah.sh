#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# buildah.sh STORAGE ARGUMENT...: buildah with a store of its own. Runs in a mount namespace of
# its own: the store's mounts, and its notes of what is mounted, end with the command.
set -euo pipefail
storage=$1
shift
mkdir -p "$storage/run"
mount -t tmpfs tmpfs "$storage/run"
exec buildah --root "$storage/root" --runroot "$storage/run" --storage-driver overlay "$@"
