package wiring

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// report gives percentiles; a mean is spoiled by one long wait for RCU.
func report(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), name+"-p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), name+"-p99-µs")
}

func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// release takes the links of pods away as the agent does: unrouted one by one,
// deleted in the reaper's batches.
func (n *testNode) release(b *testing.B, pods []testPod) (unroute, reap []time.Duration) {
	b.Helper()
	var links []Link
	for _, p := range pods {
		unroute = append(unroute, took(func() {
			l, ok, err := n.TakeDown(p.ContainerID)
			if !ok || err != nil {
				b.Fatal(p.HostIf, ok, err)
			}
			links = append(links, l)
		}))
	}
	for batch := range slices.Chunk(links, reapBatch) {
		reap = append(reap, took(func() {
			if gone, err := n.DeleteReleased(batch); err != nil || len(gone) != len(batch) {
				b.Fatal(gone, err)
			}
		}))
	}
	for _, p := range pods {
		p.Delete()
	}
	return unroute, reap
}

// BenchmarkAttach wires dual-stack pods one after another on a node that has
// none to 95 of them, and releases them again. Its baseline is the least that
// anything with a veth costs: the one request that creates it.
func BenchmarkAttach(b *testing.B) {
	node := newNode(b)
	node.apply(b)
	var attach, baseline, unroute, reap []time.Duration
	for b.Loop() {
		var pods []testPod
		for range 96 {
			pods = append(pods, node.pod(b))
		}
		bare := nettest.New(b)
		for i, p := range pods {
			attach = append(attach, took(func() { node.attach(b, p) }))
			baseline = append(baseline, took(func() {
				if errs := node.conn.Do(rtnl.NewVeth(rtnl.VethPair{
					Name: fmt.Sprintf("bare%d", i), PeerName: fmt.Sprintf("eth%d", i),
					MAC: HostMAC, PeerMAC: PodMAC(p.ContainerID), PeerNetns: bare.File(),
				})); errs != nil {
					b.Fatal(errs)
				}
			}))
		}
		u, r := node.release(b, pods)
		unroute, reap = append(unroute, u...), append(reap, r...)
		// The bare links' end shall not fall into the next round's figures.
		links, err := node.conn.Links("veth")
		if err != nil {
			b.Fatal(err)
		}
		for batch := range slices.Chunk(links, reapBatch) {
			var released []Link
			for _, l := range batch {
				released = append(released, listed(l))
			}
			if _, err := node.DeleteReleased(released); err != nil {
				b.Fatal(err)
			}
		}
		bare.Delete()
	}
	report(b, "attach", attach)
	report(b, "veth-only", baseline)
	report(b, "unroute", unroute)
	report(b, "reap32", reap)
}

// BenchmarkAttachParallel wires 30 pods at once, as a node does after a drain
// elsewhere: the time until each is done, and until all are.
func BenchmarkAttachParallel(b *testing.B) {
	node := newNode(b)
	node.apply(b)
	var each, all []time.Duration
	var mu sync.Mutex
	for b.Loop() {
		var pods []testPod
		for range 30 {
			pods = append(pods, node.pod(b))
		}
		all = append(all, took(func() {
			var wg sync.WaitGroup
			start := time.Now()
			for _, p := range pods {
				wg.Go(func() {
					if _, err := node.Attach(p.File(), p.Attachment); err != nil {
						b.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					each = append(each, time.Since(start))
				})
			}
			wg.Wait()
		}))
		node.release(b, pods)
	}
	report(b, "each", each)
	report(b, "all30", all)
}
