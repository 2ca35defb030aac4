# In the test machine: Docker with gpucell; sourced by engines-guest.sh. What `docker_with` settles is kept
# in files for the checks after it, each of which is a process of its own.

# d COMMAND ARG...: docker's run and create, with the runtime where it isn't what dockerd takes by itself.
d() { local c=$1; shift; docker "$c" $(cat $WORK/docker-flag) "$@"; }

# docker_with named|default systemd|cgroupfs [JSON]: dockerd with gpucell, by name or as what it takes by itself.
docker_with() {
  local default=runc flag="--runtime gpucell"
  [ "$1" = named ] || default=gpucell flag=
  mkdir -p $WORK
  echo "$flag" > $WORK/docker-flag
  echo "$2" > $WORK/docker-driver
  cat > /etc/docker/daemon.json <<J
{ "exec-opts": ["native.cgroupdriver=$2"], "storage-driver": "overlay2", "default-runtime": "$default",
  "runtimes": { "gpucell": { "path": "$GPUCELL" } }${3:+, $3} }
J
  # What `docker build` calls is not dockerd's default runtime.
  systemctl set-environment DOCKER_BUILDKIT_RUNC_COMMAND=$GPUCELL
  systemctl reset-failed docker
  systemctl restart docker
  is "$default $2" docker info -f '{{.DefaultRuntime}} {{.CgroupDriver}}'
  docker image inspect base >/dev/null 2>&1 || docker import $WORK/base.tar base
  # It is gpucell that runs there: the state is one of ours.
  d run -d --name who base sleep 1000
  [ "$(states /run/docker | wc -l)" = 1 ]
  docker rm -f who
  [ "$(states /run/docker | wc -l)" = 0 ]
}

docker_run() {
  is hello d run --rm base echo hello
  ends 7 '' d run --rm base sh -c 'exit 7'
  ends 127 'executable file not found in \$PATH' d run --rm base nothing
  ends 127 'no such file or directory' d run --rm base /nothing
  ends 126 'permission denied' d run --rm base /etc/passwd
  is 'mail 8 /srv cell1 value' d run --rm -u mail -w /srv -h cell1 -e K=value base sh -c 'echo $(id -un) $(id -u) $PWD $(hostname) $K'
  is 'docker-init inet 172.17 10.0.2.3' d run --rm --init --dns 10.0.2.3 base sh -c \
    'echo $(cat /proc/1/comm) $(ip -4 addr show eth0 | grep -o "inet 172\.17") $(sed -n "s/^nameserver //p" /etc/resolv.conf)'
  is through sh -c "echo through | docker run $(cat $WORK/docker-flag) --rm -i base cat"
}

docker_terminal() {
  is $'/dev/pts/0\n40 120' terminal docker run $(cat $WORK/docker-flag) --rm -it base sh -c 'tty; stty size'
  d run -d --name term base sleep 1000
  is $'/dev/pts/0\n40 120' terminal docker exec -it term sh -c 'tty; stty size'
  docker rm -f term
  # A terminal that is attached to later: what is typed gets there.
  d run -dit --name term --stop-signal INT base sh -c 'read -r line; echo "typed $line"; sleep 0.5'
  (sleep 2; echo words) | script -qefc 'docker attach term' /dev/null | tr -d '\r' | grep -x 'typed words'
  docker rm -f term
}

docker_exec() {
  d run -d --name ex -e A=a base sleep 1000
  is 'hi 0 a' docker exec ex sh -c 'echo hi $(id -u) $A'
  is '1 8 x /tmp' docker exec -u 1:8 -e A=x -w /tmp ex sh -c 'echo $(id -u) $(id -g) $A $PWD'
  is '8 mail video' docker exec -u mail ex sh -c 'echo $(id -u) $(id -Gn)'
  ends 9 '' docker exec ex sh -c 'exit 9'
  ends 126 'executable file not found in \$PATH' docker exec ex nothing
  ends 126 'permission denied' docker exec ex /etc/passwd
  docker exec -d ex touch /made
  until_ 20 docker exec ex test -e /made
  is through sh -c 'echo through | docker exec -i ex cat'
  is '0::/ 0000000000000000' docker exec ex sh -c 'echo $(cat /proc/self/cgroup) $(sed -n "s/^CapInh:.//p" /proc/self/status)'
  is "$(sed -n 's/^CapBnd:.//p' /proc/self/status)" docker exec --privileged ex sed -n 's/^CapEff:.//p' /proc/self/status
  is 'sleep 1000' sh -c 'docker top ex -eo pid,args | sed -n "2s/^[0-9 ]*//p"'
  docker rm -f ex
}

docker_logs() {
  d run --name log base sh -c 'seq 20000; echo wrong >&2' >/dev/null 2>&1
  is "$(seq 20000 | md5sum)" sh -c 'docker logs log 2>/dev/null | md5sum'
  is wrong sh -c 'docker logs log 2>&1 >/dev/null'
  docker rm log
}

docker_stop() {
  local ends_itself='trap "exit 3" TERM; trap "echo usr1" USR1; echo ready; while :; do sleep 0.1; done'
  d run -d --name st base sh -c "$ends_itself"
  until_ 20 sh -c 'docker logs st | grep ready'
  docker kill -s USR1 st
  until_ 20 sh -c 'docker logs st | grep usr1'
  docker stop -t 60 st
  is '3 exited' docker inspect -f '{{.State.ExitCode}} {{.State.Status}}' st
  docker start st
  docker kill st
  is 137 docker wait st
  docker rm st
  # The first process of a pid namespace takes no signal that it doesn't handle.
  d run -d --name st base sleep 1000
  docker stop -t 1 st
  is 137 docker inspect -f '{{.State.ExitCode}}' st
  docker rm st
}

docker_restart() {
  local pid
  d run -d --name re --restart on-failure:2 base sh -c 'exit 5'
  until_ 60 sh -c 'docker inspect -f "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}" re | grep "2 exited 5"'
  docker rm re
  d run -d --name re --restart always base sleep 1000
  pid=$(docker inspect -f '{{.State.Pid}}' re)
  kill -9 "$pid"
  until_ 60 sh -c 'docker inspect -f "{{.RestartCount}} {{.State.Status}}" re | grep "1 running"'
  docker restart -t 0 re
  is running docker inspect -f '{{.State.Status}}' re
  # Containers outlive containerd, and dockerd starts this one again.
  systemctl restart containerd
  systemctl reset-failed docker
  systemctl restart docker
  until_ 60 docker exec re true
  docker rm -f re
}

docker_limits() {
  local see='cd /sys/fs/cgroup; echo $(cat memory.max memory.swap.max memory.low cpu.max cpu.weight pids.max cpuset.cpus)'
  d run -d --name li --memory 64m --memory-swap 96m --memory-reservation 32m --cpus 0.5 --cpu-shares 512 --pids-limit 50 \
    --cpuset-cpus 0 base sleep 1000
  is '67108864 33554432 33554432 50000 100000 59 50 0' docker exec li sh -c "$see"
  docker update --memory 96m --memory-swap 96m --cpus 1.5 --pids-limit 20 --cpuset-cpus 0-1 li
  is '100663296 0 33554432 150000 100000 59 20 0-1' docker exec li sh -c "$see"
  # systemd writes its own idea of them anew.
  systemctl daemon-reload
  is '100663296 0 33554432 150000 100000 59 20 0-1' docker exec li sh -c "$see"
  ends 2 'esource temporarily unavailable\|an.t fork' docker exec li sh -c 'for i in $(seq 30); do sleep 5 & done'
  ends 0 '/ 96MiB' docker stats --no-stream --format '{{.MemUsage}}' li
  docker rm -f li
  # containerd's shim may hear of the exit before it hears of the kill, under any runtime: then once more.
  for _ in 1 2 3; do
    ends 137 '' d run --name li --memory 64m --memory-swap 64m base /opt/conda/bin/python -c 'b = bytearray(200 << 20)'
    see=$(docker inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' li)
    docker rm li
    [ "$see" != 'true 137' ] || break
  done
  is 'true 137' echo "$see"
  # A node that isn't in the list: its number stays closed.
  is 'not permitted' d run --rm --cap-add MKNOD base sh -c 'mknod /tmp/n c 1 11; cat /tmp/n 2>&1 | grep -o "not permitted"'
  is 'crw-rw-rw- 1 root root 1, 7 works' d run --rm --device /dev/full:/dev/mine:rw base sh -c \
    'echo $(ls -l /dev/mine | sed "s/  */ /g" | cut -d" " -f1-6) $( { echo > /dev/mine; } 2>/dev/null || echo works)'
}

docker_hardened() {
  echo '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}' > $WORK/no-mkdir.json
  ends 1 'ead-only file system' d run --rm --read-only base touch /x
  d run --rm --read-only --tmpfs /w:size=1m base touch /w/x
  ends 1 'not permitted' d run --rm --security-opt seccomp=$WORK/no-mkdir.json base mkdir /x
  is $'0000000000000000\n1\n2' d run --rm --cap-drop ALL --security-opt no-new-privileges base \
    sed -n 's/^\(CapEff\|NoNewPrivs\|Seccomp\):.//p' /proc/self/status
  is $'0000000000000400\n0\n0' d run --rm --cap-drop ALL --cap-add NET_BIND_SERVICE --security-opt seccomp=unconfined base \
    sed -n 's/^\(CapEff\|NoNewPrivs\|Seccomp\):.//p' /proc/self/status
  is '0 0' d run --rm base sh -c 'echo $(cat /proc/timer_list /proc/keys /proc/sched_debug 2>/dev/null | wc -c) $(ls /proc/acpi /sys/firmware 2>/dev/null | grep -vc :$)' ||
    d run --rm base sh -c 'ls /proc/acpi /sys/firmware'
  ends 1 'ead-only file system' d run --rm base sh -c 'echo 1 > /proc/sys/vm/swappiness'
  d run --rm --privileged base sh -c 'mount -t tmpfs x /mnt 2>&1 || mount -t tmpfs x /tmp && echo 60 > /proc/sys/vm/swappiness'
  is '1024 3 77' d run --rm --ulimit nofile=1024 --sysctl net.ipv4.ip_default_ttl=77 --oom-score-adj 3 base sh -c \
    'echo $(ulimit -n) $(cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_default_ttl)'
}

docker_joined() {
  d run -d --name host --ipc shareable base sh -c 'echo shared > /dev/shm/f; exec sleep 1000'
  is 'sleep 1000' d run --rm --pid container:host base sh -c 'tr "\0" " " < /proc/1/cmdline | sed "s/ $//"'
  is "$(docker exec host cat /sys/class/net/eth0/address)" d run --rm --network container:host base cat /sys/class/net/eth0/address
  until_ 20 docker exec host test -s /dev/shm/f
  is shared d run --rm --ipc container:host base cat /dev/shm/f
  docker rm -f host
  is "$(hostname) $(readlink /proc/1/ns/{net,pid,uts,ipc,cgroup} | paste -sd' ')" d run --rm --privileged --network host --pid host --uts host \
    --ipc host --cgroupns host base sh -c 'echo $(hostname) $(for n in net pid uts ipc cgroup; do readlink /proc/self/ns/$n; done)'
}

docker_volumes() {
  mkdir -p $WORK/source/sub
  mountpoint -q $WORK/source/sub || mount -t tmpfs sub $WORK/source/sub
  d run --rm -v named:/data base sh -c 'echo kept > /data/f'
  is kept d run --rm --mount type=volume,src=named,dst=/data,readonly base cat /data/f
  d run --rm -v $WORK/source:/v -u mail --tmpfs /t:uid=8 base sh -c 'touch /t/x; test ! -w /v'
  # Read-only reaches what is mounted below: Docker asks for it when the runtime says that it can.
  ends 1 'ead-only file system' d run --rm -v $WORK/source:/v:ro base touch /v/sub/x
  d run --rm --mount type=bind,src=$WORK/source,dst=/v,readonly,bind-recursive=writable base touch /v/sub/x
  # Propagation: a mount that is made later on the host.
  mount --make-rshared /
  d run -d --name vol -v $WORK/source:/v:rslave base sleep 1000
  mkdir -p $WORK/source/late
  mount -t tmpfs late $WORK/source/late
  touch $WORK/source/late/f
  docker exec vol test -e /v/late/f
  docker rm -f vol
  umount $WORK/source/late
  docker volume rm named
  # What the image holds at a volume's place is copied into it.
  is root:x:0:0:root:/root:/bin/bash d run --rm -v copied:/etc base head -n 1 /etc/passwd
  docker volume rm copied
}

docker_health() {
  d run -d --name he --health-cmd 'test -e /ok' --health-interval 1s --health-timeout 20s --health-retries 1 base sleep 1000
  until_ 60 sh -c 'docker inspect -f "{{.State.Health.Status}}" he | grep -x unhealthy'
  docker exec he touch /ok
  until_ 60 sh -c 'docker inspect -f "{{.State.Health.Status}}" he | grep -x healthy'
  docker rm -f he
}

docker_pause() {
  d run -d --name pa base sleep 1000
  docker pause pa
  is paused docker inspect -f '{{.State.Status}}' pa
  ends 1 'is paused' docker exec pa true
  docker unpause pa
  docker exec pa true
  docker pause pa
  docker rm -f pa
}

docker_crash() {
  local id pid shim
  # The runtime's caller dies: dockerd cleans up by the state alone.
  d run -d --name cr base sleep 1000
  read -r id pid < <(docker inspect -f '{{.Id}} {{.State.Pid}}' cr)
  shim=$(pgrep -f "containerd-shim-runc-v2 .*-id $id")
  kill -9 "$shim"
  until_ 60 sh -c 'docker inspect -f "{{.State.Status}}" cr | grep -x exited'
  until_ 60 test ! -e "/proc/$pid"
  none groups_of "$id"
  docker start cr
  docker exec cr true
  # dockerd and containerd die too.
  systemctl kill -s KILL docker containerd
  systemctl reset-failed docker containerd
  systemctl start containerd
  systemctl restart docker
  docker rm -f cr
  none groups_of "$id"
}

docker_nothing_left() {
  docker rm -fv $(docker ps -aq) 2>/dev/null || true
  umount $WORK/source/sub
  none states /run/docker
  none groups_of docker-
  none sh -c 'grep -o "/var/lib/docker/overlay2/[^ ]*/merged\|/run/docker/netns/[^ d][^ ]*" /proc/self/mountinfo'
  none sh -c 'pgrep -a "^(gpucell|containerd-shim)"'
  if [ "$(cat $WORK/docker-driver)" = cgroupfs ]; then none find /sys/fs/cgroup/docker -mindepth 1 -type d
  else none sh -c 'systemctl list-units --all --plain --no-legend "docker-*.scope"'; fi
}

# The Dockerfile that people write on Miniconda's image.
dockerfile() {
  mkdir -p $WORK/build
  cat > $WORK/build/Dockerfile <<'D'
FROM base
ENV PATH=/opt/conda/bin:/usr/sbin:/usr/bin:/sbin:/bin
SHELL ["/bin/bash", "-c"]
RUN useradd -m -u 1000 -s /bin/bash aiuser && mkdir -p /home/aiuser/workspace && chown aiuser /home/aiuser/workspace
RUN python -c 'import os; assert os.getuid() == 0; open("/opt/conda/built", "w").write("yes")'
USER aiuser
WORKDIR /home/aiuser/workspace
RUN echo "$(id -un) $PWD" > built-by && ! touch /opt/conda/x 2>/dev/null
VOLUME /home/aiuser/workspace
EXPOSE 8888
CMD ["python", "-c", "import getpass, os; print(getpass.getuser(), os.getcwd(), open('built-by').read().strip(), open('/opt/conda/built').read())"]
D
}
BUILT='aiuser /home/aiuser/workspace aiuser /home/aiuser/workspace yes'

docker_build() {
  dockerfile
  DOCKER_BUILDKIT=1 docker build -q -t built $WORK/build
  is "$BUILT" d run --rm built
  is '{"8888/tcp":{}}' docker image inspect -f '{{json .Config.ExposedPorts}}' built
  docker rmi built
  # The old builder runs what dockerd takes by itself.
  DOCKER_BUILDKIT=0 docker build -q -t built $WORK/build
  is "$BUILT" d run --rm built
  docker rmi built
}

docker_compose() {
  mkdir -p $WORK/compose
  cat > $WORK/compose/compose.yaml <<'Y'
services:
  one:
    image: base
    runtime: gpucell
    command: sleep 1000
    environment: { NVIDIA_VISIBLE_DEVICES: "0" }
    deploy: { resources: { limits: { cpus: "0.25", memory: 64M, pids: 33 } } }
    volumes: [ "data:/data" ]
    healthcheck: { test: [ "CMD", "test", "-e", "/etc/passwd" ], interval: 1s, timeout: 20s }
  two:
    image: base
    runtime: gpucell
    command: sh -c 'hostname > /data/two; exec sleep 1000'
    hostname: second
    volumes: [ "data:/data" ]
    depends_on: { one: { condition: service_healthy } }
volumes: { data: {} }
Y
  cd $WORK/compose
  docker-compose up -d
  is '67108864 25000 100000 33' docker-compose exec -T one sh -c 'cd /sys/fs/cgroup; echo $(cat memory.max cpu.max pids.max)'
  # GPU 0 has the minor number 1; it isn't there, so its node opens up to the driver.
  is $'/dev/nvidia1\nNo such device or address' docker-compose exec -T one sh -c 'ls /dev/nvidia[0-9]; cat /dev/nvidia1 2>&1 | grep -o "No such device or address"'
  ends 1 'No such file' docker-compose exec -T two ls /dev/nvidia1
  is second docker-compose exec -T one cat /data/two
  # By its name, over the network that compose made.
  docker-compose exec -T one ping -c 1 -w 20 two
  docker-compose down -t 1 -v
}

# `docker checkpoint` is there in dockerd's experimental mode only.
docker_checkpoint() {
  local n
  docker_with named cgroupfs '"experimental": true'
  d run -d --name ck --memory 64m base sh -c 'n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done'
  until_ 30 says '^9$' docker logs ck
  docker checkpoint create ck one
  is exited docker inspect -f '{{.State.Status}}' ck
  none states /run/docker
  n=$(docker logs --tail 1 ck)
  docker start --checkpoint one ck
  # The count goes on, in the log too.
  until_ 30 says "^$((n + 3))\$" docker logs ck
  is 1 sh -c 'docker logs ck | grep -c "^1\$"'
  is 67108864 docker exec ck cat /sys/fs/cgroup/memory.max
  ends 0 'inet 172\.17' docker exec ck ip -4 addr show eth0
  docker checkpoint create --leave-running ck two
  is running docker inspect -f '{{.State.Status}}' ck
  docker rm -f ck
  none states /run/docker
}

docker_remap() {
  docker_with named cgroupfs '"userns-remap": "tester"'
  is '0 100000 65536' d run --rm base sh -c 'echo $(cat /proc/self/uid_map)'
  d run -d --name map -v data:/data --memory 64m base sleep 1000
  docker exec map touch /data/f
  is 100000 sh -c 'stat -c %u "$(docker volume inspect -f "{{.Mountpoint}}" data)/f"'
  is '67108864 mail' docker exec -u mail map sh -c 'echo $(cat /sys/fs/cgroup/memory.max) $(id -un)'
  ends 1 'not permitted' docker exec map mknod /tmp/n c 1 3
  docker rm -f map
  docker volume rm data
  d run --rm --userns host base grep -q 4294967295 /proc/self/uid_map
  none states /run/docker
}
