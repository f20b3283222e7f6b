package repository

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/messages"
)

func TestMountOptions(t *testing.T) {
	const ours = ",nosuid,nodev,noexec"
	const sshfs = ",BatchMode=yes,ServerAliveInterval=15,ServerAliveCountMax=3"
	for _, c := range []struct{ fs, given, want string }{
		{"nfs", "", ours[1:]},
		{"nfs", "vers=4.2,hard", "vers=4.2,hard" + ours},
		{"nfs", "defaults,nosuid,ro,,", "ro" + ours},
		{"nfs4", "nconnect=4,rsize=1048576,timeo=600,sec=krb5p,noatime,_netdev,clientaddr=fe80::1", "nconnect=4,rsize=1048576,timeo=600,sec=krb5p,noatime,_netdev,clientaddr=fe80::1" + ours},
		{"cifs", "credentials=/etc/nas,vers=3.1.1,user=backup", "credentials=/etc/nas,vers=3.1.1,user=backup" + ours},
		{"cifs", "cred=/a/b.c,seal,prefixpath=/x/y", "cred=/a/b.c,seal,prefixpath=/x/y" + ours},
		{"ceph", "name=backup,secretfile=/etc/x/ceph.secret,mon_addr=10.0.0.1:6789/10.0.0.2:6789,ms_mode=secure", "name=backup,secretfile=/etc/x/ceph.secret,mon_addr=10.0.0.1:6789/10.0.0.2:6789,ms_mode=secure" + ours},
		{"fuse.sshfs", "port=22", "port=22" + sshfs + ours},
		{"sshfs", "serveraliveinterval=5", "serveraliveinterval=5,BatchMode=yes,ServerAliveCountMax=3" + ours},
		{"sshfs", "IdentityFile=/k/id_ed25519,userknownhostsfile=/k/known,Compression=yes,Ciphers=aes128-gcm@openssh.com", "IdentityFile=/k/id_ed25519,userknownhostsfile=/k/known,Compression=yes,Ciphers=aes128-gcm@openssh.com" + sshfs + ours},
		{"ext4", "loop,discard,data=ordered", "loop,discard,data=ordered" + ours},
		{"btrfs", "discard=async,subvol=/backup", "discard=async,subvol=/backup" + ours},
		{"vfat", "loop,ro", "loop,ro" + ours},
		{"glusterfs", "log-level=WARNING", "log-level=WARNING" + ours},
	} {
		got, err := mountOptions(messages.Repository{Type: c.fs, MountOptions: c.given}, []string{"log-level"})
		check(t, err)
		if diff := cmp.Diff(c.want, strings.Join(got, ",")); diff != "" {
			t.Errorf("%s %s: %s", c.fs, c.given, diff)
		}
	}
}

func TestMountOptionsRefused(t *testing.T) {
	const secret = "hunter2"
	for _, c := range []struct {
		fs      string
		options []string
	}{
		{"cifs", []string{
			"suid", "dev", "exec", "DEV", "remount", "bind", "bg",
			"password=" + secret, "pass=" + secret, "Password=" + secret, "secret=" + secret, "password:" + secret,
			"user=me%" + secret, "password=\"" + secret, "password= " + secret + "\x00",
			`context="a`, `x=a\`, "a\nb", "vers=4\n", "x='", "opt ion", "=x", "-o=x",
			// Files: only by a clean path that means itself.
			"credentials", "credentials=", "credentials=nas", "credentials=../nas", "credentials=/etc/../nas", "credentials=/a//b",
			"credentials=/a b", "credentials=/etc/nas/", "credentials=~/nas",
			// Names of files and programs in options that have none, and options that nobody knows.
			"user=/etc/shadow", "ro=/etc/shadow", "domain=../x", "sockopt=x", "helper=/bin/sh", "uhelper=x", "roothashfile=/etc/shadow",
			"x-mount.subdir=etc", "X-mount.mkdir", "context=system_u", "nas.bogus", "secretfile=/etc/shadow", "IdentityFile=/etc/shadow",
			"loop=/dev/sda", "offset=1",
		}},
		{"fuse.sshfs", []string{
			"ssh_command=/bin/sh", "ProxyCommand=sh -c x", "PermitLocalCommand=yes", "LocalCommand=x", "PKCS11Provider=/tmp/x.so", "ProxyJump=x",
			"KnownHostsCommand=/bin/sh", "SecurityKeyProvider=/x.so", "sftp_server=/bin/sh", "F=/tmp/config", "ssh_configfile=/tmp/config", "Include=/etc/shadow",
			"ControlPath=/tmp/x", "ControlMaster=yes", "IdentityAgent=/tmp/agent", "ForwardAgent=yes", "LocalForward=1:x:2", "RemoteForward=1:x:2",
			"DynamicForward=1", "Tunnel=yes", "SendEnv=SECRET", "SetEnv=A=b", "UserKnownHostsFile=none", "UserKnownHostsFile=/a /b",
			"UserKnownHostsFile=~/.ssh/known_hosts", "identityfile=%d/.ssh/id_rsa", "IdentityFile=/keys/${SECRET}", "IdentityFile=/keys/%h",
			"GLOBALKNOWNHOSTSFILE=etc", "CertificateFile=x", "uidfile=/etc/shadow", "gidfile=/etc/shadow", "allow_other", "fsname=x", "port=/x",
			"hostkeyalias=%h", "BindAddress=$HOME", "password_stdin", "debug", "RevokedHostKeys=/x",
		}},
		{"nfs", []string{"credentials=/etc/x", "loop", "fsc=/etc", "vers=../x", "lookupcache=/x"}},
		{"ceph", []string{"secret=" + secret, "conf", "conf=ceph.conf", "keyring=/etc/x", "key=/x"}},
		{"ext4", []string{"loop=/dev/loop9", "journal_path=/dev/sda", "journal_dev=0x801", "data=/x", "verity.roothashfile=/etc/shadow"}},
		{"xfs", []string{"logdev=/dev/sda", "rtdev=/dev/sda"}},
		{"btrfs", []string{"device=/dev/sda"}},
		{"9p", []string{"trans=unix", "rfdno=3", "cache=x"}},
		{"fuse.anything", []string{"modules=subdir", "config=/etc/shadow"}},
	} {
		for _, o := range c.options {
			for _, given := range []string{o, "ro," + o, o + ",rw"} {
				_, err := mountOptions(messages.Repository{Type: c.fs, MountOptions: given}, []string{"log-level"})
				if messages.CodeOf(err) != messages.CodeInvalidMessage {
					t.Errorf("%s %q: %v", c.fs, given, err)
					continue
				}
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q: the secret is in %v", given, err)
				}
				if name := strings.FieldsFunc(o, func(r rune) bool { return strings.ContainsRune("=: \n", r) })[0]; !strings.Contains(err.Error(), name) && o[0] != '=' && o[0] != '-' {
					t.Errorf("%q is not named in %v", name, err)
				}
			}
		}
	}
	// What undoes the protection is not let through by anybody.
	_, err := mountOptions(messages.Repository{Type: "nfs", MountOptions: "exec"}, []string{"exec"})
	wantCode(t, err, messages.CodeInvalidMessage)
}

// FuzzMountOptions: what is let through is known, holds one value and no path that OfHost does not list.
func FuzzMountOptions(f *testing.F) {
	for _, seed := range []string{"ro,vers=4.2", "credentials=/etc/nas", "IdentityFile=/a,ProxyCommand=sh", "loop,data=ordered", "a=b=c,,", "user=x%y"} {
		f.Add("cifs", seed)
		f.Add("fuse.sshfs", seed)
	}
	f.Fuzz(func(t *testing.T, fsType, given string) {
		spec := messages.Repository{Type: fsType, Address: "nas:/x", MountOptions: given}
		opts, err := mountOptions(spec, nil)
		if err != nil {
			return
		}
		if !slices.Equal(opts[len(opts)-3:], protection()) {
			t.Fatalf("%q: not protected: %q", given, opts)
		}
		_, files := OfHost(spec)
		k := knownOf(fsType)
		for _, o := range opts[:len(opts)-3] {
			name, value, _ := strings.Cut(strings.ToLower(o), "=")
			all := slices.Concat(k.flags, k.values, k.files)
			if !slices.Contains(all, name) || strings.ContainsAny(o, ",\"'\\\n\x00") {
				t.Errorf("%q lets %q through", given, o)
			}
			if strings.Contains(value, "/") && !slices.Contains(k.remote, name) &&
				!slices.ContainsFunc(files, func(f string) bool { return strings.EqualFold(f, value) }) {
				t.Errorf("%q names a file that nobody looks at: %q", given, o)
			}
		}
	})
}

func TestOfHost(t *testing.T) {
	for _, c := range []struct {
		fs, address, options string
		want                 string
		files                []string
	}{
		{"nfs", "nas:/export", "hard", "", nil},
		{"cifs", "//nas/share", "credentials=/a/b,seal", "", []string{"/a/b"}},
		{"ceph", "admin@.fs=/", "secretfile=/a,conf=/b", "", []string{"/a", "/b"}},
		{"fuse.sshfs", "u@h:/x", "IDENTITYFILE=/a,port=1,identityfile=b", "", []string{"/a", "b"}},
		{"fuse.bindfs", "/etc", "", "/etc", nil},
		{"fuse.s3fs", "bucket:/x", "", "", nil},
		{"dir", "/srv/nas", "", "/srv/nas", nil},
		{"ext4", "/dev/sda1", "credentials=/a", "/dev/sda1", nil},
		{"ext4", "LABEL=a:b", "", "LABEL=a:b", nil},
		{"xfs", "//dev/sda1", "", "//dev/sda1", nil},
	} {
		address, files := OfHost(messages.Repository{Type: c.fs, Address: c.address, MountOptions: c.options})
		if address != c.want || !slices.Equal(files, c.files) {
			t.Errorf("%s %s: %q, %q", c.fs, c.address, address, files)
		}
	}
}

// TestNoOtherProgram: a type names a file system's program, and no other program of the host.
func TestNoOtherProgram(t *testing.T) {
	bin, mark := t.TempDir(), filepath.Join(t.TempDir(), "ran")
	check(t, os.WriteFile(filepath.Join(bin, "evil"), []byte("#!/bin/sh\n: > "+mark+"\n"), 0o700))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, program := range []string{"evil", "sh", "curl", "mount"} {
		_, err := Open(t.Context(), messages.Repository{Type: "fuse." + program, Address: "nas:/x"}, Options{MountDir: mountDir(t)})
		wantCode(t, err, messages.CodeRepositoryUnsupported)
	}
	wantAbsent(t, mark)
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
