# In the test machine: containerd's own client with gpucell; sourced by engines-guest.sh.

# c NAME [FLAG...] -- COMMAND...: a container; flags of ctr's run.
c() {
  local name=$1 flags=(); shift
  while [ "$1" != -- ]; do flags+=("$1"); shift; done; shift
  ctr run --runc-binary $GPUCELL "${flags[@]}" $BASE "$name" "$@"
}

ctr_prepare() {
  docker image inspect base >/dev/null 2>&1 || docker import $WORK/base.tar base
  docker save base -o $WORK/saved.tar
  ctr image import $WORK/saved.tar
  rm $WORK/saved.tar
}

ctr_run() {
  is hello c one --rm -- echo hello
  ends 7 '' c one --rm -- sh -c 'exit 7'
  ends 1 'executable file not found in \$PATH' c one --rm -- nothing
  is 8 c one --rm --user mail -- id -u
  c lim -d --null-io --memory-limit 67108864 --cpus 0.5 -- sleep 1000
  is '67108864 50000 100000' sh -c 'cd /sys/fs/cgroup/default/lim; echo $(cat memory.max cpu.max)'
  ctr task rm -f lim
  ctr container rm lim
  is "$(readlink /proc/1/ns/net)" c one --rm --net-host -- readlink /proc/self/ns/net
  is $'/dev/pts/0\n40 120' terminal ctr run --rm -t --runc-binary $GPUCELL $BASE one sh -c 'tty; sleep 1; stty size'
  # systemd's driver: the group is named slice:prefix:name.
  c two -d --null-io --runc-systemd-cgroup --cgroup system.slice:cri:two -- sleep 1000
  is active systemctl is-active cri-two.scope
  is "$(pgrep -f '^sleep 1000')" cat /sys/fs/cgroup/system.slice/cri-two.scope/cgroup.procs
  ctr task rm -f two
  ctr container rm two
}

ctr_exec() {
  c one -d --null-io -- sleep 1000
  is '8 /tmp' ctr task exec --exec-id e1 --user mail --cwd /tmp one sh -c 'echo $(id -u) $PWD'
  ends 9 '' ctr task exec --exec-id e2 one sh -c 'exit 9'
  ends 1 'executable file not found in \$PATH' ctr task exec --exec-id e3 one nothing
  [ "$(ctr task ps one | wc -l)" = 2 ]
}

ctr_pause() {
  ctr task pause one
  is 'one PAUSED' sh -c "ctr task ls | awk '\$1 == \"one\" { print \$1, \$3 }'"
  ends 1 'paused' ctr task exec --exec-id p1 one true
  ctr task resume one
  ctr task exec --exec-id p2 one true
}

ctr_metrics() {
  ctr task metrics one | tee $WORK/metrics
  awk '$1 == "memory.usage" && $2 > 0 { m = 1 } $1 == "cpu.usage_usec" { c = 1 } $1 == "pids.current" && $2 == 1 { p = 1 } END { exit !(m && c && p) }' $WORK/metrics
}

ctr_kill() {
  ctr task kill -s KILL one
  until_ 30 sh -c "ctr task ls | grep '^one .*STOPPED'"
  ends 0 'exit code 137' ctr task delete one
  ctr container rm one
  # All processes, when the pid namespace isn't the container's own.
  c all -d --null-io --with-ns pid:/proc/1/ns/pid -- sh -c 'sleep 2001 & sleep 2002'
  until_ 20 pgrep -f '[s]leep 2001'
  ctr task kill -a -s KILL all
  until_ 30 sh -c '! pgrep -f "[s]leep 200[12]"'
  ctr task delete all || true
  ctr container rm all
}

ctr_crash() {
  c cr -d --null-io -- sleep 3000
  kill -9 "$(pgrep -f 'containerd-shim-runc-v2 .*-id cr')"
  until_ 60 sh -c '! pgrep -f "[s]leep 3000"'
  until_ 60 sh -c '! ctr task ls | grep ^cr'
  ctr container rm cr
}

ctr_nothing_left() {
  none states /run/containerd
  none sh -c 'ctr task ls -q; ctr container ls -q'
  none sh -c 'pgrep -a "^(gpucell|containerd-shim)"'
  none sh -c 'grep -o "/run/containerd/[^ ]*/rootfs" /proc/self/mountinfo'
  none find /sys/fs/cgroup/default -mindepth 1 -type d
}
