package storaged

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
)

// TestCheck examines a sound image, one that leaks a cluster, and one that is corrupt.
func TestCheck(t *testing.T) {
	d, _ := startDaemon(t, quick)
	const export = "a,b=c d" // means nothing to qemu-img
	check := func(damage func(image []byte, refcounts uint64)) (Report, error) {
		path := filepath.Join(t.TempDir(), "backup")
		run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
		run(t, "", "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 192K", path)
		image, err := os.ReadFile(path)
		mustDo(t, err)
		table := binary.BigEndian.Uint64(image[48:])
		damage(image, binary.BigEndian.Uint64(image[table:]))
		writeFile(t, path, append(image, make([]byte, 64<<10)...))
		mustDo(t, d.OpenBackup(t.Context(), export, Backup{Path: path}))
		defer func() { mustDo(t, d.CloseExport(t.Context(), export)) }()
		return Check(t.Context(), "", d.Socket(), export)
	}

	r, err := check(func([]byte, uint64) {})
	if err != nil || r.Leaks != 0 || r.Corruptions != 0 || r.AllocatedClusters != 3 || r.TotalClusters != 16 {
		t.Errorf("sound: %+v, %v", r, err)
	}
	r, err = check(func(image []byte, refcounts uint64) {
		last := uint64(len(image)) / clusterSize
		binary.BigEndian.PutUint16(image[refcounts+2*last:], 1)
	})
	if err != nil || r.Leaks != 1 || r.Corruptions != 0 {
		t.Errorf("leak: %+v, %v", r, err)
	}
	r, err = check(func(image []byte, refcounts uint64) {
		last := uint64(len(image))/clusterSize - 1
		binary.BigEndian.PutUint16(image[refcounts+2*last:], 0)
	})
	if messages.CodeOf(err) != messages.CodeVerifyFailed || r.Corruptions == 0 {
		t.Errorf("corrupt: %+v, %v", r, err)
	}
}

func TestCheckCannotRun(t *testing.T) {
	d, _ := startDaemon(t, quick)
	if _, err := Check(t.Context(), "", d.Socket(), "none"); messages.CodeOf(err) != messages.CodeVerifyFailed {
		t.Errorf("no such export: %v", err)
	}
	if _, err := Check(t.Context(), "/nonexistent/qemu-img", d.Socket(), "vda"); messages.CodeOf(err) != messages.CodeStorageDaemonFailed {
		t.Errorf("no such program: %v", err)
	}
	cause := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := Check(ctx, "", d.Socket(), "vda"); !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
}

func FuzzParseReport(f *testing.F) {
	for _, seed := range []string{
		`{"image-end-offset": 262144, "total-clusters": 16, "check-errors": 0, "filename": "x", "format": "qcow2"}`,
		`{"check-errors": 0, "format": "qcow2", "corruptions": -1}`, `{}`, `null`, `{"check-errors":0,"format":"raw"}`, "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		if r, err := parseReport(out); err == nil && (r.Corruptions < 0 || r.Leaks < 0 || r.Errors < 0) {
			t.Errorf("a negative count: %+v", r)
		}
	})
}
