// Package messages is nasfleet's public contract: the commands a management side publishes, the
// events a host worker answers with, the details that shape a backup, the error codes, and the
// names of the subjects, streams and buckets they travel on.
//
// It is pure data. Nothing here does I/O or knows NATS, so that any Go program can import it and
// any other program can be written against the JSON Schemas generated from it (docs/schema).
// Everything is decoded strictly: an unknown key, a value outside its table or a name that could
// escape its subject or its folder is an *Error that names the culprit.
//
//go:generate go run ../internal/tools/schema -source . -out ../docs/schema
package messages
