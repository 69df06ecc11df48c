package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	ca, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Client("admin", "lab-admin", "system:masters"); err != nil {
		t.Fatal(err)
	}
	if err := ca.Server("api", []string{"kubernetes"}, []netip.Addr{netip.MustParseAddr("2001:db8::2")}); err != nil {
		t.Fatal(err)
	}
	if err := ca.SigningKey("tokens"); err != nil {
		t.Fatal(err)
	}

	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	client := load(t, ca, "admin")
	if _, err := client.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if client.Subject.CommonName != "lab-admin" || client.Subject.Organization[0] != "system:masters" {
		t.Errorf("subject %s", client.Subject)
	}
	server := load(t, ca, "api")
	for _, name := range []string{"kubernetes", "2001:db8::2"} {
		if _, err := server.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	config, err := ca.Kubeconfig("admin", "https://[2001:db8::2]:6443")
	if err != nil || !strings.Contains(string(config), "server: https://[2001:db8::2]:6443\n") {
		t.Errorf("kubeconfig %s (%v)", config, err)
	}

	// A second run keeps what is there; what another authority signed is no good.
	was := files(t, dir)
	if ca, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	if err := ca.Client("admin", "lab-admin", "system:masters"); err != nil {
		t.Fatal(err)
	}
	if is := files(t, dir); is["admin.crt"] != was["admin.crt"] || is["ca.crt"] != was["ca.crt"] {
		t.Error("a second run made new certificates")
	}
	for _, f := range []string{"ca.crt", "ca.key"} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	if ca, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	if err := ca.Client("admin", "lab-admin", "system:masters"); err != nil {
		t.Fatal(err)
	}
	if is := files(t, dir); is["admin.crt"] == was["admin.crt"] {
		t.Error("kept a certificate of another authority")
	}
}

func load(t *testing.T, ca *Authority, name string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(ca.Cert(name), ca.Key(name))
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		found[e.Name()] = string(content)
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v (%v): others may read it", e.Name(), info.Mode(), err)
		}
	}
	return found
}
