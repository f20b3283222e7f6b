package access

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"time"

	"github.com/nasfleet/nasfleet/internal/secret"
)

const (
	caYears     = 20
	serverYears = 2
)

// authority is the fleet's own certificate authority: clients are given its certificate alone.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// loadAuthority reads the authority of the key folder, or makes one.
func loadAuthority(f secret.Folder, now time.Time) (*authority, error) {
	certPEM, err := f.Read(caCert)
	if errors.Is(err, fs.ErrNotExist) {
		return newAuthority(f, now)
	}
	if err != nil {
		return nil, err
	}
	keyPEM, err := f.Read(caKey)
	if err != nil {
		return nil, err
	}
	defer clear(keyPEM)
	certBlock, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("%s and %s do not hold a certificate and its key", f.Path(caCert), f.Path(caKey))
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path(caCert), err)
	}
	key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path(caKey), err)
	}
	return &authority{cert: cert, key: key, pem: certPEM}, nil
}

func newAuthority(f secret.Folder, now time.Time) (*authority, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "nasfleet"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(caYears, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	certPEM, keyPEM, err := certificate(template, nil)
	if err != nil {
		return nil, err
	}
	defer clear(keyPEM)
	// The certificate last: without it none is there.
	if err := keep(f, caKey, keyPEM); err != nil {
		return nil, err
	}
	if err := keep(f, caCert, certPEM); err != nil {
		return nil, err
	}
	return loadAuthority(f, now)
}

// serverCertificate makes a certificate for a server that is reached by these names or addresses.
func (a *authority) serverCertificate(names []string, now time.Time) (certPEM, keyPEM []byte, err error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "nasfleet NATS server"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(serverYears, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return certificate(template, a)
}

// certificate signs a template with a new key of its own; without a signer it signs itself.
func certificate(template *x509.Certificate, by *authority) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate: %w", err)
	}
	defer clear(private)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), nil
}
