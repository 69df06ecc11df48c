package bench

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	podsapi "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// anycastAnnotation is the pod's request for anycast addresses. With serviceAnnotation the
// benches themselves note the address of the Service that selects the pod alone.
const (
	anycastAnnotation = "flock.fritzlab.net/anycast"
	serviceAnnotation = "bench.flock.fritzlab.net/service"
)

// addressesOf are the addresses that stand for a pod, the first of them above all.
func addressesOf(pod *corev1.Pod) string {
	return cmp.Or(pod.Annotations[anycastAnnotation], pod.Annotations[serviceAnnotation])
}

// The kinds of sightings.
const (
	// published is the report of the kubelet's Pods API that the pod is Ready, or not.
	published = "published"
	// deleted is the report of the Pods API that the pod is being deleted.
	deleted = "deleted"
	// installed is the notification of an announced route by the node's kernel.
	installed = "installed"
	// routed is the notification of a route, or of its end, by the router's kernel.
	routed = "routed"
	// routedBase is routed at the baseline's router.
	routedBase = "routed-base"
	// reached is the first connection from outside since Ready.
	reached = "reached"
	// refused, unreachable and unanswered are connections from outside that failed before
	// that, at the time when each began.
	refused     = "refused"
	unreachable = "unreachable"
	unanswered  = "unanswered"
	// programmed is a change of the node's nftables that kube-proxy has made; of no address.
	programmed = "programmed"
	// sliced: an EndpointSlice says so of the only pod of a Service.
	sliced = "sliced"
	// exitContainerd and exitCRI: containerd's own event, or the CRI's, says that
	// the pod's container has ended.
	exitContainerd = "exit-containerd"
	exitCRI        = "exit-cri"
	// watching: all sources are being watched.
	watching = "watching"
)

// sighting is what was seen of an anycast address, which stands for the pod that
// has it; of several that a pod has, the first one does.
type sighting struct {
	// At is CLOCK_MONOTONIC in nanoseconds, which all namespaces share.
	At   int64      `json:"at"`
	What string     `json:"what"`
	Addr netip.Addr `json:"addr"`
	Yes  bool       `json:"yes"`
}

// observeInput is what an observer is to watch.
type observeInput struct {
	// PodsAPI is the kubelet's socket, Namespace that of the pods.
	PodsAPI, Namespace string
	// Runtime is containerd's socket.
	Runtime string
	// Node, Router and BaseRouter are the files of their network namespaces,
	// Outside that of the host from which pods are tried. Those that are empty
	// are not watched.
	Node, Router, BaseRouter, Outside string
	// Proxy: kube-proxy's changes on the node are watched, too.
	Proxy bool
	// MetalLB: so are the routes and the first connections of its Services, which have
	// the same pods. The sightings are of the address of flock's Service.
	MetalLB bool
}

// observe prints sightings, one JSON object a line, until the context ends. It is
// to be a process of its own: it takes real-time priority (SCHED_FIFO), so that
// on a busy machine what is timed is not how long the observer waits for its turn.
func observe(ctx context.Context, in observeInput, out io.Writer) error {
	if err := hurry(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var lock sync.Mutex
	enc := json.NewEncoder(out)
	report := func(s sighting) {
		lock.Lock()
		defer lock.Unlock()
		if err := enc.Encode(s); err != nil {
			cancel(err)
		}
	}

	var try func(netip.Addr)
	if in.Outside != "" {
		p := newProber(in.Outside, func(addr netip.Addr, at int64) { report(sighting{at, reached, addr, true}) })
		p.failed = func(addr netip.Addr, began int64, what string) { report(sighting{began, what, addr, true}) }
		go func() { cancel(p.run(ctx)) }()
		try = p.try
	}
	if in.MetalLB {
		p := newProber(in.Outside, func(addr netip.Addr, at int64) {
			report(sighting{at, ofMetalLB(reached), serviceOfMetalLB(addr), true})
		})
		p.failed = func(addr netip.Addr, began int64, what string) {
			report(sighting{began, ofMetalLB(what), serviceOfMetalLB(addr), true})
		}
		p.tryFor = metalLBTryFor
		go func() { cancel(p.run(ctx)) }()
		tryFlock := try
		try = func(addr netip.Addr) {
			tryFlock(addr)
			if servicePool.Contains(addr) {
				p.try(metalLBAddr(addr))
			}
		}
		fd, err := listenRoutes(in.Router, metalLBRoutes)
		if err != nil {
			return err
		}
		go func() {
			cancel(watchRoutes(ctx, fd, metalLBRoutes, ofMetalLB(routed), func(s sighting) {
				s.Addr = serviceOfMetalLB(s.Addr)
				report(s)
			}))
		}()
	}
	if in.Proxy {
		fd, err := listenGenerations(in.Node)
		if err != nil {
			return err
		}
		go func() { cancel(watchGenerations(ctx, fd, report)) }()
	}
	for what, file := range map[string]string{installed: in.Node, routed: in.Router, routedBase: in.BaseRouter} {
		if file == "" {
			continue
		}
		fd, err := listenRoutes(file, mainRoutes)
		if err != nil {
			return err
		}
		go func() { cancel(watchRoutes(ctx, fd, mainRoutes, what, report)) }()
	}
	known := &containers{of: map[string]netip.Addr{}}
	if in.Runtime != "" {
		go func() { cancel(watchExits(ctx, in.Runtime, known, report)) }()
	}
	return errors.Join(watchPods(ctx, in, known, report, try), unlessDone(context.Cause(ctx)))
}

// unlessDone passes over the end that was asked for.
func unlessDone(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// hurry gives all threads of this process real-time priority, and so those that
// they make.
func hurry() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
		if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("real-time priority for the observer: %w", err)
		}
	}
	return nil
}

// monotonic is the kernel's clock that Go shows only as differences.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // Linux has it
	}
	return ts.Nano()
}

// watchPods reports each change of the Ready condition of the namespace's pods
// that have anycast addresses.
func watchPods(ctx context.Context, in observeInput, known *containers, report func(sighting), try func(netip.Addr)) error {
	conn, err := grpc.NewClient("unix:"+in.PodsAPI, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := podsapi.NewPodsClient(conn).WatchPods(ctx, &podsapi.WatchPodsRequest{})
	if err != nil {
		return err
	}
	ready, terminating := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for {
		event, err := stream.Recv()
		at := monotonic()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("kubelet's Pods API at %s: %w", in.PodsAPI, err)
		case event.Type == podsapi.EventType_INITIAL_SYNC_COMPLETE:
			report(sighting{At: at, What: watching, Yes: true})
			continue
		}
		pod, addr, err := decodePod(event.Pod)
		if err != nil {
			return err
		}
		if pod.Namespace != in.Namespace || !addr.IsValid() {
			continue
		}
		known.learn(pod, addr)
		if is := pod.DeletionTimestamp != nil; is != terminating[addr] {
			terminating[addr] = is
			report(sighting{at, deleted, addr, is})
		}
		is := isReady(pod) && event.Type != podsapi.EventType_DELETED
		if was := ready[addr]; was == is {
			continue
		}
		ready[addr] = is
		if is && try != nil {
			try(addr)
		}
		report(sighting{at, published, addr, is})
	}
}

// decodePod reads a pod of the Pods API, and the first of its anycast addresses.
func decodePod(b []byte) (*corev1.Pod, netip.Addr, error) {
	var pod corev1.Pod
	if err := pod.Unmarshal(b); err != nil {
		return nil, netip.Addr{}, fmt.Errorf("kubelet's Pods API: not a v1.Pod: %w", err)
	}
	first, _, _ := strings.Cut(addressesOf(&pod), ",")
	if first == "" {
		return &pod, netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(first)
	return &pod, addr, err
}

func isReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// routesOf selects host routes: those of a table of the kernel, and a family.
type routesOf struct {
	group, bits int
	table       byte
}

// mainRoutes are IPv6's. The local table has one for each address of the namespace itself: the
// kernel adds that of a link-local address whenever duplicate address detection ends.
var mainRoutes = routesOf{unix.RTNLGRP_IPV6_ROUTE, 128, unix.RT_TABLE_MAIN}

// listenRoutes opens a socket that hears of routes of the family in a network namespace.
func listenRoutes(file string, of routesOf) (fd int, err error) {
	err = member.InNet(file, func() error {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			// How often the reader looks whether it is to end.
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (of.group - 1)}),
		)
	})
	if err != nil {
		return -1, fmt.Errorf("listen to the routes of %s: %w", file, err)
	}
	return fd, nil
}

// watchRoutes reports host routes, and closes fd at its end. It reads on a thread of
// its own, so that Go's scheduler does not delay the reading of the clock.
func watchRoutes(ctx context.Context, fd int, of routesOf, what string, report func(sighting)) error {
	runtime.LockOSThread()
	defer unix.Close(fd)
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, err := unix.Read(fd, buf)
		at := monotonic()
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("route notifications: %w", err) // ENOBUFS: some were lost
		}
		for r := range hostRoutes(buf[:n], of) {
			if what != installed || r.metric == announcedMetric || r.metric == serviceMetric {
				report(sighting{at, what, r.addr, r.there})
			}
		}
	}
	return nil
}

// announcedMetric is that of the routes which flock has BIRD announce. The ones
// beside them stay on the node.
const (
	announcedMetric = kernel.MetricAnnounced
	serviceMetric   = kernel.MetricService
)

// hostRoute is a host route that came or went.
type hostRoute struct {
	addr   netip.Addr
	there  bool
	metric uint32
}

// hostRoutes are those in a datagram of netlink messages.
func hostRoutes(b []byte, of routesOf) iter.Seq[hostRoute] {
	native := binary.NativeEndian
	return func(yield func(hostRoute) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			n, typ := int(native.Uint32(b)), native.Uint16(b[4:])
			if n < unix.SizeofNlMsghdr || n > len(b) {
				return
			}
			m := b[unix.SizeofNlMsghdr:n]
			b = b[min((n+3)&^3, len(b)):]
			if typ != unix.RTM_NEWROUTE && typ != unix.RTM_DELROUTE || len(m) < unix.SizeofRtMsg || int(m[1]) != of.bits || m[4] != of.table {
				continue
			}
			r := hostRoute{there: typ == unix.RTM_NEWROUTE}
			for a := m[unix.SizeofRtMsg:]; len(a) >= unix.SizeofRtAttr; {
				size := int(native.Uint16(a))
				if size < unix.SizeofRtAttr || size > len(a) {
					break
				}
				switch value := a[unix.SizeofRtAttr:size]; native.Uint16(a[2:]) {
				case unix.RTA_DST:
					r.addr, _ = netip.AddrFromSlice(value)
				case unix.RTA_PRIORITY:
					r.metric = native.Uint32(value)
				}
				a = a[min((size+3)&^3, len(a)):]
			}
			if r.addr.IsValid() && !yield(r) {
				return
			}
		}
	}
}
