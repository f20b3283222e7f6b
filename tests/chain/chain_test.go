package chain

import (
	crand "crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/messages"
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
	for target, sizeMiB := range map[string]int{"vda": 16, "vdb": 24} {
		r.disks[target] = newContent(int64(sizeMiB) * lab.MiB)
		disks = append(disks, lab.Disk{Path: lab.Image(t, r.host.path(target+".qcow2"), "qcow2", sizeMiB), Format: "qcow2", Target: target})
	}
	slices.SortFunc(disks, func(a, b lab.Disk) int { return strings.Compare(a.Target, b.Target) })
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

// place chooses a disk and a range of it, in sectors of 512 bytes.
func (r *run) place(most int64) (disk string, offset, length int64) {
	disk = []string{"vda", "vdb"}[r.rnd.IntN(2)]
	sectors := r.disks[disk].size / 512
	length = 1 + r.rnd.Int64N(min(most/512, sectors))
	return disk, 512 * r.rnd.Int64N(sectors-length+1), 512 * length
}

// write writes here and there, little more often than much.
func (r *run) write() {
	r.t.Helper()
	for range 1 + r.rnd.IntN(4) {
		r.writeUpTo([]int64{4 << 10, 200 << 10, 2 * lab.MiB}[r.rnd.IntN(3)])
	}
}

func (r *run) writeUpTo(most int64) {
	r.t.Helper()
	disk, offset, length := r.place(most)
	pattern := byte(r.rnd.IntN(256)) // zeroes as well
	r.vm.Write(r.t, disk, offset, length, pattern)
	r.disks[disk].fill(offset, length, pattern)
}

func (r *run) discard() {
	r.t.Helper()
	disk, offset, length := r.place(3 * lab.MiB)
	r.vm.Discard(r.t, disk, offset, length)
	r.disks[disk].fill(offset, length, 0)
}

// resize gives a disk another size, and one time in two the one back that it had in the backup that the next
// would continue.
func (r *run) resize() {
	r.t.Helper()
	disk := []string{"vda", "vdb"}[r.rnd.IntN(2)]
	r.resizeTo(disk, r.anySize(disk))
	if tip := r.find(r.tip); tip != nil && r.rnd.IntN(2) == 0 {
		if size := tip.disks[disk].size; size%clusterSize == 0 {
			r.resizeTo(disk, size)
		}
	}
}

// anySize is larger than a disk by any number of sectors, or smaller and whole clusters.
func (r *run) anySize(disk string) int64 {
	was := r.disks[disk].size
	if was > 20*lab.MiB || was > 12*lab.MiB && r.rnd.IntN(2) == 0 {
		return (was - 1 - r.rnd.Int64N(4*lab.MiB)) / clusterSize * clusterSize
	}
	return was + 512*(1+r.rnd.Int64N(4*lab.MiB/512))
}

func (r *run) resizeTo(disk string, size int64) {
	r.t.Helper()
	r.libvirt.Virsh(r.t, "blockresize", vmName, disk, fmt.Sprint(size, "B"))
	r.disks[disk] = r.disks[disk].resize(size)
}

// restart pulls the plug. QEMU is left the time that it needs to end: it stores its bitmaps then.
func (r *run) restart() {
	r.t.Helper()
	lab.EventuallyIn(r.t, patience, "the VM is off", func() bool {
		_, _ = r.libvirt.TryVirsh(r.t, "destroy", "--graceful", vmName) // it fails where QEMU takes its time
		return r.vm.State(r.t) == "shut off"
	})
	r.vm.Start(r.t)
}

// taking is a backup that was chosen at random.
type taking struct {
	mode      messages.Mode
	encrypted bool
	// incremental says whether it has to become one.
	incremental bool
	args        []string
}

func (r *run) choose() taking {
	// Mostly as the chain is: it would be a short one otherwise.
	k := taking{
		mode: []messages.Mode{
			messages.ModeIncremental, messages.ModeIncremental, messages.ModeIncremental, messages.ModeAuto, messages.ModeAuto,
			messages.ModeAuto, messages.ModeAuto, messages.ModeFull, "",
		}[r.rnd.IntN(9)],
		encrypted: r.rnd.IntN(2) == 0,
	}
	tip := r.find(r.tip)
	if tip != nil && r.rnd.IntN(6) > 0 {
		k.encrypted = tip.encrypted
	}
	k.args = []string{"take", "--zone", zone, "--host", name, "--vm", vmName, "--repo", r.nas, "--attempts", "1"}
	if k.mode != "" {
		k.args = append(k.args, "--mode", string(k.mode))
	}
	if k.encrypted {
		k.args = append(k.args, "--encrypt", "--passphrase-file", r.passphrase)
	}
	for _, flag := range []string{"--compress", "--verify"} {
		if r.rnd.IntN(2) == 0 {
			k.args = append(k.args, flag)
		}
	}
	k.incremental = r.continues(k.encrypted) &&
		(k.mode == messages.ModeIncremental || k.mode == messages.ModeAuto && tip.links < messages.DefaultFullEvery)
	return k
}

// took holds a job's end against the model: the mode is the one that it had to be, and an incremental fails
// only where nothing can be continued. mayFail is for one that was made to fail or to end.
func (r *run) took(k taking, ev messages.Event, mayFail bool) {
	r.t.Helper()
	switch {
	case ev.Kind == messages.KindSucceeded:
		b := backup{id: ev.BackupID, parent: ev.Backup.Parent, encrypted: k.encrypted}
		switch {
		case k.incremental:
			b.links = r.find(r.tip).links + 1
			if b.parent != r.tip || ev.Backup.Mode != messages.ModeIncremental {
				r.t.Errorf("%v: not an incremental of %s but %s of %q: %s", k.args, r.tip, ev.Backup.Mode, b.parent, ev.Backup.FullReason)
			}
		case b.parent != "" || ev.Backup.Mode != messages.ModeFull || k.mode == messages.ModeIncremental:
			r.t.Errorf("%v: not a full backup but %s of %q", k.args, ev.Backup.Mode, b.parent)
		case k.mode != "":
			b.links = 1
		}
		r.add(b)
		r.did[fmt.Sprintf("%s backup as %s", ev.Backup.Mode, orNone(string(k.mode)))]++
		r.restores(r.backups[len(r.backups)-1])
	case k.mode == messages.ModeIncremental && !k.incremental && ev.Kind == messages.KindFailed && ev.Error.Code == messages.CodeChainBroken:
		r.did["refused incremental"]++
	case mayFail:
		r.did[fmt.Sprintf("%s: %s", ev.Kind, ev.Error.Code)]++
	default:
		r.t.Errorf("%v: %s: %v", k.args, ev.Kind, ev.Error)
	}
}

func orNone(mode string) string {
	if mode == "" {
		return "no mode"
	}
	return mode
}

// room prunes where there are many backups, and says whether there is room for one more.
func (r *run) room() bool {
	r.t.Helper()
	if len(r.backups) < mostBackups {
		return true
	}
	r.prune()
	return len(r.backups) < mostBackups
}

func (r *run) backup() {
	r.t.Helper()
	if !r.room() {
		b := r.backups[0]
		r.host.mustJob(r.t, "delete", "--backup", b.id, "--cascade")
		r.remove(r.withChildren(b.id)...)
	}
	k := r.choose()
	ev, err := r.host.job(k.args...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.took(k, ev, false)
}

// backupWithoutSpace takes a backup while the NAS is full.
func (r *run) backupWithoutSpace() {
	r.t.Helper()
	r.writeUpTo(4 * lab.MiB)
	filler := filepath.Join(r.nas, "filler")
	r.fillNAS(filler)
	k := r.choose()
	ev, err := r.host.job(k.args...)
	if err := os.Remove(filler); err != nil {
		r.t.Error(err)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.took(k, ev, true)
}

// fillNAS makes a file that leaves noSpace.
func (r *run) fillNAS(path string) {
	r.t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(r.nas, &fs); err != nil {
		r.t.Fatal(err)
	}
	// The file system keeps some for itself: the rest is written until it is full.
	size := int64(fs.Bfree)*fs.Bsize - 64*lab.MiB
	lab.Run(r.t, "fallocate", "--length", fmt.Sprint(size), path)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for block := make([]byte, 64<<10); err == nil; {
		var n int
		n, err = f.Write(block)
		size += int64(n)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		r.t.Fatal(err)
	}
	if err := f.Truncate(size - noSpace); err != nil {
		r.t.Fatal(err)
	}
}

// backupOutOfTime takes a backup that is slower than its time.
func (r *run) backupOutOfTime() {
	r.t.Helper()
	r.writeUpTo(6 * lab.MiB)
	k := r.choose()
	ev, err := r.host.job(append(k.args, "--bandwidth", "1", "--timeout", "1s")...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.took(k, ev, true)
}

// cancelled cancels a backup as soon as libvirt runs it.
func (r *run) cancelled() {
	r.t.Helper()
	r.writeUpTo(6 * lab.MiB)
	k, id := r.choose(), ulid.Make().String()
	type end struct {
		ev  messages.Event
		err error
	}
	ended := make(chan end, 1)
	go func() {
		ev, err := r.host.job(append(k.args, "--bandwidth", "1", "--job-id", id)...)
		ended <- end{ev, err}
	}()
	var e *end
	lab.EventuallyIn(r.t, patience, "libvirt runs the backup", func() bool {
		select {
		case got := <-ended:
			e = &got
			return true
		default:
			return r.vm.HasBackupJob(r.t)
		}
	})
	if e == nil {
		_, _, refused := r.host.publisher("cancel", id)
		got := <-ended
		e = &got
		if refused != nil && got.ev.Kind == messages.KindCancelled {
			r.t.Errorf("the job was cancelled, and publisher says that it was not: %v", refused)
		}
	}
	if e.err != nil {
		r.t.Fatal(e.err)
	}
	r.took(k, e.ev, true)
}

// delete deletes a backup. One that others need is only deleted with them.
func (r *run) delete() {
	r.t.Helper()
	if len(r.backups) == 0 {
		return
	}
	b := r.backups[r.rnd.IntN(len(r.backups))]
	gone := r.withChildren(b.id)
	args := []string{"delete", "--backup", b.id}
	if r.rnd.IntN(3) == 0 {
		args = append(args, "--cascade")
	} else if len(gone) > 1 {
		ev, err := r.host.job(args...)
		if err != nil || ev.Kind != messages.KindFailed || ev.Error.Code != messages.CodeBackupNeeded {
			r.t.Fatalf("%v with children %v: %s, %v, %v", args, gone[1:], ev.Kind, ev.Error, err)
		}
		r.did["refused delete"]++
		return
	}
	r.host.mustJob(r.t, args...)
	r.remove(gone...)
	r.did["deleted backup"] += len(gone)
}

func (r *run) prune() {
	r.t.Helper()
	n := 1 + r.rnd.IntN(mostBackups/2)
	if _, _, err := r.host.publisher("prune", "--keep-last", fmt.Sprint(n)); err != nil {
		r.t.Fatal(err)
	}
	gone := r.unkept(n)
	r.remove(gone...)
	r.did["pruned backup"] += len(gone)
}

// open adds what a backup's content needs to be read.
func (r *run) open(b backup, args ...string) []string {
	if b.encrypted {
		args = append(args, "--passphrase-file", r.passphrase)
	}
	return args
}

// restoresOne restores a backup that is chosen at random.
func (r *run) restoresOne() {
	r.t.Helper()
	if len(r.backups) > 0 {
		r.restores(r.backups[r.rnd.IntN(len(r.backups))])
	}
}

// restores fails the test unless a backup restores to the bytes of its moment.
func (r *run) restores(b backup) {
	r.t.Helper()
	to := r.host.path("restored")
	r.host.mustJob(r.t, r.open(b, "restore", "--backup", b.id, "--to", to, "--format", "raw")...)
	for disk, want := range b.disks {
		if err := want.compare(filepath.Join(to, disk+".raw")); err != nil {
			r.t.Errorf("backup %s, which continues %q: %v", b.id, b.parent, err)
		}
	}
	if err := os.RemoveAll(to); err != nil {
		r.t.Error(err)
	}
}

// nothingElse fails the test unless there are the model's backups and nothing else: in the catalog, on the
// NAS, in libvirt and on the host.
func (r *run) nothingElse() {
	r.t.Helper()
	var want []string
	for _, b := range r.backups {
		want = append(want, b.id)
	}
	slices.Sort(want)
	var entries []messages.CatalogEntry
	out, _, err := r.host.publisher("ls", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &entries)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	var cataloged []string
	for _, e := range entries {
		cataloged = append(cataloged, e.ID)
	}
	slices.Sort(cataloged)
	if !slices.Equal(cataloged, want) {
		r.t.Errorf("the catalog has %v, want %v", cataloged, want)
	}
	if got := folder(r.t, filepath.Join(r.nas, vmName)); !slices.Equal(got, want) {
		r.t.Errorf("the NAS has %v, want %v", got, want)
	}
	lab.NoFilesMatching(r.t, r.nas, "*.partial")
	for _, dir := range []string{"run", "scratch"} {
		if left := folder(r.t, r.host.path(dir)); len(left) > 0 {
			r.t.Errorf("left in the %s folder: %v", dir, left)
		}
	}
	r.vm.Running(r.t)
	if r.vm.HasBackupJob(r.t) {
		r.t.Error("libvirt still runs a backup job")
	}
	checkpoints := strings.Fields(r.libvirt.Virsh(r.t, "checkpoint-list", vmName, "--name"))
	if r.tip != "" && !slices.Equal(checkpoints, []string{"nasfleet-" + r.tip}) || r.tip == "" && len(checkpoints) > 0 {
		r.t.Errorf("the checkpoints are %v; the newest backup of the chain is %q", checkpoints, r.tip)
	}
}

// folder lists a folder, which may be missing, in order.
func folder(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
