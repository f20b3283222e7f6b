package secret

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// coreLimit is the size at which the kernel writes no core file, because it is less than a page, and
// hands none to a program either (Documentation/admin-guide/sysctl/kernel.rst, core_pattern): at
// 0 it would still do the latter.
const coreLimit = 1

// NoCoreDumps keeps the memory of this process, and of the programs that it starts, out of core
// files: a passphrase may be in it. Of this process alone, other programs of the same user cannot read
// the memory either.
func NoCoreDumps() error {
	err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: coreLimit, Max: coreLimit})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) { // the limit is below that already
		err = nil
	}
	if err := errors.Join(err, unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)); err != nil {
		return fmt.Errorf("turn core dumps off: %w", err)
	}
	return nil
}
