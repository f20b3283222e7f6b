package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// minStore is how much room (bytes) an embedded server's folder should have.
const minStore = 64 << 20

// What the kernel says of AppArmor, and where libvirt's profiles take a site's additions from.
const (
	appArmorEnabled = "/sys/module/apparmor/parameters/enabled"
	appArmorLocal   = "/etc/apparmor.d/local/abstractions/libvirt-qemu"
)

func (c *doctorCmd) checkLibvirt(ctx context.Context) []finding {
	if c.Libvirt == noLibvirt {
		return []finding{ok("libvirt", "not used (--libvirt none): images alone")}
	}
	all := []finding{c.libvirtFinding(ctx)}
	enabled, _ := os.ReadFile(appArmorEnabled) // not there: a kernel without it
	local, _ := os.ReadFile(appArmorLocal)
	return append(all, c.appArmorFinding(string(enabled), string(local)))
}

func (c *doctorCmd) libvirtFinding(ctx context.Context) finding {
	var hv *hypervisor.Hypervisor
	err := ask(ctx, func(ctx context.Context) (err error) {
		hv, err = hypervisor.Connect(ctx, c.Libvirt, zerolog.Nop())
		return err
	})
	if err != nil {
		return fail("libvirt", plain(err), "Start libvirtd (or virtqemud), check --libvirt and the rights to its socket; --libvirt none is for a host without VMs.")
	}
	defer func() { _ = hv.Close() }()
	var v hypervisor.Versions
	err = ask(ctx, func(ctx context.Context) (err error) {
		v, err = hv.Version(ctx)
		return err
	})
	if err != nil {
		return fail("libvirt", plain(err), "Check that libvirt answers: virsh -c "+c.Libvirt+" version.")
	}
	detail := fmt.Sprintf("libvirt %s, %s %s", v.Libvirt, v.Type, v.Hypervisor)
	if !v.CanBackup {
		return fail("libvirt", detail, "Running VMs need libvirt 7.2 and QEMU 4.2 or newer (backup-begin).")
	}
	return ok("libvirt", detail)
}

// appArmorFinding judges the kernel's word on AppArmor and the site's additions to the profiles of guests.
func (c *doctorCmd) appArmorFinding(enabled, local string) finding {
	if strings.TrimSpace(enabled) != "Y" {
		return ok("AppArmor", "off")
	}
	var missing []string
	for _, rule := range []string{c.RunDir + "/** rwk,", c.Scratch + "/** rwk,"} {
		if !strings.Contains(local, rule) {
			missing = append(missing, rule)
		}
	}
	if len(missing) == 0 {
		return ok("AppArmor", "guests may use the run folder and the scratch folder")
	}
	return warn("AppArmor", "it may keep guests from the run folder and the scratch folder", fmt.Sprintf(
		"If running VMs cannot be backed up, add to %s and reload AppArmor's profiles: %s", appArmorLocal, strings.Join(missing, " ")))
}

func (c *doctorCmd) checkNATS(ctx context.Context) []finding {
	if c.EmbeddedNATS == "" {
		return c.checkServer(ctx, c.busConfig("doctor"))
	}
	folder := folderFinding("embedded NATS", c.EmbeddedNATS, minStore, "commands and events are kept there")
	used, err := bus.InUse(c.EmbeddedNATS)
	if err != nil {
		return []finding{fail("embedded NATS", err.Error(), "Let the worker read and write there, or name another folder.")}
	}
	if !used {
		return []finding{folder, c.listenFinding(ctx)}
	}
	folder.Detail += ", a running worker serves it"
	_, port, _ := net.SplitHostPort(c.Listen)
	if !c.listens() || port == "0" {
		return []finding{folder}
	}
	cfg := c.busConfig("doctor")
	cfg.URL, cfg.Context, cfg.Creds, cfg.NKey, cfg.CA = "nats://"+c.Listen, "", "", "", ""
	return append([]finding{folder}, c.checkServer(ctx, cfg)...)
}

// listenFinding says whether the embedded server will be able to listen.
func (c *doctorCmd) listenFinding(ctx context.Context) finding {
	if !c.listens() {
		return ok("embedded NATS listens", "not (--listen "+bus.ListenNone+")")
	}
	if err := tryListen(ctx, c.Listen); err != nil {
		return fail("embedded NATS listens", err.Error(), "Stop what listens there, or give --listen another address.")
	}
	return ok("embedded NATS listens", c.Listen+" is free")
}

func tryListen(ctx context.Context, addr string) error {
	l, err := listen(ctx, addr)
	if err != nil {
		return err
	}
	return l.Close()
}

func (c *doctorCmd) checkMetrics(ctx context.Context) []finding {
	if c.Metrics == "" {
		return nil
	}
	err := tryListen(ctx, c.Metrics)
	if errors.Is(err, syscall.EADDRINUSE) {
		return []finding{warn("metrics", err.Error(), "All is well if that is this host's running worker; otherwise give --metrics another address.")}
	}
	if err != nil {
		return []finding{fail("metrics", err.Error(), "Give --metrics an address of this host, such as 127.0.0.1:9464.")}
	}
	return []finding{ok("metrics", c.Metrics+" is free")}
}

// checkServer looks at what run needs of the NATS server, as far as that can be seen without
// writing anything there.
func (c *doctorCmd) checkServer(ctx context.Context, cfg bus.Config) []finding {
	cfg.Timeout = checkTimeout
	b, err := bus.Connect(ctx, cfg)
	if err != nil {
		return []finding{fail("NATS", err.Error(), hint(err))}
	}
	defer b.Close()
	return []finding{ok("NATS", "connected to "+b.ServerURL()), c.streamsFinding(ctx, b), c.eventsFinding(ctx, b), c.nameFinding(ctx, b)}
}

func (c *doctorCmd) streamsFinding(ctx context.Context, b *bus.Bus) finding {
	check := "zone " + c.Zone
	err := ask(ctx, func(ctx context.Context) error { return b.CheckZone(ctx, c.Zone) })
	switch {
	case err == nil:
		return ok(check, "its streams and buckets are there")
	case errors.Is(err, bus.ErrNoStream):
		return warn(check, err.Error(), "hostworker run makes what is missing if its user may; otherwise make it with a user who may. JetStream has to be on.")
	case errors.Is(err, bus.ErrUnauthorized):
		return warn(check, err.Error(), "All is well if somebody with that right has made the zone's streams: a host need not see them.")
	}
	return fail(check, err.Error(), hint(err))
}

// eventsFinding asks, as each job does first, for the end of a job: of one that never was.
func (c *doctorCmd) eventsFinding(ctx context.Context, b *bus.Bus) finding {
	err := ask(ctx, func(ctx context.Context) error {
		_, err := b.FinalEvent(ctx, c.Zone, c.Host, ulid.Make().String())
		return err
	})
	switch {
	case errors.Is(err, bus.ErrNotFound):
		return ok("events", "can be read")
	case errors.Is(err, bus.ErrNoStream):
		return warn("events", err.Error(), "See zone "+c.Zone+".")
	}
	return fail("events", err.Error(), hint(err))
}

// nameFinding looks for a worker of this name. One on another machine would take this one's commands.
func (c *doctorCmd) nameFinding(ctx context.Context, b *bus.Bus) finding {
	check := "name " + c.Zone + "/" + c.Host
	var info messages.HostInfo
	err := ask(ctx, func(ctx context.Context) (err error) {
		info, err = b.Host(ctx, c.Zone, c.Host)
		return err
	})
	if errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrNoStream) {
		return ok(check, "no worker has announced it")
	}
	if err != nil {
		return warn(check, err.Error(), "All is well if no other machine has this name: the two would take each other's commands.")
	}
	detail := fmt.Sprintf("a worker (version %s) announced it %s", info.Version, info.SeenAt.Local().Format(time.DateTime))
	if c.foreign(info.SealKey) {
		return warn(check, detail+", with a key that is not in "+c.StateDir,
			"Look for another machine of this name: the two would take each other's commands.")
	}
	return ok(check, detail)
}

// foreign says whether a key is known not to be this host's.
func (c *doctorCmd) foreign(public string) bool {
	path := hostKey(c.StateDir)
	if _, err := os.Stat(path); err != nil {
		return !errors.Is(err, os.ErrPermission) // a worker here would have made it
	}
	key, err := secret.LoadOrCreateKey(path)
	if err != nil {
		return false
	}
	own, err := key.Public()
	return err == nil && own != public
}

// plain is an error's text without its code.
func plain(err error) string {
	return strings.TrimPrefix(err.Error(), string(messages.CodeOf(err))+": ")
}
