package fleet

import (
	"fmt"
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

// TakeSettings shape a backup, for one VM or for a fleet of them.
type TakeSettings struct {
	RepositorySettings `yaml:",inline"`

	Compress        bool              `help:"Compress the backup." yaml:"compress"`
	CompressionType string            `help:"Compression: zstd or zlib." placeholder:"TYPE" yaml:"compression-type"`
	Encrypt         bool              `help:"Encrypt the backup (LUKS); needs --passphrase-file." yaml:"encrypt"`
	PassphraseFile  string            `help:"File that holds the passphrase, - for standard input. It travels sealed for the host." placeholder:"FILE" yaml:"passphrase-file"`
	Bandwidth       int               `help:"Limit of the job, all its disks together; 0 is none." placeholder:"MIB/S" yaml:"bandwidth"`
	Verify          bool              `help:"Read the backup back after the copy and compare it with its digests." yaml:"verify"`
	Quiesce         string            `help:"Freeze the guest's file systems: off, best_effort or required; best_effort without a value." type:"quiesce" placeholder:"HOW" yaml:"quiesce"`
	Mode            string            `help:"full, incremental or auto." placeholder:"MODE" yaml:"mode"`
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

// TakeJob makes the job that backs src up. The passphrase is read through r.
func TakeJob(src Source, s TakeSettings, r *Passphrases) (*Job, error) {
	repository, err := s.Repository()
	if err != nil {
		return nil, err
	}
	details, err := s.details()
	if err != nil {
		return nil, err
	}
	head, err := newHeader(messages.TypeTake, src.JobID, s.Attempts, s.Timeout)
	if err != nil {
		return nil, err
	}
	cmd := &messages.TakeBackup{
		Header: head, VM: src.VM, BackupPath: s.BackupPath, Repository: repository,
		Quiesce: quiesce(s.Quiesce), Mode: messages.Mode(s.Mode), Details: details,
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
	job := &Job{Zone: src.Zone, Host: src.Host, Command: cmd, chosenID: src.JobID != ""}
	if s.PassphraseFile != "" {
		if !details.Encryption {
			return nil, &Error{
				Class: Usage, Err: fmt.Errorf("there is a passphrase and no encryption"),
				Hint: "Add --encrypt, or leave --passphrase-file out for a backup in the clear.",
			}
		}
		if details.Passphrase != "" {
			return nil, usagef("--passphrase-file and --detail %s contradict each other", messages.DetailPassphrase)
		}
		if job.passphrase, err = r.Read(s.PassphraseFile); err != nil {
			return nil, err
		}
	}
	return job, job.check()
}

// details are those of the flags and of --detail. Where both speak of one detail they must agree:
// picking one could turn a feature off that the other asked for.
func (s TakeSettings) details() (messages.Details, error) {
	flags := messages.Details{
		Compression: s.Compress, CompressionType: s.CompressionType, Encryption: s.Encrypt,
		BandwidthLimit: s.Bandwidth, IntegrityCheck: s.Verify,
	}.Map()
	all := make(map[string]string, len(flags)+len(s.Detail))
	for key, value := range s.Detail {
		if flag, ok := flags[key]; ok && flag != value {
			return messages.Details{}, usagef("--detail %s contradicts a flag, which makes it %s", key, flag)
		}
		all[key] = value
	}
	for key, value := range flags {
		all[key] = value
	}
	// A passphrase that will be sealed later stands for itself here.
	pending := s.PassphraseFile != "" && all[messages.DetailPassphrase] == ""
	if pending {
		all[messages.DetailPassphrase] = sealedLater
	}
	details, err := messages.ParseDetails(all)
	if err != nil {
		return details, refused(err)
	}
	if pending {
		details.Passphrase = ""
	}
	return details, nil
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
