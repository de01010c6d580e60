#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fails, naming them, on source files whose first five lines lack the licence.
set -eu
cd "$(dirname "$0")/.."
missing=$(git ls-files --cached --others --exclude-standard -- \
  '*.py' '*.pyi' '*.sh' '*.c' '*.go' '*.proto' '*.toml' '*.yaml' '*.yml' 'Makefile' 'Dockerfile.*' '.ci/run' |
  while read -r file; do
    [ -f "$file" ] || continue
    head -n 5 "$file" | grep -q 'SPDX-License-Identifier: ' || echo "$file"
  done)
[ -z "$missing" ] && exit 0
echo "these files lack the line 'SPDX-License-Identifier: Apache-2.0':" >&2
echo "$missing" >&2
exit 1
