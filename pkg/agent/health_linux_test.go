package agent_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// An address that another program has costs the metrics: pods are served, the probes
// are answered at the socket, and the condition says it until the address is free.
func TestHealthAddressIsTaken(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	var other net.Listener
	var err error
	n.host.Run(func() { other, err = net.Listen("tcp", "127.0.0.1:9479") })
	if err != nil {
		t.Fatal(err)
	}
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	n.start()
	api.says(n, "MetricsServed", metav1.ConditionFalse, "127.0.0.1:9479: bind: address already in use")
	api.says(n, "MetricsServed", metav1.ConditionFalse, "ListenFailed ")
	if log := n.agentLog(); !strings.Contains(log, "cannot serve, will retry") || !strings.Contains(log, "--health-address") {
		t.Errorf("the log does not name the flag:\n%s", log)
	}
	p := n.sandbox("a")
	for _, addr := range p.mustAdd() {
		n.reaches(n.router, p, addr)
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.state, "health.sock"))
	}}}
	defer client.CloseIdleConnections()
	for _, path := range []string{"/healthz", "/readyz"} {
		eventually(t, n.agentLog, func() error {
			answer, err := client.Get("http://agent" + path)
			if err != nil {
				return err
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				return errors.New(path + ": " + answer.Status)
			}
			return nil
		})
	}
	other.Close() // it is tried again within 30 s, after 1, 2 and 4 s at first
	eventually(t, n.agentLog, func() error {
		if c := meta.FindStatusCondition(api.status().Conditions, "MetricsServed"); c != nil {
			return errors.New("MetricsServed is still there: " + c.Message)
		}
		return nil
	})
	if code, body := n.get("/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d %s", code, body)
	}
}

// TestMetricsForOtherMachines: at --metrics-address there are the metrics alone, over TLS,
// and for nobody without a token that the API server has approved.
func TestMetricsForOtherMachines(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start("--metrics-address=:9480")
	client := http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			n.host.Run(func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, address) })
			return conn, err
		},
	}}
	defer client.CloseIdleConnections()
	get := func(url, token string) (int, string, error) {
		r, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := client.Do(r)
		if err != nil {
			return 0, "", err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return answer.StatusCode, string(body), err
	}
	eventually(t, n.agentLog, func() error {
		_, _, err := get("https://127.0.0.1:9480/metrics", "")
		return err
	})
	for _, c := range []struct {
		url, token string
		want       int
	}{
		{"https://127.0.0.1:9480/metrics", "", http.StatusUnauthorized},
		{"https://127.0.0.1:9480/healthz", "", http.StatusUnauthorized},
		{"https://127.0.0.1:9480/metrics", "some", http.StatusServiceUnavailable}, // there is no API server to ask
		{"http://127.0.0.1:9480/metrics", "", http.StatusBadRequest},
	} {
		if code, body, err := get(c.url, c.token); code != c.want || strings.Contains(body, "flock_") {
			t.Errorf("%s with the token %q: %d %v %.200s, want %d", c.url, c.token, code, err, body, c.want)
		}
	}
	// What Prometheus reads follows its conventions.
	_, metrics := n.get("/metrics")
	check := exec.Command("promtool", "check", "metrics")
	check.Stdin = strings.NewReader(metrics)
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v: %s", err, out)
	}
}
