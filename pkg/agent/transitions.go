//go:build linux

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/datapath/anycast"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/pod"
)

// transitionQueue holds changes of anycast routes that the kernel has made and that
// are to be reported: as log lines, Events and metrics.
type transitionQueue struct {
	node      string
	events    *kube.Recorder
	log       *slog.Logger
	durations *prometheus.HistogramVec
	filled    chan struct{}

	mu  sync.Mutex // guards all
	all []anycast.Transition
}

func newTransitionQueue(node string, events *kube.Recorder, log *slog.Logger) transitionQueue {
	return transitionQueue{
		node: node, events: events, log: log, filled: cell.Signal(),
		durations: transitionsMetric.NewHistogram(prometheus.ExponentialBuckets(0.0001, 2, 16)), // 0.1 ms to 3.3 s
	}
}

// add is called by the controller. It keeps the controller for no longer than it
// takes to note them: where many pods change at once, log, Events and status of the
// first would delay the withdrawal of the last.
func (q *transitionQueue) add(made []anycast.Transition) {
	q.mu.Lock()
	q.all = append(q.all, made...)
	q.mu.Unlock()
	cell.Wake(q.filled)
}

// run reports what was added, together with what is added soon after, and calls
// reported.
func (q *transitionQueue) run(ctx context.Context, reported func()) error {
	const soon = 100 * time.Millisecond
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-q.filled:
		}
		select {
		case <-ctx.Done():
		case <-time.After(soon):
		}
		q.mu.Lock()
		all := q.all
		q.all = nil
		q.mu.Unlock()
		q.report(all)
		reported()
	}
}

// report makes one Event and one line of the log for all addresses of a pod that
// share a reason.
func (q *transitionQueue) report(all []anycast.Transition) {
	type eventGroup struct {
		pod       pod.Ref
		announced bool
		reason    anycast.Reason
		detail    string
	}
	var groups []eventGroup
	of := map[eventGroup][]anycast.Transition{}
	for _, t := range all {
		change := "withdraw"
		if t.Announced {
			change = "announce"
		}
		q.durations.WithLabelValues(change, string(t.Reason)).Observe(t.Latency().Seconds())
		g := eventGroup{t.Pod, t.Announced, t.Reason, t.Detail}
		if of[g] == nil {
			groups = append(groups, g)
		}
		of[g] = append(of[g], t)
	}
	for _, g := range groups {
		word, reason := "withdrawn", "AnycastWithdrawn"
		if g.announced {
			word, reason = "announced", "AnycastAnnounced"
		}
		addrs, took := addressList(of[g])
		q.log.Info("anycast address "+word, "pod", g.pod, "address", addrs, "reason", string(g.reason), "detail", g.detail, "took", took)
		q.events.Event(g.pod, kube.Normal, reason, "Announce",
			strings.TrimSpace(fmt.Sprintf("%s %s on node %s: %s %s", addrs, word, q.node, g.reason, g.detail)))
	}
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
