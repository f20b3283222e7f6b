package proc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// started starts a script of sh that says "ready" on its standard output once it is. The pipe it
// returns ends when the script and all it started are gone.
func started(t *testing.T, script string, grace time.Duration) (*Process, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	p, err := Start(Spec{Path: "sh", Args: []string{"-c", script}, Stdout: w, Grace: grace})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return p, r
}

func TestStop(t *testing.T) {
	for name, script := range map[string]string{
		"at TERM":                    `echo ready; exec sleep 60`,
		"at KILL":                    `trap "" TERM; echo ready; while :; do sleep 0.01; done`,
		"with what it started":       `sleep 60 & echo ready; wait`,
		"that has ended by itself":   `echo ready`,
		"that ends with a complaint": `echo ready; echo oops >&2; exit 3`,
	} {
		t.Run(name, func(t *testing.T) {
			p, out := started(t, script, 300*time.Millisecond)
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
			<-p.Done()
			if err := errors.Join(out.SetReadDeadline(time.Now().Add(10*time.Second)), drain(out)); err != nil {
				t.Errorf("something of it still lives: %v", err)
			}
			if err := p.Stop(); err != nil {
				t.Errorf("a second Stop: %v", err)
			}
		})
	}
}

func drain(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

func TestKillDoesNotWaitForTerm(t *testing.T) {
	p, _ := started(t, `trap "echo was asked >&2" TERM; echo ready; while :; do sleep 0.01; done`, time.Minute)
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if words := p.Stderr(); words != "" {
		t.Errorf("it said %q", words)
	}
}

func TestErrKeepsTheLastWords(t *testing.T) {
	_, err := Run(context.Background(), Spec{Path: "sh", Args: []string{"-c", `echo "no such thing" >&2; exit 7`}})
	if ExitCode(err) != 7 || !strings.Contains(err.Error(), "no such thing") || !strings.HasPrefix(err.Error(), "sh: ") {
		t.Errorf("exit code %d, %v", ExitCode(err), err)
	}
	if ExitCode(io.EOF) != -1 {
		t.Error("an exit code out of nothing")
	}
}

func TestStderrIsBounded(t *testing.T) {
	p, err := Start(Spec{Path: "sh", Args: []string{"-c", `yes | head -c 1000000 >&2; echo the end >&2`}})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if words := p.Stderr(); len(words) > maxStderr || !strings.HasSuffix(words, "the end\n") {
		t.Errorf("%d bytes that end in %q", len(words), words[max(0, len(words)-10):])
	}
}

func TestRunReturnsOutput(t *testing.T) {
	out, err := Run(context.Background(), Spec{Path: "cat", Stdin: strings.NewReader("hello")})
	if err != nil || string(out) != "hello" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		// As soon as the child lives.
		_, _ = bufio.NewReader(r).ReadString('\n')
		cancel(cause)
	}()
	_, err = Run(ctx, Spec{Path: "sh", Args: []string{"-c", "echo ready; exec sleep 60"}, Stdout: w})
	_ = w.Close()
	_ = r.Close()
	if !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	if _, err := Run(ctx, Spec{Path: "true"}); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}

func TestStartFails(t *testing.T) {
	if _, err := Start(Spec{Path: "/no/such/program"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestEnvironment: a child sees PATH and the C locale, and nothing else of ours.
func TestEnvironment(t *testing.T) {
	t.Setenv("NASFLEET_SECRET", "x")
	out, err := Run(context.Background(), Spec{Path: "env"})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Fields(string(out)) {
		if !strings.HasPrefix(line, "PATH=") && line != "LC_ALL=C" {
			t.Errorf("the child sees %s", line)
		}
	}
}

// TestDiesWithItsParent kills a process that has started a child.
func TestDiesWithItsParent(t *testing.T) {
	if os.Getenv("PROC_TEST_PARENT") != "" {
		p, err := Start(Spec{Path: "sleep", Args: []string{"60"}})
		if err != nil {
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("child " + itoa(p.PID()) + "\n")
		select {}
	}
	parent := exec.Command(os.Args[0], "-test.run=TestDiesWithItsParent$")
	parent.Env = append(os.Environ(), "PROC_TEST_PARENT=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child := atoi(t, strings.TrimPrefix(strings.TrimSpace(line), "child "))
	fd, err := pidfdOpen(child)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	if !endsWithin(fd, 10*time.Second) {
		t.Error("the child outlives its parent")
	}
}
