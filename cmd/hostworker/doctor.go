package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/proc"
	"github.com/nasfleet/nasfleet/messages"
)

// doctorTimeout bounds each check.
const doctorTimeout = 10 * time.Second

type doctorCmd struct {
	settings `embed:""`
	JSON     bool `name:"json" help:"Print the findings as a JSON array."`
}

// verdict of a check.
type verdict string

const (
	good    verdict = "ok"
	warning verdict = "warn"
	bad     verdict = "FAIL"
)

// finding is what one check found, and what to do about it.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Detail  string  `json:"detail"`
	Advice  string  `json:"advice,omitempty"`
}

// Run checks everything, whatever fails, and prints it.
func (c *doctorCmd) Run(ctx context.Context, stdout io.Writer) error {
	var all []finding
	for _, check := range []func(context.Context) []finding{
		c.checkUser, c.checkTools, c.checkHelpers, c.checkFolders, c.checkLibvirt, c.checkNATS,
	} {
		bounded, cancel := context.WithTimeout(ctx, doctorTimeout)
		all = append(all, check(bounded)...)
		cancel()
	}
	if err := c.print(stdout, all); err != nil {
		return err
	}
	for _, f := range all {
		if f.Verdict == bad {
			return errUnhealthy
		}
	}
	return nil
}

func (c *doctorCmd) print(stdout io.Writer, all []finding) error {
	if c.JSON {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(all)
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for _, f := range all {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", f.Verdict, f.Check, f.Detail)
		if f.Advice != "" && f.Verdict != good {
			_, _ = fmt.Fprintf(w, "\t\t-> %s\n", f.Advice)
		}
	}
	return w.Flush()
}

func (c *doctorCmd) checkUser(context.Context) []finding {
	f := finding{Check: "user", Verdict: good, Detail: "root"}
	if os.Geteuid() != 0 {
		f = finding{"user", warning, fmt.Sprintf("uid %d", os.Geteuid()),
			"Run as root: mounting a NAS, and reading the disks of VMs, need it. Repositories of type dir and images work without."}
	}
	return []finding{f}
}

func (c *doctorCmd) checkTools(ctx context.Context) []finding {
	var all []finding
	for _, tool := range []string{"qemu-img", "qemu-storage-daemon"} {
		out, err := proc.Run(ctx, proc.Spec{Path: tool, Args: []string{"--version"}})
		if err != nil {
			all = append(all, finding{tool, bad, err.Error(), "Install QEMU's tools (Debian: qemu-utils qemu-system-common), version 7.2 or newer."})
			continue
		}
		line, _, _ := strings.Cut(string(out), "\n")
		all = append(all, toolFinding(tool, line))
	}
	return all
}

// toolFinding judges a version such as "qemu-img version 7.2.22 (Debian …)".
func toolFinding(tool, line string) finding {
	const minMajor, minMinor = 7, 2
	_, text, _ := strings.Cut(line, "version ")
	var major, minor int
	if _, err := fmt.Sscanf(text, "%d.%d", &major, &minor); err != nil {
		return finding{tool, warning, line, "Its version cannot be told; 7.2 or newer is needed."}
	}
	if major < minMajor || major == minMajor && minor < minMinor {
		return finding{tool, bad, line, "Install QEMU 7.2 or newer."}
	}
	return finding{Check: tool, Verdict: good, Detail: line}
}

// checkHelpers says which repository types can be mounted. A missing one is only a warning: which
// are needed is the commands' to say.
func (c *doctorCmd) checkHelpers(context.Context) []finding {
	var all []finding
	for _, h := range []struct{ kind, program, pkg string }{
		{"mount", "mount", "mount"}, {"nfs", "mount.nfs", "nfs-common"}, {"cifs", "mount.cifs", "cifs-utils"}, {"fuse.sshfs", "sshfs", "sshfs"},
	} {
		f := finding{Check: "repository type " + h.kind, Verdict: good}
		path, err := lookHelper(h.program)
		f.Detail = path
		if err != nil {
			f = finding{f.Check, warning, h.program + " is not installed", "Install " + h.pkg + " if commands name repositories of this type."}
		}
		all = append(all, f)
	}
	return all
}

// lookHelper also looks where a user's PATH does not reach.
func lookHelper(program string) (string, error) {
	if path, err := osexec.LookPath(program); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/sbin", "/usr/sbin"} {
		if path, err := osexec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", osexec.ErrNotFound
}

func (c *doctorCmd) checkFolders(context.Context) []finding {
	var all []finding
	for _, d := range []struct {
		name, dir string
		need      int64
	}{{"scratch", c.Scratch, c.ScratchReserve << 20}, {"state folder", c.StateDir, 1 << 20}, {"run folder", c.RunDir, 1 << 20}} {
		all = append(all, checkFolder(d.name, d.dir, d.need))
	}
	return all
}

// checkFolder makes the folder as run would, writes into it and looks at the room.
func checkFolder(name, dir string, need int64) finding {
	err := os.MkdirAll(dir, 0o711)
	if err == nil {
		var f *os.File
		if f, err = os.CreateTemp(dir, ".doctor-*"); err == nil {
			err = errors.Join(f.Close(), os.Remove(f.Name()))
		}
	}
	if err != nil {
		return finding{name, bad, err.Error(), "Let the worker write there, or name another folder."}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return finding{name, bad, err.Error(), "Check the file system."}
	}
	free := int64(st.Bavail) * st.Bsize
	detail := fmt.Sprintf("%s, %s free", dir, humanize.IBytes(uint64(free)))
	if free < need {
		return finding{name, bad, detail, fmt.Sprintf("%s have to stay free there (--scratch-reserve); add room or name another folder.", humanize.IBytes(uint64(need)))}
	}
	return finding{Check: name, Verdict: good, Detail: detail}
}

func (c *doctorCmd) checkLibvirt(ctx context.Context) []finding {
	if c.Libvirt == noLibvirt {
		return []finding{{"libvirt", good, "not used (--libvirt none): images alone", ""}}
	}
	hv, err := hypervisor.Connect(ctx, c.Libvirt, zerolog.Nop())
	if err != nil {
		return []finding{{"libvirt", bad, err.Error(), "Start libvirtd (or virtqemud), check --libvirt and the socket's permissions; --libvirt none for a host without VMs."}}
	}
	defer func() { _ = hv.Close() }()
	v, err := hv.Version(ctx)
	if err != nil {
		return []finding{{"libvirt", bad, err.Error(), "Check that libvirt answers: virsh -c " + c.Libvirt + " version."}}
	}
	detail := fmt.Sprintf("libvirt %s, %s %s", v.Libvirt, v.Type, v.Hypervisor)
	if !v.CanBackup {
		return []finding{{"libvirt", bad, detail, "Running VMs need libvirt 7.2 and QEMU 4.2 or newer (backup-begin)."}}
	}
	return []finding{{"libvirt", good, detail, ""}}
}

func (c *doctorCmd) checkNATS(ctx context.Context) []finding {
	if c.EmbeddedNATS != "" {
		return []finding{checkFolder("embedded NATS", c.EmbeddedNATS, 64<<20)}
	}
	b, err := bus.Connect(ctx, bus.Config{URL: c.NATS, Context: c.Context, Creds: c.Creds, Name: "doctor", InboxPrefix: bus.HostInbox(c.Zone, c.Host)})
	if err != nil {
		return []finding{{"NATS", bad, err.Error(), bus.Hint(err)}}
	}
	defer b.Close()
	all := []finding{{"NATS", good, "connected to " + b.ServerURL(), ""}}
	f := finding{Check: "zone " + c.Zone, Verdict: good, Detail: "stream " + messages.JobStream(c.Zone) + " and the buckets are there"}
	if err := b.CheckZone(ctx, c.Zone); errors.Is(err, bus.ErrNoStream) {
		f = finding{f.Check, warning, err.Error(), "hostworker run makes what is missing if its user may; else let the management side do it (publisher take)."}
	} else if err != nil {
		f = finding{f.Check, bad, err.Error(), bus.Hint(err)}
	}
	return append(all, f)
}
