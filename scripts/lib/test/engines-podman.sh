# In the test machine: podman and buildah with gpucell; sourced by engines-guest.sh. MANAGER is podman's cgroup
# manager, or `rootless`: podman of the user tester, whose manager is systemd.

p() {
  case $MANAGER in
  rootless) as_tester podman --runtime $GPUCELL "$@" ;;
  *) podman --runtime $GPUCELL --cgroup-manager "$MANAGER" "$@" ;;
  esac
}

# as_tester COMMAND...: by the user with a session of its own (loginctl's linger).
as_tester() {
  (cd /home/tester && exec runuser -u tester -- env -i HOME=/home/tester XDG_RUNTIME_DIR=/run/user/1000 PATH="$PATH" \
    TERM=xterm DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus "$@")
}

podman_image() { p image exists base || p import -q $WORK/base.tar base; }

podman_run() {
  podman_image
  is hello p run --rm base echo hello
  ends 7 '' p run --rm base sh -c 'exit 7'
  ends 127 'executable file .* not found\|no such file' p run --rm base nothing
  ends 126 'ermission denied' p run --rm base /etc/passwd
  is 'mail 8 /tmp cell1 value' p run --rm -u mail -w /tmp -h cell1 -e K=value base sh -c 'echo $(id -un) $(id -u) $PWD $(hostname) $K'
  ends 0 'inet 10\.88' p run --rm base ip -4 addr show eth0
  ends 0 'catatonit\|podman-init' p run --rm --init base cat /proc/1/comm
  ends 1 'ead-only file system' p run --rm --read-only --read-only-tmpfs=false base touch /x
  is 0000000000000000 p run --rm --cap-drop ALL base sed -n 's/^CapEff:.//p' /proc/self/status
}

podman_terminal() {
  is $'/dev/pts/0\n40 120' terminal podman --runtime $GPUCELL --cgroup-manager "$MANAGER" run --rm -it base sh -c 'tty; sleep 1; stty size'
}

podman_exec() {
  p run -d --name ex -e A=a base sleep 1000
  is 'hi 0 a' p exec ex sh -c 'echo hi $(id -u) $A'
  is '1 8 x /tmp' p exec -u 1:8 -e A=x -w /tmp ex sh -c 'echo $(id -u) $(id -g) $A $PWD'
  ends 9 '' p exec ex sh -c 'exit 9'
  ends 127 'executable file .* not found' p exec ex nothing
  ends 126 'ermission denied' p exec ex /etc/passwd
  p exec -d ex touch /made
  until_ 20 p exec ex test -e /made
  is through p exec -i ex cat <<<through
  ends 0 'sleep 1000' p top ex args
  p rm -f -t 0 ex
}

# counted NAME: what the container made by podman_counter has counted to.
counted() { p exec "$1" cat /n; }

# beyond NAME NUMBER: it counts further than that.
beyond() { local n; n=$(counted "$1") && [ "$n" -gt "$2" ]; }

# A container goes on where it was: under its name, and under another from a file. Both times with its limits, its
# volume and its network.
podman_checkpoint() {
  local n see='cat /seen/file /sys/fs/cgroup/memory.max'
  podman_image
  mkdir -p $WORK/seen
  echo seen > $WORK/seen/file
  p run -d --name ck --memory 64m -v $WORK/seen:/seen:ro base \
    sh -c 'n=0; while :; do n=$((n+1)); echo $n > /n.new; mv /n.new /n; sleep 0.1; done'
  until_ 60 beyond ck 10
  n=$(counted ck)
  p container checkpoint ck
  is exited p inspect -f '{{.State.Status}}' ck
  none groups_of "$(p inspect -f '{{.Id}}' ck)"
  p container restore ck
  is running p inspect -f '{{.State.Status}}' ck
  until_ 20 beyond ck "$n"
  is $'seen\n67108864' p exec ck sh -c "$see"
  ends 0 'inet 10\.88' p exec ck ip -4 addr show eth0
  n=$(counted ck)
  p container checkpoint --export $WORK/ck.tar --leave-running ck
  until_ 20 beyond ck "$n"
  p rm -f -t 0 ck
  p container restore --import $WORK/ck.tar --name ck2
  until_ 20 beyond ck2 "$n"
  is $'seen\n67108864' p exec ck2 sh -c "$see"
  p rm -f -t 0 ck2
  rm $WORK/ck.tar
}

podman_limits() {
  local see='cd /sys/fs/cgroup; echo $(cat memory.max memory.swap.max cpu.max pids.max cpuset.cpus)'
  p run -d --name li --memory 64m --memory-swap 96m --cpus 0.5 --pids-limit 50 --cpuset-cpus 0 base sleep 1000
  is '67108864 33554432 50000 100000 50 0' p exec li sh -c "$see"
  p update --memory 96m --memory-swap 96m --cpus 1.5 --cpuset-cpus 0-1 li
  is '100663296 0 150000 100000 50 0-1' p exec li sh -c "$see"
  systemctl daemon-reload
  is '100663296 0 150000 100000 50 0-1' p exec li sh -c "$see"
  ends 0 '/ 100.7MB' p stats --no-stream --format '{{.MemUsage}}' li
  p rm -f -t 0 li
  ends 137 '' p run --name li --memory 64m --memory-swap 64m base /opt/conda/bin/python -c 'b = bytearray(200 << 20)'
  is 'true 137' p inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' li
  p rm li
}

podman_pause() {
  p run -d --name pa base sleep 1000
  p pause pa
  is paused p inspect -f '{{.State.Status}}' pa
  p unpause pa
  p exec pa true
  p pause pa
  p rm -f -t 0 pa
}

podman_stop() {
  p run -d --name st base sh -c 'trap "exit 3" TERM; echo ready; while :; do sleep 0.1; done'
  until_ 20 says ready p logs st
  p stop -t 60 st
  is '3 exited' p inspect -f '{{.State.ExitCode}} {{.State.Status}}' st
  p start st
  p kill st
  is 137 p wait st
  p rm st
}

podman_pod() {
  p pod create --name pod --share net,ipc,uts --infra-image base --infra-command 'sleep 1000' >/dev/null
  p run -d --pod pod --name a base sleep 1000
  p run -d --pod pod --name b base sleep 1000
  is "$(p exec a sh -c 'echo $(hostname; readlink /proc/self/ns/net)')" p exec b sh -c 'echo $(hostname; readlink /proc/self/ns/net)'
  p pod pause pod
  p pod unpause pod
  p pod rm -f -t 0 pod
}

podman_play() {
  cat > $WORK/pod.yaml <<'Y'
apiVersion: v1
kind: Pod
metadata: { name: play }
spec:
  containers:
  - name: one
    image: localhost/base:latest
    command: [ sleep, "1000" ]
    resources: { limits: { memory: 64Mi, cpu: 500m } }
    securityContext: { readOnlyRootFilesystem: true, capabilities: { drop: [ ALL ] } }
Y
  p tag base localhost/base:latest
  # Without it, podman would build its pause image.
  p kube play --no-hosts $WORK/pod.yaml
  is '67108864 50000 100000' p exec play-one sh -c 'echo $(cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max)'
  ends 1 'ead-only file system' p exec play-one touch /x
  p kube down --force $WORK/pod.yaml
}

podman_health() {
  p run -d --name he --health-cmd 'test -e /ok' --health-interval disable --health-retries 1 base sleep 1000
  ends 1 '' p healthcheck run he
  p exec he touch /ok
  p healthcheck run he
  p rm -f -t 0 he
}

podman_crash() {
  local pid
  p run -d --name cr base sleep 3000
  kill -9 "$(p inspect -f '{{.State.ConmonPid}}' cr)"
  # The first call kills it, and complains that nobody is there to tell the exit code (under crun too).
  p rm -f -t 0 cr || p rm -f -t 0 cr
  until_ 30 sh -c '! pgrep -f "[s]leep 3000"'
  p run -d --name cr base sleep 3000
  pid=$(p inspect -f '{{.State.Pid}}' cr)
  kill -9 "$pid"
  is 137 p wait cr
  p start cr
  p exec cr true
  p rm -f -t 0 cr
}

rootless_run() {
  loginctl enable-linger tester
  chmod 755 $WORK
  until_ 60 test -S /run/user/1000/bus
  podman_image
  is 'root 0' p run --rm base sh -c 'echo $(id -un) $(id -u)'
  is '0 1000 1 1 100000 65536' p run --rm base sh -c 'echo $(cat /proc/self/uid_map)'
  ends 7 '' p run --rm base sh -c 'exit 7'
  ends 127 'executable file .* not found\|no such file' p run --rm base nothing
  # A network of its own (pasta), the host's, none.
  is lo p run --rm --network none base ls /sys/class/net
  is "$(readlink /proc/1/ns/net)" p run --rm --network host base readlink /proc/self/ns/net
  mkdir -p /home/tester/shared
  chown tester: /home/tester/shared
  p run --rm -v /home/tester/shared:/v base touch /v/made
  is tester stat -c %U /home/tester/shared/made
}

rootless_keep_id() {
  is '1000 1000 tester' p run --rm --userns keep-id base sh -c 'echo $(id -u) $(id -g) $(id -un)'
  p run --rm --userns keep-id -v /home/tester/shared:/v base touch /v/kept
  is tester stat -c %U /home/tester/shared/kept
  is 33 p run --rm --userns keep-id:uid=33,gid=33 base id -u
  p run -d --name kid --userns keep-id base sleep 1000
  is 1000 p exec kid id -u
  is 0 p exec -u root kid id -u
  p rm -f -t 0 kid
}

# What systemd hands to a user: no cpuset (user@.service's Delegate=).
rootless_limits() {
  local see='cd /sys/fs/cgroup; echo $(cat memory.max memory.swap.max cpu.max pids.max)'
  p run -d --name li --memory 64m --memory-swap 96m --cpus 0.5 --pids-limit 50 base sleep 1000
  is '67108864 33554432 50000 100000 50' p exec li sh -c "$see"
  p update --memory 96m --memory-swap 96m --cpus 1.5 li
  is '100663296 0 150000 100000 50' p exec li sh -c "$see"
  as_tester systemctl --user daemon-reload
  is '100663296 0 150000 100000 50' p exec li sh -c "$see"
  ends 0 '/ 100.7MB' p stats --no-stream --format '{{.MemUsage}}' li
  p rm -f -t 0 li
  ends 137 '' p run --name li --memory 64m --memory-swap 64m base /opt/conda/bin/python -c 'b = bytearray(200 << 20)'
  p rm li
  ends 126 'cpuset' p run --rm --cpuset-cpus 0 base true
}

podman_nothing_left() {
  local dir=/run/gpucell
  [ "$MANAGER" != rootless ] || dir=/run/user/1000/gpucell
  none p ps -aq
  none states $dir
  none groups_of libpod-
  none sh -c 'pgrep -a "^(gpucell|conmon)"'
  none sh -c 'grep -o "/var/lib/containers/[^ ]*/merged" /proc/self/mountinfo'
}

buildah_bud() {
  MANAGER=cgroupfs
  dockerfile
  buildah bud -q --runtime $GPUCELL --isolation oci -t bud $WORK/build
  is "$BUILT" p run --rm bud
  podman rmi -f bud
}
