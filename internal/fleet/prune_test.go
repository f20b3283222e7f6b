package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"
	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/messages"
)

// backupAt is a full backup of that moment.
func backupAt(t time.Time, n int) messages.CatalogEntry {
	var id ulid.ULID
	_ = id.SetTime(ulid.Timestamp(t))
	_ = id.SetEntropy(fmt.Appendf(nil, "%010d", n))
	return messages.CatalogEntry{
		ID: id.String(), JobID: id.String(), Zone: "z1", Host: "h1", VM: "web", CreatedAt: t.UTC(), Mode: messages.ModeFull,
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: "/nas"},
	}
}

// judged runs the rules over a catalog and returns what is kept, by what keeps it, and what goes.
func judged(t *testing.T, r Retention, all []messages.CatalogEntry) (kept map[string][]string, gone []string) {
	t.Helper()
	if r.TimeZone == "" {
		r.TimeZone = "UTC"
	}
	zone, err := r.check()
	if err != nil {
		t.Fatal(err)
	}
	kept = map[string][]string{}
	for _, v := range judgeAll(r, zone, all) {
		if v.Keep {
			kept[v.Backup.ID] = v.Why
		} else {
			gone = append(gone, v.Backup.ID)
		}
	}
	return kept, gone
}

func judgeAll(r Retention, zone *time.Location, all []messages.CatalogEntry) []Verdict {
	p := newPruning(all)
	for _, members := range p.groups() {
		p.judge(members, func(b []messages.CatalogEntry) map[int][]string { return r.keeps(b, zone) }, "")
	}
	return p.verdicts()
}

// TestPruneAYear judges the catalog of 2026: a backup each night at two, in August none because of the
// holidays, and on Fridays a second one at noon. What has to be kept is written down by date.
func TestPruneAYear(t *testing.T) {
	var all []messages.CatalogEntry
	ids := map[string]string{} // by "01-02 15h"
	for day := time.Date(2026, 1, 1, 2, 0, 0, 0, time.UTC); day.Year() == 2026; day = day.AddDate(0, 0, 1) {
		if day.Month() == time.August {
			continue
		}
		times := []time.Time{day}
		if day.Weekday() == time.Friday {
			times = append(times, day.Add(10*time.Hour))
		}
		for _, at := range times {
			b := backupAt(at, len(all))
			ids[at.Format("01-02 15h")] = b.ID
			all = append(all, b)
		}
	}
	kept, gone := judged(t, Retention{KeepLast: 3, KeepDaily: 7, KeepWeekly: 5, KeepMonthly: 12}, all)
	want := map[string][]string{}
	for when, why := range map[string]string{
		// 2026-12-31 is a Thursday, in the week that began on Monday the 28th.
		"12-31 02h": "last, daily 2026-12-31, weekly 2026-W53, monthly 2026-12",
		"12-30 02h": "last, daily 2026-12-30",
		"12-29 02h": "last, daily 2026-12-29",
		"12-28 02h": "daily 2026-12-28",
		"12-27 02h": "daily 2026-12-27, weekly 2026-W52",
		"12-26 02h": "daily 2026-12-26",
		"12-25 12h": "daily 2026-12-25", // Friday: the one at noon
		"12-20 02h": "weekly 2026-W51",
		"12-13 02h": "weekly 2026-W50",
		"12-06 02h": "weekly 2026-W49",
		"11-30 02h": "monthly 2026-11",
		"10-31 02h": "monthly 2026-10",
		"09-30 02h": "monthly 2026-09",
		"07-31 12h": "monthly 2026-07", // a Friday again, and no August
		"06-30 02h": "monthly 2026-06",
		"05-31 02h": "monthly 2026-05",
		"04-30 02h": "monthly 2026-04",
		"03-31 02h": "monthly 2026-03",
		"02-28 02h": "monthly 2026-02",
		"01-31 02h": "monthly 2026-01",
	} {
		want[ids[when]] = strings.Split(why, ", ")
	}
	if diff := cmp.Diff(want, kept); diff != "" {
		t.Error(diff)
	}
	if len(gone)+len(kept) != len(all) || len(all) != 365-31+48 {
		t.Errorf("%d of %d are gone", len(gone), len(all))
	}
}

// TestPruneAYearOfChains: a full on the first of each month and incrementals on all other nights. A kept
// night needs its month up to that night, and nothing after it.
func TestPruneAYearOfChains(t *testing.T) {
	var all []messages.CatalogEntry
	for day := time.Date(2026, 1, 1, 2, 0, 0, 0, time.UTC); day.Year() == 2026; day = day.AddDate(0, 0, 1) {
		b := backupAt(day, len(all))
		if day.Day() > 1 {
			b.Mode, b.Parent = messages.ModeIncremental, all[len(all)-1].ID
		}
		all = append(all, b)
	}
	kept, gone := judged(t, Retention{KeepWeekly: 3}, all)
	// The weeks' newest are the 31st, 27th and 20th of December; the 31st alone needs all of the month.
	for _, b := range all {
		if _, ok := kept[b.ID]; ok != (b.CreatedAt.Month() == time.December) {
			t.Errorf("%s: kept %t", b.CreatedAt.Format(time.DateOnly), ok)
		}
	}
	if len(kept) != 31 || !slices.Equal(kept[all[len(all)-2].ID], []string{"needed by " + all[len(all)-1].ID}) {
		t.Errorf("%d kept; the one before the last by %v", len(kept), kept[all[len(all)-2].ID])
	}
	// What goes goes from the leaves to the root: eleven months, 31 waves.
	zone := time.UTC
	order := waves(judgeAll(Retention{KeepWeekly: 3}, zone, all))
	if len(order) != 31 || len(order[0]) != 11 {
		t.Errorf("%d waves, the first of %d", len(order), len(order[0]))
	}
	deleted := map[string]int{}
	for n, wave := range order {
		for _, b := range wave {
			deleted[b.ID] = n + 1
		}
	}
	for _, b := range all {
		if b.Parent != "" && deleted[b.Parent] > 0 && deleted[b.Parent] <= deleted[b.ID] {
			t.Fatalf("%s goes before %s, which needs it", b.Parent, b.ID)
		}
	}
	if len(deleted) != len(gone) {
		t.Errorf("%d are in the waves, %d are to go", len(deleted), len(gone))
	}
}

// A day is a day where it is said to be one, also when clocks change.
func TestPruneTimeZone(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	late := backupAt(time.Date(2026, 3, 28, 23, 30, 0, 0, time.UTC), 1) // already the 29th in Berlin
	night := backupAt(time.Date(2026, 3, 29, 2, 30, 0, 0, berlin), 2)   // the hour that does not exist
	noon := backupAt(time.Date(2026, 3, 29, 12, 0, 0, 0, berlin), 3)
	all := []messages.CatalogEntry{late, night, noon}
	for zone, want := range map[string][]string{
		"Europe/Berlin": {noon.ID}, "UTC": {late.ID, noon.ID}, "America/New_York": {late.ID, noon.ID},
	} {
		kept, _ := judged(t, Retention{KeepDaily: 5, TimeZone: zone}, all)
		if zone == "America/New_York" { // 19:30 and 20:30 of the 28th, 6:00 of the 29th
			want = []string{night.ID, noon.ID}
		}
		if len(kept) != len(want) || slices.ContainsFunc(want, func(id string) bool { return kept[id] == nil }) {
			t.Errorf("%s: %v", zone, kept)
		}
	}
	// Two that were taken at the same moment are told apart by their ids.
	twin := noon
	twin.ID = backupAt(noon.CreatedAt, 4).ID
	kept, _ := judged(t, Retention{KeepLast: 1}, []messages.CatalogEntry{twin, noon})
	if kept[twin.ID] == nil || len(kept) != 1 {
		t.Errorf("of twins: %v", kept)
	}
}

func TestRetentionRefuses(t *testing.T) {
	for name, r := range map[string]Retention{
		"nothing":         {TimeZone: "UTC"},
		"below 0":         {KeepLast: 5, KeepDaily: -1, TimeZone: "UTC"},
		"no such place":   {KeepLast: 1, TimeZone: "Mars/Olympus"},
		"out of the tree": {KeepLast: 1, TimeZone: "../../etc/passwd"},
		"wherever we are": {KeepLast: 1, TimeZone: "Local"},
	} {
		if _, err := r.check(); ClassOf(err) != Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// catalog draws the backups of a few VMs: chains, branches, twins, and links whose parent is gone.
func catalog(t *rapid.T) []messages.CatalogEntry {
	start := time.Date(2025, 12, 20, 0, 0, 0, 0, time.UTC)
	n := rapid.IntRange(0, 60).Draw(t, "backups")
	var all []messages.CatalogEntry
	for i := range n {
		b := backupAt(start.Add(time.Duration(rapid.IntRange(0, 24*60).Draw(t, "hours"))*time.Hour), i)
		b.VM = rapid.SampledFrom([]string{"web", "db"}).Draw(t, "vm")
		b.Host = rapid.SampledFrom([]string{"h1", "h2"}).Draw(t, "host")
		if i > 0 && rapid.IntRange(0, 2).Draw(t, "kind") > 0 {
			b.Mode = messages.ModeIncremental
			if b.Parent = all[rapid.IntRange(0, i-1).Draw(t, "parent")].ID; rapid.IntRange(0, 9).Draw(t, "dangling") == 0 {
				b.Parent = backupAt(start, 1000+i).ID
			}
		}
		all = append(all, b)
	}
	return all
}

// TestPruneProperties: the newest of each VM is never deleted, nothing that is kept loses a link of its
// chain, a rule keeps as many as it says where there are so many, and a second prune deletes nothing.
func TestPruneProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := catalog(t)
		few := rapid.IntRange(0, 4)
		r := Retention{
			KeepLast: few.Draw(t, "last"), KeepDaily: few.Draw(t, "daily"), KeepWeekly: few.Draw(t, "weekly"), KeepMonthly: few.Draw(t, "monthly"),
			TimeZone: rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "Pacific/Auckland"}).Draw(t, "zone"),
		}
		if r.KeepLast+r.KeepDaily+r.KeepWeekly+r.KeepMonthly == 0 {
			return
		}
		zone, err := r.check()
		if err != nil {
			t.Fatal(err)
		}
		verdicts := judgeAll(r, zone, all)
		if len(verdicts) != len(all) {
			t.Fatalf("%d verdicts on %d backups", len(verdicts), len(all))
		}
		there, kept := map[string]bool{}, map[string]bool{}
		newest := map[string]messages.CatalogEntry{}
		var rest []messages.CatalogEntry
		for _, v := range verdicts {
			there[v.Backup.ID] = true
			if v.Keep {
				kept[v.Backup.ID] = true
				rest = append(rest, v.Backup)
			}
			group := v.Backup.Host + v.Backup.VM
			if b, ok := newest[group]; !ok || v.Backup.CreatedAt.After(b.CreatedAt) {
				newest[group] = v.Backup
			}
		}
		for group, b := range newest {
			if !slices.ContainsFunc(rest, func(k messages.CatalogEntry) bool { return k.Host+k.VM == group && k.CreatedAt.Equal(b.CreatedAt) }) {
				t.Fatalf("the newest of %s is deleted", group)
			}
		}
		for _, b := range rest {
			if b.Parent != "" && there[b.Parent] && !kept[b.Parent] {
				t.Fatalf("%s is kept without %s", b.ID, b.Parent)
			}
		}
		for _, v := range judgeAll(r, zone, rest) {
			if !v.Keep {
				t.Fatalf("a second prune deletes %s", v.Backup.ID)
			}
		}
		// Every backup that goes is in one wave, after all that need it.
		gone := map[string]bool{}
		for _, wave := range waves(verdicts) {
			for _, b := range wave {
				for _, other := range all {
					if other.Parent == b.ID && !gone[other.ID] && !kept[other.ID] {
						t.Fatalf("%s goes before %s, which needs it", b.ID, other.ID)
					}
				}
			}
			for _, b := range wave {
				if gone[b.ID] || kept[b.ID] {
					t.Fatalf("%s goes twice, or is kept", b.ID)
				}
				gone[b.ID] = true
			}
		}
		if len(gone)+len(rest) != len(all) {
			t.Fatalf("%d go and %d stay of %d", len(gone), len(rest), len(all))
		}
	})
}

// A catalog that lies, with a chain in a circle, ends nothing and deletes nothing of the circle.
func TestPruneCircle(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b, c := backupAt(start, 1), backupAt(start.Add(time.Hour), 2), backupAt(start.Add(2*time.Hour), 3)
	a.Parent, b.Parent = b.ID, a.ID
	verdicts := judgeAll(Retention{KeepLast: 1}, time.UTC, []messages.CatalogEntry{a, b, c})
	if got := waves(verdicts); len(got) != 0 {
		t.Errorf("%v", got)
	}
	kept, _ := judged(t, Retention{KeepLast: 2}, []messages.CatalogEntry{a, b, c})
	if len(kept) != 3 {
		t.Errorf("%v", kept)
	}
}

// TestPruneRuns has hosts delete what is not kept: children first, and of a chain whose link could not be
// deleted the rest stays.
func TestPruneRuns(t *testing.T) {
	m, f, _ := start(t)
	ctx := t.Context()
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	put := func(vm, host string, days, n int, parent string) string {
		t.Helper()
		b := backupAt(begin.AddDate(0, 0, days), n)
		b.VM, b.Host, b.Parent = vm, host, parent
		if err := f.Bus.PutBackup(ctx, b); err != nil {
			t.Fatal(err)
		}
		return b.ID
	}
	root := put("web", "h1", 0, 1, "")
	link := put("web", "h1", 1, 2, root)
	leaf := put("web", "h1", 2, 3, link)
	newest := put("web", "h1", 3, 4, "")
	badRoot := put("bad", "h1", 0, 5, "") // jobs on a VM of this name fail
	put("bad", "h1", 1, 6, badRoot)
	badNewest := put("bad", "h1", 2, 7, "")
	needed := put("db", "h2", 0, 8, "")
	other := put("db", "h2", 1, 9, needed) // outside of the filter
	absent := put("web", "gone", 0, 10, "")
	absentNewest := put("web", "gone", 1, 11, "")

	plan, err := m.PlanPrune(ctx, Retention{KeepLast: 1, TimeZone: "UTC"}, CatalogFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range plan {
		stays := slices.Contains([]string{newest, badNewest, needed, other, absent, absentNewest}, v.Backup.ID)
		if v.Keep != stays || v.Keep != (len(v.Why) > 0) {
			t.Errorf("%s of %s: keep %t, %v", v.Backup.ID, v.Backup.VM, v.Keep, v.Why)
		}
	}
	if only, err := m.PlanPrune(ctx, Retention{KeepLast: 1, TimeZone: "UTC"}, CatalogFilter{VM: "bad"}); err != nil || len(only) != 3 {
		t.Errorf("with a filter: %d, %v", len(only), err)
	}
	o := &order{}
	results, err := m.Prune(ctx, plan, o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{leaf, link, root}, o.deleted); diff != "" {
		t.Errorf("deleted: %s", diff)
	}
	if len(results) != 4 || results[0].Failure() == nil && results[1].Failure() == nil || o.last.Jobs != 4 || o.last.Failed != 1 || o.last.Succeeded != 3 {
		t.Errorf("%d results, %+v", len(results), o.last)
	}
	left, err := m.Backups(ctx, CatalogFilter{})
	if err != nil || len(left) != 8 {
		t.Errorf("%d are left, %v", len(left), err)
	}
}

// order is an Observer that notes what was deleted.
type order struct {
	deleted []string
	last    Tally
}

func (o *order) Sent(_ Result, t Tally) { o.last = t }
func (o *order) Event(j *Job, e messages.Event, t Tally) {
	o.last = t
	if e.Kind == messages.KindSucceeded {
		o.deleted = append(o.deleted, j.Command.(*messages.DeleteBackup).Backup.ID)
	}
}
func (o *order) Progress(*Job, messages.Progress) {}

// A backup made out of a chain counts as one with the chain's newest, of whose moment it is, and is the one that
// is kept: the old chain goes, but for what a kept incremental continues.
func TestPruneOfTheConsolidated(t *testing.T) {
	day := time.Date(2026, 2, 1, 2, 0, 0, 0, time.UTC)
	incremental := func(n int, parent messages.CatalogEntry) messages.CatalogEntry {
		b := backupAt(day.AddDate(0, 0, n), n)
		b.Mode, b.Parent = messages.ModeIncremental, parent.ID
		return b
	}
	full := backupAt(day, 0)
	first := incremental(1, full)
	top := incremental(2, first)
	whole := backupAt(day.AddDate(0, 0, 3), 9) // made a day later
	whole.CreatedAt, whole.ConsolidatedFrom = top.CreatedAt, top.ID
	next := incremental(4, whole)
	beside := incremental(5, top) // of a chain that went on, too
	twin := backupAt(day, 7)      // taken of another repository's folder, say, at the same time
	for name, tt := range map[string]struct {
		rules Retention
		all   []messages.CatalogEntry
		want  map[string][]string
	}{
		"it replaces the old chain": {
			Retention{KeepLast: 1}, []messages.CatalogEntry{full, first, top, whole}, map[string][]string{whole.ID: {"last"}},
		},
		"a moment counts once": {
			Retention{KeepLast: 2}, []messages.CatalogEntry{full, first, top, whole, next},
			map[string][]string{next.ID: {"last"}, whole.ID: {"last", "needed by " + next.ID}},
		},
		"two that were taken are two": {
			Retention{KeepLast: 2}, []messages.CatalogEntry{full, twin}, map[string][]string{full.ID: {"last"}, twin.ID: {"last"}},
		},
		"a day has one": {
			Retention{KeepDaily: 2}, []messages.CatalogEntry{full, first, top, whole},
			map[string][]string{
				whole.ID: {"daily 2026-02-03"}, first.ID: {"daily 2026-02-02"}, full.ID: {"needed by " + first.ID},
			},
		},
		"what is needed stays": {
			Retention{KeepLast: 1}, []messages.CatalogEntry{full, first, top, whole, beside},
			map[string][]string{
				beside.ID: {"last"}, top.ID: {"needed by " + beside.ID}, first.ID: {"needed by " + top.ID}, full.ID: {"needed by " + first.ID},
			},
		},
	} {
		if kept, _ := judged(t, tt.rules, tt.all); !cmp.Equal(tt.want, kept) {
			t.Errorf("%s: %s", name, cmp.Diff(tt.want, kept))
		}
	}
}
