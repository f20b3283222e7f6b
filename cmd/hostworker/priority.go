package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxNice is the lowest priority there is (setpriority(2)).
const maxNice = 19

// lowerPriority makes this process, and what it starts from now on, leave the processors to the guests. A process that
// has a lower priority already keeps it.
func lowerPriority(nice int) error {
	// The kernel keeps a priority for each thread; a new one has that of the thread that starts it, and the runtime
	// starts them when it likes: all are done when a round finds no other.
	for changed := nice > 0; changed; {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("lower the priority: %w", err)
		}
		changed = false
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				return fmt.Errorf("lower the priority: %w", err)
			}
			// The system call, unlike getpriority(3), says 20 less the priority: 20 to 1 for 0 to 19.
			now, err := unix.Getpriority(unix.PRIO_PROCESS, id)
			if errors.Is(err, unix.ESRCH) || err == nil && 20-now >= nice {
				continue
			}
			if err == nil {
				err = unix.Setpriority(unix.PRIO_PROCESS, id, nice)
				changed = true
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("lower the priority: %w", err)
			}
		}
	}
	return nil
}
