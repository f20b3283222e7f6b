package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaceMark tells the process that it is in its own mount namespace already.
const namespaceMark = "NASFLEET_IN_NAMESPACE=1"

// enterNamespace gives the worker a mount namespace of its own, by starting its program again
// in the same process. The mounts of jobs are then seen by the worker and its children alone: a
// NAS that hangs cannot hang libvirtd or a guest, and when the worker is killed the kernel takes
// the mounts away with it. Mounts that the host makes later still come in.
//
// Without the right to do so it goes on in the host's namespace; doctor warns of it.
func enterNamespace() error {
	if slices.Contains(os.Environ(), namespaceMark) {
		return nil
	}
	// A namespace is the thread's; exec makes that thread the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNS)
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make the mount namespace private: %w", err)
	}
	if err := syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), namespaceMark)); err != nil {
		return fmt.Errorf("start again in the mount namespace: %w", err)
	}
	return nil
}
