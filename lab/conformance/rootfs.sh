#!/bin/bash
# rootfs.sh DIR: a root file system for the suite's images out of Debian packages. None of
# them is installed on this machine: apt-get downloads them with what they depend on, and
# they are unpacked.
set -euo pipefail
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages="busybox-static bash curl bind9-dnsutils netcat-openbsd iproute2 iperf socat
  util-linux conntrack iptables nftables nginx-light libc-bin base-files tcpdump wget procps"
[ -n "$(ls /var/lib/apt/lists/*Packages* 2>/dev/null)" ] || apt-get -q update
# An empty dpkg status: apt resolves everything that the packages need, this machine's own included.
: > "$work/status"
mkdir -p "$work/archives/partial"
# shellcheck disable=SC2086
fetch() { apt-get -q -y --no-install-recommends --download-only \
  -o Dir::State::status="$work/status" -o Dir::Cache::archives="$work/archives" \
  -o Debug::NoLocking=1 install $packages; }
fetch > "$work/log" 2>&1 || { apt-get -q update && fetch > "$work/log" 2>&1; } || { cat "$work/log" >&2; exit 1; }
rm -rf "$out"; mkdir -p "$out/usr/bin" "$out/usr/sbin" "$out/usr/lib" "$out/usr/lib64"
ln -s usr/bin "$out/bin"; ln -s usr/sbin "$out/sbin"; ln -s usr/lib "$out/lib"; ln -s usr/lib64 "$out/lib64"
for deb in "$work"/archives/*.deb; do
  dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$out"
done
ls "$work"/archives/*.deb | xargs -n1 basename > "$out/packages.txt"
rm -rf "$out"/usr/share/{doc,man,info,locale,lintian,bash-completion,perl,perl5} "$out"/usr/lib/x86_64-linux-gnu/perl* \
  "$out"/usr/lib/{systemd,udev} "$out"/var/lib/apt "$out"/usr/lib/x86_64-linux-gnu/gconv
# What no package has is busybox, as in Alpine, which agnhost is made of. sh is bash, as
# busybox's shell runs its own ip and the like instead of the real ones.
chroot "$out" /usr/bin/busybox --list | while read -r applet; do
  [ -e "$out/usr/bin/$applet" ] || [ -L "$out/usr/bin/$applet" ] || [ -e "$out/usr/sbin/$applet" ] || ln -s busybox "$out/usr/bin/$applet"
done
ln -sf bash "$out/usr/bin/sh"
ln -sf nc.openbsd "$out/usr/bin/nc"
for t in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do ln -sf xtables-nft-multi "$out/usr/sbin/$t"; done
# GNU wget, as wget -T of Debian's static busybox crashes. Like that of busybox it tries once.
printf 'tries = 1\n' > "$out/etc/wgetrc"
mkdir -p "$out"/{root,tmp,proc,sys,dev,run,uploads,usr/local/bin,var/log/nginx,var/lib/nginx}
ln -sf /usr/bin/iperf "$out/usr/local/bin/iperf"
chmod 1777 "$out/tmp"
cat > "$out/etc/passwd" <<P
root:x:0:0:root:/root:/bin/bash
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
user-defined-in-image:x:1000:1000::/:/bin/sh
P
printf 'root:x:0:\nadm:x:4:\nwww-data:x:33:\nnogroup:x:65534:\ngroup-defined-in-image:x:50000:user-defined-in-image\n' > "$out/etc/group"
printf 'passwd: files\ngroup: files\nhosts: files dns\n' > "$out/etc/nsswitch.conf"
printf 'daemon off;\nevents {}\nhttp { server { listen 80 default_server; listen [::]:80 default_server; root /var/www/html; } }\n' > "$out/etc/nginx/nginx.conf"
mkdir -p "$out/var/www/html"; echo nginx > "$out/var/www/html/index.html"
