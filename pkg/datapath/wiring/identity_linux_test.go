package wiring

import (
	"strings"
	"testing"
)

// A link whose name, alias or MAC another program has changed is still its pod's for whoever
// asks about it: the running agent, and one that has just started.
func TestTamperedIdentity(t *testing.T) {
	t.Parallel()
	const p = "flockeff53ef0" // HostIfName("c0ffee")
	tampers := map[string][]string{
		"alias":         {"alias taken"},
		"alias of none": {"alias "},
		"alias of two":  {"alias shop/other deadbeef"},
		"mac":           {"address 02:00:00:00:00:01"},
		"name":          {"name stolen0"},
		"name and up":   {"down", "name stolen0", "up"},
		"name as ours":  {"name flock00000001"},
		"all":           {"name stolen0", "alias taken", "address 02:00:00:00:00:01"},
		"alias and mac": {"alias taken", "address 02:00:00:00:00:01"},
	}
	tampered := func(t *testing.T, changes []string) (*testNode, testPod, int) {
		t.Helper()
		node := newNode(t)
		node.apply(t)
		pod := node.podWith(t, "c0ffee", "2001:db8:100::5", "10.244.0.5", "2001:db8:a::53")
		pod.Routed = pod.Addrs[:2]
		index := node.attach(t, pod).HostIfIndex
		at := p
		for _, c := range changes {
			field, value, _ := strings.Cut(c, " ")
			args := []string{"link", "set", at, field}
			if field != "up" && field != "down" {
				args = append(args, strings.Split(value, "\x00")...)
			}
			if field == "name" {
				at = value
			}
			node.ns.IP(args...)
		}
		return node, pod, index
	}
	for name, changes := range tampers {
		for action, do := range map[string]func(t *testing.T, n *testNode, pod testPod, index int){
			"sync": func(t *testing.T, n *testNode, pod testPod, _ int) {
				if repairs := n.sync(t); len(repairs) == 0 {
					t.Error("no repairs")
				}
				if err := n.Check(pod.File(), pod.Attachment); err != nil {
					t.Error(err)
				}
				if repairs := n.sync(t); len(repairs) > 0 {
					t.Errorf("the second time: %v", repairs)
				}
			},
			"take down": func(t *testing.T, n *testNode, pod testPod, index int) {
				l, ok, err := n.TakeDown("c0ffee")
				if err != nil || !ok || l.IfIndex != index || l.HostIf != p {
					t.Fatalf("%+v, %t, %v", l, ok, err)
				}
				if gone, err := n.DeleteReleased([]Link{l}); err != nil || len(gone) != 1 {
					t.Errorf("%v, %v", gone, err)
				}
				if out := n.ns.IP("link"); strings.Contains(out, "02:66:6c:6f:63:6b") || strings.Contains(out, "stolen0") {
					t.Errorf("left: %s", out)
				}
			},
			"look up": func(t *testing.T, n *testNode, pod testPod, index int) {
				n.sync(t)
				if l, err := n.Lookup("c0ffee"); err != nil || l.IfIndex != index {
					t.Errorf("%+v, %v", l, err)
				}
			},
			"attach again": func(t *testing.T, n *testNode, pod testPod, index int) {
				n.sync(t)
				if got := n.attach(t, pod); got.HostIfIndex != index {
					t.Errorf("%+v: not the link that was there", got)
				}
				if err := n.Check(pod.File(), pod.Attachment); err != nil {
					t.Error(err)
				}
			},
			"take down by an agent that has started": func(t *testing.T, n *testNode, pod testPod, index int) {
				if name == "all" || strings.Contains(name, "ours") {
					t.Skip("nothing but the link's index could tell")
				}
				if l, ok, err := n.open(t).TakeDown("c0ffee"); err != nil || !ok || l.IfIndex != index || l.HostIf != p {
					t.Errorf("%+v, %t, %v", l, ok, err)
				}
			},
			"the agent starts": func(t *testing.T, n *testNode, pod testPod, index int) {
				if name == "all" || strings.Contains(name, "ours") {
					t.Skip("nothing but the link's index could tell")
				}
				n = &testNode{Host: n.open(t), ns: n.ns}
				if all, _, err := n.Observe(); err != nil || len(all) != 1 || all[0].IfIndex != index || all[0].HostIf != p || !all[0].IsOf(pod.Attachment) {
					t.Fatalf("observed %+v, %v", all, err)
				}
				if released, err := n.ReleaseOthers([]Attachment{pod.Attachment}); err != nil || len(released) > 0 {
					t.Fatalf("released %+v, %v", released, err)
				}
				if err := n.Adopt(pod.Attachment); err != nil {
					t.Fatal(err)
				}
				n.sync(t)
				if err := n.Check(pod.File(), pod.Attachment); err != nil {
					t.Error(err)
				}
			},
		} {
			t.Run(name+"/"+action, func(t *testing.T) {
				t.Parallel()
				node, pod, index := tampered(t, changes)
				do(t, node, pod, index)
			})
		}
	}
}
