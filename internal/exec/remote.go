package exec

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
)

// openRemote has a disk of a VM that lies on another machine opened by a storage daemon. It gets its key, which is lent
// for the call alone, and the stall timeout to answer in: a server can accept and never say a word, and Ceph waits
// minutes for monitors that are away. code is what that means to the job.
func (e *Executor) openRemote(ctx context.Context, v hypervisor.Disk, code messages.Code, open func(context.Context, storaged.RemoteDisk) error) error {
	key, err := e.cfg.Hypervisor.NetworkKey(ctx, *v.Network)
	if err != nil {
		return fmt.Errorf("disk %s: %w", v.Target, err)
	}
	defer clear(key)
	return e.awaitRemote(ctx, v, code, func(ctx context.Context) error {
		return open(ctx, storaged.RemoteDisk{Name: fmt.Sprintf("%s (%s)", v.Target, v.Path), Format: v.Format, Remote: remoteOf(*v.Network, key)})
	})
}

// awaitRemote bounds what waits for the server of a disk.
func (e *Executor) awaitRemote(ctx context.Context, v hypervisor.Disk, code messages.Code, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, e.cfg.StallTimeout,
		messages.Errorf(code, "disk %s (%s) has not answered within %s", v.Target, v.Path, e.cfg.StallTimeout).
			WithHint("Check the server of the disk, and the network from this host to it."))
	defer cancel()
	return f(ctx)
}

// remoteOf says to the storage daemon where a disk lies that CheckOpen has let pass.
func remoteOf(n hypervisor.Network, key []byte) storaged.Remote {
	var hosts []storaged.Host
	for _, h := range n.Hosts {
		hosts = append(hosts, storaged.Host{Name: h.Name, Port: h.Port})
	}
	switch n.Protocol {
	case hypervisor.ProtocolRBD:
		pool, image, _ := strings.Cut(n.Name, "/")
		return storaged.RBD{Pool: pool, Image: image, Snapshot: n.Snapshot, Monitors: hosts, Conf: n.Config, User: n.User, Key: key}
	case hypervisor.ProtocolNBD:
		return storaged.NBD{Socket: n.Hosts[0].Socket, Host: hosts[0], Export: n.Name}
	}
	return storaged.SSH{Host: hosts[0], User: n.User, Path: n.Name}
}

// aimAtRBD restores over images that the command names, of the cluster that the host knows.
func (t *restoring) aimAtRBD(ctx context.Context, disks []repository.Disk) error {
	for _, d := range disks {
		n := hypervisor.Network{Protocol: hypervisor.ProtocolRBD, Name: t.cmd.ToRBD[d.Name], Config: t.e.cfg.CephConf, User: t.e.cfg.CephUser}
		v := hypervisor.Disk{Target: d.Name, Kind: hypervisor.KindNetwork, Path: n.String(), Network: &n, Format: storaged.FormatRaw}
		if err := t.e.checkRemoteUnused(ctx, v); err != nil {
			return err
		}
		t.to = append(t.to, &restoreTarget{disk: d, path: v.Path, format: v.Format, remote: &v})
	}
	return nil
}

// checkRemoteUnused refuses to overwrite a disk on another machine that a VM of this host has open. Nothing like the
// locks of files tells of others.
func (e *Executor) checkRemoteUnused(ctx context.Context, v hypervisor.Disk) error {
	if e.cfg.Hypervisor == nil {
		return nil // a host without VMs
	}
	user, err := e.cfg.Hypervisor.NetworkUser(ctx, *v.Network)
	if err != nil {
		return err
	}
	if user != "" {
		return messages.Errorf(messages.CodeVMRunning, "disk %s (%s) is in use by vm %s, which runs", v.Target, v.Path, user)
	}
	return nil
}

// unlocked says whether nothing but a look keeps the VM from being started over its disks: nothing locks those on other
// machines.
func (t *restoring) unlocked() bool {
	return t.cmd.ToVM != "" && slices.ContainsFunc(t.to, func(to *restoreTarget) bool { return to.remote != nil })
}

// checkStopped refuses to overwrite the unlocked disks of a VM that does not stand still.
func (t *restoring) checkStopped(ctx context.Context) error {
	if !t.unlocked() {
		return nil
	}
	state, err := t.e.state(ctx, t.cmd.ToVM)
	if messages.CodeOf(err) == messages.CodeHypervisorDown && ctx.Err() == nil {
		return nil // the next look tells
	}
	if err == nil && state != hypervisor.Stopped {
		err = messages.Errorf(messages.CodeVMRunning, "vm %s was started", t.cmd.ToVM).
			WithHint("Stop the VM and repeat the restore.")
	}
	return err
}

// whileStopped overwrites the disks of a VM until it is started.
func (t *restoring) whileStopped(ctx context.Context, overwrite func(context.Context) error) error {
	if !t.unlocked() {
		return overwrite(ctx)
	}
	return watched(ctx, t.checkStopped, overwrite)
}

// closeTarget writes out what an export to overwrite still holds, in bounded time where its server may hang.
func (t *restoring) closeTarget(ctx context.Context, to *restoreTarget) error {
	if to.remote == nil {
		return to.into.CloseExport(ctx, to.disk.Name)
	}
	return t.e.awaitRemote(ctx, *to.remote, messages.CodeTargetWriteFailed, func(ctx context.Context) error {
		return to.into.CloseExport(ctx, to.disk.Name)
	})
}
