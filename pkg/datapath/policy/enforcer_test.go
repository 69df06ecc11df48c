package policy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	fcache "k8s.io/client-go/tools/cache/testing"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// source is an API server's objects of one kind.
type source struct {
	*fcache.FakeControllerSource
	mu      sync.Mutex
	refuse  error
	watched int // how often somebody began to follow
}

func newSource() *source { return &source{FakeControllerSource: fcache.NewFakeControllerSource()} }

func (s *source) IsWatchListSemanticsUnSupported() bool { return true }

func (s *source) setRefuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

func (s *source) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watched
}

func (s *source) List(o metav1.ListOptions) (runtime.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return nil, s.refuse
	}
	return s.FakeControllerSource.List(o)
}

func (s *source) Watch(o metav1.ListOptions) (apiwatch.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return nil, s.refuse
	}
	s.watched++
	return s.FakeControllerSource.Watch(o)
}

// fakeTable is a kernel that does what it is asked for, or refuses.
type fakeTable struct {
	mu      sync.Mutex
	err     error
	applied int
	stale   int
	ruleset *policy.Ruleset
	counts  policy.Counts
	// gate holds Apply until it is closed; nil: there is none.
	gate chan struct{}
	// inSync is called once, while a Sync is at work.
	inSync func()
}

func (f *fakeTable) Apply(r *policy.Ruleset, c policy.Change) error {
	if f.gate != nil {
		<-f.gate
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.applied++
	f.ruleset = r
	return nil
}

func (f *fakeTable) Sync(_ *policy.Ruleset, between func()) ([]datapath.Repair, error) {
	if do := f.inSync; do != nil {
		f.inSync = nil
		do()
	}
	between()
	return []datapath.Repair{{Object: "table"}}, nil
}

func (f *fakeTable) Counts() (policy.Counts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts, f.err
}

func (f *fakeTable) CountsOf(of []*policy.Counter) (map[string]uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]uint64{}
	for _, c := range of {
		out[c.Name] = f.counts.Counters[c.Name]
	}
	return out, f.err
}

func (f *fakeTable) Invalidate() { f.mu.Lock(); f.stale++; f.mu.Unlock() }

func (f *fakeTable) fail(err error) { f.mu.Lock(); f.err = err; f.mu.Unlock() }

// A rig is sources, a table and an Enforcer between them, in a bubble of time.
type rig struct {
	t                                                  *testing.T
	e                                                  *policy.Enforcer
	table                                              *fakeTable
	policies, clusterPolicies, pods, namespaces, nodes *source
	nodePods                                           *source
	reported                                           []policy.Finding
	web                                                policy.Pod
	file                                               string
	stop                                               func()
	held                                               func(*corev1.Pod, []netip.Addr) []netip.Addr
	budget                                             int
}

const asksAnnotation = "asks"

// start starts an Enforcer on what the last one has left.
func (r *rig) start() {
	r.table.mu.Lock()
	r.table.applied, r.table.ruleset = 0, nil
	r.table.mu.Unlock()
	r.e = policy.New(policy.Config{
		Table:   r.table,
		Sources: policy.Sources{NetworkPolicies: r.policies, ClusterNetworkPolicies: r.clusterPolicies, Pods: r.pods, Namespaces: r.namespaces, Nodes: r.nodes, NodePods: r.nodePods},
		File:    r.file,
		Addrs: func(p *corev1.Pod, before []netip.Addr) []netip.Addr {
			if r.held == nil {
				return before
			}
			return r.held(p, before)
		},
		Annotations: []string{asksAnnotation}, Budget: r.budget,
		Report: func(fs []policy.Finding) { r.reported = append(r.reported, fs...) },
		Log:    slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() { r.e.Run(ctx); close(done) }()
	r.stop = func() { cancel(); <-done }
}

// sources are all of them.
func (r *rig) sources() []*source {
	return []*source{r.policies, r.clusterPolicies, r.pods, r.namespaces, r.nodes, r.nodePods}
}

// away has the API server answer nothing any more, or again.
func (r *rig) away(away bool) {
	var err error
	if away {
		err = apierrors.NewServiceUnavailable("away")
	}
	for _, s := range r.sources() {
		s.setRefuse(err)
	}
}

func init() {
	// The second of them remembers the last error's time for the whole process, and
	// sleeps until then: years, or what another bubble's clock is ahead.
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
}

func inRig(t *testing.T, f func(*rig)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, table: &fakeTable{}, policies: newSource(), clusterPolicies: newSource(), pods: newSource(), namespaces: newSource(), nodes: newSource(), nodePods: newSource()}
		r.web = policy.Pod{Namespace: "shop", Name: "web", UID: "web", Labels: map[string]string{"app": "web"}, Links: []string{"flock1"}, Addrs: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}
		r.file = filepath.Join(t.TempDir(), "policies")
		r.start()
		f(r)
		r.stop()
		for _, s := range r.sources() {
			s.Broadcaster.Shutdown()
		}
	})
}

func (r *rig) complete() {
	r.t.Helper()
	r.e.SetComplete()
	synctest.Wait()
}

// wantPasses is what the table does with a packet from an address to the pod.
func (r *rig) wantPasses(from string, want bool) {
	r.t.Helper()
	synctest.Wait()
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	if r.table.ruleset == nil {
		r.t.Fatal("nothing is in force")
	}
	if got := policy.Simulate(r.table.ruleset, "", "flock1", netip.MustParseAddr(from), r.web.Addrs[0], 6, 80); got != want {
		r.t.Errorf("a packet from %s passes: %v, want %v", from, got, want)
	}
}

func apiPod(name, uid, app, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid), Labels: map[string]string{"app": app}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

// Before all policies and the node's pods are known, what is in the kernel stays as it
// is, and no pod starts without its policies.
func TestNothingBeforeAllIsKnown(t *testing.T) {
	inRig(t, func(r *rig) {
		forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "networkpolicies"}, "", errors.New("not yet"))
		r.policies.setRefuse(forbidden)
		r.complete()
		short, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
		defer cancel()
		err := r.e.Prepare(short, r.web)
		if !errors.Is(err, policy.ErrUnknown) || !strings.Contains(err.Error(), "shop/web") || !strings.Contains(err.Error(), "not yet") {
			t.Errorf("got %v, want ErrUnknown, the pod, and what the API server says", err)
		}
		if s := r.e.Status(); !strings.Contains(s.Missing, "networkpolicies") || !strings.Contains(s.Missing, "not yet") {
			t.Errorf("status %+v", s)
		}
		if repairs, err := r.e.Sync(r.t.Context()); len(repairs) > 0 || err != nil || r.table.applied > 0 {
			t.Errorf("%d applied, repairs %v, %v; want nothing", r.table.applied, repairs, err)
		}
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.policies.setRefuse(nil)
		time.Sleep(time.Minute)
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Error(err)
		}
		r.wantPasses("10.1.0.2", false)
		if repairs, err := r.e.Sync(r.t.Context()); len(repairs) != 1 || err != nil {
			t.Errorf("repairs %v, %v; want the table's", repairs, err)
		}
	})
}

// The cluster's pods are followed only while a policy is about them, and policies
// come into force only with them.
func TestFollowsWhatPoliciesNeed(t *testing.T) {
	inRig(t, func(r *rig) {
		r.complete()
		r.pods.Add(apiPod("peer", "1", "friend", "10.1.0.2"))
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.wantPasses("10.1.0.2", false)
		if n := r.pods.times() + r.namespaces.times() + r.nodes.times(); n > 0 {
			t.Errorf("%d watches that no policy needs", n)
		}

		unavailable := apierrors.NewServiceUnavailable("later")
		r.pods.setRefuse(unavailable)
		before := r.table.applied
		r.policies.Add(ingressPolicy("allow", "web", "friend"))
		synctest.Wait()
		if r.table.applied != before || r.table.stale == 0 {
			t.Errorf("applied %d times without the pods that the policy is about", r.table.applied-before)
		}
		if s := r.e.Status(); !strings.Contains(s.Pending, "pods (later)") {
			t.Errorf("status %+v", s)
		}
		// A pod that starts does not wait for them for long.
		other := r.web
		other.Name, other.UID, other.Links = "other", "other", []string{"flock2"}
		began := time.Now()
		if err := r.e.Prepare(r.t.Context(), other); err != nil || time.Since(began) > 5*time.Second {
			t.Errorf("prepared after %s: %v", time.Since(began), err)
		}
		r.pods.setRefuse(nil)
		time.Sleep(time.Minute)
		r.wantPasses("10.1.0.2", true)
		if s := r.e.Status(); s.Pending != "" {
			t.Errorf("status %+v", s)
		}

		// A pod of the same name takes its place, one ends, one is deleted.
		r.pods.Modify(apiPod("peer", "2", "friend", "10.1.0.3"))
		r.wantPasses("10.1.0.2", false)
		r.wantPasses("10.1.0.3", true)
		ended := apiPod("peer", "2", "friend", "10.1.0.3")
		ended.Status.Phase = corev1.PodSucceeded
		r.pods.Modify(ended)
		r.wantPasses("10.1.0.3", false)
		r.pods.Add(apiPod("peer2", "3", "friend", "10.1.0.4"))
		r.wantPasses("10.1.0.4", true)
		r.pods.Delete(apiPod("peer2", "3", "friend", "10.1.0.4"))
		r.wantPasses("10.1.0.4", false)

		// The pod itself is what the node knows of it, whatever the API server says.
		r.pods.Add(apiPod("web", "web", "friend", "10.1.0.9"))
		r.wantPasses("10.1.0.9", false)
		r.pods.Delete(apiPod("web", "web", "friend", "10.1.0.9"))
		r.wantPasses("10.1.0.9", false)

		r.policies.Delete(ingressPolicy("allow", "web", "friend"))
		time.Sleep(3 * time.Minute)
		times := r.pods.times()
		r.policies.Add(ingressPolicy("allow", "web", "friend"))
		synctest.Wait()
		if r.pods.times() != times+1 {
			t.Errorf("the pods were followed %d times more, want 1: as nobody needed them, they were not", r.pods.times()-times)
		}
	})
}

// What comes while a Sync is at work is done after what came before it.
func TestOrderDuringSync(t *testing.T) {
	inRig(t, func(r *rig) {
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.complete()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		other := r.web
		other.Name, other.UID, other.Links = "other", "other", []string{"flock2"}
		r.table.inSync = func() { r.e.Delete("shop", "other", "other") }
		// The change waits behind the Sync, in one batch.
		looked := make(chan error)
		r.table.gate = make(chan struct{})
		changed := r.web
		changed.Links = []string{"flock1", "flock3"}
		r.e.Set(changed) // Run is held at the table
		synctest.Wait()
		go func() {
			_, err := r.e.Sync(r.t.Context())
			looked <- err
		}()
		synctest.Wait()
		r.e.Set(other)
		close(r.table.gate)
		if err := <-looked; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.table.mu.Lock()
		defer r.table.mu.Unlock()
		if _, ok := r.table.ruleset.Links["flock2"]; ok || r.table.inSync != nil {
			t.Errorf("the pod that was deleted last is there: %v", r.table.ruleset.Links)
		}
	})
}

// A proxy before the API server may answer 404 for what it serves. No policy is gone for
// that.
func TestNotFoundIsNotEmpty(t *testing.T) {
	inRig(t, func(r *rig) {
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.complete()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		r.wantPasses("10.1.0.2", false)
		notFound := apierrors.NewNotFound(schema.GroupResource{Resource: "anything"}, "")
		r.policies.setRefuse(notFound)
		r.policies.ResetWatch()
		time.Sleep(time.Minute)
		r.wantPasses("10.1.0.2", false)
		if s := r.e.Status(); !strings.Contains(s.Stale, "networkpolicies") {
			t.Errorf("status %+v", s)
		}
		r.policies.setRefuse(nil)
		time.Sleep(time.Minute)
		if s := r.e.Status(); s.Stale != "" {
			t.Errorf("status %+v", s)
		}
	})
}

// The kubelet does not report that a label of a pod has changed, the API server does. Of
// two that differ, the later version counts.
func TestLabelsOfTheNodesPods(t *testing.T) {
	inRig(t, func(r *rig) {
		labeled := func(app string) *corev1.Pod { return apiPod("web", "web", app, "10.1.0.1") }
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.nodePods.Add(labeled("other")) // version 1
		r.web.Labels, r.web.Version = map[string]string{"app": "other"}, 1
		r.complete()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		r.wantPasses("10.1.0.2", true)
		r.nodePods.Modify(labeled("web")) // version 2
		r.wantPasses("10.1.0.2", false)
		r.e.Set(r.web) // the kubelet reports something else of the pod, and has not seen the label
		r.wantPasses("10.1.0.2", false)

		newer := r.web
		newer.Labels, newer.Version = map[string]string{"app": "other"}, 3
		r.e.Set(newer) // the agent's watch of the API server is late
		r.wantPasses("10.1.0.2", true)
		r.nodePods.Modify(labeled("other")) // version 3
		r.nodePods.Modify(labeled("web"))   // version 4
		r.wantPasses("10.1.0.2", false)

		// Deleted by force, the pod runs on.
		r.nodePods.Delete(labeled("web"))
		r.e.Set(r.web)
		r.wantPasses("10.1.0.2", false)

		// Another pod of the same name has labels of its own.
		r.e.Delete("shop", "web", "web")
		r.web.UID, r.web.Version = "web2", 6
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		r.wantPasses("10.1.0.2", true)

		// A static pod is known by another UID than its mirror at the API server.
		mirror := labeled("web")
		mirror.UID, mirror.Annotations = "mirror", map[string]string{corev1.MirrorPodAnnotationKey: "web2"}
		r.nodePods.Add(mirror)
		r.wantPasses("10.1.0.2", false)

		// Nobody needs labels where there are no policies.
		r.policies.Delete(ingressPolicy("deny", "web", ""))
		time.Sleep(3 * time.Minute)
		times := r.nodePods.times()
		r.nodePods.Modify(mirror)
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.wantPasses("10.1.0.2", false)
		if r.nodePods.times() != times+1 {
			t.Errorf("the node's pods were followed %d times more, want 1", r.nodePods.times()-times)
		}
	})
}

// After a restart without the API server, a pod's labels are what the kubelet says.
func TestLabelsWithoutTheAPIServer(t *testing.T) {
	inRig(t, func(r *rig) {
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.complete()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		r.stop()
		r.away(true)
		r.start()
		r.complete()
		began := time.Now()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil || time.Since(began) > time.Second {
			t.Errorf("in force after %s: %v", time.Since(began), err)
		}
		r.wantPasses("10.1.0.2", false)
	})
}

// A pod's start fails if its policies cannot be enforced, and what was refused is
// tried again.
func TestRetries(t *testing.T) {
	inRig(t, func(r *rig) {
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.complete()
		r.table.fail(errors.New("no room"))
		if err := r.e.Prepare(r.t.Context(), r.web); err == nil || !strings.Contains(err.Error(), "shop/web") || !strings.Contains(err.Error(), "no room") {
			t.Errorf("got %v, want the pod and the reason", err)
		}
		time.Sleep(10 * time.Second)
		r.table.fail(nil)
		time.Sleep(time.Minute)
		r.wantPasses("10.1.0.2", false)
		r.e.Delete("shop", "web", "web")
		r.wantPasses("10.1.0.2", true)
	})
}

// A cluster without the kind ClusterNetworkPolicy has none; when it comes, its
// policies are enforced.
func TestClusterPoliciesMayBeAbsent(t *testing.T) {
	inRig(t, func(r *rig) {
		r.clusterPolicies.setRefuse(apierrors.NewNotFound(schema.GroupResource{Resource: "clusternetworkpolicies"}, ""))
		r.complete()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		r.wantPasses("10.1.0.2", true)
		r.namespaces.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		r.clusterPolicies.setRefuse(nil)
		cnp := clusterPolicy(toNetworks("Deny", "0.0.0.0/0"))
		r.clusterPolicies.Add(cnp)
		time.Sleep(time.Minute)
		synctest.Wait()
		r.table.mu.Lock()
		defer r.table.mu.Unlock()
		if policy.Simulate(r.table.ruleset, "flock1", "", r.web.Addrs[0], netip.MustParseAddr("10.9.0.1"), 6, 80) {
			t.Error("the policy is not enforced")
		}
	})
}

// What cannot be enforced is reported once.
func TestReportsFindings(t *testing.T) {
	inRig(t, func(r *rig) {
		r.complete()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		np := ingressPolicy("odd", "web", "")
		np.Spec.Ingress = ingressPolicy("", "", "x").Spec.Ingress
		np.Spec.Ingress[0].From[0].PodSelector = nil
		r.policies.Add(np)
		synctest.Wait()
		r.pods.Add(apiPod("peer", "1", "friend", "10.1.0.2"))
		r.policies.Add(ingressPolicy("more", "web", "friend"))
		synctest.Wait()
		if len(r.reported) != 1 || r.reported[0].Policy.String() != "NetworkPolicy shop/odd" {
			t.Errorf("reported %v", r.reported)
		}
	})
}

// A policy over the budget is reported once, and the status names it until it fits.
func TestReportsWhatIsOverBudget(t *testing.T) {
	inRig(t, func(r *rig) {
		r.stop()
		r.budget = 1
		r.start()
		r.complete()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		r.policies.Add(ingressPolicy("many", "web", "friend"))
		r.pods.Add(apiPod("one", "1", "friend", "10.1.0.2"))
		synctest.Wait()
		if s := r.e.Status(); s.OverBudget != "" || len(r.reported) > 0 {
			t.Errorf("status %+v, reported %v; want nothing", s, r.reported)
		}
		r.pods.Add(apiPod("two", "2", "friend", "10.1.0.3"))
		r.pods.Add(apiPod("three", "3", "friend", "10.1.0.4"))
		synctest.Wait()
		s := r.e.Status()
		if !strings.Contains(s.OverBudget, "NetworkPolicy shop/many") || s.Missing != "" || s.Refusal != nil {
			t.Errorf("status %+v, want the policy over the budget and nothing else", s)
		}
		if len(r.reported) != 1 || !r.reported[0].OverBudget || !strings.HasPrefix(r.reported[0].Message, "spec.ingress: ") {
			t.Errorf("reported %+v, want once", r.reported)
		}
		about, err := r.e.About(r.t.Context(), "shop", "web", policy.Question{Direction: policy.Ingress, Peer: netip.MustParseAddr("10.1.0.2"), Protocol: 6, Port: 80})
		if err != nil || about.InForce || !strings.Contains(about.Why, "shop/many") || about.Verdicts[0].Allowed {
			t.Errorf("about the pod: %+v, %v; want that it is not in force and denied", about, err)
		}
		r.pods.Delete(apiPod("two", "2", "friend", "10.1.0.3"))
		r.pods.Delete(apiPod("three", "3", "friend", "10.1.0.4"))
		synctest.Wait()
		if s := r.e.Status(); s.OverBudget != "" {
			t.Errorf("status %+v after the pods have gone", s)
		}
	})
}

// An agent that starts while the API server is away knows what its predecessor knew, as
// of its last moment: policies, peers, and all that they are selected by.
func TestKnowsWhatWasKnown(t *testing.T) {
	inRig(t, func(r *rig) {
		r.namespaces.Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "a"}}})
		r.pods.Add(apiPod("peer", "1", "friend", "10.1.0.2"))
		r.pods.Add(apiPod("gone", "2", "friend", "10.1.0.3"))
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.policies.Add(ingressPolicy("allow", "web", "friend"))
		r.policies.Add(ingressPolicy("withdrawn", "web", "stranger"))
		cnp := clusterPolicy(toNetworks("Deny", "10.9.0.0/16"))
		r.clusterPolicies.Add(cnp)
		r.complete()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		r.wantPasses("10.1.0.2", true)
		r.pods.Delete(apiPod("gone", "2", "friend", "10.1.0.3"))
		r.pods.Add(apiPod("stranger", "3", "stranger", "10.1.0.4"))
		r.wantPasses("10.1.0.4", true)
		r.policies.Delete(ingressPolicy("withdrawn", "web", "stranger"))
		r.wantPasses("10.1.0.4", false)

		check := func() {
			t.Helper()
			r.wantPasses("10.1.0.2", true)
			r.wantPasses("10.1.0.3", false)
			r.wantPasses("10.1.0.4", false)
			r.table.mu.Lock()
			defer r.table.mu.Unlock()
			if policy.Simulate(r.table.ruleset, "flock1", "", r.web.Addrs[0], netip.MustParseAddr("10.9.0.1"), 6, 80) {
				t.Error("the ClusterNetworkPolicy is not enforced")
			}
		}
		for range 2 {
			r.stop()
			r.away(true)
			r.start()
			r.complete()
			began := time.Now()
			if err := r.e.Prepare(r.t.Context(), r.web); err != nil || time.Since(began) > 0 {
				t.Errorf("prepared after %s: %v", time.Since(began), err)
			}
			check()
			time.Sleep(5 * time.Minute)
			check()
		}
		if s := r.e.Status(); s.Missing != "" {
			t.Errorf("status %+v", s)
		}
		r.pods.Add(apiPod("new", "4", "friend", "10.1.0.5"))
		r.away(false)
		time.Sleep(time.Minute)
		check()
		r.wantPasses("10.1.0.5", true)
	})
}

// What cannot be read of the file is not known.
func TestUnreadableFile(t *testing.T) {
	inRig(t, func(r *rig) {
		r.policies.Add(ingressPolicy("deny", "web", ""))
		r.complete()
		synctest.Wait()
		for _, broken := range []string{"", "something else", "cut"} {
			r.stop()
			content := []byte(broken)
			if broken == "cut" { // before all policies were known
				whole, err := os.ReadFile(r.file)
				if err != nil {
					t.Fatal(err)
				}
				content = whole[:bytes.LastIndex(whole, []byte("networkpolicies"))]
			}
			if err := os.WriteFile(r.file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			r.away(true)
			r.start()
			r.complete()
			if s := r.e.Status(); !strings.Contains(s.Missing, "networkpolicies") {
				t.Errorf("file %q: status %+v", broken, s)
			}
			r.away(false)
			time.Sleep(time.Minute)
			if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
				t.Errorf("file %q: %v", broken, err)
			}
			r.wantPasses("10.1.0.2", false)
		}
	})
}

// A file that cannot be opened at the start, or removed, is not what the next start takes for
// the policies that were in force, and it is of use as soon as it can be opened.
func TestFileThatCannotBeOpened(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprint("the API server answers first: ", late), func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.pods.Add(apiPod("friend", "1", "friend", "10.1.0.2"))
				r.pods.Add(apiPod("peer", "2", "peer", "10.1.0.3"))
				r.policies.Add(ingressPolicy("old", "web", "friend"))
				r.policies.Add(ingressPolicy("lasts", "web", "peer"))
				r.complete()
				r.e.Set(r.web)
				r.wantPasses("10.1.0.2", true)
				r.stop()
				away := r.file + ".away"
				if err := errors.Join(os.Rename(r.file, away), os.MkdirAll(filepath.Join(r.file, "in the way"), 0o700)); err != nil {
					t.Fatal(err)
				}
				back := func() {
					if err := errors.Join(os.RemoveAll(r.file), os.Rename(away, r.file)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Minute)
				}
				again := func() {
					r.away(true)
					r.start()
					r.complete()
					r.e.Set(r.web)
					synctest.Wait()
				}
				if !late {
					again()
					back()
					r.wantPasses("10.1.0.2", true)
					r.wantPasses("10.1.0.4", false)
					return
				}
				r.start()
				r.complete()
				r.e.Set(r.web)
				r.policies.Delete(ingressPolicy("old", "web", "friend"))
				r.wantPasses("10.1.0.2", false)
				back()
				r.wantPasses("10.1.0.2", false)
				r.wantPasses("10.1.0.3", true)
				r.stop()
				again()
				r.wantPasses("10.1.0.2", false)
				r.wantPasses("10.1.0.3", true)
			})
		})
	}
}

// Addresses that pods of other nodes hold beside those of their status count when they
// are granted, and no longer; over a restart they are what they were.
func TestGrantedAddrs(t *testing.T) {
	inRig(t, func(r *rig) {
		granted := map[netip.Addr]bool{}
		known := true
		r.held = func(p *corev1.Pod, before []netip.Addr) (out []netip.Addr) {
			if !known {
				return before
			}
			if a := netip.MustParseAddr(p.Annotations[asksAnnotation]); granted[a] {
				out = append(out, a)
			}
			return out
		}
		r.policies.Add(ingressPolicy("allow", "web", "friend"))
		asks := func(address string) *corev1.Pod {
			p := apiPod("peer", "1", "friend", "10.1.0.2")
			p.Annotations = map[string]string{asksAnnotation: address, "other": "x"}
			return p
		}
		r.pods.Add(asks("192.0.2.53"))
		r.complete()
		if err := r.e.Prepare(r.t.Context(), r.web); err != nil {
			t.Fatal(err)
		}
		set := func(address string, is bool) {
			r.stop() // held is called by Run alone
			granted[netip.MustParseAddr(address)] = is
			r.start()
			r.complete()
			r.e.Set(r.web)
			r.e.AddrsChanged()
			synctest.Wait()
		}
		r.wantPasses("10.1.0.2", true)
		r.wantPasses("192.0.2.53", false)
		set("192.0.2.53", true)
		r.wantPasses("192.0.2.53", true)
		r.stop()
		known = false
		r.away(true)
		r.start()
		r.complete()
		r.e.Set(r.web)
		r.wantPasses("192.0.2.53", true)
		r.stop()
		known = true
		r.away(false)
		r.start()
		r.complete()
		r.e.Set(r.web)
		r.pods.Modify(asks("192.0.2.54"))
		r.wantPasses("192.0.2.53", false)
		r.wantPasses("192.0.2.54", false)
		set("192.0.2.54", true)
		r.wantPasses("192.0.2.54", true)
		set("192.0.2.54", false)
		r.wantPasses("192.0.2.54", false)
		r.wantPasses("10.1.0.2", true)
	})
}
