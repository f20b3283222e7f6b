package chain

import (
	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// underWay is a backup that is being taken, slowly.
type underWay struct {
	r     *run
	kind  taking
	id    string
	end   chan jobEnd
	ended *jobEnd
}

type jobEnd struct {
	ev  messages.Event
	err error
}

// slowly begins a backup of something that takes seconds.
func (r *run) slowly() *underWay {
	r.t.Helper()
	r.writeUpTo(6 * lab.MiB)
	u := &underWay{r: r, kind: r.choose(), id: ulid.Make().String(), end: make(chan jobEnd, 1)}
	go func() {
		ev, err := r.host.job(append(u.kind.args, "--bandwidth", "1", "--job-id", u.id)...)
		u.end <- jobEnd{ev, err}
	}()
	return u
}

// over says whether the job has ended.
func (u *underWay) over() bool {
	if u.ended == nil {
		select {
		case end := <-u.end:
			u.ended = &end
		default:
		}
	}
	return u.ended != nil
}

// event waits for the job's end.
func (u *underWay) event() messages.Event {
	u.r.t.Helper()
	if !u.over() {
		end := <-u.end
		u.ended = &end
	}
	if u.ended.err != nil {
		u.r.t.Fatal(u.ended.err)
	}
	return u.ended.ev
}

// copies waits until the disks are copied as they are now, and says whether that is under way.
func (u *underWay) copies() bool {
	u.r.t.Helper()
	lab.EventuallyIn(u.r.t, patience, "the backup copies", func() bool {
		return u.over() || u.r.host.logged(u.r.t, u.id, `"phase":"copying"`)
	})
	return !u.over()
}

// cancelled cancels a backup as soon as libvirt runs it.
func (r *run) cancelled() {
	r.t.Helper()
	u := r.slowly()
	lab.EventuallyIn(r.t, patience, "libvirt runs the backup", func() bool { return u.over() || r.vm.HasBackupJob(r.t) })
	if !u.over() {
		_, _, refused := r.host.publisher("cancel", u.id)
		if ev := u.event(); refused != nil && ev.Kind == messages.KindCancelled {
			r.t.Errorf("the job was cancelled, and publisher says that it was not: %v", refused)
		}
	}
	r.took(u.kind, u.event(), true)
}

// writtenMeanwhile takes a backup while the guest writes: it holds the bytes of its moment, and those that
// follow what came later.
func (r *run) writtenMeanwhile() {
	r.t.Helper()
	if !r.room() {
		return
	}
	u := r.slowly()
	copies, at := u.copies(), r.moment()
	for range 1 + r.rnd.IntN(6) {
		[]func(){r.write, r.write, r.discard}[r.rnd.IntN(3)]()
	}
	if copies && !u.over() {
		r.did["guest that wrote during a backup"]++
		// It may end before it hears of it.
		_, _, _ = r.host.publisher("throttle", u.id, "0")
	}
	r.tookAt(u.kind, u.event(), at, false)
}

// pulled pulls the plug in the middle of a backup. The guest has written meanwhile.
func (r *run) pulled() {
	r.t.Helper()
	if !r.room() {
		return
	}
	u := r.slowly()
	copies, at := u.copies(), r.moment()
	if copies {
		r.write()
	}
	r.stop()
	ev := u.event()
	r.vm.Start(r.t)
	r.tookAt(u.kind, ev, at, true)
	if ev.Kind != messages.KindSucceeded {
		// libvirt touches the bitmaps of a running VM alone: the next backup removes it.
		r.strays = append(r.strays, "nasfleet-"+u.id)
	}
}

// stopped takes a backup of the VM while it is off.
func (r *run) stopped() {
	r.t.Helper()
	if !r.room() {
		return
	}
	r.stop()
	k := r.choose()
	k.stopped = true
	ev, err := r.host.job(k.args...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.vm.Start(r.t)
	r.took(k, ev, false)
}
