#!/bin/bash
# install.sh: the servers and clients that the tests drive, from Debian's archive; installs only what is missing.
# Needs root and apt-get. RUNLEVEL=1 keeps packages from starting their services where there is no systemd.
set -euo pipefail

declare -A package_of=(
  [/usr/lib/dovecot/imap]=dovecot-imapd
  [/usr/bin/mbsync]=isync
  [/usr/bin/mutt]=mutt
  [/usr/bin/curl]=curl
  [/usr/bin/thunderbird]=thunderbird
  [/usr/bin/certutil]=libnss3-tools
  [/usr/bin/script]=bsdutils
)
missing=()
for file in "${!package_of[@]}"; do
  [ -e "$file" ] || missing+=("${package_of[$file]}")
done
# Node may come from elsewhere than Debian.
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)

if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed: ${missing[*]}; installing them takes root and apt-get" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get -qq update
apt-get -qq install -y --no-install-recommends ca-certificates "${missing[@]}" >/dev/null
