package hypervisor

import (
	"errors"

	"libvirt.org/go/libvirt"

	"github.com/nasfleet/nasfleet/messages"
)

// libvirtError is an error of libvirt that prints what libvirt said, without numbers.
type libvirtError struct{ cause libvirt.Error }

func (e libvirtError) Error() string { return e.cause.Message }
func (e libvirtError) Unwrap() error { return e.cause }

// plain makes a bare error of libvirt print as a sentence; it leaves others as they are.
func plain(err error) error {
	if bare, ok := err.(libvirt.Error); ok { //nolint:errorlint // only a bare one: what wraps it has words already
		return libvirtError{bare}
	}
	return err
}

// is says whether err is one of libvirt's errors of these numbers.
func is(err error, numbers ...libvirt.ErrorNumber) bool {
	for _, n := range numbers {
		if errors.Is(err, n) {
			return true
		}
	}
	return false
}

// lookup finds a domain. The caller must free it.
func lookup(conn *libvirt.Connect, name string) (*libvirt.Domain, error) {
	dom, err := conn.LookupDomainByName(name)
	if is(err, libvirt.ERR_NO_DOMAIN) {
		return nil, messages.Errorf(messages.CodeVMNotFound, "there is no VM %q: %w", name, plain(err))
	}
	return dom, err
}

// free gives a domain's handle back. It fails only for a handle that is none.
func free(dom *libvirt.Domain) { _ = dom.Free() }
