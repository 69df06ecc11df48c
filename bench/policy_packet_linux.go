package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

// policyPacket measures what policies cost packets: the processor time of the one
// thread that has both ends of a connection, so that it contains the whole way through
// the node. It needs no lab.
var policyPacket = Bench{
	Name:  "policy.packet",
	About: "processor time of a request and its answer (rr), and of a connection with one of each (crr), through a node: ratios of 10,000 policies to one, of one to connection tracking alone, of pods that no policy selects to it",
	Run: func(ctx context.Context, _ *cluster.Lab, n int) (results []Result, err error) {
		for _, v6 := range []bool{true, false} {
			r, err := measurePackets(ctx, v6, n)
			if err != nil {
				return results, err
			}
			results = append(results, r...)
		}
		return results, nil
	},
}

// A policyPath is a client and a server in namespaces of their own, with a node between
// them that forwards.
type policyPath struct {
	client, node, server *netNS
	clientAddr           netip.Addr
	serverAddr           netip.Addr
	listener             int
	udpClient, udpServer int
	fds                  []int
}

const (
	clientLink, serverLink = "flock0000c11e", "flock0000c5e2"
	// pathPort is a port that a policy of namespace ns0 allows to the client's group.
	pathPort = policytest.LoadPort + 1
)

// newPolicyPath makes one of IPv6 or of IPv4.
func newPolicyPath(v6 bool) (p *policyPath, err error) {
	p = &policyPath{clientAddr: netip.MustParseAddr("10.1.0.1"), serverAddr: netip.MustParseAddr("10.1.0.2")}
	if v6 {
		p.clientAddr, p.serverAddr = policytest.LoadAddr(0, 700), policytest.LoadAddr(0, 701)
	}
	for _, ns := range []**netNS{&p.client, &p.node, &p.server} {
		if *ns, err = newNetNS(); err != nil {
			return p, err
		}
	}
	if err := p.node.Do(func() error {
		for name, value := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/default/accept_dad": "0"} {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return p, err
	}
	for _, end := range []struct {
		ns   *netNS
		link string
		addr netip.Addr
	}{{p.client, clientLink, p.clientAddr}, {p.server, serverLink, p.serverAddr}} {
		prefix := netip.PrefixFrom(end.addr, end.addr.BitLen()).String()
		gateway, here := "169.254.1.1", []string{"route add 169.254.1.1 dev eth0"}
		if v6 {
			gateway, here = "fe80::1", nil
		}
		if err := ipBatch(p.node,
			"link add "+end.link+" type veth peer name eth0 netns "+end.ns.Path(),
			"link set "+end.link+" up",
			"address add "+gateway+"/"+map[bool]string{true: "64", false: "32"}[v6]+" dev "+end.link,
			"route add "+prefix+" dev "+end.link,
		); err != nil {
			return p, err
		}
		commands := append([]string{"link set lo up", "link set eth0 up", "address add " + prefix + " dev eth0 " + map[bool]string{true: "nodad"}[v6]}, here...)
		if err := ipBatch(end.ns, append(commands, "route add default via "+gateway+" dev eth0")...); err != nil {
			return p, err
		}
	}
	if p.udpClient, err = p.socket(p.client, unix.SOCK_DGRAM, netip.AddrPortFrom(p.clientAddr, 2000)); err != nil {
		return p, err
	}
	if p.udpServer, err = p.socket(p.server, unix.SOCK_DGRAM, netip.AddrPortFrom(p.serverAddr, pathPort)); err != nil {
		return p, err
	}
	if p.listener, err = p.socket(p.server, unix.SOCK_STREAM, netip.AddrPortFrom(p.serverAddr, pathPort)); err != nil {
		return p, err
	}
	if err := errors.Join(
		unix.Connect(p.udpClient, sockaddr(netip.AddrPortFrom(p.serverAddr, pathPort))),
		unix.Connect(p.udpServer, sockaddr(netip.AddrPortFrom(p.clientAddr, 2000))),
		unix.Listen(p.listener, 16),
	); err != nil {
		return p, err
	}
	// The first packets wait for the links and for neighbours.
	for deadline := time.Now().Add(10 * time.Second); ; {
		if err = p.requests(1); err == nil || time.Now().After(deadline) {
			return p, err
		}
	}
}

func ipBatch(ns *netNS, commands ...string) error {
	return ns.Do(func() error {
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip: %w: %s", err, out)
		}
		return nil
	})
}

// close gives up sockets and namespaces.
func (p *policyPath) close() {
	for _, fd := range p.fds {
		unix.Close(fd)
	}
	for _, ns := range []*netNS{p.client, p.node, p.server} {
		if ns != nil {
			ns.Close()
		}
	}
}

func (p *policyPath) socket(ns *netNS, kind int, local netip.AddrPort) (fd int, err error) {
	err = ns.Do(func() (err error) {
		if fd, err = unix.Socket(family(local.Addr()), kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		p.fds = append(p.fds, fd)
		return errors.Join(
			unix.Bind(fd, sockaddr(local)),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}),
		)
	})
	return fd, err
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// requests are requests and answers on an established connection.
func (p *policyPath) requests(n int) error {
	var buf [64]byte
	for range n {
		for _, way := range [][2]int{{p.udpClient, p.udpServer}, {p.udpServer, p.udpClient}} {
			if _, err := unix.Write(way[0], buf[:1]); err != nil {
				return err
			}
			if _, err := unix.Read(way[1], buf[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// connects are connections with a request and an answer each.
func (p *policyPath) connects(n int) error {
	var buf [64]byte
	for range n {
		var fd int
		if err := p.client.enter(func() (err error) {
			fd, err = unix.Socket(family(p.clientAddr), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			return err
		}); err != nil {
			return err
		}
		// A reset leaves nothing behind that takes a port.
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(p.serverAddr, pathPort)))
		if err != nil {
			unix.Close(fd)
			return err
		}
		served, _, err := unix.Accept(p.listener)
		if err != nil {
			unix.Close(fd)
			return err
		}
		for _, way := range [][2]int{{fd, served}, {served, fd}} {
			if _, err = unix.Write(way[0], buf[:1]); err == nil {
				_, err = unix.Read(way[1], buf[:])
			}
			if err != nil {
				break
			}
		}
		unix.Close(fd)
		unix.Close(served)
		if err != nil {
			return err
		}
	}
	return nil
}

// enter runs f on the calling thread, which must be locked, in the namespace.
func (n *netNS) enter(f func() error) error {
	before, err := unix.Open(ownNetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(before)
	if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	return errors.Join(err, unix.Setns(before, unix.CLONE_NEWNET))
}

// withPolicies puts a Load into force on the path's node, with the path's ends as pods.
func withPolicies(l policytest.Load, selected bool) func(*policyPath) error {
	return func(p *policyPath) error {
		x := policy.NewIndex()
		l.Into(x)
		server := map[string]string{"app": "web"}
		if !selected {
			server["app"] = "other"
		}
		x.SetPod(policy.Pod{Namespace: "ns0", Name: "client", UID: "client", Labels: map[string]string{"app": "peer", "group": "1"}, Addrs: []netip.Addr{p.clientAddr}, Links: []string{clientLink}})
		x.SetPod(policy.Pod{Namespace: "ns0", Name: "server", UID: "server", Labels: server, Addrs: []netip.Addr{p.serverAddr}, Links: []string{serverLink}})
		return p.node.Do(func() error {
			table, err := policy.Open(policy.DefaultMark)
			if err != nil {
				return err
			}
			defer table.Close()
			return table.Apply(x.Ruleset(), x.Flush())
		})
	}
}

// withUDP has the policies allow UDP too, for the requests.
func withUDP(l policytest.Load) policytest.Load {
	protocol := corev1.ProtocolUDP
	for _, np := range l.Policies {
		ports := &np.Spec.Ingress[0].Ports
		*ports = append(*ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: (*ports)[0].Port})
	}
	return l
}

// The goals of the ratios.
var packetRatios = []struct {
	name, of, to string
	rr, crr      float64 // goals; 0 is none
}{
	{"conntrack-to-nothing", "conntrack", "nothing", 0, 0},
	{"1-policy-to-nothing", "1-policy", "nothing", 0, 0},
	{"1-policy-to-conntrack", "1-policy", "conntrack", 1.03, 1.08},
	{"10000-policies-to-1", "10000-policies", "1-policy", 1.03, 1.05},
	{"pod-of-100-policies-to-1", "100-selectors", "1-policy", 1.03, 1.05},
	{"unselected-to-conntrack", "unselected", "conntrack", 1.03, 1.05},
}

func measurePackets(ctx context.Context, v6 bool, n int) (results []Result, err error) {
	one := withUDP(policytest.NewLoad(100, false))
	one.Policies = one.Policies[1:2] // of ns0, about pathPort
	variants := []struct {
		name  string
		setUp func(*policyPath) error
	}{
		{"nothing", func(*policyPath) error { return nil }},
		{"conntrack", func(p *policyPath) error {
			return p.node.Do(func() error {
				out, err := exec.Command("nft", "add table inet t; add chain inet t f { type filter hook forward priority filter; }; add rule inet t f ct state related accept").CombinedOutput()
				if err != nil {
					return fmt.Errorf("nft: %w: %s", err, out)
				}
				return nil
			})
		}},
		{"1-policy", withPolicies(one, true)},
		{"10000-policies", withPolicies(withUDP(policytest.NewLoad(100, false)), true)},
		{"100-selectors", withPolicies(withUDP(policytest.NewLoad(100, true)), true)},
		{"unselected", withPolicies(one, false)},
	}
	paths := map[string]*policyPath{}
	for _, v := range variants {
		p, err := newPolicyPath(v6)
		defer p.close()
		if err == nil {
			err = v.setUp(p)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
		paths[v.name] = p
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const requests, connects, warmUp = 1500, 400, 2
	costs := map[string]map[string][]float64{"rr": {}, "crr": {}} // by kind and variant: nanoseconds of each round
	for round := range warmUp + n {
		for kind := range costs {
			for _, v := range variants {
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				p, times, do := paths[v.name], requests, paths[v.name].requests
				if kind == "crr" {
					times, do = connects, p.connects
				}
				before := threadTime()
				if err := do(times); err != nil {
					return nil, fmt.Errorf("%s: %w", v.name, err)
				}
				if cost := threadTime() - before; round >= warmUp {
					costs[kind][v.name] = append(costs[kind][v.name], float64(cost)/float64(times))
				}
			}
		}
	}
	protocol := map[bool]string{true: "ipv6", false: "ipv4"}[v6]
	for _, kind := range []string{"rr", "crr"} {
		var nothing []time.Duration
		for _, c := range costs[kind]["nothing"] {
			nothing = append(nothing, time.Duration(c)*time.Nanosecond)
		}
		results = append(results, Result{Name: "policy.packet." + kind + ".nothing." + protocol, Unit: "ms", Figures: Milliseconds(nothing)})
		for _, r := range packetRatios {
			of, to := costs[kind][r.of], costs[kind][r.to]
			ratios := make([]float64, len(of))
			for i := range of {
				ratios[i] = of[i] / to[i]
			}
			goal := r.rr
			if kind == "crr" {
				goal = r.crr
			}
			results = append(results, Result{
				Name: "policy.packet." + kind + "." + r.name + "." + protocol, Unit: "ratio", Figures: Ratios(ratios), Goal: goalP50(goal),
			})
		}
	}
	return results, nil
}

// threadTime is the processor time of the calling thread.
func threadTime() time.Duration {
	var r unix.Rusage
	unix.Getrusage(unix.RUSAGE_THREAD, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// Ratios are the figures of ratios.
func Ratios(samples []float64) Figures {
	if len(samples) == 0 {
		return Figures{}
	}
	s := slices.Sorted(slices.Values(samples))
	return Figures{N: len(s), P50: percentile(s, 0.50), P99: percentile(s, 0.99), Max: s[len(s)-1]}
}
