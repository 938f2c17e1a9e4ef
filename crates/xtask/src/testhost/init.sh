#!/bin/busybox sh
# PID 1 of the test host: mounts, then the command, then its exit code, then power-off.
b=/bin/busybox

# Second part, in the new root.
if [ "$1" = command ]; then
	echo "testhost: the command starts"
	# A sign of life, written anew every few seconds: without it, the machine hangs, whatever its console says.
	while :; do
		echo alive >/run/testhost/alive
		$b sleep 5
	done &
	# The command's output goes to files of the host's, which loses nothing however slowly it is read.
	/bin/sh /run/testhost/command </dev/null >/run/testhost/stdout 2>/run/testhost/stderr
	echo "$?" >/run/testhost/code
	$b sync
	$b poweroff -f
fi

$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in $($b cat /modules/order); do
	$b insmod "/modules/$module" || echo "testhost: module $module did not load"
done
# This machine's root, and a temporary layer over it.
$b mount -t virtiofs hostroot /host || { echo "testhost: no host root"; $b poweroff -f; }
$b mount -t virtiofs result /result || { echo "testhost: no result folder"; $b poweroff -f; }
$b mount -t tmpfs -o size=75% tmpfs /top
$b mkdir /top/upper /top/work
$b mount -t overlay -o lowerdir=/host,upperdir=/top/upper,workdir=/top/work overlay /new
$b mount -t proc proc /new/proc
$b mount -t sysfs sysfs /new/sys
$b mount --move /dev /new/dev
$b mkdir -p /new/dev/pts /new/dev/shm
$b mount -t devpts -o ptmxmode=666,mode=620,gid=5 devpts /new/dev/pts
$b mount -t tmpfs tmpfs /new/dev/shm
$b ln -sf /proc/self/fd /new/dev/fd
$b ln -sf /proc/self/fd/0 /new/dev/stdin
$b ln -sf /proc/self/fd/1 /new/dev/stdout
$b ln -sf /proc/self/fd/2 /new/dev/stderr
# Temporary files go where an overlay can be made of them, which cannot be on an overlay.
$b mount -t tmpfs -o size=75% tmpfs /new/run
$b mkdir -p -m 1777 /new/run/tmp
# With the options that systemd mounts it with.
$b mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /new/sys/fs/cgroup
$b ip link set lo up
$b mkdir -p /new/run/testhost
$b mount --move /result /new/run/testhost
# The new root becomes the root of the mount namespace. In a mere chroot, a process that enters a mount namespace
# (setns(2)) would find itself here, in the initramfs, and a container runtime's pivot_root would not hold.
$b cp /init /new/run/init
$b umount /sys
cd /new
$b mount --move . /
exec $b chroot . /run/init command
