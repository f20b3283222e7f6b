package storaged

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/messages"
)

// TestChain writes a full backup and two of changes, data and zeroes, and reads what each shows on
// those below it. A cleared cluster hides what lies below, compressed or not.
func TestChain(t *testing.T) {
	const size, unit = 3<<20 + 5*512, 256 << 10
	for _, compression := range []string{"", "zstd"} {
		for _, passphrase := range [][]byte{nil, []byte(testPassphrase)} {
			t.Run(fmt.Sprintf("%s,encrypted=%t", compression, passphrase != nil), func(t *testing.T) {
				d, _ := startDaemon(t, quick)
				dir, want := t.TempDir(), content(size)
				links := []Backup{link(t, d, filepath.Join(dir, "0"), compression, passphrase, size, func(c *nbd.Conn) {
					for off := 0; off < size; off += unit {
						write(t, c, want[off:min(off+unit, size)], int64(off))
					}
				})}
				shown := [][]byte{bytes.Clone(want)}
				for i := range 2 {
					data := bytes.Repeat([]byte{byte('A' + i)}, unit)
					at, cleared := (2+3*i)*unit, (1+6*i)*unit
					path := filepath.Join(dir, fmt.Sprint(i+1))
					links = append([]Backup{link(t, d, path, compression, passphrase, size, func(c *nbd.Conn) {
						write(t, c, data, int64(at))
						if err := c.WriteZeroes(t.Context(), int64(cleared), unit, nbd.MayPunch); err != nil {
							t.Fatal(err)
						}
						if err := c.WriteZeroes(t.Context(), size/unit*unit, size%unit, nbd.MayPunch); err != nil {
							t.Fatal(err)
						}
					})}, links...)
					copy(want[at:], data)
					clear(want[cleared : cleared+unit])
					clear(want[size/unit*unit:])
					shown = append([][]byte{bytes.Clone(want)}, shown...)
				}
				for i := range links {
					if err := d.OpenChain(t.Context(), "vda", links[i:]); err != nil {
						t.Fatal(err)
					}
					requireSame(t, copyOut(t, d, "vda"), shown[i])
					if i < 2 {
						requireOwn(t, d, LinkExport("vda", 0), 2*unit+size%unit)
					}
					if err := d.CloseExport(t.Context(), "vda"); err != nil {
						t.Error(err)
					}
					requireEmpty(t, d)
				}
			})
		}
	}
}

// link writes a backup file.
func link(t *testing.T, d *Daemon, path, compression string, passphrase []byte, size int64, fn func(*nbd.Conn)) Backup {
	t.Helper()
	if err := d.CreateBackup(t.Context(), "new", NewBackup{Path: path, Size: size, Compression: compression, Passphrase: passphrase}); err != nil {
		t.Fatal(err)
	}
	c, err := nbd.Dial(t.Context(), d.Socket(), nbd.Options{Export: "new"})
	if err != nil {
		t.Fatal(err)
	}
	fn(c)
	for _, err := range []error{c.Flush(t.Context()), c.Close(), d.CloseExport(t.Context(), "new")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return Backup{path, passphrase}
}

func write(t *testing.T, c *nbd.Conn, p []byte, off int64) {
	t.Helper()
	if err := c.WriteAt(t.Context(), p, off); err != nil {
		t.Fatal(err)
	}
}

// requireOwn fails unless an export says that so much of its content is its own.
func requireOwn(t *testing.T, d *Daemon, export string, want int64) {
	t.Helper()
	c, err := nbd.Dial(t.Context(), d.Socket(), nbd.Options{Export: export, MetaContexts: []string{nbd.AllocationDepth}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var own int64
	for off := int64(0); off < c.Size(); {
		list, err := c.BlockStatus(t.Context(), nbd.AllocationDepth, off, c.Size()-off)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			off = e.Offset + e.Length
			if e.Flags == 1 {
				own += e.Length
			}
		}
	}
	if own != want {
		t.Errorf("%s holds %d bytes itself, want %d", export, own, want)
	}
}

// A link that names another file is refused wherever it is in the chain, and so is one of none.
func TestChainRefuses(t *testing.T) {
	d, _ := startDaemon(t, quick)
	dir := t.TempDir()
	good := link(t, d, filepath.Join(dir, "good"), "", nil, 1<<20, func(*nbd.Conn) {})
	hostile := filepath.Join(dir, "hostile")
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", hostile, "1M")
	for _, links := range [][]Backup{{{Path: hostile}, good}, {good, {Path: hostile}}, {good, {Path: hostile}, good}} {
		if err := d.OpenChain(t.Context(), "vda", links); messages.CodeOf(err) != messages.CodeBackupCorrupt {
			t.Errorf("a chain with a link that names another file: %v", err)
		}
		requireEmpty(t, d)
	}
	if err := d.OpenChain(t.Context(), "vda", []Backup{good, {Path: filepath.Join(dir, "none")}}); messages.CodeOf(err) != messages.CodeBackupNotFound {
		t.Errorf("a link that is not there: %v", err)
	}
	if err := d.OpenChain(t.Context(), "vda", nil); err == nil {
		t.Error("a chain of nothing was opened")
	}
	requireEmpty(t, d)
}
