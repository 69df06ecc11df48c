package scrape

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// server is an API server of which a test says what it answers; the real one answers in
// pkg/kube's tests.
type server struct {
	users   map[string]string // by token
	may     map[string]bool   // "user verb path"
	down    bool
	reviews int
}

func (s *server) ReviewToken(_ context.Context, token string) (u authenticationv1.UserInfo, ok bool, err error) {
	if s.down {
		return u, false, errors.New("connection refused")
	}
	s.reviews++
	u.Username, ok = s.users[token]
	return u, ok, nil
}

func (s *server) ReviewAccess(_ context.Context, user authenticationv1.UserInfo, verb, path string) (bool, error) {
	return s.may[user.Username+" "+verb+" "+path], nil
}

func TestWhoMayRead(t *testing.T) {
	api := &server{users: map[string]string{"p": "prometheus", "o": "other"}, may: map[string]bool{"prometheus get /metrics": true}}
	h := NewGuard(api, slog.New(slog.DiscardHandler)).Protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the metrics") }))
	for _, tc := range []struct {
		name, method, path, authorization string
		status                            int
	}{
		{"allowed", "GET", "/metrics", "Bearer p", 200},
		{"allowed again", "GET", "/metrics", "bearer  p", 200},
		{"another path", "GET", "/healthz", "Bearer p", 403},
		{"another method", "POST", "/metrics", "Bearer p", 403},
		{"another user", "GET", "/metrics", "Bearer o", 403},
		{"a token of nobody", "GET", "/metrics", "Bearer x", 401},
		{"no token", "GET", "/metrics", "", 401},
		{"an empty token", "GET", "/metrics", "Bearer ", 401},
		{"a password", "GET", "/metrics", "Basic cDpw", 401},
		{"too long a token", "GET", "/metrics", "Bearer " + strings.Repeat("p", maxToken+1), 401},
	} {
		r := httptest.NewRequest(tc.method, tc.path, nil)
		r.Header.Set("Authorization", tc.authorization)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tc.status {
			t.Errorf("%s: %d %s, want %d", tc.name, w.Code, w.Body, tc.status)
		}
		if strings.Contains(w.Body.String(), "the metrics") != (tc.status == 200) {
			t.Errorf("%s: body %q", tc.name, w.Body)
		}
	}
}

// TestAnswersLast: an answer holds for its time, and those who were allowed read on while
// the API server is away, for an hour.
func TestAnswersLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{users: map[string]string{"p": "prometheus"}, may: map[string]bool{"prometheus get /metrics": true}}
		h := NewGuard(api, slog.New(slog.DiscardHandler)).Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		get := func(token string) int {
			r := httptest.NewRequest("GET", "/metrics", nil)
			r.Header.Set("Authorization", "Bearer "+token)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Code
		}
		want := func(when, token string, status, reviews int) {
			t.Helper()
			if got := get(token); got != status || api.reviews != reviews {
				t.Errorf("%s: %d after %d reviews, want %d after %d", when, got, api.reviews, status, reviews)
			}
		}
		want("first", "p", 200, 1)
		want("at once", "p", 200, 1)
		time.Sleep(allowedFor - time.Second)
		want("before it is old", "p", 200, 1)
		time.Sleep(2 * time.Second)
		want("when it is old", "p", 200, 2)
		want("a stranger", "x", 401, 3)
		want("a stranger again", "x", 401, 3)
		time.Sleep(refusedFor)
		want("a stranger later", "x", 401, 4)

		api.down = true
		time.Sleep(allowedFor)
		want("without the API server", "p", 200, 4)
		want("a stranger without the API server", "x", 503, 4)
		want("one that nobody knows, without the API server", "y", 503, 4)
		time.Sleep(allowedWithout)
		want("long without the API server", "p", 503, 4)

		api.down = false
		want("with it again", "p", 200, 5)
		delete(api.users, "p")
		time.Sleep(allowedFor + time.Second)
		want("a token that was taken back", "p", 401, 6)
		api.down = true
		time.Sleep(refusedFor)
		want("a token that was taken back, without the API server", "p", 503, 6)
	})
}

// TestFlood: many tokens cost the API server few questions, and do not drive out who reads.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{users: map[string]string{"p": "prometheus"}, may: map[string]bool{"prometheus get /metrics": true}}
		var log strings.Builder
		g := NewGuard(api, slog.New(slog.NewTextHandler(&log, nil)))
		h := g.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		get := func(from, token string) int {
			r := httptest.NewRequest("GET", "/metrics", nil)
			r.RemoteAddr = net.JoinHostPort(from, "4711")
			r.Header.Set("Authorization", "Bearer "+token)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Code
		}
		const reader, other = "2001:db8::9", "192.0.2.66"
		if got := get(reader, "p"); got != 200 {
			t.Fatal(got)
		}
		for second := range 200 {
			for i := range 100 {
				get(other, fmt.Sprintf("x%d-%d", second, i))
			}
			if second == 100 { // the token is a new one
				api.users["q"], api.users["p"] = "prometheus", ""
			}
			if got := get(reader, map[bool]string{false: "p", true: "q"}[second >= 100]); got != 200 {
				t.Fatalf("after %d s of a flood the reader gets %d", second, got)
			}
			time.Sleep(time.Second)
		}
		if limit := 2*questionsAtOnce + 201*questionsPerSecond; api.reviews > limit || len(g.known) > maxKnown {
			t.Errorf("%d questions and %d answers remembered, want at most %d and %d", api.reviews, len(g.known), limit, maxKnown)
		}
		if n := strings.Count(log.String(), "level=WARN"); n == 0 || n > 5 {
			t.Errorf("%d lines in the log, want one a minute:\n%s", n, log.String())
		}
		for i := range 2 * maxSources {
			get(fmt.Sprintf("2001:db8:1::%x", i), "y")
		}
		if len(g.sources) > maxSources+1 {
			t.Errorf("%d addresses have a limit of their own", len(g.sources))
		}
	})
}

func TestOwnCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config, err := TLS("", "", "node1", []netip.Addr{netip.MustParseAddr("2001:db8::11"), netip.MustParseAddr("192.0.2.11")})
		if err != nil {
			t.Fatal(err)
		}
		get := func() *x509.Certificate {
			c, err := config.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			return c.Leaf
		}
		first := get()
		for _, host := range []string{"node1", "2001:db8::11", "192.0.2.11"} {
			if err := first.VerifyHostname(host); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
		if !get().Equal(first) {
			t.Error("each connection gets another certificate")
		}
		time.Sleep(validity - renewal + time.Minute)
		second := get()
		if second.Equal(first) || time.Until(second.NotAfter) < renewal {
			t.Errorf("a certificate that ends at %s is not renewed", second.NotAfter)
		}
	})
}

func TestCertificateFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write := func(name string) {
		t.Helper()
		own := &ownCertificate{name: name}
		made, err := own.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(made.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: made.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
			if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := TLS(cert, key, "", nil); err == nil {
		t.Error("files that are missing are no error")
	}
	if _, err := TLS(cert, "", "", nil); err == nil || !strings.Contains(err.Error(), "--metrics-key-file") {
		t.Errorf("one file alone: %v", err)
	}
	write("first")
	config, err := TLS(cert, key, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	served := func() string {
		c, err := config.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.DNSNames[0]
	}
	if got := served(); got != "first" {
		t.Errorf("served is that of %s", got)
	}
	write("second")
	later := time.Now().Add(time.Second)
	for _, f := range []string{cert, key} {
		if err := os.Chtimes(f, later, later); err != nil {
			t.Fatal(err)
		}
	}
	if got := served(); got != "second" {
		t.Errorf("after a change, served is that of %s", got)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if got := served(); got != "second" {
		t.Errorf("while the files change, served is that of %s", got)
	}
	if config.MinVersion < tls.VersionTLS12 {
		t.Error("versions of TLS that are broken are spoken")
	}
}
