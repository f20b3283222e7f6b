package hypervisor

import (
	"context"
	"fmt"

	"libvirt.org/go/libvirt"
)

// The oldest libvirt with pull-mode backups switched on, as GetLibVersion writes it
// (1,000,000 × major + 1,000 × minor + release).
const firstWithBackup = 7_002_000

// Versions says what answers at the other end.
type Versions struct {
	// Libvirt and Hypervisor as x.y.z.
	Libvirt, Hypervisor string
	// Type of the hypervisor, such as QEMU.
	Type string
	// CanBackup says that running VMs can be backed up.
	CanBackup bool
}

// Version asks libvirt for its version and the hypervisor's. The error has the code CodeHypervisorDown.
func (h *Hypervisor) Version(ctx context.Context) (Versions, error) {
	return call(ctx, h, func(conn *libvirt.Connect) (Versions, error) {
		lib, err := conn.GetLibVersion()
		if err != nil {
			return Versions{}, fmt.Errorf("ask for libvirt's version: %w", plain(err))
		}
		kind, err := conn.GetType()
		if err != nil {
			return Versions{}, fmt.Errorf("ask for the hypervisor's type: %w", plain(err))
		}
		// A libvirt that has started no guest yet may not know.
		hv, err := conn.GetVersion()
		if err != nil {
			hv = 0
		}
		return Versions{Libvirt: dotted(lib), Hypervisor: dotted(hv), Type: kind, CanBackup: lib >= firstWithBackup}, nil
	}, nil)
}

func dotted(v uint32) string { return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000) }
