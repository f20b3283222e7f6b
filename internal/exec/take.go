package exec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// taking is a backup under way. A backup's id is its job's.
type taking struct {
	e    *Executor
	ws   *workspace
	cmd  *messages.TakeBackup
	r    Reporter
	pass *secret.Passphrase
	// recovery opens the backup as well; nil for none.
	recovery *secret.Passphrase
	limiter  *copier.Limiter
	src      source
	live     liveSource // src, if it is one; nil for a consolidation
	partial  *repository.Partial
	disks    []*takenDisk
	man      repository.Manifest

	// digKey is the key of an encrypted backup's digests; wrappedKeys hold it if it is an older one's.
	digKey      []byte
	wrappedKeys []json.RawMessage

	// chain is nil for a backup that neither continues nor starts one; links are what an
	// incremental continues, the newest first, and linkKeys the keys of their digests.
	chain    *survey
	links    []repository.Backup
	linkKeys [][]byte
	point    point
}

// takenDisk is one disk on its way from the source to the repository.
type takenDisk struct {
	sourceDisk
	index             int
	file, digestsFile string
	target            *storaged.Daemon
	// unit is the size of the target's clusters, in bytes.
	unit int64
	// digests are collected on the host, and copied to the repository when they are complete.
	digests *digest.Writer
	stats   copier.Stats
}

// closeDigests makes the digests complete. It may be called again.
func (d *takenDisk) closeDigests() error {
	w := d.digests
	if w == nil {
		return nil
	}
	d.digests = nil
	return w.Close()
}

// take does a TakeBackup. Whatever has to be in place before the data can flow is made while the
// guest notices nothing; the source is begun last and ended first.
func (e *Executor) take(ctx context.Context, ws *workspace, cmd *messages.TakeBackup, r Reporter) (Outcome, error) {
	t := &taking{e: e, ws: ws, cmd: cmd, r: r, limiter: ws.limiter}
	var err error
	if cmd.Details.Encryption { // a passphrase that comes without it is for nothing
		defer t.wipe()
		if err := t.openKeys(); err != nil {
			return Outcome{}, err
		}
	}
	if t.live, err = e.source(ctx, cmd); err != nil {
		return Outcome{}, err
	}
	t.src = t.live
	if f := t.live.noIncremental(); f != nil && cmd.Mode == messages.ModeIncremental {
		return Outcome{}, f.refuse()
	}
	// This attempt may end before it comes to make its own.
	ws.onClose("a killed attempt's scratch files", func(ctx context.Context) error { return e.removeScratch(ctx, ws.job) })
	return t.run(ctx)
}

// run makes a backup of the source.
func (t *taking) run(ctx context.Context) (Outcome, error) {
	ws, cmd, r := t.ws, t.cmd, t.r
	r.Phase(messages.PhaseMounting)
	repo, err := ws.repository(ctx, cmd.Repository)
	if err != nil {
		return Outcome{}, err
	}
	at := repository.Location{BackupPath: cmd.BackupPath, VM: cmd.Target(), ID: ws.job}
	t.partial, err = repo.Create(ctx, at)
	if committed := new(repository.CommittedError); errors.As(err, &committed) {
		// An attempt before this one committed it and died before it could say so.
		return t.outcome(committed.Backup.Manifest), nil
	}
	if err != nil {
		return Outcome{}, err
	}
	ws.onClose("the unfinished backup", t.partial.Discard)

	if err := t.copy(ctx, repo); err != nil {
		return Outcome{}, err
	}
	if cmd.Details.IntegrityCheck {
		if err := t.verify(ctx); err != nil {
			return Outcome{}, err
		}
	}
	r.Phase(messages.PhaseCommitting)
	if err := t.checkChain(ctx, repo); err != nil {
		return Outcome{}, err
	}
	if err := t.commit(ctx); err != nil {
		return Outcome{}, err
	}
	t.forgetOld(ctx)
	return t.outcome(t.man), nil
}

// openKeys opens the passphrases that the backup is to be encrypted with.
func (t *taking) openKeys() (err error) {
	if t.pass, err = t.e.passphrase(t.cmd.Details.Passphrase); err != nil {
		return err
	}
	if t.recovery, err = t.e.passphrase(t.cmd.Details.Recovery); err != nil {
		return err
	}
	t.digKey = secret.NewDigestKey()
	return nil
}

func (t *taking) wipe() {
	t.pass.Wipe()
	t.recovery.Wipe()
	clear(t.digKey)
	t.wipeLinkKeys()
}

func (t *taking) wipeLinkKeys() {
	for _, k := range t.linkKeys {
		clear(k)
	}
}

func (t *taking) outcome(m repository.Manifest) Outcome { return takenOutcome(t.cmd, m) }

// takenOutcome is what a job that has taken a backup has to say.
func takenOutcome(cmd *messages.TakeBackup, m repository.Manifest) Outcome {
	entry := m.CatalogEntry(cmd.Repository, cmd.BackupPath)
	return Outcome{BackupID: m.ID, Backup: &entry, Notes: m.Notes}
}

// copy brings the data over: source, lane, files on the repository, all of them closed at the end.
func (t *taking) copy(ctx context.Context, repo *repository.Repository) error {
	disks, err := t.src.prepare(ctx, t.ws)
	if err != nil {
		return err
	}
	if err := t.chooseChain(ctx, repo, disks); err != nil {
		return err
	}
	for i, d := range disks {
		t.disks = append(t.disks, &takenDisk{sourceDisk: d, index: i, digestsFile: d.name + ".digests"})
	}
	if err := each(ctx, t.disks, t.createTarget); err != nil {
		return err
	}
	if t.live != nil {
		t.r.Phase(messages.PhaseFreezing)
	}
	m, err := t.beginSource(ctx)
	if err != nil {
		return err
	}
	t.man.CreatedAt, t.man.Quiesced, t.man.FrozenSeconds = m.at.UTC(), m.quiesced, m.frozen.Seconds()
	t.man.Notes = append(t.man.Notes, m.notes...)
	if t.live == nil {
		t.point.checkpoint = m.held
	}

	t.r.Phase(messages.PhaseCopying)
	if err := t.copyAll(ctx); err != nil {
		return err
	}
	// The guest first: nothing of the source is needed any more.
	if err := t.src.end(ctx); err != nil {
		return err
	}
	return each(ctx, t.disks, func(ctx context.Context, d *takenDisk) error {
		if err := d.target.CloseExport(ctx, d.name); err != nil {
			return err
		}
		if err := d.closeDigests(); err != nil {
			return messages.Errorf(messages.CodeInternal, "disk %s: %w", d.name, err)
		}
		return d.target.Stop()
	})
}

func (t *taking) createTarget(ctx context.Context, d *takenDisk) (err error) {
	d.file = d.name + ".qcow2"
	file := storaged.NewBackup{Size: d.size, Passphrase: t.pass.Bytes(), Recovery: t.recovery.Bytes()}
	if t.cmd.Details.Encryption {
		d.file = d.name + ".luks"
	}
	if t.cmd.Details.Compression {
		file.Compression = t.cmd.Details.Type()
	}
	d.unit = file.ClusterSize()
	if file.Path, err = t.partial.Path(ctx, d.file); err != nil {
		return err
	}
	if d.target, err = t.ws.daemon(ctx, fmt.Sprintf("dst%d", d.index)); err != nil {
		return err
	}
	if err := d.target.CreateBackup(ctx, d.name, file); err != nil {
		return err
	}
	if d.digests, err = digest.Create(filepath.Join(t.ws.dir, d.digestsFile), d.size, t.digKey); err != nil {
		return messages.Errorf(messages.CodeInternal, "disk %s: its digests: %w", d.name, err)
	}
	t.ws.onClose("digests", func(context.Context) error { return d.closeDigests() })
	return nil
}

// copyAll runs the lane of every disk at once, under one limiter, while the source is watched.
func (t *taking) copyAll(ctx context.Context) error {
	return watched(ctx, t.src.check, func(ctx context.Context) error { return each(ctx, t.disks, t.copyDisk) })
}

func (t *taking) copyDisk(ctx context.Context, d *takenDisk) error {
	l := lane{
		name: d.name, src: d.from(), dst: endpoint{socket: d.target.Socket(), export: d.name},
		size: d.size, unit: d.unit, limiter: t.limiter, digests: d.digests, report: t.r,
		stall: t.e.cfg.StallTimeout, stored: targetSide,
	}
	if d.check != nil {
		l.check, l.stored = d.check, sourceSide|targetSide
	}
	if t.incremental(d) {
		below, err := t.openBelow(ctx, d)
		if err != nil {
			return err
		}
		defer func() { _ = below.Close() }()
		l.changes, l.below = t.changes(d), below
	}
	var err error
	d.stats, err = runLane(ctx, l)
	err = ownTrouble(died(err, d.target, d.daemon))
	if d.stored != nil && err != nil {
		err = d.stored.failed(ctx, err)
	}
	return err
}

// incremental says whether the backup holds only what has changed of a disk.
func (t *taking) incremental(d *takenDisk) bool { return slices.Contains(t.point.disks, d.name) }

// changes names the dirty bitmap of a disk of which only changes are copied.
func (t *taking) changes(d *takenDisk) string {
	if d.daemon != nil {
		return t.point.since // it is in the disk itself
	}
	return hypervisor.BackupDisk{Target: d.name}.DirtyBitmap()
}

// ownTrouble tells the digests, which are files of the worker's run folder, from the target: a
// full run folder is none of the repository's business. NBD errors name no path.
func ownTrouble(err error) error {
	var own *fs.PathError
	if !errors.As(err, &own) || messages.CodeOf(err) == messages.CodeSourceReadFailed { // the digests of a chain
		return err
	}
	return messages.Errorf(messages.CodeInternal, "%w", err).
		WithHint("Give the worker's run folder more room: it takes 16 bytes for each MiB of the disks under way.")
}

// verify reads everything back from the repository.
func (t *taking) verify(ctx context.Context) error {
	t.r.Phase(messages.PhaseVerifying)
	var disks []storedDisk
	for _, d := range t.disks {
		path, err := t.partial.Path(ctx, d.file)
		if err != nil {
			return err
		}
		disks = append(disks, storedDisk{index: d.index, name: d.name, size: d.size, links: []storedLink{{
			path: path, digests: filepath.Join(t.ws.dir, d.digestsFile), key: t.digKey, incremental: t.incremental(d),
		}}})
	}
	v, err := t.e.readBack(ctx, t.ws, disks, t.pass, t.limiter, t.r)
	if err != nil {
		return err
	}
	t.r.Verified(t.ws.job, v)
	return nil
}
