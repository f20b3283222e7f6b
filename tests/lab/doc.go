// Package lab is the laboratory that tests of any package work in: a private libvirtd with real
// QEMU guests (one of them with a real Linux and the guest agent), real file systems on loop
// devices, a real sshd and Ceph, the programs under test, and assertions that nothing was left.
//
// Everything lives in folders and on sockets of its own and ends with the test, or with the test
// binary when that is killed. It needs root and the tools that `make deps` installs; a tool that is
// missing fails the test.
package lab
