//go:build cluster && services

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/plan"
)

const (
	poolAnnotation    = "flock.fritzlab.net/pool"
	loadBalancerClass = "flock.fritzlab.net/bgp"
)

func init() {
	serviceOutages = append(serviceOutages, noPodsForAWhile, drained, serviceOutage, otherProxyMode, manyServices, serviceWithoutAPIServer)
}

// TestServices is the story of Services' addresses alone, with what takes minutes.
func TestServices(t *testing.T) {
	mustLab(t, "down") // what an earlier run may have left
	t.Cleanup(func() { mustLab(t, "down") })
	part(t, "up", func(t *testing.T) { mustLab(t, "up") })
	part(t, "services", serviceStory)
	part(t, "from MetalLB", fromMetalLB)
}

// noPodsForAWhile: requests fail only while the router has no route to the address, or while it
// moves flows because another node announces it.
func noPodsForAWhile(t *testing.T, clients *serviceClients) {
	// The monitor shows a change when it gets its turn.
	const late = 500 * time.Millisecond
	router := watchOn(t, plan.Tor)
	began := time.Now()
	mustKubectl(t, "--namespace=services", "scale", serviceRollout, "--replicas=0")
	eventually(t, 60*time.Second, func() error {
		for _, addr := range clients.all() {
			if by := routedBy(t, addr); len(by) > 0 {
				return fmt.Errorf("%s is announced by the nodes %v, and there is no pod", addr, by)
			}
		}
		return nil
	})
	serviceRolledOut(t)
	mustKubectl(t, "--namespace=services", "scale", serviceRollout, "--replicas=3")
	serviceRolledOut(t)
	clients.announcedBy(t, "cluster", 1, 2, 3)
	clients.announcedSomewhere(t, "local")
	time.Sleep(time.Second) // some requests after it
	said := router.stop(t)
	for i, addr := range clients.all() {
		gone, back := absence(t, said, addr)
		client := clients.loads[i]
		lost := client.failures(t, "no pods", began)
		moves := func() []time.Time { return client.routeChanges(t) } // one node after the other announces it again
		for _, f := range lost {
			if f.start.Before(gone.Add(-late)) || f.start.After(back) && !f.moved(moves) {
				t.Errorf("%s: a request of %s failed %s, and the router had no route from %s to %s only", addr, f.start.Format(stampFormat), f, gone.Format(stampFormat), back.Format(stampFormat))
			}
		}
		t.Logf("%s: %d requests failed while no node announced it, from %s to %s", addr, len(lost), gone.Format(stampFormat), back.Format(stampFormat))
		if len(lost) == 0 {
			t.Errorf("%s: no request failed, and there was no pod", addr)
		}
	}
}

const stampFormat = "15:04:05.000"

// absence is when the router's kernel has lost the route to an address, and has got it again.
func absence(t *testing.T, said, addr string) (gone, back time.Time) {
	t.Helper()
	for _, c := range routeChanges(t, said, addr) {
		switch {
		case c.deleted:
			gone, back = c.at, time.Time{}
		case back.IsZero() && !gone.IsZero():
			back = c.at
		}
	}
	if gone.IsZero() || back.IsZero() {
		t.Fatalf("the router did not lose %s and get it again:\n%s", addr, said)
	}
	return gone, back
}

// drained: the pod of a node is evicted.
func drained(t *testing.T, clients *serviceClients) {
	began := time.Now()
	mustKubectl(t, "drain", "node3", "--ignore-daemonsets", "--pod-selector=app=web", servicePatience)
	t.Cleanup(func() { mustKubectl(t, "uncordon", "node3") })
	serviceRolledOut(t)
	eventually(t, 60*time.Second, func() error {
		for _, addr := range clients.addrs["local"] {
			for _, n := range routedBy(t, addr) {
				if n == 3 {
					return fmt.Errorf("node3 announces %s and has no pod", addr)
				}
			}
		}
		return nil
	})
	mustKubectl(t, "uncordon", "node3")
	clients.failed(t, "a drain", began)
}

func serviceWithoutAPIServer(t *testing.T, clients *serviceClients) {
	late := newLatePod(t)
	began := time.Now()
	if killed := killOn(t, plan.ControlPlane, "kube-apiserver"); killed != 1 {
		t.Errorf("%d API servers killed", killed)
	}
	late.setReady(t, true)
	late.reached(t, "without API server")
	// For longer than flock's translation lasts otherwise, and over a restart of the agent.
	time.Sleep(20 * time.Second)
	if killed := killOn(t, late.node, "/usr/local/bin/flock-agent"); killed != 1 {
		t.Errorf("%d agents killed", killed)
	}
	time.Sleep(70 * time.Second)
	late.reached(t, "without API server for long")
	clients.failed(t, "a long outage of the API server", began)
	// What follows is not judged: kube-controller-manager may call all nodes NotReady, and
	// their pods with them, whose Leases it has not seen for its grace period.
	mustLab(t, "up")
	eventually(t, 90*time.Second, func() error {
		for i, name := range []string{"interim6", "interim4"} {
			if out := mustLab(t, "exec", late.node, "--", "nft", "list", "map", "inet", "flock-service", name); strings.Contains(out, late.addrs[i]+" ") {
				return fmt.Errorf("kube-proxy can have its rule by now, and flock still translates: %s", out)
			}
		}
		return nil
	})
	late.reached(t, "by kube-proxy")
}

// serviceOutage: the API server is away for less than the grace period of nodes.
func serviceOutage(t *testing.T, clients *serviceClients) {
	began := time.Now()
	if killed := killOn(t, plan.ControlPlane, "kube-apiserver"); killed != 1 {
		t.Errorf("%d API servers killed", killed)
	}
	time.Sleep(10 * time.Second)
	mustLab(t, "up")
	clients.failed(t, "an outage of the API server", began)
}

// latePod is a pod that is not Ready, of a Service that has no other, as kube-proxy knows.
type latePod struct {
	node  string
	pod   netip.Addr
	addrs []string // the Service's, IPv6 first
}

func newLatePod(t *testing.T) *latePod {
	p := &latePod{node: "node2"}
	c := newPodClient(t)
	c.create(t, "services", "late", p.node, nil)
	apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: late, namespace: services}
spec:
  type: LoadBalancer
  loadBalancerClass: flock.fritzlab.net/bgp
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv6, IPv4]
  selector: {app: late}
  ports: [{port: %d}]
`, cluster.EchoPort))
	t.Cleanup(func() { mustKubectl(t, "--namespace=services", "delete", "pod/late", "service/late", "--wait=false") })
	p.pod = podIPs(t, c.ready(t, "services", "late", 1)[0])[0]
	eventually(t, time.Minute, func() error {
		out := mustKubectl(t, "--namespace=services", "get", "service", "late", "--output=jsonpath={.status.loadBalancer.ingress[*].ip}")
		if p.addrs = strings.Fields(out); len(p.addrs) != 2 {
			return fmt.Errorf("Service late has the addresses %q, want one of each family", out)
		}
		return nil
	})
	p.reached(t, "before")
	p.setReady(t, false)
	eventually(t, time.Minute, func() error {
		for i, family := range []string{"ip6", "ip"} {
			if out := mustLab(t, "exec", p.node, "--", "nft", "list", "map", family, "kube-proxy", "service-ips"); strings.Contains(out, p.addrs[i]+" ") {
				return fmt.Errorf("kube-proxy still has %s", p.addrs[i])
			}
			if by := routedBy(t, p.addrs[i]); len(by) > 0 {
				return fmt.Errorf("%s is announced by the nodes %v, and its pod is not Ready", p.addrs[i], by)
			}
		}
		return nil
	})
	return p
}

// setReady has the pod be Ready, or not, by its next probe.
func (p *latePod) setReady(t *testing.T, ok bool) {
	t.Helper()
	mustLab(t, "exec", plan.Outside, "--", "curl", "--silent", "--fail", "--max-time", "5", "--request", "POST", fmt.Sprintf("http://[%s]:%d/ready?ok=%t", p.pod, cluster.EchoPort, ok))
}

// reached waits until the Service's addresses are answered from outside.
func (p *latePod) reached(t *testing.T, when string) {
	t.Helper()
	began := time.Now()
	for _, addr := range p.addrs {
		if strings.Contains(addr, ":") {
			addr = "[" + addr + "]"
		}
		eventually(t, 30*time.Second, func() error {
			if out, err := lab("exec", plan.Outside, "--", "curl", "--silent", "--show-error", "--fail", "--max-time", "1", fmt.Sprintf("http://%s:%d/", addr, cluster.EchoPort)); err != nil {
				return fmt.Errorf("%s: %s: %w %s", when, addr, err, out)
			}
			return nil
		})
	}
	t.Logf("%s, Service late is reached at both addresses after %s", when, time.Since(began).Round(10*time.Millisecond))
}

// configuredTimes is when the BIRD of each node has read its configuration.
func configuredTimes(t *testing.T) map[string]time.Time {
	t.Helper()
	all := map[string]time.Time{}
	for _, n := range plan.Nodes(3) {
		for line := range strings.Lines(mustLab(t, "exec", n.Name(), "--", "birdc", "-s", "/run/flock/bird/bird.ctl", "show", "status")) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "Last reconfiguration on "); ok {
				at, err := fabric.BirdTime(text)
				if err != nil {
					t.Fatal(err)
				}
				all[n.Name()] = at
			}
		}
	}
	return all
}

// sessionTimes is since when the router has each session.
func sessionTimes(t *testing.T) map[string]time.Time {
	t.Helper()
	sessions := fabric.ParseSessions(mustLab(t, "exec", plan.Tor, "--", "birdc", "show", "protocols", "all"))
	all := map[string]time.Time{}
	for _, s := range sessions {
		all[s.Name] = s.Since
	}
	return all
}

// unchanged: the times of all are what they were.
func unchanged(t *testing.T, what string, before, now map[string]time.Time) {
	t.Helper()
	if len(before) == 0 || len(now) != len(before) {
		t.Errorf("%s: %v, before %v", what, now, before)
	}
	for name, at := range before {
		if now[name].Sub(at).Abs() >= fabric.BirdJitter {
			t.Errorf("%s of %s: %s, before %s", what, name, now[name], at)
		}
	}
}
