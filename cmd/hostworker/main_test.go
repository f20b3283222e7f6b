package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// TestMain makes the test binary serve as hostworker when it is called by that name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hostworker": main})
}

// TestScripts runs the command line as a user does.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "finding": findingCmd,
		},
	})
}

// code N COMMAND… runs a command that must exit with N.
func code(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *osexec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// finding CHECK VERDICT DETAIL looks for a finding in the JSON on standard output.
func findingCmd(ts *testscript.TestScript, _ bool, args []string) {
	var all []finding
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &all))
	for _, f := range all {
		if f.Check == args[0] {
			if !regexp.MustCompile(args[2]).MatchString(f.Detail) || string(f.Verdict) != args[1] {
				ts.Fatalf("%+v", f)
			}
			return
		}
	}
	ts.Fatalf("there is no finding %s", args[0])
}

// program returns a command that runs hostworker, in an environment of PATH and what is given.
func program(t *testing.T, env []string, args ...string) *osexec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := osexec.Command(self, args...)
	cmd.Args[0] = "hostworker"
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	return cmd
}

// asNobody makes a command run without rights. The test binary lies where nobody may go.
func asNobody(t *testing.T, cmd *osexec.Cmd, dir string) {
	t.Helper()
	data, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path, cmd.Dir = filepath.Join(dir, "hostworker"), dir
	if err := os.WriteFile(cmd.Path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

// output runs a command and returns what it wrote and its exit code.
func output(t *testing.T, cmd *osexec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *osexec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestStandardFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hostworker.yaml")
	if err := os.WriteFile(path, []byte("zone: z1\nhost: h1\nlibvirt: none\njobs: 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	// The file is read: its zone and host are taken, its jobs are complained of.
	if code := run(t.Context(), nil, []string{"doctor"}, path, &stdout, &stderr); code != exitUsage || !strings.Contains(stderr.String(), "--jobs 0") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
	if err := os.WriteFile(path, []byte("hosts: h1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stderr.Reset()
	code := run(t.Context(), nil, []string{"doctor", "--zone", "z1", "--host", "h1"}, path, &stdout, &stderr)
	if code != exitUsage || !strings.Contains(stderr.String(), path+": unknown key hosts") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
	if err := os.WriteFile(path, []byte("host: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := run(t.Context(), nil, []string{"run"}, path, &stdout, &stderr); code != exitUsage {
		t.Errorf("exit code %d: %s", code, &stderr)
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout: %s", &stdout)
	}
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		want string
	}{
		{nil, 0, ""},
		{&usageError{err: errors.New("--jobs"), command: " run"}, 2, "hostworker: --jobs\nSee hostworker run --help.\n"},
		{fmt.Errorf("2 of 9 checks %w", errUnhealthy), 1, "hostworker: 2 of 9 checks failed\n"},
		{fmt.Errorf("start: %w", bus.ErrLocked), 1, "hostworker: start: the NATS store folder is in use\nStop the other worker, or give this one a folder of its own.\n"},
		{
			messages.Errorf(messages.CodeHypervisorDown, "no").WithHint("Do this."), 1,
			"hostworker: hypervisor_unreachable: no\nDo this.\n",
		},
		{fmt.Errorf("lock: %w", syscall.EWOULDBLOCK), 1, "hostworker: lock: resource temporarily unavailable\nStop the other worker, or give this one another --host and --state-dir.\n"},
		{fmt.Errorf("serve: %w", syscall.EADDRINUSE), 1, "hostworker: serve: address already in use\nStop what listens there, or give this worker another address (--listen, --metrics).\n"},
		{fmt.Errorf("mkdir: %w", syscall.EACCES), 1, "hostworker: mkdir: permission denied\nRun it as root, or name folders that this user may write (--state-dir, --run-dir, --scratch).\n"},
		{fmt.Errorf("credentials: %w", syscall.ENOENT), 1, "hostworker: credentials: no such file or directory\nCheck the files that are named (--creds, --context).\n"},
		{errors.New("other"), 1, "hostworker: other\nhostworker doctor, with the same settings, checks what this host needs.\n"},
	} {
		var stderr bytes.Buffer
		if code := report(&stderr, tt.err); code != tt.code || stderr.String() != tt.want {
			t.Errorf("%v: exit code %d\n%s", tt.err, code, &stderr)
		}
	}
}

func TestSettings(t *testing.T) {
	base := []string{"doctor", "--zone", "z1", "--host", "h1"}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--zone", ""}, "--zone and --host"},
		{[]string{"--zone", "Z1"}, `zone "Z1" is not [a-z0-9-]+`},
		{[]string{"--host", "a.b"}, `host "a.b" is not`},
		{[]string{"--host", "*"}, `host "*" is not`},
		{[]string{"--host", strings.Repeat("h", 64)}, "of at most 63"},
		{[]string{"--jobs", "0"}, "--jobs 0"},
		{[]string{"--jobs", "1001"}, "--jobs 1001"},
		{[]string{"--jobs", "two"}, "--jobs"},
		{[]string{"--replicas", "0"}, "--replicas 0"},
		{[]string{"--replicas", "6"}, "--replicas 6"},
		{[]string{"--scratch-reserve=-1"}, "--scratch-reserve -1"},
		{[]string{"--scratch-reserve=9223372036854775807"}, "--scratch-reserve"},
		{[]string{"--ack-wait", "100ms"}, "--ack-wait 100ms"},
		{[]string{"--grace", "0s"}, "--grace 0s"},
		{[]string{"--retry-delay=-1s"}, "--retry-delay -1s"},
		{[]string{"--mount-timeout", "soon"}, "--mount-timeout"},
		{[]string{"--listen", "4222"}, "--listen: address 4222"},
		{[]string{"--metrics", "9464"}, "--metrics: address 9464"},
		{[]string{"--run-dir", "/" + strings.Repeat("r", maxRunDir)}, fmt.Sprintf("more than %d bytes", maxRunDir)},
		{[]string{"--state-dir", ""}, "--state-dir have to name folders"},
		{[]string{"--log-level", "loud"}, "--log-level"},
		{[]string{"--config", "/nowhere/c.yaml"}, "open /nowhere/c.yaml: no such file"},
		{[]string{"nonsense"}, "unexpected argument nonsense"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), nil, append(base, tt.args...), "/nowhere/hostworker.yaml", &stdout, &stderr)
		lines := strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
		if code != exitUsage || len(lines) != 2 || !strings.Contains(lines[0], tt.want) || lines[1] != "See hostworker doctor --help." || stdout.Len() > 0 {
			t.Errorf("%q: exit code %d\n%s%s", tt.args, code, &stdout, &stderr)
		}
	}
}
