package nodeguard

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var (
	node6, node4       = addr("2001:db8:0:1::11"), addr("172.20.0.11")
	outside6, outside4 = addr("2001:db8:0:1::2"), addr("172.20.0.2")
	// The node's subnets. The prefix lengths are no whole bytes.
	onLink = []netip.Prefix{prefix("2001:db8:0:1::/62"), prefix("172.20.0.0/15")}
)

// testNode is a node with an uplink to the world outside and two pods.
type testNode struct {
	*Guard
	ns, outside *nettest.NS
	host        *wiring.Host
	a, b        *testPod
}

type testPod struct {
	*nettest.NS
	wiring.Attachment
	mac    wiring.MAC
	v6, v4 netip.Addr
}

func newNode(t *testing.T) *testNode {
	t.Helper()
	n := &testNode{ns: nettest.New(t), outside: nettest.New(t)}
	n.ns.Veth("uplink", n.outside, "eth0")
	for ns, addrs := range map[*nettest.NS][2]netip.Addr{n.ns: {node6, node4}, n.outside: {outside6, outside4}} {
		dev := "eth0"
		if ns == n.ns {
			dev = "uplink"
		}
		ns.IP("address", "add", netip.PrefixFrom(addrs[0], 62).String(), "dev", dev, "nodad")
		ns.IP("address", "add", netip.PrefixFrom(addrs[1], 15).String(), "dev", dev)
	}
	n.outside.IP("-6", "route", "add", "2001:db8:100::/64", "via", node6.String())
	n.outside.IP("-4", "route", "add", "10.244.0.0/16", "via", node4.String())
	n.ns.Run(func() {
		var err error
		if n.host, err = wiring.Open(); err != nil {
			t.Fatal(err)
		}
		if n.Guard, err = Open(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(n.host.Close)
	t.Cleanup(n.Guard.Close)
	if _, err := n.host.ApplyNode(wiring.NodeState{}); err != nil {
		t.Fatal(err)
	}
	n.a, n.b = n.pod(t, "a", "2001:db8:100::a", "10.244.1.10"), n.pod(t, "b", "2001:db8:100::b", "10.244.1.11")
	return n
}

func (n *testNode) set(t *testing.T, d Desired) {
	t.Helper()
	if err := n.Set(d); err != nil {
		t.Fatal(err)
	}
}

func (n *testNode) pod(t *testing.T, name, v6, v4 string) *testPod {
	t.Helper()
	id := t.Name() + name
	p := &testPod{NS: nettest.New(t), mac: wiring.PodMAC(id), v6: addr(v6), v4: addr(v4)}
	addrs := []netip.Addr{p.v6, p.v4}
	p.Attachment = wiring.Attachment{ContainerID: id, HostIf: wiring.HostIfName(id), PodIf: "eth0", Alias: "test/" + name, Addrs: addrs, Routed: addrs}
	if _, err := n.host.Attach(p.File(), p.Attachment); err != nil {
		t.Fatal(err)
	}
	// The kernel makes the gateway's address usable some time after it was added.
	for until := time.Now().Add(20 * time.Second); !strings.Contains(n.ns.IP("-6", "route", "show", "table", "local", "dev", p.HostIf), "local fe80::1 "); {
		if time.Now().After(until) {
			t.Fatalf("%s has no gateway", p.HostIf)
		}
	}
	return p
}

// zone is that of link-local addresses on the pod's link, as a number: package net keeps
// the names of one namespace for all.
func (p *testPod) zone(t *testing.T) (index string) {
	t.Helper()
	p.Run(func() {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		index = strconv.Itoa(eth0.Index)
	})
	return index
}

// listen answers on a TCP port of all of a namespace's addresses with "hello".
func listen(t *testing.T, ns *nettest.NS, port string) {
	t.Helper()
	ns.Run(func() {
		l, err := net.Listen("tcp", "[::]:"+port)
		if err != nil {
			t.Fatal(err)
		}
		nettest.Serve(t, l, func(c net.Conn) { c.Write([]byte("hello")) })
	})
}

// dial connects to a TCP service, and says what it answers. The error is the kernel's.
func dial(t *testing.T, ns *nettest.NS, to string) (answer string, err error) {
	t.Helper()
	ns.Run(func() {
		var c net.Conn
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var d net.Dialer
		if c, err = d.DialContext(ctx, "tcp", to); err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 16)
		var k int
		k, err = c.Read(b)
		answer = string(b[:k])
	})
	return answer, err
}

// packetSocket sends frames on a namespace's eth0, and receives all that come.
func packetSocket(t *testing.T, ns *nettest.NS) (fd int) {
	t.Helper()
	ns.Run(func() {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		const all = uint16(unix.ETH_P_ALL)
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: eth0.Index}); err != nil {
			t.Fatal(err)
		}
	})
	return fd
}
