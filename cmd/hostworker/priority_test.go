package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// threadsNice returns the nice value of each of a process's threads (proc(5), field 19 of stat).
func threadsNice(t *testing.T, pid int) map[string]int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	for _, thread := range threads {
		stat, err := os.ReadFile(dir + "/" + thread.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		// The name of the program, in brackets, may have spaces.
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if all[thread.Name()], err = strconv.Atoi(fields[16]); err != nil {
			t.Fatal(err)
		}
	}
	if len(all) == 0 {
		t.Fatalf("process %d has no threads", pid)
	}
	return all
}

// A thread that has a lower priority than the worker is told to take keeps it; all others take it.
func TestPriorityIsNeverRaised(t *testing.T) {
	low, checked := make(chan int), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: no other goroutine gets the thread
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, maxNice); err != nil {
			t.Error(err)
		}
		low <- unix.Gettid()
		<-checked
	}()
	defer close(checked)
	id := strconv.Itoa(<-low)
	if err := lowerPriority(1); err != nil {
		t.Fatal(err)
	}
	for thread, nice := range threadsNice(t, os.Getpid()) {
		if want := map[bool]int{true: maxNice, false: max(nice, 1)}[thread == id]; nice != want {
			t.Errorf("thread %s has a nice value of %d, want %d", thread, nice, want)
		}
	}
}
