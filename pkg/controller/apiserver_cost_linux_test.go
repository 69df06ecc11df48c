//go:build apiserver

package controller

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/kube/kubetest"
)

// fleetNamespaces and fleetPods are what the cluster has besides nodes.
const (
	fleetNamespaces = 200
	fleetPods       = 1000
)

// TestFleetCost is what FLOCK_AGENTS agents (100) cost an API server: hollow ones, which
// follow and write what agents do and have no node. The baseline in the same run is as many
// clients that follow all namespaces and pods. For its figures; make test-cluster leaves it
// out.
func TestFleetCost(t *testing.T) {
	if os.Getenv("FLOCK_AGENTS") == "" {
		t.Skip("measures for minutes: set FLOCK_AGENTS to the number of agents")
	}
	n, err := strconv.Atoi(os.Getenv("FLOCK_AGENTS"))
	if err != nil || n < 2 {
		t.Fatalf("FLOCK_AGENTS=%s: want a number from 2", os.Getenv("FLOCK_AGENTS"))
	}
	f := &fleetCost{server: &server{Server: kubetest.Start(t, "../../deploy")}, t: t, n: n}
	if f.core, err = core.NewForConfig(f.Admin()); err != nil {
		t.Fatal(err)
	}
	if f.flock, err = kube.NewClient(f.Admin()); err != nil {
		t.Fatal(err)
	}
	f.fill()

	f.measure("naive: start, until all are synced", f.startNaive)
	f.measure("naive: one namespace changes", func() { f.changeNamespace("naive") })
	f.stopAll()

	f.template(1400)
	f.measure("flock: start, until each has its NodeConfig and all caches", f.startAgents)
	f.measure("flock: one namespace changes", func() { f.changeNamespace("flock") })
	f.run(t)
	f.rolledOut(1)
	f.measure("flock: one template changes, in waves", func() { f.template(1410); f.rolledOut(2) })
	f.measure("flock: a quiet minute", func() {
		select {
		case <-time.After(time.Minute): // the length of what is measured
		case <-t.Context().Done():
		}
	})
	f.stopAll()
}

type fleetCost struct {
	*server
	t *testing.T
	n int

	received atomic.Int64 // bytes, by all agents
	failures atomic.Int64 // of agents' writes
	naive    atomic.Int64 // namespaces' changes that naive clients have seen
	cancel   context.CancelFunc
	running  sync.WaitGroup
	heap     uint64
}

// fill makes the nodes, the namespaces and their pods.
func (f *fleetCost) fill() {
	f.each(fleetNamespaces, func(i int) error {
		_, err := f.core.Namespaces().Create(f.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("cost", i)}}, metav1.CreateOptions{})
		return err
	})
	f.each(fleetPods, func(i int) error {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("pod", i)}}
		pod.Spec.Containers = []corev1.Container{{Name: "none", Image: "none"}}
		pod.Spec.NodeName = nodeName(i % f.n)
		_, err := f.core.Pods(fmt.Sprint("cost", i%fleetNamespaces)).Create(f.t.Context(), pod, metav1.CreateOptions{})
		return err
	})
	f.each(f.n, func(i int) error {
		cidr := fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i)}}
		node.Spec.PodCIDR, node.Spec.PodCIDRs = cidr, []string{cidr}
		_, err := f.core.Nodes().Create(f.t.Context(), node, metav1.CreateOptions{})
		return err
	})
}

func nodeName(i int) string { return fmt.Sprint("hollow", i) }

// each calls do for 0 to n-1, several at a time.
func (f *fleetCost) each(n int, do func(int) error) {
	f.t.Helper()
	var all sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if err := do(i); err != nil {
				f.t.Error(err)
			}
		})
	}
	all.Wait()
	if f.t.Failed() {
		f.t.FailNow()
	}
}

// usage is what the API server has used so far.
type apiUsage struct{ cpu, reads, writes float64 }

func (f *fleetCost) usage() (u apiUsage) {
	f.t.Helper()
	raw, err := f.core.RESTClient().Get().AbsPath("/metrics").DoRaw(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		i := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			continue
		}
		switch name := line[:max(i, 0)]; {
		case name == "process_cpu_seconds_total":
			u.cpu = value
		case !strings.HasPrefix(name, "apiserver_request_total{"):
		case strings.Contains(name, `verb="GET"`), strings.Contains(name, `verb="LIST"`), strings.Contains(name, `verb="WATCH"`):
			u.reads += value
		default:
			u.writes += value
		}
	}
	return u
}

// measure logs what do costs. A look at the server's metrics costs it some 20 ms.
func (f *fleetCost) measure(what string, do func()) {
	f.t.Helper()
	before, bytes, began := f.usage(), f.received.Load(), time.Now()
	do()
	took := time.Since(began)
	after := f.usage()
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	n := float64(f.n)
	f.t.Logf("%d agents: %s: %s; of the API server %.2f s of CPU, %.2f ms an agent; %.1f KB, %.1f reads and %.1f writes an agent; heap %.0f KiB an agent; %d writes failed so far",
		f.n, what, took.Round(time.Millisecond), after.cpu-before.cpu, 1000*(after.cpu-before.cpu)/n,
		float64(f.received.Load()-bytes)/1000/n, (after.reads-before.reads)/n, (after.writes-before.writes)/n, float64(int64(m.HeapAlloc)-int64(f.heap))/1024/n, f.failures.Load())
}

// counted counts what a connection receives.
type counted struct {
	net.Conn
	received *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(int64(n))
	return n, err
}

func (f *fleetCost) began() context.Context {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	f.heap = m.HeapAlloc
	ctx, cancel := context.WithCancel(f.t.Context())
	f.cancel = cancel
	f.t.Cleanup(cancel)
	return ctx
}

func (f *fleetCost) stopAll() {
	f.cancel()
	f.running.Wait()
}

// startNaive starts clients that follow all namespaces and pods.
func (f *fleetCost) startNaive() {
	ctx := f.began()
	var synced []cache.InformerSynced
	for i := range f.n {
		c := f.Agent(nodeName(i))
		c.Dial = f.counting()
		client, err := kubernetes.NewForConfig(c)
		if err != nil {
			f.t.Fatal(err)
		}
		all := informers.NewSharedInformerFactory(client, 0)
		namespaces := all.Core().V1().Namespaces().Informer()
		_, _ = namespaces.AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: func(any, any) { f.naive.Add(1) }})
		synced = append(synced, namespaces.HasSynced, all.Core().V1().Pods().Informer().HasSynced)
		all.Start(ctx.Done())
		f.running.Go(func() { <-ctx.Done(); all.Shutdown() })
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		f.t.Fatal("the naive clients do not sync")
	}
}

func (f *fleetCost) counting() func(context.Context, string, string) (net.Conn, error) {
	dial := f.Admin().Dial
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return counted{conn, &f.received}, nil
	}
}

// changeNamespace labels a namespace, and waits until all naive clients have seen it. No
// agent follows it: none of its pods asks for an address.
func (f *fleetCost) changeNamespace(who string) {
	f.t.Helper()
	seen := f.naive.Load()
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{"changed-by":%q}}}`, who)
	if _, err := f.core.Namespaces().Patch(f.t.Context(), "cost7", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		f.t.Fatal(err)
	}
	if who != "naive" {
		return
	}
	f.await("all naive clients to see the namespace", func() bool { return f.naive.Load() >= seen+int64(f.n) })
}

func (f *fleetCost) await(what string, done func() bool) {
	f.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Minute)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			f.t.Fatalf("waited 10 minutes for %s", what)
		}
	}
}

func (f *fleetCost) template(mtu int) {
	f.t.Helper()
	f.apply(f.t, fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplate","metadata":{"name":"all"},"spec":{"nodeSelector":{},"template":{"mtu":%d}}}`, mtu))
}

// rolledOut waits until a generation of the template has reached all nodes.
func (f *fleetCost) rolledOut(generation int64) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	defer cancel()
	templates := f.flock.NodeConfigTemplates(func() {})
	f.running.Go(func() { templates.Run(ctx) })
	f.await("the template to reach all nodes", func() bool {
		nct, ok := templates.Get("all")
		if !ok {
			return false
		}
		s := nct.Status
		return s.ObservedGeneration == generation && s.UpdatedNodes == int32(f.n) && len(s.Conditions) == 1 && s.Conditions[0].Reason == string(fleet.RolloutComplete)
	})
}

// startAgents starts hollow agents, and waits until all have followed the template.
func (f *fleetCost) startAgents() {
	ctx := f.began()
	var ready atomic.Int64
	for i := range f.n {
		config := f.Agent(nodeName(i))
		config.Dial = f.counting()
		client, err := kube.NewClient(config)
		if err != nil {
			f.t.Fatal(err)
		}
		sources, err := policy.NewSources(config, nodeName(i))
		if err != nil {
			f.t.Fatal(err)
		}
		h := &hollow{name: nodeName(i), client: client, wake: cell.Signal(), ready: &ready, failures: &f.failures}
		f.running.Go(func() { h.run(ctx, sources) })
	}
	f.await("all agents to have their NodeConfig", func() bool { return ready.Load() == int64(f.n) })
}

// hollow is the side of an agent that faces the API server.
type hollow struct {
	name   string
	client *kube.Client
	wake   chan struct{}
	// Of all agents: how many have their NodeConfig, and writes that failed.
	ready, failures *atomic.Int64
}

func (h *hollow) run(ctx context.Context, sources policy.Sources) {
	changed := func() { cell.Wake(h.wake) }
	configs := h.client.NodeConfig(h.name, changed)
	node := h.client.Node(h.name, changed)
	templates := h.client.NodeConfigTemplates(changed)
	pools := h.client.AddressPools(changed)
	namespaces := h.client.Namespaces(changed)
	services := h.client.AnnouncedServices(false, changed)
	_, policies := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: sources.NetworkPolicies, Handler: cache.ResourceEventHandlerFuncs{}})
	var parts sync.WaitGroup
	defer parts.Wait()
	for _, run := range []func(context.Context){configs.Run, node.Run, templates.Run, pools.Run, namespaces.Run, services.Run, policies.RunWithContext} {
		parts.Go(func() { run(ctx) })
	}
	written := int64(0) // the generation that was reported
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		}
		if !configs.Synced() || !node.Synced() || !templates.Synced() || !pools.Synced() || !services.Synced() {
			continue
		}
		n, ok := node.Get(h.name)
		if !ok {
			continue
		}
		current, ok := configs.Get(h.name)
		if !ok {
			current = nil
		}
		var err error
		switch v := fleet.Decide(fleet.NodeOf(n), current, templates.List()).InTurn(current); {
		case v.Action == fleet.Create:
			err = h.client.CreateNodeConfig(ctx, v.Object)
		case v.Action == fleet.Update:
			err = h.client.UpdateNodeConfig(ctx, v.Object)
		case current != nil && current.Generation != written:
			now := metav1.Now()
			err = h.client.PatchStatus(ctx, h.name, v1alpha1.NodeConfigStatus{ObservedGeneration: current.Generation, Conditions: []metav1.Condition{
				{Type: "Ready", Status: metav1.ConditionTrue, Reason: "ServingPods", LastTransitionTime: now},
				{Type: "SessionsUp", Status: metav1.ConditionTrue, Reason: "AllUp", LastTransitionTime: now},
			}})
			if err == nil {
				if written == 0 {
					h.ready.Add(1)
				}
				written = current.Generation
			}
		}
		quicker := apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) // its own last write, of which it is about to hear
		if err != nil && !quicker && ctx.Err() == nil {
			h.failures.Add(1)
			time.AfterFunc(time.Second, func() { cell.Wake(h.wake) }) // as the agent's first retry
		}
	}
}
