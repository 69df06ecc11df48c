package wiring

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCollisionsAreNotTakenOver(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	first := node.podWith(t, "first", "2001:db8:100::1", "10.244.0.1")
	node.attach(t, first)

	for name, tc := range map[string]struct {
		change func(*testPod)
		want   CollisionError
	}{
		"name": {
			func(p *testPod) { p.HostIf = first.HostIf },
			CollisionError{HostIf: first.HostIf, Owner: "first", Alias: "test/first"},
		},
		"IPv6 address": {
			func(p *testPod) { p.Addrs[0] = first.Addrs[0] },
			CollisionError{HostIf: first.HostIf, Addr: first.Addrs[0], Owner: "first", Alias: "test/first"},
		},
		"IPv4 address": {
			func(p *testPod) { p.Addrs[1] = first.Addrs[1] },
			CollisionError{HostIf: first.HostIf, Addr: first.Addrs[1], Owner: "first", Alias: "test/first"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := node.podWith(t, "second", "2001:db8:100::2", "10.244.0.2")
			tc.change(&p)
			host, pod := listing(node.ns), listing(p.NS)
			_, err := node.Attach(p.File(), p.Attachment)
			var got *CollisionError
			if !errors.As(err, &got) || *got != tc.want {
				t.Errorf("error %v, want %v", err, &tc.want)
			}
			same(t, "host", node.ns, host)
			same(t, "pod", p.NS, pod)
		})
	}
	if err := node.Check(first.File(), first.Attachment); err != nil {
		t.Errorf("the first pod: %v", err)
	}
}

// A link without alias has no owner: only the sandbox that its other end is in
// can claim it, for that one's Attach was cut short.
func TestLinkWithoutAlias(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p, other := node.pod(t), node.pod(t)
	node.ns.IP("link", "add", p.HostIf, "type", "veth", "peer", "name", "eth0", "netns", other.Path())
	var collision *CollisionError
	if _, err := node.Attach(p.File(), p.Attachment); !errors.As(err, &collision) || collision.Owner != "" {
		t.Errorf("error %v, want a collision with an unknown owner", err)
	}
	if out := other.IP("link", "show", "dev", "eth0"); out == "" {
		t.Error("someone's link is gone")
	}
}

func TestInterfaceNameInUse(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.pod(t)
	p.IP("link", "add", "eth0", "type", "bridge")
	host := listing(node.ns)
	_, err := node.Attach(p.File(), p.Attachment)
	if err == nil || !strings.Contains(err.Error(), "interface eth0") || !strings.Contains(err.Error(), "not flock's") {
		t.Errorf("error %v, want one that names eth0", err)
	}
	same(t, "host", node.ns, host)
}

func TestForeignRouteInTheWay(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.ns.IP("link", "add", "br0", "type", "bridge")
	node.ns.IP("link", "set", "br0", "up")
	p := node.pod(t)
	node.ns.IP("route", "add", p.v4(), "dev", "br0", "metric", "1024")
	_, err := node.Attach(p.File(), p.Attachment)
	var collision *CollisionError
	if !errors.As(err, &collision) || collision.HostIf != "br0" || collision.Owner != "" || collision.Addr.String() != p.v4() {
		t.Errorf("error %v, want one that names br0 and %s", err, p.v4())
	}
	if out := node.ns.IP("route", "show", p.v4()); !strings.Contains(out, "br0") {
		t.Errorf("someone's route is gone: %q", out)
	}
}

func TestSandboxOnTheNodesOwnNetwork(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.pod(t)
	if _, err := node.Attach(node.ns.File(), p.Attachment); err == nil || !strings.Contains(err.Error(), "node's own") {
		t.Errorf("error %v, want one about the node's own namespace", err)
	}
}

func TestNotANamespace(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.pod(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := node.Attach(null, p.Attachment); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), os.DevNull) {
		t.Errorf("error %v, want one that names %s", err, os.DevNull)
	}
}
