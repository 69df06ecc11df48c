package agent_test

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/address/annotation"
)

var podStarts = flag.Int("pod-starts", 50, "how many pods TestNoPacketBeforePolicies starts")

const probePort = 7777

// flood sends datagrams from a namespace to all addresses, one after the other, until
// stop is called, and returns how many were sent to each. No pause is in between.
func flood(t *testing.T, ns *nettest.NS, to []netip.Addr) (stop func() (each int64)) {
	t.Helper()
	sockets := map[bool]int{}
	ns.Run(func() {
		for is4, family := range map[bool]int{true: unix.AF_INET, false: unix.AF_INET6} {
			fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			sockets[is4] = fd
		}
	})
	type probe struct {
		fd int
		to unix.Sockaddr
	}
	var probes []probe
	for _, a := range to {
		if a.Is4() {
			probes = append(probes, probe{sockets[true], &unix.SockaddrInet4{Port: probePort, Addr: a.As4()}})
		} else {
			probes = append(probes, probe{sockets[false], &unix.SockaddrInet6{Port: probePort, Addr: a.As16()}})
		}
	}
	var rounds atomic.Int64
	ended := make(chan struct{})
	var over atomic.Bool
	go func() {
		defer close(ended)
		for !over.Load() {
			for _, p := range probes {
				unix.Sendto(p.fd, []byte("probe"), unix.MSG_DONTWAIT, p.to) // no way there: the next
			}
			rounds.Add(1)
		}
	}()
	var once sync.Once
	stop = func() int64 {
		once.Do(func() {
			over.Store(true)
			<-ended
			for _, fd := range sockets {
				unix.Close(fd)
			}
		})
		return rounds.Load()
	}
	t.Cleanup(func() { stop() })
	return stop
}

// arrivals counts probes that come to any link of a namespace, also to one that is made
// later, before anything can filter them.
func arrivals(t *testing.T, ns *nettest.NS) (count func() int) {
	t.Helper()
	fd := -1
	ns.Run(func() {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}))); err != nil {
			t.Fatal(err)
		}
		const ignoreOutgoing = 23 // PACKET_IGNORE_OUTGOING
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, ignoreOutgoing, 1); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	var mu sync.Mutex
	return func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		b := make([]byte, 256)
		for {
			size, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return n
			}
			if isProbe(b[:size]) {
				n++
			}
		}
	}
}

// isProbe says whether a packet from its IP header on is a datagram to probePort.
func isProbe(b []byte) bool {
	head := 40
	switch {
	case len(b) < 28:
		return false
	case b[0]>>4 == 4 && b[9] == unix.IPPROTO_UDP:
		head = int(b[0]&15) * 4
	case b[0]>>4 == 6 && b[6] == unix.IPPROTO_UDP:
	default:
		return false
	}
	return len(b) >= head+4 && binary.BigEndian.Uint16(b[head+2:]) == probePort
}

// No packet gets to a pod, or from it, before its policies are in force: pods start and
// end, with the same addresses again and again, while another machine and another pod
// send to these without a pause, and each pod sends from its first moment on.
func TestNoPacketBeforePolicies(t *testing.T) {
	const workers = 4
	config := strings.Replace(nodeConfig, `"podCIDRs":{`, `"podCIDRs":{"static":{"namespaceSelector":{}},`, 1)
	n := newNode(t, config)
	api := n.serveAPI()
	api.put("a", 3, config)
	api.namespaces.put("shop", corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	closed := isolate("web", "")
	closed.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	api.policies.put("closed", closed)
	api.labeled("neighbor", map[string]string{"app": "neighbor"})
	var addrs []netip.Addr
	for w := range workers {
		addrs = append(addrs, netip.MustParseAddr(fmt.Sprintf("2001:db8:1::7:%d", w)), netip.MustParseAddr(fmt.Sprintf("10.1.0.%d", 100+w)))
	}
	put := func(name, app string, worker int) {
		api.pods.Store("/api/v1/namespaces/shop/pods/"+name, corev1.Pod{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": app}, ResourceVersion: "1",
				Annotations: map[string]string{annotation.Addresses: fmt.Sprintf("%v,%v", addrs[2*worker], addrs[2*worker+1])},
			},
			Spec: corev1.PodSpec{NodeName: "node1"},
		})
	}
	n.start()
	neighbor := n.sandbox("neighbor")
	neighbor.mustAddPod("neighbor")
	router := netip.MustParseAddr("2001:db8:ffff::1")
	atRouter := arrivals(t, n.router)
	fromRouter, fromNeighbor := flood(t, n.router, addrs), flood(t, neighbor.ns, addrs)

	// run starts a pod and ends it, and returns what came to it and from it.
	run := func(name string, worker int, open bool) (in, out int) {
		p := n.sandbox(name)
		count := arrivals(t, p.ns)
		stop := flood(t, p.ns, []netip.Addr{router, netip.MustParseAddr("192.0.2.1")})
		defer stop()
		var err error
		eventually(t, n.agentLog, func() error {
			// The pod before has the addresses until its link is deleted: the runtime tries again.
			_, err = p.addPod(name)
			if refused := (*cnitypes.Error)(nil); errors.As(err, &refused) && refused.Code == cnitypes.ErrTryAgainLater {
				return err
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return 0, 0
		}
		if open {
			eventually(t, n.agentLog, func() error {
				in, out = in+count(), out+atRouter()
				if in == 0 || out == 0 {
					return fmt.Errorf("%d packets reach a pod that nothing isolates, and %d the router from it", in, out)
				}
				return nil
			})
		}
		in += count()
		stop()
		runtime, list := n.network()
		if err := runtime.DelNetworkList(t.Context(), list, p.podConf(name)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return in + count(), out + atRouter() // before its buffer is full of other packets
	}
	began := time.Now()
	var next, reached, left atomic.Int64 // pods begun and reached, and packets that left some
	inParallel(make([]struct{}, workers), func(worker int, _ struct{}) {
		for {
			i := int(next.Add(1))
			if i > *podStarts || t.Failed() {
				return
			}
			name := fmt.Sprintf("web-%d", i)
			put(name, "web", worker)
			in, out := run(name, worker, false)
			left.Add(int64(out))
			if in > 0 {
				reached.Add(1)
				t.Errorf("%d packets reached %s", in, name)
			}
		}
	})
	took := time.Since(began)
	if n := left.Load(); n > 0 {
		t.Errorf("%d packets of pods reached the router", n)
	}
	// What the probes are worth: they reach a pod that nothing isolates.
	put("open", "open", 0)
	run("open", 0, true)
	t.Logf("%d pods in %s: packets reached %d of them; each address was sent %d datagrams by another machine and %d by another pod",
		*podStarts, took.Round(time.Millisecond), reached.Load(), fromRouter(), fromNeighbor())
}
