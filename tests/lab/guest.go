package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// bootPatience bounds a guest's boot, which takes about seven seconds on an idle machine, and
// each of its answers: it emulates, and other tests run beside it.
const bootPatience = 4 * time.Minute

// Guest is a VM with a real Linux: Debian's kernel, ext4 file systems and the QEMU guest agent. A
// test makes it write, and knows at each time what the guest was told to be on the disk.
//
// Its methods are for one goroutine, but Synced and SyncedBy.
type Guest struct {
	*VM
	conn    net.Conn
	console string
	// answers to commands.
	answers chan string

	mu     sync.Mutex
	synced []acknowledged
	broken []string
}

// acknowledged says when the test heard that a number was on the disk.
type acknowledged struct {
	number int64
	at     time.Time
}

// GuestOptions describes a guest.
type GuestOptions struct {
	Name string
	// Disks are virtio disks, vda first.
	Disks []Disk
	// Mounted are the targets of the disks that hold an ext4 file system (see GuestDisk), which
	// the guest mounts. It leaves the others alone.
	Mounted []string
}

// Felt is what a guest's writer has felt, as seen from inside.
type Felt struct {
	Written, Failed int64
	// Longest is the longest that one write took, with its sync.
	Longest time.Duration
}

// GuestDisk creates a qcow2 image at the path with an empty ext4 file system of the size in MiB.
func GuestDisk(t testing.TB, path string, sizeMiB int) string {
	t.Helper()
	raw := FSImage(t, path+".raw", sizeMiB, "")
	Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	return path
}

// BootGuest boots a guest and waits until it and its agent answer. It ends with the daemon, and
// costs about ten seconds and 128 MiB: share it among subtests.
func (l *Libvirt) BootGuest(t testing.TB, o GuestOptions) *Guest {
	t.Helper()
	dir := filepath.Join(l.Dir, "guest-"+o.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	files := guestFiles(t)
	kernel, initrd := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	copyFile(t, files.kernel, kernel)
	buildInitrd(t, files, initrd)
	port := filepath.Join(dir, "control")
	g := &Guest{console: filepath.Join(dir, "console"), answers: make(chan string)}
	g.VM = l.DefineVM(t, VMOptions{
		Name: o.Name, Disks: o.Disks, memoryMiB: 128,
		osXML: fmt.Sprintf("<kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline>", kernel, initrd,
			"console=ttyS0 loglevel=4 panic=-1 rdinit=/init disks="+strings.Join(o.Mounted, ",")),
		DevicesXML: fmt.Sprintf(`<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<channel type='unix'><source mode='bind' path='%s'/><target type='virtio' name='lab.control'/></channel>
<serial type='file'><source path='%s'/></serial>`, port, g.console),
	})
	g.connect(t, port)
	Eventually(t, "the guest's agent answers", g.agentAnswers(t))
	return g
}

func (g *Guest) connect(t testing.TB, port string) {
	t.Helper()
	var err error
	if g.conn, err = new(net.Dialer).DialContext(context.Background(), "unix", port); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(g.answers)
		g.listen()
	}()
	t.Cleanup(func() {
		_ = g.conn.Close()
		for range g.answers { //nolint:revive // answers that nobody waits for
		}
		<-done
		if t.Failed() {
			t.Logf("the console of %s:\n%s", g.Name, g.Console(t))
		}
	})
	if answer := g.await(t, "its boot"); answer != "ready" {
		t.Fatalf("%s has not booted: %s", g.Name, answer)
	}
}

// listen notes what the guest tells until the connection ends.
func (g *Guest) listen() {
	lines := bufio.NewScanner(g.conn)
	for lines.Scan() {
		kind, rest, _ := strings.Cut(lines.Text(), " ")
		switch kind {
		case "synced":
			n, err := strconv.ParseInt(rest, 10, 64)
			if err == nil {
				g.mu.Lock()
				g.synced = append(g.synced, acknowledged{n, time.Now()})
				g.mu.Unlock()
			}
		case "failed":
			g.mu.Lock()
			g.broken = append(g.broken, rest)
			g.mu.Unlock()
		default:
			g.answers <- lines.Text()
		}
	}
}

func (g *Guest) await(t testing.TB, what string) string {
	t.Helper()
	select {
	case answer, open := <-g.answers:
		if !open {
			t.Fatalf("%s has gone before %s; its console:\n%s", g.Name, what, g.Console(t))
		}
		return answer
	case <-time.After(bootPatience):
		t.Fatalf("%s does not answer to %s; its console:\n%s", g.Name, what, g.Console(t))
	}
	return ""
}

// do gives the guest a command (tests/lab/guestinit) and returns its answer.
func (g *Guest) do(t testing.TB, command string) string {
	t.Helper()
	if _, err := fmt.Fprintln(g.conn, command); err != nil {
		t.Fatalf("%s: %v", g.Name, err)
	}
	answer, ok := strings.CutPrefix(g.await(t, command), "ok")
	if !ok {
		t.Fatalf("%s: %s: %s", g.Name, command, answer)
	}
	return strings.TrimSpace(answer)
}

// WriteRecords makes the guest append numbered records to the file "records" of the disk's file
// system, and sync each, until StopWriter. CheckRecords reads them.
func (g *Guest) WriteRecords(t testing.TB, disk string) { t.Helper(); g.begin(t, "write "+disk) }

// WriteCounter makes the guest write a counter to the first block of one disk and then of the
// other, past its caches, until StopWriter. Counter reads it.
func (g *Guest) WriteCounter(t testing.TB, first, then string) {
	t.Helper()
	g.begin(t, "count "+first+" "+then)
}

// WriteRandom makes the guest write a block to random places of a raw disk, past its caches and
// about 500 times a second, until StopWriter.
func (g *Guest) WriteRandom(t testing.TB, disk string) { t.Helper(); g.begin(t, "random "+disk) }

// Laps is how long a guest's writes took, as seen from inside.
type Laps struct {
	Count            int64
	Median, P99, Max time.Duration
}

// Laps returns how long the writes took since it was called last, or since the writer began.
func (g *Guest) Laps(t testing.TB) Laps {
	t.Helper()
	var l Laps
	var us [3]int64
	if answer := g.do(t, "laps"); answer == "" {
		t.Fatal("the guest tells no laps")
	} else if _, err := fmt.Sscan(answer, &l.Count, &us[0], &us[1], &us[2]); err != nil {
		t.Fatalf("the guest's laps: %q: %v", answer, err)
	}
	l.Median, l.P99, l.Max = time.Duration(us[0])*time.Microsecond, time.Duration(us[1])*time.Microsecond, time.Duration(us[2])*time.Microsecond
	return l
}

func (g *Guest) begin(t testing.TB, command string) {
	t.Helper()
	g.mu.Lock()
	g.synced = nil
	g.mu.Unlock()
	g.do(t, command)
	g.AwaitWrites(t, 1)
}

// StopWriter ends the guest's writer and returns what it has felt.
func (g *Guest) StopWriter(t testing.TB) Felt { t.Helper(); return parseFelt(t, g.do(t, "stop")) }

// Felt returns what the guest's writer has felt so far.
func (g *Guest) Felt(t testing.TB) Felt { t.Helper(); return parseFelt(t, g.do(t, "stat")) }

func parseFelt(t testing.TB, answer string) Felt {
	t.Helper()
	var f Felt
	var us int64
	if _, err := fmt.Sscan(answer, &f.Written, &f.Failed, &us); err != nil {
		t.Fatalf("what the guest's writer felt: %q: %v", answer, err)
	}
	f.Longest = time.Duration(us) * time.Microsecond
	return f
}

// Synced returns the newest number that the guest has told to be on its disk.
func (g *Guest) Synced() int64 { return g.SyncedBy(time.Now()) }

// SyncedBy returns the newest number that the test knew to be on the guest's disk at the time.
func (g *Guest) SyncedBy(at time.Time) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	var n int64
	for _, s := range g.synced {
		if !s.at.After(at) {
			n = s.number
		}
	}
	return n
}

// AwaitWrites waits until the guest has written so many numbers more.
func (g *Guest) AwaitWrites(t testing.TB, more int64) {
	t.Helper()
	want := g.Synced() + more
	if !within(bootPatience, func() bool { return g.Synced() >= want }) {
		t.Fatalf("the guest does not write: %d, not %d; %v", g.Synced(), want, g.failures())
	}
}

func (g *Guest) failures() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.broken
}

// Unharmed fails the test when a write in the guest has failed, its kernel complains of a disk, or
// its processors were ever paused.
func (g *Guest) Unharmed(t testing.TB) {
	t.Helper()
	for _, f := range g.failures() {
		t.Errorf("%s: a write failed: %s", g.Name, f)
	}
	for _, trouble := range []string{"I/O error", "EXT4-fs error", "Remounting filesystem read-only", "Kernel panic"} {
		if console := g.Console(t); strings.Contains(console, trouble) {
			t.Errorf("%s: %s:\n%s", g.Name, trouble, console)
		}
	}
	// A guest that was paused and went on is "running (unpaused)".
	if s := strings.TrimSpace(g.l.Virsh(t, "domstate", "--reason", g.Name)); s != "running (booted)" {
		t.Errorf("%s is %s: it was paused", g.Name, s)
	}
}

// Console returns what the guest's kernel and programs have printed.
func (g *Guest) Console(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(g.console)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}
