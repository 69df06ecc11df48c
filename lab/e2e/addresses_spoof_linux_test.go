//go:build cluster

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
)

// spoofedSources: what a pod sends from addresses that are not its own never
// arrives at the outside host, and is counted as that pod's.
func spoofedSources(t *testing.T, c *podClient) {
	node := plan.Nodes(2)[1]
	asks := map[string]string{"flock.fritzlab.net/ipv4": "true"}
	for _, name := range []string{"liar", "honest"} {
		c.create(t, "shop", name, node.Name(), asks)
	}
	liar, honest := c.ready(t, "shop", "liar", 1)[0], c.ready(t, "shop", "honest", 1)[0]
	before, honestBefore := spoofedPackets(t, node, "liar"), spoofedPackets(t, node, "honest")

	sent := 0
	for i, own := range podIPs(t, liar) {
		to := listenUDP(t, plan.OutsideHost.All()[i].Addr())
		netns := c.netns(t, liar)
		sendUDP(t, netns, own, to, "before")
		for what, source := range map[string]netip.Addr{
			"another pod's":        podIPs(t, honest)[i],
			"next to its own":      own.Prev(),
			"its node's own":       node.LAN().All()[i].Addr(),
			"another node's pods'": plan.Nodes(1)[0].Pods().All()[i].Addr().Next(),
			"the router's":         plan.TorLAN.All()[i].Addr(),
			"an anycast address":   []netip.Addr{netip.MustParseAddr("2001:db8:53::53"), netip.MustParseAddr("203.0.113.53")}[i],
		} {
			sendUDP(t, netns, source, to, what)
			sent++
		}
		// When this last datagram has arrived, no earlier one is still on its way.
		sendUDP(t, netns, own, to, "after")
		got := receiveUDP(t, to, "after")
		if want := []string{own.String() + " before", own.String() + " after"}; !slices.Equal(got, want) {
			t.Errorf("the outside host got %q, want %q", got, want)
		}
	}
	if got := spoofedPackets(t, node, "liar") - before; got != sent {
		t.Errorf("%d packets are counted as spoofed, %d were sent", got, sent)
	}
	if got := spoofedPackets(t, node, "honest") - honestBefore; got != 0 {
		t.Errorf("%d packets are counted as spoofed by a pod that sent none", got)
	}
}

// spoofedPackets is the pod's counter, from the metrics of its node's agent.
func spoofedPackets(t *testing.T, node plan.Node, pod string) int {
	t.Helper()
	metrics, err := getFrom(t, member.Of(labDir(t), node.Name()).NetNS(), "http://127.0.0.1:9479/metrics")
	if err != nil {
		t.Fatal(err)
	}
	prefix := fmt.Sprintf("flock_pod_spoofed_packets_total{namespace=%q,pod=%q} ", "shop", pod)
	for line := range strings.Lines(string(metrics)) {
		if value, ok := strings.CutPrefix(line, prefix); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return int(n)
		}
	}
	t.Fatalf("the agent on %s has no metric %s", node.Name(), prefix)
	return 0
}

// listenUDP has the outside host listen at one of its addresses.
func listenUDP(t *testing.T, at netip.Addr) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := member.Of(labDir(t), plan.Outside).InNet(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// receiveUDP returns what came, each with its source, until one that says last.
func receiveUDP(t *testing.T, conn *net.UDPConn, last string) (got []string) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for packet := make([]byte, 1500); ; {
		n, from, err := conn.ReadFromUDPAddrPort(packet)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got = append(got, from.Addr().Unmap().String()+" "+string(packet[:n]))
		if string(packet[:n]) == last {
			return got
		}
	}
}

// sendUDP sends a packet with any source address, as a pod may that has
// CAP_NET_ADMIN in its own network namespace.
func sendUDP(t *testing.T, netns string, source netip.Addr, to *net.UDPConn, text string) {
	t.Helper()
	anySource := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		level, option := unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		if source.Is4() {
			level, option = unix.SOL_IP, unix.IP_TRANSPARENT
		}
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); e != nil {
			return e
		}
		return err
	}}
	err := member.InNet(netns, func() error {
		conn, err := anySource.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(source, 0).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.WriteTo([]byte(text), to.LocalAddr())
		return err
	})
	if err != nil {
		t.Fatalf("send from %s: %v", source, err)
	}
}
