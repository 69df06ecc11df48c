// Package pki makes a cluster's keys and certificates: one authority that the API
// server, the kubelets and their clients trust. What exists is kept, so that a
// second run changes nothing. The keys are for a cluster that cannot be reached from outside
// the machine, and are in a directory that only root can read.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// lifetime of all certificates: longer than any lab lives.
const lifetime = 2 * 365 * 24 * time.Hour

// Authority signs certificates and keeps them in a directory.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Open reads the authority in dir, or makes it.
func Open(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &Authority{dir: dir}
	if cert, key, err := a.read("ca"); err == nil {
		a.cert, a.key = cert, key
		return a, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert := template(pkix.Name{CommonName: "flock-lab"})
	cert.IsCA, cert.BasicConstraintsValid = true, true
	cert.KeyUsage |= x509.KeyUsageCertSign
	a.cert, a.key = cert, key
	if err := a.write("ca", cert, key); err != nil {
		return nil, err
	}
	a.cert, a.key, err = a.read("ca")
	return a, err
}

// Cert is the file with the certificate of that name; Key with its key.
func (a *Authority) Cert(name string) string { return filepath.Join(a.dir, name+".crt") }

// Key is the file with the key of that name.
func (a *Authority) Key(name string) string { return filepath.Join(a.dir, name+".key") }

// CA is the file with the authority's own certificate.
func (a *Authority) CA() string { return a.Cert("ca") }

// Client has a certificate for a user of the API server, in groups.
func (a *Authority) Client(name, user string, groups ...string) error {
	t := template(pkix.Name{CommonName: user, Organization: groups})
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.ensure(name, t)
}

// Server has a certificate for a server with these names and addresses.
func (a *Authority) Server(name string, names []string, addrs []netip.Addr) error {
	t := template(pkix.Name{CommonName: name})
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.DNSNames = names
	for _, addr := range addrs {
		t.IPAddresses = append(t.IPAddresses, net.IP(addr.AsSlice()))
	}
	return a.ensure(name, t)
}

// SigningKey has a key that signs tokens, no certificate.
func (a *Authority) SigningKey(name string) error {
	if _, err := os.Stat(a.Key(name)); err == nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return writeKey(a.Key(name), key)
}

// Kubeconfig is a kubectl configuration for the server at a URL, with the
// certificate of that name in it.
func (a *Authority) Kubeconfig(name, url string) ([]byte, error) {
	files := make([]any, 0, 4)
	for _, f := range []string{a.CA(), a.Cert(name), a.Key(name)} {
		content, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		files = append(files, base64.StdEncoding.EncodeToString(content))
	}
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: lab
clusters:
- name: lab
  cluster:
    server: %s
    certificate-authority-data: %s
contexts:
- name: lab
  context: {cluster: lab, user: lab}
users:
- name: lab
  user:
    client-certificate-data: %s
    client-key-data: %s
`, append([]any{url}, files...)...), nil
}

// ensure signs t unless there is such a certificate of this authority.
func (a *Authority) ensure(name string, t *x509.Certificate) error {
	if cert, _, err := a.read(name); err == nil && cert.CheckSignatureFrom(a.cert) == nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return a.write(name, t, key)
}

func template(subject pkix.Name) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func (a *Authority) write(name string, t *x509.Certificate, key *ecdsa.PrivateKey) error {
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	id := sha256.Sum256(public)
	t.SubjectKeyId = id[:20]
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign certificate %s: %w", name, err)
	}
	if err := writeKey(a.Key(name), key); err != nil {
		return err
	}
	return os.WriteFile(a.Cert(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

func writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func (a *Authority) read(name string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	blocks := make([][]byte, 2)
	for i, file := range []string{a.Cert(name), a.Key(name)} {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		block, _ := pem.Decode(content)
		if block == nil {
			return nil, nil, fmt.Errorf("%s holds no PEM block", file)
		}
		blocks[i] = block.Bytes
	}
	cert, err := x509.ParseCertificate(blocks[0])
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParseECPrivateKey(blocks[1])
	return cert, key, err
}
