package service

import (
	"fmt"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
)

// Whoever asks gets what kube-proxy's rules say, and is refused at once where they say
// nothing, by routes and guard of both families.
func TestRoute(t *testing.T) {
	t.Parallel()
	for _, m := range modes {
		for _, policy := range []string{"Local", "Cluster"} {
			for _, where := range []string{"here", "there", "both", "nowhere"} {
				t.Run(fmt.Sprintf("%s/%s/%s", m, policy, where), func(t *testing.T) {
					t.Parallel()
					testRoute(t, m, policy == "Local", where)
				})
			}
		}
	}
}

func testRoute(t *testing.T, m mode, local bool, where string) {
	f := newFabric(t)
	p := proxytest.Port{Name: "shop/web:http", Protocol: "tcp", Port: servicePort, Local: local}
	if where == "here" || where == "both" {
		p.Here = endpoints(here)
	}
	if where == "there" || where == "both" {
		p.Elsewhere = endpoints(there)
	}
	f.program(m, p)
	f.announce()
	for i, a := range vip {
		expect := func(ns *nettest.NS, network string, port int, who string, want ...string) {
			t.Helper()
			got := ask(t, ns, network, a, port)
			for _, w := range want {
				if got == w {
					return
				}
			}
			t.Errorf("%s to %v port %d from %s: %q, want %q", network, a, port, who, got, want)
		}
		src := func(ns string, by addrs) string { return ns + " " + by[i].String() }
		switch {
		case where == "nowhere":
			for who, ns := range map[string]*nettest.NS{"outside": f.client, "the pod": f.pod, "the node": f.node} {
				// kube-proxy's own refusal is an ICMP error. TCP over IPv6 takes it for a
				// transient one if it comes while connect(2) has the socket.
				expect(ns, "tcp", servicePort, who, refusedAtOnce, []string{noAnswer, refusedAtOnce}[i])
			}
		case local:
			// The client's address stays where the endpoint is here. With others only
			// elsewhere, the client has to try again, at another node.
			if where == "there" {
				expect(f.client, "tcp", servicePort, "outside", noAnswer)
			} else {
				expect(f.client, "tcp", servicePort, "outside", src("here", outside))
			}
		case where == "here":
			expect(f.client, "tcp", servicePort, "outside", src("here", node))
		case where == "there":
			expect(f.client, "tcp", servicePort, "outside", src("there", node))
		default:
			expect(f.client, "tcp", servicePort, "outside", src("here", node), src("there", node))
		}
		if where != "nowhere" {
			var fromPod, fromNode []string
			if where != "there" {
				fromNode = append(fromNode, src("here", node))
				fromPod = append(fromPod, src("here", node)) // itself
			}
			if where != "here" {
				fromNode = append(fromNode, src("there", node))
				// The node masquerades for its own pods where the policy is Cluster.
				fromPod = append(fromPod, src("there", here), src("there", node))
			}
			expect(f.node, "tcp", servicePort, "the node", fromNode...)
			expect(f.pod, "tcp", servicePort, "the pod", fromPod...)
		}
		// No rule of kube-proxy's is about another port or protocol. The node itself
		// listens on both.
		for who, ns := range map[string]*nettest.NS{"outside": f.client, "the pod": f.pod, "the node": f.node} {
			expect(ns, "tcp", podPort, who, refusedAtOnce)
			expect(ns, "udp", servicePort, who, refusedAtOnce)
		}
	}
	if n, err := f.routes.Refused(); err != nil || n < 12 {
		t.Errorf("%d packets were refused, %v; want 12 or more", n, err)
	}
	// Nothing went through the loopback or came to the link.
	if out := f.node.IP("-s", "link", "show", "dev", "flock-service"); !strings.Contains(out, "0       0      0       0       0       0") {
		t.Errorf("packets came to the link:\n%s", out)
	}
}
