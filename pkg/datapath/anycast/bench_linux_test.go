package anycast

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// report adds percentiles of durations in microseconds.
func report(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	b.ReportMetric(us(took[len(took)/2]), name+"-p50-µs")
	b.ReportMetric(us(took[len(took)*99/100]), name+"-p99-µs")
}

// BenchmarkFlip times a pod's loss and gain of Ready: from its being
// sent to the controller, to the notifications of the node's and the router's kernel of
// the route.
func BenchmarkFlip(b *testing.B) {
	f := newFabric(b)
	f.speakBGP()
	node, router := watchRoutes(b, f.node), watchRoutes(b, f.router)
	c, _ := run(b, Config{Kernel: f.fib})
	_, a := f.pod("a", Grant{Addr: dns})
	c.Send(a)
	ready, notReady := readiness("a", true, "c1/0"), readiness("a", false, "c1/0")
	c.Send(ready)
	router.want(dns, true, 0)
	var took [2][2][]time.Duration // announced?, at the node or the router
	b.ResetTimer()
	for range b.N {
		for announced, v := range []Readiness{notReady, ready} {
			node.forget()
			router.forget()
			start := time.Now()
			c.Send(v)
			there := announced == 1
			took[announced][0] = append(took[announced][0], node.want(dns, there, 512).Sub(start))
			took[announced][1] = append(took[announced][1], router.want(dns, there, 0).Sub(start))
		}
	}
	b.StopTimer()
	report(b, "withdraw-node", took[0][0])
	report(b, "withdraw-router", took[0][1])
	report(b, "announce-node", took[1][0])
	report(b, "announce-router", took[1][1])
}

// BenchmarkThousand times 1,000 addresses of one pod that appear at once, are
// withdrawn at once, and disappear; to the last route, at node and router.
func BenchmarkThousand(b *testing.B) {
	f := newFabric(b)
	f.speakBGP()
	configured := f.loaded()
	node, router := watchRoutes(b, f.node), watchRoutes(b, f.router)
	c, _ := run(b, Config{Kernel: f.fib})
	gs := grants(1000)
	addrs := make([]netip.Addr, len(gs))
	for i, g := range gs {
		addrs[i] = g.Addr
	}
	_, a := f.pod("a")
	a.Grants = gs
	var appear, withdraw [2][]time.Duration
	var vanish []time.Duration
	b.ResetTimer()
	for n := range b.N {
		c.Send(a)
		settle(b, c)
		container := fmt.Sprintf("c%d/0", n) // none outlives its sandbox
		for i, v := range []Readiness{readiness("a", true, container), readiness("a", false, container)} {
			node.forget()
			router.forget()
			took := &[]*[2][]time.Duration{&appear, &withdraw}[i]
			start := time.Now()
			c.Send(v)
			there := i == 0
			(*took)[0] = append((*took)[0], node.wantAll(addrs, there, 512).Sub(start))
			(*took)[1] = append((*took)[1], router.wantAll(addrs, there, 0).Sub(start))
		}
		node.forget()
		start := time.Now()
		c.Send(Detached{a.ContainerID})
		vanish = append(vanish, node.wantAll(addrs, false, 1024).Sub(start))
	}
	b.StopTimer()
	report(b, "appear-node", appear[0])
	report(b, "appear-router", appear[1])
	report(b, "withdraw-node", withdraw[0])
	report(b, "withdraw-router", withdraw[1])
	report(b, "vanish-node", vanish)
	if now := f.loaded(); now != configured {
		b.Errorf("BIRD was configured for it: %s, before %s", now, configured)
	}
}

// BenchmarkThousandSetGroup times a second pod's coming to and going from 1,000
// addresses.
func BenchmarkThousandSetGroup(b *testing.B) {
	n := newNode(b, 2)
	f := n.fib(b)
	c, _ := run(b, Config{Kernel: f})
	one, two := n.attached("a", 0), n.attached("b", 0)
	one.Grants, two.Grants = grants(1000), grants(1000)
	c.Send(one)
	c.Send(two)
	c.Send(readiness("a", true, "c1/0"))
	settle(b, c)
	var came, went []time.Duration
	b.ResetTimer()
	for range b.N {
		start := time.Now()
		c.Send(readiness("b", true, "d1/0"))
		settle(b, c)
		came = append(came, time.Since(start))
		start = time.Now()
		c.Send(readiness("b", false, "d1/0"))
		settle(b, c)
		went = append(went, time.Since(start))
	}
	b.StopTimer()
	report(b, "came", came)
	report(b, "went", went)
}
