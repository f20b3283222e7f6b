package bus

import (
	"os"
	"path/filepath"
	"testing"
)

func TestInUse(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "nats")
	want := func(want bool) {
		t.Helper()
		if used, err := InUse(dir); err != nil || used != want {
			t.Errorf("%v, %v", used, err)
		}
	}
	want(false)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Error("the folder was made")
	}
	s := startServer(t, dir, ListenNone)
	want(true)
	want(true)
	s.Stop()
	want(false)
	startServer(t, dir, ListenNone)
	if _, err := InUse(filepath.Join(dir, lockName)); err == nil {
		t.Error("a file was taken for a folder")
	}
}
