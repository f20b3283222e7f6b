package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestRefusedCommands sends what no publisher would let pass, as raw messages: each is answered by
// one failed event, is not delivered again, and the worker goes on.
func TestRefusedCommands(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 32)
	command := func(rest string) func(string) string {
		return func(job string) string {
			return fmt.Sprintf(`{"version":1,"type":"TakeBackup","job_id":%q,"issued_at":"2026-01-02T03:04:05Z","images":[%q],
				"repository":{"type":"dir","address":%q}%s}`, job, image, w.nas, rest)
		}
	}
	plain := func(s string) func(string) string { return func(string) string { return s } }
	for name, c := range map[string]struct {
		data func(job string) string
		code messages.Code
		// names is what the message must name.
		names string
	}{
		"empty":                           {plain(``), messages.CodeInvalidMessage, "JSON"},
		"not JSON":                        {plain(`take a backup, please`), messages.CodeInvalidMessage, "JSON"},
		"binary":                          {plain("\x00\xff\xfe"), messages.CodeInvalidMessage, "JSON"},
		"too new":                         {plain(`{"version":2,"type":"TakeBackup"}`), messages.CodeUnsupportedVersion, "version 2"},
		"unknown type":                    {plain(`{"version":1,"type":"FormatHost"}`), messages.CodeInvalidMessage, "FormatHost"},
		"lacks fields":                    {plain(`{"version":1,"type":"TakeBackup"}`), messages.CodeInvalidMessage, "issued_at"},
		"unknown field":                   {command(`,"compress":true`), messages.CodeInvalidMessage, "compress"},
		"misspelt detail":                 {command(`,"details":{"encrpytion":"true"}`), messages.CodeUnknownDetail, "encrpytion"},
		"bad value":                       {command(`,"details":{"compression":"yes"}`), messages.CodeInvalidDetail, "compression"},
		"negative bandwidth":              {command(`,"details":{"bandwidth_limit":"-1"}`), messages.CodeInvalidDetail, "bandwidth_limit"},
		"encryption without a passphrase": {command(`,"details":{"encryption":"true"}`), messages.CodePassphraseMissing, "encryption_passphrase"},
		"a passphrase in the clear": {command(`,"details":{"encryption":"true","encryption_passphrase":"hunter2hunter2"}`),
			messages.CodePassphraseUnsealed, "encryption_passphrase"},
		"a passphrase for another host": {command(`,"details":{"encryption":"true","encryption_passphrase":"sealed1.` +
			`XAB6K3BQ7Z3DJDCVSRL6NWIG2LSKVWE3MPJ4DVHLBJ6YSXRHPWJFTCVI.AAAA"}`), messages.CodePassphraseForeign, "passphrase"},
		"an incremental without a chain": {command(`,"mode":"incremental"`), messages.CodeModeUnavailable, "images"},
		"a vm on a host without libvirt": {func(job string) string {
			return strings.Replace(command("")(job), fmt.Sprintf(`"images":[%q]`, image), `"vm":"web"`, 1)
		}, messages.CodeVMNotFound, "web"},
	} {
		t.Run(name, func(t *testing.T) {
			job := newJobID()
			ev := w.publishRaw(t, job, []byte(c.data(job)))
			if ev.Kind != messages.KindFailed || ev.Error == nil || ev.Error.Code != c.code || !strings.Contains(ev.Error.Message, c.names) {
				t.Errorf("want a failed event of code %s that names %q, got %s", c.code, c.names, asJSON(ev))
			}
			if strings.Contains(asJSON(ev), "hunter2") {
				t.Errorf("the event quotes the passphrase: %s", asJSON(ev))
			}
			if ev.Error != nil && !strings.HasSuffix(ev.Error.Hint, ".") {
				t.Errorf("no hint: %s", asJSON(ev.Error))
			}
		})
	}
	w.nothingLeft(t)
	if entries, _ := os.ReadDir(w.nas); len(entries) > 0 {
		t.Errorf("something was written: %v", entries)
	}
	// The worker goes on, and a command written by hand works like one of publisher's.
	job := newJobID()
	if ev := w.publishRaw(t, job, []byte(command("")(job))); ev.Kind != messages.KindSucceeded {
		t.Errorf("a good command after the bad ones: %s", asJSON(ev))
	}
}

// TestPublisherRefuses checks the usage errors that never reach a host.
func TestPublisherRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := filepath.Join(w.dir, "x.img")
	for name, c := range map[string]struct {
		args []string
		code int
	}{
		"encryption without a passphrase": {w.takeArgs("--image", image, "--encrypt"), 2},
		"unknown detail":                  {w.takeArgs("--image", image, "--detail", "encrpytion=true"), 2},
		"bad value":                       {w.takeArgs("--image", image, "--detail", "compression=yes"), 2},
		"neither vm nor image":            {w.takeArgs(), 2},
		"both":                            {w.takeArgs("--image", image, "--vm", "a"), 2},
		"a host that escapes its subject": {[]string{"take", "--zone", "z1", "--host", "h1.*", "--image", image, "--repo", w.nas}, 2},
		"a vm that escapes its folder":    {w.takeArgs("--vm", "../../etc"), 2},
		"no such backup":                  {[]string{"restore", "--backup", newJobID(), "--to", w.dir, "--wait"}, 4},
		"no NATS":                         {[]string{"--nats", "nats://127.0.0.1:1", "ls"}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs, code := w.try(c.args...)
			if code != c.code || errs == "" {
				t.Errorf("exit code %d, want %d\n%s%s", code, c.code, out, errs)
			}
		})
	}
}

// TestFailures is each way a job can fail on a host: its code, its hint, nothing left, and the VM
// still runs.
func TestFailures(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := twoDisks(t, w)
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: disks})
	vm.Write(t, "vda", 0, 128*lab.MiB, 0x3c) // more than the small target holds
	lost := filepath.Join(w.dir, "lost.qcow2")
	lab.Image(t, lost, "qcow2", 16)
	l.DefineVM(t, lab.VMOptions{Name: "lost", Disks: []lab.Disk{{Path: lost}}, Stopped: true})
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	l.DefineVM(t, lab.VMOptions{Name: "diskless", Stopped: true})
	small := lab.LoopImage(t, 64)
	encrypted := w.take(t, "--vm", "web", "--encrypt", "--passphrase-file", w.passphraseFile(t, passphrase))
	existing := w.mkdir(t, "existing")
	if err := os.WriteFile(filepath.Join(existing, "vda.qcow2"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	restore := []string{"restore", "--backup", encrypted.BackupID, "--passphrase-file", w.passphraseFile(t, passphrase)}
	wrong := []string{"--backup", encrypted.BackupID, "--passphrase-file", w.passphraseFile(t, "wrong horse")}

	for name, c := range map[string]struct {
		code messages.Code
		args []string
	}{
		"missing vm":                     {messages.CodeVMNotFound, w.takeArgs("--vm", "nobody")},
		"missing disk":                   {messages.CodeDiskNotFound, w.takeArgs("--vm", "lost")},
		"missing image":                  {messages.CodeDiskNotFound, w.takeArgs("--image", filepath.Join(w.dir, "nothing.img"))},
		"no disks":                       {messages.CodeNoDisks, w.takeArgs("--vm", "diskless")},
		"no such folder":                 {messages.CodeMountFailed, w.onRepo("dir", filepath.Join(w.dir, "nowhere"), "", "--vm", "web", "--attempts", "1")},
		"not mountable":                  {messages.CodeMountFailed, w.onRepo("ext4", filepath.Join(w.dir, "nothing"), "loop", "--vm", "web", "--attempts", "2")},
		"unknown file system":            {messages.CodeRepositoryUnsupported, w.onRepo("notafs", "/dev/null", "", "--vm", "web", "--attempts", "1")},
		"full target":                    {messages.CodeTargetFull, w.onRepo("ext4", small, "loop", "--vm", "web")},
		"full target, verify":            {messages.CodeTargetFull, w.onRepo("ext4", small, "loop", "--vm", "web", "--verify")},
		"wrong passphrase":               {messages.CodeWrongPassphrase, append([]string{"restore", "--to", filepath.Join(w.dir, "r1")}, wrong...)},
		"verify with a wrong passphrase": {messages.CodeWrongPassphrase, append([]string{"verify"}, wrong...)},
		"restore over a running vm":      {messages.CodeVMRunning, append(restore, "--to-vm", "web")},
		"restore over a file":            {messages.CodeTargetExists, append(restore, "--to", existing)},
		"restore of no such disk":        {messages.CodeDiskNotFound, append(restore, "--to", filepath.Join(w.dir, "r2"), "--disk", "vdz")},
		"define over a vm":               {messages.CodeVMExists, append(restore, "--to", filepath.Join(w.dir, "r3"), "--define")},
	} {
		t.Run(name, func(t *testing.T) {
			w.mustFail(t, c.code, c.args...)
			w.nothingLeft(t)
			vm.Running(t)
			if vm.HasBackupJob(t) {
				t.Error("libvirt still runs a backup job")
			}
		})
	}
	if data, _ := os.ReadFile(filepath.Join(existing, "vda.qcow2")); string(data) != "mine" {
		t.Error("the file that was there was overwritten")
	}
	for _, dir := range []string{"r1", "r2", "r3"} {
		if files, _ := filepath.Glob(filepath.Join(w.dir, dir, "*")); files != nil {
			t.Errorf("a failed restore left %v", files)
		}
	}
}

// onRepo are the flags of a take to another repository.
func (w *world) onRepo(kind, address, options string, args ...string) []string {
	all := []string{"take", "--zone", zone, "--host", host, "--repo-type", kind, "--repo-address", address}
	if options != "" {
		all = append(all, "--repo-options", options)
	}
	return append(all, args...)
}
