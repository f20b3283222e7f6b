package hypervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"github.com/nasfleet/nasfleet/messages"
)

// ThawLeft thaws the guests that a worker had frozen when it and its watchdog were killed: those
// that have a note in the run folder and no watchdog, and are frozen still. It goes on after a guest
// that cannot be thawed, whose note stays. Nobody may be freezing a guest meanwhile. The error has the
// code CodeHypervisorDown or CodeFreezeFailed.
func (h *Hypervisor) ThawLeft(ctx context.Context, runDir string) error {
	paths, err := filepath.Glob(notePath(runDir, "*"))
	errs := []error{err}
	for _, path := range paths {
		errs = append(errs, h.thawNoted(ctx, path))
	}
	return errors.Join(errs...)
}

// ThawVM is ThawLeft for one VM, by its name.
func (h *Hypervisor) ThawVM(ctx context.Context, runDir, name string) error {
	if notes, err := filepath.Glob(notePath(runDir, "*")); err != nil || len(notes) == 0 {
		return err
	}
	uuid, err := call(ctx, h, func(conn *libvirt.Connect) (string, error) {
		dom, err := lookup(conn, name)
		if err != nil {
			return "", err
		}
		defer free(dom)
		return dom.GetUUIDString()
	}, nil)
	if err != nil {
		return err
	}
	path := notePath(runDir, uuid)
	_, err = os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return h.thawNoted(ctx, path)
}

func (h *Hypervisor) thawNoted(ctx context.Context, path string) error {
	n, err := tryNote(path)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrExist) {
		return nil // its watchdog is at work, or has just ended
	}
	if err != nil {
		return err
	}
	defer n.close()
	uuid := strings.TrimSuffix(filepath.Base(path), noteSuffix)
	was, err := h.thawLeft(ctx, uuid)
	if err != nil && messages.CodeOf(err) != messages.CodeVMNotFound {
		return messages.Errorf(messages.CodeFreezeFailed, "the guest %s may still be frozen: %w", uuid, err)
	}
	if was {
		h.log.Warn().Str("uuid", uuid).Msg("thawed a guest that a killed worker had left frozen")
	}
	return n.remove()
}

// thawLeft thaws a guest if it is frozen, and says whether it was. The caller knows by its note that
// the freeze is the worker's. A VM that is off has lost its freeze with its memory.
func (h *Hypervisor) thawLeft(ctx context.Context, uuid string) (bool, error) {
	return call(ctx, h, func(conn *libvirt.Connect) (bool, error) {
		var was bool
		err := withActive(conn, uuid, func(dom *libvirt.Domain) (err error) {
			if was, err = isFrozen(dom); err != nil || !was {
				return err
			}
			return thaw(dom)
		})
		return was, err
	}, nil)
}

// thaw thaws a guest that the worker has frozen.
func (h *Hypervisor) thaw(ctx context.Context, uuid string) error {
	_, err := call(ctx, h, func(conn *libvirt.Connect) (struct{}, error) {
		return struct{}{}, withActive(conn, uuid, thaw)
	}, nil)
	return err
}

func thaw(dom *libvirt.Domain) error {
	if err := dom.AgentSetResponseTimeout(freezeTimeout, 0); err != nil {
		return err
	}
	err := dom.FSThaw(nil, 0)
	return errors.Join(err, dom.AgentSetResponseTimeout(int(libvirt.DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK), 0))
}

// withActive calls f with a VM that has a QEMU process. For another it does nothing.
func withActive(conn *libvirt.Connect, uuid string, f func(*libvirt.Domain) error) error {
	dom, err := conn.LookupDomainByUUIDString(uuid)
	if is(err, libvirt.ERR_NO_DOMAIN) {
		return messages.Errorf(messages.CodeVMNotFound, "there is no VM %s: %w", uuid, plain(err))
	}
	if err != nil {
		return err
	}
	defer free(dom)
	if state, err := stateOf(dom); err != nil || !state.Active() {
		return err
	}
	return f(dom)
}
