package digest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

// pageRecords is how many records are read at a time: those of 4 GiB of disk.
const pageRecords = 4096

// Reader reads the digests of one disk. Its methods may be called from any goroutine; its memory
// does not depend on the disk's size. Its errors are *messages.Error of the codes backup_corrupt
// and source_read_failed, and *Mismatch.
type Reader struct {
	f    *os.File
	size int64
	hash *hasher

	mu   sync.Mutex
	page page // the last one that Get has read
}

// page is a run of records.
type page struct {
	first   int64
	records []byte
}

// Open opens a digests file. The key must be the one of Create, nil for none.
func Open(path string, key []byte) (*Reader, error) {
	h, err := newHasher(key)
	if err != nil {
		return nil, messages.EnsureCode(messages.CodeInternal, err)
	}
	// Whoever can write to the repository may have put a link or a pipe in its place.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return nil, messages.EnsureCode(messages.CodeBackupCorrupt, err)
	}
	if err != nil {
		return nil, readError(err)
	}
	r := &Reader{f: f, hash: h}
	if err := r.init(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return r, nil
}

func (r *Reader) init() error {
	st, err := r.f.Stat()
	if err != nil {
		return readError(err)
	}
	if !st.Mode().IsRegular() {
		return messages.Errorf(messages.CodeBackupCorrupt, "the digests are no regular file")
	}
	var b [headerSize]byte
	switch _, err = r.f.ReadAt(b[:], 0); {
	case errors.Is(err, io.EOF):
		return messages.Errorf(messages.CodeBackupCorrupt, "a digests file of %d bytes", st.Size())
	case err != nil:
		return readError(err)
	}
	if r.size, err = decodeHeader(b[:], r.hash); err != nil {
		return messages.EnsureCode(messages.CodeBackupCorrupt, err)
	}
	if want := fileSize(r.size); st.Size() != want {
		return messages.Errorf(messages.CodeBackupCorrupt, "a digests file of %d bytes, where a disk of %d bytes needs %d", st.Size(), r.size, want)
	}
	return nil
}

// Size returns the size of the disk in bytes.
func (r *Reader) Size() int64 { return r.size }

// Get returns the record of a block.
func (r *Reader) Get(index int64) (Sum, Kind, error) {
	if index < 0 || index >= blockCount(r.size) {
		return Sum{}, Absent, messages.Errorf(messages.CodeInternal, "digest of block %d of a disk of %d bytes", index, r.size)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if first := index - index%pageRecords; r.page.records == nil || r.page.first != first {
		if err := r.read(&r.page, first); err != nil {
			return Sum{}, Absent, err
		}
	}
	s := r.page.sum(index)
	return s, s.kind(), nil
}

// read reads the page that begins with the record first.
func (r *Reader) read(p *page, first int64) error {
	n := min(blockCount(r.size)-first, pageRecords) * SumSize
	if cap(p.records) == 0 {
		p.records = make([]byte, pageRecords*SumSize)
	}
	p.first, p.records = first, p.records[:n]
	if _, err := r.f.ReadAt(p.records, headerSize+first*SumSize); err != nil {
		p.records = p.records[:0]
		p.first = -1
		return readError(err)
	}
	return nil
}

func (p *page) sum(index int64) Sum {
	return Sum(p.records[(index-p.first)*SumSize:][:SumSize])
}

// Recorded returns the indexes, in order, of the blocks that are in the backup file: whose record
// is not Absent. It ends with the first error.
func (r *Reader) Recorded() iter.Seq2[int64, error] {
	return func(yield func(int64, error) bool) {
		var p page
		empty := make([]byte, pageRecords*SumSize)
		for first := int64(0); first < blockCount(r.size); first += pageRecords {
			if err := r.read(&p, first); err != nil {
				yield(0, err)
				return
			}
			if bytes.Equal(p.records, empty[:len(p.records)]) {
				continue
			}
			for i := first; i < first+int64(len(p.records))/SumSize; i++ {
				if p.sum(i).kind() != Absent && !yield(i, nil) {
					return
				}
			}
		}
	}
}

// Check compares a block's content with its record and returns a *Mismatch if they differ. A nil
// block stands for zeroes; so does a block of zeroes, which has no Sum in the record.
func (r *Reader) Check(_ context.Context, index int64, block []byte) error {
	want, kind, err := r.Get(index)
	if err != nil {
		return err
	}
	if isZero(block) {
		if kind != Data {
			return nil
		}
	} else if kind == Data && r.hash.sum(block) == want {
		return nil
	}
	return r.mismatch(index)
}

// CheckPart is Check for a file that holds only some pieces of the block, as that of an
// incremental: which ones is compared as well. The other pieces of the block must be zeroes.
func (r *Reader) CheckPart(index int64, block []byte, part Part) error {
	want, kind, err := r.Get(index)
	if err != nil {
		return err
	}
	part &= Whole(r.blockBytes(index))
	switch {
	case part == 0 && kind == Absent,
		kind == Zero && part == Whole(r.blockBytes(index)) && isZero(block),
		part != 0 && kind == Data && r.hash.sumPart(block, part) == want:
		return nil
	}
	return r.mismatch(index)
}

func (r *Reader) mismatch(index int64) *Mismatch {
	return &Mismatch{Offset: index * BlockSize, Length: r.blockBytes(index)}
}

func (r *Reader) blockBytes(index int64) int64 { return min(BlockSize, r.size-index*BlockSize) }

// Close closes the file.
func (r *Reader) Close() error { return readError(r.f.Close()) }

// isZero says whether b is all zero; b overlapping itself by a byte makes that one fast compare.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

func readError(err error) error {
	if err == nil {
		return nil
	}
	return messages.EnsureCode(messages.CodeSourceReadFailed, fmt.Errorf("digests: %w", err))
}
