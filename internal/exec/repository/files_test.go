package repository

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// steps is a context that ends after some looks at it.
type steps struct {
	context.Context
	left int
}

func (s *steps) Err() error {
	if s.left--; s.left < 0 {
		return context.Canceled
	}
	return nil
}

// A removal that hung and was given up takes no further step when it is let go: what has the name then is not
// what was to be removed. The manifest goes first.
func TestARemovalThatIsGivenUpStops(t *testing.T) {
	files := []string{"a.qcow2", "b.qcow2", "manifest.json"}
	for taken, left := range [][]string{files, files[:2], files[1:2], {}} {
		dir := t.TempDir()
		folder := filepath.Join(dir, "x.partial")
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(folder, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := removeTrees(&steps{t.Context(), taken}, root, ".", "x.partial"); !errors.Is(err, context.Canceled) {
			t.Errorf("after %d steps: %v", taken, err)
		}
		entries, err := os.ReadDir(folder)
		if err != nil || len(entries) != len(left) {
			t.Fatalf("after %d steps there are %v, %v", taken, entries, err)
		}
		for i, e := range entries {
			if e.Name() != left[i] {
				t.Errorf("after %d steps there is %s, want %s", taken, e.Name(), left[i])
			}
		}
		if err := removeTrees(t.Context(), root, ".", "x.partial", "not there"); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(folder); err == nil {
			t.Error("the folder is left")
		}
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	}
}
