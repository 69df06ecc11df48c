package anycast

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/netlink"
	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/bird"
	"flock.fritzlab.net/flock/pkg/routing/birdc"
)

// fabric is a client, a router and a node in a row, and pods that are wired to the
// node as flock wires them. Node and router have a BIRD each; the node's is
// configured by what flock renders.
type fabric struct {
	t                    testing.TB
	client, router, node *nettest.NS
	host                 *wiring.Host
	bird                 string // the control socket of the node's BIRD
	fib                  *FIB
}

const (
	clientAddr  = "2001:db8:0:2::2"
	clientAddr4 = "198.51.100.2"
)

const routerConf = `
log stderr all;
router id 192.0.2.1;
protocol device {}
protocol kernel { ipv6 { export all; }; }
protocol kernel { ipv4 { export all; }; }
protocol bgp node {
	local as 64512; neighbor 2001:db8:0:1::11 as 64601;
	connect delay time 1; connect retry time 1; error wait time 1, 1;
	ipv6 { import all; export none; };
	ipv4 { import all; export none; extended next hop; };
}
`

func newFabric(t testing.TB) *fabric {
	t.Helper()
	f := &fabric{t: t, client: nettest.New(t), router: nettest.New(t), node: nettest.New(t)}
	for _, ns := range []*nettest.NS{f.router, f.node} {
		ns.Sysctl("ipv6/conf/all/forwarding", "1")
		ns.Sysctl("ipv4/ip_forward", "1")
	}
	f.client.Veth("eth0", f.router, "outside")
	f.router.Veth("lan", f.node, "eth0")
	for _, a := range []struct {
		ns        *nettest.NS
		dev, addr string
	}{
		{f.client, "eth0", clientAddr + "/64"}, {f.client, "eth0", clientAddr4 + "/24"},
		{f.router, "outside", "2001:db8:0:2::1/64"}, {f.router, "outside", "198.51.100.1/24"},
		{f.router, "lan", "2001:db8:0:1::1/64"}, {f.router, "lan", "192.0.2.1/24"}, {f.router, "lan", "fe80::1/64"},
		{f.node, "eth0", "2001:db8:0:1::11/64"}, {f.node, "eth0", "192.0.2.11/24"}, {f.node, "eth0", "fe80::11/64"},
	} {
		a.ns.IP("addr", "add", a.addr, "dev", a.dev, "nodad")
	}
	for ns, via := range map[*nettest.NS][2]string{
		f.client: {"2001:db8:0:2::1", "198.51.100.1"}, f.node: {"2001:db8:0:1::1", "192.0.2.1"},
	} {
		ns.IP("-6", "route", "add", "default", "via", via[0])
		ns.IP("route", "add", "default", "via", via[1])
	}
	f.node.Run(func() {
		var err error
		if f.host, err = wiring.Open(); err != nil {
			t.Fatal(err)
		}
		if f.fib, err = OpenFIB(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(f.host.Close)
	t.Cleanup(f.fib.Close)
	return f
}

// speakBGP starts both BIRDs and waits for their session.
func (f *fabric) speakBGP() {
	f.t.Helper()
	node, err := config.ParseNode(&v1alpha1.NodeConfig{Spec: v1alpha1.NodeConfigSpec{
		PodCIDRs: v1alpha1.PodCIDRs{IPv6: []v1alpha1.CIDR{"2001:db8:100:1::/64"}},
		BGP: &v1alpha1.BGP{
			LocalAS: 64601, RouterID: "192.0.2.11",
			BGPPeering: v1alpha1.BGPPeering{Peers: []v1alpha1.BGPPeer{{Name: "tor", Address: "2001:db8:0:1::1", RemoteAS: 64512}}},
		},
	}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.bird = startBIRD(f.t, f.node, bird.Render(routing.IntentOf(node)))
	startBIRD(f.t, f.router, []byte(routerConf))
	nettest.Eventually(f.t, func() error {
		c, err := birdc.Dial(context.Background(), f.bird)
		if err != nil {
			return err
		}
		defer c.Close()
		ps, err := c.ShowProtocols(context.Background())
		for _, p := range ps {
			if p.BGP != nil && p.BGP.State == "Established" {
				return nil
			}
		}
		return fmt.Errorf("no session: %+v, %v", ps, err)
	})
}

// loaded is when the node's BIRD took its configuration, in its own words.
func (f *fabric) loaded() string {
	f.t.Helper()
	c, err := birdc.Dial(context.Background(), f.bird)
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.Close()
	lines, err := c.Do(context.Background(), "show status")
	if err != nil {
		f.t.Fatal(err)
	}
	for _, l := range lines {
		if strings.HasPrefix(l.Text, "Last reconfiguration on ") {
			return l.Text
		}
	}
	f.t.Fatalf("BIRD's status has no reconfiguration: %v", lines)
	return ""
}

func startBIRD(t testing.TB, ns *nettest.NS, conf []byte) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "flock-") // its path is short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "bird.conf")
	socket = filepath.Join(dir, "bird.ctl")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command("bird", "-f", "-c", file, "-s", socket, "-P", filepath.Join(dir, "bird.pid"))
	cmd.Stdout, cmd.Stderr = &log, &log
	ns.Run(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("bird: %s", log.String())
		}
	})
	return socket
}

// pod wires a pod called by one letter with its own address and those granted.
func (f *fabric) pod(name string, grants ...Grant) (*nettest.NS, Attached) {
	f.t.Helper()
	ns := nettest.New(f.t)
	id := "s" + name
	own := netip.MustParseAddr(fmt.Sprintf("2001:db8:100:1::%x", name[0]))
	a := wiring.Attachment{
		ContainerID: id, HostIf: wiring.HostIfName(id), PodIf: "eth0", Alias: "shop/" + name,
		Addrs: []netip.Addr{own, netip.AddrFrom4([4]byte{10, 244, 1, name[0]})}, Routed: []netip.Addr{own},
	}
	for _, g := range grants {
		a.Addrs = append(a.Addrs, g.Addr)
	}
	wired, err := f.host.Attach(ns.File(), a)
	if err != nil {
		f.t.Fatal(err)
	}
	return ns, Attached{ContainerID: id, Pod: pod.Ref{Namespace: "shop", Name: name, UID: pod.UID(name)}, Link: wired.HostIfIndex, Grants: grants}
}

// routeWatch is all changes of host routes in a namespace, as the kernel reports
// them.
type routeWatch struct {
	t      testing.TB
	fd     int
	mu     sync.Mutex // guards seen
	cond   *sync.Cond
	seen   []routeSeen
	closed bool
}

type routeSeen struct {
	at     time.Time
	addr   netip.Addr
	there  bool
	metric uint32
}

func watchRoutes(t testing.TB, ns *nettest.NS) *routeWatch {
	t.Helper()
	w := &routeWatch{t: t}
	w.cond = sync.NewCond(&w.mu)
	ns.Run(func() {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		w.fd = fd
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		groups := uint32(1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1))
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
			t.Fatal(err)
		}
	})
	unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000})
	done := make(chan struct{})
	go w.read(done)
	t.Cleanup(func() {
		w.mu.Lock()
		w.closed = true
		w.mu.Unlock()
		<-done
		unix.Close(w.fd)
	})
	return w
}

func (w *routeWatch) read(done chan<- struct{}) {
	defer close(done)
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(w.fd, buf)
		at := time.Now()
		w.mu.Lock()
		if w.closed {
			w.mu.Unlock()
			return
		}
		if err == nil {
			w.parse(at, buf[:n])
			w.cond.Broadcast()
		}
		w.mu.Unlock()
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			w.t.Errorf("route notifications: %v", err)
			return
		}
	}
}

func (w *routeWatch) parse(at time.Time, b []byte) {
	err := netlink.Messages(b, func(m netlink.Message) error {
		s := routeSeen{at: at, there: m.Type == unix.RTM_NEWROUTE}
		err := netlink.Attributes(m.Body[unix.SizeofRtMsg:], func(typ uint16, v []byte) error {
			switch typ {
			case unix.RTA_DST:
				s.addr, _ = netip.AddrFromSlice(v)
			case unix.RTA_PRIORITY:
				s.metric = binary.NativeEndian.Uint32(v)
			}
			return nil
		})
		w.seen = append(w.seen, s)
		return err
	})
	if err != nil {
		w.t.Errorf("route notifications: %v", err)
	}
}

// forget drops what was seen so far.
func (w *routeWatch) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = nil
}

// want waits until a route was seen to come (there) or to go, and returns when the
// kernel reported it. Metric 0 is any.
func (w *routeWatch) want(addr netip.Addr, there bool, metric uint32) time.Time {
	w.t.Helper()
	return w.wantAll([]netip.Addr{addr}, there, metric)
}

// wantAll is want for many: when the last came or went.
func (w *routeWatch) wantAll(addrs []netip.Addr, there bool, metric uint32) time.Time {
	w.t.Helper()
	limit := time.AfterFunc(15*time.Second, func() { w.cond.Broadcast() })
	defer limit.Stop()
	deadline := time.Now().Add(15 * time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	missing := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		missing[a] = true
	}
	for i := 0; ; {
		for ; i < len(w.seen); i++ {
			s := w.seen[i]
			if s.there == there && (metric == 0 || s.metric == metric) && missing[s.addr] {
				if delete(missing, s.addr); len(missing) == 0 {
					return s.at
				}
			}
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d routes, there=%t, of metric %d were not seen", len(missing), there, metric)
		}
		w.cond.Wait()
	}
}

func (w *routeWatch) of(addr netip.Addr) (seen []routeSeen) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.seen {
		if s.addr == addr {
			seen = append(seen, s)
		}
	}
	return seen
}
