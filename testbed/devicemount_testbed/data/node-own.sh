# SPDX-License-Identifier: Apache-2.0
# What a node has of its own, whatever its PID 1 is. Read by node-start.sh and node-systemd.sh,
# which run in namespaces of their own (mount, uts, pid, net).

own_dev() {
  mount -t tmpfs -o mode=755,nosuid tmpfs /dev
  mkdir /dev/pts /dev/shm /dev/mqueue /dev/net
  mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts /dev/pts
  mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
  mount -t mqueue mqueue /dev/mqueue
  ln -s pts/ptmx /dev/ptmx
  ln -s /proc/self/fd /dev/fd
  tar --extract --preserve-permissions --file "$NODE_DIR/devices.tar" --directory /dev
}

own_directories() {
  mount --bind "$NODE_DIR/var" /var
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir /run/lock /run/netns /run/containerd
}

own_cgroups() {
  [ "$NODE_CGROUP" = v2 ] || return 0
  umount -R /sys/fs/cgroup
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
}

own_all() {
  own_dev
  own_directories
  own_cgroups
  hostname "$NODE_NAME"
  mount --make-rshared / # as on a real node: volumes may propagate into containers
  echo 1 >/proc/sys/net/ipv4/ip_forward
}
