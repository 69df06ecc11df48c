package bench

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	fcache "k8s.io/client-go/tools/cache/testing"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

// policyEnforce measures how soon what the agent learns is enforced, connections that
// exist included. It needs no lab.
var policyEnforce = Bench{
	Name:  "policy.enforce",
	About: "10,000 pods, 1,000 policies: from the event of a peer that comes or goes at the agent to its being enforced, existing connections included, against one nft process that adds an element",
	Run: func(ctx context.Context, _ *cluster.Lab, n int) ([]Result, error) {
		return measureEnforce(ctx, n)
	},
}

// timedTable says when a change is in force.
type timedTable struct {
	*policy.Table
	inForce chan time.Time
}

func (t *timedTable) Apply(r *policy.Ruleset, c policy.Change) error {
	err := t.Table.Apply(r, c)
	if len(c.Sets) > 0 {
		t.inForce <- time.Now()
	}
	return err
}

// eventSource gives events without an API server.
type eventSource struct{ *fcache.FakeControllerSource }

func newEventSource() eventSource { return eventSource{fcache.NewFakeControllerSource()} }

func (eventSource) IsWatchListSemanticsUnSupported() bool { return true }

func apiPod(p policy.Pod) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID), Labels: p.Labels}}
	out.Status.PodIPs = []corev1.PodIP{{IP: p.Addrs[0].String()}}
	return out
}

func measureEnforce(ctx context.Context, n int) (results []Result, err error) {
	ns, err := newNetNS()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	table, err := tableIn(ns)
	if err != nil {
		return nil, err
	}
	defer table.Close()
	l := policytest.NewLoad(10, false)
	policies, pods := newEventSource(), newEventSource()
	for _, np := range l.Policies {
		policies.Add(np)
	}
	timed := &timedTable{table, make(chan time.Time, 1)}
	e := policy.New(policy.Config{Table: timed, Sources: policy.Sources{NetworkPolicies: policies, Pods: pods}, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	for _, p := range l.Pods {
		if len(p.Links) == 0 {
			pods.Add(apiPod(p))
		} else {
			e.Set(p)
		}
	}
	e.SetComplete()
	if err := e.InForce(ctx); err != nil {
		return nil, err
	}
	for len(timed.inForce) > 0 {
		<-timed.inForce
	}
	took := map[string][]time.Duration{}
	var base []time.Duration
	const warmUp = 5
	for i := range warmUp + 5*n {
		for _, kind := range []string{"allow", "revoke"} {
			began := time.Now()
			if kind == "allow" {
				pods.Add(apiPod(l.Peer(i)))
			} else {
				pods.Delete(apiPod(l.Peer(i)))
			}
			select {
			case at := <-timed.inForce:
				if i >= warmUp {
					took[kind] = append(took[kind], at.Sub(began))
				}
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(patience):
				return nil, fmt.Errorf("%s of pod %d is not enforced after %s", kind, i, patience)
			}
		}
		if i%10 == 0 {
			d, err := nftElement(ns)
			if err != nil {
				return nil, err
			}
			base = append(base, d)
		}
	}
	for _, kind := range []string{"allow", "revoke"} {
		results = append(results, Result{
			Name: "policy.enforce." + kind, Unit: "ms", Figures: Milliseconds(took[kind]),
			Baseline: &Result{Name: "nft.element", Unit: "ms", Figures: Milliseconds(base)},
			Goal:     &Goal{P50: 3, P99: 15},
		})
	}
	return results, nil
}
