package hypervisor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

func connect(t *testing.T, uri string) *Hypervisor {
	t.Helper()
	h, err := Connect(t.Context(), uri, zerolog.New(zerolog.NewTestWriter(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return h
}

func wantCode(t *testing.T, err error, want messages.Code) {
	t.Helper()
	if got := messages.CodeOf(err); got != want {
		t.Errorf("the error has the code %q, not %q: %v", got, want, err)
	}
}

// spec makes the folder of a backup of the domain and says how to begin it.
func spec(t *testing.T, d Domain, targets ...string) BackupSpec {
	t.Helper()
	dir := filepath.Join(lab.Dir(t), "job")
	if err := d.PrepareDir(dir); err != nil {
		t.Fatal(err)
	}
	s := BackupSpec{Domain: d.Name, Socket: filepath.Join(dir, "nbd.sock")}
	for _, target := range targets {
		s.Disks = append(s.Disks, BackupDisk{Target: target, ScratchFile: filepath.Join(dir, target+".scratch")})
	}
	return s
}

func inspect(t *testing.T, h *Hypervisor, name string) Domain {
	t.Helper()
	d, err := h.Domain(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func begin(t *testing.T, h *Hypervisor, s BackupSpec) {
	t.Helper()
	if _, err := h.BeginBackup(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func endBackup(t *testing.T, h *Hypervisor, s BackupSpec) {
	t.Helper()
	if err := h.EndBackup(t.Context(), s.Domain, s.Socket); err != nil {
		t.Fatal(err)
	}
}

// exports asks the NBD server what it serves: sizes (bytes) by name.
func exports(t *testing.T, socket string) map[string]int64 {
	t.Helper()
	var list struct {
		Exports []struct {
			Name string `json:"export-name"`
			Size int64  `json:"export-size"`
		} `json:"exports"`
	}
	out := lab.Run(t, "nbdinfo", "--json", "--list", "nbd+unix:///?socket="+socket)
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	sizes := map[string]int64{}
	for _, e := range list.Exports {
		sizes[e.Name] = e.Size
	}
	return sizes
}

// served reads an export whole.
func served(t *testing.T, socket, export string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "copy")
	lab.Run(t, "nbdcopy", "nbd+unix:///"+export+"?socket="+socket, out)
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// allAre says whether every byte is b.
func allAre(data []byte, b byte) bool {
	return !slices.ContainsFunc(data, func(x byte) bool { return x != b })
}

// noneLeft asserts that a backup has left nothing behind and the VM runs.
func noneLeft(t *testing.T, vm *lab.VM, s BackupSpec) {
	t.Helper()
	vm.Running(t)
	if vm.HasBackupJob(t) {
		t.Error("the VM still has a backup job")
	}
	for _, d := range s.Disks {
		if err := os.Remove(d.ScratchFile); err != nil && !os.IsNotExist(err) {
			t.Errorf("the scratch file cannot be removed: %v", err)
		}
	}
	lab.NoSocketsBelow(t, filepath.Dir(s.Socket))
}

// guest starts a guest with one disk, for tests that need no more.
func guest(t *testing.T, l *lab.Libvirt, h *Hypervisor, name string, devices ...string) (*lab.VM, Domain) {
	t.Helper()
	vm := l.DefineVM(t, lab.VMOptions{Name: name, DevicesXML: strings.Join(devices, ""), Disks: []lab.Disk{
		{Path: lab.Image(t, filepath.Join(lab.Dir(t), "a.qcow2"), "qcow2", 8)},
	}})
	t.Cleanup(func() {
		if vm.State(t) != "shut off" {
			vm.Destroy(t)
		}
	})
	return vm, inspect(t, h, name)
}
