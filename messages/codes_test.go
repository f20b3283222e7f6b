package messages_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	m "github.com/nasfleet/nasfleet/messages"
)

// TestEveryCodeHasAdvice reads the constants from the source, so that none is left out of the table.
func TestEveryCodeHasAdvice(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []m.Code
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Code" {
			s, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared = append(declared, m.Code(s))
		}
		return true
	})
	slices.Sort(declared)
	if len(declared) < 30 || !slices.Equal(declared, m.Codes()) {
		t.Errorf("declared %v\ntable    %v", declared, m.Codes())
	}
	hints := map[string]m.Code{}
	for _, c := range m.Codes() {
		hint := c.Hint()
		if !strings.HasSuffix(hint, ".") || strings.TrimSpace(hint) != hint || strings.ToUpper(hint[:1]) != hint[:1] {
			t.Errorf("%s: the hint is not a sentence: %q", c, hint)
		}
		if other, ok := hints[hint]; ok {
			t.Errorf("%s and %s give the same advice", c, other)
		}
		hints[hint] = c
		if !regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`).MatchString(string(c)) {
			t.Errorf("%q is not a code's form", c)
		}
	}
}

func TestUnknownCode(t *testing.T) {
	if c := m.Code("nonsense"); c.Hint() != "" || c.Retryable() {
		t.Errorf("an unknown code has %q, %v", c.Hint(), c.Retryable())
	}
}

// TestRetryable: what a command gets wrong stays wrong, what may pass is tried again.
func TestRetryable(t *testing.T) {
	for c, want := range map[m.Code]bool{
		m.CodeInvalidMessage: false, m.CodeUnsupportedVersion: false, m.CodeUnknownDetail: false, m.CodeInvalidDetail: false,
		m.CodePassphraseMissing: false, m.CodePassphraseUnsealed: false, m.CodePassphraseForeign: false, m.CodeWrongPassphrase: false,
		m.CodeVMNotFound: false, m.CodeVerifyFailed: false, m.CodeCancelled: false,
		m.CodeMountFailed: true, m.CodeScratchFull: true, m.CodeHypervisorDown: true, m.CodeShuttingDown: true, m.CodeInternal: true,
	} {
		if c.Retryable() != want {
			t.Errorf("%s: retryable is %v", c, !want)
		}
	}
}
