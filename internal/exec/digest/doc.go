// Package digest keeps a digest of each block of a disk in a file beside its backup, so that a
// changed byte is found, and found where it is.
//
// The file is a header of 64 bytes, then a record of 16 bytes for each block of 1 MiB; the last
// block may be short. A record is the first half of the block's BLAKE3 hash, or all 0x00 for a
// block that is not in this backup file (of a full backup it reads as zeroes), or all 0xff for a
// block that was written as explicit zeroes. The hash is keyed when the backup is encrypted:
// plain hashes would give known content away.
package digest
