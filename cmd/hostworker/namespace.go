package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"

	"github.com/rs/zerolog"
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
func enterNamespace(log zerolog.Logger) error {
	if slices.Contains(os.Environ(), namespaceMark) {
		return nil
	}
	// A namespace is the thread's; exec makes that thread the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := unshareMounts()
	if errors.Is(err, unix.EPERM) {
		log.Warn().Msg("no right to a mount namespace of its own: mounts are seen by the whole host, and stay when the worker is killed")
		return nil
	}
	if err != nil {
		return err
	}
	env := append(os.Environ(), namespaceMark)
	// By its path, because that is the process's name to ps and pgrep; by the link should the
	// file have been replaced by an upgrade that is just going on.
	if path, perr := os.Executable(); perr == nil {
		_ = syscall.Exec(path, os.Args, env)
	}
	if err := syscall.Exec("/proc/self/exe", os.Args, env); err != nil {
		return fmt.Errorf("start again in the mount namespace: %w", err)
	}
	return nil
}

// unshareMounts gives the calling thread, which must be locked to its goroutine, a mount namespace.
func unshareMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep the mount namespace's mounts from the host: %w", err)
	}
	return nil
}

// tryNamespace says whether enterNamespace would succeed.
func tryNamespace() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread does not end before it. While it is held, another one is found.
			defer runtime.UnlockOSThread()
			result <- tryNamespace()
			return
		}
		result <- unshareMounts() // never unlocked: the thread ends with the goroutine, and its namespace with it
	}()
	return <-result
}
