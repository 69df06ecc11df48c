package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Another program may change what a pod's link is known by. The pod keeps its network, also
// over a start of the agent; DEL deletes its link and frees its addresses all the same.
func TestTamperedLinks(t *testing.T) {
	t.Parallel()
	n := newNode(t, strings.Replace(nodeConfig, "10.1.0.0/24", "10.1.0.0/30", 1)) // two addresses
	n.start()
	tampers := []func(link string){
		func(link string) { n.host.IP("link", "set", link, "alias", "taken") },
		func(link string) { n.host.IP("link", "set", link, "alias", "shop/other c0ffee") },
		func(link string) { n.host.IP("link", "set", link, "name", "stolen0") },
		func(link string) {
			n.host.IP("link", "set", link, "alias", "taken", "address", "02:00:00:00:00:01", "name", "stolen1")
		},
	}
	links := func() int {
		return strings.Count(n.host.IP("link"), "flock") + strings.Count(n.host.IP("link"), "stolen")
	}
	for i, tamper := range tampers {
		p := n.sandbox(fmt.Sprint("a", i))
		addrs := p.mustAdd()
		link := n.links()[0]
		tamper(link)
		for _, a := range addrs {
			eventually(t, n.agentLog, func() error { _, err := n.router.Try("ping", "-c1", "-W1", a.String()); return err })
		}
		restored := func() {
			t.Helper()
			eventually(t, n.agentLog, func() error {
				if !slices.Contains(n.links(), link) {
					return fmt.Errorf("link %s has not got its name back", link)
				}
				return nil
			})
		}
		restored()
		n.kill()
		if i < 3 { // no agent would know that one
			tamper(link)
		}
		n.start()
		for _, a := range addrs {
			n.reaches(n.router, p, a)
		}
		restored()
		tamper(link) // at the same time as DEL
		p.mustDel()
		eventually(t, n.agentLog, func() error {
			if k := links(); k > 0 {
				return fmt.Errorf("%d links are left: %s", k, n.host.IP("link"))
			}
			return nil
		})
	}
	// All addresses are free.
	for i := range 2 {
		eventually(t, n.agentLog, func() error { _, err := n.sandbox(fmt.Sprint("b", i)).add(); return err })
	}
}

// A link that another program deletes or moves away is reported.
func TestLostLinks(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	for i, lose := range []func(link string){
		func(link string) { n.host.IP("link", "del", link) },
		func(link string) { n.host.IP("link", "set", link, "netns", n.router.Path()) },
	} {
		p := n.sandbox(fmt.Sprint("a", i))
		p.mustAdd()
		lose(n.links()[0])
		eventually(t, n.agentLog, func() error {
			log := n.agentLog()
			if strings.Count(log, "link was deleted or moved away before the end of the pod") != i+1 || strings.Count(log, "pod detached") != i+1 {
				return fmt.Errorf("not reported")
			}
			return nil
		})
		p.mustDel()
	}
	if strings.Count(n.agentLog(), "link was deleted or moved away") != 2 {
		t.Error("a DEL is reported as a loss")
	}
}
