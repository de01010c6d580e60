#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of a node. It runs in namespaces of its own (mount, uts, pid, net), makes the node's
# own /var, /run, /dev and /sys/fs/cgroup, and starts containerd, kube-proxy and kubelet.
# It stays PID 1: a kubelet in its place would reap nothing, one zombie shim for each pod.
set -euo pipefail

own_dev() {
  local has_kvm=no
  [ -c /dev/kvm ] && has_kvm=yes
  mount -t tmpfs -o mode=755,nosuid tmpfs /dev
  mkdir /dev/pts /dev/shm /dev/mqueue /dev/net
  mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts /dev/pts
  mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
  mount -t mqueue mqueue /dev/mqueue
  ln -s pts/ptmx /dev/ptmx
  ln -s /proc/self/fd /dev/fd
  local mode name kind major minor
  while read -r mode name kind major minor; do
    mknod -m "$mode" "/dev/$name" "$kind" "$major" "$minor"
  done <<'DEVICES'
666 null c 1 3
666 zero c 1 5
666 full c 1 7
666 random c 1 8
666 urandom c 1 9
644 kmsg c 1 11
666 tty c 5 0
600 console c 5 1
660 loop0 b 7 0
660 loop1 b 7 1
660 loop2 b 7 2
660 loop3 b 7 3
660 loop-control c 10 237
660 vcs c 7 0
660 vcs1 c 7 1
660 vcsu1 c 7 65
660 vcsa1 c 7 129
666 fuse c 10 229
666 net/tun c 10 200
DEVICES
  [ $has_kvm = no ] || mknod -m 660 /dev/kvm c 10 232
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

# What systemd does on a real node: a service that ends is started again.
keep_running() {
  local service=$1
  shift
  while :; do
    "$@" >>"$LOG_DIR/$NODE_NAME-$service.log" 2>&1 </dev/null || :
    sleep 1
  done &
}

await_containerd() {
  local attempt
  for ((attempt = 0; attempt < 300; attempt++)); do
    ctr version >/dev/null 2>&1 && return 0
    sleep 0.1
  done
  echo "containerd does not answer, see $LOG_DIR/$NODE_NAME-containerd.log" >&2
  return 1
}

own_dev
own_directories
own_cgroups
hostname "$NODE_NAME"
mount --make-rshared / # as on a real node: volumes may propagate into containers
echo 1 >/proc/sys/net/ipv4/ip_forward

keep_running containerd containerd --config "$NODE_DIR/containerd.toml"
await_containerd
keep_running kube-proxy kube-proxy --config "$NODE_DIR/kube-proxy.yaml"
keep_running kubelet kubelet --config "$NODE_DIR/kubelet.yaml" --root-dir "$KUBELET_ROOT" \
  --kubeconfig "$KUBELET_KUBECONFIG" --hostname-override "$NODE_NAME" \
  --node-ip "$NODE_ADDRESS" --v 2
wait
