# In the test machine: GPUs through Docker, podman and containerd, on a driver that isn't there.
# Sourced for each check by gpu-vm.sh.
#
# Nodes of a GPU that isn't there still tell who may open them: ENXIO comes from behind the device
# filter, EPERM from the filter itself. GPU 0 has the minor number 1, and GPU 1 has 0.
set -euo pipefail

FAKE=/opt/nvidia-fake
ASKED=/run/gpu # a folder for each container: what it saw at first, and after the changes
LIB=/usr/lib/x86_64-linux-gnu

# ------------------------------------------------------------------ the machine
# prepare: the driver, the image, and containerd's and podman's copies of it.
prepare() {
  fake-driver "$FAKE" 2
  mkdir -p /etc/gpucell /etc/cdi "$ASKED"
  ln -s "$FAKE/config.toml" /etc/gpucell/config.toml
  image /run/image
  tar -C /run/image -cf /run/image.tar .
  podman --runtime /usr/local/bin/gpucell import -q /run/image.tar gpu
  # dockerd looks for it when it starts, and offers --gpus only then.
  ln -s gpucell /usr/local/bin/nvidia-container-runtime-hook
  docker_with false
  docker import /run/image.tar gpu
  docker save gpu -o /run/docker.tar
  ctr image import /run/docker.tar
}

# docker_with CDI: dockerd with the runtime, and with its own CDI or without.
docker_with() {
  cat >/etc/docker/daemon.json <<J
{ "exec-opts": ["native.cgroupdriver=cgroupfs"], "storage-driver": "overlay2", "bridge": "none", "iptables": false,
  "features": { "cdi": $1 }, "runtimes": { "gpucell": { "path": "/usr/local/bin/gpucell" } } }
J
  systemctl restart docker
}

# image DIR: a small Debian: its loader, C library, ldconfig and dash, and busybox.
image() {
  local r=$1 f
  mkdir -p "$r"/{dev,etc,proc,sys,t,tmp,usr/bin,usr/sbin,usr/lib64,"${LIB#/}"}
  for f in bin sbin lib lib64; do ln -s "usr/$f" "$r/$f"; done
  for f in sh cat cut find grep ln ls md5sum mknod mv readlink rm sed sort stat; do ln -s busybox "$r/bin/$f"; done
  cp /bin/busybox /bin/dash "$r/bin"
  cp -L /lib64/ld-linux-x86-64.so.2 "$r/lib64"
  cp -L "$LIB/libc.so.6" "$r/$LIB"
  cp /usr/sbin/ldconfig "$r/sbin"
  cp -a /etc/debian_version /etc/ld.so.conf "$r/etc"
  echo root:x:0:0::/:/bin/sh >"$r/etc/passwd"
  ldconfig -r "$r"
  cat >"$r/look" <<'P'
#!/bin/sh
# Which numbers may be opened, through nodes of its own; which nodes there are, and whether they open;
# where the loader finds libcuda, by its cache. Once, and again when it is told.
try() {
  case $( (: <"$1") 2>&1) in
  *'No such device or address') echo "$2 open" ;;
  *'Operation not permitted') echo "$2 denied" ;;
  *) echo "$2 $( (: <"$1") 2>&1)" ;;
  esac
}
look() {
  for n in 195:0 195:1 195:2 195:254 195:255 226:1 226:2 226:128 226:129 511:0 511:1; do
    mknod /tmp/n c "${n%:*}" "${n#*:}" 2>&1
    try /tmp/n "$n"
    rm /tmp/n
  done
  for f in $(find /dev -name 'nvidia*' -o -path '/dev/dri/*' -type c | sort); do try "$f" "$f"; done
  LD_TRACE_LOADED_OBJECTS=1 LD_PRELOAD=libcuda.so.1 /bin/dash 2>&1 | sed -n 's/^[[:space:]]*\(libcuda.*\) (.*/loader \1/p'
  ldconfig -p | sed -n 's/^[[:space:]]*libcuda.so.1 (libc6,x86-64) => /cache /p'
  echo "file $(readlink -f /usr/lib/x86_64-linux-gnu/libcuda.so.1) $(ls /usr/bin/nvidia-smi)"
  [ ! -e /sys/fs/cgroup/cpu.max ] || echo "cpu $(cat /sys/fs/cgroup/cpu.max)"
}
look >/t/part && mv /t/part /t/first
read -r _ </t/go
look >/t/part && mv /t/part /t/second
P
  cat >"$r/all" <<'P'
#!/bin/sh
# Everything in the cell's tree but the link /dev/core, which crun alone makes, and what is mounted from the driver.
find / \( -path /proc -o -path /sys -o -path /dev/pts -o -path /run/.containerenv -o -path /dev/core \) -prune -o -print | sort |
  while read -r f; do
    stat -c '%N %A %u:%g %t:%T' "$f"
    # The real driver's large libraries tell themselves by their mounts.
    if [ -f "$f" ] && [ ! -L "$f" ] && [ $(stat -c %s "$f") -lt 4000000 ]; then md5sum "$f"; fi
  done
sed -n 's|^[0-9]* [0-9]* [0-9:]* \([^ ]*/nvidia-[fd][^ ]*\) \([^ ]*\) \([^ ]*\).*|mount \1 \2 \3|p' /proc/self/mountinfo | sort
P
  chmod 755 "$r"/{look,all}
}

# ------------------------------------------------------------------ containers
podman_() { podman --cgroup-manager cgroupfs --runtime /usr/local/bin/gpucell "$@"; }

# begin ENGINE NAME [ARG...]: starts a container that looks, and waits for what it saw.
begin() {
  local engine=$1 name=$2 dir=$ASKED/$2
  shift 2
  mkdir -p "$dir"
  mkfifo "$dir/go"
  case $engine in
  docker) docker run -d --name "$name" --network none --runtime gpucell -v "$dir:/t" "$@" gpu /look ;;
  # podman's containers can't make nodes by themselves.
  podman) podman_ run -d --name "$name" --network none --cap-add MKNOD -v "$dir:/t" "$@" gpu /look ;;
  ctr) ctr run -d --null-io --runc-binary /usr/local/bin/gpucell --mount "type=bind,src=$dir,dst=/t,options=rbind:rw" "$@" \
    docker.io/library/gpu:latest "$name" /look ;;
  esac
  await "$dir/first" || { logs "$engine" "$name"; return 1; }
}
await() {
  local n
  for n in $(seq 300); do if [ -e "$1" ]; then return; fi; sleep 0.1; done
  echo "$1 did not come in 30 s"
  return 1
}
logs() { case $1 in docker) docker logs "$2" ;; podman) podman_ logs "$2" ;; esac; }
# states N: that many cells of Docker's have a state.
states() { [ "$(find /run/docker -name state.json | wc -l)" = "$1" ]; }
# again NAME: lets it look once more.
again() { echo >"$ASKED/$1/go"; await "$ASKED/$1/second"; }

# saw NAME WHEN CPU KIND MINOR...: what it must have seen. CPU is its cpu.max, - when it sees none; KIND is `default` (utility and compute) or `all`
# capabilities; then the minor numbers of its GPUs.
saw() {
  local name=$1 when=$2 cpu=$3 kind=$4 n index
  shift 4
  local open=" 195:255 511:0 511:1 " nodes="nvidiactl nvidia-uvm nvidia-uvm-tools"
  [ "$kind" = default ] || { open+="195:254 "; nodes+=" nvidia-modeset"; }
  for n in "$@"; do
    open+="195:$n "; nodes+=" nvidia$n"
    index=$((1 - n))
    [ "$kind" = default ] || { open+="226:$((index + 1)) 226:$((index + 128)) "; nodes+=" dri/card$((index + 1)) dri/renderD$((index + 128))"; }
  done
  {
    for n in 195:0 195:1 195:2 195:254 195:255 226:1 226:2 226:128 226:129 511:0 511:1; do
      case $open in *" $n "*) echo "$n open" ;; *) echo "$n denied" ;; esac
    done
    printf '/dev/%s open\n' $nodes | LC_ALL=C sort
    echo "loader libcuda.so.1 => $LIB/libcuda.so.1"
    echo "cache $LIB/libcuda.so.1"
    echo "file $LIB/libcuda.so.550.163.01 /usr/bin/nvidia-smi"
    [ "$cpu" = - ] || echo "cpu $cpu"
  } | diff -u --label "$name, wanted" --label "$name, seen $when" - "$ASKED/$name/$when"
}

# ------------------------------------------------------------------ another runtime
# same_as_crun NAME LIBRARY: a container that podman's own CDI and crun make of our CDI file has the same in
# it, to the last byte, as one that gpucell makes; LIBRARY, the host's path, is mounted in it. crun runs the
# hooks: gpucell under their name.
same_as_crun() {
  local runtime
  ln -sf /usr/local/bin/gpucell /usr/bin/nvidia-cdi-hook
  for runtime in crun /usr/local/bin/gpucell; do
    podman --cgroup-manager cgroupfs --runtime "$runtime" run --rm --name same --network none --hostname gpu --device "nvidia.com/gpu=$1" \
      gpu /all >"$ASKED/${runtime##*/}-$1"
  done
  rm /usr/bin/nvidia-cdi-hook
  grep -q '/libcuda.so.1' "$ASKED/crun-$1"
  grep -q "^mount $2 " "$ASKED/crun-$1"
  diff -u "$ASKED/crun-$1" "$ASKED/gpucell-$1"
}

# debian_driver DIR VERSION: from here on the driver is NVIDIA's user space of that version, in DIR; GPUs and nodes stay.
debian_driver() {
  sed -i "s/550\.163\.01/$2/" "$FAKE/proc/driver/nvidia/version"
  sed "s|^driver-root = .*|driver-root = \"$1\"|" "$FAKE/config.toml" >/etc/gpucell/debian.toml
  ln -sf debian.toml /etc/gpucell/config.toml
  gpucell cdi generate --output /etc/cdi/nvidia.yaml
}
