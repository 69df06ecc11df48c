package agent_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

func TestPodIsReachedAndGone(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	if _, err := n.status(); err != nil {
		t.Fatalf("STATUS: %v", err)
	}
	a, b := n.sandbox("a"), n.sandbox("b")
	addrs, others := a.mustAdd(), b.mustAdd()
	if len(addrs) != 2 || !netip.MustParsePrefix("2001:db8:1::/64").Contains(addrs[0]) || !netip.MustParsePrefix("10.1.0.0/24").Contains(addrs[1]) {
		t.Fatalf("the pod has %v", addrs)
	}
	for _, addr := range addrs {
		n.reaches(n.router, a, addr)
		n.reaches(b.ns, a, addr)
	}
	for _, router := range []string{"2001:db8:ffff::1", "192.0.2.1"} {
		a.ns.Exec("ping", "-c1", "-W5", router)
	}
	if err := a.check(); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if again := a.mustAdd(); !reflect.DeepEqual(again, addrs) {
		t.Errorf("ADD repeated answers %v, was %v", again, addrs)
	}
	for _, summary := range []string{"unreachable 2001:db8:1::/64", "unreachable 10.1.0.0/24"} {
		if routes := n.host.IP("-6", "route") + n.host.IP("-4", "route"); !strings.Contains(routes, summary) {
			t.Errorf("no route %q among\n%s", summary, routes)
		}
	}

	a.mustDel()
	if got := n.routes(); !sameAddrs(got, others) {
		t.Errorf("right after DEL there are routes to %v, want %v", got, others)
	}
	a.mustDel() // again: nothing to do
	eventually(t, n.agentLog, func() error {
		if got := n.links(); len(got) != 1 {
			return fmt.Errorf("links %v are left, want one", got)
		}
		return nil
	})
}

// A sandbox can end without a DEL: a force-deleted pod, a later plugin of a chain
// that failed, a runtime that lost its state.
func TestLostSandboxFreesItsAddresses(t *testing.T) {
	t.Parallel()
	n := newNode(t, strings.Replace(nodeConfig, "10.1.0.0/24", "10.1.0.0/30", 1)) // two addresses
	n.start()
	for i := range 5 {
		a, b := n.sandbox(fmt.Sprint("a", i)), n.sandbox(fmt.Sprint("b", i))
		a.mustAdd()
		b.mustAdd()
		if _, err := n.sandbox(fmt.Sprint("c", i)).add(); err == nil || !strings.Contains(err.Error(), "10.1.0.0/30") {
			t.Fatalf("third of two addresses: %v; want an error that names the CIDR", err)
		}
		a.ns.IP("link", "del", "eth0")
		b.ns.IP("link", "del", "eth0")
		eventually(t, n.agentLog, func() error {
			if log := n.agentLog(); strings.Count(log, "pod detached") != 2*(i+1) {
				return fmt.Errorf("the addresses are still held")
			}
			return nil
		})
	}
}

func TestWithoutNodeConfig(t *testing.T) {
	t.Parallel()
	n := newNode(t, "")
	a := n.sandbox("a")
	if _, err := a.add(); err == nil || !strings.Contains(err.Error(), "agent") {
		t.Errorf("ADD without an agent: %v", err)
	}
	n.start()
	for what, err := range map[string]error{
		"ADD":    func() error { _, err := a.add(); return err }(),
		"STATUS": func() error { _, err := n.status(); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), "NodeConfig node1") {
			t.Errorf("%s: %v; want an error that names the NodeConfig", what, err)
		}
	}
	if err := a.del(); err != nil {
		t.Errorf("DEL must not wait for a NodeConfig: %v", err)
	}
	if got := n.links(); len(got) != 0 {
		t.Errorf("refused pods left %v", got)
	}
}

// TestKillAtAnyInstruction kills the agent while it adds and deletes pods, and
// starts it again. Then every pod that was answered has its addresses and is
// reached, a repeated ADD gives the same answer, no two pods share an address,
// and when all are deleted nothing is left.
func TestKillAtAnyInstruction(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	pods := make([]*sandbox, 8)
	for i := range pods {
		pods[i] = n.sandbox(fmt.Sprint("pod", i))
	}
	answered := make([][]netip.Addr, len(pods))
	for round := range 12 {
		n.start()
		agent := n.agent
		time.AfterFunc(time.Duration(rand.IntN(30_000))*time.Microsecond, func() { agent.Process.Kill() })
		inParallel(pods, func(i int, p *sandbox) {
			for {
				if answered[i] == nil {
					got, err := p.add()
					if err != nil {
						return // killed
					}
					answered[i] = got
				} else if again, err := p.add(); err != nil {
					return
				} else if !reflect.DeepEqual(again, answered[i]) {
					t.Errorf("round %d: %s had %v, now %v", round, p.id, answered[i], again)
				}
				if rand.IntN(2) == 0 {
					answered[i] = nil
					if p.del() != nil {
						return
					}
					p.id += "x" // a runtime never uses an ID again
				}
			}
		})
		n.kill()
	}

	n.start()
	inParallel(pods, func(i int, p *sandbox) {
		got, err := p.add()
		// The kill met its DEL, and the kernel is still at it.
		for deadline := time.Now().Add(10 * time.Second); err != nil && strings.Contains(err.Error(), "is still being deleted") && time.Now().Before(deadline); {
			got, err = p.add()
		}
		if err != nil {
			t.Errorf("%s: %v", p.id, err)
		} else if answered[i] != nil && !reflect.DeepEqual(got, answered[i]) {
			t.Errorf("%s got %v, has %v", p.id, answered[i], got)
		}
		answered[i] = got
	})
	if t.Failed() {
		t.Fatal(n.agentLog())
	}
	all := slices.Concat(answered...)
	if got := n.routes(); !sameAddrs(got, all) {
		t.Errorf("routes to\n %v, want\n %v", got, all)
	}
	for i, p := range pods {
		if err := p.check(); err != nil {
			t.Errorf("CHECK %s: %v", p.id, err)
		}
		for _, addr := range answered[i] {
			n.reaches(n.router, p, addr)
		}
	}
	if t.Failed() {
		t.Log(n.agentLog())
	}
	for _, p := range pods {
		p.mustDel()
	}
	eventually(t, n.agentLog, func() error {
		if links, routes := n.links(), n.routes(); len(links)+len(routes) > 0 {
			return fmt.Errorf("left over: %v %v", links, routes)
		}
		return nil
	})
}

func TestPodsOutliveTheAgent(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	p := n.sandbox("a")
	addrs := p.mustAdd()
	changes := n.monitorRoutes()
	n.kill()
	n.reaches(n.router, p, addrs[0])
	n.start()
	n.reaches(n.router, p, addrs[0])
	if seen := changes(); seen != "" {
		t.Errorf("a restart of the agent changed routes:\n%s", seen)
	}
	// What somebody else deleted meanwhile is restored.
	n.kill()
	n.host.IP("route", "del", addrs[0].String())
	n.host.IP("route", "del", addrs[1].String())
	n.start()
	if got := n.routes(); !sameAddrs(got, addrs) {
		t.Errorf("routes to %v, want %v", got, addrs)
	}
}

// flock makes one interface for a container: a second one would take the first
// one's link.
func TestSecondInterfaceIsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	p := n.sandbox("a")
	addrs := p.mustAdd()
	runtime, list := n.network()
	second := p.conf()
	second.IfName = "eth1"
	if _, err := runtime.AddNetworkList(t.Context(), list, second); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("ADD of eth1: %v; want an error that names eth0", err)
	}
	if err := runtime.DelNetworkList(t.Context(), list, second); err != nil {
		t.Errorf("DEL of eth1: %v", err)
	}
	n.reaches(n.router, p, addrs[0])
	if err := p.check(); err != nil {
		t.Error(err)
	}
}

// Two container IDs can have one name for the host's end. The pod that has the link
// keeps it, and all that hangs on the name.
func TestHostInterfaceOfAnother(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	a, b := n.sandbox(""), n.sandbox("")
	of := map[string]string{}
	for i := 0; b.id == ""; i++ {
		id := fmt.Sprint("c", i)
		name := wiring.HostIfName(id)
		if other, ok := of[name]; ok {
			a.id, b.id = other, id
		}
		of[name] = id
	}
	addrs := a.mustAdd()
	if _, err := b.add(); err == nil || !strings.Contains(err.Error(), wiring.HostIfName(a.id)) {
		t.Errorf("ADD of %s beside %s: %v; want an error that names the interface", b.id, a.id, err)
	}
	b.mustDel()
	n.reaches(n.router, a, addrs[0])
	n.reaches(n.router, a, addrs[1])
}

func sameAddrs(a, b []netip.Addr) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(a, b)
}
