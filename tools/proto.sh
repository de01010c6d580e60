#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# proto.sh          generates the Python code of the proto files in place, stamped with the licence
# proto.sh --check  fails if what is checked in differs from that
set -eu
cd "$(dirname "$0")/../agent"
venv=$PWD/../.venv/bin
files=$(find devicemount_agent_api devicemount_node_api -name '*.proto' | LC_ALL=C sort)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
PATH=$venv:$PATH "$venv/python" -m grpc_tools.protoc -I. --python_out="$out" --grpc_python_out="$out" \
  --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" $files
find "$out" -name '*.py*' -exec sed -i '1i # SPDX-License-Identifier: Apache-2.0' {} +
case ${1:-} in
--check)
  find "$out" -type f | while read -r file; do
    cmp -s "$file" "${file#"$out"/}" || { echo "agent/${file#"$out"/} is not what the proto files say: make proto" >&2; exit 1; }
  done ;;
*) cp -r "$out"/. . ;;
esac
