package messages

import (
	"path"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"
)

// maxName bounds a zone's and a host's name (bytes), as DNS does with a label.
const maxName = 63

// maxVMName bounds a VM's name (bytes): it becomes a folder, and ".partial" or a second name of
// the same length must still fit beside it in NAME_MAX (255).
const maxVMName = 200

// maxPath bounds a path and a mount's options (bytes): Linux takes no longer ones (PATH_MAX with
// its final NUL; a page for mount(2)'s data).
const maxPath = 4095

var labelPattern = regexp.MustCompile(`^[a-z0-9-]+$`)

// CheckLabel refuses a zone or host name that is not [a-z0-9-]+ of at most 63 bytes. Such a name
// is one token of a subject and can neither be a wildcard nor end the token.
func CheckLabel(what, name string) error {
	if len(name) > maxName || !labelPattern.MatchString(name) {
		return Errorf(CodeInvalidMessage, "%s %q is not [a-z0-9-]+ of at most %d characters", what, name, maxName)
	}
	return nil
}

// CheckVM refuses a VM name that cannot be the name of one folder: empty, over 200 bytes, "." or
// "..", with a slash, a control character or a leading dash or dot.
func CheckVM(name string) error {
	switch {
	case name == "" || len(name) > maxVMName:
		return Errorf(CodeInvalidMessage, "vm %q: the name must have 1 to %d bytes", name, maxVMName)
	case strings.ContainsAny(name[:1], "-."):
		return Errorf(CodeInvalidMessage, "vm %q: the name must not begin with a dash or a dot", name)
	case strings.Contains(name, "/") || hasControl(name):
		return Errorf(CodeInvalidMessage, "vm %q: the name must not hold a slash or a control character", name)
	}
	return nil
}

// CheckID refuses a job or backup id that is not a ULID in its canonical (upper case) form.
func CheckID(what, id string) error {
	u, err := ulid.ParseStrict(id)
	if err != nil || u.String() != id {
		return Errorf(CodeInvalidMessage, "%s %q is not a ULID", what, id)
	}
	return nil
}

// checkAbsolute refuses a path that is not absolute and clean, or holds a control character.
func checkAbsolute(what, p string) error {
	if len(p) > maxPath {
		return Errorf(CodeInvalidMessage, "%s has more than %d bytes", what, maxPath)
	}
	if !path.IsAbs(p) || path.Clean(p) != p || hasControl(p) {
		return Errorf(CodeInvalidMessage, "%s %q is not a clean absolute path", what, p)
	}
	return nil
}

// checkBelow refuses a path that would leave the folder it is relative to. "" is the folder itself.
func checkBelow(what, p string) error {
	if p == "" {
		return nil
	}
	if len(p) > maxPath {
		return Errorf(CodeInvalidMessage, "%s has more than %d bytes", what, maxPath)
	}
	if path.IsAbs(p) || path.Clean(p) != p || p == "." || p == ".." || strings.HasPrefix(p, "../") || hasControl(p) {
		return Errorf(CodeInvalidMessage, "%s %q is not a clean path below the repository", what, p)
	}
	return nil
}

// hasControl also finds what is not UTF-8, or stands for it: JSON cannot carry it, so that the name
// that arrives would be another.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || unicode.IsControl(r) })
}
