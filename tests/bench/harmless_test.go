package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

const (
	// harmlessMiB is the size of the disk that the guest writes to, all of it data.
	harmlessMiB = 160
	// slowRate is that of the slow target, in MiB/s.
	slowRate = 5
	// leastSpan is how long the guest is watched at least: a short backup is taken again.
	leastSpan = 8 * time.Second
	// aloneSpan is how long the guest is watched before and after each way, while nobody backs it up.
	aloneSpan = 16 * time.Second
)

// BenchmarkHarmless measures what a guest feels: how long its writes take while nobody backs it
// up, and during backups of ours and of libvirt's push mode, to a fast target and to a slow one.
func BenchmarkHarmless(b *testing.B) {
	rounds := int(number(b, "NASFLEET_BENCH_ROUNDS", 5))
	for b.Loop() {
		h := newHarmless(b)
		r := harmReport{Date: time.Now(), Rounds: rounds, DiskMiB: harmlessMiB, Rate: slowRate, results: map[string][]lap{}}
		before := h.alone(b, &r)
		for round := range rounds {
			ways := h.ways()
			for i := range ways {
				// Each round begins with another one.
				w := ways[(i+round)%len(ways)]
				l := h.watch(b, w.backUp)
				after := h.alone(b, &r)
				// The machine is not always as fast: what came just before and after is what to compare with.
				l.alone = (before.P99 + after.P99) / 2
				before = after
				r.results[w.id] = append(r.results[w.id], l)
				fmt.Fprintf(os.Stderr, "round %d: %-24s %6d writes, p50 %v, p99 %v (alone %v), max %v in %.1f s\n",
					round, w.id, l.Count, l.Median, l.P99, l.alone, l.Max, l.span.Seconds())
			}
		}
		h.guest.Unharmed(b)
		h.guest.StopWriter(b)
		r.publish(b)
	}
}

// harmless is the stage: a guest with a real system that writes all the while.
type harmless struct {
	*scene
	guest *lab.Guest
	// fast is a folder, slow a mounted one whose server takes slowRate.
	fast, slow string
	slowArgs   []string
	// pushed counts the backups of push mode.
	pushed int
}

func newHarmless(b *testing.B) *harmless {
	b.Helper()
	h := &harmless{scene: &scene{dir: lab.Dir(b)}}
	h.fast = filepath.Join(h.dir, "fast")
	if err := os.MkdirAll(h.fast, 0o777); err != nil {
		b.Fatal(err)
	}
	if err := os.Chmod(h.fast, 0o777); err != nil {
		b.Fatal(err)
	}
	// The NAS is another machine: what it does here must take neither the guest's processors nor its disk.
	server := lab.Sshd(b)
	server.StandBack(b)
	lab.Run(b, "mount", "-t", "tmpfs", "nas", server.Export)
	b.Cleanup(func() { lab.Run(b, "umount", "--lazy", server.Export) })
	options := behind(server, throttled(b, server.Port, slowRate*mib))
	h.slowArgs = []string{"--repo-type", "fuse.sshfs", "--repo-address", server.Address(), "--repo-options", options}
	// libvirt's push mode needs it mounted, before libvirtd takes its view of the mounts.
	h.slow = filepath.Join(h.dir, "slow")
	if err := os.Mkdir(h.slow, 0o755); err != nil {
		b.Fatal(err)
	}
	lab.Run(b, "mount", "-t", "fuse.sshfs", "-o", options+",allow_other", server.Address(), h.slow)
	b.Cleanup(func() { lab.Run(b, "umount", "--lazy", h.slow) })
	h.libvirt = lab.Libvirtd(b)
	disk := filepath.Join(h.dir, "disk.raw")
	lab.Run(b, "dd", "if=/dev/urandom", "of="+disk, "bs=1M", fmt.Sprintf("count=%d", harmlessMiB), "status=none")
	h.disk = filepath.Join(h.dir, "disk.qcow2")
	lab.Run(b, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, h.disk)
	h.guest = h.libvirt.BootGuest(b, lab.GuestOptions{Name: vmName, Disks: []lab.Disk{{Path: h.disk}}})
	h.worker = startWorker(b, build(b), h.libvirt.URI)
	h.guest.WriteRandom(b, "vda")
	return h
}

// harm is a way to back the guest up while it writes. backUp returns what removes the backup.
type harm struct {
	id     string
	backUp func(b *testing.B) (remove func())
}

const (
	idAlone    = "the guest alone"
	idOursFast = "nasfleet, fast target"
	idPushFast = "push mode, fast target"
	idOursSlow = "nasfleet, slow target"
	idPushSlow = "push mode, slow target"
)

func (h *harmless) ways() []harm {
	return []harm{
		{idOursFast, func(b *testing.B) func() { return h.take(b, "--repo", h.fast) }},
		{idPushFast, func(b *testing.B) func() { return h.push(b, h.fast) }},
		{idOursSlow, func(b *testing.B) func() { return h.take(b, h.slowArgs...) }},
		{idPushSlow, func(b *testing.B) func() { return h.push(b, h.slow) }},
	}
}

// lap is what the guest felt in a span of time.
type lap struct {
	lab.Laps
	span time.Duration
	// alone is the 99th percentile of the guest alone at that time.
	alone time.Duration
}

// alone watches the guest while nobody backs it up.
func (h *harmless) alone(b *testing.B, r *harmReport) lap {
	b.Helper()
	h.guest.Laps(b)
	time.Sleep(aloneSpan)
	l := lap{Laps: h.guest.Laps(b), span: aloneSpan}
	r.results[idAlone] = append(r.results[idAlone], l)
	return l
}

// watch returns what the guest feels while it is backed up, again until leastSpan is over. The
// backups are removed after that.
func (h *harmless) watch(b *testing.B, backUp func(*testing.B) func()) lap {
	b.Helper()
	var removes []func()
	h.guest.Laps(b)
	started := time.Now()
	for time.Since(started) < leastSpan {
		removes = append(removes, backUp(b))
	}
	l := lap{Laps: h.guest.Laps(b), span: time.Since(started)}
	for _, remove := range removes {
		remove()
	}
	return l
}

// take takes a backup.
func (h *harmless) take(b *testing.B, repo ...string) (remove func()) {
	b.Helper()
	_, ev := h.worker.takeTo(b, repo, "--vm", vmName)
	return func() {
		out, err := h.worker.publisher("delete", "--backup", ev.BackupID, "--wait", "--json").Output()
		if err != nil {
			b.Fatalf("publisher delete: %v\n%s", err, out)
		}
		if deleted, err := messages.DecodeEvent(out); err != nil || deleted.Kind != messages.KindSucceeded {
			b.Fatalf("publisher delete: %v\n%s", err, out)
		}
	}
}

// push lets libvirt write the backup itself.
func (h *harmless) push(b *testing.B, dir string) (remove func()) {
	b.Helper()
	h.pushed++
	target := filepath.Join(dir, fmt.Sprintf("pushed-%d.qcow2", h.pushed))
	document := filepath.Join(h.dir, "push.xml")
	xml := fmt.Sprintf("<domainbackup mode='push'><disks><disk name='vda' type='file'><target file='%s'/><driver type='qcow2'/></disk></disks></domainbackup>", target)
	if err := os.WriteFile(document, []byte(xml), 0o600); err != nil {
		b.Fatal(err)
	}
	h.libvirt.Virsh(b, "backup-begin", vmName, document)
	for h.jobRuns(b) {
		time.Sleep(100 * time.Millisecond)
	}
	return func() {
		if err := os.Remove(target); err != nil {
			b.Fatal(err)
		}
	}
}

func (r *harmReport) publish(b *testing.B) {
	b.Helper()
	var text bytes.Buffer
	if err := r.write(&text); err != nil {
		b.Fatal(err)
	}
	path := os.Getenv("NASFLEET_BENCH_GUEST_REPORT")
	if path == "" {
		fmt.Fprintf(os.Stderr, "\n%s", text.String())
		return
	}
	fmt.Fprintf(os.Stderr, "\n%s\n\n%s\n", r.Felt(), r.Goals())
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		b.Fatal(err)
	}
}
