#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# crun.sh DIRECTORY: crun of Debian's unstable release with all that it needs, in DIRECTORY/root.
# apt works in DIRECTORY, with the mirror, the proxies and the keys that the machine is set up
# with: the machine's own packages and lists are not touched.
set -euo pipefail
directory=$1
keys=/usr/share/keyrings/debian-archive-keyring.gpg

sites=$(apt-get indextargets --format '$(SITE)' 'Identifier: Packages')
mirror=$(grep --max-count=1 '/debian/*$' <<<"$sites")
mkdir -p "$directory"/{root,state/lists/partial,cache/archives/partial}
: >"$directory/status" # nothing is installed: every dependency is fetched
echo "deb [signed-by=$keys] $mirror sid main" >"$directory/sources.list"

# How old the release is does not matter, and a mirror may be a snapshot; its signature is checked.
options=(
  -q
  -o "Dir::Etc::sourcelist=$directory/sources.list"
  -o "Dir::Etc::sourceparts=-"
  -o "Dir::State=$directory/state"
  -o "Dir::State::status=$directory/status"
  -o "Dir::Cache=$directory/cache"
  -o "APT::Sandbox::User=root"
  -o "Acquire::Languages=none"
  -o "Acquire::Check-Valid-Until=false"
)
apt-get "${options[@]}" update
apt-get "${options[@]}" -y --no-install-recommends --download-only install crun
for package in "$directory"/cache/archives/*.deb; do
  dpkg-deb --extract "$package" "$directory/root"
done
rm -rf "$directory"/{state,cache,status,sources.list}
