// Package digest keeps a digest of each block of a disk in a file beside its backup, so that a
// changed byte is found, and found where it is.
//
// The file is a header of 64 bytes, then a record of 16 bytes for each block of 1 MiB; the last
// block may be short. A record is the block's digest, or all 0x00 for a block that is not in this
// backup file (of a full backup it reads as zeroes), or all 0xff for a block that was written as
// explicit zeroes.
//
// An incremental's file may hold only some of a block's 16 pieces, its digest is then that of the
// block with zeroes for the others, followed by two bytes, little endian, that say which pieces
// are there: bit 0 is the first.
//
// Without a key the digest is XXH3 of 128 bits, at the speed of memory: it is there to find what
// went wrong by itself, for whoever can change the disk's file can change this one too. With a
// key, for an encrypted backup, it is BLAKE3 in keyed mode, cut to 128 bits: anything less would
// let a reader of the repository test guesses about the content.
package digest
