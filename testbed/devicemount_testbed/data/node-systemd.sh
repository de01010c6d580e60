#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of a node whose PID 1 is systemd: makes what is the node's own and becomes systemd, which
# runs the units of data/systemd and no other.
set -euo pipefail
source "${BASH_SOURCE[0]%/*}/node-own.sh"

# A cgroup namespace has the cgroup for its root that one is in. Whoever started this stays outside:
# a cgroup with a process delegates no controller to its children.
if [ "${1:-}" != inside ]; then
  echo 0 >"$NODE_CGROUP_DIR/cgroup.procs"
  exec unshare --cgroup -- bash "${BASH_SOURCE[0]}" inside
fi

# The machine's /etc, but with the node's own units and names: what the machine enables stays off.
own_etc() {
  mkdir -p /run/etc/upper /run/etc/work
  mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
  rm -rf /etc/systemd
  cp --recursive "$NODE_DIR/systemd" /etc/systemd
  echo "$NODE_NAME" >/etc/hostname
  tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
}

own_all
own_etc
rm /dev/console # systemd would write to the machine's; what it does, `systemctl status` tells
# Told that it is in a container, systemd leaves the machine's clock, modules and mounts alone. A
# path where there are no generators: the machine's would make units of what the machine has.
exec env -i container=testbed PATH="$PATH" HOME="$HOME" SYSTEMD_GENERATOR_PATH=/etc/systemd/none \
  /lib/systemd/systemd --unit=node.target
