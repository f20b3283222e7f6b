package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// doctor runs hostworker doctor on a host whose folders lie below dir, and returns its findings
// by name. Its exit code must be that of its findings, and each complaint must come with advice.
func doctor(t *testing.T, dir string, nobody bool, args ...string) map[string]finding {
	t.Helper()
	var env []string
	if strings.HasPrefix(args[0], "PATH=") {
		env, args = args[:1], args[1:]
	}
	cmd := program(t, env, append([]string{
		"doctor", "--json", "--zone", zone, "--host", host, "--libvirt", "none", "--scratch-reserve", "1", "--listen", "127.0.0.1:0",
		"--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"), "--scratch", filepath.Join(dir, "scratch"),
	}, args...)...)
	if nobody {
		asNobody(t, cmd, lab.Dir(t))
	}
	stdout, stderr, code := output(t, cmd)
	var all []finding
	if err := json.Unmarshal([]byte(stdout), &all); err != nil {
		t.Fatalf("exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	byName, failed := map[string]finding{}, 0
	for _, f := range all {
		byName[f.Check] = f
		if f.Verdict == bad {
			failed++
		}
		if f.Detail == "" || (f.Verdict == good) != (f.Advice == "") {
			t.Errorf("%+v", f)
		}
	}
	wantCode, wantErr := 0, ""
	if failed > 0 {
		wantCode, wantErr = 1, fmt.Sprintf("hostworker: %d of %d checks failed\n", failed, len(all))
	}
	if code != wantCode || stderr != wantErr || len(byName) != len(all) {
		t.Errorf("exit code %d, stderr %q, %+v", code, stderr, all)
	}
	return byName
}

// want checks a finding. The words are of its detail or its advice.
func (f finding) want(t *testing.T, v verdict, words ...string) {
	t.Helper()
	if f.Verdict != v {
		t.Errorf("not %s: %+v", v, f)
	}
	for _, w := range words {
		if !strings.Contains(f.Detail+"\n"+f.Advice, w) {
			t.Errorf("no %q in %+v", w, f)
		}
	}
}

func TestDoctorTools(t *testing.T) {
	dir := lab.Dir(t)
	empty := filepath.Join(dir, "bin")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	found := doctor(t, dir, false, "PATH="+empty, "--embedded-nats", filepath.Join(dir, "nats"))
	found["qemu-img"].want(t, bad, "not found", "qemu-utils")
	found["qemu-storage-daemon"].want(t, bad, "not found", "qemu-system-common")
	found["mount"].want(t, warning, "mount is not installed", "Install mount")
	found["repository type fuse.sshfs"].want(t, warning, "sshfs is not installed", "Install sshfs")

	// Tools that are there and will not do.
	for tool, script := range map[string]string{"qemu-img": "echo qemu-img version 6.2.0", "qemu-storage-daemon": "echo broken >&2; exit 3"} {
		if err := os.WriteFile(filepath.Join(empty, tool), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	found = doctor(t, dir, false, "PATH="+empty, "--embedded-nats", filepath.Join(dir, "nats"))
	found["qemu-img"].want(t, bad, "version 6.2.0", "7.2 or newer")
	found["qemu-storage-daemon"].want(t, bad, "exit status 3: broken", "7.2 or newer")
}

func TestToolFinding(t *testing.T) {
	for line, want := range map[string]verdict{
		"qemu-img version 7.2.22 (Debian 1:7.2+dfsg-7)": good,
		"qemu-img version 7.2":                          good,
		"qemu-img version 10.0.0":                       good,
		"qemu-img version 8.0.0-rc1":                    good,
		"qemu-img version 7.1.94":                       bad,
		"qemu-img version 6.2.0":                        bad,
		"qemu-img version 2.12":                         bad,
		"qemu-img version seven":                        warning,
		"qemu-img":                                      warning,
		"":                                              warning,
	} {
		if f := toolFinding("qemu-img", line); f.Verdict != want || (f.Advice == "") != (want == good) || f.Detail == "" {
			t.Errorf("%q: %+v", line, f)
		}
	}
}

func TestDoctorFolders(t *testing.T) {
	dir := lab.Dir(t)
	small := lab.LoopFS(t, 16)
	found := doctor(t, dir, false, "--embedded-nats", filepath.Join(small, "nats"), "--scratch", small, "--scratch-reserve", "512")
	found["scratch"].want(t, bad, small+", ", " MiB free", "512 MiB", "--scratch-reserve")
	found["embedded NATS"].want(t, bad, "will be made", "64 MiB")
	found["run folder"].want(t, good, "will be made")

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	found = doctor(t, dir, false, "--embedded-nats", filepath.Join(dir, "nats"), "--run-dir", file, "--state-dir", filepath.Join(file, "state"))
	found["run folder"].want(t, bad, "not a directory", "another folder")
	found["state folder"].want(t, bad, "not a directory", "another folder")

	lab.Run(t, "mount", "-o", "remount,ro", small)
	found = doctor(t, dir, false, "--embedded-nats", filepath.Join(small, "nats"), "--scratch", small)
	found["scratch"].want(t, bad, "read-only file system")
	found["embedded NATS"].want(t, bad, "read-only file system")

	// It has made nothing, and left nothing.
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestDoctorWithoutRights(t *testing.T) {
	dir := lab.Dir(t)
	found := doctor(t, dir, true, "--embedded-nats", filepath.Join(dir, "nats"))
	found["user"].want(t, warning, "uid 65534", "Run as root")
	found["mount namespace"].want(t, warning, "operation not permitted", "CAP_SYS_ADMIN")
	found["qemu-img"].want(t, good)
	for _, name := range []string{"scratch", "run folder", "state folder", "embedded NATS"} {
		found[name].want(t, bad, "permission denied", "Let the worker write there")
	}
	found = doctor(t, dir, false, "--embedded-nats", filepath.Join(dir, "nats"))
	found["mount namespace"].want(t, good)
}

func TestDoctorLibvirt(t *testing.T) {
	dir := lab.Dir(t)
	nats := []string{"--embedded-nats", filepath.Join(dir, "nats")}
	found := doctor(t, dir, false, append(nats, "--libvirt", "qemu:///system?socket="+filepath.Join(dir, "sock"))...)
	found["libvirt"].want(t, bad, "connect to qemu:///system?socket=", "Start libvirtd")
	if strings.Contains(found["libvirt"].Detail, string(messages.CodeHypervisorDown)) {
		t.Errorf("a code for commands: %+v", found["libvirt"])
	}
	found = doctor(t, dir, false, append(nats, "--libvirt", "nonsense:///")...)
	found["libvirt"].want(t, bad, "nonsense:///")

	l := lab.Libvirtd(t)
	found = doctor(t, dir, false, append(nats, "--libvirt", l.URI)...)
	found["libvirt"].want(t, good, "libvirt ", "QEMU ")
	found["scratch"].want(t, good)

	// QEMU, which runs as a user of its own, has to reach the scratch and run folders.
	closed := filepath.Join(dir, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	args := append(nats, "--scratch", filepath.Join(closed, "scratch"), "--run-dir", closed)
	found = doctor(t, dir, false, append(args, "--libvirt", l.URI)...)
	found["scratch"].want(t, warning, closed+" is closed to other users", "chmod o+x "+closed)
	found["run folder"].want(t, warning, closed+" is closed to other users")
	doctor(t, dir, false, args...)["scratch"].want(t, good) // no matter without libvirt
}

func TestAppArmorFinding(t *testing.T) {
	c := &doctorCmd{settings: settings{RunDir: "/run/nasfleet", Scratch: "/scratch"}}
	const both = "/run/nasfleet/** rwk,\n  /scratch/** rwk,\n"
	for _, tt := range []struct {
		enabled, local string
		want           verdict
		advice         string
	}{
		{"", "", good, ""},
		{"N\n", "", good, ""},
		{"Y\n", both, good, ""},
		{"Y\n", "", warning, "libvirt-qemu and reload AppArmor's profiles: /run/nasfleet/** rwk, /scratch/** rwk,"},
		{"Y\n", "/run/nasfleet/** rwk,", warning, "profiles: /scratch/** rwk,"},
	} {
		f := c.appArmorFinding(tt.enabled, tt.local)
		if f.Verdict != tt.want || !strings.HasSuffix(f.Advice, tt.advice) || (f.Advice == "") != (tt.advice == "") {
			t.Errorf("%q, %q: %+v", tt.enabled, tt.local, f)
		}
	}
}
