package watch

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fcache "k8s.io/client-go/tools/cache/testing"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/anycast"
	"flock.fritzlab.net/flock/pkg/datapath/hostport"
	"flock.fritzlab.net/flock/pkg/datapath/kernel/kerneltest"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/service"
	"flock.fritzlab.net/flock/pkg/datapath/sourceguard"
	"flock.fritzlab.net/flock/pkg/datapath/survey"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/netlink"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
	"flock.fritzlab.net/flock/pkg/pod"
)

// node is a node with all features, pods with static and anycast addresses, and a Watcher.
type node struct {
	*nettest.NS
	t       testing.TB
	host    *wiring.Host
	guard   *sourceguard.Guard
	anycast *anycast.Controller
	policy  *policy.Enforcer
	pods    []*testPod
	*Watcher
	// syncs counts the Syncs of all features but the survey.
	syncs atomic.Int64
	// synced is when a feature's Sync last came back with repairs, in nanoseconds since the
	// epoch, and what they were.
	synced  atomic.Int64
	mu      sync.Mutex // guards repairs
	repairs []datapath.Repair
}

type testPod struct {
	*nettest.NS
	wiring.Attachment
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// newNode makes a node with pods. change may change the Watcher before it runs.
func newNode(t testing.TB, pods int, change func(*Watcher)) *node {
	t.Helper()
	n := &node{NS: nettest.New(t), t: t}
	var fib *anycast.FIB
	var surveyor *survey.Surveyor
	var ports *hostport.Ports
	var services *service.Routes
	var policies *policy.Table
	n.Run(func() {
		var err error
		if n.host, err = wiring.Open(); err != nil {
			t.Fatal(err)
		}
		if n.guard, err = sourceguard.Open(); err != nil {
			t.Fatal(err)
		}
		if fib, err = anycast.OpenFIB(); err != nil {
			t.Fatal(err)
		}
		if ports, err = hostport.Open(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		if services, err = service.Open(); err != nil {
			t.Fatal(err)
		}
		if policies, err = policy.Open(policy.DefaultMark); err != nil {
			t.Fatal(err)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if n.Watcher != nil {
			n.Watcher.Close()
			surveyor.Close()
		}
		fib.Close()
		ports.Close()
		services.Close()
		policies.Close()
		n.guard.Close()
		n.host.Close()
	})
	n.anycast = anycast.NewController(anycast.Config{Kernel: fib})
	running.Go(func() { n.anycast.Run(ctx) })
	n.policy = policy.New(policy.Config{Table: policies, Sources: policySources(), Log: slog.New(slog.DiscardHandler)})
	running.Go(func() { n.policy.Run(ctx) })
	n.policy.SetComplete()
	summaries := wiring.NodeState{Summaries: []netip.Prefix{netip.MustParsePrefix("2001:db8:100::/64"), netip.MustParsePrefix("10.244.0.0/16")}}
	if _, err := n.host.ApplyNode(summaries); err != nil {
		t.Fatal(err)
	}
	if err := n.guard.Resync(nil); err != nil {
		t.Fatal(err)
	}
	for range pods {
		n.addPod()
	}
	last := n.pods[pods-1]
	binding := hostport.Binding{HostIf: last.HostIf, Addrs: last.Routed, Ports: []pod.HostPort{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}}
	if err := ports.Reset([]hostport.Binding{binding}); err != nil {
		t.Fatal(err)
	}
	announced := service.Entry{Announced: true, Local: true}
	interim := service.Interim{{Addr: netip.MustParseAddr("203.0.113.7"), Protocol: 6, Port: 80}: {To: netip.MustParseAddrPort("10.244.1.10:8080"), Until: time.Now().Add(time.Hour)}}
	services.Reset(map[netip.Prefix]service.Entry{netip.MustParsePrefix("2001:db8:6::7/128"): announced, netip.MustParsePrefix("203.0.113.7/32"): announced}, interim)
	if err := services.Complete(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.anycast.Status(ctx); err != nil {
		t.Fatal(err)
	}

	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	n.Run(func() {
		var err error
		if surveyor, err = survey.Open(); err != nil {
			t.Fatal(err)
		}
		n.Watcher, err = Open(Config{
			Features: []datapath.Feature{timed{n.host, n}, timed{n.guard, n}, timed{n.anycast, n}, timed{ports, n}, timed{services, n}, timed{n.policy, n}, timed{surveyor, n}}, Log: log,
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	if change != nil {
		change(n.Watcher)
	}
	running.Go(func() {
		if err := n.Watcher.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	n.eventually("each feature has looked", func() bool { return n.syncs.Load() >= 5 })
	return n
}

// deafen puts sockets in place that hear of nothing.
func (e *events) deafen(t testing.TB) {
	var err error
	if e.routes, err = rtnl.Subscribe(); err != nil {
		t.Fatal(err)
	}
	if e.tables, err = netlink.Subscribe(unix.NETLINK_NETFILTER, nil); err != nil {
		t.Fatal(err)
	}
}

// Run is the namespace's: the Watcher has one too.
func (n *node) Run(f func()) { n.t.Helper(); n.NS.Run(f) }

// timed notes what a feature repairs.
type timed struct {
	datapath.Feature
	n *node
}

func (f timed) Notes() []string {
	if n, ok := f.Feature.(noter); ok {
		return n.Notes()
	}
	return nil
}

func (f timed) Sync(ctx context.Context) ([]datapath.Repair, error) {
	repairs, err := f.Feature.Sync(ctx)
	if len(repairs) > 0 {
		f.n.synced.Store(time.Now().UnixNano())
		f.n.mu.Lock()
		f.n.repairs = append(f.n.repairs, repairs...)
		f.n.mu.Unlock()
	}
	if f.Name() != "survey" {
		f.n.syncs.Add(1)
	}
	return repairs, err
}

// addPod wires a pod with an address of each kind, and has it announced.
func (n *node) addPod() *testPod {
	n.t.Helper()
	i := len(n.pods) + 1
	id := fmt.Sprintf("container-%d", i)
	p := &testPod{nettest.New(n.t), wiring.Attachment{
		ContainerID: id, HostIf: wiring.HostIfName(id), PodIf: "eth0", Alias: fmt.Sprintf("test/pod-%d", i), MTU: 1500,
		Routed:    []netip.Addr{addr(fmt.Sprintf("2001:db8:100::%x", i)), addr(fmt.Sprintf("10.244.%d.%d", i>>8, i&255))},
		Announced: []netip.Addr{addr(fmt.Sprintf("2001:db8:5::%x", i))},
	}}
	p.Addrs = slices.Concat(p.Routed, p.Announced, []netip.Addr{addr("2001:db8:a::53"), addr("192.0.2.53")})
	if err := n.guard.Set(sourceguard.Binding{HostIf: p.HostIf, LinkLocal: wiring.LinkLocal(wiring.PodMAC(id)), Sources: p.Addrs}); err != nil {
		n.t.Fatal(err)
	}
	if err := n.policy.Prepare(n.t.Context(), policy.Pod{Namespace: "test", Name: id, UID: id, Links: []string{p.HostIf}, Addrs: p.Addrs}); err != nil {
		n.t.Fatal(err)
	}
	attached, err := n.host.Attach(p.File(), p.Attachment)
	if err != nil {
		n.t.Fatal(err)
	}
	announce(n.anycast, p, attached.HostIfIndex)
	n.pods = append(n.pods, p)
	return p
}

// policySources have a policy by which all pods may talk with each other, and with a block
// of addresses.
func policySources() policy.Sources {
	block := &networkingv1.IPBlock{CIDR: "198.51.100.0/24", Except: []string{"198.51.100.7/32"}}
	peers := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}, {IPBlock: block}}
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: "pods"}}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
	p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peers}}
	source := fcache.NewFakeControllerSource()
	source.Add(p)
	return policy.Sources{NetworkPolicies: listed{source}}
}

// listed is a source without streaming lists.
type listed struct{ *fcache.FakeControllerSource }

func (listed) IsWatchListSemanticsUnSupported() bool { return true }

// objects are all of flock's in the node's kernel.
func (n *node) objects() []kerneltest.Object {
	n.t.Helper()
	all, err := kerneltest.Objects(n.Try)
	if err != nil {
		n.t.Fatal(err)
	}
	return all
}

// remove takes an object away, and returns when that was.
func (n *node) remove(o kerneltest.Object) (at time.Time) {
	n.t.Helper()
	at = time.Now()
	n.Run(func() {
		if out, err := exec.Command("sh", "-c", o.Remove).CombinedOutput(); err != nil {
			n.t.Fatalf("%s: %v: %s", o.Remove, err, out)
		}
	})
	return at
}

func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("never came: %s", what)
		}
	}
}

// stream sends a datagram a millisecond from one pod to another, and counts those that came.
type stream struct {
	sent atomic.Int64
	stop func()

	mu       sync.Mutex // guards all below
	received int64
	next     int64 // after the highest number received; packets do not overtake each other
}

func (n *node) stream(from, to *testPod) *stream {
	n.t.Helper()
	var in *net.UDPConn
	var out net.Conn
	var err error
	at := netip.AddrPortFrom(to.Addrs[0], 5300)
	to.NS.Run(func() { in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)) })
	if err != nil {
		n.t.Fatal(err)
	}
	from.NS.Run(func() { out, err = net.Dial("udp", at.String()) })
	if err != nil {
		n.t.Fatal(err)
	}
	s := &stream{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for b := make([]byte, 8); ; {
			if _, err := in.Read(b); err != nil {
				return
			}
			s.mu.Lock()
			s.received++
			s.next = int64(binary.BigEndian.Uint64(b)) + 1
			s.mu.Unlock()
		}
	})
	running.Go(func() {
		for tick := time.NewTicker(time.Millisecond); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			out.Write(binary.BigEndian.AppendUint64(nil, uint64(s.sent.Load()))) // refused: lost
			s.sent.Add(1)
		}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		time.AfterFunc(100*time.Millisecond, func() { in.Close() })
		running.Wait()
		out.Close()
	})
	n.t.Cleanup(s.stop)
	return s
}

// lost is how many datagrams have not come so far, past those that are on their way.
func (s *stream) lost() int64 {
	sent := s.sent.Load()
	for deadline := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		next, received := s.next, s.received
		s.mu.Unlock()
		if next >= sent || time.Now().After(deadline) {
			return max(next, sent) - received
		}
	}
}

// lostNotification says that there were more than the socket holds.
var lostNotification rtnl.Notification
