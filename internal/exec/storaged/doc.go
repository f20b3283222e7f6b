// Package storaged runs qemu-storage-daemon, one child for each side of a job, and builds in it
// the block graphs that a copy reads from and writes to:
//
//	a disk to read       raw or qcow2 (with its backing chain) > file, block device, RBD, NBD or SSH
//	a disk to write      raw or qcow2 > file, block device, RBD, NBD or SSH
//	a backup to write    [compress] > qcow2 > [LUKS] > file
//	a backup to read     qcow2 > [LUKS] > file
//	a chain to read      qcow2 > [LUKS] > file, on top of the next of the chain, and each alone
//
// Each graph is one NBD export on a unix socket; its bytes are the disk's own. The daemon is
// driven over QMP by a small client of this package, on a socket pair that has no name.
//
// A passphrase travels on that socket alone, and the daemon forgets it as soon as the LUKS
// container is open.
package storaged
