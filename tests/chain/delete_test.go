package chain

import (
	"fmt"

	"github.com/nasfleet/nasfleet/messages"
)

// delete deletes a backup. One that others need is only deleted with them.
func (r *run) delete() {
	r.t.Helper()
	if len(r.backups) == 0 {
		return
	}
	b := r.backups[r.rnd.IntN(len(r.backups))]
	gone := r.withChildren(b.id)
	args := []string{"delete", "--backup", b.id}
	if r.rnd.IntN(3) == 0 {
		args = append(args, "--cascade")
	} else if len(gone) > 1 {
		ev, err := r.host.job(args...)
		if err != nil || ev.Kind != messages.KindFailed || ev.Error.Code != messages.CodeBackupNeeded {
			r.t.Fatalf("%v with children %v: %s, %v, %v", args, gone[1:], ev.Kind, ev.Error, err)
		}
		r.did["refused delete"]++
		return
	}
	r.host.mustJob(r.t, args...)
	r.remove(gone...)
	r.did["deleted backup"] += len(gone)
}

func (r *run) prune() {
	r.t.Helper()
	n := 1 + r.rnd.IntN(mostBackups/2)
	if _, _, err := r.host.publisher("prune", "--keep-last", fmt.Sprint(n)); err != nil {
		r.t.Fatal(err)
	}
	gone := r.unkept(n)
	r.remove(gone...)
	r.did["pruned backup"] += len(gone)
}
