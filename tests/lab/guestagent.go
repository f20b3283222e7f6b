package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Frozen asks the guest's agent whether its file systems are frozen. The agent must be free to answer.
func (g *Guest) Frozen(t testing.TB) bool {
	t.Helper()
	return strings.Contains(g.l.Virsh(t, "qemu-agent-command", "--timeout", "60", g.Name, `{"execute":"guest-fsfreeze-status"}`), `"frozen"`)
}

// Freeze freezes the guest's file systems, as somebody else than the worker would; Thaw ends it.
func (g *Guest) Freeze(t testing.TB) { t.Helper(); g.l.Virsh(t, "domfsfreeze", g.Name) }

// Thaw thaws the guest's file systems.
func (g *Guest) Thaw(t testing.TB) { t.Helper(); g.l.Virsh(t, "domfsthaw", g.Name) }

// HangAgent stops the guest's agent: it is there and does not answer. ResumeAgent lets it go on.
func (g *Guest) HangAgent(t testing.TB) { t.Helper(); g.do(t, "agent STOP") }

// ResumeAgent ends a HangAgent.
func (g *Guest) ResumeAgent(t testing.TB) { t.Helper(); g.do(t, "agent CONT") }

// KillAgent ends the guest's agent.
func (g *Guest) KillAgent(t testing.TB) { t.Helper(); g.do(t, "agent KILL") }

// HoldFreeze makes each freeze from now on wait in the agent before it happens, until ReleaseFreeze:
// who asked for it waits too. The first time the agent is started again for it, with a hook.
func (g *Guest) HoldFreeze(t testing.TB) {
	t.Helper()
	g.do(t, "hold")
	Eventually(t, "the guest's agent answers again", g.agentAnswers(t))
}

// AwaitHeld waits until a freeze waits in the agent.
func (g *Guest) AwaitHeld(t testing.TB) {
	t.Helper()
	if !within(bootPatience, func() bool { return g.do(t, "held") == "yes" }) {
		t.Fatal("nobody freezes the guest")
	}
}

// ReleaseFreeze lets the freeze that waits, and later ones, happen.
func (g *Guest) ReleaseFreeze(t testing.TB) { t.Helper(); g.do(t, "release") }

// agentAnswers says whether the agent answers. A command to an agent that hangs takes the five
// seconds that libvirt waits for it.
func (g *Guest) agentAnswers(t testing.TB) func() bool {
	return func() bool {
		_, err := g.l.TryVirsh(t, "qemu-agent-command", "--timeout", "60", g.Name, `{"execute":"guest-ping"}`)
		return err == nil
	}
}

// Raw returns a raw copy of an image of the format.
func Raw(t testing.TB, image, format string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), filepath.Base(image)+".raw")
	Run(t, "qemu-img", "convert", "-f", format, "-O", "raw", image, raw)
	return raw
}

// CheckRecords checks the restored image (of the format) of a disk that WriteRecords wrote to: its
// file system is clean without a repair, and it holds every record up to and including upTo, whole
// and in order. It returns how many there are.
func CheckRecords(t testing.TB, image, format string, upTo int64) int64 {
	t.Helper()
	raw := Raw(t, image, format)
	if out, err := Try(t, "e2fsck", "-fn", raw); err != nil {
		t.Errorf("the file system is not clean: %v\n%s", err, out)
	}
	return checkRecords(t, Run(t, "debugfs", "-R", "cat /records", raw), upTo)
}

// RecoverRecords is CheckRecords for a crash-consistent image: its journal is replayed first, as a
// mount would.
func RecoverRecords(t testing.TB, image, format string, upTo int64) int64 {
	t.Helper()
	raw := Raw(t, image, format)
	if out, err := Try(t, "e2fsck", "-E", "journal_only", "-y", raw); err != nil {
		t.Errorf("the journal cannot be replayed: %v\n%s", err, out)
	}
	if out, err := Try(t, "e2fsck", "-fn", raw); err != nil {
		t.Errorf("the file system is not clean after its journal: %v\n%s", err, out)
	}
	return checkRecords(t, Run(t, "debugfs", "-R", "cat /records", raw), upTo)
}

// checkRecords fails the test at the first record that is wrong; the last may have been cut off.
func checkRecords(t testing.TB, file string, upTo int64) int64 {
	t.Helper()
	var n int64
	for line := range strings.Lines(file) {
		if line != record(n+1) {
			break
		}
		n++
	}
	if n < upTo {
		t.Errorf("%d records are whole, and the guest had synced %d", n, upTo)
	}
	return n
}

// Counter reads what WriteCounter has written to a raw image, or block device.
func Counter(t testing.TB, raw string) int64 {
	t.Helper()
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	n, err := readCounter(f)
	if err != nil {
		t.Fatal(fmt.Errorf("read the counter of %s: %w", raw, err))
	}
	return n
}
