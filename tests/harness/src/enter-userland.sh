# Makes a newer user land the root of this mount namespace. $1 is its folder; $2 is a folder of the host's that is at the same
# path in it, and so are the rest, read-only. Says "ready", and holds the namespace until its input ends.
set -eu
land=$1
world=$2
shift 2
# Any folder does; nobody else sees what is mounted here.
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$land,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
# What only the host has, such as QEMU, is behind what the user land has.
mount -t overlay -o "lowerdir=$land/usr:/usr" overlay /mnt/root/usr
for path in /proc /sys /dev; do
    mount --rbind "$path" "/mnt/root$path"
done
mount -t tmpfs -o mode=755 tmpfs /mnt/root/run
mount -t tmpfs -o mode=1777 tmpfs /mnt/root/tmp
for path in "$@"; do
    mkdir -p "/mnt/root$path"
    mount -o bind,ro "$path" "/mnt/root$path"
done
mkdir -p "/mnt/root$world"
mount --bind "$world" "/mnt/root$world"
cd /mnt/root
pivot_root . .
umount -l .
echo ready
read -r _ || true
