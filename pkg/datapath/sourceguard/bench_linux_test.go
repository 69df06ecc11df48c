package sourceguard

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
)

// report gives percentiles; a mean is spoiled by one long wait for a CPU.
func report(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), name+"-p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), name+"-p99-µs")
}

func took(b *testing.B, f func() error) time.Duration {
	b.Helper()
	start := time.Now()
	if err := f(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// BenchmarkSet binds a dual-stack pod on a node with 2,000 others, and removes it.
func BenchmarkSet(b *testing.B) {
	all := pods(2001)
	g := synced(b, nettest.New(b), all[1:]...)
	var set, remove []time.Duration
	for b.Loop() {
		set = append(set, took(b, func() error { return g.Set(all[0]) }))
		remove = append(remove, took(b, func() error { return g.Remove(all[0].HostIf) }))
	}
	report(b, "set", set)
	report(b, "remove", remove)
}

// BenchmarkResync is an agent's start on a node with 2,000 pods: the first one,
// one that finds all as it should be, and one that finds none of it so.
func BenchmarkResync(b *testing.B) {
	all := pods(4000)
	var first, same, other, counters []time.Duration
	for b.Loop() {
		ns := nettest.New(b)
		g := guardIn(b, ns)
		first = append(first, took(b, func() error { return g.Resync(all[:2000]) }))
		same = append(same, took(b, func() error { return g.Resync(all[:2000]) }))
		counters = append(counters, took(b, func() error { _, _, err := g.Counters(); return err }))
		other = append(other, took(b, func() error { return g.Resync(all[2000:]) }))
		g.Close()
		ns.Delete()
	}
	report(b, "first", first)
	report(b, "same", same)
	report(b, "other", other)
	report(b, "counters", counters)
}

// BenchmarkPacket is what a packet costs the CPU from the sender's system call
// through the node's prerouting to a blackhole route: without the guard, with it,
// and with 1,000 other pods. The three take turns.
func BenchmarkPacket(b *testing.B) {
	const perTurn = 5000
	n := newNetwork(b)
	n.ns.Exec("nft", "flush ruleset") // no conntrack
	n.addPods(b)
	n.ns.IP("-6", "route", "add", "blackhole", nowhere6.String())
	n.ns.IP("-4", "route", "add", "blackhole", nowhere4.String())
	n.ns.IP("-6", "route", "add", "blackhole", "2001:db8:f::/48")
	var uplink *net.Interface
	n.ns.Run(func() {
		var err error
		if uplink, err = net.InterfaceByName("uplink"); err != nil {
			b.Fatal(err)
		}
	})
	g := n.open(b)
	own := []Binding{n.a.binding(), n.b.binding()}
	turns := []struct {
		name string
		set  func() error
	}{
		{"none", func() error { _, err := n.ns.Try("nft", "flush ruleset"); return err }},
		{"2-pods", func() error { return g.Resync(own) }},
		{"1002-pods", func() error { return g.Resync(append(pods(1000), own...)) }},
	}
	outside := packetSocket(b, n.outside, 0)
	fromOutside := packet(n.a.mac, outside6, nowhere6, unix.IPPROTO_UDP, udp(outside6, nowhere6, honest))
	copy(fromOutside, uplink.HardwareAddr)
	for _, traffic := range []struct {
		name  string
		fd    int
		frame []byte
	}{
		{"pod,IPv6", n.a.eth0, packet(n.a.mac, n.a.v6(), nowhere6, unix.IPPROTO_UDP, udp(n.a.v6(), nowhere6, honest))},
		{"pod,IPv4", n.a.eth0, packet(n.a.mac, n.a.v4(), nowhere4, unix.IPPROTO_UDP, udp(n.a.v4(), nowhere4, honest))},
		{"uplink,IPv6", outside, fromOutside},
	} {
		b.Run(traffic.name, func(b *testing.B) {
			each := make([][]float64, len(turns))
			for b.Loop() {
				for i, turn := range turns {
					if err := turn.set(); err != nil {
						b.Fatal(err)
					}
					onOneCPU(b, func() {
						start := cpuTime(b)
						for range perTurn {
							unix.Write(traffic.fd, traffic.frame)
						}
						each[i] = append(each[i], float64(cpuTime(b)-start)/perTurn)
					})
				}
			}
			var base float64
			for i, turn := range turns {
				slices.Sort(each[i])
				median := each[i][len(each[i])/2]
				b.ReportMetric(median, turn.name+"-ns")
				if i == 0 {
					base = median
				}
				b.ReportMetric(median/base, turn.name+"-ratio")
			}
		})
	}
	drops, _, err := g.Counters()
	if err != nil || slices.ContainsFunc(drops, func(d Drop) bool { return d.Packets != 0 }) {
		b.Error(fmt.Errorf("packets were dropped, and so cost too little: %v, %w", drops, err))
	}
}

// cpuTime is that of the calling thread, in which the packet is worked through to
// its end. Others' load does not count.
func cpuTime(b *testing.B) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return ts.Nano()
}
