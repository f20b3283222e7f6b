package hypervisor

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// checkpointNames are those of a VM's checkpoints.
func checkpointNames(t *testing.T, h *Hypervisor, domain string) []string {
	t.Helper()
	list, err := h.Checkpoints(t.Context(), domain)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list {
		names = append(names, c.Name)
		if c.Description != "for <a test>" || !slices.Equal(c.Disks, []string{"vda"}) {
			t.Errorf("%+v", c)
		}
	}
	return names
}

func ours(name string) Checkpoint {
	return Checkpoint{Name: name, Description: "for <a test>", Disks: []string{"vda"}}
}

func testCheckpoints(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	vm, d := guest(t, l, h, "checkpoints")
	backup := func(name, since string) error {
		s := spec(t, d, "vda")
		s.Checkpoint, s.Disks[0].Since = ours(name), since
		_, err := h.BeginBackup(t.Context(), s)
		if err == nil {
			endBackup(t, h, s)
		}
		noneLeft(t, vm, s)
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(backup("one", ""))
	vm.Write(t, "vda", 0, lab.MiB, 1)
	must(backup("two", "one"))
	if got := checkpointNames(t, h, "checkpoints"); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("the checkpoints are %v", got)
	}
	wantCode(t, backup("three", "none"), messages.CodeChainBroken)
	// Deleting what is there, what is not, and what lost its metadata.
	for _, forget := range []bool{false, true} {
		if forget {
			l.Virsh(t, "checkpoint-delete", "checkpoints", "two", "--metadata")
		}
		name := map[bool]string{false: "one", true: "two"}[forget]
		for range 2 {
			gone, err := h.DeleteCheckpoint(t.Context(), "checkpoints", ours(name))
			if err != nil || !gone {
				t.Errorf("%t, %v", gone, err)
			}
		}
	}
	if out := l.Virsh(t, "qemu-monitor-command", "checkpoints", `{"execute":"query-block"}`); strings.Contains(out, "dirty-bitmaps") {
		t.Errorf("bitmaps are left: %s", out)
	}
	// Forgotten and found again: what was written meanwhile is known.
	must(backup("four", ""))
	l.Virsh(t, "checkpoint-delete", "checkpoints", "four", "--metadata")
	must(h.AdoptCheckpoint(t.Context(), "checkpoints", ours("four"), time.Now()))
	must(backup("five", "four"))
	wantCode(t, h.AdoptCheckpoint(t.Context(), "checkpoints", ours("none"), time.Now()), messages.CodeChainBroken)
	// A bitmap of the name that is to be made is in the way once, not for ever.
	l.Virsh(t, "checkpoint-delete", "checkpoints", "five", "--metadata")
	wantCode(t, backup("five", ""), messages.CodeBackupBeginFailed)
	must(backup("five", ""))
	// A stopped VM keeps its checkpoints.
	vm.Destroy(t)
	if gone, err := h.DeleteCheckpoint(t.Context(), "checkpoints", ours("five")); err != nil || gone {
		t.Errorf("%t, %v", gone, err)
	}
	if got := checkpointNames(t, h, "checkpoints"); !slices.Equal(got, []string{"four", "five"}) {
		t.Errorf("the checkpoints are %v", got)
	}
}
