package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/agent"
	"flock.fritzlab.net/flock/pkg/view"
)

// The page and flockctl see what the kernel does with packets to a pod, and name what is
// wrong with it.
func TestNodePage(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start("--page-address=127.0.0.1:9481")
	p := n.sandbox("a")
	addrs := p.mustAdd()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		if strings.HasPrefix(address, "agent") {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.state, "health.sock"))
		}
		n.host.Run(func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:9481") })
		return conn, err
	}}}
	defer client.CloseIdleConnections()
	ask := func(method, url, host string) (*http.Response, string, error) {
		r, err := http.NewRequest(method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		answer, err := client.Do(r)
		if err != nil {
			return nil, "", err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return answer, string(body), err
	}
	var seen view.Node
	look := func() error {
		_, body, err := ask(http.MethodGet, "http://127.0.0.1:9481/node.json", "")
		if err != nil {
			return err
		}
		seen = view.Node{}
		if err := json.Unmarshal([]byte(body), &seen); err != nil {
			return fmt.Errorf("%w: %s", err, body)
		}
		return nil
	}
	eventually(t, n.agentLog, func() error {
		if err := look(); err != nil {
			return err
		}
		if len(seen.Pods) != 1 || len(seen.Errors) > 0 {
			return fmt.Errorf("%+v", seen)
		}
		return nil
	})
	pod := seen.Pods[0]
	if len(pod.Addresses) != len(addrs) || len(pod.Problems) > 0 || pod.State != "committed" {
		t.Errorf("%+v, and the pod has %v", pod, addrs)
	}
	for i, a := range pod.Addresses {
		if a.Address != addrs[i].String() || !a.Reaches || a.Route != "dev "+pod.Link || a.Kind != "own" {
			t.Errorf("%+v, want %v on %s", a, addrs[i], pod.Link)
		}
	}
	routed := map[string]string{}
	for _, r := range seen.Routes {
		routed[r.Prefix] = r.To
	}
	for prefix, to := range map[string]string{"2001:db8:1::/64": "unreachable", "10.1.0.0/24": "unreachable", addrs[0].String() + "/128": "dev " + pod.Link} {
		if routed[prefix] != to {
			t.Errorf("route to %s: %q, want %q", prefix, routed[prefix], to)
		}
	}

	answer, body, err := ask(http.MethodGet, "http://127.0.0.1:9481/", "localhost:9481")
	if err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(body, addrs[0].String()) || !strings.Contains(answer.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("%v: %v\n%s", err, answer, body)
	}
	for _, c := range []struct {
		method, path, host string
		want               int
	}{
		{http.MethodGet, "/", "evil.example", http.StatusForbidden}, // whose DNS says 127.0.0.1
		{http.MethodGet, "/node.json", "192.0.2.2:9481", http.StatusForbidden},
		{http.MethodGet, "/", "[::1]:9481", http.StatusOK},
		{http.MethodPost, "/", "127.0.0.1", http.StatusMethodNotAllowed},
		{http.MethodGet, "/metrics", "127.0.0.1", http.StatusNotFound},
	} {
		if answer, _, err := ask(c.method, "http://127.0.0.1:9481"+c.path, c.host); err != nil || answer.StatusCode != c.want {
			t.Errorf("%s %s of %s: %v %v, want %d", c.method, c.path, c.host, err, answer, c.want)
		}
	}

	// What another program does to one address is a problem of this pod.
	n.host.IP("route", "add", "blackhole", addrs[0].String()+"/128", "metric", "32")
	eventually(t, n.agentLog, func() error {
		if err := look(); err != nil {
			return err
		}
		if len(seen.Pods) != 1 || len(seen.Pods[0].Problems) != 1 || !strings.Contains(seen.Pods[0].Problems[0], "packets for "+addrs[0].String()+" do not reach the pod, the kernel's answer is blackhole") {
			return fmt.Errorf("%+v", seen.Pods)
		}
		return nil
	})
	if answer, body, err := ask(http.MethodGet, "http://agent/pod?pod=shop/other", "agent"); err != nil || answer.StatusCode != http.StatusOK || strings.TrimSpace(body) != "[]" {
		t.Errorf("%v %v %s", err, answer, body)
	}
	if answer, body, err := ask(http.MethodGet, "http://agent/pod?pod=x", "agent"); err != nil || answer.StatusCode != http.StatusBadRequest || !strings.Contains(body, "NAMESPACE/NAME") {
		t.Errorf("%v %v %s", err, answer, body)
	}
	p.mustDel()
	eventually(t, n.agentLog, func() error {
		if err := look(); err != nil {
			return err
		}
		if len(seen.Pods) != 0 {
			return errors.New("the pod is still there")
		}
		return nil
	})
}

func TestPageAddress(t *testing.T) {
	for address, ok := range map[string]bool{
		"": true, "127.0.0.1:9481": true, "[::1]:9481": true, "localhost:9481": true, "127.0.0.1:": false,
		":9481": false, "0.0.0.0:9481": false, "[::]:9481": false, "192.0.2.1:9481": false, "127.0.0.1": false, "example.com:9481": false,
	} {
		if err := agent.CheckPageAddress(address); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
}
