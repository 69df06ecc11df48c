package wiring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

func (n *testNode) sync(t testing.TB) []datapath.Repair {
	t.Helper()
	repairs, err := n.Sync(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return repairs
}

// Whatever somebody does to the host's side, one Sync finds it, names it, and ends in the state
// before; the next finds nothing.
func TestSyncRepairs(t *testing.T) {
	t.Parallel()
	const id = "c0ffee"
	p := HostIfName(id)
	for name, tc := range map[string]struct {
		damage []string // ip(8), or a sysctl with its value behind "="
		kind   kernel.Kind
		want   string // the first repair
	}{
		"host route":     {[]string{"route del 10.244.0.5 dev " + p}, kernel.Route, "route 10.244.0.5/32 dev " + p + " (pod test/c0ffee): missing"},
		"all routes":     {[]string{"route flush proto 85", "-6 route flush proto 85"}, kernel.Route, "unreachable 2001:db8:100::/64 proto 85 metric 512: missing"},
		"summary":        {[]string{"-6 route del unreachable 2001:db8:100::/64 proto 85"}, kernel.Route, "unreachable 2001:db8:100::/64 proto 85 metric 512: missing"},
		"address":        {[]string{"address flush dev " + p}, kernel.Address, "address fe80::1 peer fe80::a06b:99ff:feed:2270 dev " + p + " (pod test/c0ffee): missing"},
		"neighbours":     {[]string{"neigh flush dev " + p + " nud permanent"}, kernel.Neighbour, "missing"},
		"neighbour MAC":  {[]string{"neigh replace 10.244.0.5 lladdr 02:00:00:00:00:01 dev " + p}, kernel.Neighbour, "neighbour 10.244.0.5 at a2:6b:99:ed:22:70"},
		"link down":      {[]string{"link set " + p + " down"}, kernel.Link, "link dev " + p + " (pod test/c0ffee): down"},
		"mtu":            {[]string{"link set " + p + " mtu 1400"}, kernel.Link, "mtu dev " + p + " (pod test/c0ffee): 1400, want 1500"},
		"mtu below v6":   {[]string{"link set " + p + " mtu 1000"}, kernel.Link, "mtu dev " + p + " (pod test/c0ffee): 1000, want 1500"},
		"mac":            {[]string{"link set " + p + " address 02:00:00:00:00:01"}, kernel.Link, "mac dev " + p + " (pod test/c0ffee): 02:00:00:00:00:01, want 02:66:6c:6f:63:6b"},
		"alias":          {[]string{"link set " + p + " alias nobody"}, kernel.Link, `alias dev ` + p + ` (pod test/c0ffee): "nobody", want "test/c0ffee c0ffee"`},
		"no alias":       {[]string{"link set " + p + ` alias `}, kernel.Link, `alias dev `},
		"addrgenmode":    {[]string{"link set " + p + " addrgenmode eui64"}, kernel.Sysctl, "automatic link-local address dev"},
		"mtu of route":   {[]string{"route change 10.244.0.5 dev " + p + " proto 85 metric 1024 mtu 600"}, kernel.Route, "route 10.244.0.5/32 dev " + p + " (pod test/c0ffee): not the pod's"},
		"mtu of route6":  {[]string{"-6 route change 2001:db8:a::53 dev " + p + " proto 85 metric 768 mtu 1280"}, kernel.Route, "route 2001:db8:a::53/128 dev " + p},
		"mtu of summary": {[]string{"route change unreachable 10.244.0.0/16 proto 85 metric 512 mtu 600"}, kernel.Route, "unreachable 10.244.0.0/16 proto 85 metric 512: stray"},
		"group":          {[]string{"link set " + p + " group 0x666c6f72"}, kernel.Link, "group dev " + p},
		"ip_forward":     {[]string{"ipv4/ip_forward=0"}, kernel.Sysctl, "net.ipv4.ip_forward: not 1"},
		"forwarding6":    {[]string{"ipv6/conf/all/forwarding=0"}, kernel.Sysctl, "net.ipv6.conf.all.forwarding: not 1"},
		"forwarding4":    {[]string{"ipv4/conf/" + p + "/forwarding=0"}, kernel.Sysctl, "IPv4 forwarding and rp_filter dev " + p},
		"rp_filter":      {[]string{"ipv4/conf/" + p + "/rp_filter=2"}, kernel.Sysctl, "IPv4 forwarding and rp_filter dev " + p},
		"accept_ra":      {[]string{"ipv6/conf/" + p + "/accept_ra=2"}, kernel.Sysctl, "router advertisements dev " + p},
		"disable_ipv6":   {[]string{"ipv6/conf/" + p + "/disable_ipv6=1"}, kernel.Sysctl, "IPv6 dev " + p},
		"stray static":   {[]string{"route add 203.0.113.7 dev " + p + " proto 85 metric 768"}, kernel.Route, "route 203.0.113.7/32 dev " + p + " (pod test/c0ffee): not the pod's"},
		"stray on lo":    {[]string{"route add 203.0.113.7 dev lo proto 85 metric 768"}, kernel.Route, "203.0.113.7/32 proto 85 metric 768: stray"},
		"stray summary":  {[]string{"route add unreachable 203.0.113.0/24 proto 85 metric 512"}, kernel.Route, "unreachable 203.0.113.0/24 proto 85 metric 512: stray"},
		"stray metric":   {[]string{"-6 route add blackhole 2001:db8:f::/48 proto 85 metric 7"}, kernel.Route, "blackhole 2001:db8:f::/48 proto 85 metric 7: stray"},
		"stray scope":    {[]string{"route add 203.0.113.7 dev lo scope global proto 85 metric 9"}, kernel.Route, "203.0.113.7/32 proto 85 metric 9: stray"},
		"stray paths":    {[]string{"route add 203.0.113.0/24 proto 85 metric 9 nexthop dev lo nexthop dev " + p}, kernel.Route, "203.0.113.0/24 proto 85 metric 9: stray"},
		"replaced":       {[]string{"route del 10.244.0.5 dev " + p, "route add 10.244.0.5 dev lo proto 85 metric 1024"}, kernel.Route, "10.244.0.5/32 proto 85 metric 1024: stray"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			node.apply(t)
			pod := node.podWith(t, id, "2001:db8:100::5", "10.244.0.5", "2001:db8:a::53")
			pod.Routed, pod.Announced = pod.Addrs[:2], pod.Addrs[2:]
			node.attach(t, pod)
			host := listing(node.ns)
			if repairs := node.sync(t); len(repairs) > 0 {
				t.Fatalf("nothing was done to it: %v", repairs)
			}
			for _, d := range tc.damage {
				if sysctl, value, ok := strings.Cut(d, "="); ok {
					node.ns.Sysctl(sysctl, value)
				} else if strings.HasSuffix(d, " alias ") {
					node.ns.IP(append(strings.Fields(d), "")...)
				} else {
					node.ns.IP(strings.Fields(d)...)
				}
			}
			repairs := node.sync(t)
			if !slices.ContainsFunc(repairs, func(r datapath.Repair) bool { return r.Kind == tc.kind && strings.Contains(r.String(), tc.want) }) {
				t.Errorf("repairs %v, want a %s of %q", repairs, tc.kind, tc.want)
			}
			if name == "mtu below v6" {
				node.sync(t) // the kernel made an address when IPv6 came back
			}
			same(t, "host", node.ns, host)
			if repairs := node.sync(t); len(repairs) > 0 {
				t.Errorf("the second time: %v", repairs)
			}
			if err := node.Check(pod.File(), pod.Attachment); err != nil {
				t.Error(err)
			}
		})
	}
}

// Sync knows what Attach, TakeDown and Adopt did, and nothing else: links that it does not know
// are left alone, with their routes.
func TestSyncFollowsAttachments(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	stays, goes, unknown := node.pod(t), node.pod(t), node.pod(t)
	other := node.open(t) // the agent of before
	if _, err := other.Attach(unknown.File(), unknown.Attachment); err != nil {
		t.Fatal(err)
	}
	node.attach(t, stays)
	node.attach(t, goes)
	if _, _, err := node.TakeDown(goes.ContainerID); err != nil {
		t.Fatal(err)
	}
	node.ns.IP("link", "set", unknown.HostIf, "mtu", "1400")
	host := listing(node.ns)
	if repairs := node.sync(t); len(repairs) > 0 {
		t.Errorf("repairs %v, want none", repairs)
	}
	same(t, "host", node.ns, host)

	if err := node.Adopt(unknown.Attachment); err != nil {
		t.Fatal(err)
	}
	if repairs := node.sync(t); len(repairs) != 1 || repairs[0].Kind != kernel.Link {
		t.Errorf("repairs %v, want the MTU", repairs)
	}
	if err := node.Adopt(Attachment{Alias: "shop/web-0"}); err == nil || !strings.Contains(err.Error(), "shop/web-0") {
		t.Errorf("a bad attachment: %v", err)
	}

	// A link that is gone is not missed: WatchGone reports it.
	stays.IP("link", "del", "eth0")
	if repairs := node.sync(t); len(repairs) > 0 || len(node.desired.pods) != 1 {
		t.Errorf("repairs %v, pods %v", repairs, node.desired.pods)
	}
}

// The alias is how an agent that starts knows a link. One that was overwritten does not cost
// the pod its link, unless it says that the link is another's.
func TestSyncAdoptsLinkWithoutItsAlias(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p, q := node.podWith(t, "mine", "10.244.0.5"), node.podWith(t, "other", "10.244.0.6")
	node.attach(t, p)
	node.attach(t, q)
	node.ns.IP("link", "set", p.HostIf, "alias", "to the left rack")
	next := node.open(t)
	stolen := q.Attachment
	stolen.ContainerID, stolen.Addrs, stolen.Routed = "thief", parseAddrs("10.244.0.7"), nil
	if err := next.Adopt(p.Attachment, stolen); err != nil {
		t.Fatal(err)
	}
	repairs, err := next.Sync(t.Context())
	if collision := (*CollisionError)(nil); !errors.As(err, &collision) || collision.Owner != "other" {
		t.Errorf("error %v, want one that names the owner", err)
	}
	if len(repairs) != 1 || !strings.Contains(repairs[0].Object, "alias") {
		t.Errorf("repairs %v, want the alias", repairs)
	}
}

// A pod that is being worked on is left to who works on it, and one pod's failure is not the
// others'.
func TestSyncBesideOthersWork(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	busy, broken, fine := node.podWith(t, "busy", "10.244.0.5"), node.podWith(t, "broken", "10.244.0.6"), node.podWith(t, "fine", "10.244.0.7")
	for _, p := range []testPod{busy, broken, fine} {
		node.attach(t, p)
		node.ns.IP("route", "del", p.v4())
	}
	exec := node.exec
	node.exec = func(c *rtnl.Conn, ms []rtnl.Message) []error {
		for _, m := range ms {
			if strings.Contains(m.What, "10.244.0.6") {
				return []error{fmt.Errorf("%s: %w", m.What, errInjected)}
			}
		}
		return exec(c, ms)
	}
	held := node.desired.enter("busy")
	repairs, err := node.Sync(t.Context())
	if !errors.Is(err, errInjected) || !strings.Contains(err.Error(), "test/broken") {
		t.Errorf("error %v, want the injected one of the broken pod", err)
	}
	if len(repairs) != 1 || !strings.Contains(repairs[0].Object, "10.244.0.7") {
		t.Errorf("repairs %v, want the fine pod's", repairs)
	}
	node.desired.leave("busy", held)
	node.exec = exec
	if repairs := node.sync(t); len(repairs) != 2 {
		t.Errorf("repairs %v, want the two others'", repairs)
	}
}

// A look takes some time, in which pods come. Their routes must not be taken for strays.
func TestSyncWhilePodsCome(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	done := make(chan struct{})
	var syncing sync.WaitGroup
	syncing.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			repairs, err := node.Sync(context.Background())
			if err != nil {
				t.Error(err)
			}
			for _, r := range repairs {
				t.Errorf("repaired %v, though nobody changed anything", r)
			}
		}
	})
	for i := range 40 {
		pod := node.podWith(t, fmt.Sprintf("pod%d", i), fmt.Sprintf("2001:db8:100::%x", i+1), fmt.Sprintf("10.244.0.%d", i+1))
		node.attach(t, pod)
		if routes := node.ns.IP("route", "show", pod.v4()); routes == "" {
			t.Errorf("pod %d has no route after its attachment", i)
		}
	}
	close(done)
	syncing.Wait()
}

// A link that another program renamed, and that cannot have its name back, is not gone: the pod
// is not forgotten and keeps its routes. Once the name is free, the link has it again.
func TestSyncKeepsLinkWhoseNameIsTaken(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	pod := node.pod(t)
	node.attach(t, pod)
	before := listing(node.ns)
	node.ns.IP("link", "set", pod.HostIf, "name", "mine0")
	node.ns.IP("link", "property", "add", "dev", "lo", "altname", pod.HostIf)
	routes := node.ns.IP("route", "show", "proto", "85", "dev", "mine0")

	if _, err := node.Sync(t.Context()); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "ip link set mine0 name "+pod.HostIf) {
		t.Errorf("error %v, want one that says how to give the name back", err)
	}
	select {
	case <-node.missed:
		t.Error("the link was taken for gone")
	default:
	}
	if p := node.desired.pods[pod.ContainerID]; p == nil || !p.wired {
		t.Errorf("the pod was forgotten: %+v", p)
	}
	if left := node.ns.IP("route", "show", "proto", "85", "dev", "mine0"); left != routes {
		t.Errorf("routes of the renamed link:\n%s\nwant those of before:\n%s", left, routes)
	}

	node.ns.IP("link", "property", "del", "dev", "lo", "altname", pod.HostIf)
	if repairs := node.sync(t); !slices.Contains(repairs, datapath.Repair{Kind: kernel.Link, Object: "name dev " + pod.HostIf, Found: "mine0"}) {
		t.Errorf("repairs %v, want the name", repairs)
	}
	same(t, "host", node.ns, before)
}
