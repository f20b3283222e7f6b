// Package nbd is a client of the NBD protocol over unix sockets: many requests in flight on one
// connection, structured replies, block status, payloads read straight into the caller's buffer.
//
// The section names in comments are those of the protocol's document, doc/proto.md of the
// NetworkBlockDevice project.
package nbd
