package bus

import (
	"strings"
	"unicode"

	"github.com/nasfleet/nasfleet/messages"
)

// checkHost refuses names that could not be one literal token each of a subject.
func checkHost(zone, host string) error {
	if err := messages.CheckLabel("zone", zone); err != nil {
		return err
	}
	return messages.CheckLabel("host", host)
}

func checkAddress(zone, host, job string) error {
	if err := checkHost(zone, host); err != nil {
		return err
	}
	return checkToken("job", job)
}

func checkBackup(zone, host, id string) error {
	if err := checkHost(zone, host); err != nil {
		return err
	}
	return messages.CheckID("backup id", id)
}

// checkToken refuses what cannot be one literal token of a subject. It is wider than
// messages.CheckID: a command written by hand may sit on a subject whose last token is no ULID,
// and the event that refuses it must be told under that name.
func checkToken(what, s string) error {
	bad := func(r rune) bool {
		return strings.ContainsRune(".*>", r) || r == unicode.ReplacementChar || unicode.IsSpace(r) || unicode.IsControl(r)
	}
	if s == "" || strings.ContainsFunc(s, bad) {
		return messages.Errorf(messages.CodeInvalidMessage, "%s %q cannot be part of a subject", what, s)
	}
	return nil
}

// checkFilter refuses a filter's names where they are given and not literal.
func checkFilter(zone, host, job string) error {
	const literal = "x"
	return checkAddress(orElse(zone, literal), orElse(host, literal), orElse(job, literal))
}

// orAny returns the token of a filter: s, or the wildcard where s is empty.
func orAny(s string) string { return orElse(s, "*") }

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
