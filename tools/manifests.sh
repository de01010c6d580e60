#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Renders what a cluster is given by one `kubectl apply -f` or `kubectl create -f`. Tests compare it
# with its sources. Usage: manifests.sh [INSTALL.YAML [MOFFETT-DEVICE-PLUGIN.YAML]]
set -eu
cd "$(dirname "$0")/.."
kubectl=${DEVICEMOUNT_CACHE:-$HOME/.cache/devicemount}/bin/kubectl
{
  echo '# SPDX-License-Identifier: Apache-2.0'
  echo '# Rendered from manifests/overlays/default by `make manifests`: for Kubernetes 1.36 and later.'
  "$kubectl" kustomize manifests/overlays/default
} >"${1:-manifests/install.yaml}"
[ $# -ne 1 ] || exit 0
{
  echo '# SPDX-License-Identifier: Apache-2.0'
  echo '# Rendered from manifests/moffett-device-plugin by `make manifests`.'
  "$kubectl" kustomize manifests/moffett-device-plugin
} >"${2:-manifests/moffett-device-plugin/moffett-device-plugin.yaml}"
