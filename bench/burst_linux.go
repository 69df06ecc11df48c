package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"flock.fritzlab.net/flock/lab/cluster"
)

// burstPods come to one node at once. A node of the lab takes 250, and has some.
const burstPods = 240

// burstPatience is how long they may take to be Ready, and to go.
const burstPatience = 5 * time.Minute

// cniBurst measures how much of the time until pods are Ready is flock's, when a node gets
// as many as it can take.
var cniBurst = Bench{
	Name:  "cni.burst",
	About: fmt.Sprintf("%d pods at once on one node, whatever n is: until Ready, and what of it is the plugin's ADD", burstPods),
	Run: func(ctx context.Context, l *cluster.Lab, _ int) ([]Result, error) {
		g, err := newGround(ctx, l)
		if err != nil {
			return nil, err
		}
		results, err := burst(ctx, g)
		return results, errors.Join(err, g.clear(ctx), g.remove(ctx))
	},
}

func burst(ctx context.Context, g *ground) (results []Result, err error) {
	t, err := newTracer()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if err := t.see(programs...); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, burstPatience)
	defer cancel()
	pods, err := watchPodsOf(ctx, g)
	if err != nil {
		return nil, err
	}
	defer pods.Stop()
	if err := t.record(); err != nil {
		return nil, err
	}
	created := make([]int64, burstPods)
	makes := make(chan error, 1)
	go func() {
		makes <- inParallel(burstPods, func(i int) error {
			created[i] = monotonic()
			return g.create(ctx, burstPod(i))
		})
	}()
	readyAt, err := firstReady(ctx, pods, burstPods, burstPod)
	if err := errors.Join(err, <-makes); err != nil {
		return nil, err
	}
	events, err := t.take()
	if err != nil {
		return nil, err
	}
	var ready []time.Duration
	for i, at := range created {
		ready = append(ready, time.Duration(readyAt[burstPod(i)]-at))
	}
	adds := runs(events, confBin+"/flock")
	if len(adds) < burstPods {
		return nil, fmt.Errorf("the trace has %d runs of the plugin, want %d", len(adds), burstPods)
	}
	share := 100 * float64(total(adds)) / float64(total(ready))
	return []Result{
		{Name: "cni.burst.ready", Unit: "ms", Figures: Milliseconds(ready)},
		{Name: "cni.burst.plugin", Unit: "ms", Figures: Milliseconds(adds)},
		{Name: "cni.burst.share", Unit: "%", Figures: Figures{N: burstPods, P50: share, P99: share, Max: share}},
	}, nil
}

// watchPodsOf watches as long as ctx lasts; requests of the ground's client end sooner.
func watchPodsOf(ctx context.Context, g *ground) (watch.Interface, error) {
	config, err := g.lab.RESTConfig()
	if err != nil {
		return nil, err
	}
	config.Timeout = 0
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	// From wherever the API server is, which may just have started and be behind its store.
	return client.CoreV1().Pods(anycastName).Watch(ctx, metav1.ListOptions{ResourceVersion: "0"})
}

func burstPod(i int) string { return fmt.Sprintf("burst-%d", i) }

// firstReady returns when each of n pods was first seen to be Ready. Others in the namespace
// are not waited for.
func firstReady(ctx context.Context, pods watch.Interface, n int, name func(i int) string) (map[string]int64, error) {
	at, wanted := map[string]int64{}, map[string]bool{}
	for i := range n {
		wanted[name(i)] = true
	}
	for len(at) < n {
		select {
		case e, more := <-pods.ResultChan():
			if !more {
				return nil, cmp.Or(context.Cause(ctx), errors.New("the API server ended the watch of the pods"))
			}
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				return nil, fmt.Errorf("watch of the pods: %v", e.Object)
			}
			if _, seen := at[p.Name]; !seen && wanted[p.Name] && isReady(p) {
				at[p.Name] = monotonic()
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of %d pods are Ready: %w", len(at), n, context.Cause(ctx))
		}
	}
	return at, nil
}

// runs are how long a program's processes lived, from its execution to the end.
func runs(events []traceEvent, path string) (took []time.Duration) {
	began := map[int]time.Duration{}
	for _, e := range events {
		switch {
		case e.name == "sched_process_exec" && strings.HasPrefix(e.text, "filename="+path+" "):
			began[e.thread] = e.at
		case e.name == "sched_process_exit":
			if at, ok := began[e.thread]; ok {
				took = append(took, e.at-at)
				delete(began, e.thread)
			}
		}
	}
	return took
}

func total(all []time.Duration) (sum time.Duration) {
	for _, d := range all {
		sum += d
	}
	return sum
}

// clear deletes all pods at once, and waits until they have gone.
func (g *ground) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), burstPatience)
	defer cancel()
	now := int64(0)
	if err := g.api.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}); err != nil {
		return err
	}
	for {
		if err := g.gone(ctx); err == nil || ctx.Err() != nil {
			return err
		}
	}
}
