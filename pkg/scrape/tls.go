package scrape

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"

	"flock.fritzlab.net/flock/internal/sys"
)

const (
	// validity of a certificate that the agent makes itself; a new one follows when less
	// than renewal is left.
	validity, renewal = 365 * 24 * time.Hour, 30 * 24 * time.Hour
	// skew is how far the clocks of two machines may differ.
	skew = time.Hour
)

// TLS is the configuration of a server with the certificate in the two PEM files, which
// are read again when they change. Without files it has one that it makes itself, for the
// node's name and addresses, and that no client can verify: it keeps listeners out, and
// the token is what tells the client from others.
func TLS(certFile, keyFile, nodeName string, addresses []netip.Addr) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	switch {
	case certFile == "" && keyFile == "":
		own := &ownCertificate{name: nodeName, addresses: addresses}
		config.GetCertificate = own.get
	case certFile == "" || keyFile == "":
		return nil, errors.New("--metrics-cert-file and --metrics-key-file: set both or neither")
	default:
		files := &fileCertificate{cert: certFile, key: keyFile}
		config.GetCertificate = files.get
	}
	_, err := config.GetCertificate(nil)
	return config, err
}

// ownCertificate makes a certificate when there is none, or it ends soon.
type ownCertificate struct {
	name      string
	addresses []netip.Addr

	mu   sync.Mutex
	made *tls.Certificate
}

func (o *ownCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.made != nil && time.Until(o.made.Leaf.NotAfter) > renewal {
		return o.made, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "flock-agent on " + o.name},
		DNSNames:     []string{o.name},
		NotBefore:    now.Add(-skew), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, a := range o.addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(a.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	o.made = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	return o.made, nil
}

// fileCertificate reads the files when one of them has changed.
type fileCertificate struct {
	cert, key string

	mu     sync.Mutex
	stamps [2]time.Time
	read   *tls.Certificate
}

func (f *fileCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var stamps [2]time.Time
	for i, file := range []string{f.cert, f.key} {
		st, err := sys.Stat(file)
		if err != nil {
			return f.last(err)
		}
		stamps[i] = st.ModTime()
	}
	if f.read != nil && stamps == f.stamps {
		return f.read, nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return f.last(fmt.Errorf("--metrics-cert-file=%s, --metrics-key-file=%s: %w", f.cert, f.key, err))
	}
	f.read, f.stamps = &pair, stamps
	return f.read, nil
}

// last serves on with what was read before: the files may be half way through a change.
func (f *fileCertificate) last(err error) (*tls.Certificate, error) {
	if f.read != nil {
		return f.read, nil
	}
	return nil, err
}
