package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/controller"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
)

// fill makes the nodes, the namespaces with their pods, and the claims.
func (f *fleetRun) fill(ctx context.Context) error {
	node := func(name, cidr string) error {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"fleet": "hollow"}}}
		if cidr != "" {
			n.Spec.PodCIDR, n.Spec.PodCIDRs = cidr, []string{cidr}
		} else {
			n.Labels = nil // no template selects it
		}
		_, err := f.admin.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
		return err
	}
	if err := errors.Join(node(elsewhere, ""), node(realNode, "")); err != nil {
		return err
	}
	for _, step := range []struct {
		n    int
		make func(i int) error
	}{
		{f.namespaces, func(i int) error {
			_, err := f.admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fleetNamespace(i)}}, metav1.CreateOptions{})
			return err
		}},
		{1, func(int) error {
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: naiveSecret}, StringData: map[string]string{"password": "none"}}
			_, err := f.admin.CoreV1().Secrets(fleetNamespace(0)).Create(ctx, secret, metav1.CreateOptions{})
			return err
		}},
		{f.nodes, func(i int) error { return node(fleetNode(i), fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256)) }},
		{f.pods, func(i int) error {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("pod", i)}}
			pod.Spec.Containers = []corev1.Container{{Name: "none", Image: "none"}}
			pod.Spec.NodeName = fleetNode(i % f.nodes)
			_, err := f.admin.CoreV1().Pods(fleetNamespace(i%f.namespaces)).Create(ctx, pod, metav1.CreateOptions{})
			return err
		}},
		{f.claims, func(i int) error { return f.flock.CreateClaim(ctx, fleetClaim(i)) }},
	} {
		if err := each(ctx, step.n, step.make); err != nil {
			return err
		}
	}
	return nil
}

// startNaive starts n clients that follow everything, and waits until all are synced. How long each took
// it adds to took, unless that is nil.
func (f *fleetRun) startNaive(ctx context.Context, running *sync.WaitGroup, clients int, took *[]time.Duration) error {
	synced := make(chan time.Duration, clients)
	began := time.Now()
	for range clients {
		n, err := newNaive(f.server, &f.others)
		if err != nil {
			return err
		}
		n.namespace, n.failed = func() { f.namespacesSeen.Add(1); f.wake() }, f.fail
		running.Go(func() { n.run(ctx, func() { synced <- time.Since(began) }) })
	}
	if err := f.await(ctx, "the naive clients to have everything", func() bool { return len(synced) == clients }); err != nil {
		return err
	}
	for range clients {
		if d := <-synced; took != nil {
			*took = append(*took, d)
		}
	}
	return nil
}

// startAgents starts the hollow agents, and waits until each has all that it follows, has made
// its NodeConfig from the template and written the status.
func (f *fleetRun) startAgents(ctx context.Context, running *sync.WaitGroup, took *[]time.Duration) error {
	f.timeReports()
	for i := range f.nodes {
		h, err := newHollow(fleetNode(i), f.server.agent(fleetNode(i), &f.agents))
		if err != nil {
			return err
		}
		h.overlapping, h.reported, h.failed = f.reportOverlap, f.report, f.fail
		if i < f.followers {
			h.follows = f.changing()
		}
		f.hollows = append(f.hollows, h)
		running.Go(func() { h.run(ctx) })
	}
	return f.awaitReports(ctx, 1, took)
}

func (f *fleetRun) timeReports() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.began = time.Now()
}

// report takes the first report of each generation.
func (f *fleetRun) report(node string, generation int64) {
	defer f.wake()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reports[generation] == nil {
		f.reports[generation] = map[string]time.Duration{}
	}
	if _, there := f.reports[generation][node]; !there {
		f.reports[generation][node] = time.Since(f.began)
	}
}

// awaitReports waits until all agents have reported a generation.
func (f *fleetRun) awaitReports(ctx context.Context, generation int64, took *[]time.Duration) error {
	err := f.await(ctx, fmt.Sprintf("all agents to report generation %d", generation), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.reports[generation]) == f.nodes
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.reports[generation] {
		*took = append(*took, d)
	}
	return err
}

func (f *fleetRun) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures++
	f.failure = err
}

func (f *fleetRun) wake() {
	select {
	case f.progress <- struct{}{}:
	default:
	}
}

// await waits until done says so, which is asked after each wake and every 10 ms.
func (f *fleetRun) await(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, rollOutPatience)
	defer cancel()
	for !done() {
		select {
		case <-f.progress:
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			f.mu.Lock()
			defer f.mu.Unlock()
			return errors.Join(fmt.Errorf("waited for %s: %w", what, context.Cause(ctx)), f.failure)
		}
	}
	return nil
}

// changing is the namespace that changes.
func (f *fleetRun) changing() string { return fleetNamespace(f.namespaces - 1) }

// changeNamespaces changes the label of a namespace, again and again, each time when all who
// follow it have seen the change before.
func (f *fleetRun) changeNamespaces(ctx context.Context, by string, seen func(label string) bool) error {
	for i := range f.changes {
		label := fmt.Sprintf("%s-%d", by, i)
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, changedBy, label)
		if _, err := f.admin.CoreV1().Namespaces().Patch(ctx, f.changing(), types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return err
		}
		if err := f.await(ctx, "all who follow the namespace to see that its label is "+label, func() bool { return seen(label) }); err != nil {
			return err
		}
	}
	return nil
}

// changedBy is the label of a namespace that is changed.
const changedBy = "changed-by"

// followersSaw says whether the agents that follow the namespace have its label.
func (f *fleetRun) followersSaw(label string) bool {
	for _, h := range f.hollows[:f.followers] {
		if labels, ok := h.namespaces.Known(h.follows); !ok || labels[changedBy] != label {
			return false
		}
	}
	return true
}

// reportOverlap takes what an agent has reported last of its pod CIDRs.
func (f *fleetRun) reportOverlap(node string, is bool) {
	defer f.wake()
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, there := f.overlapping[node]; is && !there {
		f.overlapping[node] = time.Since(f.began)
	} else if !is {
		delete(f.overlapping, node)
	}
}

// wide is a NodeConfig that has the pod CIDRs of all nodes.
const wide = "wide"

// overlapAll makes that NodeConfig, and waits until all agents have reported it.
func (f *fleetRun) overlapAll(ctx context.Context, took *[]time.Duration) error {
	f.timeReports()
	nc := &v1alpha1.NodeConfig{Spec: v1alpha1.NodeConfigSpec{PodCIDRs: v1alpha1.PodCIDRs{IPv4: []v1alpha1.CIDR{"10.0.0.0/8"}}}}
	nc.Name = wide
	if err := f.flock.CreateNodeConfig(ctx, nc); err != nil {
		return err
	}
	err := f.awaitOverlaps(ctx, f.nodes)
	f.mu.Lock()
	defer f.mu.Unlock()
	*took = slices.Collect(maps.Values(f.overlapping))
	return err
}

func (f *fleetRun) awaitOverlaps(ctx context.Context, nodes int) error {
	return f.await(ctx, fmt.Sprintf("%d agents to report that another node has their pod CIDRs", nodes), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.overlapping) == nodes
	})
}

// overlapNone deletes that NodeConfig, and waits until no agent reports it any more.
func (f *fleetRun) overlapNone(ctx context.Context) error {
	if err := f.flock.Flock().Delete().Resource("nodeconfigs").Name(wide).Do(ctx).Error(); err != nil {
		return err
	}
	return f.awaitOverlaps(ctx, 0)
}

// listNodeConfigs reads all NodeConfigs as often as a namespace changes, as each agent would that
// compared the pod CIDRs of all nodes itself.
func (f *fleetRun) listNodeConfigs(ctx context.Context) error {
	client, err := kube.NewClient(f.server.admin(&f.others))
	if err != nil {
		return err
	}
	for range f.changes {
		if err := client.Flock().Get().Resource("nodeconfigs").Param("resourceVersion", "0").Do(ctx).Into(&v1alpha1.NodeConfigList{}); err != nil {
			return err
		}
	}
	return nil
}

// template makes the template of the hollow nodes, or changes it.
func (f *fleetRun) template(ctx context.Context, mtu int, atOnce string, minReady int) error {
	body := fmt.Appendf(nil, `{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplate","metadata":{"name":%q},"spec":{
		"nodeSelector":{"matchLabels":{"fleet":"hollow"}},"updateStrategy":{"rollingUpdate":{"maxUnavailable":%q}},"minReadySeconds":%d,
		"template":{"mtu":%d}}}`, fleetTemplate, atOnce, minReady, mtu)
	return f.flock.Flock().Patch(types.ApplyYAMLPatchType).Resource("nodeconfigtemplates").Name(fleetTemplate).
		Param("fieldManager", "bench").Param("force", "true").Body(body).Do(ctx).Error()
}

// changeTemplate changes the template, and waits until it is rolled out.
func (f *fleetRun) changeTemplate(ctx context.Context, generation int64, atOnce bool, took *[]time.Duration) error {
	most, minReady := "10%", f.minReady
	if atOnce {
		most, minReady = "100%", 0
	}
	f.timeReports()
	if err := f.template(ctx, 1400+int(generation), most, minReady); err != nil {
		return err
	}
	if err := f.awaitReports(ctx, generation, took); err != nil {
		return err
	}
	return f.awaitTemplate(ctx, "the roll-out to be complete", func(s v1alpha1.NodeConfigTemplateStatus) bool {
		return s.UpdatedNodes == int32(f.nodes) && len(s.Conditions) == 1 && s.Conditions[0].Reason == string(fleet.RolloutComplete)
	})
}

// awaitTemplate waits until flock-controller has looked at the template as it is, and done says so.
func (f *fleetRun) awaitTemplate(ctx context.Context, what string, done func(v1alpha1.NodeConfigTemplateStatus) bool) error {
	following, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() { stop(); running.Wait() }()
	templates := f.flock.NodeConfigTemplates(f.wake)
	running.Go(func() { templates.Run(following) })
	return f.await(ctx, what, func() bool {
		nct, ok := templates.Get(fleetTemplate)
		return ok && nct.Status.ObservedGeneration == nct.Generation && done(nct.Status)
	})
}

// awaitController waits until flock-controller has all objects: it looks at templates only then.
func (f *fleetRun) awaitController(ctx context.Context) error {
	return f.awaitTemplate(ctx, "flock-controller to have all objects", func(v1alpha1.NodeConfigTemplateStatus) bool { return true })
}

// runController is flock-controller, which gives the nodes their turns.
func (f *fleetRun) runController(ctx context.Context) {
	if err := controller.Lead(ctx, controller.Config{
		API: f.server.controller(&f.control), Name: "bench", Namespace: "flock-system", Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		f.fail(err)
	}
}
