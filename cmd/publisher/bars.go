package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

// jobBars shows a job on a terminal: a bar for each pass over a disk.
type jobBars struct {
	p      *mpb.Progress
	meters meters
	bars   map[meterKey]*bar
	phase  messages.Phase
}

// bar is one bar and the text behind it. Its total may change, and it ends only when told to.
type bar struct {
	*mpb.Bar
	text atomic.Pointer[string]
}

func newJobBars(w io.Writer, opts ...mpb.ContainerOption) *jobBars {
	return &jobBars{p: newProgress(w, opts), meters: meters{}, bars: map[meterKey]*bar{}}
}

func newProgress(w io.Writer, opts []mpb.ContainerOption) *mpb.Progress {
	return mpb.New(append(opts, mpb.WithOutput(w))...)
}

func newBar(p *mpb.Progress, name string) *bar {
	b := &bar{}
	empty := ""
	b.text.Store(&empty)
	b.Bar = p.AddBar(0,
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return *b.text.Load() })))
	return b
}

func (b *bar) set(done, total int64, text string) {
	b.text.Store(&text)
	b.SetTotal(total, false)
	b.SetCurrent(min(done, total))
}

// end leaves the bar on the screen as it is.
func (b *bar) end() { b.Abort(false) }

// say prints a line above the bars.
func (j *jobBars) say(line string) { _, _ = fmt.Fprintln(j.p, printable(line)) }

func (j *jobBars) draw(p messages.Progress) {
	if p.Phase != j.phase {
		j.phase = p.Phase
		for _, b := range j.bars { // those of the pass before
			b.end()
		}
		if len(p.Disks) == 0 {
			j.say(string(p.Phase))
		}
	}
	for _, d := range p.Disks {
		key := meterKey{p.Attempt, p.Phase, d.Name}
		b := j.bars[key]
		if b == nil {
			b = newBar(j.p, printable(string(p.Phase)+" "+d.Name))
			j.bars[key] = b
		}
		b.set(d.Done, d.Total, j.meters.one(p, d, time.Now()))
	}
}

func (j *jobBars) close(messages.Progress) {
	for _, b := range j.bars {
		b.end()
	}
	j.p.Wait()
}

// fleetBar shows a fleet on a terminal: one bar of jobs, their counts behind it.
type fleetBar struct {
	p   *mpb.Progress
	bar *bar
}

func newFleetBar(w io.Writer, opts ...mpb.ContainerOption) *fleetBar {
	return &fleetBar{p: newProgress(w, opts)}
}

func (f *fleetBar) say(line string) { _, _ = fmt.Fprintln(f.p, printable(line)) }

func (f *fleetBar) draw(t fleet.Tally) {
	if f.bar == nil {
		f.bar = newBar(f.p, "jobs")
	}
	f.bar.set(int64(t.Jobs-t.Left()), int64(t.Jobs), tally(t))
}

func (f *fleetBar) close(t fleet.Tally) {
	f.draw(t)
	f.bar.end()
	f.p.Wait()
}
