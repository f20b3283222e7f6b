// Package exec is how a job is done: take, restore, verify, delete and list. It joins the lane
// (copier, nbd, digest), the storage daemon, the hypervisor and the repository into one pass, and
// leaves nothing behind whatever happens. It knows no NATS.
package exec
