package main

import (
	"fmt"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// meter measures how fast one disk is done.
type meter struct {
	done  int64
	at    time.Time
	rate  float64 // bytes/s
	known bool    // there is a rate
}

// meterWeight is that of the newest second in the rate.
const meterWeight = 0.3

func (m *meter) update(done int64, at time.Time) {
	since := at.Sub(m.at).Seconds()
	if m.at.IsZero() || done < m.done { // the first, or a new pass over the disk
		*m = meter{done: done, at: at}
		return
	}
	if since <= 0 {
		return
	}
	rate := float64(done-m.done) / since
	if m.known {
		rate = meterWeight*rate + (1-meterWeight)*m.rate
	}
	*m = meter{done: done, at: at, rate: rate, known: true}
}

// text tells how far a disk is, how fast, and how long it will take.
func (m *meter) text(d messages.DiskProgress) string {
	s := fmt.Sprintf("%s / %s", size(d.Done), size(d.Total))
	if d.Total > 0 {
		s = fmt.Sprintf("%3d %% %s", 100*d.Done/d.Total, s)
	}
	if !m.known {
		return s
	}
	s += fmt.Sprintf(" %s/s", size(int64(m.rate)))
	if left := d.Total - d.Done; left > 0 && m.rate > 0 {
		s += " ETA " + time.Duration(float64(left)/m.rate*float64(time.Second)).Round(time.Second).String()
	}
	return s
}

// meterKey is one pass over one disk.
type meterKey struct {
	attempt int
	phase   messages.Phase
	disk    string
}

type meters map[meterKey]*meter

// update takes in a progress report and returns a text for each disk.
func (m meters) update(p messages.Progress, at time.Time) []string {
	texts := make([]string, len(p.Disks))
	for i, d := range p.Disks {
		texts[i] = d.Name + " " + m.one(p, d, at)
	}
	return texts
}

func (m meters) one(p messages.Progress, d messages.DiskProgress, at time.Time) string {
	key := meterKey{p.Attempt, p.Phase, d.Name}
	if m[key] == nil {
		m[key] = &meter{}
	}
	m[key].update(d.Done, at)
	return m[key].text(d)
}
