package wiring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// Nothing of a released pod is left that a packet could take, in the moment that
// TakeDown returns.
func TestTakeDownIsAtOnce(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	p, other := node.pod(t), node.pod(t)
	node.attach(t, p)
	node.attach(t, other)
	other.Exec("ping", "-c1", "-W5", p.v6())

	l, ok, err := node.TakeDown(p.ContainerID)
	if err != nil || !ok || l.HostIf != p.HostIf || l.ContainerID != p.ContainerID || !l.Released {
		t.Fatalf("unroute = %+v, %t, %v", l, ok, err)
	}
	for _, line := range strings.Split(listing(node.ns), "\n") {
		if strings.Contains(line, p.HostIf) && !strings.Contains(line, "<BROADCAST,MULTICAST") {
			t.Errorf("left on the host: %s", line)
		}
	}
	wire := capture(t, node.ns)
	for _, addr := range []string{p.v6(), p.v4()} {
		out, err := other.Try("ping", "-c1", "-W1", addr)
		if err == nil || !strings.Contains(out, "nreachable") {
			t.Errorf("ping of the released %s is not refused: %s", addr, out)
		}
	}
	p.Try("ping", "-c1", "-W1", other.v6())
	packets := wire.packets()
	if len(packets) == 0 {
		t.Error("nothing was captured")
	}
	for _, packet := range packets {
		if packet.link == l.IfIndex {
			t.Errorf("on the released link: %+v", packet)
		}
	}
	if err := node.Check(other.File(), other.Attachment); err != nil {
		t.Errorf("the other pod: %v", err)
	}

	if again, ok, err := node.TakeDown(p.ContainerID); err != nil || !ok || again != l {
		t.Errorf("the second unroute = %+v, %t, %v; want the same", again, ok, err)
	}
}

func TestTakeDownOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	if l, ok, err := node.TakeDown("nobody"); ok || err != nil {
		t.Errorf("unroute = %+v, %t, %v; want nothing to do", l, ok, err)
	}
	// The name of one container's link can be another's: its DEL must not hit.
	p := node.podWith(t, "costarring", "2001:db8:100::5")
	node.attach(t, p)
	if l, ok, err := node.TakeDown("liquid"); ok || err != nil {
		t.Errorf("unroute = %+v, %t, %v; want nothing to do", l, ok, err)
	}
	if err := node.Check(p.File(), p.Attachment); err != nil {
		t.Errorf("the pod whose link it is: %v", err)
	}
}

// An address can go to the next pod while the last one's link still waits.
func TestAddressMovesOn(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	old, client := node.podWith(t, "old", "2001:db8:100::5", "10.244.0.5"), node.pod(t)
	node.attach(t, old)
	node.attach(t, client)
	l, _, err := node.TakeDown("old")
	if err != nil {
		t.Fatal(err)
	}
	heir := node.podWith(t, "heir", "2001:db8:100::5", "10.244.0.5")
	node.attach(t, heir)
	if _, err := node.DeleteReleased([]Link{l}); err != nil {
		t.Fatal(err)
	}
	client.Exec("ping", "-c1", "-W5", "2001:db8:100::5")
	client.Exec("ping", "-c1", "-W5", "10.244.0.5")
	if err := node.Check(heir.File(), heir.Attachment); err != nil {
		t.Error(err)
	}
}

// A container that comes back, or one whose name collides with a released link's,
// does not wait for the reaper.
func TestReleasedLinkIsNotInTheWay(t *testing.T) {
	t.Parallel()
	for name, successor := range map[string]string{"same container": "first", "another": "second"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			first := node.podWith(t, "first", "2001:db8:100::5", "10.244.0.5")
			node.attach(t, first)
			l, _, err := node.TakeDown("first")
			if err != nil {
				t.Fatal(err)
			}
			p := first
			if successor != "first" {
				p = node.podWith(t, successor, "2001:db8:100::5", "10.244.0.5")
				p.HostIf = first.HostIf
			}
			node.attach(t, p)

			// The reaper, told of the old link, finds it gone and the new one
			// none of its business.
			gone, err := node.DeleteReleased([]Link{l})
			if err != nil || len(gone) != 1 || gone[0] != l {
				t.Errorf("gone %+v, %v; want the old link", gone, err)
			}
			if err := node.Check(p.File(), p.Attachment); err != nil {
				t.Error(err)
			}
		})
	}
}

// The same for a link that has not even got its alias.
func TestReleasedHalfDoneLinkIsNotTakenBack(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	p := node.pod(t)
	killed := node.open(t)
	inject(killed, &fault{at: 1, dead: true})
	if _, err := killed.Attach(p.File(), p.Attachment); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	l, ok, err := node.TakeDown(p.ContainerID)
	if !ok || err != nil || l.ContainerID != "" {
		t.Fatalf("unroute = %+v, %t, %v", l, ok, err)
	}
	if got := node.attach(t, p); got.HostIfIndex == l.IfIndex {
		t.Error("the link that waits for the reaper was taken back")
	}
	if gone, err := node.DeleteReleased([]Link{l}); err != nil || len(gone) != 1 {
		t.Errorf("gone %+v, %v; want the old link", gone, err)
	}
	if err := node.Check(p.File(), p.Attachment); err != nil {
		t.Error(err)
	}
}

// deleter passes on which links the host has deleted.
type deleter struct {
	*Host
	gone chan<- Link
}

func (d deleter) DeleteReleased(links []Link) ([]Link, error) {
	gone, err := d.Host.DeleteReleased(links)
	for _, l := range gone {
		d.gone <- l
	}
	return gone, err
}

func TestReaperDeletesInBatches(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	var requests [][]string
	exec := node.exec
	node.exec = func(c *rtnl.Conn, ms []rtnl.Message) []error {
		if c == node.deletions {
			var whats []string
			for _, m := range ms {
				whats = append(whats, m.What)
			}
			requests = append(requests, whats)
		}
		return exec(c, ms)
	}
	survivor := node.pod(t)
	node.attach(t, survivor)

	gone := make(chan Link, 100)
	reaper := NewReaper(deleter{node.Host, gone}, slog.New(slog.DiscardHandler))
	var links []Link
	for i := range reapBatch + 8 {
		p := node.pod(t)
		node.attach(t, p)
		l, ok, err := node.TakeDown(p.ContainerID)
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		links = append(links, l)
		if i == 0 {
			p.IP("link", "del", "eth0") // someone was quicker
		}
	}
	reaper.Reap(links...)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		reaper.Run(ctx)
	}()
	var got []Link
	for range links {
		got = append(got, <-gone)
	}
	cancel()
	<-done
	if len(gone) > 0 || !slices.Equal(got, links) {
		t.Errorf("gone: %d links and %d more, want the %d that were released, in order, once", len(got), len(gone), len(links))
	}
	if len(requests) != 2 || len(requests[0]) != reapBatch+1 || len(requests[1]) != 8+1 {
		t.Errorf("deletions in %d writes: %v", len(requests), requests)
	}
	left, err := node.List()
	if err != nil || len(left) != 1 || left[0].HostIf != survivor.HostIf {
		t.Errorf("left: %+v, %v; want the survivor", left, err)
	}
	if err := node.Check(survivor.File(), survivor.Attachment); err != nil {
		t.Error(err)
	}
}

func TestListAfterRestart(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.ns.IP("link", "add", "flockother", "type", "veth", "peer", "name", "flockbeef") // others'
	node.ns.IP("link", "add", "flock12345678", "type", "bridge")
	want := map[string]Link{}
	for i := range 3 {
		p := node.pod(t)
		p.MTU = 1400 + i
		got := node.attach(t, p)
		l := Link{HostIf: p.HostIf, IfIndex: got.HostIfIndex, ContainerID: p.ContainerID, Alias: p.Alias, MTU: p.MTU}
		if i == 2 {
			var err error
			if l, _, err = node.TakeDown(p.ContainerID); err != nil {
				t.Fatal(err)
			}
		}
		want[p.ContainerID] = l
	}
	node.Host = node.open(t)
	links, err := node.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != len(want) {
		t.Errorf("%d links, want %d: %+v", len(links), len(want), links)
	}
	for _, l := range links {
		if l != want[l.ContainerID] {
			t.Errorf("listed %+v, want %+v", l, want[l.ContainerID])
		}
	}
}

// At its start the agent makes the kernel hold what the store does, and no more.
func TestReleaseOthersAndSync(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	known, unknown, released := node.pod(t), node.pod(t), node.pod(t)
	for _, p := range []testPod{known, unknown, released} {
		node.attach(t, p)
	}
	if _, _, err := node.TakeDown(released.ContainerID); err != nil {
		t.Fatal(err)
	}
	node.ns.IP("link", "add", "flock00000bad", "type", "veth", "peer", "name", "half") // cut short
	node.ns.IP("link", "add", "br0", "type", "bridge")
	node.ns.IP("link", "set", "br0", "up")
	keep := []string{
		"10.244.7.1 dev br0 metric 1024", // another's protocol
	}
	stale := []string{
		"10.244.7.3 dev br0 proto 85 metric 1024",
		"10.244.7.2 dev br0 proto 85 metric 512",
		"2001:db8:a::53 dev " + known.HostIf + " proto 85 metric 512",
		"10.244.7.4 dev " + known.HostIf + " proto 85 metric 1024",
		"2001:db8:100::bad dev " + known.HostIf + " proto 85 metric 1024",
	}
	for _, r := range slices.Concat(keep, stale) {
		node.ns.IP(append([]string{"route", "add"}, strings.Fields(r)...)...)
	}

	node.Host = node.open(t)
	links, err := node.ReleaseOthers([]Attachment{known.Attachment, {ContainerID: "vanished"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Adopt(known.Attachment); err != nil {
		t.Fatal(err)
	}
	routes := node.sync(t)
	var names []string
	for _, l := range links {
		names = append(names, l.HostIf)
		if !l.Released {
			t.Errorf("%s is not released", l.HostIf)
		}
	}
	slices.Sort(names)
	want := []string{unknown.HostIf, released.HostIf, "flock00000bad"}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("links for the reaper: %v, want %v", names, want)
	}
	if got := fmt.Sprint(routes); len(routes) != len(stale) || !strings.Contains(got, "10.244.7.3/32") || !strings.Contains(got, "2001:db8:100::bad/128") || !strings.Contains(got, "2001:db8:a::53/128") {
		t.Errorf("routes removed: %v, want those of %v", routes, stale)
	}
	if gone, err := node.DeleteReleased(links); err != nil || len(gone) != len(links) {
		t.Errorf("gone %v, %v; want all", gone, err)
	}
	after := node.ns.IP("route") + node.ns.IP("-6", "route")
	for _, r := range keep {
		if dst := strings.Fields(r)[0]; !strings.Contains(after, dst+" dev") {
			t.Errorf("someone's route %s is gone", r)
		}
	}
	for _, r := range stale {
		if dst := strings.Fields(r)[0]; strings.Contains(after, dst+" dev") {
			t.Errorf("the stale route %s is still there", r)
		}
	}
	if err := node.Check(known.File(), known.Attachment); err != nil {
		t.Errorf("the known pod: %v", err)
	}
	if links, err := node.ReleaseOthers([]Attachment{known.Attachment}); len(links) > 0 || err != nil {
		t.Errorf("the second time: %v, %v; want nothing to do", links, err)
	}
	if repairs := node.sync(t); len(repairs) > 0 {
		t.Errorf("the second time: %v", repairs)
	}
}
