package storaged

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"
)

// BenchmarkBackup copies 256 MiB, a third each of text, noise and zeroes, with nbdcopy into a
// backup. Making and closing the backup is not counted, the flush is.
func BenchmarkBackup(b *testing.B) {
	const size = 256 << 20
	source := filepath.Join(b.TempDir(), "source")
	if err := os.WriteFile(source, content(size), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, mode := range []NewBackup{
		{}, {Passphrase: []byte(testPassphrase)},
		{Compression: "zstd"}, {Compression: "zstd", Passphrase: []byte(testPassphrase)},
		{Compression: "zlib"},
	} {
		b.Run(fmt.Sprintf("compression=%s,encrypted=%t", mode.Compression, mode.Passphrase != nil), func(b *testing.B) {
			dir, err := os.MkdirTemp("", "nf")
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = os.RemoveAll(dir) }()
			d, err := Start(context.Background(), Config{Dir: dir, IterTime: quick, Log: zerolog.Nop()})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = d.Stop() }()
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				mode.Path, mode.Size = filepath.Join(dir, "backup"), size
				if err := d.CreateBackup(context.Background(), "vda", mode); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				cmd := exec.CommandContext(context.Background(), "nbdcopy", "--sparse=0", "--no-extents", "--flush", source, d.uri("vda"))
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v %s", err, out)
				}
				b.StopTimer()
				if err := d.CloseExport(context.Background(), "vda"); err != nil {
					b.Fatal(err)
				}
				if err := os.Remove(mode.Path); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
