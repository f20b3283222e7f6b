package messages

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// Target is the VM, or the name that stands for it where images are backed up: the folder the
// backup lies in.
func (c *TakeBackup) Target() string {
	if c.VM != "" || len(c.Images) == 0 {
		return c.VM
	}
	base := path.Base(c.Images[0].Path)
	name := strings.TrimSuffix(base, path.Ext(base))
	if CheckVM(name) != nil {
		return "image"
	}
	return name
}

// Target is the VM whose backup is restored.
func (c *RestoreBackup) Target() string { return c.Backup.VM }

// Target is the VM whose backup is verified.
func (c *VerifyBackup) Target() string { return c.Backup.VM }

// Target is the VM whose backup is deleted.
func (c *DeleteBackup) Target() string { return c.Backup.VM }

// Target is the VM whose backup gets another passphrase.
func (c *RekeyBackup) Target() string { return c.Backup.VM }

// Target is the VM whose backup is made whole.
func (c *ConsolidateBackup) Target() string { return c.Backup.VM }

// Target is the VM whose backups are listed, or the repository's address.
func (c *ListBackups) Target() string {
	if c.VM != "" {
		return c.VM
	}
	return c.Repository.Address
}

func (h Header) validate(t Type) error {
	if h.Version < 1 {
		return Errorf(CodeInvalidMessage, "version is missing")
	}
	if h.Version > Version {
		return Errorf(CodeUnsupportedVersion, "version %d is newer than %d", h.Version, Version)
	}
	if h.Type != t {
		return Errorf(CodeInvalidMessage, "type %q is not %s", h.Type, t)
	}
	if h.IssuedAt.IsZero() {
		return Errorf(CodeInvalidMessage, "issued_at is missing")
	}
	if h.Attempts < 0 || h.Attempts > maxAttempts {
		return Errorf(CodeInvalidMessage, "attempts %d is not from 1 to %d", h.Attempts, maxAttempts)
	}
	if h.Timeout < 0 || h.Timeout > maxTimeout {
		return Errorf(CodeInvalidMessage, "timeout %d is not from 1 to %d seconds", h.Timeout, maxTimeout)
	}
	if err := CheckID("job_id", h.JobID); err != nil {
		return err
	}
	switch h.Replays {
	case "":
		return nil
	case h.JobID:
		return Errorf(CodeInvalidMessage, "replays %q is the job itself", h.Replays)
	}
	return CheckID("replays", h.Replays)
}

// Validate implements Command.
func (c *TakeBackup) Validate() error {
	if err := c.validate(TypeTake); err != nil {
		return err
	}
	if (c.VM == "") == (len(c.Images) == 0) {
		return Errorf(CodeInvalidMessage, "exactly one of vm and images is needed")
	}
	if c.VM != "" {
		if err := CheckVM(c.VM); err != nil {
			return err
		}
	}
	for _, img := range c.Images {
		if err := img.validate(); err != nil {
			return err
		}
	}
	if !slices.Contains([]Mode{"", ModeFull, ModeIncremental, ModeAuto}, c.Mode) {
		return Errorf(CodeInvalidMessage, "mode %q is not full, incremental or auto", c.Mode)
	}
	if c.FullEvery < 0 || c.FullEvery > MaxChain {
		return Errorf(CodeInvalidMessage, "full_every %d is not from 1 to %d", c.FullEvery, MaxChain)
	}
	if !slices.Contains([]Quiesce{"", QuiesceOff, QuiesceBestEffort, QuiesceRequired}, c.Quiesce) {
		return Errorf(CodeInvalidMessage, "quiesce %q is not off, best_effort or required", c.Quiesce)
	}
	if err := checkBelow("backup_path", c.BackupPath); err != nil {
		return err
	}
	if err := c.Repository.validate(); err != nil {
		return err
	}
	return c.Details.check()
}

// Validate implements Command.
func (c *RestoreBackup) Validate() error {
	if err := c.validate(TypeRestore); err != nil {
		return err
	}
	if err := c.Backup.validate(); err != nil {
		return err
	}
	if err := c.checkTarget(); err != nil {
		return err
	}
	if c.ToDir == "" && (c.Define || c.Format != "") {
		return Errorf(CodeInvalidMessage, "define and format go with to_dir, not with to_vm or to_rbd")
	}
	for _, d := range c.Disks {
		if err := checkDisk(d); err != nil {
			return err
		}
	}
	if err := checkFormat(c.Format); err != nil {
		return err
	}
	return c.Details.onlyReading()
}

// checkTarget checks where a restore goes.
func (c *RestoreBackup) checkTarget() error {
	targets := 0
	for _, given := range []bool{c.ToDir != "", c.ToVM != "", len(c.ToRBD) > 0} {
		if given {
			targets++
		}
	}
	switch {
	case targets != 1:
		return Errorf(CodeInvalidMessage, "exactly one of to_dir, to_vm and to_rbd is needed")
	case c.ToDir != "":
		return checkAbsolute("to_dir", c.ToDir)
	case c.ToVM != "":
		return CheckVM(c.ToVM)
	case len(c.Disks) > 0:
		return Errorf(CodeInvalidMessage, "disks do not go with to_rbd, which names them")
	}
	taken := map[string]string{}
	for _, disk := range slices.Sorted(maps.Keys(c.ToRBD)) {
		image := c.ToRBD[disk]
		if err := checkDisk(disk); err != nil {
			return err
		}
		pool, name, _ := strings.Cut(image, "/")
		if pool == "" || name == "" || strings.Contains(name, "/") || len(image) > maxPath || hasControl(image) {
			return Errorf(CodeInvalidMessage, "to_rbd %q is not pool/image", image)
		}
		if other, ok := taken[image]; ok {
			return Errorf(CodeInvalidMessage, "to_rbd names %q for %s and for %s", image, other, disk)
		}
		taken[image] = disk
	}
	return nil
}

// Validate implements Command.
func (c *VerifyBackup) Validate() error {
	if err := c.validate(TypeVerify); err != nil {
		return err
	}
	if err := c.Backup.validate(); err != nil {
		return err
	}
	return c.Details.onlyReading()
}

// Validate implements Command.
func (c *DeleteBackup) Validate() error {
	if err := c.validate(TypeDelete); err != nil {
		return err
	}
	return c.Backup.validate()
}

// Validate implements Command.
func (c *RekeyBackup) Validate() error {
	if err := c.validate(TypeRekey); err != nil {
		return err
	}
	if err := c.Backup.validate(); err != nil {
		return err
	}
	if c.OldPassphrase == "" || c.Details.Passphrase == "" {
		return Errorf(CodePassphraseMissing, "old_passphrase and %s are needed", DetailPassphrase)
	}
	if err := checkSealed("old_passphrase", c.OldPassphrase); err != nil {
		return err
	}
	if err := checkRevision("old_revision", c.OldRevision); err != nil {
		return err
	}
	return c.Details.only(DetailPassphrase, DetailRevision, DetailRecovery, DetailRecoveryRevision)
}

// Validate implements Command.
func (c *ConsolidateBackup) Validate() error {
	if err := c.validate(TypeConsolidate); err != nil {
		return err
	}
	if err := c.Backup.validate(); err != nil {
		return err
	}
	if c.Backup.ID == c.JobID {
		return Errorf(CodeInvalidMessage, "the backup %q is the one that the job makes", c.Backup.ID)
	}
	if err := checkSealed("chain_passphrase", c.ChainPassphrase); err != nil {
		return err
	}
	if err := checkRevision("chain_revision", c.ChainRevision); err != nil {
		return err
	}
	if c.ChainRevision != "" && c.ChainPassphrase == "" {
		return Errorf(CodeInvalidDetail, "there is a chain_revision and no chain_passphrase")
	}
	return c.Details.check()
}

// Validate implements Command.
func (c *ListBackups) Validate() error {
	if err := c.validate(TypeList); err != nil {
		return err
	}
	if c.VM != "" {
		if err := CheckVM(c.VM); err != nil {
			return err
		}
	}
	if err := checkBelow("backup_path", c.BackupPath); err != nil {
		return err
	}
	return c.Repository.validate()
}

func (b BackupRef) validate() error {
	if err := CheckID("backup id", b.ID); err != nil {
		return err
	}
	if err := CheckVM(b.VM); err != nil {
		return err
	}
	if err := checkBelow("backup_path", b.BackupPath); err != nil {
		return err
	}
	return b.Repository.validate()
}

func (r Repository) validate() error {
	if r.Type == "" || r.Address == "" {
		return Errorf(CodeInvalidMessage, "repository needs a type and an address")
	}
	for _, s := range []string{r.Type, r.Address, r.MountOptions} {
		if len(s) > maxPath {
			return Errorf(CodeInvalidMessage, "repository: a field has more than %d bytes", maxPath)
		}
		if hasControl(s) || strings.HasPrefix(s, "-") {
			return Errorf(CodeInvalidMessage, "repository: %q begins with a dash or holds a control character", s)
		}
	}
	for _, option := range strings.Split(r.MountOptions, ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(option), "=")
		if slices.Contains([]string{"pass", "passwd", "password", "secret"}, strings.ToLower(name)) {
			// The value is not quoted: it is somebody's password.
			return Errorf(CodeInvalidMessage, "mount option %s would put a password into the command", name).
				WithHint("Keep it in a file on the host (credentials=FILE, secretfile=FILE).")
		}
	}
	if r.Type != RepositoryDir {
		return nil
	}
	if r.MountOptions != "" {
		return Errorf(CodeInvalidMessage, "a repository of type dir takes no mount_options")
	}
	return checkAbsolute("repository address", r.Address)
}

func (i Image) validate() error {
	if err := checkAbsolute("image", i.Path); err != nil {
		return err
	}
	return checkFormat(i.Format)
}

// onlyReading checks the details of a command that reads a backup, and refuses those that shape a
// new one.
func (d Details) onlyReading() error {
	return d.only(DetailPassphrase, DetailRevision, DetailBandwidthLimit)
}

// only checks the details of a command that goes with these alone.
func (d Details) only(keys ...string) error {
	for _, key := range slices.Sorted(maps.Keys(d.Map())) {
		if !slices.Contains(keys, key) {
			return Errorf(CodeInvalidDetail, "%s does not go with this command, only %s do", key, strings.Join(keys, ", "))
		}
	}
	return d.check()
}

func checkFormat(format string) error {
	switch format {
	case "", "qcow2", "raw":
		return nil
	}
	return Errorf(CodeInvalidMessage, "format %q is neither qcow2 nor raw", format)
}

// checkDisk refuses what cannot be a disk's name in a backup: a libvirt target such as vda.
func checkDisk(name string) error {
	if len(name) > maxName || !labelPattern.MatchString(name) {
		return Errorf(CodeInvalidMessage, "disk %q is not a disk's name", name)
	}
	return nil
}
