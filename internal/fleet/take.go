package fleet

import (
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// RepositorySettings say which NAS a command is about.
type RepositorySettings struct {
	Repo        string `help:"Repository that is a folder of the host and needs no mount." placeholder:"DIR" yaml:"repo"`
	RepoType    string `help:"Type of the repository's file system: nfs, nfs4, cifs, ceph, ext4, fuse.sshfs, … or dir." placeholder:"TYPE" yaml:"repo-type"`
	RepoAddress string `help:"What is mounted: server:/export, a device, … or the folder of a dir." placeholder:"ADDR" yaml:"repo-address"`
	RepoOptions string `help:"Mount options, separated by commas." placeholder:"OPTS" yaml:"repo-options"`
	BackupPath  string `help:"Folder below the repository's root to keep the backup in." placeholder:"PATH" yaml:"backup-path"`
}

// Repository returns the repository the settings name: --repo, or --repo-type and its like.
func (s RepositorySettings) Repository() (messages.Repository, error) {
	long := messages.Repository{Type: s.RepoType, Address: s.RepoAddress, MountOptions: s.RepoOptions}
	if s.Repo == "" {
		if long.Type == "" || long.Address == "" {
			return long, &Error{
				Class: Usage, Err: fmt.Errorf("no repository is given"),
				Hint: "Give --repo DIR, or --repo-type and --repo-address.",
			}
		}
		return long, nil
	}
	if long != (messages.Repository{}) {
		return long, usagef("--repo is a folder and goes without --repo-type, --repo-address and --repo-options")
	}
	return messages.Repository{Type: messages.RepositoryDir, Address: s.Repo}, nil
}

// TakeSettings shape a backup, for one VM or for a fleet of them. A feature that is not set (nil) is as
// the settings of the zone say.
type TakeSettings struct {
	RepositorySettings `yaml:",inline"`

	Compress        *bool             `help:"Compress the backup." negatable:"" yaml:"compress"`
	CompressionType string            `help:"Compression: zstd or zlib." placeholder:"TYPE" yaml:"compression-type"`
	Encrypt         *bool             `help:"Encrypt the backup (LUKS); needs --passphrase-file, or a passphrase of the zone." negatable:"" yaml:"encrypt"`
	PassphraseFile  string            `help:"File that holds the passphrase, - for standard input. It travels sealed for the host." placeholder:"FILE" yaml:"passphrase-file"`
	Bandwidth       *int              `help:"Limit of the job, all its disks together; 0 is none." placeholder:"MIB/S" yaml:"bandwidth"`
	Verify          *bool             `help:"Read the backup back after the copy and compare it with its digests." negatable:"" yaml:"verify"`
	Quiesce         string            `help:"Freeze the guest's file systems: off, best_effort or required; best_effort without a value." type:"quiesce" placeholder:"HOW" yaml:"quiesce"`
	Mode            string            `help:"full, incremental or auto." placeholder:"MODE" yaml:"mode"`
	FullEvery       int               `help:"Backups of a chain before --mode auto takes a full one; 0 is the contract's default." placeholder:"N" yaml:"full-every"`
	Detail          map[string]string `help:"Set a detail of the command as it travels; one that contradicts a flag is refused." mapsep:"none" placeholder:"KEY=VALUE" yaml:"detail"`
	Attempts        int               `help:"How often the job is tried; 0 is the contract's default." placeholder:"N" yaml:"attempts"`
	Timeout         time.Duration     `help:"How long the job may take, all attempts together, such as 2h; 0 is the host's limit." placeholder:"DURATION" yaml:"timeout"`
}

// Source is what is backed up, and where: a VM or disk images of a host.
type Source struct {
	Zone        string
	Host        string
	VM          string
	Images      []string
	ImageFormat string
	// JobID is a ULID of the caller's own, so that publishing twice makes one job; "" makes one.
	JobID string
}

// TakeJob makes the job that backs src up. The passphrase is read through r. Manager.Fill completes it.
func TakeJob(src Source, s TakeSettings, r *Passphrases) (*Job, error) {
	repository, err := s.Repository()
	if err != nil {
		return nil, err
	}
	details, given, err := s.details()
	if err != nil {
		return nil, err
	}
	head, err := newHeader(messages.TypeTake, src.JobID, s.Attempts, s.Timeout)
	if err != nil {
		return nil, err
	}
	cmd := &messages.TakeBackup{
		Header: head, VM: src.VM, BackupPath: s.BackupPath, Repository: repository,
		Quiesce: quiesce(s.Quiesce), Mode: messages.Mode(s.Mode), FullEvery: s.FullEvery, Details: details,
	}
	if (src.VM == "") == (len(src.Images) == 0) {
		return nil, usagef("exactly one of a VM and images is backed up")
	}
	if src.VM != "" && src.ImageFormat != "" {
		return nil, usagef("an image format goes with images, not with a VM")
	}
	for _, path := range src.Images {
		cmd.Images = append(cmd.Images, messages.Image{Path: path, Format: src.ImageFormat})
	}
	job := &Job{Zone: src.Zone, Host: src.Host, Command: cmd, chosenID: src.JobID != "", fill: &filling{given: given}}
	if s.PassphraseFile != "" {
		if given[messages.DetailEncryption] && !details.Encryption {
			return nil, passphraseForNothing()
		}
		if details.Passphrase != "" {
			return nil, usagef("--passphrase-file and --detail %s contradict each other", messages.DetailPassphrase)
		}
		p, err := r.Read(s.PassphraseFile)
		if err != nil {
			return nil, err
		}
		job.sealings = append(job.sealings, sealing{p, &cmd.Details.Passphrase})
	}
	return job, job.check()
}

func passphraseForNothing() error {
	return &Error{
		Class: Usage, Err: fmt.Errorf("there is a passphrase and no encryption"),
		Hint: "Add --encrypt, or leave --passphrase-file out for a backup in the clear.",
	}
}

// details are those of the flags and of --detail, and which of them were given. Where both speak of one
// detail they must agree: picking one could turn a feature off that the other asked for.
func (s TakeSettings) details() (messages.Details, map[string]bool, error) {
	flags := s.flags()
	all := make(map[string]string, len(flags)+len(s.Detail))
	given := make(map[string]bool, len(flags)+len(s.Detail))
	for key, value := range s.Detail {
		if flag, ok := flags[key]; ok && flag != value {
			return messages.Details{}, nil, usagef("--detail %s contradicts a flag, which makes it %s", key, flag)
		}
		all[key], given[key] = value, true
	}
	for key, value := range flags {
		all[key], given[key] = value, true
	}
	// A passphrase that comes later, from a file or the zone, stands for itself here.
	pending := all[messages.DetailPassphrase] == ""
	if pending {
		all[messages.DetailPassphrase] = sealedLater
	}
	details, err := messages.ParseDetails(all)
	if err != nil {
		return details, nil, refused(err)
	}
	if pending {
		details.Passphrase = ""
	}
	return details, given, nil
}

// flags are the details that flags speak of, as they travel.
func (s TakeSettings) flags() map[string]string {
	flags := map[string]string{}
	for key, value := range map[string]*bool{
		messages.DetailCompression: s.Compress, messages.DetailEncryption: s.Encrypt, messages.DetailIntegrityCheck: s.Verify,
	} {
		if value != nil {
			flags[key] = strconv.FormatBool(*value)
		}
	}
	if s.Bandwidth != nil {
		flags[messages.DetailBandwidthLimit] = strconv.Itoa(*s.Bandwidth)
	}
	if s.CompressionType != "" {
		flags[messages.DetailCompressionType] = s.CompressionType
	}
	return flags
}

// clone returns settings that share nothing with s: what is decoded into them stays there.
func (s TakeSettings) clone() TakeSettings {
	s.Compress, s.Encrypt, s.Verify, s.Bandwidth = copied(s.Compress), copied(s.Encrypt), copied(s.Verify), copied(s.Bandwidth)
	s.Detail = maps.Clone(s.Detail)
	return s
}

func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// quiesce also takes a boolean, as the contract does.
func quiesce(s string) messages.Quiesce {
	switch s {
	case "true":
		return messages.QuiesceBestEffort
	case "false":
		return messages.QuiesceOff
	}
	return messages.Quiesce(s)
}

// sealedLater stands for a passphrase in the checks that come before it is sealed.
const sealedLater = messages.SealedPrefix + "later"
