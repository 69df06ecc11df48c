package hostport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/pod"
)

const (
	node6, node4     = "2001:db8:0:1::11", "192.0.2.11"
	client6, client4 = "2001:db8:0:1::99", "192.0.2.99"
)

// fabric is a client on the node's link, a node, and its pods.
type fabric struct {
	t            *testing.T
	client, node *nettest.NS
	host         *wiring.Host
	ports        *Ports
}

func newFabric(t *testing.T) *fabric {
	f := &fabric{t: t, client: nettest.New(t), node: nettest.New(t)}
	f.node.Sysctl("ipv6/conf/all/forwarding", "1")
	f.node.Sysctl("ipv4/ip_forward", "1")
	f.client.Veth("eth0", f.node, "eth0")
	for ns, addrs := range map[*nettest.NS][]string{f.client: {client6 + "/64", client4 + "/24"}, f.node: {node6 + "/64", node4 + "/24", "192.0.2.12/24"}} {
		for _, a := range addrs {
			ns.Address("eth0", a)
		}
	}
	f.client.IP("-6", "route", "add", "default", "via", node6)
	f.client.IP("route", "add", "default", "via", node4)
	f.node.Run(func() {
		var err error
		if f.host, err = wiring.Open(); err != nil {
			t.Fatal(err)
		}
		if f.ports, err = Open(slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(f.host.Close)
	t.Cleanup(f.ports.Close)
	if err := f.ports.Reset(nil); err != nil {
		t.Fatal(err)
	}
	return f
}

// pod is one that answers on port 80 of TCP, UDP and SCTP, where the kernel has it, with its
// name and the address of who asked.
type testPod struct {
	Binding
	ns *nettest.NS
}

func (f *fabric) pod(name string, ports ...pod.HostPort) testPod {
	f.t.Helper()
	p := testPod{ns: nettest.New(f.t)}
	p.HostIf = wiring.HostIfName(name)
	p.Addrs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8:100:1::%x", name[0])), netip.AddrFrom4([4]byte{10, 244, 1, name[0]})}
	p.Ports = ports
	if _, err := f.host.Attach(p.ns.File(), wiring.Attachment{
		ContainerID: name, HostIf: p.HostIf, PodIf: "eth0", Alias: "shop/" + name, Addrs: p.Addrs, Routed: p.Addrs,
	}); err != nil {
		f.t.Fatal(err)
	}
	answers(f.t, p.ns, name, "[::]:80")
	if err := f.ports.Set(p.Binding); err != nil {
		f.t.Fatal(err)
	}
	return p
}

// answers has a namespace answer on an address, for TCP and UDP.
func answers(t *testing.T, ns *nettest.NS, name, addr string) {
	t.Helper()
	ns.Run(func() {
		stream, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		packets, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { packets.Close() })
		nettest.Serve(t, stream, func(c net.Conn) { fmt.Fprintf(c, "%s %s", name, host(c.RemoteAddr())) })
		go func() {
			b := make([]byte, 100)
			for {
				_, from, err := packets.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = packets.WriteTo(fmt.Appendf(nil, "%s %s", name, host(from)), from)
			}
		}()
	})
}

func host(a net.Addr) string {
	return netip.MustParseAddrPort(a.String()).Addr().Unmap().String()
}

// ask returns the answer to a connection from a namespace.
func ask(ns *nettest.NS, network, addr string) (answer string, err error) {
	ns.Run(func() {
		var c net.Conn
		if c, err = net.DialTimeout(network, addr, time.Second); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if network == "udp" {
			_, _ = c.Write([]byte("?"))
			b := make([]byte, 100)
			var n int
			n, err = c.Read(b)
			answer = string(b[:n])
			return
		}
		var b []byte
		b, err = io.ReadAll(c)
		answer = string(b)
	})
	return answer, err
}

func (f *fabric) expect(ns *nettest.NS, network, addr, want string) {
	f.t.Helper()
	if got, err := ask(ns, network, addr); got != want {
		f.t.Errorf("%s %s answers %q, %v; want %q\n%s", network, addr, got, err, want, f.node.Exec("nft", "list", "ruleset"))
	}
}

func port(protocol string, hostPort uint16, hostIP ...string) pod.HostPort {
	p := pod.HostPort{HostPort: hostPort, ContainerPort: 80, Protocol: protocol}
	for _, ip := range hostIP {
		p.HostIP = netip.MustParseAddr(ip)
	}
	return p
}

func at(addr string, port int) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }

func TestPorts(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a := f.pod("a", port("tcp", 8080), port("udp", 8080))
	f.pod("b", port("tcp", 9090, "127.0.0.1"))
	f.pod("c", port("tcp", 9090, node4), port("udp", 7070, "0.0.0.0"), port("tcp", 7070, node6))
	f.pod("d")

	// From outside the source stays what it is.
	for _, network := range []string{"tcp", "udp"} {
		f.expect(f.client, network, at(node4, 8080), "a "+client4)
		f.expect(f.client, network, at("192.0.2.12", 8080), "a "+client4)
		f.expect(f.client, network, at(node6, 8080), "a "+client6)
		// From the node: by each of its addresses, and by 127.0.0.1.
		f.expect(f.node, network, at(node4, 8080), "a "+node4)
		f.expect(f.node, network, at(node6, 8080), "a "+node6)
		f.expect(f.node, network, at("127.0.0.1", 8080), "a "+node4)
		// From a pod, the same one included.
		f.expect(a.ns, network, at(node4, 8080), "a "+node4)
		f.expect(a.ns, network, at(node6, 8080), "a "+node6)
	}
	// One port of two addresses of the node, and of two protocols.
	f.expect(f.node, "tcp", at("127.0.0.1", 9090), "b "+node4)
	f.expect(f.client, "tcp", at(node4, 9090), "c "+client4)
	f.expect(f.client, "udp", at("192.0.2.12", 7070), "c "+client4)
	f.expect(f.client, "tcp", at(node6, 7070), "c "+client6)
	for _, other := range []string{at("192.0.2.12", 9090), at(node6, 9090), at(node4, 7070), at(node4, 80), at("10.244.1.97", 8080)} {
		if got, err := ask(f.client, "tcp", other); err == nil {
			t.Errorf("%s answers %q", other, got)
		}
	}
	// Everything else stays as it is.
	f.expect(f.client, "tcp", at("10.244.1.100", 80), "d "+client4)

	// The one that came last has the port; when it goes, the one before.
	e := f.pod("e", port("tcp", 8080))
	f.expect(f.client, "tcp", at(node4, 8080), "e "+client4)
	if err := f.ports.Remove(e.HostIf); err != nil {
		t.Fatal(err)
	}
	f.expect(f.client, "tcp", at(node4, 8080), "a "+client4)
	if err := f.ports.Remove(a.HostIf); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(f.client, "tcp", at(node4, 8080)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after it was removed it answers %q, %v", got, err)
	}
}

// keepsSending is a client that never pauses. The result checks who answers it.
func (f *fabric) keepsSending(t *testing.T) (expect func(want string)) {
	t.Helper()
	var c net.Conn
	f.client.Run(func() {
		var err error
		if c, err = net.Dial("udp", at(node4, 8080)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	answer := func() string {
		b := make([]byte, 100)
		for range 100 { // the first of them may be refused, or be an answer to the one before
			_, _ = c.Write([]byte("?"))
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if n, err := c.Read(b); err == nil {
				return string(b[:n])
			}
		}
		return "nothing"
	}
	_, _ = c.Write([]byte("?"))
	return func(want string) {
		t.Helper()
		nettest.Eventually(t, func() error {
			if got := answer(); got != want {
				return fmt.Errorf("the client gets %q, want %q; conntrack has\n%s", got, want, f.node.Exec("cat", "/proc/net/nf_conntrack"))
			}
			return nil
		})
	}
}

// A client that never pauses follows the port: to the first pod that gets it, to the
// next one, and to none.
func TestUDPFlowFollowsThePort(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	f.pod("other", port("udp", 9999)) // so that there is connection tracking
	expect := f.keepsSending(t)
	a := f.pod("a", port("udp", 8080))
	expect("a " + client4)
	b := f.pod("b", port("udp", 8080))
	expect("b " + client4)
	if err := f.ports.Remove(b.HostIf); err != nil {
		t.Fatal(err)
	}
	expect("a " + client4)
	if err := f.ports.Remove(a.HostIf); err != nil {
		t.Fatal(err)
	}
	expect("nothing")
}

// Flows that could not be forgotten when the port moved, for want of a file descriptor, are
// forgotten later. The test is alone in its process while it has none.
func TestFlowsAreForgottenLater(t *testing.T) {
	f := newFabric(t)
	f.pod("other", port("udp", 9999)) // so that there is connection tracking
	expect := f.keepsSending(t)
	a := f.pod("a", port("udp", 8080))
	expect("a " + client4)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	_ = f.ports.Remove(a.HostIf) // its sysctls fail too
	_, unsettled := f.ports.Sync(t.Context())
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if unsettled == nil {
		t.Error("no error, by which it is tried again")
	}
	if _, err := f.ports.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	expect("nothing")
}

// A pod with many UDP ports costs little more than one with one: the kernel's flows are looked
// through once, however many ports there are. Others' ADDs with host ports do not wait for that.
func TestManyUDPPorts(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	f.pod("other", port("udp", 9999)) // so that there is connection tracking
	takes := func(n int) time.Duration {
		b := Binding{HostIf: "flock00000001", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.9")}}
		for i := range n {
			b.Ports = append(b.Ports, port("udp", uint16(20000+i)))
		}
		best := time.Hour
		for range 3 {
			began := time.Now()
			if err := f.ports.Set(b); err != nil {
				t.Fatal(err)
			}
			best = min(best, time.Since(began))
			if err := f.ports.Remove(b.HostIf); err != nil {
				t.Fatal(err)
			}
		}
		return best
	}
	if one, many := takes(1), takes(256); many > 32*one {
		t.Errorf("256 ports take %v, and one %v", many, one)
	}
	f.ports.deciding.Lock() // as while another pod's flows are looked for
	defer f.ports.deciding.Unlock()
	done := make(chan error, 1)
	go func() {
		done <- f.ports.Set(Binding{HostIf: "flock00000002", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.8")}, Ports: []pod.HostPort{port("tcp", 8081)}})
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a pod without a UDP port waits for the flows of another")
	}
}

// A node without such pods has no table, and no connection tracking for it.
func TestNothingToForward(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a := f.pod("a", port("tcp", 8080))
	if err := f.ports.Remove(a.HostIf); err != nil {
		t.Fatal(err)
	}
	if err := f.ports.Remove(a.HostIf); err != nil {
		t.Error(err)
	}
	if out := f.node.Exec("nft", "list", "ruleset"); out != "" {
		t.Errorf("left: %s", out)
	}
}

// A pod must not reach what listens on the node's own loopback.
func TestLoopbackOfTheNodeIsClosed(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a := f.pod("a", port("tcp", 8080))
	answers(t, f.node, "node", "127.0.0.1:5555")
	f.expect(f.node, "tcp", "127.0.0.1:5555", "node 127.0.0.1")
	// As an attacker in the pod would: with 127/8 out of the pod's loopback.
	a.ns.IP("addr", "flush", "dev", "lo")
	a.ns.Sysctl("ipv4/conf/all/route_localnet", "1")
	a.ns.IP("route", "add", "127.0.0.1/32", "via", "169.254.1.1", "dev", "eth0", "onlink")
	if got, err := ask(a.ns, "tcp", "127.0.0.1:5555"); err == nil || got != "" {
		t.Errorf("the pod got %q", got)
	}
	f.node.Exec("nft", "flush chain inet flock-hostport loopback") // or the above would show nothing
	if got, err := ask(a.ns, "tcp", "127.0.0.1:5555"); !strings.HasPrefix(got, "node ") {
		t.Errorf("without the rule the pod got %q, %v", got, err)
	}
}

// Of two pods with the same port the newest has it, also after a restart of the agent.
func TestNewestPodHasThePortAfterReset(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a, b := f.pod("a", port("tcp", 8080)), f.pod("b", port("tcp", 8080))
	for _, all := range [][]Binding{{a.Binding, b.Binding}, {b.Binding, a.Binding}} {
		if err := f.ports.Reset(all); err != nil {
			t.Fatal(err)
		}
		want := "a "
		if all[1].HostIf == b.HostIf {
			want = "b "
		}
		f.expect(f.client, "tcp", at(node4, 8080), want+client4)
	}
}

func TestSync(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a := f.pod("a", port("tcp", 8080), port("tcp", 8081, node6))
	sync := func() string {
		t.Helper()
		repairs, err := f.ports.Sync(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, r := range repairs {
			words = append(words, r.String())
		}
		return strings.Join(words, "; ")
	}
	if got := sync(); got != "" {
		t.Errorf("in a kernel that has all: %s", got)
	}
	// Where the records are lost, the kernel remembers.
	got, err := f.ports.Observed()
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr][]pod.HostPort{
		a.Addrs[0]: {port("tcp", 8081, node6), port("tcp", 8080, "::")},
		a.Addrs[1]: {port("tcp", 8080, "0.0.0.0")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the kernel has %v, want %v", got, want)
	}
	table := "inet flock-hostport"
	for change, want := range map[string]string{
		"flush ruleset":                                                              "table inet flock-hostport: missing",
		"flush chain " + table + " prerouting":                                       "chain inet flock-hostport prerouting: other rules (0, want 1)",
		"flush map " + table + " host-ports4":                                        "set inet flock-hostport host-ports4: other elements (0, want 1)",
		"add rule " + table + " to-pods drop":                                        "chain inet flock-hostport to-pods: other rules (5, want 4)",
		"add chain " + table + " mine":                                               "chain inet flock-hostport mine: stray",
		"add set " + table + " mine { type ipv4_addr; }":                             "set inet flock-hostport mine: stray",
		"flush chain " + table + " loopback; flush map " + table + " host-ip-ports6": "chain inet flock-hostport loopback: other rules (0, want 1); set inet flock-hostport host-ip-ports6: other elements (0, want 1)",
		"delete chain " + table + " loopback":                                        "chain inet flock-hostport loopback: missing",
		"add table " + table + " { flags dormant; }":                                 "table inet flock-hostport: dormant",
	} {
		if out, err := f.node.Try("nft", change); err != nil {
			t.Fatal(out, err)
		}
		if got := sync(); got != want {
			t.Errorf("after %q: %s; want %s", change, got, want)
		}
		f.expect(f.client, "tcp", at(node6, 8081), "a "+client6)
		if got := sync(); got != "" {
			t.Errorf("after the repair of %q: %s", change, got)
		}
	}
	f.node.Sysctl("ipv4/conf/"+a.HostIf+"/route_localnet", "0")
	if got, want := sync(), "net.ipv4.conf."+a.HostIf+".route_localnet=1: 0"; got != want {
		t.Errorf("after a sysctl was changed: %s; want %s", got, want)
	}
	// The next agent starts from its records: what they do not have goes.
	if err := f.ports.Reset(nil); err != nil {
		t.Fatal(err)
	}
	if out := f.node.Exec("nft", "list", "ruleset"); out != "" {
		t.Errorf("left: %s", out)
	}
}

// SCTP has no place in package net.
func TestSCTP(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	a := f.pod("a", port("sctp", 8080))
	server, err := sctp(a.ns, func(fd int) error {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 80}); err != nil {
			return err
		}
		return unix.Listen(fd, 1)
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Skip("this kernel has no SCTP; the rule is that of TCP with another protocol number")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	client, err := sctp(f.client, func(fd int) error {
		return unix.Connect(fd, &unix.SockaddrInet4{Port: 8080, Addr: netip.MustParseAddr(node4).As4()})
	})
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(client)
}

func sctp(ns *nettest.NS, use func(fd int) error) (fd int, err error) {
	ns.Run(func() {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP); err == nil {
			err = use(fd)
		}
	})
	return fd, err
}

// However many ports others have, a pod gets its own: they are all in one transaction.
func TestThousandsOfPorts(t *testing.T) {
	t.Parallel()
	var ports *Ports
	nettest.New(t).Run(func() {
		var err error
		if ports, err = Open(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(ports.Close)
	of := func(link, from, n int) Binding {
		b := Binding{HostIf: fmt.Sprintf("flock%08x", link), Addrs: []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("10.0.0.1")}}
		for i := range n {
			b.Ports = append(b.Ports, pod.HostPort{HostPort: uint16(from + i), ContainerPort: 80, Protocol: "tcp"})
		}
		return b
	}
	for i := range 40 {
		if err := ports.Set(of(i, 1000+256*i, 256)); err != nil {
			t.Fatalf("pod %d with 256 ports: %v", i, err)
		}
	}
	if err := ports.Set(of(1000, 80, 1)); err != nil {
		t.Errorf("a pod with one port: %v", err)
	}
}
