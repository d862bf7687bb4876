// SPDX-License-Identifier: MIT
/*
 * /init of both initramfs of the reproducer. With /image it is the first kernel's: it does what the
 * parameter repro= says, with raw system calls, so that nothing falls back to kexec_load(2). Without
 * /image it is the second kernel's: reaching it is the proof that its initramfs was intact.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEXEC_FILE_UNLOAD 0x1
#define KEXEC_FILE_NO_INITRAMFS 0x4
#define KEXEC_FILE_DEBUG 0x8 /* since 6.7: one line a segment in the kernel log */
#define LINUX_REBOOT_CMD_KEXEC 0x45584543

static const char next_cmdline[] = "console=ttyS0 panic=1";

static void say(const char *what)
{
	printf("REPRO %s\n", what);
}

static void cma(const char *when)
{
	char pages[32] = "?\n";
	int fd = open("/sys/kernel/mm/cma/reserved/available_pages", O_RDONLY);

	if (fd >= 0) {
		ssize_t n = read(fd, pages, sizeof(pages) - 1);

		pages[n > 0 ? n : 0] = 0;
		close(fd);
	}
	printf("REPRO available_pages %-22s %s", when, pages);
}

static int load(const char *image, unsigned long flags)
{
	int kernel = open(image, O_RDONLY), initrd = open("/initrd", O_RDONLY), error;

	error = syscall(SYS_kexec_file_load, kernel, initrd, sizeof(next_cmdline), next_cmdline, flags) ? errno : 0;
	close(kernel);
	close(initrd);
	printf("REPRO kexec_file_load(%s): %s\n", image, error ? strerror(error) : "ok");
	return error;
}

static void unload(void)
{
	syscall(SYS_kexec_file_load, -1, -1, 0UL, NULL, KEXEC_FILE_UNLOAD | KEXEC_FILE_NO_INITRAMFS);
}

/* User pages may lie in CMA. They are freed again and leave what was in them. */
static void dirty_free_memory(void)
{
	struct sysinfo info;
	size_t bytes;
	char *memory;

	sysinfo(&info);
	bytes = info.freeram * info.mem_unit - (112UL << 20); /* the last free pages are those of the area */
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return say("could not dirty memory");
	memset(memory, 0xa5, bytes);
	munmap(memory, bytes);
	printf("REPRO dirtied %zu MiB\n", bytes >> 20);
}

static void leak(void)
{
	cma("at first");
	load("/image.bad", 0); /* init_size smaller than the payload: EINVAL after all was placed */
	cma("after EINVAL");
	unload();
	cma("after unload");
	for (int ms = 2; ms <= 256; ms *= 2) {
		pid_t child = fork();

		if (!child)
			_exit(load("/image", 0));
		usleep(ms * 1000);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		unload();
		cma("after SIGKILL, unload");
	}
}

static void jump(void)
{
	cma("before the load");
	if (load("/image", KEXEC_FILE_DEBUG))
		return;
	cma("after the load");
	say("jump");
	sync();
	reboot(LINUX_REBOOT_CMD_KEXEC);
	say("the jump failed");
}

int main(void)
{
	char line[4096] = "";
	struct utsname name;
	int fd;

	setvbuf(stdout, NULL, _IONBF, 0);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	uname(&name);
	printf("REPRO init on %s\n", name.release);

	if (access("/image", F_OK)) {
		say("SECOND KERNEL REACHED ITS INIT");
		reboot(RB_POWER_OFF);
	}

	fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, line, sizeof(line) - 1) < 0)
		say("no command line");
	if (strstr(line, "repro=leak")) {
		leak();
		reboot(RB_POWER_OFF);
	}
	if (strstr(line, "repro=tail"))
		dirty_free_memory();
	jump();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
