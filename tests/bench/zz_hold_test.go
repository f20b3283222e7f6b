package bench

import (
	"fmt"
	"os"
	"testing"
	"time"
)

func BenchmarkHold(b *testing.B) {
	for b.Loop() {
		programs := build(b)
		s := newScene(b, programs, number(b, "NASFLEET_BENCH_MIB", 2048))
		os.Chmod(s.dir, 0o777)
		os.WriteFile("/tmp/hold.env", []byte(fmt.Sprintf("export P=%s NASFLEET_NATS=%s W=%d URI='%s' DIR=%s PASS=%s\n", programs, s.worker.url, s.worker.cmd.Process.Pid, s.libvirt.URI, s.dir, s.passFile)), 0o600)
		for {
			if _, err := os.Stat("/tmp/hold.stop"); err == nil {
				break
			}
			time.Sleep(time.Second)
		}
	}
}
