package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/nasfleet/nasfleet/internal/secret"
)

// The files of a server's folder.
const (
	// ConfFile is what nats-server is started with.
	ConfFile = "nats-server.conf"
	// HostsFile lists the hosts' users, where users are nkeys. ConfFile includes it.
	HostsFile = "hosts.conf"
	// CAFile is the certificate that clients check the server's against.
	CAFile = "ca.pem"

	certFile     = "server.pem"
	certKeyFile  = "server.key"
	operatorFile = "operator.jwt"
	jwtFolder    = "jwt"
	storeFolder  = "jetstream"
)

// Server says what configuration to write.
type Server struct {
	// Dir is where it lies, and is named in it.
	Dir string
	// Name of the server, unique in a cluster.
	Name string
	// Listen is host:port.
	Listen string
	// Names are those and the addresses that clients reach it by.
	Names []string
	// Kind says how it knows its users.
	Kind Kind
}

// Write makes the folder of a server, ready to run: its configuration, its certificate and its
// accounts; and in the publisher's key folder what is missing of the keys, and credentials of the
// publisher and of whoever looks after the server. A configuration that exists is refused with
// fs.ErrExist: it is the operator's. Nothing is asked of a running server.
func (s Server) Write(f secret.Folder, now time.Time) error {
	conf := filepath.Join(s.Dir, ConfFile)
	if _, err := os.Lstat(conf); err == nil {
		return fmt.Errorf("%s: %w", conf, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("server folder: %w", err)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("server folder: %w", err)
	}
	if err := s.writeCertificate(f, now); err != nil {
		return err
	}
	write := s.writeNKeys
	if s.Kind == JWT {
		write = s.writeJWTs
	}
	users, err := write(f)
	if err != nil {
		return err
	}
	// Last: a folder without it is made again.
	return replaceFile(conf, []byte(s.head()+users), 0o600)
}

// head is the configuration without the users.
func (s Server) head() string {
	return fmt.Sprintf(`# nasfleet: made by publisher init. Start it with nats-server --config %[1]s
server_name: %[2]s
listen: %[3]s

# Each write is on disk before it is acknowledged: by default a power cut loses two minutes of commands.
jetstream {
  store_dir: %[4]s
  sync_interval: always
}

tls {
  cert_file: %[5]s
  key_file: %[6]s
}
`, quote(filepath.Join(s.Dir, ConfFile)), quote(s.Name), quote(s.Listen), quote(filepath.Join(s.Dir, storeFolder)),
		quote(filepath.Join(s.Dir, certFile)), quote(filepath.Join(s.Dir, certKeyFile)))
}

func (s Server) writeCertificate(f secret.Folder, now time.Time) error {
	ca, err := loadAuthority(f, now)
	if err != nil {
		return err
	}
	cert, key, err := ca.serverCertificate(s.Names, now)
	if err != nil {
		return err
	}
	defer clear(key)
	return errors.Join(
		replaceFile(filepath.Join(s.Dir, CAFile), ca.pem, 0o644),
		replaceFile(filepath.Join(s.Dir, certFile), cert, 0o600),
		replaceFile(filepath.Join(s.Dir, certKeyFile), key, 0o600),
	)
}

func (s Server) writeJWTs(f secret.Folder) (string, error) {
	o, err := loadOperator(f)
	if err != nil {
		return "", err
	}
	token, err := o.token()
	if err != nil {
		return "", err
	}
	if err := replaceFile(filepath.Join(s.Dir, operatorFile), []byte(token), 0o600); err != nil {
		return "", err
	}
	if err := WriteAccounts(f, s.Dir); err != nil {
		return "", err
	}
	for name, account := range map[string]nkeys.KeyPair{PublisherCreds: o.backup, SystemCreds: o.system} {
		data, err := newUser(strings.TrimSuffix(name, ".creds"), account)
		if err == nil {
			err = keep(f, name, data)
		}
		clear(data)
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf(`
operator: %s
system_account: %s
resolver {
  type: full
  dir: %s
  allow_delete: false
  interval: "2m"
}
`, quote(filepath.Join(s.Dir, operatorFile)), public(o.system), quote(filepath.Join(s.Dir, jwtFolder))), nil
}

// AccountJWTs returns the accounts as they are now, by their public keys, with the users that were
// revoked. They are for a server whose users are JWTs.
func AccountJWTs(f secret.Folder) (map[string]string, error) {
	o, err := loadOperator(f)
	if err != nil {
		return nil, err
	}
	hosts, err := NewHosts(f).List()
	if err != nil {
		return nil, err
	}
	return o.accounts(revoked(hosts))
}

// WriteAccounts writes the accounts where a server of that folder finds them when it starts.
func WriteAccounts(f secret.Folder, dir string) error {
	tokens, err := AccountJWTs(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, jwtFolder), 0o700); err != nil {
		return fmt.Errorf("server folder: %w", err)
	}
	for account, token := range tokens {
		if err := replaceFile(filepath.Join(dir, jwtFolder, account+".jwt"), []byte(token), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s Server) writeNKeys(f secret.Folder) (string, error) {
	users := map[string]string{}
	for _, name := range []string{PublisherNKey, SystemNKey} {
		kp, err := loadOrCreateKey(f, name, nkeys.PrefixByteUser)
		if err != nil {
			return "", err
		}
		users[name] = public(kp)
	}
	if err := WriteHosts(f, s.Dir); err != nil {
		return "", err
	}
	return accountsConf(users[SystemNKey], users[PublisherNKey]), nil
}

// accountsConf is the accounts of a server that knows its users by their nkeys.
func accountsConf(system, publisher string) string {
	var imports strings.Builder
	for _, subject := range imported() {
		fmt.Fprintf(&imports, "      {service: {account: %s, subject: %s}}\n", accountBackup, quote(subject))
	}
	fmt.Fprintf(&imports, "      {service: {account: %s, subject: %s}, to: %s}\n",
		accountBackup, quote(api+"CONSUMER.INFO.*.*"), quote(infoSubject+".*.*"))
	return fmt.Sprintf(`
system_account: %[1]s
accounts {
  %[1]s { users: [ {nkey: %[4]s} ] }

  # The streams and buckets live here, and the publisher works here.
  %[2]s {
    jetstream: enabled
    users: [ {nkey: %[5]s} ]
    # All of it is one service, so that a reply to a host cannot pass as a request. What hosts reach is
    # what their account imports.
    exports: [ {service: %[6]s, response: stream, threshold: %[7]s} ]
    imports: [
      {stream: {account: %[3]s, subject: %[8]s}}
      {service: {account: %[3]s, subject: %[9]s}}
    ]
  }

  # Hosts live here, without JetStream: the subject of a reply that a host names is one of this account.
  %[3]s {
    include %[10]s
    exports: [ {stream: %[8]s}, {service: %[9]s} ]
    mappings { %[11]s: %[12]s }
    imports: [
%[13]s    ]
  }
}
`, accountSystem, accountBackup, accountHosts, system, publisher, quote(anyService), quote(responseThreshold.String()),
		quote(progressSubjects()), quote(controlSubjects()), quote(HostsFile),
		quote(api+"CONSUMER.INFO.*.*"), quote(infoSubject+".{{wildcard(1)}}.{{wildcard(2)}}"), imports.String())
}

// WriteHosts writes the list of the hosts' users into a server's folder, for a server that knows
// them by their nkeys. It has to be told to read its configuration again.
func WriteHosts(f secret.Folder, dir string) error {
	hosts, err := NewHosts(f).List()
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, HostsFile), []byte(hostsConf(hosts)), 0o600)
}

func hostsConf(hosts []Host) string {
	var b strings.Builder
	b.WriteString("# The hosts that were added. Made by publisher host add and host revoke.\nusers: [\n")
	for _, h := range hosts {
		if h.RevokedAt != nil {
			continue
		}
		r := hostRights(h.Zone, h.Host)
		fmt.Fprintf(&b, `  { # %s
    nkey: %s
    allowed_connection_types: ["STANDARD"]
    permissions: {
      publish: {allow: [%s]}
      subscribe: {allow: [%s]}
      allow_responses: {max: 1, expires: %s}
    }
  }
`, h.Name(), h.User, quoteAll(r.publish), quoteAll(r.subscribe), quote(controlReply.String()))
	}
	b.WriteString("]\n")
	return b.String()
}

// quote writes a string as nats-server's configuration reads it.
func quote(s string) string { return strconv.Quote(s) }

func quoteAll(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = quote(s)
	}
	return strings.Join(quoted, ", ")
}
