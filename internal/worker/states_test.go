package worker

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// table reads the table of docs/job-states.md that begins with the heading, cells without their spaces.
func table(t *testing.T, heading string) [][]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/job-states.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), heading+"\n")
	if !ok {
		t.Fatalf("no table %q", heading)
	}
	var rows [][]string
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	if len(rows) < 2 {
		t.Fatalf("the table %q is empty", heading)
	}
	return rows[1:]
}

// TestTransitions: each kind of event and each ending of a command is in the table, and no others.
func TestTransitions(t *testing.T) {
	kinds, ends, states := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, k := range messages.Kinds() {
		kinds[string(k)] = false
	}
	for _, e := range endings() {
		ends[string(e)] = false
	}
	for _, s := range []string{"queued", "running", "retrying", "succeeded", "failed", "cancelled"} {
		states[s] = false
	}
	event := regexp.MustCompile("event `([^`]*)`")
	for _, row := range table(t, "| from | to | who | when | stored | the command |") {
		if len(row) != 6 {
			t.Fatalf("%d cells: %v", len(row), row)
		}
		for _, m := range event.FindAllStringSubmatch(row[4], -1) {
			if _, ok := kinds[m[1]]; !ok {
				t.Errorf("there is no event %s", m[1])
			}
			kinds[m[1]] = true
		}
		ending := regexp.MustCompile("[,:].*").ReplaceAllString(row[5], "")
		if _, ok := ends[ending]; !ok && ending != "" {
			t.Errorf("a command has no ending %q", ending)
		}
		ends[ending] = true
		for _, s := range strings.Split(row[0]+", "+row[1], ", ") {
			if _, ok := states[s]; !ok && s != "" && s != "the same" {
				t.Errorf("there is no state %q", s)
			}
			states[s] = true
		}
		if final := messages.Kind(row[1]).Final(); final && !strings.HasSuffix(row[4], "event `"+row[1]+"`") {
			t.Errorf("%s is not the last that is stored: %s", row[1], row[4])
		}
	}
	for _, all := range []map[string]bool{kinds, ends, states} {
		for name, seen := range all {
			if !seen {
				t.Errorf("%s is not in the table", name)
			}
		}
	}
}

// TestOutcomes holds each row of the page's table of outcomes against decide.
func TestOutcomes(t *testing.T) {
	coded := func(c messages.Code) error { return messages.Errorf(c, "cause") }
	all := bounds{attempts: 3, firstDelay: time.Second, timeout: time.Hour, deadline: time.Now().Add(time.Hour)}
	late := all
	late.deadline = time.Now()
	cases := map[string]decision{
		"nothing wrong":   decide(nil, 1, all),
		"`cancelled`":     decide(coded(messages.CodeCancelled), 1, all),
		"`shutting_down`": decide(coded(messages.CodeShuttingDown), 3, all),
		"a code that is tried again, attempts and time left":                                decide(coded(messages.CodeMountFailed), 2, all),
		"a code that is tried again, no attempts left":                                      decide(coded(messages.CodeMountFailed), 3, all),
		"a code that is tried again, and the next attempt would begin after the job's time": decide(coded(messages.CodeMountFailed), 1, late),
		"`job_timeout`":  decide(all.expired(), 1, all),
		"any other code": decide(coded(messages.CodeWrongPassphrase), 1, all),
	}
	var rows []string
	for _, row := range table(t, "| the attempt ended with | event | the command | the journal |") {
		rows = append(rows, row[0])
		d, ok := cases[row[0]]
		if !ok {
			t.Errorf("nobody tests %q", row[0])
			continue
		}
		kind := "`" + string(d.kind) + "`"
		if d.kind == "" {
			kind = "none"
		}
		if row[1] != kind || row[2] != string(d.ends) {
			t.Errorf("%s: the page says %s, %s; the code %s, %s", row[0], row[1], row[2], kind, d.ends)
		}
	}
	for name := range cases {
		if !slices.Contains(rows, name) {
			t.Errorf("the page has no row %q", name)
		}
	}
	// Whatever the code is, its end is one of the page's.
	for _, code := range messages.Codes() {
		if d := decide(coded(code), 1, all); !slices.Contains(endings(), d.ends) || d.kind != "" && !slices.Contains(messages.Kinds(), d.kind) {
			t.Errorf("%s: %+v", code, d)
		}
	}
}
