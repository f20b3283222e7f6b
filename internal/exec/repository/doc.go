// Package repository is the NAS as a job sees it: mounted for one job, laid out as
//
//	<root>/<backup path>/<vm>/<backup id>/manifest.json
//
// and taken away again. A backup is built in <backup id>.partial, synced, and renamed; only a folder
// with a valid manifest.json is a backup.
//
// What lies on the NAS is not trusted. Every access stays below the root (os.Root), no symbolic
// link below the root is followed, and a manifest is checked before anything in it is used. A NAS that
// hangs cannot hang the caller: each call returns when its context ends.
package repository
