package watch

import (
	"slices"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/datapath/anycast"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/kernel/kerneltest"
	"flock.fritzlab.net/flock/pkg/pod"
)

func announce(c *anycast.Controller, p *testPod, index int) {
	ref := pod.Ref{Namespace: "test", Name: p.ContainerID, UID: pod.UID(p.ContainerID)}
	c.Send(anycast.Attached{
		ContainerID: p.ContainerID, Pod: ref, Link: index,
		Grants: []anycast.Grant{{Addr: addr("2001:db8:a::53")}, {Addr: addr("192.0.2.53")}},
	})
	c.Send(anycast.Readiness{UID: ref.UID, Ready: pod.Ready})
}

// TestTakeAwayEverything takes away, one by one, everything that flock has in the kernel, and
// sees it come back, by the kernel's notifications alone, while a stream between two other pods
// loses nothing.
func TestTakeAwayEverything(t *testing.T) {
	n := newNode(t, 3, func(w *Watcher) {
		deafToTheClock(w)
		fearless(w)
	})
	objects := n.objects()
	want := kerneltest.Names(objects)
	victim := n.pods[2].HostIf
	stream := n.stream(n.pods[0], n.pods[1])
	var times []time.Duration
	kinds := map[kernel.Kind]int{}
	for _, o := range objects {
		if o.Link != "" && o.Link != victim || o.Silent {
			continue
		}
		if o = current(n, o); o.Remove == "" {
			t.Fatalf("%s %s is not there to be taken away", o.Kind, o.Name)
		}
		kinds[o.Kind]++
		before := stream.lost()
		at := n.remove(o)
		n.back(want, o.Remove)
		n.eventually("a Sync says that it repaired after "+o.Remove, func() bool { return time.Unix(0, n.synced.Load()).After(at) })
		took := time.Unix(0, n.synced.Load()).Sub(at)
		times = append(times, took)
		t.Logf("%v: %s", took, o.Remove)
		if lost := stream.lost() - before; lost > 0 && !o.Shared {
			t.Errorf("%s: %d packets of other pods were lost", o.Remove, lost)
		}
	}
	for _, k := range kernel.Kinds {
		if kinds[k] == 0 {
			t.Errorf("nothing of kind %s was taken away", k)
		}
	}
	slices.Sort(times)
	t.Logf("%d objects of kinds %v; time to repair: p50 %v, p99 %v, max %v", len(times), kinds,
		times[len(times)/2], times[len(times)*99/100], times[len(times)-1])
	if s := n.Status(); len(s.Faults) > 0 {
		t.Errorf("faults %q", s.Faults)
	}
}

// current is an object as it is now: nexthops come back with other IDs.
func current(n *node, o kerneltest.Object) kerneltest.Object {
	for _, is := range n.objects() {
		if is.Kind == o.Kind && is.Name == o.Name {
			return is
		}
	}
	return kerneltest.Object{Kind: o.Kind, Name: o.Name}
}

// TestTakeAwayEverythingUnheard does so to all at once, where no notification comes: the timer
// alone brings all back.
func TestTakeAwayEverythingUnheard(t *testing.T) {
	t.Parallel()
	n := newNode(t, 3, func(w *Watcher) {
		w.events.routes.Close()
		w.events.tables.Close()
		w.events.deafen(t)
		for _, r := range w.runners {
			r.lookEvery = 300 * time.Millisecond
		}
	})
	objects := n.objects()
	want := kerneltest.Names(objects)
	for _, o := range objects {
		if o.Kind == kernel.NFTables && strings.HasPrefix(o.Name, "table") || o.Kind == kernel.Nexthop || o.Kind == kernel.Link && strings.Contains(o.Name, "up") {
			continue // others go with it
		}
		n.Try("sh", "-c", o.Remove)
	}
	n.back(want, "everything")
}

// back waits until the kernel has again what it had.
func (n *node) back(want []string, removed string) {
	n.t.Helper()
	var got []string
	for deadline := time.Now().Add(20 * time.Second); ; {
		if got = kerneltest.Names(n.objects()); slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	for _, o := range want {
		if !slices.Contains(got, o) {
			n.t.Errorf("after %s, never came back: %s", removed, o)
		}
	}
	for _, o := range got {
		if !slices.Contains(want, o) {
			n.t.Errorf("after %s, there is besides: %s", removed, o)
		}
	}
	n.t.FailNow()
}
