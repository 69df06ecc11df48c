package otlp

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// secret is a piece of what nobody may see.
const secret = "ZZZ"

func environment(of map[string]string) func(string) string {
	return func(name string) string { return of[name] }
}

func TestFromEnvironment(t *testing.T) {
	const all, traces = "OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"
	for name, c := range map[string]struct {
		env     map[string]string
		headers string
		gzip    bool
		ca      string
		err     string // begins so
	}{
		"nothing": {},
		"all": {env: map[string]string{all + "HEADERS": "authorization=Basic%20dXNlcjpwYXNz,x-tenant = shop", all + "COMPRESSION": "gzip", all + "CERTIFICATE": "/ca.crt"},
			headers: "Authorization: Basic dXNlcjpwYXNz X-Tenant: shop", gzip: true, ca: "/ca.crt"},
		"traces go before all": {env: map[string]string{
			all + "HEADERS": "a=1,b=2", traces + "HEADERS": "c=3", all + "COMPRESSION": "gzip", traces + "COMPRESSION": "none", all + "CERTIFICATE": "/a", traces + "CERTIFICATE": "/b"},
			headers: "C: 3", ca: "/b"},
		"empty is none":             {env: map[string]string{all + "HEADERS": "a=1", traces + "HEADERS": "", traces + "COMPRESSION": " ", all + "COMPRESSION": "GZIP"}, headers: "A: 1", gzip: true},
		"values with =, and spaces": {env: map[string]string{all + "HEADERS": "authorization=Bearer abc==, ,b="}, headers: "Authorization: Bearer abc== B: "},
		"a plus is a plus":          {env: map[string]string{all + "HEADERS": "a=1+2%2B3"}, headers: "A: 1+2+3"},
		"the last of two":           {env: map[string]string{all + "HEADERS": "a=1,A=2"}, headers: "A: 2"},
		"properties are no thing":   {env: map[string]string{all + "HEADERS": "a=1;b=2"}, headers: "A: 1;b=2"},
		"another compression":       {env: map[string]string{all + "COMPRESSION": "zstd"}, err: `OTEL_EXPORTER_OTLP_COMPRESSION="zstd": want gzip or none`},
		"of traces":                 {env: map[string]string{traces + "COMPRESSION": "zstd"}, err: `OTEL_EXPORTER_OTLP_TRACES_COMPRESSION="zstd": want gzip or none`},
		"no =":                      {env: map[string]string{all + "HEADERS": "a=1,ZZZ"}, err: "OTEL_EXPORTER_OTLP_HEADERS: entry 2 has no =: want name=value"},
		"a comma in a secret":       {env: map[string]string{traces + "HEADERS": "a=ZZZ,Z ZZZ=="}, err: "OTEL_EXPORTER_OTLP_TRACES_HEADERS: entry 2 has no name of a header before its =: want name=value"},
		"no name":                   {env: map[string]string{all + "HEADERS": "=ZZZ"}, err: "OTEL_EXPORTER_OTLP_HEADERS: entry 1 has no name of a header before its =: want name=value"},
		"no escape":                 {env: map[string]string{all + "HEADERS": "a=ZZZ%ZZ"}, err: "OTEL_EXPORTER_OTLP_HEADERS: entry 1 has a % that begins no escape: want name=value"},
		"a line break":              {env: map[string]string{all + "HEADERS": "a=ZZZ%0D%0Ab: c"}, err: "OTEL_EXPORTER_OTLP_HEADERS: entry 1 has a control character in its value: want name=value"},
		"flock's own":               {env: map[string]string{all + "HEADERS": "a=ZZZ,content-type=ZZZ"}, err: "OTEL_EXPORTER_OTLP_HEADERS: entry 2 is the header Content-Type, which flock sets itself: leave it out"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FromEnvironment(environment(c.env))
			if c.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), c.err) || strings.Contains(err.Error(), secret) {
					t.Errorf("%v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var headers []string
			for _, name := range []string{"A", "Authorization", "B", "C", "X-Tenant"} {
				if v, ok := got.headers[name]; ok {
					headers = append(headers, name+": "+strings.Join(v, "|"))
				}
			}
			if strings.Join(headers, " ") != c.headers || got.compress != c.gzip || got.ca.value != c.ca {
				t.Errorf("headers %q, gzip %t, CA %q; want %q, %t, %q", headers, got.compress, got.ca.value, c.headers, c.gzip, c.ca)
			}
		})
	}
}

// secureCollector is a collector with TLS and a CA of its own.
type secureCollector struct {
	*httptest.Server
	caFile      string
	certificate atomic.Pointer[tls.Certificate]
	got         chan *http.Request
	bodies      chan []byte
}

func newSecureCollector(t *testing.T, answer http.HandlerFunc) *secureCollector {
	t.Helper()
	c := &secureCollector{caFile: filepath.Join(t.TempDir(), "ca.crt"), got: make(chan *http.Request, 10), bodies: make(chan []byte, 10)}
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		c.got <- r
		c.bodies <- body
		if answer != nil {
			answer(w, r)
		}
	}))
	c.Server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // handshakes fail here
	c.renew(t)
	c.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*c.certificate.Load()}}, nil
	}}
	c.StartTLS()
	t.Cleanup(c.Close)
	return c
}

// renew writes a new CA, and gives the server a certificate of it.
func (c *secureCollector) renew(t *testing.T) {
	t.Helper()
	sign := func(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) []byte {
		template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := newKey(), newKey()
	ca := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER := sign(ca, ca, caKey, caKey)
	ca, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	der := sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, key, caKey)
	if err := os.WriteFile(c.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), 0o600); err != nil {
		t.Fatal(err)
	}
	c.certificate.Store(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
}

// exporter returns one with the variables, that is not running, and its log.
func exporter(t *testing.T, url string, env map[string]string) (*Exporter, *bytes.Buffer) {
	t.Helper()
	endpoint, err := ParseEndpoint(url)
	if err != nil {
		t.Fatal(err)
	}
	settings, err := FromEnvironment(environment(env))
	if err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	return New(Config{Endpoint: endpoint, Settings: settings, Log: slog.New(slog.NewTextHandler(log, nil))}), log
}

// TestHTTPS: a collector with a private CA gets the headers, and compressed spans.
func TestHTTPS(t *testing.T) {
	for _, compression := range []string{"gzip", "none"} {
		t.Run(compression, func(t *testing.T) {
			c := newSecureCollector(t, nil)
			e, _ := exporter(t, c.URL, map[string]string{
				"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20ZZZ,x-tenant=shop", "OTEL_EXPORTER_OTLP_COMPRESSION": compression, "OTEL_EXPORTER_OTLP_CERTIFICATE": c.caFile,
			})
			if err := e.post(t.Context(), []Trace{call("ADD")}); err != nil {
				t.Fatal(err)
			}
			r, body := <-c.got, <-c.bodies
			if r.URL.Path != "/v1/traces" || r.Header.Get("Authorization") != "Bearer ZZZ" || r.Header.Get("X-Tenant") != "shop" || r.Header.Get("Content-Type") != "application/x-protobuf" {
				t.Errorf("%s with %v", r.URL.Path, r.Header)
			}
			if got, want := r.Header.Get("Content-Encoding"), map[string]string{"gzip": "gzip"}[compression]; got != want {
				t.Errorf("encoding %q, want %q", got, want)
			}
			if compression == "gzip" {
				z, err := gzip.NewReader(bytes.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				if body, err = io.ReadAll(z); err != nil {
					t.Fatal(err)
				}
			}
			var message collectorpb.ExportTraceServiceRequest
			if err := proto.Unmarshal(body, &message); err != nil {
				t.Fatal(err)
			}
			if spans := message.ResourceSpans[0].ScopeSpans[0].Spans; len(spans) != 3 || spans[0].Name != "ADD" {
				t.Errorf("spans %v", spans)
			}
		})
	}
}

// TestCA: only a collector of the CA in the file gets anything, and the file may change while the
// program runs.
func TestCA(t *testing.T) {
	c := newSecureCollector(t, nil)
	post := func(e *Exporter) string {
		if err := e.post(t.Context(), []Trace{call("ADD")}); err != nil {
			return err.Error()
		}
		<-c.bodies
		return (<-c.got).Header.Get("A")
	}
	without, _ := exporter(t, c.URL, map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "a=ZZZ"})
	if said := post(without); !strings.Contains(said, "certificate signed by unknown authority") {
		t.Errorf("without the CA: %s", said)
	}
	other := newSecureCollector(t, nil)
	wrong, _ := exporter(t, c.URL, map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "a=ZZZ", "OTEL_EXPORTER_OTLP_CERTIFICATE": other.caFile})
	if said := post(wrong); !strings.Contains(said, "certificate signed by unknown authority") {
		t.Errorf("with another CA: %s", said)
	}

	e, _ := exporter(t, c.URL, map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "a=1", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": c.caFile})
	if said := post(e); said != "1" {
		t.Error(said)
	}
	transport := e.client.Transport
	if said := post(e); said != "1" || e.client.Transport != transport {
		t.Errorf("a file that is the same makes a new connection: %s", said)
	}
	c.renew(t)
	c.CloseClientConnections()
	if said := post(e); said != "1" {
		t.Errorf("with a renewed CA: %s", said)
	}
	for content, want := range map[string]string{"nonsense": "it has no certificate", "": "it has no certificate"} {
		if err := os.WriteFile(c.caFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if said, want := post(e), fmt.Sprintf("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE=%q: %s: want a PEM file with the certificate of the collector's CA", c.caFile, want); said != want {
			t.Errorf("%s, want %s", said, want)
		}
	}
	if err := os.Remove(c.caFile); err != nil {
		t.Fatal(err)
	}
	if said := post(e); !strings.Contains(said, ": no such file or directory: want a PEM file") {
		t.Error(said)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	unused, _ := exporter(t, plain.URL, map[string]string{"OTEL_EXPORTER_OTLP_CERTIFICATE": c.caFile})
	if said := post(unused); said != "404 Not Found" {
		t.Errorf("a collector without TLS: %s", said)
	}
}

// TestHeadersAreSecret: whatever the collector does, they go nowhere else.
func TestHeadersAreSecret(t *testing.T) {
	const value = "Bearer ZZZZZZZZ"
	var went atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { went.Store(true) }))
	defer elsewhere.Close()
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		log    string
	}{
		"it repeats them": {func(w http.ResponseWriter, r *http.Request) {
			body, err := proto.Marshal(&collectorpb.ExportTraceServiceResponse{PartialSuccess: &collectorpb.ExportTracePartialSuccess{
				RejectedSpans: 3, ErrorMessage: "unknown token " + strings.TrimPrefix(r.Header.Get("X-Key"), "Bearer "),
			}})
			if err != nil {
				t.Error(err)
			}
			w.Write(body)
		}, `error="unknown token xxxxx"`},
		"it redirects": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, `error="307 Temporary Redirect"`},
		"it refuses": {func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, r.Header.Get("X-Key"), http.StatusUnauthorized)
		}, `error="401 Unauthorized"`},
	} {
		t.Run(name, func(t *testing.T) {
			collector := newSecureCollector(t, c.answer)
			e, log := exporter(t, collector.URL, map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "x-key=" + value, "OTEL_EXPORTER_OTLP_CERTIFICATE": collector.caFile})
			away := false
			e.deliver(t.Context(), t.Context(), []Trace{call("ADD")}, &away)
			if got := (<-collector.got).Header.Get("X-Key"); got != value {
				t.Errorf("the collector gets %q", got)
			}
			if got := log.String(); strings.Contains(got, secret) || !strings.Contains(got, c.log) {
				t.Errorf("the log says\n%s\nwant %s", got, c.log)
			}
			if dropped := e.Dropped()[Refused]; dropped != 3 {
				t.Errorf("%d spans are refused", dropped)
			}
			for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
				if got := fmt.Sprintf(format, e.c); strings.Contains(got, secret) {
					t.Errorf("%s: %s", format, got)
				}
			}
		})
	}
	if went.Load() {
		t.Error("they went where the collector sent them")
	}
}
