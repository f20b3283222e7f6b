package access

import (
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/nasfleet/nasfleet/internal/secret"
)

// operator is the fleet's own NATS operator: the keys of its accounts.
type operator struct {
	self, system, backup, hosts, adding nkeys.KeyPair
}

// loadOperator reads the operator's keys, or makes those that are missing.
func loadOperator(f secret.Folder) (*operator, error) {
	o := &operator{}
	for _, k := range []struct {
		name   string
		prefix nkeys.PrefixByte
		to     *nkeys.KeyPair
	}{
		{operatorKey, nkeys.PrefixByteOperator, &o.self},
		{systemKey, nkeys.PrefixByteAccount, &o.system},
		{backupKey, nkeys.PrefixByteAccount, &o.backup},
		{hostsKey, nkeys.PrefixByteAccount, &o.hosts},
		{addingKey, nkeys.PrefixByteAccount, &o.adding},
	} {
		kp, err := loadOrCreateKey(f, k.name, k.prefix)
		if err != nil {
			return nil, err
		}
		*k.to = kp
	}
	return o, nil
}

// claims is what an nkey can sign.
type claims interface {
	Encode(nkeys.KeyPair) (string, error)
	Validate(*jwt.ValidationResults)
}

func encode(c claims, by nkeys.KeyPair) (string, error) {
	var results jwt.ValidationResults
	c.Validate(&results)
	if errs := results.Errors(); len(errs) > 0 {
		return "", errs[0]
	}
	return c.Encode(by)
}

// public returns the public half of a key that was made by loadOrCreateKey, which has one.
func public(kp nkeys.KeyPair) string {
	s, err := kp.PublicKey()
	if err != nil {
		return ""
	}
	return s
}

func (o *operator) token() (string, error) {
	c := jwt.NewOperatorClaims(public(o.self))
	c.Name = "nasfleet"
	c.SystemAccount = public(o.system)
	return encode(c, o.self)
}

// accounts returns the JWTs of all accounts, by their public keys.
func (o *operator) accounts(revoked []string) (map[string]string, error) {
	system := jwt.NewAccountClaims(public(o.system))
	system.Name = accountSystem
	system.Exports = jwt.Exports{
		// As nats-server itself exports them from a system account that is not a JWT.
		&jwt.Export{Name: "account-monitoring-services", Subject: "$SYS.REQ.ACCOUNT.*.*", Type: jwt.Service, ResponseType: jwt.ResponseTypeStream, AccountTokenPosition: 4},
	}
	tokens := map[string]string{}
	for _, c := range []*jwt.AccountClaims{system, o.backupAccount(), o.hostsAccount(revoked)} {
		token, err := encode(c, o.self)
		if err != nil {
			return nil, fmt.Errorf("account %s: %w", c.Name, err)
		}
		tokens[c.Subject] = token
	}
	return tokens, nil
}

func (o *operator) backupAccount() *jwt.AccountClaims {
	c := jwt.NewAccountClaims(public(o.backup))
	c.Name = accountBackup
	c.Limits.JetStreamLimits = jwt.JetStreamLimits{
		MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit,
	}
	c.Exports = jwt.Exports{&jwt.Export{
		Name: "for hosts", Subject: anyService, Type: jwt.Service,
		ResponseType: jwt.ResponseTypeStream, ResponseThreshold: responseThreshold,
	}}
	c.Imports = jwt.Imports{
		&jwt.Import{Name: "progress", Subject: jwt.Subject(progressSubjects()), Account: public(o.hosts), Type: jwt.Stream},
		&jwt.Import{Name: "control", Subject: jwt.Subject(controlSubjects()), Account: public(o.hosts), Type: jwt.Service},
	}
	return c
}

// hostsAccount has one signing key, with which users come out with a host's rights and no others,
// whatever is asked for: the server takes them from here and fills in the zone and the host.
func (o *operator) hostsAccount(revoked []string) *jwt.AccountClaims {
	c := jwt.NewAccountClaims(public(o.hosts))
	c.Name = accountHosts
	c.Exports = jwt.Exports{
		&jwt.Export{Name: "progress", Subject: jwt.Subject(progressSubjects()), Type: jwt.Stream},
		&jwt.Export{Name: "control", Subject: jwt.Subject(controlSubjects()), Type: jwt.Service},
	}
	for _, subject := range imported() {
		c.Imports = append(c.Imports, &jwt.Import{Name: subject, Subject: jwt.Subject(subject), Account: public(o.backup), Type: jwt.Service})
	}
	c.Imports = append(c.Imports, &jwt.Import{
		Name: "queues", Subject: api + "CONSUMER.INFO.*.*", LocalSubject: infoSubject + ".$1.$2", Account: public(o.backup), Type: jwt.Service,
	})
	c.Mappings = jwt.Mapping{api + "CONSUMER.INFO.*.*": {{Subject: infoSubject + ".{{wildcard(1)}}.{{wildcard(2)}}"}}}
	scope := jwt.NewUserScope()
	scope.Key, scope.Role, scope.Description = public(o.adding), "host", "a worker of one host"
	r := hostRights("{{tag(zone)}}", "{{tag(host)}}")
	scope.Template.Pub.Allow.Add(r.publish...)
	scope.Template.Sub.Allow.Add(r.subscribe...)
	scope.Template.Resp = &jwt.ResponsePermission{MaxMsgs: 1, Expires: controlReply}
	scope.Template.AllowedConnectionTypes.Add(jwt.ConnectionTypeStandard)
	c.SigningKeys.AddScopedSigner(scope)
	for _, user := range revoked {
		c.RevokeAt(user, time.Now())
	}
	return c
}

// user returns credentials for a new user of an account that its own key signs.
func newUser(name string, account nkeys.KeyPair) ([]byte, error) {
	kp, err := nkeys.CreateUser()
	if err != nil {
		return nil, fmt.Errorf("make a user: %w", err)
	}
	defer kp.Wipe()
	c := jwt.NewUserClaims(public(kp))
	c.Name = name
	return creds(c, account, kp)
}

// newHost returns credentials for a new user of a host, and its public key. The folder's adding key
// alone is needed, and the public key of the account.
func newHost(adding nkeys.KeyPair, account, zone, host string) (data []byte, user string, err error) {
	kp, err := nkeys.CreateUser()
	if err != nil {
		return nil, "", fmt.Errorf("make a user: %w", err)
	}
	defer kp.Wipe()
	c := jwt.NewUserClaims(public(kp))
	c.Name = zone + "/" + host
	c.IssuerAccount = account
	c.UserPermissionLimits = jwt.UserPermissionLimits{} // those of the signing key's template
	c.Tags.Add("zone:"+zone, "host:"+host)
	data, err = creds(c, adding, kp)
	return data, public(kp), err
}

func creds(c *jwt.UserClaims, by, user nkeys.KeyPair) ([]byte, error) {
	token, err := encode(c, by)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", c.Name, err)
	}
	seed, err := user.Seed() // the pair's own, which the caller wipes
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", c.Name, err)
	}
	return jwt.FormatUserConfig(token, seed)
}
