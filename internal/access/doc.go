// Package access says who may do what on NATS, and makes it so: the keys, accounts and users of a
// fleet, the hosts that were added to it, and the configuration of a nats-server that holds them to
// their rights. It needs no server: all of it is files.
package access
