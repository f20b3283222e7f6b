package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"text/template"
	"time"

	"github.com/nasfleet/nasfleet/tests/lab"
)

const (
	// changes is how many places of the disk a guest writes to before each incremental, and
	// changeMiB how much at each.
	changes   = 16
	changeMiB = 4
)

const (
	idOursInc = "nasfleet, incremental"
	idVirtInc = "virtnbdbackup, incremental"
)

//go:embed incremental.md.tmpl
var incrementalTemplate string

// BenchmarkIncremental takes incrementals of two VMs that are alike and write alike: one is backed
// up by us, the other by virtnbdbackup, so that neither pays for the other's checkpoints.
func BenchmarkIncremental(b *testing.B) {
	rounds := int(number(b, "NASFLEET_BENCH_ROUNDS", 5))
	data := number(b, "NASFLEET_BENCH_MIB", 2048)
	for b.Loop() {
		s := newScene(b, build(b), data)
		twin := filepath.Join(s.dir, "twin.qcow2")
		lab.Run(b, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", s.original, twin)
		theirs := s.libvirt.DefineVM(b, lab.VMOptions{Name: "twin", Disks: []lab.Disk{{Path: twin}}})
		out := filepath.Join(s.dir, "theirs")
		repo := s.empty(b)
		s.worker.take(b, repo, "--vm", vmName, "--mode", "auto")
		s.virtnbdbackupOf(b, "twin", out, "full")
		r := incrementalReport{Date: time.Now(), Rounds: rounds, DataMiB: s.dataMiB, ChangedMiB: changes * changeMiB, results: map[string][]sample{}}
		for round := range rounds {
			for i := range int64(changes) {
				at := (i*diskMiB/changes + int64(round)*2*changeMiB) * mib
				s.vm.Write(b, "vda", at, changeMiB*mib, byte(round+1))
				theirs.Write(b, "vda", at, changeMiB*mib, byte(round+1))
			}
			turns := []func(){
				func() { r.add(b, idOursInc, s.oursIncremental(b, repo)) },
				func() { r.add(b, idVirtInc, s.virtnbdbackupOf(b, "twin", out, "inc")) },
			}
			for i := range turns {
				syncAll()
				turns[(i+round)%len(turns)]()
			}
		}
		r.publish(b)
	}
}

// oursIncremental takes an incremental, and fails the benchmark if it was none.
func (s *scene) oursIncremental(b *testing.B, repo string) sample {
	b.Helper()
	took, ev := s.worker.take(b, repo, "--vm", vmName, "--mode", "incremental")
	return sample{took: took, stored: blocks(b, filepath.Join(repo, vmName, ev.BackupID))}
}

// virtnbdbackupOf takes a backup of a level (full, inc) into a folder that holds the ones before.
func (s *scene) virtnbdbackupOf(b *testing.B, vm, out, level string) sample {
	b.Helper()
	open := s.openDir(b)
	before := int64(0)
	if level != "full" {
		before = blocks(b, out)
	}
	memory := map[string]int64{}
	started := time.Now()
	measured(b, memory, "virtnbdbackup", "--uri", s.libvirt.URI, "--domain", vm, "--level", level, "--noprogress",
		"--output", out, "--scratchdir", open, "--socketfile", filepath.Join(open, "nbd.sock"))
	return sample{took: time.Since(started), stored: blocks(b, out) - before, memory: memory}
}

// incrementalReport is what docs/performance-incremental.md is made of.
type incrementalReport struct {
	Date                time.Time
	Rounds              int
	DataMiB, ChangedMiB int64
	results             map[string][]sample
}

func (r *incrementalReport) add(b *testing.B, id string, s sample) {
	b.Helper()
	r.results[id] = append(r.results[id], s)
	fmt.Fprintf(os.Stderr, "%-30s %6.2f s, %.0f MiB\n", id, took(s), stored(s))
}

// Runs is the table of both.
func (r *incrementalReport) Runs() string {
	rows := [][]string{{"what", "time, s", "stored, MiB"}}
	for _, id := range []string{idOursInc, idVirtInc} {
		rows = append(rows, []string{
			id, summarize(of(r.results[id], took)).format("%.2f"), summarize(of(r.results[id], stored)).format("%.0f"),
		})
	}
	return table(rows)
}

// Ratios are ours to theirs, round by round.
func (r *incrementalReport) Ratios() string {
	ratio := func(value func(sample) float64) string {
		return summarize(ratios(r.results[idOursInc], r.results[idVirtInc], value)).format("%.2f")
	}
	return table([][]string{{"nasfleet to virtnbdbackup", "ratio"}, {"time", ratio(took)}, {"size", ratio(stored)}})
}

func (r *incrementalReport) text(b *testing.B) []byte {
	b.Helper()
	t, err := template.New("incremental").Parse(incrementalTemplate)
	must(b, err)
	var text bytes.Buffer
	must(b, t.Execute(&text, r))
	return text.Bytes()
}

func (r *incrementalReport) publish(b *testing.B) {
	b.Helper()
	text := r.text(b)
	path := os.Getenv("NASFLEET_BENCH_INCREMENTAL_REPORT")
	if path == "" {
		fmt.Fprintf(os.Stderr, "\n%s", text)
		return
	}
	fmt.Fprintf(os.Stderr, "\n%s\n\n%s\n", r.Runs(), r.Ratios())
	must(b, os.WriteFile(path, text, 0o644))
}
