// Package integration runs the real programs against the real parts: hostworker and publisher as
// processes, NATS JetStream, libvirtd with QEMU guests, and file systems that are mounted, filled
// and lost. It needs root and what `make deps` installs, and nothing that runs already.
package integration
