package repository

import (
	"errors"
	"maps"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/messages"
)

// Whatever order attempts, crashes, deletions and sweeps come in, List shows exactly what was committed and not
// deleted, and a sweep of everything leaves nothing else.
func TestModel(t *testing.T) {
	ids := []string{testID, "01J8ZQ5V9K3N7R2T4W6Y8A0B1D"}
	memory := t.TempDir() // nothing here is about durability
	check(t, unix.Mount("tmpfs", memory, "tmpfs", 0, ""))
	t.Cleanup(func() { check(t, unix.Unmount(memory, 0)) })
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(memory, "")
		check(t, err)
		r, err := Open(t.Context(), messages.Repository{Type: messages.RepositoryDir, Address: dir}, Options{})
		check(t, err)
		defer closeQuietly(r)
		committed := map[string]bool{}
		pick := func(rt *rapid.T) Location {
			return Location{VM: testVM, ID: rapid.SampledFrom(ids).Draw(rt, "id")}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"take": func(rt *rapid.T) {
				loc := pick(rt)
				p, err := r.Create(t.Context(), loc)
				var already *CommittedError
				if errors.As(err, &already) != committed[loc.ID] {
					rt.Fatalf("create: %v", err)
				}
				if err != nil {
					return
				}
				fill(t, p)
				m := manifest(loc)
				steps := append(p.steps(&m), p.naming(&m)...)
				n := rapid.IntRange(0, len(steps)).Draw(rt, "steps until the crash")
				for _, s := range steps[:n] {
					check(t, s.run(r.root))
				}
				committed[loc.ID] = n >= len(steps)-1
				if rapid.Bool().Draw(rt, "discard") {
					check(t, p.Discard(t.Context()))
				}
			},
			"delete": func(rt *rapid.T) {
				loc := pick(rt)
				if !committed[loc.ID] {
					return
				}
				steps := deleteSteps(t.Context(), loc)
				n := rapid.IntRange(0, len(steps)).Draw(rt, "steps until the crash")
				for _, s := range steps[:n] {
					check(t, s.run(r.root))
				}
				committed[loc.ID] = n < 2
			},
			"sweep": func(rt *rapid.T) { check(t, r.Sweep(t.Context(), pick(rt))) },
			"": func(rt *rapid.T) {
				backups, problems, err := r.List(t.Context(), "", "")
				check(t, err)
				if len(problems) != 0 {
					rt.Fatalf("problems: %v", problems)
				}
				var got []string
				for _, b := range backups {
					got = append(got, b.Manifest.ID)
				}
				if want := wanted(committed); !slices.Equal(got, want) {
					rt.Fatalf("got %v, want %v", got, want)
				}
			},
		})
		for _, id := range ids {
			check(t, r.Sweep(t.Context(), Location{VM: testVM, ID: id}))
		}
		if want := wanted(committed); len(want) > 0 {
			if got := names(t, dir+"/"+testVM); !slices.Equal(got, want) {
				rt.Fatalf("left: %v, want %v", got, want)
			}
		} else if n := names(t, dir); len(n) != 0 {
			rt.Fatalf("left: %v", n)
		}
	})
}

func wanted(committed map[string]bool) []string {
	maps.DeleteFunc(committed, func(_ string, there bool) bool { return !there })
	return slices.Sorted(maps.Keys(committed))
}
