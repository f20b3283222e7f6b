package messages_test

import (
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	m "github.com/nasfleet/nasfleet/messages"
)

func TestCheckLabel(t *testing.T) {
	good := []string{"a", "z1", "eu-west-1", "-", "0", strings.Repeat("a", 63)}
	bad := []string{
		"", "..", ".", "/", "a/b", "a.b", "a b", " a", "a\n", "\na", "a\x00", "*", ">", "a*", "A", "Zone", "a_b",
		"zürich", "１", "a\u200b", "\xff", "$SYS", "a\tb", "a\r\nb", strings.Repeat("a", 64), strings.Repeat("a", 300),
	}
	check(t, good, bad, func(s string) error { return m.CheckLabel("zone", s) }, "zone")
}

func TestCheckVM(t *testing.T) {
	good := []string{
		"web-1", "a", "a.b", "a..b", "a b", "Größe", "日本", "*", ">", "x*y", "$(x)", "a\\b", "%s", "a'b", strings.Repeat("a", 200),
	}
	bad := []string{
		"", ".", "..", ".hidden", "-rf", "--", "/", "a/b", "../x", "a\n", "a\r", "a\x00b", "\x7f", "\u0085", "a\tb",
		"\xff", "a\xc3", "a\ufffd", strings.Repeat("a", 201), strings.Repeat("a", 300), strings.Repeat("é", 101),
	}
	check(t, good, bad, m.CheckVM, "vm")
}

func TestCheckID(t *testing.T) {
	good := []string{jobID, "00000000000000000000000000", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"}
	bad := []string{
		"", strings.ToLower(jobID), jobID + "0", jobID[1:], "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", jobID[:25] + "I", jobID[:25] + "*",
		jobID[:25] + ".", jobID[:25] + "\n", strings.Repeat("../", 8) + "..", jobID[:24] + "é", strings.Repeat("0", 300),
	}
	check(t, good, bad, func(s string) error { return m.CheckID("job_id", s) }, "job_id")
}

func check(t *testing.T, good, bad []string, f func(string) error, says string) {
	t.Helper()
	for _, s := range good {
		if err := f(s); err != nil {
			t.Errorf("%q is refused: %v", s, err)
		}
	}
	for _, s := range bad {
		err := f(s)
		if m.CodeOf(err) != m.CodeInvalidMessage || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", s, err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x00\n\r\x7f") {
			t.Errorf("%q: the error is not one line of text: %q", s, err)
		}
	}
}

func TestSubjects(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{m.JobStream("z1"), "BACKUP_JOBS_z1"},
		{m.JobSubject("z1", "h-1", jobID), "backup.jobs.z1.h-1." + jobID},
		{m.JobSubject("z1", "h-1", "*"), "backup.jobs.z1.h-1.*"},
		{m.JobSubject("z1", "*", "*"), "backup.jobs.z1.*.*"},
		{m.EventSubject("z1", "h-1", jobID, m.KindFailed), "backup.events.z1.h-1." + jobID + ".failed"},
		{m.EventSubject("*", "*", "*", "*"), "backup.events.*.*.*.*"},
		{m.ProgressSubject("z1", "h-1", jobID), "backup.progress.z1.h-1." + jobID},
		{m.ControlSubject("z1", "h-1"), "backup.control.z1.h-1"},
		{m.HostKey("z1", "h-1"), "z1.h-1"},
		{m.CatalogKey("z1", "h-1", backupID), "z1.h-1." + backupID},
	} {
		if tt.got != tt.want {
			t.Errorf("got %s, want %s", tt.got, tt.want)
		}
	}
}

func TestParseJobSubject(t *testing.T) {
	for _, id := range []string{jobID, "by-hand", "a*b", "é"} { // each is one literal token
		zone, host, job, ok := m.ParseJobSubject(m.JobSubject("z1", "h-1", id))
		if !ok || zone != "z1" || host != "h-1" || job != id {
			t.Errorf("got %q, %q, %q, %v", zone, host, job, ok)
		}
	}
	for _, bad := range []string{
		"", "backup", "backup.jobs.z1.h1", m.JobSubject("z1", "h1", jobID) + ".x", m.EventSubject("z1", "h1", jobID, m.KindFailed),
		"backup.events.z1.h1." + jobID, "other.jobs.z1.h1." + jobID, "backup.jobs.z1.h1.", "backup.jobs...", "backup.jobs..h1." + jobID,
		m.JobSubject("z1", "*", jobID), m.JobSubject("*", "h1", jobID), m.JobSubject("z1", "h1", "*"), "backup.jobs.z1.h1.>",
		m.JobSubject("Z1", "h1", jobID), m.JobSubject("z1", "h 1", jobID), m.JobSubject("z1", strings.Repeat("h", 64), jobID),
	} {
		if zone, host, job, ok := m.ParseJobSubject(bad); ok || zone+host+job != "" {
			t.Errorf("%q is taken: %q, %q, %q, %v", bad, zone, host, job, ok)
		}
	}
}

// FuzzNames: whatever a command names is one folder below another, and never an option, another line or the end of a
// C string. A name that is taken means itself alone.
func FuzzNames(f *testing.F) {
	for _, name := range []string{
		"web", "..", "../x", "a/../../x", "-rf", "--help", "a,b=c,driver=null-co", "a\nb", "a\x00b", "json:{}", "nbd:x:1", "\u202eweb", "we\u200bb",
		"．．", "‥", "a\u2028b", "\ufeffa", "é", "e\u0301", "/etc/shadow", "//x", "/a/./b", "/a/", "~root", "$(id)", "`id`", "%n", "'", `"`, `\`,
		jobID, strings.Repeat("a", 201), strings.Repeat("a/", 3000), "\xff", ".", "", " ", ".partial", jobID + ".partial", "CON", "a:b",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		const root = "/repository"
		below := func(p string, elements int) {
			t.Helper()
			full := path.Join(root, p)
			if !strings.HasPrefix(full, root+"/") || strings.Count(full, "/") != elements+1 || full != root+"/"+p {
				t.Errorf("%q is taken and leads to %q", p, full)
			}
		}
		text := func(s string) {
			t.Helper()
			if strings.ContainsAny(s, "\x00\n\r\x1b\x7f") || !utf8.ValidString(s) {
				t.Errorf("%q is taken", s)
			}
		}
		take := validTake()
		take.VM = name
		if take.Validate() == nil {
			below(name, 1)
			text(name)
			if name[0] == '-' || name[0] == '.' || len(name)+len(".partial") > 255 {
				t.Errorf("vm %q is taken", name)
			}
		}
		take = validTake()
		if take.BackupPath = name; take.Validate() == nil && name != "" {
			below(name, strings.Count(name, "/")+1)
			text(name)
		}
		for _, set := range []func(*m.RestoreBackup, *m.TakeBackup){
			func(r *m.RestoreBackup, _ *m.TakeBackup) { r.ToDir, r.ToVM = name, "" },
			func(_ *m.RestoreBackup, c *m.TakeBackup) { c.VM, c.Images = "", []m.Image{{Path: name}} },
			func(_ *m.RestoreBackup, c *m.TakeBackup) { c.Repository = m.Repository{Type: "dir", Address: name} },
		} {
			r := &m.RestoreBackup{Header: header(m.TypeRestore), Backup: backupRef(), ToDir: "/r"}
			c := validTake()
			set(r, c)
			if r.Validate() == nil && c.Validate() == nil {
				text(name)
				if !path.IsAbs(name) || path.Clean(name) != name {
					t.Errorf("%q is taken for an absolute path", name)
				}
				if target := c.Target(); m.CheckVM(target) != nil {
					t.Errorf("the images of %q lie in %q", name, target)
				}
			}
		}
		r := &m.RestoreBackup{Header: header(m.TypeRestore), Backup: backupRef(), ToDir: "/r", Disks: []string{name}}
		if r.Validate() == nil && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("disk %q is taken", name)
		}
		if m.CheckID("job_id", name) == nil && (len(name) != 26 || strings.Trim(name, "0123456789ABCDEFGHJKMNPQRSTVWXYZ") != "") {
			t.Errorf("id %q is taken", name)
		}
	})
}
