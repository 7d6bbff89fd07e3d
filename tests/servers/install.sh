#!/bin/bash
# install.sh: the servers and clients that the tests drive, from Debian's archive; installs only what is missing.
# Needs root and apt-get. RUNLEVEL=1 keeps packages from starting their services where there is no systemd.
set -euo pipefail

cyrus=$(realpath "$(dirname "$0")/../..")/.make/cyrus

declare -A package_of=(
  [/usr/lib/dovecot/imap]=dovecot-imapd
  [/usr/lib/cyrus/bin/master]=cyrus-common
  [/usr/sbin/saslpasswd2]=sasl2-bin
  ['/usr/lib/*/sasl2/libplain.so']=libsasl2-modules
  ['/usr/lib/*/sasl2/libkdexoauth2.so']=libsasl2-modules-kdexoauth2
  [/usr/sbin/slapd]=slapd
  [/usr/bin/ldapsearch]=ldap-utils
  [/usr/sbin/nginx]=nginx
  [/usr/lib/nginx/modules/ngx_mail_module.so]=libnginx-mod-mail
  [/usr/bin/mbsync]=isync
  [/usr/bin/offlineimap]=offlineimap3
  [/usr/bin/mutt]=mutt
  [/usr/bin/curl]=curl
  [/usr/bin/thunderbird]=thunderbird
  [/usr/bin/certutil]=libnss3-tools
  [/usr/bin/script]=bsdutils
  [/usr/bin/mount]=mount
  [/usr/bin/unshare]=util-linux
  [/usr/sbin/postmap]=postfix
  [/usr/sbin/nsd]=nsd
  [/usr/sbin/haproxy]=haproxy
  [/usr/sbin/perdition.imap4s]=perdition
  [/usr/bin/promtool]=prometheus
  [/usr/bin/redis-server]=redis-server
  [/usr/bin/chromium]=chromium
  [/usr/lib/nginx/modules/ngx_stream_module.so]=libnginx-mod-stream
)
missing=()
for file in "${!package_of[@]}"; do
  compgen -G "$file" >/dev/null || missing+=("${package_of[$file]}")
done
# Node may come from elsewhere than Debian.
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)

# cyrus-imapd conflicts with dovecot-imapd: its files go into a folder of ours, in the version that cyrus-common has.
cyrus_version() { dpkg-query -W -f '${Version}' cyrus-common 2>/dev/null || true; }
cyrus_unpacked() { [ -e "$cyrus/version" ] && [ "$(<"$cyrus/version")" = "$(cyrus_version)" ]; }
# All in one chain: `set -e` does not count where a caller asks how it went. APT::Sandbox::User: by default another user
# downloads, who may not enter every folder.
unpack_cyrus() (
  rm -rf "$cyrus" "$cyrus.part" && mkdir -p "$cyrus.part" && cd "$cyrus.part" &&
    apt-get -qq -o APT::Sandbox::User=root download "cyrus-imapd=$(cyrus_version)" &&
    dpkg-deb -x cyrus-imapd_*.deb . && rm cyrus-imapd_*.deb &&
    cyrus_version >version && mv "$cyrus.part" "$cyrus"
)

if [ ${#missing[@]} -eq 0 ] && cyrus_unpacked; then
  exit 0
fi
# Unpacking alone takes no root, if what is in the archive is known.
if [ ${#missing[@]} -eq 0 ] && unpack_cyrus 2>/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  cyrus_unpacked || missing+=(cyrus-imapd)
  echo "not installed: ${missing[*]}; installing them takes root and apt-get" >&2
  exit 1
fi
cyrus_unpacked || missing+=(cyrus-common) # its newest version is sure to have its cyrus-imapd in the archive
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get -qq update
apt-get -qq install -y --no-install-recommends ca-certificates "${missing[@]}" >/dev/null
cyrus_unpacked || unpack_cyrus
