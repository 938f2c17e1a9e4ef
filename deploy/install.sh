#!/bin/sh
# Installs the runtime on a node, or removes it again.
set -eu
# What is installed is for others than root too.
umask 022

usage() {
	cat <<'END'
Usage: deploy/install.sh install|remove [OPTIONS]

  install  copies programs, guest and configuration to this machine
  remove   removes what install copied; a configuration that was changed since stays

Options:
  --prefix DIR  where programs go (DIR/bin) and the guest (DIR/lib/sandbox); default: /usr/local
  --root DIR    the root folder of the machine to install on; default: /
  --from DIR    a checkout in which `cargo xtask build` ran; default: the one that this script is in

Nothing is started, stopped or restarted, and no file of containerd's or CRI-O's own is changed.
END
}

fail() {
	echo "install.sh: $*" >&2
	exit 1
}

from=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
prefix=/usr/local
root=/
action=${1:-}
case $action in
install | remove) shift ;;
-h | --help)
	usage
	exit 0
	;;
*)
	usage >&2
	exit 2
	;;
esac
while [ $# -gt 0 ]; do
	[ $# -gt 1 ] || fail "$1 needs a folder; see --help"
	case $1 in
	--prefix) prefix=$2 ;;
	--root) root=$2 ;;
	--from) from=$2 ;;
	*) fail "unknown option $1; see --help" ;;
	esac
	shift 2
done
case $prefix in
/*) ;;
*) fail "--prefix must be a path from the root folder, not $prefix" ;;
esac
root=${root%/}

# What was installed, a line each: the checksum of a file that may be changed, "-" for another, "dir" for a folder; and the
# path below the root folder. A line is there before its file, so that what was cut short is removed too.
record=$root$prefix/lib/sandbox/installed
sum() {
	sha256sum "$1" | cut -d ' ' -f 1
}

# folder PATH: makes a folder and those above it.
folder() {
	[ ! -d "$root$1" ] || return 0
	folder "$(dirname "$1")"
	mkdir "$root$1"
	made="dir $1
$made"
	[ ! -e "$record" ] || echo "dir $1" >>"$record"
}

# put MODE SOURCE PATH [CHECKSUM]: copies a file, holes as holes; what runs from an old one goes on. Programs go without
# their line tables, which are most of them, where binutils are there.
put() {
	target=$root$3
	folder "$(dirname "$3")"
	echo "${4:--} $3" >>"$record"
	cp --sparse=always "$2" "$target.new"
	[ "$1" != 755 ] || strip --strip-debug "$target.new" 2>/dev/null || true
	chmod "$1" "$target.new"
	mv -f "$target.new" "$target"
}

# offer SOURCE PATH: as put, unless somebody has put or changed it there.
offer() {
	target=$root$2
	if [ -e "$target" ] && ! grep -qsx "$(sum "$target") $2" "$record"; then
		echo "kept as it is: $target"
		return
	fi
	put 644 "$1" "$2" "$(sum "$1")"
}

remove() {
	[ -e "$record" ] || fail "nothing is installed: there is no $record"
	while read -r checksum path; do
		target=$root$path
		[ "$checksum" != dir ] || continue
		rm -f "$target.new"
		[ -e "$target" ] || continue
		if [ "$checksum" != - ] && ! grep -qx "$(sum "$target") $path" "$record"; then
			echo "kept, because it was changed: $target"
			continue
		fi
		rm -f "$target"
	done <"$record"
	folders=$(sed -n 's/^dir //p' "$record" | sort -ru)
	rm -f "$record"
	# The deepest first; what others have put something into stays.
	echo "$folders" | while read -r path; do
		[ -z "$path" ] || rmdir "$root$path" 2>/dev/null || true
	done
}

if [ "$action" = remove ]; then
	remove
	exit 0
fi

programs=$from/target/release
artifacts=$from/target/artifacts
for file in "$programs/containerd-shim-sandbox-v2" "$programs/sandbox-vmm" "$programs/sandboxctl" "$programs/sandbox-bench" \
	"$artifacts/vmlinux" "$artifacts/rootfs.erofs" "$artifacts/virtiofsd" "$artifacts/probe" "$artifacts/scratch.ext4"; do
	[ -e "$file" ] || fail "$file is missing; run \`cargo xtask build\` in $from first"
done
[ -d "$root/" ] || fail "there is no folder $root"
# Folders that are made before there is a record.
made=
folder "$prefix/lib/sandbox"
printf '%s' "$made" >>"$record"
for name in containerd-shim-sandbox-v2 sandbox-vmm sandboxctl; do
	put 755 "$programs/$name" "$prefix/bin/$name"
done
for name in virtiofsd probe; do
	put 755 "$artifacts/$name" "$prefix/lib/sandbox/$name"
done
put 755 "$programs/sandbox-bench" "$prefix/lib/sandbox/bench"
for name in vmlinux rootfs.erofs scratch.ext4; do
	put 644 "$artifacts/$name" "$prefix/lib/sandbox/$name"
done
offer "$from/deploy/config.toml" /etc/sandbox/config.toml
offer "$from/deploy/containerd/sandbox.toml" /etc/containerd/conf.d/sandbox.toml
offer "$from/deploy/crio/50-sandbox.conf" /etc/crio/crio.conf.d/50-sandbox.conf
# Each line once, however often it was installed.
sort -u "$record" >"$record.new"
mv -f "$record.new" "$record"

cat <<END
Installed below $root$prefix. What is left to do:
  containerd: have it read the runtime class, with
                imports = ["/etc/containerd/conf.d/*.toml"]
              in /etc/containerd/config.toml (what to mind: docs/containerd.md), and restart it
  CRI-O:      reads /etc/crio/crio.conf.d by itself; restart it
  a cluster:  kubectl apply -f deploy/kubernetes/runtimeclass.yaml
END
