package chain

import (
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/tests/lab"
)

const (
	vmName = "chained"
	// mostBackups is how many exist at most: a step that would add one prunes instead.
	mostBackups = 12
	// noSpace is what a full repository leaves to a backup.
	noSpace = 512 << 10
)

// run is the VM, the host and the model of both.
type run struct {
	model
	t       *testing.T
	rnd     *rand.Rand
	libvirt *lab.Libvirt
	vm      *lab.VM
	host    *host
	// nas is a file system that can be filled.
	nas, passphrase string
	// did counts what came to be.
	did map[string]int
}

// number reads an environment variable.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text, set := os.LookupEnv(name)
	if !set {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestEveryBackupRestoresToItsMoment is the property.
func TestEveryBackupRestoresToItsMoment(t *testing.T) {
	var random [8]byte
	_, _ = crand.Read(random[:])
	seed := number(t, "NASFLEET_CHAIN_SEED", binary.NativeEndian.Uint64(random[:]))
	steps := number(t, "NASFLEET_CHAIN_STEPS", 100)
	t.Logf("%d steps; again with NASFLEET_CHAIN_SEED=%d", steps, seed)
	r := newRun(t, rand.New(rand.NewPCG(seed, 0)))
	r.write() // a first backup of something
	for i := range steps {
		r.step(i)
		if t.Failed() {
			t.FailNow()
		}
	}
	for _, b := range r.backups {
		r.restores(b)
		r.host.mustJob(t, r.open(b, "verify", "--backup", b.id)...)
	}
	r.nothingElse()
	t.Logf("what came to be: %v", r.did)
}

func newRun(t *testing.T, rnd *rand.Rand) *run {
	t.Helper()
	r := &run{t: t, rnd: rnd, libvirt: lab.Libvirtd(t), nas: lab.LoopFS(t, 1024), did: map[string]int{}}
	r.host = startHost(t, r.libvirt.URI)
	r.disks = map[string]content{}
	var disks []lab.Disk
	for i, sizeMiB := range []int64{16, 24} {
		target := fmt.Sprintf("vd%c", 'a'+i)
		r.disks[target] = newContent(sizeMiB * lab.MiB)
		path := r.host.path(target + ".qcow2")
		// Clusters smaller than those that are copied, at times.
		lab.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", []string{"cluster_size=64k", "cluster_size=4k"}[rnd.IntN(2)], path, fmt.Sprint(sizeMiB, "M"))
		disks = append(disks, lab.Disk{Path: path, Format: "qcow2", Target: target})
	}
	r.vm = r.libvirt.DefineVM(t, lab.VMOptions{Name: vmName, Disks: disks})
	r.passphrase = r.host.path("passphrase")
	if err := os.WriteFile(r.passphrase, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

// step does one thing at random, and looks at the backups where it may have changed them.
func (r *run) step(i uint64) {
	r.t.Helper()
	kinds := []struct {
		name    string
		weight  int
		do      func()
		backups bool
	}{
		{"write", 25, r.write, false},
		{"discard", 10, r.discard, false},
		{"resize", 4, r.resize, false},
		{"restart", 4, r.restart, false},
		{"backup", 28, r.backup, true},
		{"backup to a full NAS", 5, r.backupWithoutSpace, true},
		{"backup out of time", 4, r.backupOutOfTime, true},
		{"cancelled backup", 6, r.cancelled, true},
		{"backup while the guest writes", 10, r.writtenMeanwhile, true},
		{"backup whose VM ends", 3, r.pulled, true},
		{"backup of the stopped VM", 4, r.stopped, true},
		{"consolidate", 6, r.consolidate, true},
		{"delete", 10, r.delete, true},
		{"prune", 4, r.prune, true},
	}
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	at := r.rnd.IntN(total)
	for _, k := range kinds {
		if at -= k.weight; at >= 0 {
			continue
		}
		began, before := time.Now(), len(r.backups)
		k.do()
		if k.backups {
			r.nothingElse()
			r.restoresOne()
		}
		r.t.Logf("step %d: %s: %d backups, %d before (%s)", i, k.name, len(r.backups), before, time.Since(began).Round(time.Millisecond))
		return
	}
}
