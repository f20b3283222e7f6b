package repository

import (
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/nasfleet/nasfleet/messages"
)

var (
	typePattern   = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)
	optionPattern = regexp.MustCompile(`^[A-Za-z0-9_.+-]+`)
)

// protection is on every mount: a repository holds data, no programs and no devices.
func protection() []string { return []string{"nosuid", "nodev", "noexec"} }

// checkSpec refuses what mount(8) would take for something else than one file system's type and
// address.
func checkSpec(spec messages.Repository) error {
	t := spec.Type
	switch {
	case !typePattern.MatchString(t):
		return messages.Errorf(messages.CodeInvalidMessage, "repository type %q is not the name of a file system", t)
	case spec.Address == "" || strings.HasPrefix(spec.Address, "-") || strings.ContainsFunc(spec.Address, unicode.IsControl):
		return messages.Errorf(messages.CodeInvalidMessage, "repository address %q is empty, begins with a dash or holds a control character", spec.Address)
	case t == "auto" || strings.HasPrefix(t, "no"):
		// "no…" is a pattern that mount(8) would try every other type for.
		return messages.Errorf(messages.CodeRepositoryUnsupported, "repository type %q does not name one file system", t)
	case t == "fuse" || t == "fuse3":
		return messages.Errorf(messages.CodeRepositoryUnsupported, "repository type %q does not name its program", t).
			WithHint("Name the program as well, as in fuse.sshfs.")
	case volatile(t):
		return messages.Errorf(messages.CodeRepositoryUnsupported, "a file system of type %q keeps no data", t)
	}
	return nil
}

// volatile tells the kernel's own file systems, and those that only show others.
func volatile(fsType string) bool {
	return slices.Contains([]string{
		"autofs", "bpf", "cgroup", "cgroup2", "debugfs", "devpts", "devtmpfs", "mqueue", "overlay",
		"proc", "ramfs", "securityfs", "swap", "sysfs", "tmpfs", "tracefs",
	}, fsType)
}

// mountOptions splits and checks mount(8)'s options, adds the protection, and for sshfs what keeps
// it from asking questions and from waiting for a dead server forever.
func mountOptions(spec messages.Repository) ([]string, error) {
	var opts []string
	for o := range strings.SplitSeq(spec.MountOptions, ",") {
		name, err := checkOption(o)
		if err != nil {
			return nil, err
		}
		if name == "" || name == "defaults" || slices.Contains(protection(), name) {
			continue
		}
		opts = append(opts, o)
	}
	if program, ok := fuseProgram(spec.Type); ok && program == "sshfs" {
		opts = append(opts, missing(opts, "BatchMode=yes", "ServerAliveInterval=15", "ServerAliveCountMax=3")...)
	}
	return append(opts, protection()...), nil
}

// checkOption returns the name of one option, or an error with the name in it. The value is never
// quoted: it may be a secret.
func checkOption(option string) (string, error) {
	name, value, _ := strings.Cut(option, "=")
	if option == "" {
		return "", nil
	}
	clean := optionPattern.FindString(name)
	// A quote or a backslash would let a comma be part of a value for some programs and not for others.
	if clean != name || strings.ContainsFunc(value, unicode.IsControl) || strings.ContainsAny(value, `"'\`) {
		return "", messages.Errorf(messages.CodeInvalidMessage,
			"mount option %q is not plain name or name=value: quotes, backslashes and control characters are refused", clean)
	}
	lower := strings.ToLower(name)
	if reason := refusal(lower); reason != "" {
		return "", messages.Errorf(messages.CodeInvalidMessage, "mount option %q is refused: %s", name, reason)
	}
	if isSecret(lower) || (lower == "user" || lower == "username") && strings.Contains(value, "%") {
		return "", messages.Errorf(messages.CodeInvalidMessage, "mount option %q would show a secret to every user of the host", name).
			WithHint("Put the secret into a file that only root can read, and name the file (cifs: credentials=FILE, ceph: secretfile=FILE).")
	}
	return name, nil
}

// refusal says why an option is not for a repository; "" where nothing speaks against it. ssh's
// option names are without case, so name is in lower case.
func refusal(name string) string {
	switch name {
	case "suid", "dev", "exec":
		return "repositories are mounted nosuid, nodev and noexec"
	case "remount", "bind", "rbind", "move":
		return "a repository is mounted afresh"
	case "bg":
		return "the mount would go on in the background"
	case "helper", "uhelper", "ssh_command", "proxycommand", "localcommand", "permitlocalcommand",
		"knownhostscommand", "pkcs11provider", "securitykeyprovider":
		return "it names a program"
	case "password_stdin", "slave", "passive":
		return "nothing can be typed here"
	}
	return ""
}

func isSecret(name string) bool {
	return slices.Contains([]string{"pass", "passwd", "password", "password2", "secret"}, name)
}

// missing returns those of the wanted name=value options whose name is not given.
func missing(given []string, wanted ...string) []string {
	return slices.DeleteFunc(wanted, func(w string) bool {
		name, _, _ := strings.Cut(w, "=")
		return slices.ContainsFunc(given, func(g string) bool {
			has, _, _ := strings.Cut(g, "=")
			return strings.EqualFold(has, name)
		})
	})
}
