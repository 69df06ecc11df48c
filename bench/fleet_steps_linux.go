package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// startNaive starts the clients that follow everything, and waits until all are synced. Most
// end with the second context, the survivors with the first.
func (f *fleetRun) startNaive(ctx context.Context, running *sync.WaitGroup, most context.Context, leaving *sync.WaitGroup, took *[]time.Duration) error {
	synced := make(chan time.Duration, f.nodes)
	began := time.Now()
	for i := range f.nodes {
		n, err := newNaive(f.server, &f.others)
		if err != nil {
			return err
		}
		n.namespace, n.failed = func() { f.namespacesSeen.Add(1); f.wake() }, f.fail
		during, group := most, leaving
		if i < f.survivors {
			during, group = ctx, running
		}
		group.Go(func() { n.run(during, func() { synced <- time.Since(began) }) })
	}
	return f.await(ctx, "the naive clients to have everything", func() bool {
		for len(synced) > 0 {
			*took = append(*took, <-synced)
			f.wake()
		}
		return len(*took) == f.nodes
	})
}

// startAgents starts the hollow agents, and waits until each has made its NodeConfig from
// the template and written the status.
func (f *fleetRun) startAgents(ctx context.Context, running *sync.WaitGroup, took *[]time.Duration) error {
	f.timeReports()
	for i := range f.nodes {
		h, err := newHollow(fleetNode(i), f.server, &f.agents)
		if err != nil {
			return err
		}
		h.look, h.looked, h.reported, h.failed = f.look, f.looks, f.report, f.fail
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

// changeNamespaces changes the labels of a namespace, and waits until as many naive clients as
// there are have seen it. No agent follows it: none of its pods asks for an address.
func (f *fleetRun) changeNamespaces(ctx context.Context, by string, watchers int) error {
	want := f.namespacesSeen.Load()
	for i := range f.changes {
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{"changed-by":"%s-%d"}}}`, by, i)
		if _, err := f.admin.CoreV1().Namespaces().Patch(ctx, fleetNamespace(f.namespaces-1), types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return err
		}
		want += int64(watchers)
		if err := f.await(ctx, "the naive clients to see the namespace", func() bool { return f.namespacesSeen.Load() >= want }); err != nil {
			return err
		}
	}
	return nil
}

// listNodeConfigs reads all NodeConfigs as often as a namespace changes, as a client would that
// compared the pod CIDRs of all nodes without the table.
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
	following, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() { stop(); running.Wait() }()
	templates := f.flock.NodeConfigTemplates(f.wake)
	running.Go(func() { templates.Run(following) })
	return f.await(ctx, "the roll-out to be complete", func() bool {
		nct, ok := templates.Get(fleetTemplate)
		if !ok {
			return false
		}
		s := nct.Status
		return s.ObservedGeneration == nct.Generation && s.UpdatedNodes == int32(f.nodes) && len(s.Conditions) == 1 && s.Conditions[0].Reason == string(fleet.RolloutComplete)
	})
}

// runController is flock-controller, which gives the nodes their turns.
func (f *fleetRun) runController(ctx context.Context) {
	if err := controller.Lead(ctx, controller.Config{
		API: f.server.controller(&f.control), Name: "bench", Namespace: "flock-system", Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		f.fail(err)
	}
}
