package repository

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/messages"
)

func TestMountOptions(t *testing.T) {
	const ours = ",nosuid,nodev,noexec"
	for _, c := range []struct{ fs, given, want string }{
		{"nfs", "", ours[1:]},
		{"nfs", "vers=4.2,hard", "vers=4.2,hard" + ours},
		{"nfs", "defaults,nosuid,ro,,", "ro" + ours},
		{"cifs", "credentials=/etc/nas,vers=3.1.1,user=backup", "credentials=/etc/nas,vers=3.1.1,user=backup" + ours},
		{"fuse.sshfs", "port=22", "port=22,BatchMode=yes,ServerAliveInterval=15,ServerAliveCountMax=3" + ours},
		{"sshfs", "serveraliveinterval=5", "serveraliveinterval=5,BatchMode=yes,ServerAliveCountMax=3" + ours},
	} {
		got, err := mountOptions(messages.Repository{Type: c.fs, MountOptions: c.given})
		check(t, err)
		if diff := cmp.Diff(c.want, strings.Join(got, ",")); diff != "" {
			t.Errorf("%s %s: %s", c.fs, c.given, diff)
		}
	}
}

func TestMountOptionsRefused(t *testing.T) {
	const secret = "hunter2"
	for _, o := range []string{
		"suid", "dev", "exec", "DEV", "remount", "bind", "bg",
		"password=" + secret, "pass=" + secret, "Password=" + secret, "secret=" + secret, "password:" + secret,
		"user=me%" + secret, "password=\"" + secret, "password= " + secret + "\x00",
		"ssh_command=/bin/sh", "ProxyCommand=sh -c x", "PermitLocalCommand=yes", "PKCS11Provider=/tmp/x.so",
		`context="a`, `x=a\`, "a\nb", "vers=4\n", "x='", "opt ion",
	} {
		for _, given := range []string{o, "ro," + o, o + ",rw"} {
			_, err := mountOptions(messages.Repository{Type: "cifs", MountOptions: given})
			wantCode(t, err, messages.CodeInvalidMessage)
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%q: the secret is in %v", given, err)
			}
			if name := strings.FieldsFunc(o, func(r rune) bool { return strings.ContainsRune("=: \n", r) })[0]; !strings.Contains(err.Error(), name) {
				t.Errorf("%q is not named in %v", name, err)
			}
		}
	}
}

func TestSpecRefused(t *testing.T) {
	const invalid, unsupported = messages.CodeInvalidMessage, messages.CodeRepositoryUnsupported
	for _, c := range []struct {
		fs, address, options string
		code                 messages.Code
	}{
		{"", "a", "", invalid},
		{"nfs,ext4", "a", "", invalid},
		{"-o", "a", "", invalid},
		{"NFS", "a", "", invalid},
		{"fuse.", "a", "", invalid},
		{"fuse.../../bin/sh", "a", "", invalid},
		{"nfs", "", "", invalid},
		{"nfs", "-oexec", "", invalid},
		{"nfs", "a\nb", "", invalid},
		{"dir", "relative", "", invalid},
		{"dir", "/tmp", "ro", invalid},
		{"auto", "a", "", unsupported},
		{"noext4", "a", "", unsupported},
		{"none", "/etc", "bind", unsupported},
		{"tmpfs", "a", "", unsupported},
		{"overlay", "a", "lowerdir=/etc", unsupported},
		{"fuse", "sshfs#host:", "", unsupported},
	} {
		dir := t.TempDir() + "/m"
		_, err := Open(t.Context(), messages.Repository{Type: c.fs, Address: c.address, MountOptions: c.options}, Options{MountDir: dir})
		if got := messages.CodeOf(err); got != c.code {
			t.Errorf("%+v: got %v", c, err)
		}
		wantAbsent(t, dir)
	}
}
