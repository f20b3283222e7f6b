package storaged

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// object is a JSON object of QMP.
type object map[string]any

// step is one thing that a graph has put into the daemon.
type step struct {
	// finish writes out what the thing still holds; nil when it holds nothing.
	finish func(context.Context) error
	// remove takes it out of the daemon.
	remove func(context.Context) error
}

// graph is the nodes and exports behind one export of the caller's, from the bottom up.
type graph struct {
	d     *Daemon
	steps []step
	// bitmaps are those that the export has as metadata contexts.
	bitmaps []string
}

// build reserves an export's name and runs fn to make its graph. When fn fails, whatever it had
// put into the daemon is taken out again.
func (d *Daemon) build(ctx context.Context, export string, fn func(context.Context, *graph) error) error {
	ctx, cancel := within(ctx, graphTimeout)
	defer cancel()
	d.mu.Lock()
	_, taken := d.exports[export]
	if !taken {
		d.exports[export] = nil
	}
	d.mu.Unlock()
	if taken {
		return messages.Errorf(messages.CodeInternal, "the storage daemon already has an export %q", export)
	}
	g := &graph{d: d}
	err := fn(ctx, g)
	if err != nil {
		err = also(d.explain(err), g.unwind(ctx))
		g = nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if g == nil {
		delete(d.exports, export)
	} else {
		d.exports[export] = g
	}
	return err
}

// CloseExport removes an export, connected clients or not, and its nodes. Its error says that
// not every byte is known to be in the file; the export is gone all the same. Write out
// everything with an NBD flush first: what is left to flush here holds up the other exports.
func (d *Daemon) CloseExport(ctx context.Context, export string) error {
	d.mu.Lock()
	g := d.exports[export]
	if g != nil {
		d.exports[export] = nil
	}
	d.mu.Unlock()
	if g == nil {
		return messages.Errorf(messages.CodeInternal, "the storage daemon has no export %q", export)
	}
	limited, cancel := within(ctx, graphTimeout)
	defer cancel()
	err := d.explain(g.close(limited))
	d.mu.Lock()
	delete(d.exports, export)
	d.mu.Unlock()
	return classify(ctx, writing, fmt.Sprintf("close export %q", export), err)
}

// close takes the graph out of the daemon from the top down, finishing what can be finished.
func (g *graph) close(ctx context.Context) error {
	var failed error
	for len(g.steps) > 0 {
		top := g.steps[len(g.steps)-1]
		if failed == nil && top.finish != nil {
			failed = top.finish(ctx)
		}
		if err := g.pop(ctx); err != nil {
			return also(err, failed)
		}
	}
	return failed
}

// unwind takes the graph out of the daemon without finishing anything.
func (g *graph) unwind(ctx context.Context) error {
	for len(g.steps) > 0 {
		if err := g.pop(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pop removes the topmost thing. Nothing is ever left in a daemon that lives on: one that does
// not let go is ended.
func (g *graph) pop(ctx context.Context) error {
	top := g.steps[len(g.steps)-1]
	g.steps = g.steps[:len(g.steps)-1]
	ctx, cancel := g.d.linger(ctx)
	defer cancel()
	err := top.remove(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errMonitorLost):
		// Gone with the daemon.
		return nil
	}
	g.steps = nil
	g.d.abandon(err)
	return err
}

// put runs a command that adds something, and notes how to take it out. undo runs even when the
// command's fate is unknown because ctx ended first; it then finds nothing, or the thing.
func (g *graph) put(ctx context.Context, command string, args any, s step) error {
	err := g.d.qmp.execute(ctx, command, args, nil)
	var refused *QMPError
	switch {
	case err == nil:
		g.steps = append(g.steps, s)
	case !errors.As(err, &refused):
		doubtful := s.remove
		g.steps = append(g.steps, step{remove: func(ctx context.Context) error {
			if err := doubtful(ctx); !errors.As(err, &refused) {
				return err
			}
			return nil
		}})
	}
	return err
}

// node adds a block node and returns its name. Options name the nodes below by theirs.
func (g *graph) node(ctx context.Context, options object) (string, error) {
	name := g.name(options)
	return name, g.put(ctx, "blockdev-add", options, g.removal(name))
}

// writeNode adds a node whose closing first calls last, if there is one, and then flushes the
// node and all below it.
func (g *graph) writeNode(ctx context.Context, options object, last func(ctx context.Context, node string) error) (string, error) {
	name := g.name(options)
	s := g.removal(name)
	s.finish = func(ctx context.Context) error {
		if last != nil {
			if err := last(ctx, name); err != nil {
				return err
			}
		}
		return g.seal(ctx, options)
	}
	return name, g.put(ctx, "blockdev-add", options, s)
}

func (g *graph) name(options object) string {
	name := g.d.id("node")
	options["node-name"] = name
	return name
}

func (g *graph) removal(node string) step {
	return step{remove: func(ctx context.Context) error {
		return g.d.qmp.execute(ctx, "blockdev-del", object{"node-name": node}, nil)
	}}
}

// seal makes a node read-only. QMP has no command to flush, and deleting a node does not say
// whether its caches could be written: this does, and it syncs the file.
func (g *graph) seal(ctx context.Context, options object) error {
	sealed := maps.Clone(options)
	sealed["read-only"] = true
	return g.d.qmp.execute(ctx, "blockdev-reopen", object{"options": []object{sealed}}, nil)
}

// export serves a node over NBD. There is no iothread: QEMU 7.2 ends on a failed assertion when
// a client of an export in an iothread disconnects.
func (g *graph) export(ctx context.Context, name, node string, writable bool) error {
	return g.exportWith(ctx, object{"node-name": node, "name": name, "writable": writable})
}

// exportDepths serves a node for reading that also says which of its content is its own: the
// metadata context qemu:allocation-depth.
func (g *graph) exportDepths(ctx context.Context, name, node string) error {
	return g.exportWith(ctx, object{"node-name": node, "name": name, "writable": false, "allocation-depth": true})
}

func (g *graph) exportWith(ctx context.Context, options object) error {
	id := g.d.id("export")
	options["type"], options["id"] = "nbd", id
	return g.put(ctx, "block-export-add", options, step{remove: func(ctx context.Context) error { return g.d.removeExport(ctx, id) }})
}

func (d *Daemon) removeExport(ctx context.Context, id string) error {
	w := d.qmp.watch("BLOCK_EXPORT_DELETED", func(data json.RawMessage) bool {
		var event struct{ ID string }
		return json.Unmarshal(data, &event) == nil && event.ID == id
	})
	defer d.qmp.unwatch(w)
	if err := d.qmp.execute(ctx, "block-export-del", object{"id": id, "mode": "hard"}, nil); err != nil {
		return err
	}
	return d.qmp.await(ctx, w.seen)
}

// format runs a blockdev-create job, which writes an image's metadata into a node, to its end.
func (d *Daemon) format(ctx context.Context, options object) error {
	return d.runJob(ctx, "blockdev-create", object{"options": options})
}

// runJob runs a command that starts a job, and waits for the job's end.
func (d *Daemon) runJob(ctx context.Context, command string, args object) error {
	id := d.id("job")
	args["job-id"] = id
	w := d.qmp.watch("JOB_STATUS_CHANGE", func(data json.RawMessage) bool {
		var event struct{ ID, Status string }
		return json.Unmarshal(data, &event) == nil && event.ID == id && event.Status == "concluded"
	})
	defer d.qmp.unwatch(w)
	err := d.qmp.execute(ctx, command, args, nil)
	var refused *QMPError
	if errors.As(err, &refused) {
		return err
	}
	if err == nil {
		err = d.qmp.await(ctx, w.seen)
	}
	if errors.Is(err, errMonitorLost) {
		return err
	}
	// Such a job cannot be stopped half way: it is waited for even when ctx has ended.
	ctx, cancel := d.linger(ctx)
	defer cancel()
	result, dismissErr := d.dismiss(ctx, id, w)
	switch {
	case dismissErr != nil && !errors.Is(dismissErr, errMonitorLost):
		d.abandon(dismissErr)
		return also(dismissErr, err)
	case dismissErr != nil:
		return dismissErr
	case err != nil:
		return err
	case result != "":
		return &QMPError{Command: command, Class: "GenericError", Desc: result}
	}
	return nil
}

// dismiss waits for a job, forgets it and returns its error's text.
func (d *Daemon) dismiss(ctx context.Context, id string, w *watch) (string, error) {
	for {
		var jobs []struct{ ID, Status, Error string }
		if err := d.qmp.execute(ctx, "query-jobs", nil, &jobs); err != nil {
			return "", err
		}
		i := slices.IndexFunc(jobs, func(j struct{ ID, Status, Error string }) bool { return j.ID == id })
		switch {
		case i < 0:
			// It never began.
			return "", nil
		case jobs[i].Status == "concluded":
			return jobs[i].Error, d.qmp.execute(ctx, "job-dismiss", object{"id": id}, nil)
		}
		if err := d.qmp.await(ctx, w.seen); err != nil {
			return "", err
		}
	}
}

// withSecret lends fn a secret object and takes it away again. The data are base64 on the wire.
func (g *graph) withSecret(ctx context.Context, passphrase []byte, fn func(id string) error) error {
	id := g.d.id("secret")
	remove := func(ctx context.Context) error {
		return g.d.qmp.execute(ctx, "object-del", object{"id": id}, nil)
	}
	err := g.put(ctx, "object-add", secretObject{id, passphrase}, step{remove: remove})
	if err != nil {
		return err
	}
	// It leaves before what fn puts on top of it.
	g.steps = g.steps[:len(g.steps)-1]
	err = fn(id)
	ctx, cancel := g.d.linger(ctx)
	defer cancel()
	if e := remove(ctx); e != nil && !errors.Is(e, errMonitorLost) {
		g.d.abandon(e)
		err = also(e, err)
	}
	return err
}
