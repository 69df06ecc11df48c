package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

// anycastCrash measures how soon the router's kernel knows of a crash, by each way
// in which the agent may learn of it.
var anycastCrash = Bench{
	Name:  "anycast.crash",
	About: "pods that crash, to the router's kernel, by containerd's events, by CRI's alone and by the kubelet's word alone",
	Run: func(ctx context.Context, l *cluster.Lab, n int) ([]Result, error) {
		g, err := newGround(ctx, l)
		if err != nil {
			return nil, err
		}
		results, err := crashes(ctx, g, n)
		return results, errors.Join(err, g.remove(ctx))
	},
}

// The agent's --exit-sources, one at a time.
const (
	byContainerd = "containerd"
	byCRI        = "cri"
	byKubelet    = "none"
)

// crashTimes are durations since the kill, by pod.
type crashTimes struct {
	// Noticed is when the agent may know: when the observer does, by the same way.
	Noticed, Node, Router []time.Duration
}

func crashes(ctx context.Context, g *ground, n int) (results []Result, err error) {
	socket, err := g.runtime()
	if err != nil {
		return nil, err
	}
	seen, err := observing(ctx, observeInput{
		PodsAPI: g.podsAPI(), Namespace: anycastName, Runtime: socket,
		Node: member.Of(g.lab.Dir, anycastNode).NetNS(), Router: member.Of(g.lab.Dir, plan.Tor).NetNS(),
	})
	if err != nil {
		return nil, err
	}
	defer seen.close()

	deployed, err := g.daemonSet(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.deploy(context.WithoutCancel(ctx), deployed)) }()
	ways := []struct{ name, notice string }{{byContainerd, exitContainerd}, {byCRI, exitCRI}, {byKubelet, published}}
	times := map[string]*crashTimes{byContainerd: {}, byCRI: {}, byKubelet: {}}
	turns := (n + atOnce - 1) / atOnce
	for i := range turns {
		for j, way := range ways {
			if err := g.learnExitsBy(ctx, deployed, way.name); err != nil {
				return nil, err
			}
			gen := generation{ground: g, seen: seen}
			if err := gen.crash(ctx, i*len(ways)+j, n*(i+1)/turns-n*i/turns, way.notice, times[way.name]); err != nil {
				return nil, fmt.Errorf("--exit-sources=%s: %w", way.name, err)
			}
		}
	}

	result := func(name string, samples []time.Duration) Result {
		return Result{Name: name, Unit: "ms", Figures: Milliseconds(samples)}
	}
	kubelet := result("anycast.withdraw.crash.kubelet", times[byKubelet].Router)
	own, portable := result("anycast.withdraw.crash", times[byContainerd].Router), result("anycast.withdraw.crash.cri", times[byCRI].Router)
	own.Baseline, portable.Baseline = &kubelet, &kubelet
	return []Result{
		own, result("anycast.withdraw.crash.node", times[byContainerd].Node), result("containerd.notices.crash", times[byContainerd].Noticed),
		portable, result("anycast.withdraw.crash.cri.node", times[byCRI].Node), result("cri.notices.crash", times[byCRI].Noticed),
		kubelet, result("kubelet.notices.crash", times[byKubelet].Noticed),
	}, nil
}

// crash kills each pod's process, one when the one before it is back: to start a
// container again takes more of the machine than all that is measured.
func (g *generation) crash(ctx context.Context, number, size int, notice string, times *crashTimes) error {
	if err := g.come(ctx, number, size); err != nil {
		return err
	}
	before, err := configured(g.lab)
	if err != nil {
		return err
	}
	began := monotonic()
	killed, err := g.each(func(i int) (int64, error) {
		at, err := g.kill(&g.pods[i])
		if err != nil {
			return 0, err
		}
		there := mark{routed, g.addrs[i], true}
		gone := mark{routed, g.addrs[i], false}
		found, err := g.seen.await(ctx, at, seenPatience, gone)
		if err != nil {
			return 0, err
		}
		if _, err := g.seen.await(ctx, found[gone], seenPatience, there); err != nil {
			return 0, fmt.Errorf("back again: %w", err)
		}
		return at, nil
	})
	if err != nil {
		return err
	}
	sinks := flipSinks{notice: &times.Noticed, installed: &times.Node, routed: &times.Router}
	for what, took := range sinks {
		at, err := g.await(ctx, began, seenPatience, what, false)
		if err != nil {
			return err
		}
		*took = append(*took, g.since(killed, at)...)
	}
	if err := notConfiguredSince(g.lab, before); err != nil {
		return err
	}
	for i := range g.pods {
		if err := g.api.Delete(ctx, g.pods[i].Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return g.gone(ctx)
}

// flockDaemonSet is of which the agent is.
const flockDaemonSet = "flock"

// daemonSet is how flock is deployed.
func (g *ground) daemonSet(ctx context.Context) (appsv1.DaemonSetSpec, error) {
	ds, err := g.client.AppsV1().DaemonSets(flockNamespace).Get(ctx, flockDaemonSet, metav1.GetOptions{})
	if err != nil {
		return appsv1.DaemonSetSpec{}, err
	}
	return ds.Spec, nil
}

// learnExitsBy restarts the agents that are deployed so with this exit source only, and
// returns when the node's agent reports that it uses it. All restart at once: one node
// after the other would take most of the bench's time.
func (g *ground) learnExitsBy(ctx context.Context, deployed appsv1.DaemonSetSpec, way string) error {
	spec := *deployed.DeepCopy()
	all := intstr.FromString("100%")
	spec.MinReadySeconds = 0
	spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &all}
	i := slices.IndexFunc(spec.Template.Spec.Containers, func(c corev1.Container) bool { return c.Name == agentContainer })
	if i < 0 {
		return fmt.Errorf("DaemonSet %s/%s has no container %s", flockNamespace, flockDaemonSet, agentContainer)
	}
	c := &spec.Template.Spec.Containers[i]
	c.Args = append(c.Args, "--exit-sources="+way)
	if err := g.deploy(ctx, spec); err != nil {
		return err
	}
	return process.Await(ctx, "the agent to learn of exits by "+way, nil, func(ctx context.Context) error {
		is, err := g.lab.Kubectl(ctx, "", "get", "nodeconfig", anycastNode, "--output=jsonpath={.status.exitSource}")
		if err == nil && is != way {
			err = fmt.Errorf("status.exitSource of NodeConfig %s is %q", anycastNode, is)
		}
		return err
	})
}

// deploy has flock run so, and returns when it does on all nodes.
func (g *ground) deploy(ctx context.Context, spec appsv1.DaemonSetSpec) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*podPatience, errors.New("gave up"))
	defer cancel()
	sets := g.client.AppsV1().DaemonSets(flockNamespace)
	ds, err := sets.Get(ctx, flockDaemonSet, metav1.GetOptions{})
	if err != nil {
		return err
	}
	ds.Spec = spec
	if ds, err = sets.Update(ctx, ds, metav1.UpdateOptions{}); err != nil {
		return err
	}
	generation := ds.Generation
	return process.Await(ctx, "flock to run with other arguments", nil, func(ctx context.Context) error {
		ds, err := sets.Get(ctx, flockDaemonSet, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := ds.Status
		if s.ObservedGeneration < generation || s.UpdatedNumberScheduled < s.DesiredNumberScheduled || s.NumberAvailable < s.DesiredNumberScheduled {
			return fmt.Errorf("%d of %d pods are updated, %d available", s.UpdatedNumberScheduled, s.DesiredNumberScheduled, s.NumberAvailable)
		}
		return nil
	})
}
