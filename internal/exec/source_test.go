package exec

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
)

func TestSniff(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{
		"QFI\xfb\x00\x00\x00\x03": "qcow2", "QFI\xfb": "qcow2", "QFI": "raw", "": "raw", "anything else": "raw",
	} {
		if got, err := sniff(write(t, filepath.Join(dir, "f"), []byte(content))); got != want || err != nil {
			t.Errorf("%q: %s, %v", content, got, err)
		}
	}
	link, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	check(t, os.Symlink(filepath.Join(dir, "f"), link))
	if got, err := sniff(link); got == "" || err != nil {
		t.Errorf("a link: %v", err)
	}
	check(t, unix.Mkfifo(pipe, 0o600))
	for path, code := range map[string]messages.Code{
		filepath.Join(dir, "none"): messages.CodeDiskNotFound,
		dir:                        messages.CodeDiskUnsupported,
		pipe:                       messages.CodeDiskUnsupported,
		"/dev/null":                messages.CodeDiskUnsupported,
	} {
		_, err := sniff(path)
		wantCode(t, err, code)
	}
}

func TestConsistency(t *testing.T) {
	for _, c := range []struct {
		from     repository.SourceKind
		quiesced bool
		begins   string
	}{
		{repository.SourceRunning, true, "file systems frozen"},
		{repository.SourceRunning, false, "crash-consistent"},
		{repository.SourceStopped, false, "consistent"},
		{repository.SourceImages, false, "consistent"},
	} {
		if got := consistency(c.from, c.quiesced); !strings.HasPrefix(got, c.begins) {
			t.Errorf("%s, quiesced %t: %s", c.from, c.quiesced, got)
		}
	}
}

func TestADiskThatIsWrittenIsNoticed(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "disk"), make([]byte, 512))
	s := &offlineSource{disks: []sourceDisk{{name: "disk0", path: path}}}
	var err error
	s.before, err = s.fingerprints()
	check(t, err)
	check(t, s.check(t.Context()))
	check(t, os.Chtimes(path, time.Time{}, time.Now().Add(time.Second)))
	wantCode(t, s.check(t.Context()), messages.CodeVMStateChanged)
	check(t, os.Remove(path))
	wantCode(t, s.check(t.Context()), messages.CodeDiskNotFound)
}

func TestADiskWithoutASizeIsRefused(t *testing.T) {
	e := newExecutor(t)
	ws, err := e.open(testJob)
	check(t, err)
	s := newRunningSource(e, hypervisor.Domain{Disks: []hypervisor.Disk{{Target: "vda"}}}, messages.QuiesceOff)
	_, err = s.prepare(context.Background(), ws)
	wantCode(t, err, messages.CodeSourceReadFailed)
	check(t, ws.close())
	if left := names(t, e.cfg.ScratchDir); left != nil {
		t.Errorf("left: %v", left)
	}
}

// Whatever ends libvirt's job waits for the handshakes of the disks' connections.
func TestTheEndOfARunningSourceWaitsForHandshakes(t *testing.T) {
	e := newExecutor(t)
	var err error
	e.cfg.Hypervisor, err = hypervisor.Connect(t.Context(), "test:///default", zerolog.Nop())
	check(t, err)
	ws, err := e.open(testJob)
	check(t, err)
	s := newRunningSource(e, hypervisor.Domain{Name: "test", Disks: []hypervisor.Disk{{Target: "vda", SizeBytes: 512}}}, messages.QuiesceOff)
	disks, err := s.prepare(t.Context(), ws)
	check(t, err)
	guest := disks[0].from().guest
	if guest == nil || !guest.enter() {
		t.Fatal("the connections of a running VM's disk are not watched")
	}
	ended := make(chan struct{})
	go func() {
		_ = s.endJob(t.Context()) // libvirt's test driver knows no backups
		close(ended)
	}()
	select {
	case <-ended:
		t.Error("libvirt's job is ended while a connection is negotiated")
	case <-time.After(50 * time.Millisecond):
	}
	guest.under.Done()
	<-ended
	check(t, ws.close())
	check(t, e.cfg.Hypervisor.Close())
}
