//go:build linux

package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/anycast"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/exits"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pods"
	"flock.fritzlab.net/flock/pkg/store"
)

// openAnycast makes the controller of anycast addresses, which starts from what
// the records hold.
func (a *Agent) openAnycast() error {
	fib, err := anycast.OpenFIB()
	if err != nil {
		return err
	}
	if err := fib.Unfit(); err != nil {
		a.Log.Error("no anycast address is announced on this node; all else is served", "error", err)
	}
	links, err := a.host.List()
	if err != nil {
		return err
	}
	index := map[string]int{}
	for _, l := range links {
		index[l.ContainerID] = l.IfIndex
	}
	var attached []anycast.Attached
	for _, r := range a.ledger.Records() {
		if r.State == store.Committed && len(r.Anycast) > 0 && index[r.ContainerID] != 0 {
			attached = append(attached, a.announcer(r, index[r.ContainerID]))
		}
	}
	a.fib = fib
	a.anycast = anycast.NewController(anycast.Config{
		Kernel:        fib,
		Attached:      attached,
		OnTransitions: a.onTransitions,
		Log:           a.Log,
	})
	return nil
}

// announcer is r as the anycast controller knows it.
func (a *Agent) announcer(r store.Record, ifIndex int) anycast.Attached {
	t := anycast.Attached{
		ContainerID: r.ContainerID,
		Pod:         anycast.Pod{Namespace: r.PodNamespace, Name: r.PodName, UID: anycast.UID(r.PodUID)},
		Link:        ifIndex,
	}
	for _, granted := range r.Anycast {
		t.Grants = append(t.Grants, anycast.Grant{Addr: granted.Addr, Delay: a.announceDelay(granted.Pool)})
	}
	return t
}

func (a *Agent) announceDelay(pool string) time.Duration {
	ap, ok := a.addressPools.Get(pool)
	if !ok {
		return 0
	}
	p, err := config.ParsePool(ap)
	if err != nil {
		return 0
	}
	return p.Routing.AnnounceDelay
}

// followPools tells the controller of changed announce delays.
func (a *Agent) followPools(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.poolsChanged:
		}
		for _, r := range a.ledger.Records() {
			if r.State != store.Committed || len(r.Anycast) == 0 {
				continue
			}
			if l, err := a.host.Lookup(r.ContainerID); err == nil && l.IfIndex != 0 {
				a.anycast.Tell(a.announcer(r, l.IfIndex))
			}
			// It may have been given up since it was listed.
			if now, ok := a.ledger.Lookup(r.ID); !ok || now.State != store.Committed {
				a.anycast.Tell(anycast.Detached{ContainerID: r.ContainerID})
			}
		}
	}
}

// followPods takes what the kubelet says of the node's pods to the anycast
// controller.
func (a *Agent) followPods(ctx context.Context) error {
	known := map[string]anycast.Verdict{}
	return a.pods.Watch(ctx, func(e pods.Event) {
		switch e.Type {
		case pods.Deleted:
			delete(known, e.Pod.UID)
			a.anycast.Tell(anycast.Gone{UID: anycast.UID(e.Pod.UID)})
		case pods.Synced:
			all := anycast.Resync{}
			for _, v := range known {
				all.Verdicts = append(all.Verdicts, v)
			}
			a.anycast.Tell(all)
		default:
			v := verdict(e.Pod)
			known[e.Pod.UID] = v
			a.anycast.Tell(v)
		}
	})
}

// followDeletions takes word of pods that are to be deleted from the API server to
// the anycast controller, ahead of the kubelet's. A node without anycast addresses
// asks for none.
func (a *Agent) followDeletions(ctx context.Context) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	var stop context.CancelFunc // nil while it is not asked
	for {
		held := slices.ContainsFunc(a.ledger.Records(), func(r store.Record) bool {
			return r.State == store.Committed && len(r.Anycast) > 0
		})
		switch {
		case held && stop == nil:
			var asking context.Context
			asking, stop = context.WithCancel(ctx)
			watching.Go(func() {
				a.deletions.Watch(asking, func(uid string) { a.anycast.Tell(anycast.Deleting{UID: anycast.UID(uid)}) })
			})
		case !held && stop != nil:
			stop()
			stop = nil
		}
		select {
		case <-ctx.Done():
			if stop != nil {
				stop()
			}
			return nil
		case <-a.anycastHeld:
		}
	}
}

// followExits takes the end of containers to the anycast controller, long before
// the kubelet looks.
func (a *Agent) followExits(ctx context.Context) error {
	return a.exits.Watch(ctx, func(e exits.Exit) {
		a.anycast.Tell(anycast.Exited{ContainerID: e.ID, At: e.At})
	})
}

// verdict is what the kubelet says of a pod. While it has not looked, after its
// start, the controller is told so, and leaves the pod as it is.
func verdict(p *pods.Pod) anycast.Verdict {
	ready := p.Status.Ready
	if ready.Verdict == pods.Unknown {
		ready.Message = "Kubelet is initializing"
	}
	v := anycast.Verdict{
		UID:         anycast.UID(p.UID),
		Ready:       ready.Verdict == pods.Ready,
		Reason:      ready.Reason,
		Message:     ready.Message,
		Since:       ready.Since,
		Terminating: !p.Deletion.IsZero() || p.Status.Phase == pods.Succeeded || p.Status.Phase == pods.Failed,
	}
	for _, r := range p.Status.Runs {
		if !r.Init || r.Running { // a running init container is a sidecar, or the pod is not Ready yet
			v.Containers = append(v.Containers, anycast.Container{Name: r.Container, ID: r.ID, Restarts: int(r.Restarts)})
		}
	}
	return v
}

// sourceChanged is told where the pods are learned from.
func (a *Agent) sourceChanged(s pods.Status) {
	a.Log.Debug("pods are learned from", "source", s.Origin.String(), "kubelet", s.Kubelet, "apiserver", s.APIServer)
	if s.Origin == pods.None {
		a.anycast.Tell(anycast.SourceLost{Why: "neither the kubelet nor the API server tells of the node's pods"})
	}
	a.changed()
}

// news are transitions that the kernel has and that people are yet to be told of.
type news struct {
	mu   sync.Mutex // guards all
	all  []anycast.Transition
	come signal
}

// onTransitions is told what the kernel has. It keeps the controller for no longer
// than it takes to note that: where many pods change at once, log, Events and status
// of the first would delay the withdrawal of the last.
func (a *Agent) onTransitions(all []anycast.Transition) {
	a.news.mu.Lock()
	a.news.all = append(a.news.all, all...)
	a.news.mu.Unlock()
	a.news.come.give()
}

// reportTransitions tells people what has come, and what comes soon after with it.
func (a *Agent) reportTransitions(ctx context.Context) error {
	const soon = 100 * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.news.come:
		}
		select {
		case <-ctx.Done():
		case <-time.After(soon):
		}
		a.news.mu.Lock()
		all := a.news.all
		a.news.all = nil
		a.news.mu.Unlock()
		a.report(all)
	}
}

// report says what has become of pods' addresses, with one Event and one line of the
// log for all of a pod that share a reason: a thousand at once are one matter.
func (a *Agent) report(all []anycast.Transition) {
	type matter struct {
		pod       anycast.Pod
		announced bool
		reason    anycast.Reason
		detail    string
	}
	var matters []matter
	of := map[matter][]anycast.Transition{}
	for _, t := range all {
		a.metrics.transition(t)
		m := matter{t.Pod, t.Announced, t.Reason, t.Detail}
		if of[m] == nil {
			matters = append(matters, m)
		}
		of[m] = append(of[m], t)
	}
	for _, m := range matters {
		word, reason := "withdrawn", "AnycastWithdrawn"
		if m.announced {
			word, reason = "announced", "AnycastAnnounced"
		}
		addrs, took := addressList(of[m])
		a.Log.Info("anycast address "+word, "pod", m.pod, "address", addrs, "reason", string(m.reason), "detail", m.detail, "took", took)
		a.events.Event(kube.PodRef{Namespace: m.pod.Namespace, Name: m.pod.Name, UID: string(m.pod.UID)}, kube.Normal, reason, "Announce",
			strings.TrimSpace(fmt.Sprintf("%s %s on node %s: %s %s", addrs, word, a.NodeName, m.reason, m.detail)))
	}
	a.changed()
}

// addressList names the addresses, the first few and how many more, and says how
// long the last of them took.
func addressList(all []anycast.Transition) (addrs string, took time.Duration) {
	const few = 3
	var list []string
	for i, t := range all {
		took = max(took, t.Latency())
		if i < few {
			list = append(list, t.Addr.String())
		}
	}
	addrs = strings.Join(list, ", ")
	if more := len(all) - few; more > 0 {
		addrs += fmt.Sprintf(" and %d more", more)
	}
	return addrs, took
}

// anycastStatus is what people see of the node's anycast addresses, the most
// interesting first.
func (a *Agent) anycastStatus(ctx context.Context) ([]v1alpha1.AnycastStatus, error) {
	const most = 256
	s, err := a.anycast.Status(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(s.Paths, func(p, q anycast.Path) int {
		switch {
		case p.Announced == q.Announced:
			return inOrder(p.Addr, q.Addr)
		case q.Announced:
			return -1
		}
		return 1
	})
	var out []v1alpha1.AnycastStatus
	for _, p := range s.Paths[:min(len(s.Paths), most)] {
		out = append(out, v1alpha1.AnycastStatus{
			Address: p.Addr.String(), Pod: p.Pod.String(), Announced: p.Announced,
			Reason: string(p.Reason), Message: p.Detail, Since: metav1.NewTime(p.Since.Truncate(time.Second)),
		})
	}
	return out, nil
}
