//go:build cluster

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
)

// sessionPassword checks that a session's password comes from a Secret by way of
// flock-controller, and that BIRD has a changed one within a second. No other session is reset,
// and the password is not readable anywhere.
func sessionPassword(t *testing.T) {
	const first, second = "correct-horse", "battery-staple"
	node := plan.Nodes(3)[2]
	others := func() []fabric.Session {
		return slices.DeleteFunc(routerSessions(t), func(s fabric.Session) bool { return strings.HasPrefix(s.Name, node.Name()+"_") })
	}
	before := others()
	t.Cleanup(func() {
		routerPassword(t, node, "")
		mustKubectl(t, "--namespace=flock-system", "delete", "secret", "tor", "--ignore-not-found")
		mustLab(t, "up")
		sessionsUp(t)
	})

	routerPassword(t, node, first)
	sessionsAre(t, node, false, 20*time.Second)
	mustKubectl(t, "patch", "nodeconfig", node.Name(), "--type=json", `--patch=[
		{"op": "add", "path": "/spec/bgp/peers/0/passwordSecretRef", "value": {"name": "tor", "key": "password"}},
		{"op": "add", "path": "/spec/bgp/peers/1/passwordSecretRef", "value": {"name": "tor", "key": "password"}}]`)
	eventually(t, 60*time.Second, func() error {
		said := mustKubectl(t, "get", "nodeconfig", node.Name(), "--output=jsonpath={.status.conditions[?(@.type=='RoutingConfigured')].message}")
		if !strings.Contains(said, "secret flock-system/tor, key password: there is no such Secret") {
			return fmt.Errorf("condition RoutingConfigured says %q", said)
		}
		return nil
	})

	secret := func(password string) {
		t.Helper()
		manifest := fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: tor, namespace: flock-system}
stringData: {password: %s}
`, password)
		if out, err := kubectl(manifest, "apply", "--filename=-"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	secret(first)
	sessionsAre(t, node, true, 30*time.Second)

	routerPassword(t, node, second)
	sessionsAre(t, node, false, 20*time.Second)
	secret(second)
	began := time.Now()
	eventually(t, 10*time.Second, func() error {
		if conf := mustLab(t, "exec", node.Name(), "--", "cat", "/run/flock/bird/bird.conf"); !strings.Contains(conf, second) {
			return fmt.Errorf("BIRD's configuration on %s does not have the changed password", node.Name())
		}
		return nil
	})
	took := time.Since(began)
	sessionsAre(t, node, true, 30*time.Second)
	t.Logf("BIRD had a changed password %s after it was written, and the session was up after %s", took.Round(time.Millisecond), time.Since(began).Round(time.Second))
	if took > 2*time.Second { // most of which is the look
		t.Errorf("BIRD had a changed password only after %s", took)
	}

	if after := others(); !slices.EqualFunc(before, after, fabric.Session.Same) {
		t.Errorf("the other nodes' sessions were %v and are %v", before, after)
	}
	said := mustKubectl(t, "get", "nodeconfigs", "--output=yaml") +
		mustKubectl(t, "--namespace=flock-system", "logs", "daemonset/flock", "--all-pods", "--all-containers", "--tail=-1")
	for _, password := range []string{first, second} {
		if strings.Contains(said, password) {
			t.Errorf("a status or a log holds the password %q", password)
		}
	}
}

// routerPassword has the router want a password of a node, or none.
func routerPassword(t *testing.T, node plan.Node, password string) {
	t.Helper()
	dir := labDir(t)
	file := dir.Member(plan.Tor, "config", "bird.conf") // which wants none
	if password != "" {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		conf := string(content)
		for _, family := range []string{"ipv6", "ipv4"} {
			begin := fmt.Sprintf("protocol bgp %s_%s from node {\n", node.Name(), family)
			if !strings.Contains(conf, begin) {
				t.Fatalf("%q is not in the router's configuration", begin)
			}
			conf = strings.Replace(conf, begin, fmt.Sprintf("%s  password %q;\n", begin, password), 1)
		}
		file = dir.Member(plan.Tor, "config", "password.conf")
		if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if said := mustLab(t, "exec", plan.Tor, "--", "birdc", "configure", `"`+file+`"`); !strings.Contains(said, "Reconfigur") {
		t.Fatal(said)
	}
}

// sessionsAre waits until the router's sessions with the node are up, or down.
func sessionsAre(t *testing.T, node plan.Node, up bool, patience time.Duration) {
	t.Helper()
	eventually(t, patience, func() error {
		for _, s := range routerSessions(t) {
			if strings.HasPrefix(s.Name, node.Name()+"_") && s.Established() != up {
				return fmt.Errorf("%s is %s, want it up: %t", s.Name, s.State, up)
			}
		}
		return nil
	})
}

func routerSessions(t *testing.T) []fabric.Session {
	t.Helper()
	return fabric.ParseSessions(mustLab(t, "exec", plan.Tor, "--", "birdc", "show", "protocols", "all"))
}
