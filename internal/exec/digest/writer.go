package digest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/nasfleet/nasfleet/messages"
)

// Writer writes the digests of one disk. Its methods may be called from any goroutine; it holds
// no records in memory. Its errors are *messages.Error of the codes target_full,
// target_write_failed and target_exists.
type Writer struct {
	f        *os.File
	size     int64
	hash     *hasher
	zeroRuns []byte // records of zeroes, to write from
}

// Create creates the digests file of a disk of size bytes; there must be none yet. With a key of
// KeySize bytes the digests are keyed. Every record is Absent at first, and the file is sparse.
func Create(path string, size int64, key []byte) (*Writer, error) {
	if size < 0 || size > maxDiskSize {
		return nil, messages.Errorf(messages.CodeInternal, "digests for a disk of %d bytes", size)
	}
	h, err := newHasher(key)
	if err != nil {
		return nil, messages.EnsureCode(messages.CodeInternal, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, messages.EnsureCode(messages.CodeTargetExists, err)
	}
	if err != nil {
		return nil, writeError(err)
	}
	w := &Writer{f: f, size: size, hash: h, zeroRuns: bytes.Repeat([]byte{zeroByte}, pageRecords*SumSize)}
	if err := w.init(); err != nil {
		return nil, errors.Join(writeError(err), f.Close(), os.Remove(path))
	}
	return w, nil
}

func (w *Writer) init() error {
	if err := w.f.Truncate(fileSize(w.size)); err != nil {
		return err
	}
	_, err := w.f.WriteAt(encodeHeader(w.size, w.hash), 0)
	return err
}

// Size returns the size of the disk in bytes.
func (w *Writer) Size() int64 { return w.size }

// Sum returns the digest of a block's content.
func (w *Writer) Sum(block []byte) Sum { return w.hash.sum(block) }

// SumPart returns the digest of a block of which only some pieces are in the backup file, at least
// one. The others must be zeroes in block.
func (w *Writer) SumPart(block []byte, part Part) Sum { return w.hash.sumPart(block, part) }

// Put records the digest of a block. The index counts blocks from the start of the disk.
func (w *Writer) Put(index int64, s Sum) error {
	if err := w.check(index, 1); err != nil {
		return err
	}
	return w.write(index, s[:])
}

// PutZeroes records that n blocks from index on were written as explicit zeroes.
func (w *Writer) PutZeroes(index, n int64) error {
	if err := w.check(index, n); err != nil {
		return err
	}
	for end := index + n; index < end; index += pageRecords {
		if err := w.write(index, w.zeroRuns[:min(end-index, pageRecords)*SumSize]); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) check(index, n int64) error {
	if count := blockCount(w.size); n < 0 || n > count || index < 0 || index > count-n {
		return messages.Errorf(messages.CodeInternal, "digests of %d blocks from %d on of a disk of %d bytes", n, index, w.size)
	}
	return nil
}

func (w *Writer) write(index int64, records []byte) error {
	_, err := w.f.WriteAt(records, headerSize+index*SumSize)
	return writeError(err)
}

// Close makes the file stable and closes it.
func (w *Writer) Close() error {
	return writeError(errors.Join(w.f.Sync(), w.f.Close()))
}

func writeError(err error) error {
	if err == nil {
		return nil
	}
	code := messages.CodeTargetWriteFailed
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		code = messages.CodeTargetFull
	}
	return messages.EnsureCode(code, fmt.Errorf("digests: %w", err))
}
