package controller

import (
	"context"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	scheduling "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/kube"
)

// agents says which nodes should run flock's agent, so that an alert notices a node where it
// does not even start: Prometheus has no target there, and so nothing that could be wrong.
type agents struct {
	world     *world
	api       *kube.Client
	namespace string
	metrics   *metrics
}

// agentLabel has, with agentName as its value, each pod of flock's DaemonSets. The Service by which
// Prometheus finds the agents selects the same.
const agentLabel, agentName = "app.kubernetes.io/name", "flock"

// Run works until ctx ends. Nothing else waits for the DaemonSets: while the API server does
// not send them, it is not known which nodes should run an agent, and the metric is absent.
func (a *agents) Run(ctx context.Context) {
	changed := cell.Signal()
	a.world.heard.Notify(changed)
	var own cell.Topic
	own.Notify(changed)
	sets := a.api.DaemonSets(a.namespace, own.Wake)
	done := make(chan struct{})
	go func() { defer close(done); sets.Run(ctx) }()
	defer func() { <-done }()
	follow(ctx, changed, time.Second, func() time.Duration {
		if sets.Synced() {
			a.metrics.agents(expectedAgents(a.world.nodes.List(), sets.List()))
		}
		return -1
	})
}

// expectedAgents are the names of the nodes on which one of flock's DaemonSets runs a pod. It
// decides as the DaemonSets' controller does.
func expectedAgents(nodes []*corev1.Node, sets []*appsv1.DaemonSet) (names []string) {
	for _, ds := range sets {
		pod := &ds.Spec.Template
		if pod.Labels[agentLabel] != agentName || ds.DeletionTimestamp != nil {
			continue
		}
		affinity := nodeaffinity.NewRequiredNodeAffinity(pod.Spec.NodeSelector, pod.Spec.Affinity)
		tolerations := append(daemonTolerations(pod.Spec.HostNetwork), pod.Spec.Tolerations...)
		for _, n := range nodes {
			if fits, err := affinity.Match(n); err != nil || !fits || pod.Spec.NodeName != "" && pod.Spec.NodeName != n.Name {
				continue
			}
			if _, untolerated := scheduling.FindMatchingUntoleratedTaint(klog.Background(), n.Spec.Taints, tolerations, keepsAway, true); !untolerated {
				names = append(names, n.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// keepsAway says whether a taint keeps new pods from a node.
func keepsAway(t *corev1.Taint) bool {
	return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
}

// daemonTolerations are those that the DaemonSets' controller adds to each pod.
func daemonTolerations(hostNetwork bool) (all []corev1.Toleration) {
	add := func(effect corev1.TaintEffect, keys ...string) {
		for _, key := range keys {
			all = append(all, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect})
		}
	}
	add(corev1.TaintEffectNoExecute, corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable)
	add(corev1.TaintEffectNoSchedule, corev1.TaintNodeDiskPressure, corev1.TaintNodeMemoryPressure, corev1.TaintNodePIDPressure, corev1.TaintNodeUnschedulable)
	if hostNetwork {
		add(corev1.TaintEffectNoSchedule, corev1.TaintNodeNetworkUnavailable)
	}
	return all
}
