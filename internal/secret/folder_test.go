package secret

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "keys")
	f := NewFolder(dir)
	if _, err := f.Read(SealKeyFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if err := f.Create(SealKeyFile, []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := f.Create(SealKeyFile, []byte("second")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a key was replaced: %v", err)
	}
	if key, err := f.Read(SealKeyFile); err != nil || string(key) != "first" {
		t.Errorf("read %q, %v", key, err)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, f.Path(SealKeyFile): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".key-*")); left != nil {
		t.Errorf("left: %v", left)
	}
	for path, mode := range map[string]fs.FileMode{dir: 0o750, f.Path(SealKeyFile): 0o604} {
		info, _ := os.Stat(path)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Read(SealKeyFile); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of mode %04o: %v", path, mode, err)
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoFolder(t *testing.T) {
	var none Folder
	if _, err := none.Read(SealKeyFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read: %v", err)
	}
	if err := none.Create(SealKeyFile, nil); err == nil {
		t.Error("a key was kept nowhere")
	}
}

// Of many who create a key at once one does, and all read that one.
func TestFolderRace(t *testing.T) {
	f := NewFolder(t.TempDir())
	if err := os.Chmod(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	made := make(chan string, 16)
	for i := range cap(made) {
		wg.Go(func() {
			key := string(rune('a' + i))
			if err := f.Create("k", []byte(key)); err == nil {
				made <- key
			} else if !errors.Is(err, fs.ErrExist) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(made)
	if key, err := f.Read("k"); err != nil || len(made) != 1 || string(key) != <-made {
		t.Errorf("%q, %v", key, err)
	}
}
