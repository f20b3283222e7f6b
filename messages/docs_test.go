package messages_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	m "github.com/nasfleet/nasfleet/messages"
)

// TestCommandByHand runs the shell of docs/messages.md for each example, with a function in place
// of the nats CLI that tells its arguments, and decodes what would have been published.
func TestCommandByHand(t *testing.T) {
	doc, err := os.ReadFile("../docs/messages.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, part := range strings.Split(string(doc), "```bash\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		blocks = append(blocks, block)
	}
	if len(blocks) != 3 {
		t.Fatalf("%d blocks of bash", len(blocks))
	}
	examples, err := filepath.Glob("../docs/schema/examples/*.json")
	if err != nil || len(examples) < 5 {
		t.Fatalf("examples: %v (%v)", examples, err)
	}
	for _, example := range examples {
		t.Run(filepath.Base(example), func(t *testing.T) {
			script := "set -eu\nnats() { printf '%s\\0' \"$@\"; }\n" + blocks[0] + blocks[1]
			script = strings.ReplaceAll(script, "TakeBackup.json", filepath.Base(example))
			cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
			cmd.Dir, cmd.Stderr = filepath.Dir(example), os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			args := strings.Split(string(out), "\x00")
			if len(args) != 9 || args[0] != "pub" || args[1] != "--jetstream" {
				t.Fatalf("arguments %q", args)
			}
			zone, host, job, ok := m.ParseJobSubject(args[2])
			if !ok || zone != "z1" || host != "h1" {
				t.Errorf("subject %s", args[2])
			}
			_, h, err := m.Decode([]byte(args[3]))
			if err != nil {
				t.Fatal(err)
			}
			if h.JobID != job || args[5] != "Nats-Msg-Id:"+job || args[7] != "Nats-Expected-Last-Subject-Sequence:0" {
				t.Errorf("job %s in the subject, %s in the command, headers %q", job, h.JobID, args[4:])
			}
			made := ulid.Time(ulid.MustParse(job).Time())
			if time.Since(made).Abs() > time.Minute || time.Since(h.IssuedAt).Abs() > time.Minute {
				t.Errorf("the id is of %v, the command of %v", made, h.IssuedAt)
			}
		})
	}
}
