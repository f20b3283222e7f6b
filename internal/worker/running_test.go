package worker

import (
	"slices"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
)

// Jobs that overwrite the same VM or image never run at a time, whosever backups they restore.
func TestWorksOn(t *testing.T) {
	of := messages.BackupRef{VM: "web"}
	for _, c := range []struct {
		cmd  messages.Command
		want []string
	}{
		{&messages.TakeBackup{VM: "web"}, []string{"web"}},
		{&messages.RestoreBackup{Backup: of, ToDir: "/r"}, []string{"web"}},
		{&messages.RestoreBackup{Backup: of, ToVM: "web"}, []string{"web"}},
		{&messages.RestoreBackup{Backup: of, ToVM: "other"}, []string{"web", "other"}},
		{&messages.RestoreBackup{Backup: of, ToRBD: map[string]string{"vda": "p/i"}}, []string{"web", "rbd/p/i"}},
	} {
		if got := worksOn(c.cmd); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.cmd, got, c.want)
		}
	}
}
