package digest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
)

const (
	// BlockSize is the size of a block in bytes.
	BlockSize = 1 << 20
	// KeySize is the size of a key in bytes.
	KeySize = 32
	// SumSize is the size of a Sum in bytes.
	SumSize = 16
)

// Algorithm names how digests with a key, or without one, are computed.
func Algorithm(keyed bool) string {
	if keyed {
		return "blake3-128"
	}
	return "xxh3-128"
}

// Sum is the digest of a block. The two values with a meaning of their own, all 0x00 and all 0xff,
// never are a block's digest.
type Sum [SumSize]byte

// PieceSize is what a block's pieces have, in bytes: an incremental holds a block in such pieces.
const PieceSize = BlockSize / 16

// Part is a set of the pieces of a block: bit i is the one at i*PieceSize.
type Part uint16

// Whole returns the set of all the pieces of a block of size bytes.
func Whole(size int64) Part {
	return Part(1<<((size+PieceSize-1)/PieceSize) - 1)
}

// Kind says what a record stands for.
type Kind uint8

const (
	// Absent is a block that is not in the backup file.
	Absent Kind = iota
	// Zero is a block that was written as explicit zeroes.
	Zero
	// Data is a block with a Sum.
	Data
)

// zeroByte is what each byte of the record of a Zero block is.
const zeroByte = 0xff

// kind returns what a record stands for.
func (s Sum) kind() Kind {
	for _, b := range s {
		if b != s[0] {
			return Data
		}
	}
	switch s[0] {
	case 0:
		return Absent
	case zeroByte:
		return Zero
	}
	return Data
}

// Mismatch is the error for a block whose content is not what its record says.
type Mismatch struct {
	// Offset and Length of the block on the disk, in bytes.
	Offset, Length int64
}

func (m *Mismatch) Error() string {
	return fmt.Sprintf("the content at offset %d (a block of %d bytes) differs from its digest", m.Offset, m.Length)
}

// blockCount returns how many blocks a disk of size bytes has.
func blockCount(size int64) int64 {
	return size/BlockSize + min(size%BlockSize, 1)
}

// The header, all numbers little endian:
//
//	 0  magic
//	16  version, 4 bytes
//	20  flags, 4 bytes
//	24  block size, 8 bytes
//	32  disk size, 8 bytes
//	40  zero, 8 bytes
//	48  digest of the 48 bytes before, keyed like the blocks
const (
	headerSize  = 64
	headerBody  = headerSize - SumSize
	magic       = "nasfleet digests"
	version     = 1
	flagKeyed   = 1 << 0
	maxDiskSize = math.MaxInt64 - BlockSize // of which the file's length can be computed
)

// fileSize returns the length of the file for a disk of size bytes.
func fileSize(size int64) int64 { return headerSize + blockCount(size)*SumSize }

func encodeHeader(size int64, h *hasher) []byte {
	b := append(make([]byte, 0, headerSize), magic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, h.flags())
	b = binary.LittleEndian.AppendUint64(b, BlockSize)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	b = binary.LittleEndian.AppendUint64(b, 0)
	sum := h.sum(b)
	return append(b, sum[:]...)
}

// decodeHeader returns the disk's size from the header of a file.
func decodeHeader(b []byte, h *hasher) (size int64, err error) {
	flags, diskSize := binary.LittleEndian.Uint32(b[20:]), binary.LittleEndian.Uint64(b[32:])
	v := binary.LittleEndian.Uint32(b[16:])
	switch {
	case string(b[:len(magic)]) != magic:
		return 0, errors.New("not a digests file")
	case v != version:
		return 0, fmt.Errorf("digests of version %d, only version %d is known", v, version)
	case flags == flagKeyed && h.key == nil:
		return 0, errors.New("the digests are keyed and no key was given")
	case flags == 0 && h.key != nil:
		return 0, errors.New("the digests are not keyed, as those of an encrypted backup must be")
	case flags != h.flags(),
		binary.LittleEndian.Uint64(b[24:]) != BlockSize,
		binary.LittleEndian.Uint64(b[40:]) != 0,
		diskSize > maxDiskSize:
		return 0, errors.New("malformed header of a digests file")
	case h.sum(b[:headerBody]) != Sum(b[headerBody:headerSize]):
		if h.key != nil {
			return 0, errors.New("wrong key, or a damaged header of a digests file")
		}
		return 0, errors.New("damaged header of a digests file")
	}
	return int64(diskSize), nil
}

// hasher computes sums, from many goroutines at once.
type hasher struct {
	key  []byte // nil: not keyed
	pool sync.Pool
}

func newHasher(key []byte) (*hasher, error) {
	if key == nil {
		return &hasher{}, nil
	}
	keyed, err := blake3.NewKeyed(key)
	if err != nil {
		return nil, fmt.Errorf("digest key of %d bytes, not %d", len(key), KeySize)
	}
	return &hasher{key: bytes.Clone(key), pool: sync.Pool{New: func() any { return keyed.Clone() }}}, nil
}

func (h *hasher) flags() uint32 {
	if h.key != nil {
		return flagKeyed
	}
	return 0
}

func (h *hasher) sum(block []byte) Sum {
	if h.key == nil {
		return asData(xxh3.Hash128(block).Bytes())
	}
	return asData(h.keyed(block, nil))
}

// sumPart is the digest of the block and, if it is not whole, of which pieces are there: a piece
// of zeroes is another thing than one that is not there.
func (h *hasher) sumPart(block []byte, part Part) Sum {
	whole := Whole(int64(len(block)))
	if part &= whole; part == whole {
		return h.sum(block)
	}
	tail := binary.LittleEndian.AppendUint16(nil, uint16(part))
	if h.key != nil {
		return asData(h.keyed(block, tail))
	}
	x := xxh3.New()
	_, _ = x.Write(block) // never fails
	_, _ = x.Write(tail)
	return asData(x.Sum128().Bytes())
}

// asData keeps a digest from being one of the two values with another meaning.
func asData(s Sum) Sum {
	if s.kind() != Data {
		s[0] ^= 1
	}
	return s
}

func (h *hasher) keyed(block, tail []byte) Sum {
	b := h.pool.Get().(*blake3.Hasher)
	defer h.pool.Put(b)
	b.Reset()
	_, _ = b.Write(block) // never fails
	_, _ = b.Write(tail)
	var full [KeySize]byte
	return Sum(b.Sum(full[:0])[:SumSize])
}
