package repository

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/messages"
)

// After each step of a rewrite the backup has the old manifest or the new one.
func TestRewrite(t *testing.T) {
	r, loc := openDir(t), location()
	b := commit(t, r, loc)
	old, fresh := b.Manifest, b.Manifest
	fresh.Notes = []string{"rewritten"}
	root, err := os.OpenRoot(r.Dir())
	check(t, err)
	defer closeQuietly(root)
	m := fresh
	for i, s := range b.rewriteSteps(&m) {
		check(t, s.run(root))
		want := old
		if i > 0 {
			want = fresh
		}
		got, err := r.Find(t.Context(), ref(loc))
		check(t, err)
		if diff := cmp.Diff(want, got.Manifest); diff != "" {
			t.Fatalf("after %s: %s", s.name, diff)
		}
	}
	// What a killed one has left is no hindrance.
	check(t, os.WriteFile(filepath.Join(b.Dir, manifestTemp), []byte("half a man"), 0o600))
	check(t, b.Rewrite(t.Context(), old))
	got, err := r.Find(t.Context(), ref(loc))
	check(t, err)
	if diff := cmp.Diff(old, got.Manifest); diff != "" {
		t.Fatal(diff)
	}
	wantAbsent(t, filepath.Join(b.Dir, manifestTemp))

	bad := old
	bad.VM = "another"
	wantCode(t, b.Rewrite(t.Context(), bad), messages.CodeInternal)
	if got, err = r.Find(t.Context(), ref(loc)); err != nil || got.Manifest.VM != old.VM {
		t.Errorf("a manifest that no reader takes was written: %v", err)
	}
}
