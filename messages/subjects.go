package messages

import "strings"

// The streams and buckets of JetStream that nasfleet lives on, and who writes them:
//
//	BACKUP_JOBS_<zone>  commands; limits retention, so that a job can be replayed (30 days)
//	BACKUP_EVENTS       lasting events (90 days)
//	BACKUP_HOSTS        KV, key <zone>.<host>: hosts that are alive, with a TTL
//	BACKUP_CATALOG      KV, key <zone>.<host>.<backup id>: what backups exist
//	BACKUP_ZONES        KV, keys <zone> and <zone>.<revision>: settings and sealed passphrases of the
//	                    zones; the management side's alone, hosts have no right to it
const (
	EventStream   = "BACKUP_EVENTS"
	HostBucket    = "BACKUP_HOSTS"
	CatalogBucket = "BACKUP_CATALOG"
	ZoneBucket    = "BACKUP_ZONES"
)

// SignatureHeader is the header of a command's message that holds the publisher's signature of it.
const SignatureHeader = "Nasfleet-Signature"

// JobStream returns the name of the stream that keeps a zone's commands.
func JobStream(zone string) string { return "BACKUP_JOBS_" + zone }

// JobSubject is where one job's command is published: backup.jobs.<zone>.<host>.<job>. With "*"
// for an argument it is the filter over all of them, as in each function below. The functions
// check nothing: an argument that comes from outside has to pass CheckLabel or CheckID first.
func JobSubject(zone, host, job string) string { return subject("jobs", zone, host, job) }

// EventSubject is where one lasting event is published: backup.events.<zone>.<host>.<job>.<kind>.
func EventSubject(zone, host, job string, kind Kind) string {
	return subject("events", zone, host, job, string(kind))
}

// ProgressSubject carries a running job's progress, about once a second, on core NATS.
func ProgressSubject(zone, host, job string) string { return subject("progress", zone, host, job) }

// ControlSubject takes a host's cancel and bandwidth requests, on core NATS.
func ControlSubject(zone, host string) string { return subject("control", zone, host) }

// HostKey is a host's key in HostBucket.
func HostKey(zone, host string) string { return zone + "." + host }

// CatalogKey is a backup's key in CatalogBucket.
func CatalogKey(zone, host, backup string) string { return zone + "." + host + "." + backup }

// ZoneKey is the key of a zone's settings in ZoneBucket.
func ZoneKey(zone string) string { return zone }

// PassphraseKey is the key of a passphrase of a zone in ZoneBucket.
func PassphraseKey(zone, revision string) string { return zone + "." + revision }

// ParseJobSubject takes a JobSubject apart. ok is false where the subject is not one, or is a
// filter. Zone and host have then passed CheckLabel; job is any literal token, because a command
// written by hand may lie on a subject that ends in no ULID and has to be refused by that name.
func ParseJobSubject(s string) (zone, host, job string, ok bool) {
	t := strings.Split(s, ".")
	if len(t) != 5 || t[0] != "backup" || t[1] != "jobs" {
		return "", "", "", false
	}
	if CheckLabel("zone", t[2]) != nil || CheckLabel("host", t[3]) != nil || t[4] == "" || t[4] == "*" || t[4] == ">" {
		return "", "", "", false
	}
	return t[2], t[3], t[4], true
}

func subject(tokens ...string) string { return "backup." + strings.Join(tokens, ".") }
