package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestDeleteInAChain: a backup that others need stays, or goes with them; what is left has its chain.
func TestDeleteInAChain(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	c := newChained(t, w, l, "vm")
	var ids []string
	for range 4 {
		ids = append(ids, c.auto(t).BackupID)
	}
	other := c.take(t, "--mode", "auto", "--backup-path", "b").BackupID // a chain of its own
	catalog := func(want ...string) {
		t.Helper()
		var got []string
		for _, e := range w.ls(t) {
			got = append(got, e["id"].(string))
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("the catalog has %v, want %v", got, want)
		}
		for _, id := range want {
			if id != other {
				w.mustJob(t, "verify", "--backup", id)
			}
		}
	}
	for _, id := range ids[:3] {
		ev := w.mustFail(t, messages.CodeBackupNeeded, "delete", "--backup", id)
		if !strings.Contains(ev.Error.Message, ids[3]) || strings.Contains(ev.Error.Message, other) {
			t.Errorf("the message does not name what needs it: %s", ev.Error.Message)
		}
	}
	if out := w.publisher(t, "show", ids[1]); !strings.Contains(out, "incremental of "+ids[0]) {
		t.Errorf("show does not tell the parent:\n%s", out)
	}
	if out := w.publisher(t, "ls"); strings.Count(out, ids[0]) != 2 {
		t.Errorf("ls does not tell the parent:\n%s", out)
	}
	catalog(ids[0], ids[1], ids[2], ids[3], other)

	// The newest goes alone, and its checkpoint with it.
	w.mustJob(t, "delete", "--backup", ids[3])
	catalog(ids[0], ids[1], ids[2], other)
	onlyCheckpoint(t, l, "vm", other)
	isFull(t, c.take(t, "--mode", "auto"), messages.FullCheckpointLost)

	// A damaged child is one all the same.
	flip(t, filepath.Join(w.nas, "vm", ids[2], "vda.qcow2"), 70<<10)
	w.mustFail(t, messages.CodeBackupNeeded, "delete", "--backup", ids[1])
	ev := w.mustJob(t, "delete", "--backup", ids[1], "--cascade")
	if !strings.Contains(strings.Join(ev.Notes, " "), ids[2]) {
		t.Errorf("no note of what went with it: %v", ev.Notes)
	}
	newest := w.ls(t)
	if len(newest) != 3 || newest[0]["id"] != ids[0] {
		t.Errorf("the catalog has %v", newest)
	}
	w.mustJob(t, "delete", "--backup", ids[0])
	w.nothingLeft(t)
}

// TestAChainThatIsNotWhole: what needs a backup that is gone is neither restored nor verified, the
// message names it, and the other links of the chain still are.
func TestAChainThatIsNotWhole(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	c := newChained(t, w, l, "vm")
	full, middle, last := c.auto(t).BackupID, c.auto(t).BackupID, c.auto(t).BackupID
	dir := filepath.Join(w.nas, "vm", middle)
	lab.Run(t, "mv", dir, dir+".away")
	to := filepath.Join(w.dir, "r")
	for _, args := range [][]string{{"restore", "--backup", last, "--to", to}, {"verify", "--backup", last}} {
		if ev := w.mustFail(t, messages.CodeChainBroken, args...); !strings.Contains(ev.Error.Message, middle) {
			t.Errorf("the message does not name the backup that is missing: %s", ev.Error.Message)
		}
	}
	lab.NoFilesMatching(t, to, "*.qcow2")
	w.mustJob(t, "verify", "--backup", full)
	lab.Run(t, "mv", dir+".away", dir)
	w.mustJob(t, "verify", "--backup", last)

	// A flipped byte in a link below is found by its own verify, and by the restore that needs it.
	file := filepath.Join(dir, "vda.qcow2")
	flip(t, file, dataOffset(t, file, false, "").file)
	w.mustJob(t, "verify", "--backup", last)
	w.mustFail(t, messages.CodeVerifyFailed, "verify", "--backup", middle)
	w.mustFail(t, messages.CodeBackupCorrupt, "restore", "--backup", last, "--to", to)
	w.mustJob(t, "restore", "--backup", full, "--to", to)
	w.nothingLeft(t)
}
