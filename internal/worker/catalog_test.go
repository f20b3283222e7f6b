package worker

import (
	"context"
	"testing"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// strictOutbox lets a host write entries of its own alone.
type strictOutbox struct {
	*fakeOutbox
	tried int
}

func (o *strictOutbox) PutBackup(ctx context.Context, e messages.CatalogEntry) error {
	if e.Host != host {
		o.tried++
		return ErrForbidden
	}
	return o.fakeOutbox.PutBackup(ctx, e)
}

// What lies on a NAS names its host itself. An entry that this host may not write keeps none of its
// own out, is tried once, and is told.
func TestForeignEntries(t *testing.T) {
	out := &strictOutbox{fakeOutbox: newOutbox()}
	w := &Worker{cfg: Config{Zone: zone, Host: host}, out: out}
	j := &job{w: w, words: t.Context()}
	outcome := exec.Outcome{Listed: []messages.CatalogEntry{
		{ID: "1", Zone: zone, Host: "h2"}, {ID: "2", Zone: zone, Host: host}, {ID: "3", Zone: zone, Host: "h3"}, {ID: "4", Zone: zone, Host: host},
	}}
	if err := j.updateCatalog(&outcome); err != nil {
		t.Fatal(err)
	}
	if len(out.catalog) != 2 || out.tried != 1 || len(outcome.Notes) != 1 {
		t.Errorf("%d entries, %d tried, notes %q", len(out.catalog), out.tried, outcome.Notes)
	}
}

// A job that changes a whole chain enters all of it, and another host's backup is no reason to wait for
// a right that this one has not got.
func TestChangedEntries(t *testing.T) {
	out := &strictOutbox{fakeOutbox: newOutbox()}
	j := &job{w: &Worker{cfg: Config{Zone: zone, Host: host}, out: out}, words: t.Context()}
	outcome := exec.Outcome{
		Backup:  &messages.CatalogEntry{ID: "2", Zone: zone, Host: host},
		Changed: []messages.CatalogEntry{{ID: "1", Zone: zone, Host: host}, {ID: "3", Zone: zone, Host: host}},
	}
	if err := j.updateCatalog(&outcome); err != nil || len(out.catalog) != 3 {
		t.Errorf("%d entries, %v", len(out.catalog), err)
	}
	foreign := exec.Outcome{Backup: &messages.CatalogEntry{ID: "4", Zone: zone, Host: "h2"}}
	if err := j.updateCatalog(&foreign); err != nil || len(foreign.Notes) != 1 || out.tried != 1 {
		t.Errorf("another host's: %v, notes %q", err, foreign.Notes)
	}
}
