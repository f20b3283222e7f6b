package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/fleet/fleettest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"publisher": main})
}

// TestScripts runs the command line as a user does, each script against a server and hosts of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata",
		Setup: setUp,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "json": jsonField, "jsonlines": jsonLines, "targets": targets, "stored": stored, "nats": publishRaw, "story": story,
		},
	})
}

type fleetKey struct{}

func setUp(env *testscript.Env) error {
	f, err := startFleet()
	if err != nil {
		return err
	}
	env.Defer(func() {
		if err := f.Stop(); err != nil {
			env.T().Log(err)
			env.T().Fatal("the fleet failed")
		}
	})
	env.Values[fleetKey{}] = f
	env.Setenv("NASFLEET_NATS", f.URL)
	env.Setenv("NASFLEET_KEYS", filepath.Join(env.WorkDir, "keys"))
	env.Setenv("PASSPHRASE", fleettest.Passphrase)
	info, err := f.Bus.Host(context.Background(), "z1", "h1")
	env.Setenv("SEALKEY", info.SealKey)
	return err
}

func startFleet() (*fleettest.Fleet, error) {
	f, err := fleettest.Start()
	if err != nil {
		return nil, err
	}
	return f, errors.Join(f.Host("z1", "h1"), f.Host("z1", "h2"), f.Host("z2", "h1"))
}

// code N COMMAND… runs a command that must exit with N.
func code(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// json PATH [VALUE] looks for a value in the JSON on standard output. A path is made of keys and
// indexes, with dots; "len" is the length of an array.
func jsonField(ts *testscript.TestScript, neg bool, args []string) {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	got, err := lookUp(v, args[0])
	ts.Check(err)
	if len(args) > 1 && (got == args[1]) == neg {
		ts.Fatalf("%s is %s", args[0], got)
	}
}

func lookUp(v any, path string) (string, error) {
	for _, key := range strings.Split(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			value, ok := at[key]
			if !ok {
				return "", fmt.Errorf("%s: there is no %s", path, key)
			}
			v = value
		case []any:
			if key == "len" {
				v = len(at)
				continue
			}
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(at) {
				return "", fmt.Errorf("%s: there is no element %s", path, key)
			}
			v = at[i]
		default:
			return "", fmt.Errorf("%s: %v has no fields", path, v)
		}
	}
	return fmt.Sprint(v), nil
}

// jsonlines N TEXT counts the lines of standard output that are JSON and hold a text.
func jsonLines(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if !json.Valid([]byte(line)) {
			ts.Fatalf("not JSON: %s", line)
		}
		if strings.Contains(line, args[1]) {
			got++
		}
	}
	if got != want {
		ts.Fatalf("%d lines hold %q", got, args[1])
	}
}

// targets FILE N writes a targets file for N VMs, spread over three hosts. Every hundredth is bad.
func targets(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	hosts := [][2]string{{"z1", "h1"}, {"z1", "h2"}, {"z2", "h1"}}
	var b bytes.Buffer
	for i := range n {
		vm := fmt.Sprintf("vm%d", i)
		if i%100 == 99 {
			vm = fmt.Sprintf("bad%d", i)
		}
		fmt.Fprintf(&b, "- {zone: %s, host: %s, vm: %s}\n", hosts[i%3][0], hosts[i%3][1], vm)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o600))
}

// stored TEXT looks for a text in every file of the server's store.
func stored(ts *testscript.TestScript, neg bool, args []string) {
	f := ts.Value(fleetKey{}).(*fleettest.Fleet)
	found := false
	ts.Check(filepath.WalkDir(f.Dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the server replaces files
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		found = found || bytes.Contains(data, []byte(args[0]))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}))
	if found == neg {
		ts.Fatalf("found is %v", found)
	}
}

// nats SUBJECT TEXT puts a text into the stream of the subject, as any client can.
func publishRaw(ts *testscript.TestScript, _ bool, args []string) {
	nc, err := nats.Connect(ts.Value(fleetKey{}).(*fleettest.Fleet).URL)
	ts.Check(err)
	defer nc.Close()
	_, err = nc.Request(args[0], []byte(args[1]), 10*time.Second)
	ts.Check(err)
}

// story JOB KIND waits until the job has an event of that kind.
func story(ts *testscript.TestScript, _ bool, args []string) {
	f := ts.Value(fleetKey{}).(*fleettest.Fleet)
	found := errors.New("found")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := f.Bus.Follow(ctx, bus.Filter{Job: args[0], History: true}, func(u bus.Update) error {
		if u.Event != nil && string(u.Event.Kind) == args[1] {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		ts.Fatalf("no event %s of job %s: %v", args[1], args[0], err)
	}
}

// TestInterruptedWait breaks a wait off in the middle of a job: the job goes on, and watch picks it up.
func TestInterruptedWait(t *testing.T) {
	defer goleak.VerifyNone(t)
	f, err := startFleet()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Stop(); err != nil {
			t.Error(err)
		}
	}()
	const id = "01JD0000000000000000000000"
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	stderr := &trigger{texts: []string{"copying | vda"}, fire: interrupt}
	var stdout bytes.Buffer
	got := run(ctx, []string{
		"take", "--nats", f.URL, "--zone", "z1", "--host", "h1", "--vm", "hang1", "--repo", "/nas", "--job-id", id, "--wait", "--json",
	}, strings.NewReader(""), &stdout, stderr)
	if got != 130 {
		t.Errorf("exit code %d", got)
	}
	if s := stderr.String(); !strings.Contains(s, "the job goes on") || !strings.Contains(s, "publisher watch --job "+id) {
		t.Errorf("stderr:\n%s", s)
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout:\n%s", &stdout)
	}

	ctx, interrupt = context.WithCancel(t.Context())
	defer interrupt()
	watched := &trigger{texts: []string{`{"progress":{`, `{"event":{"version":1,"kind":"accepted","job_id":"` + id}, fire: interrupt}
	got = run(ctx, []string{"watch", "--nats", f.URL, "--job", id, "--json"}, strings.NewReader(""), watched, stderr)
	if got != 130 {
		t.Errorf("exit code %d:\n%s", got, watched)
	}

	// Without a job there is no end to wait for: an interrupt is how it is meant to end.
	ctx, interrupt = context.WithCancel(t.Context())
	defer interrupt()
	watched = &trigger{texts: []string{"z1/h1 " + id + " hang1 copying | vda"}, fire: interrupt}
	if got := run(ctx, []string{"watch", "--nats", f.URL, "--zone", "z1"}, strings.NewReader(""), watched, stderr); got != 0 {
		t.Errorf("exit code %d:\n%s", got, watched)
	}
}

// TestInterruptedFleet does the same with two jobs of which one is over.
func TestInterruptedFleet(t *testing.T) {
	defer goleak.VerifyNone(t)
	f, err := startFleet()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Stop(); err != nil {
			t.Error(err)
		}
	}()
	file := filepath.Join(t.TempDir(), "targets.json")
	list := `[{"zone": "z1", "host": "h1", "vm": "hang1"}, {"zone": "z1", "host": "h2", "vm": "bad1"}]`
	if err := os.WriteFile(file, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	stderr := &trigger{texts: []string{"z1/h2 bad1: failed"}, fire: interrupt}
	var stdout bytes.Buffer
	got := run(ctx, []string{"take", "--nats", f.URL, "--targets", file, "--repo", "/nas", "--wait"}, strings.NewReader(""), &stdout, stderr)
	if s := stderr.String(); got != 130 || !strings.Contains(s, "0 succeeded, 1 failed") {
		t.Errorf("exit code %d:\n%s", got, s)
	}
}

// trigger is a writer that calls fire when it has seen all texts, in any order.
type trigger struct {
	texts []string
	fire  func()

	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *trigger) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.buf.Write(p)
	for _, text := range w.texts {
		if !strings.Contains(w.buf.String(), text) {
			return n, err
		}
	}
	w.fire()
	return n, err
}

func (w *trigger) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
