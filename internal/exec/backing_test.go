package exec

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// overlay makes a qcow2 whose header names a backing file, which need not exist.
func overlay(t *testing.T, path, backing, format string) {
	t.Helper()
	lab.Run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, path, "1M")
}

// TestBackingByHeaders looks where an image's own header may lead.
func TestBackingByHeaders(t *testing.T) {
	dir := lab.Dir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"own", "own/below", "pool", "allowed", "elsewhere"} {
		check(t, os.Mkdir(at(d), 0o700))
		write(t, at(d+"/base"), make([]byte, 1<<20))
	}
	check(t, os.Symlink("/etc/shadow", at("own/shadow")))
	check(t, os.Symlink(at("own/base"), at("elsewhere/back")))
	check(t, unix.Mkfifo(at("own/pipe"), 0o600))
	overlay(t, at("own/middle"), at("own/base"), "raw")
	overlay(t, at("own/ring"), "ring", "qcow2")
	overlay(t, at("own/second"), "/etc/shadow", "raw")
	// A guest has written a qcow2 header into its raw disk.
	overlay(t, at("own/guest"), "/etc/shadow", "raw")
	const notAllowed, unsupported, missing = messages.CodePathNotAllowed, messages.CodeDiskUnsupported, messages.CodeDiskNotFound
	for name, c := range map[string]struct {
		backing, format string
		want            []storaged.Image
		code            messages.Code
	}{
		"beside":               {"base", "raw", []storaged.Image{{Path: at("own/base"), Format: "raw"}}, ""},
		"a chain":              {at("own/middle"), "qcow2", []storaged.Image{{Path: at("own/middle"), Format: "qcow2"}, {Path: at("own/base"), Format: "raw"}}, ""},
		"in a pool":            {"../pool/base", "raw", []storaged.Image{{Path: at("pool/base"), Format: "raw"}}, ""},
		"allowed":              {at("allowed/base"), "raw", []storaged.Image{{Path: at("allowed/base"), Format: "raw"}}, ""},
		"a link back":          {at("elsewhere/back"), "raw", []storaged.Image{{Path: at("elsewhere/back"), Format: "raw"}}, ""},
		"raw stays raw":        {"guest", "raw", []storaged.Image{{Path: at("own/guest"), Format: "raw"}}, ""},
		"the host's passwords": {"/etc/shadow", "raw", nil, notAllowed},
		"up":                   {"../../../../../../etc/shadow", "raw", nil, notAllowed},
		"by a link":            {"shadow", "raw", nil, notAllowed},
		"below":                {"below/base", "raw", nil, notAllowed},
		"elsewhere":            {at("elsewhere/base"), "raw", nil, notAllowed},
		"second of a chain":    {"second", "qcow2", nil, notAllowed},
		"a disk of the host":   {lab.LoopDevice(t, 1), "raw", nil, notAllowed},
		"a ring":               {"ring", "qcow2", nil, unsupported},
		"itself":               {"top", "qcow2", nil, unsupported},
		"a pipe":               {"pipe", "raw", nil, unsupported},
		"a folder":             {at("own"), "raw", nil, unsupported},
		"a terminal":           {"/dev/null", "raw", nil, unsupported},
		"nbd":                  {"nbd://127.0.0.1:1/x", "raw", nil, unsupported},
		"json":                 {`json:{"driver":"file","filename":"/etc/shadow"}`, "raw", nil, unsupported},
		"a format unknown":     {"base", "vmdk", nil, unsupported},
		"not there":            {"none", "raw", nil, missing},
	} {
		t.Run(name, func(t *testing.T) {
			top := at("own/top")
			overlay(t, top, c.backing, c.format)
			e := &Executor{cfg: Config{AllowPaths: []string{at("allowed"), at("none")}}}
			got, err := e.follow(t.Context(), storaged.Image{Path: top, Format: "qcow2"}, nil, func() ([]string, error) { return []string{at("pool")}, nil })
			wantCode(t, err, c.code)
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v", got)
			}
			// The same as an image that a command names: libvirt's pools do not count.
			_, err = newImageSource(t.Context(), e, []messages.Image{{Path: top, Format: "qcow2"}})
			if name == "in a pool" {
				c.code = notAllowed
			}
			wantCode(t, err, c.code)
		})
	}
	e := &Executor{}
	down := messages.Errorf(messages.CodeHypervisorDown, "down")
	overlay(t, at("own/top"), at("pool/base"), "raw")
	_, err := e.follow(t.Context(), storaged.Image{Path: at("own/top"), Format: "qcow2"}, nil, func() ([]string, error) { return nil, down })
	if !errors.Is(err, down) {
		t.Errorf("pools that cannot be listed: %v", err)
	}
}

// TestBackingByDefinition: what the definition says is libvirt's word, wherever it lies, and what a header says
// beside it is not looked at.
func TestBackingByDefinition(t *testing.T) {
	dir := lab.Dir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	check(t, os.Mkdir(at("far"), 0o700))
	write(t, at("far/base"), make([]byte, 1<<20))
	overlay(t, at("top"), "/etc/shadow", "raw")
	overlay(t, at("far/middle"), "base", "raw")
	e := &Executor{}
	far := func(name, format string) hypervisor.Image {
		return hypervisor.Image{Kind: hypervisor.KindFile, Path: at("far/" + name), Format: format}
	}
	for name, c := range map[string]struct {
		disk hypervisor.Disk
		want []storaged.Image
	}{
		"all of it":          {hypervisor.Disk{Backing: []hypervisor.Image{far("base", "raw")}, BackingEnds: true}, []storaged.Image{{Path: at("far/base"), Format: "raw"}}},
		"a raw end":          {hypervisor.Disk{Backing: []hypervisor.Image{far("base", "raw")}}, []storaged.Image{{Path: at("far/base"), Format: "raw"}}},
		"the first":          {hypervisor.Disk{Backing: []hypervisor.Image{far("middle", "qcow2")}}, []storaged.Image{{Path: at("far/middle"), Format: "qcow2"}, {Path: at("far/base"), Format: "raw"}}},
		"that there is none": {hypervisor.Disk{BackingEnds: true}, nil},
	} {
		c.disk.Path, c.disk.Format = at("top"), "qcow2"
		got, err := e.backing(t.Context(), c.disk)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
