package storaged

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// recoverySlot is the key slot of a new container's second passphrase; the first one's is 0.
const recoverySlot = 1

// maxTimedTries is how often a LUKS key is begun: QEMU's timing of PBKDF2 fails now and then,
// within milliseconds, when the kernel has not yet charged any CPU time to its thread.
const maxTimedTries = 20

// timed calls something that makes a LUKS key until QEMU could time it.
func timed(do func() error) error {
	err := do()
	for try := 1; err != nil && says(err, sayNoCPUUsage) && try < maxTimedTries; try++ {
		err = do()
	}
	return err
}

// addKey puts a passphrase into a free key slot of a LUKS node. The secret that the node was opened
// with must still be there, because the master key is read again with it.
func (g *graph) addKey(ctx context.Context, node string, slot int, passphrase []byte) error {
	return g.withSecret(ctx, passphrase, func(secret string) error {
		return timed(func() error {
			return g.amend(ctx, node, object{
				"state": "active", "keyslot": slot, "new-secret": secret, "iter-time": g.d.iterTime.Milliseconds(),
			})
		})
	})
}

// makeRoom empties the key slots of some passphrases, but for that of b, and returns those that are left.
func (g *graph) makeRoom(ctx context.Context, node string, b Backup, passphrases [][]byte) (active []int, err error) {
	for _, p := range passphrases {
		if bytes.Equal(p, b.Passphrase) {
			continue
		}
		err := g.withSecret(ctx, p, func(secret string) error {
			return g.amend(ctx, node, object{"state": "inactive", "old-secret": secret})
		})
		if err != nil && !says(err, sayNoSlot) {
			return nil, err
		}
	}
	header, err := ofFile(ctx, func() ([]byte, error) { return readHeader(b.Path) })
	if err != nil {
		return nil, err
	}
	return activeSlots(header), nil
}

// amend changes a key slot. QEMU calls the command experimental (x-): it has been what it is, and what
// qemu-img amend uses, since 5.1.
func (g *graph) amend(ctx context.Context, node string, change object) error {
	change["driver"] = "luks"
	return g.d.runJob(ctx, "x-blockdev-amend", object{"node-name": node, "options": change})
}

// AddKeys gives further passphrases to a container that a passphrase opens, each a key slot of its own,
// and returns the slots in their order. When it returns they are durable; after an error some of them
// may open the container, and those that did still do, but for this: where the slots do not suffice, those
// that hold what is to be added go first (attempts that were cut short have left them), never that of b.
// What is encrypted is not touched.
// A passphrase that opens nothing is CodeWrongPassphrase.
func (d *Daemon) AddKeys(ctx context.Context, b Backup, passphrases ...[]byte) (slots []int, err error) {
	for _, p := range passphrases {
		if err := checkPassphrase(p); err != nil {
			return nil, err
		}
	}
	err = d.changeKeys(ctx, b, func(ctx context.Context, g *graph, node string, active []int) (err error) {
		if len(active)+len(passphrases) > luksSlotCount {
			if active, err = g.makeRoom(ctx, node, b, passphrases); err != nil {
				return err
			}
		}
		for _, p := range passphrases {
			slot := freeSlot(active)
			if slot < 0 {
				return messages.Errorf(messages.CodeTargetFull, "all %d key slots hold a passphrase", luksSlotCount).
					WithHint("Remove one that nobody needs with cryptsetup luksKillSlot, on the repository.")
			}
			if err := g.addKey(ctx, node, slot, p); err != nil {
				return err
			}
			active, slots = append(active, slot), append(slots, slot)
		}
		return nil
	})
	return slots, err
}

// KeepKeys empties every key slot of a container but those to keep, one of which has to hold the
// passphrase of b. When it returns this is durable.
func (d *Daemon) KeepKeys(ctx context.Context, b Backup, keep []int) error {
	return d.changeKeys(ctx, b, func(ctx context.Context, g *graph, node string, active []int) error {
		for _, slot := range keep {
			if !slices.Contains(active, slot) {
				return messages.Errorf(messages.CodeBackupCorrupt, "key slot %d is empty", slot)
			}
		}
		for _, slot := range active {
			if slices.Contains(keep, slot) {
				continue
			}
			if err := g.amend(ctx, node, object{"state": "inactive", "keyslot": slot}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Opens says whether a passphrase opens a container; a wrong one is no error.
func (d *Daemon) Opens(ctx context.Context, b Backup) (bool, error) {
	err := d.withContainer(ctx, b, true, func(context.Context, *graph, string) error { return nil })
	err = classify(ctx, opening, fmt.Sprintf("open backup %q", b.Path), err)
	if messages.CodeOf(err) == messages.CodeWrongPassphrase {
		return false, nil
	}
	return err == nil, err
}

// Slots counts the passphrases of a container.
func (d *Daemon) Slots(ctx context.Context, b Backup) (int, error) {
	header, err := ofFile(ctx, func() ([]byte, error) { return containerHeader(b) })
	if err != nil {
		return 0, classify(ctx, opening, fmt.Sprintf("open backup %q", b.Path), err)
	}
	return len(activeSlots(header)), nil
}

func (d *Daemon) changeKeys(ctx context.Context, b Backup, fn func(ctx context.Context, g *graph, node string, active []int) error) error {
	err := d.withContainer(ctx, b, false, func(ctx context.Context, g *graph, node string) error {
		header, err := ofFile(ctx, func() ([]byte, error) { return readHeader(b.Path) })
		if err != nil {
			return err
		}
		return fn(ctx, g, node, activeSlots(header))
	})
	return classify(ctx, opening, fmt.Sprintf("change the keys of backup %q", b.Path), err)
}

// withContainer opens a container for fn, and flushes and closes it again.
func (d *Daemon) withContainer(ctx context.Context, b Backup, readOnly bool, fn func(ctx context.Context, g *graph, node string) error) error {
	if _, err := ofFile(ctx, func() ([]byte, error) { return containerHeader(b) }); err != nil {
		return err
	}
	name := d.id("keys")
	err := d.build(ctx, name, func(ctx context.Context, g *graph) error {
		file, err := g.ownFile(ctx, b.Path, object{"read-only": readOnly})
		if err != nil {
			return err
		}
		return g.withSecret(ctx, b.Passphrase, func(secret string) error {
			options := object{"driver": "luks", "file": file, "key-secret": secret, "read-only": readOnly}
			add := g.node
			if !readOnly {
				add = func(ctx context.Context, o object) (string, error) { return g.writeNode(ctx, o, nil) }
			}
			node, err := add(ctx, options)
			if err != nil {
				return err
			}
			return fn(ctx, g, node)
		})
	})
	if err != nil {
		return err
	}
	return d.CloseExport(ctx, name)
}

// containerHeader reads the header of a backup that has to be a LUKS container.
func containerHeader(b Backup) ([]byte, error) {
	if b.Passphrase == nil {
		return nil, errors.New("no passphrase was given")
	}
	if err := checkBackup(b); err != nil {
		return nil, err
	}
	return readHeader(b.Path)
}

func freeSlot(active []int) int {
	for i := range luksSlotCount {
		if !slices.Contains(active, i) {
			return i
		}
	}
	return -1
}
