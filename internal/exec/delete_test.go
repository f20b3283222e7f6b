package exec

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

// A cascade that fails at the parent has deleted its child all the same, and says so: the next attempt finds no
// child, and the catalog would keep its entry for ever.
func TestACascadeThatFailsTellsWhatIsDeleted(t *testing.T) {
	e, nas := newExecutor(t), t.TempDir()
	vm := filepath.Join(nas, "vm1")
	write(t, filepath.Join(vm, testJob, "manifest.json"), []byte("{}"))
	write(t, filepath.Join(vm, otherJob, "manifest.json"), fmt.Appendf(nil, `{"id": %q, "parent": %q, "zone": "z1", "host": "h2"}`, otherJob, testJob))
	// Something is mounted in the parent: that is busy.
	busy := filepath.Join(vm, testJob, "busy")
	check(t, os.Mkdir(busy, 0o700))
	check(t, unix.Mount("tmpfs", busy, "tmpfs", 0, ""))
	t.Cleanup(func() { check(t, unix.Unmount(filepath.Join(vm, testJob+".deleting", "busy"), 0)) })

	cmd := &messages.DeleteBackup{
		Header: messages.Header{JobID: restoreJob}, Cascade: true,
		Backup: messages.BackupRef{ID: testJob, VM: "vm1", Repository: messages.Repository{Type: messages.RepositoryDir, Address: nas}},
	}
	out, err := e.Run(t.Context(), cmd, nil, quiet{})
	if err == nil || len(out.Deleted) != 1 || out.Deleted[0] != (Deleted{ID: otherJob, Zone: "z1", Host: "h2"}) {
		t.Errorf("%+v, %v", out, err)
	}
}
