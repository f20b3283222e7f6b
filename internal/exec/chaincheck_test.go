package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
)

// ownContent is what a link holds itself.
type ownContent []byte

func (o ownContent) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, o[off:])
	return nil
}

// A chain of links that hold any pieces, data or zeroes: what it shows passes, and a flipped byte of
// it, or a piece that a link has lost or gained, does not.
func TestChainCheckModel(t *testing.T) {
	dir, n := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 2*digest.BlockSize+3*digest.PieceSize).Draw(t, "size")
		blocks := int((size + digest.BlockSize - 1) / digest.BlockSize)
		shown := make([]byte, size)
		var links []checkedLink
		for l := range rapid.IntRange(1, 4).Draw(t, "links") {
			n++
			path := filepath.Join(dir, fmt.Sprint(n))
			w, err := digest.Create(path, size, nil)
			if err != nil {
				t.Fatal(err)
			}
			own, has := make(ownContent, size), make([]digest.Part, blocks)
			for i := range blocks {
				start, end := int64(i)*digest.BlockSize, min(int64(i+1)*digest.BlockSize, size)
				whole := digest.Whole(end - start)
				if has[i] = whole; l > 0 {
					has[i] &= digest.Part(rapid.Uint16().Draw(t, "has"))
				}
				for bit := 0; start+int64(bit)*digest.PieceSize < end; bit++ {
					if has[i]&(1<<bit) == 0 {
						continue
					}
					at, stop := start+int64(bit)*digest.PieceSize, min(start+int64(bit+1)*digest.PieceSize, end)
					fill := byte(rapid.IntRange(0, 3).Draw(t, "fill"))
					copy(own[at:stop], bytes.Repeat([]byte{fill}, int(stop-at)))
					copy(shown[at:stop], own[at:stop])
				}
				block := own[start:end]
				// A whole disk has no digest of zeroes.
				if has[i] != 0 && (l > 0 || !bytes.Equal(block, make([]byte, len(block)))) {
					if err := w.Put(int64(i), w.SumPart(block, has[i])); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			r, err := digest.Open(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			links = append([]checkedLink{{own: own, digests: r, incremental: l > 0, has: has}}, links...)
		}
		check := func() error {
			c := newChainCheck(size, links...)
			for i := range blocks {
				block := shown[i*digest.BlockSize : min((i+1)*digest.BlockSize, len(shown))]
				if err := c.Check(context.Background(), int64(i), block); err != nil {
					return err
				}
			}
			return nil
		}
		if err := check(); err != nil {
			t.Fatalf("what the chain shows does not pass: %v", err)
		}
		var m *digest.Mismatch
		at := rapid.Int64Range(0, size-1).Draw(t, "flip")
		shown[at] ^= 0x10
		if err := check(); !errors.As(err, &m) || m.Offset != at/digest.BlockSize*digest.BlockSize {
			t.Errorf("a flip at %d: %v", at, err)
		}
		shown[at] ^= 0x10
		if len(links) > 1 {
			top := &links[0].has[at/digest.BlockSize]
			*top ^= 1 << (at % digest.BlockSize / digest.PieceSize)
			if check() == nil {
				t.Errorf("a piece at %d that the top link has lost or gained passes", at)
			}
		}
	})
}
