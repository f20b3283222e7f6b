package repository

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/nasfleet/nasfleet/messages"
)

var (
	typePattern   = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)
	optionPattern = regexp.MustCompile(`^[A-Za-z0-9_.+-]+`)
	// pathPattern is that of a file's name in an option: ssh takes some characters in it for more than themselves
	// (~, %h, ${HOME}, white space).
	pathPattern = regexp.MustCompile(`^(/[A-Za-z0-9@=+:._-]+)+$`)
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
// it from asking questions and from waiting for a dead server forever. allowed are the names of further options
// that this host lets through.
func mountOptions(spec messages.Repository, allowed []string) ([]string, error) {
	var opts []string
	for o := range strings.SplitSeq(spec.MountOptions, ",") {
		name, value, hasValue := strings.Cut(o, "=")
		if o == "" {
			continue
		}
		if err := checkOption(name, value); err != nil {
			return nil, err
		}
		if name == "defaults" || slices.Contains(protection(), name) {
			continue
		}
		if err := checkKnown(spec.Type, name, value, hasValue, allowed); err != nil {
			return nil, err
		}
		opts = append(opts, o)
	}
	if program, ok := fuseProgram(spec.Type); ok && program == "sshfs" {
		opts = append(opts, missing(opts, "BatchMode=yes", "ServerAliveInterval=15", "ServerAliveCountMax=3")...)
	}
	return append(opts, protection()...), nil
}

// checkOption refuses an option that means more than itself, or is for no repository. The value is never
// quoted: it may be a secret.
func checkOption(name, value string) error {
	clean := optionPattern.FindString(name)
	// A quote or a backslash would let a comma be part of a value for some programs and not for others.
	if clean != name || name == "" || strings.ContainsFunc(value, unicode.IsControl) || strings.ContainsAny(value, `"'\`) {
		return messages.Errorf(messages.CodeInvalidMessage,
			"mount option %q is not plain name or name=value: quotes, backslashes and control characters are refused", clean)
	}
	lower := strings.ToLower(name)
	if reason := refusal(lower); reason != "" {
		return messages.Errorf(messages.CodeInvalidMessage, "mount option %q is refused: %s", name, reason)
	}
	if isSecret(lower) || (lower == "user" || lower == "username") && strings.Contains(value, "%") {
		return messages.Errorf(messages.CodeInvalidMessage, "mount option %q would show a secret to every user of the host", name).
			WithHint("Put the secret into a file that only root can read, and name the file (cifs: credentials=FILE, ceph: secretfile=FILE).")
	}
	return nil
}

// checkKnown refuses an option that is not known to be harmless. Any other may name a file, a device or a
// program of this host, now or in the next version of what mounts.
func checkKnown(fsType, name, value string, hasValue bool, allowed []string) error {
	lower := strings.ToLower(name)
	k := knownOf(fsType)
	switch {
	case slices.Contains(allowed, name):
		return nil
	case slices.Contains(k.files, lower):
		if !pathPattern.MatchString(value) || filepath.Clean(value) != value {
			return messages.Errorf(messages.CodeInvalidMessage, "mount option %q does not name a file by a clean absolute path of plain characters", name)
		}
	case slices.Contains(k.flags, lower):
		if hasValue {
			return messages.Errorf(messages.CodeInvalidMessage, "mount option %q takes no value here", name)
		}
	case slices.Contains(k.values, lower):
		if strings.ContainsAny(value, "/~$%") && !slices.Contains(k.remote, lower) {
			return messages.Errorf(messages.CodeInvalidMessage, "the value of mount option %q looks like the name of a file", name)
		}
	default:
		return messages.Errorf(messages.CodeInvalidMessage, "mount option %q is not one that a command may give for type %s", name, fsType).
			WithHint("Leave it out, or let it through on the host (hostworker --mount-option %s) if it can name no file and no program.", name)
	}
	return nil
}

// refusal says why an option is not for a repository, whatever the host lets through; "" where nothing speaks
// against it. ssh's option names are without case, so name is in lower case.
func refusal(name string) string {
	switch name {
	case "suid", "dev", "exec":
		return "repositories are mounted nosuid, nodev and noexec"
	case "remount", "bind", "rbind", "move":
		return "a repository is mounted afresh"
	case "bg":
		return "the mount would go on in the background"
	case "helper", "uhelper", "ssh_command", "proxycommand", "localcommand", "permitlocalcommand",
		"knownhostscommand", "pkcs11provider", "securitykeyprovider", "sftp_server", "proxyjump", "xauthlocation":
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
