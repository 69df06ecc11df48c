//go:build linux

package agent

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/internal/metric"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/datapath/anycast"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pod"
	"flock.fritzlab.net/flock/pkg/pod/exits"
	"flock.fritzlab.net/flock/pkg/pod/source"
)

// podFollower is another feature that acts on the ends of pods as fast as anycast does. Its
// methods must not wait.
type podFollower interface {
	podDeleting(pod.UID)
	containerExited(id string)
	// followsDeletions says whether deletions matter to it now. It wakes the announcer's
	// topic held when that changes.
	followsDeletions() bool
}

// announcer passes to the anycast controller what it decides from: attachments, pods,
// deletions, exits of containers and announce delays.
type announcer struct {
	announcerConfig
	fib        *anycast.FIB
	controller *anycast.Controller
	made       transitionQueue
	lookup     func(containerID string) (wiring.Link, error) // the Host's
	unseen     cell.Topic                                    // the link of an identified pod could not be looked up
	others     []podFollower
	held       cell.Topic                    // whether deletions of pods matter may have changed
	reported   cell.Topic                    // what Report says may have changed
	known      map[pod.UID]anycast.Readiness // podChanged's own
}

type announcerConfig struct {
	node      string
	ledger    *ledger.Ledger
	host      *wiring.Host
	pools     cell.Reader[poolSet]
	pods      source.Source
	deletions *source.Deletions
	exits     *exits.Runtime
	events    *kube.Recorder
	log       *slog.Logger
}

// open makes the controller, which starts from what the records hold.
func (a *announcer) open() (err error) {
	a.known, a.lookup = map[pod.UID]anycast.Readiness{}, a.host.Lookup
	a.made = newTransitionQueue(a.node, a.events, a.log)
	if a.fib, err = anycast.OpenFIB(); err != nil {
		return err
	}
	if err := a.fib.Unfit(); err != nil {
		a.log.Error("the kernel cannot announce anycast addresses; everything else works", "error", err)
	}
	links, err := a.host.List()
	if err != nil {
		return err
	}
	index := map[string]int{}
	for _, l := range links {
		index[l.HostIf] = l.IfIndex
	}
	var attached []anycast.Attached
	for _, r := range a.ledger.Records() {
		if holdsAnycast(r) && index[r.HostIf] != 0 {
			attached = append(attached, a.attachment(r, index[r.HostIf]))
		}
	}
	a.controller = anycast.NewController(anycast.Config{
		Kernel:        a.fib,
		Attached:      attached,
		OnTransitions: a.made.add,
		Log:           a.log,
	})
	return nil
}

// Run follows everything that the controller decides by.
func (a *announcer) Run(ctx context.Context) error {
	return together(ctx, a.followPools, a.followDeletions, a.followExits,
		func(ctx context.Context) error { return a.made.run(ctx, a.reported.Wake) })
}

// Close implements Closer.
func (a *announcer) Close() { a.fib.Close() }

// attached is called when a pod that holds anycast addresses is wired.
func (a *announcer) attached(r ledger.Record, ifIndex int) {
	a.controller.Send(a.attachment(r, ifIndex))
	a.held.Wake()
}

// detached is called when a sandbox is released.
func (a *announcer) detached(containerID string) {
	a.controller.Send(anycast.Detached{ContainerID: containerID})
}

// freed is called when a record is gone.
func (a *announcer) freed() { a.held.Wake() }

func holdsAnycast(r ledger.Record) bool { return r.State == ledger.Committed && len(r.Anycast) > 0 }

// attachment is r as the controller knows it.
func (a *announcer) attachment(r ledger.Record, ifIndex int) anycast.Attached {
	t := anycast.Attached{
		ContainerID: r.ContainerID,
		Pod:         r.Pod,
		Link:        ifIndex,
	}
	set := a.pools.Get()
	pools := slices.Concat(set.pools, set.retained)
	for _, granted := range r.Anycast {
		g := anycast.Grant{Addr: granted.Addr}
		for _, p := range pools {
			if p.Name == granted.Pool {
				g.Delay = p.Routing.AnnounceDelay
			}
		}
		t.Grants = append(t.Grants, g)
	}
	return t
}

// followPools passes changed announce delays to the controller, and attachments whose links could
// not be looked up before.
func (a *announcer) followPools(ctx context.Context) error {
	changed := cell.Signal()
	a.pools.Notify(changed)
	a.unseen.Notify(changed)
	delay := backoff.Backoff{First: 100 * time.Millisecond, Last: 30 * time.Second}
	var retry <-chan time.Time // nil while nothing failed
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-retry:
		}
		retry = nil
		var failed error
		for _, r := range a.ledger.Records() {
			if !holdsAnycast(r) {
				continue
			}
			if l, err := a.lookup(r.ContainerID); err != nil {
				failed = err
			} else if l.IfIndex != 0 {
				a.controller.Send(a.attachment(r, l.IfIndex))
			}
			// It may have been released since it was listed.
			if now, ok := a.ledger.Lookup(r.ID); !ok || now.State != ledger.Committed {
				a.detached(r.ContainerID)
			}
		}
		if failed == nil {
			delay.Reset()
			continue
		}
		after := delay.Next()
		a.log.Warn("cannot look up the link of a pod with anycast addresses, will retry", "error", failed, "after", after)
		retry = time.After(after)
	}
}

// podChanged passes a report of the source of pods to the controller.
func (a *announcer) podChanged(e source.Event) {
	switch e.Type {
	case source.Deleted:
		delete(a.known, e.Pod.UID)
		a.controller.Send(anycast.Gone{UID: e.Pod.UID})
	case source.Synced:
		all := anycast.Resync{}
		for _, v := range a.known {
			all.Pods = append(all.Pods, v)
		}
		a.controller.Send(all)
	default:
		for _, r := range a.ledger.Identify(e.Pod.Ref) {
			if !holdsAnycast(r) {
				continue
			}
			if l, err := a.lookup(r.ContainerID); err != nil {
				a.unseen.Wake() // the pod is not identified again
			} else if l.IfIndex != 0 {
				a.controller.Send(a.attachment(r, l.IfIndex))
			}
		}
		v := readiness(e.Pod)
		a.known[e.Pod.UID] = v
		a.controller.Send(v)
	}
}

// readiness is what the source says of a pod.
func readiness(p *source.Pod) anycast.Readiness {
	ready := p.Status.Ready
	v := anycast.Readiness{
		UID:         p.UID,
		Ready:       ready.Readiness,
		Reason:      ready.Reason,
		Message:     ready.Message,
		Since:       ready.Since,
		Terminating: !p.Deletion.IsZero() || p.Status.Phase == source.Succeeded || p.Status.Phase == source.Failed,
	}
	for _, r := range p.Status.Runs {
		if !r.Init || r.Running { // a running init container is a sidecar, or the pod is not Ready yet
			v.Containers = append(v.Containers, anycast.Container{Name: r.Container, ID: r.ID, Restarts: int(r.Restarts)})
		}
	}
	return v
}

// followDeletions passes deletions of pods from the API server to the controller, ahead
// of the kubelet. A node without anycast addresses, and without Services that its own pods
// decide about, does not watch for them.
func (a *announcer) followDeletions(ctx context.Context) error {
	held := cell.Signal()
	a.held.Notify(held)
	var watching sync.WaitGroup
	defer watching.Wait()
	var stop context.CancelFunc // nil while not watching
	for {
		select {
		case <-ctx.Done():
			if stop != nil {
				stop()
			}
			return nil
		case <-held:
		}
		holds := slices.ContainsFunc(a.ledger.Records(), holdsAnycast) || slices.ContainsFunc(a.others, podFollower.followsDeletions)
		switch {
		case holds && stop == nil:
			var watch context.Context
			watch, stop = context.WithCancel(ctx)
			watching.Go(func() {
				a.deletions.Watch(watch, func(uid pod.UID) {
					a.controller.Send(anycast.Deleting{UID: uid})
					for _, o := range a.others {
						o.podDeleting(uid)
					}
				})
			})
		case !holds && stop != nil:
			stop()
			stop = nil
		}
	}
}

// followExits passes exits of containers to the controller, long before the kubelet
// notices them.
func (a *announcer) followExits(ctx context.Context) error {
	return a.exits.Watch(ctx, func(e exits.Exit) {
		a.controller.Send(anycast.Exited{ContainerID: e.ID, At: e.At})
		for _, o := range a.others {
			o.containerExited(e.ID)
		}
	})
}

// sourceChanged is called by pods with where it learns from.
func (a *announcer) sourceChanged(s source.Status) {
	a.log.Debug("source of pods changed", "source", s.Origin.String(), "kubelet", s.Kubelet, "apiserver", s.APIServer)
	if s.Origin == source.None {
		a.controller.Send(anycast.SourceLost{Why: "neither the kubelet nor the API server can be asked for the node's pods"})
	}
	a.reported.Wake()
}

// Notify implements Follower.
func (a *announcer) Notify(ch chan<- struct{}) { a.reported.Notify(ch) }

// Report implements Reporter. Addresses that are not announced come first.
func (a *announcer) Report(ctx context.Context, status *v1alpha1.NodeConfigStatus) {
	const most = 256
	status.PodSource = a.pods.Status().Origin.String()
	status.ExitSource = a.exits.Status().Source.String()
	s, err := a.controller.Status(ctx)
	if err != nil {
		return
	}
	slices.SortStableFunc(s.Paths, func(p, q anycast.Path) int {
		switch {
		case p.Announced == q.Announced:
			return compareAddrs(p.Addr, q.Addr)
		case q.Announced:
			return -1
		}
		return 1
	})
	status.Anycast = nil
	for _, p := range s.Paths[:min(len(s.Paths), most)] {
		status.Anycast = append(status.Anycast, v1alpha1.AnycastStatus{
			Address: p.Addr.String(), Pod: p.Pod.String(), Announced: p.Announced,
			Reason: string(p.Reason), Message: p.Detail, Since: metav1.NewTime(p.Since.Truncate(time.Second)),
		})
	}
}

var (
	podSourceMetric = metric.New(metric.Gauge, "flock_pod_source",
		"1 for the source of the node's pods that is in use: kubelet, apiserver or none.",
		"none: readiness does not reach anycast routes, which stay as they are. apiserver where the kubelet has the Pods API: withdrawals take longer.", "source")
	pathsMetric = metric.New(metric.Gauge, "flock_anycast_paths",
		"Pods at anycast addresses, one for each address of a pod, by whether the kernel announces it.",
		"announced=\"true\" falls to 0: the node attracts no traffic for its anycast addresses.", "announced")
	transitionsMetric = metric.New(metric.Histogram, "flock_anycast_transition_duration_seconds",
		"Time from the event that the agent received to the changed route in the kernel, by change (announce, withdraw) and reason. The count of withdraw says how often pods flap.",
		"Above 0.01 s: clients are sent to a pod that is gone. A high rate of withdraw: a pod becomes Ready and not Ready again and again.", "change", "reason")
)

// Describe implements prometheus.Collector.
func (a *announcer) Describe(ch chan<- *prometheus.Desc) {
	metric.Describe(ch, podSourceMetric, pathsMetric)
	a.made.durations.Describe(ch)
}

// Collect implements prometheus.Collector.
func (a *announcer) Collect(ch chan<- prometheus.Metric) {
	a.made.durations.Collect(ch)
	for _, o := range []source.Origin{source.None, source.Kubelet, source.APIServer} {
		ch <- podSourceMetric.Bool(a.pods.Status().Origin == o, o.String())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	status, err := a.controller.Status(ctx)
	if err != nil {
		return
	}
	paths := map[bool]int{}
	for _, p := range status.Paths {
		paths[p.Announced]++
	}
	for _, announced := range []bool{true, false} {
		ch <- pathsMetric.Value(float64(paths[announced]), strconv.FormatBool(announced))
	}
}
