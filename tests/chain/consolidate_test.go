package chain

import (
	"cmp"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// consolidate makes a full backup of an incremental, most often of the one that would be continued.
func (r *run) consolidate() {
	r.t.Helper()
	incrementals := slices.DeleteFunc(slices.Clone(r.backups), func(b backup) bool { return b.parent == "" })
	if len(incrementals) == 0 || !r.room() {
		return
	}
	b := incrementals[r.rnd.IntN(len(incrementals))]
	if tip := r.find(r.tip); tip != nil && tip.parent != "" && r.rnd.IntN(2) == 0 {
		b = *tip
	}
	if r.find(b.id) == nil {
		return // it had to make room
	}
	args := r.open(b, "consolidate", "--backup", b.id, "--attempts", "1", []string{"--compress", "--no-compress"}[r.rnd.IntN(2)])
	if r.rnd.IntN(2) == 0 {
		args = append(args, "--verify")
	}
	ev, err := r.host.job(args...)
	if err != nil || ev.Kind != messages.KindSucceeded {
		r.t.Fatalf("%v: %s, %v, %v", args, ev.Kind, ev.Error, err)
	}
	if ev.Backup.Mode != messages.ModeFull || ev.Backup.ConsolidatedFrom != b.id || ev.Backup.Encrypted != b.encrypted {
		r.t.Errorf("%v: %+v", args, ev.Backup)
	}
	r.addConsolidated(b.id, backup{id: ev.BackupID, encrypted: b.encrypted, links: 1, disks: b.disks, holds: b.holds, of: b.of})
	r.restores(*r.find(ev.BackupID))
	r.did["consolidated backup"]++
}

// addConsolidated notes a backup of a moment that has passed, behind what was taken then.
func (m *model) addConsolidated(from string, b backup) {
	at := slices.IndexFunc(m.backups, func(o backup) bool { return o.id == from })
	for at++; at < len(m.backups) && m.backups[at].of == b.of; at++ {
	}
	m.backups = slices.Insert(m.backups, at, b)
	m.settle()
}

// settle finds the tip: of the backups that hold the checkpoint the one with the shortest chain, and of those the
// newest. The checkpoint goes with the last of them.
func (m *model) settle() {
	var holders []backup
	for _, b := range m.backups {
		if b.holds != "" && b.holds == m.checkpoint {
			holders = append(holders, b)
		}
	}
	if len(holders) == 0 {
		m.tip, m.checkpoint = "", ""
		return
	}
	m.tip = slices.MinFunc(holders, func(x, y backup) int { return cmp.Or(cmp.Compare(x.links, y.links), cmp.Compare(y.id, x.id)) }).id
}
