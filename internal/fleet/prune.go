package fleet

import (
	"cmp"
	"context"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// Verdict says what becomes of a backup.
type Verdict struct {
	Backup messages.CatalogEntry
	// Keep says that it stays, and Why names the rules that keep it, or the backups that need it.
	Keep bool
	Why  []string
}

// PlanPrune judges the backups that the filter lets through, each VM of a host and repository by itself,
// oldest first; nothing is published. A backup that a kept one needs, because it is an incremental, is
// kept, also where the one that needs it is outside of the filter. Those of hosts that are not alive are
// left for another time.
func (m *Manager) PlanPrune(ctx context.Context, r Retention, f CatalogFilter) ([]Verdict, error) {
	zone, err := r.check()
	if err != nil {
		return nil, err
	}
	if err := checkAddress(f.Zone, f.Host); err != nil {
		return nil, err
	}
	all, err := m.Backups(ctx, CatalogFilter{})
	if err != nil {
		return nil, err
	}
	hosts, err := m.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	p := newPruning(all)
	for _, members := range p.groups() {
		first := all[members[0]]
		switch {
		case f.Zone != "" && f.Zone != first.Zone, f.Host != "" && f.Host != first.Host, f.VM != "" && f.VM != first.VM:
			p.outside(members)
		case !slices.ContainsFunc(hosts, func(h messages.HostInfo) bool { return h.Zone == first.Zone && h.Host == first.Host }):
			p.judge(members, func([]messages.CatalogEntry) map[int][]string { return nil }, "its host is not announced")
		default:
			p.judge(members, func(backups []messages.CatalogEntry) map[int][]string { return r.keeps(backups, zone) }, "")
		}
	}
	return p.verdicts(), nil
}

// pruning is a catalog under judgement.
type pruning struct {
	all  []messages.CatalogEntry
	byID map[string][]int
	// why says of each backup that is kept what keeps it.
	why map[int][]string
	// asked are the backups that are judged and not only in the way.
	asked map[int]bool
}

func newPruning(all []messages.CatalogEntry) *pruning {
	p := &pruning{all: all, byID: map[string][]int{}, why: map[int][]string{}, asked: map[int]bool{}}
	for i, b := range all {
		p.byID[b.ID] = append(p.byID[b.ID], i)
	}
	return p
}

// groups returns the backups of each VM of a host and repository.
func (p *pruning) groups() [][]int {
	type key struct {
		zone, host, vm, path string
		repository           messages.Repository
	}
	index := map[key]int{}
	var groups [][]int
	for i, b := range p.all {
		k := key{b.Zone, b.Host, b.VM, b.BackupPath, b.Repository}
		at, ok := index[k]
		if !ok {
			at = len(groups)
			index[k], groups = at, append(groups, nil)
		}
		groups[at] = append(groups[at], i)
	}
	return groups
}

// judge keeps those of a group that keeps returns, or all of them for one reason.
func (p *pruning) judge(members []int, keeps func([]messages.CatalogEntry) map[int][]string, all string) {
	backups := make([]messages.CatalogEntry, len(members))
	for i, member := range members {
		backups[i] = p.all[member]
	}
	kept := keeps(backups)
	for i, member := range members {
		p.asked[member] = true
		why := kept[i]
		if all != "" {
			why = []string{all}
		}
		if len(why) > 0 {
			p.keep(member, why...)
		}
	}
}

// outside keeps backups that are none of the filter's business, with what they need.
func (p *pruning) outside(members []int) {
	for _, member := range members {
		p.keep(member, "outside of the filter")
	}
}

// keep keeps a backup and its whole chain. What is kept already has its chain kept with it, and so a
// catalog in which a chain goes in a circle ends too.
func (p *pruning) keep(i int, why ...string) {
	for {
		before := len(p.why[i])
		p.why[i] = append(p.why[i], why...)
		parents := p.byID[p.all[i].Parent]
		if before > 0 || p.all[i].Parent == "" || len(parents) == 0 {
			return
		}
		why = []string{"needed by " + p.all[i].ID}
		for _, other := range parents[1:] { // the same backup as another host sees it
			p.keep(other, why...)
		}
		i = parents[0]
	}
}

func (p *pruning) verdicts() []Verdict {
	list := make([]Verdict, 0, len(p.asked))
	for i, b := range p.all {
		if p.asked[i] {
			list = append(list, Verdict{Backup: b, Keep: len(p.why[i]) > 0, Why: p.why[i]})
		}
	}
	return list
}

// waves orders the backups that go: each comes in a wave after those that need it. Of chains that go in a
// circle, which only a catalog that lies can hold, none is in any wave.
func waves(verdicts []Verdict) [][]messages.CatalogEntry {
	needed := map[string]int{} // by how many of those that are still there
	left := map[string]messages.CatalogEntry{}
	for _, v := range verdicts {
		if !v.Keep {
			left[v.Backup.ID] = v.Backup
			needed[v.Backup.Parent]++
		}
	}
	var all [][]messages.CatalogEntry
	for {
		var wave []messages.CatalogEntry
		for id, b := range left {
			if needed[id] == 0 {
				wave = append(wave, b)
			}
		}
		if len(wave) == 0 {
			return all
		}
		slices.SortFunc(wave, func(x, y messages.CatalogEntry) int { return cmp.Compare(x.ID, y.ID) })
		for _, b := range wave {
			delete(left, b.ID)
			needed[b.Parent]--
		}
		all = append(all, wave)
	}
}

// Prune deletes the backups of a plan that are not kept and follows the jobs to their ends: those that
// others need after the others are gone. Where one could not be deleted, what it needs stays too. o sees
// all of it as one run.
func (m *Manager) Prune(ctx context.Context, plan []Verdict, o Observer) ([]Result, error) {
	var all []Result
	stays := map[string]bool{} // what a backup that could not be deleted needs
	seen := &summed{o: o}
	for _, wave := range waves(plan) {
		var jobs []*Job
		for _, b := range wave {
			if stays[b.ID] {
				stays[b.Parent] = true
				continue
			}
			job, err := deleteJob(b)
			if err != nil {
				return all, err
			}
			jobs = append(jobs, job)
		}
		if len(jobs) == 0 {
			continue
		}
		results, err := m.Run(ctx, jobs, seen)
		all = append(all, results...)
		if err != nil {
			return all, err
		}
		for _, r := range results {
			if r.Failure() == nil {
				continue
			}
			id := r.Job.Command.(*messages.DeleteBackup).Backup.ID
			for _, b := range wave {
				if b.ID == id && b.Parent != "" {
					stays[b.Parent] = true
				}
			}
		}
		seen.next()
	}
	return all, nil
}

func deleteJob(b messages.CatalogEntry) (*Job, error) {
	head, err := newHeader(messages.TypeDelete, "", 0, 0)
	if err != nil {
		return nil, err
	}
	job := &Job{Zone: b.Zone, Host: b.Host, Command: &messages.DeleteBackup{Header: head, Backup: b.Ref()}}
	return job, job.check()
}

// summed is an Observer of several runs, one after the other, that counts them together.
type summed struct {
	o          Observer
	past, last Tally
}

func (s *summed) add(t Tally) Tally {
	s.last = t
	return Tally{
		Jobs: s.past.Jobs + t.Jobs, Queued: t.Queued, Running: t.Running, Succeeded: s.past.Succeeded + t.Succeeded,
		Failed: s.past.Failed + t.Failed, Refused: s.past.Refused + t.Refused,
	}
}

func (s *summed) next() { s.past, s.last = s.add(s.last), Tally{} }

// Sent implements Observer.
func (s *summed) Sent(r Result, t Tally) { s.o.Sent(r, s.add(t)) }

// Event implements Observer.
func (s *summed) Event(j *Job, e messages.Event, t Tally) { s.o.Event(j, e, s.add(t)) }

// Progress implements Observer.
func (s *summed) Progress(j *Job, p messages.Progress) { s.o.Progress(j, p) }
