package proc

import (
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A pidfd waits for a process that is nobody's child here, without asking again and again.

func pidfdOpen(pid int) (int, error) { return unix.PidfdOpen(pid, 0) }

func endsWithin(pidfd int, d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, int(d.Milliseconds()))
	return err == nil && n == 1
}

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
