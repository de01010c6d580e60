#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of a node. It runs in namespaces of its own (mount, uts, pid, net), makes the node's
# own /var, /run, /dev and /sys/fs/cgroup, and starts containerd, kube-proxy and kubelet.
# It stays PID 1: a kubelet in its place would reap nothing, one zombie shim for each pod.
set -euo pipefail

source "${BASH_SOURCE[0]%/*}/node-own.sh"

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

own_all
keep_running containerd containerd --config "$NODE_DIR/containerd.toml"
await_containerd
keep_running kube-proxy kube-proxy --config "$NODE_DIR/kube-proxy.yaml"
keep_running kubelet kubelet --config "$NODE_DIR/kubelet.yaml" --root-dir "$KUBELET_ROOT" \
  --kubeconfig "$KUBELET_KUBECONFIG" --hostname-override "$NODE_NAME" \
  --node-ip "$NODE_ADDRESS" --v 2
wait
