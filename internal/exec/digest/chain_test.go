package digest

import (
	"bytes"
	"path/filepath"
	"testing"
)

// What a chain's digests prove of a block, and what they leave open.
func TestChainSame(t *testing.T) {
	const blocks = 5
	block := func(b byte) []byte { return bytes.Repeat([]byte{b}, BlockSize) }
	half := block(2)
	clear(half[BlockSize/2:])
	open := func(name string, fill func(w *Writer) error) *Reader {
		path := filepath.Join(t.TempDir(), name)
		w, err := Create(path, blocks*BlockSize, nil)
		if err == nil {
			err = fill(w)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		r, err := Open(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	whole := open("whole", func(w *Writer) error {
		for i := range int64(blocks - 1) { // the last one is a hole
			if err := w.Put(i, w.Sum(block(1))); err != nil {
				return err
			}
		}
		return nil
	})
	newer := open("newer", func(w *Writer) error {
		if err := w.Put(1, w.Sum(block(2))); err != nil {
			return err
		}
		if err := w.Put(2, w.SumPart(half, Whole(BlockSize/2))); err != nil {
			return err
		}
		return w.PutZeroes(3, 1)
	})
	c := Chain{newer, whole}
	for name, tt := range map[string]struct {
		index   int64
		content []byte
		want    bool
	}{
		"as in the oldest":                     {0, block(1), true},
		"not as in the oldest":                 {0, block(2), false},
		"zeroes where there is data":           {0, nil, false},
		"as in the newer":                      {1, block(2), true},
		"as before the newer":                  {1, block(1), false},
		"a part alone proves nothing":          {2, half, false},
		"zeroes where there is a part":         {2, nil, false},
		"zeroes that were written":             {3, nil, true},
		"zeroes that were written, as content": {3, block(0), true},
		"data where zeroes were written":       {3, block(1), false},
		"a hole":                               {4, nil, true},
		"data in a hole":                       {4, block(1), false},
	} {
		if got, err := c.Same(t.Context(), tt.index, tt.content); got != tt.want || err != nil {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
	if _, err := c.Same(t.Context(), blocks, nil); err == nil {
		t.Error("a block behind the end")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
