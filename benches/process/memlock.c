/* Lets crun 1.8.1 run where the hard limit of locked memory is finite and may not be raised.
 *
 * That version raises RLIMIT_MEMLOCK to infinity before it loads its device program and gives up when
 * it may not. Kernels since 5.11 count a program's memory to its cgroup and do not look at the limit,
 * so telling it "done" changes nothing else. Preloaded into crun alone, by scripts/bench.
 */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static int set(int which, const void *limit)
{
	if (which == RLIMIT_MEMLOCK)
		return 0;
	return syscall(SYS_prlimit64, 0, which, limit, 0);
}

int setrlimit(__rlimit_resource_t which, const struct rlimit *limit) { return set(which, limit); }
int setrlimit64(__rlimit_resource_t which, const struct rlimit64 *limit) { return set(which, limit); }
