package bench

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// diskMiB is the size of the guest's disk.
const diskMiB = 8 << 10

// BenchmarkBackup takes backups of a running VM in all the ways, round by round, and writes the
// report.
func BenchmarkBackup(b *testing.B) {
	rounds := number(b, "NASFLEET_BENCH_ROUNDS", 5)
	data := number(b, "NASFLEET_BENCH_MIB", 2048)
	for b.Loop() {
		r := report{
			Date: time.Now(), Rounds: int(rounds), DiskMiB: diskMiB,
			results: map[string][]sample{}, contests: contestants(),
		}
		programs := build(b)
		r.Memory = bigDisk(b, programs)
		s := newScene(b, programs, data)
		r.DataMiB = s.dataMiB
		// Nobody shall pay for cold caches: the round before the first is checked instead of counted.
		s.round(b, 0, map[string][]sample{})
		for round := range int(rounds) {
			s.round(b, round+1, r.results)
		}
		r.Machine = lookAtMachine(b, s)
		r.Memory.AllRuns = s.worker.peak(b)
		publish(b, &r)
	}
}

// number reads a positive number from the environment.
func number(b *testing.B, variable string, otherwise int64) int64 {
	b.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		b.Fatalf("%s=%s is not a positive number", variable, text)
	}
	return n
}

// round lets everybody run once. Each round begins with another one, so that nobody always runs
// after the same. In round 0 the backups are compared with the original: what is fast and wrong
// does not count.
func (s *scene) round(b *testing.B, round int, results map[string][]sample) {
	b.Helper()
	ways := s.ways()
	all := contestants()
	for i := range all {
		c := all[(i+round)%len(all)]
		out := s.empty(b)
		syncAll()
		s.warm(b)
		result, image := ways[c.id](b, out)
		started := time.Now()
		syncAll()
		result.sync = time.Since(started)
		results[c.id] = append(results[c.id], result)
		fmt.Fprintf(os.Stderr, "round %d: %-55s %6.2f s (job %.2f, copying %.2f), sync %.2f s, %d MiB\n",
			round, c.name, took(result), job(result), copying(result), syncing(result), result.stored/mib)
		if round == 0 && image != "" {
			lab.Run(b, "qemu-img", "compare", "--object", "secret,id=pass,file="+s.passFile,
				"--image-opts", "driver=raw,file.driver=file,file.filename="+s.original, image)
		}
	}
}

// warm reads the guest's disk into the page cache: everybody finds it there.
func (s *scene) warm(b *testing.B) {
	b.Helper()
	f, err := os.Open(s.disk)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := io.Copy(io.Discard, f); err != nil {
		b.Fatal(err)
	}
}

// syncAll writes out what every file system holds back.
func syncAll() { unix.Sync() }

// empty removes what the last one left and makes a new folder for the next, open to QEMU.
func (s *scene) empty(b *testing.B) string {
	b.Helper()
	out := filepath.Join(s.dir, "out")
	if err := os.RemoveAll(out); err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(out, 0o777); err != nil {
		b.Fatal(err)
	}
	if err := os.Chmod(out, 0o777); err != nil {
		b.Fatal(err)
	}
	return out
}

// publish prints the tables, and writes the report where it is wanted.
func publish(b *testing.B, r *report) {
	b.Helper()
	var text bytes.Buffer
	if err := r.write(&text); err != nil {
		b.Fatal(err)
	}
	path := os.Getenv("NASFLEET_BENCH_REPORT")
	if path == "" {
		fmt.Fprintf(os.Stderr, "\n%s", text.String())
		return
	}
	fmt.Fprintf(os.Stderr, "\n%s\n\n%s\n\n%s\n", r.Runs(), r.Parts(), r.Goals())
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		b.Fatal(err)
	}
}
