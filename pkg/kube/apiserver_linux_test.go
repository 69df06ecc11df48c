//go:build apiserver

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/address/claim/claimtest"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/kube/kubetest"
	"flock.fritzlab.net/flock/pkg/pod"
)

// TestAPIServer is one story with one server; its clients are agents, with the rights
// that deploy/ gives them.
func TestAPIServer(t *testing.T) {
	s := &server{kubetest.Start(t, "../../deploy")}
	t.Run("contract", func(t *testing.T) {
		s.run(t, "contract", "node1")
		claimtest.Contract(t, s.claims(t, "node1"))
	})
	t.Run("quarantine", func(t *testing.T) { quarantine(t, s) })
	t.Run("an agent and its Node", func(t *testing.T) { ownNode(t, s) })
	t.Run("what is no claim", func(t *testing.T) { badClaims(t, s) })
	t.Run("claims for the own node only", func(t *testing.T) { ownClaimsOnly(t, s) })
	t.Run("two agents race for an address", func(t *testing.T) { race(t, s) })
	t.Run("two agents race for that of a pod that is gone", func(t *testing.T) { takeover(t, s) })
	t.Run("no agent ends another node's claim", func(t *testing.T) { notOthers(t, s) })
	t.Run("a live pod keeps its own", func(t *testing.T) { refuseNaming(t, s) })
	t.Run("crash between claim and record", func(t *testing.T) { crash(t, s) })
	t.Run("what is no NodeConfig", func(t *testing.T) { refusedConfigs(t, s) })
	t.Run("what is no NodeConfigTemplate", func(t *testing.T) { badTemplates(t, s) })
	t.Run("objects of older releases", func(t *testing.T) { olderObjects(t, s) })
	t.Run("other ports, applied in another way", func(t *testing.T) { otherPorts(t, s) })
	t.Run("NodeConfigs from templates", func(t *testing.T) { templates(t, s) })
	t.Run("namespaces on demand", func(t *testing.T) { namespacesOnDemand(t, s) })
	t.Run("who may read the metrics", func(t *testing.T) { metricsReaders(t, s) })
	t.Run("events", func(t *testing.T) { events(t, s) })
	t.Run("who hears the API server", func(t *testing.T) { hearing(t, s) })
	t.Run("outage", func(t *testing.T) { outage(t, s) })
}

// hearing has an agent that follows Services know whether the API server answers.
func hearing(t *testing.T, s *server) {
	heard := make(chan bool, 100)
	agent := s.claims(t, "node1")
	answers := func(want bool) {
		t.Helper()
		if is := agent.Answers(t.Context(), "node1", 10*time.Second); is != want {
			t.Errorf("the server answers: %t, want %t", is, want)
		}
	}
	services := agent.AnnouncedServices(false, func() {}, func(is bool) {
		select {
		case heard <- is:
		default:
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); services.Run(ctx) }()
	await := func(want bool) {
		t.Helper()
		patience := time.After(time.Minute)
		for {
			select {
			case is := <-heard:
				if is == want {
					return
				}
			case <-patience:
				t.Fatalf("not heard: %t", want)
			}
		}
	}
	await(true)
	answers(true)
	s.Down()
	await(false)
	answers(false)
	s.Up()
	await(true)
	cancel()
	<-done
	for len(heard) > 0 {
		if is := <-heard; !is {
			t.Error("the end of the agent is taken for the API server's")
		}
	}
}

type server struct{ *kubetest.Server }

func (s *server) claims(t *testing.T, node string) *Client {
	t.Helper()
	c, err := NewClient(s.Agent(node))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// agent is a node's keeper of claims; kill ends it as a crash does.
func (s *server) agent(t *testing.T, node string) (k *claim.Keeper, kill func()) {
	t.Helper()
	return s.resting(t, node, 0)
}

// resting is an agent whose addresses rest for so long.
func (s *server) resting(t *testing.T, node string, rest time.Duration) (k *claim.Keeper, kill func()) {
	t.Helper()
	k = claim.New(claim.Config{Node: node, API: s.claims(t, node), Quarantine: func(netip.Addr) time.Duration { return rest }, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	kill = func() { cancel(); <-done }
	t.Cleanup(kill)
	return k, kill
}

// run has a pod of the namespace default be on a node, and returns its UID.
func (s *server) run(t *testing.T, name, node string) (uid string) {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "echo:dev"}}},
	}
	made := &corev1.Pod{}
	if err := s.Core(s.Admin()).Post().Namespace("default").Resource("pods").Body(pod).Do(t.Context()).Into(made); err != nil {
		t.Fatal(err)
	}
	return string(made.UID)
}

// remove deletes a pod: within its grace period, or with none.
func (s *server) remove(t *testing.T, name string, grace int64) {
	t.Helper()
	o := &metav1.DeleteOptions{GracePeriodSeconds: &grace}
	if err := s.Core(s.Admin()).Delete().Namespace("default").Resource("pods").Name(name).Body(o).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
}

// holder returns the pod that the claim on addr names.
func (s *server) holder(t *testing.T, addr netip.Addr) string {
	t.Helper()
	c, err := s.claims(t, "node1").GetClaim(t.Context(), v1alpha1.AddressClaimName(addr))
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return c.Spec.PodName
}

func (s *server) becomes(t *testing.T, addr netip.Addr, holder string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); s.holder(t, addr) != holder; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s is held by %q, want %q", addr, s.holder(t, addr), holder)
		}
	}
}

func address(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:200::%x", i)) }

func of(name, uid string, addrs ...netip.Addr) (claims []claim.Claim) {
	for _, a := range addrs {
		claims = append(claims, claim.Claim{Addr: a, Pod: pod.Ref{Namespace: "default", Name: name, UID: pod.UID(uid)}})
	}
	return claims
}

func badClaims(t *testing.T, s *server) {
	const good = `
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressClaim
metadata: {name: 2001-0db8-0200-0000-0000-0000-0000-0007}
spec: {address: "2001:db8:200::7", podNamespace: shop, podName: web-0, podUID: u, nodeName: node1}
`
	for _, c := range []struct{ from, to, want string }{
		{"0007}", "0008}", "the name must be the address"},
		{"2001-0db8-0200-0000-0000-0000-0000-0007", "2001-db8-200--7", "the name must be the address"},
		{`name: 2001-0db8-0200-0000-0000-0000-0000-0007}
spec: {address: "2001:db8:200::7"`, `name: 203.0.113.7}
spec: {address: "203.0.113.8"`, "the name must be the address"},
		{`"2001:db8:200::7"`, `"2001:db8:200::7/128"`, "not an IP address"},
		{"nodeName: node1", "nodeName: ''", "spec.nodeName"},
		{"podUID: u, ", "", "a claim is either that of a pod, with podNamespace, podName, podUID and nodeName, or that of services"},
		{"nodeName: node1", "nodeName: node1, services: [{namespace: shop, name: web, uid: u}]", "a claim is either that of a pod"},
		{", podNamespace: shop, podName: web-0, podUID: u, nodeName: node1", "", "a claim is either that of a pod"},
		{"podNamespace: shop, podName: web-0, podUID: u, nodeName: node1", "services: []", "spec.services"},
		{"podNamespace: shop, podName: web-0, podUID: u, nodeName: node1", "services: [{namespace: shop, name: web}]", "spec.services[0].uid"},
	} {
		bad := strings.Replace(good, c.from, c.to, 1)
		if bad == good {
			t.Fatalf("%q is not in the manifest", c.from)
		}
		if out, err := s.TryKubectl(bad, "create", "--dry-run=server", "--filename=-"); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v %s, want %q", c.to, err, out, c.want)
		}
	}
	s.Kubectl(good, "create", "--filename=-")
	if out, err := s.TryKubectl("", "patch", "addressclaim", "2001-0db8-0200-0000-0000-0000-0000-0007", "--type=merge", `--patch={"spec":{"podUID":"v"}}`); err == nil || !strings.Contains(out, "a claim is immutable") {
		t.Errorf("it was changed: %s", out)
	}
	// Nor can a pod's become a Service's; the Services of one may change.
	if out, err := s.TryKubectl("", "patch", "addressclaim", "2001-0db8-0200-0000-0000-0000-0000-0007", "--type=merge", `--patch={"spec":{"podNamespace":null,"podName":null,"podUID":null,"nodeName":null,"services":[{"namespace":"shop","name":"web","uid":"u"}]}}`); err == nil || !strings.Contains(out, "a claim is immutable") {
		t.Errorf("it was changed to a Service's: %s", out)
	}
	s.Kubectl(strings.NewReplacer("0007", "0008", "200::7", "200::8", "podNamespace: shop, podName: web-0, podUID: u, nodeName: node1", "services: [{namespace: shop, name: web, uid: u, ports: [80/TCP]}]").Replace(good), "create", "--filename=-")
	s.Kubectl("", "patch", "addressclaim", "2001-0db8-0200-0000-0000-0000-0000-0008", "--type=merge", `--patch={"spec":{"services":[{"namespace":"shop","name":"tls","uid":"v"}]}}`)
	t.Log("\n" + s.Kubectl("", "get", "addressclaims"))
	s.Kubectl("", "delete", "ac", "2001-0db8-0200-0000-0000-0000-0000-0008")
	s.Kubectl("", "delete", "ac", "--field-selector=spec.nodeName=node1")
}

func ownClaimsOnly(t *testing.T, s *server) {
	k := claim.New(claim.Config{Node: "node2", API: s.claims(t, "node1"), Log: slog.New(slog.DiscardHandler)})
	var err error
	// The server takes a moment to follow its own policies.
	for i := 0; i < 100 && err == nil; i++ {
		err = k.Acquire(t.Context(), "a", of("thief", "u", address(0x700+i)))
		time.Sleep(50 * time.Millisecond)
	}
	if want := `the agent on node "node1" may claim and release addresses for its own node only, not for "node2"`; err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, claim.ErrUnavailable) {
		t.Errorf("%v, want %s", err, want)
	}

	// A claim that nobody can delete would hold an address for ever.
	api, addr := s.claims(t, "node1"), address(0x7f0)
	c := &v1alpha1.AddressClaim{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AddressClaimName(addr), Finalizers: []string{"example.com/held"}},
		Spec:       v1alpha1.AddressClaimSpec{Address: addr.String(), PodNamespace: "default", PodName: "thief", PodUID: "u", NodeName: "node1"},
	}
	if err := api.CreateClaim(t.Context(), c.DeepCopy()); err == nil || !strings.Contains(err.Error(), "finalizers") {
		t.Errorf("a claim with a finalizer: %v", err)
	}
	c.Finalizers = nil
	if err := api.CreateClaim(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if c, err = api.GetClaim(t.Context(), c.Name); err != nil {
		t.Fatal(err)
	}
	c.Finalizers = []string{"example.com/held"}
	if _, err := api.UpdateClaim(t.Context(), c); err == nil || !strings.Contains(err.Error(), "finalizers") {
		t.Errorf("a claim gets a finalizer: %v", err)
	}
	c.Finalizers = nil
	if err := api.DropClaim(t.Context(), c); err != nil {
		t.Error(err)
	}
}

// contend has each agent ask for addr for its pod, all at the same time; one gets it,
// and the errors of the others name it.
func contend(t *testing.T, addr netip.Addr, agents []*claim.Keeper, pods, uids []string) (winner int, took []time.Duration) {
	t.Helper()
	errs := make([]error, len(agents))
	took = make([]time.Duration, len(agents))
	start := make(chan struct{})
	var done sync.WaitGroup
	for i, k := range agents {
		done.Go(func() {
			<-start
			began := time.Now()
			for {
				errs[i] = k.Acquire(t.Context(), pods[i], of(pods[i], uids[i], addr))
				took[i] = time.Since(began)
				var held *claim.HeldError
				if !errors.As(errs[i], &held) || !held.Gone || took[i] > time.Minute {
					return
				}
				// The runtime tries again, too: flock-controller is about to release it.
			}
		})
	}
	close(start)
	done.Wait()
	winner = slices.Index(errs, nil)
	for i, err := range errs {
		var held *claim.HeldError
		if i != winner && (!errors.As(err, &held) || winner < 0 || held.Pod != "default/"+pods[winner]) {
			t.Fatalf("%s: %d won, the answers were %v", addr, winner, errs)
		}
	}
	return winner, took
}

func race(t *testing.T, s *server) {
	node1, _ := s.agent(t, "node1")
	node2, _ := s.agent(t, "node2")
	pods := []string{"racer1", "racer2"}
	uids := []string{s.run(t, pods[0], "node1"), s.run(t, pods[1], "node2")}
	var wins [2]int
	var won, lost []time.Duration
	for i := range 100 {
		w, took := contend(t, address(0x100+i), []*claim.Keeper{node1, node2}, pods, uids)
		wins[w]++
		won, lost = append(won, took[w]), append(lost, took[1-w])
	}
	t.Logf("100 races: %d to node1, %d to node2; Acquire took %s (median), the refusal %s", wins[0], wins[1], median(won), median(lost))
	var alone []time.Duration
	for i := range 100 {
		began := time.Now()
		if err := node1.Acquire(t.Context(), "alone", of(pods[0], uids[0], address(0x200+i))); err != nil {
			t.Fatal(err)
		}
		alone = append(alone, time.Since(began))
	}
	t.Logf("without contention: Acquire took %s (median), at most %s", median(alone), slices.Max(alone))
	s.remove(t, pods[0], 0)
	began := time.Now()
	node1.Release(pods[0])
	node1.Release("alone")
	for i := range 100 {
		s.becomes(t, address(0x200+i), "")
	}
	t.Logf("%d claims were given up within %s", wins[0]+100, time.Since(began).Round(time.Millisecond))
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2].Round(10 * time.Microsecond)
}

// collect has flock-controller end the claims of all nodes, of which nothing is heard, until
// the test ends.
func (s *server) collect(t *testing.T) {
	t.Helper()
	client, err := NewClient(s.Controller())
	if err != nil {
		t.Fatal(err)
	}
	collector := claim.Collector{
		API: client, Log: slog.New(slog.DiscardHandler),
		Lives: func(*v1alpha1.AddressClaim) bool { return false },
		Heard: func(string) bool { return false },
	}
	ctx, cancel := context.WithCancel(context.Background())
	claims := client.WholeClaims(func() {})
	var running sync.WaitGroup
	running.Go(func() { claims.Run(ctx) })
	running.Go(func() {
		for ctx.Err() == nil {
			if _, _, err := collector.Collect(ctx, claims.List()); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
}

// notOthers: an agent does not release the claim of another node's pod, though it is gone.
func notOthers(t *testing.T, s *server) {
	node1, node2 := s.claims(t, "node1"), s.claims(t, "node2")
	k, kill := s.agent(t, "node1")
	if err := k.Acquire(t.Context(), "a", of("gone", s.run(t, "gone", "node1"), address(0x450))); err != nil {
		t.Fatal(err)
	}
	kill()
	s.remove(t, "gone", 0)
	c, err := node2.GetClaim(t.Context(), v1alpha1.AddressClaimName(address(0x450)))
	if err != nil {
		t.Fatal(err)
	}
	if err := node2.DropClaim(t.Context(), c); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `the agent on node "node2" may claim and release addresses for its own node only, not for "node1"`) {
		t.Errorf("node2 deletes a claim of node1: %v", err)
	}
	other, _ := s.agent(t, "node2")
	var held *claim.HeldError
	if err := other.Acquire(t.Context(), "b", of("other", s.run(t, "other", "node2"), address(0x450))); !errors.As(err, &held) || !held.Gone || held.Node != "node1" {
		t.Errorf("node2 takes it: %v", err)
	}
	if err := node1.DropClaim(t.Context(), c); err != nil {
		t.Errorf("node1 deletes its own: %v", err)
	}
}

func takeover(t *testing.T, s *server) {
	s.collect(t)
	node2, _ := s.agent(t, "node2")
	node3, _ := s.agent(t, "node3")
	pods := []string{"heir2", "heir3"}
	uids := []string{s.run(t, pods[0], "node2"), s.run(t, pods[1], "node3")}
	var took []time.Duration
	for i := range 20 {
		crashed, kill := s.agent(t, "node1")
		uid := s.run(t, "late", "node1")
		if err := crashed.Acquire(t.Context(), "a", of("late", uid, address(0x300+i))); err != nil {
			t.Fatal(err)
		}
		kill()
		s.remove(t, "late", 0)
		w, all := contend(t, address(0x300+i), []*claim.Keeper{node2, node3}, pods, uids)
		took = append(took, all[w])
	}
	t.Logf("20 takeovers, one winner each, %s (median)", median(took))
}

func refuseNaming(t *testing.T, s *server) {
	node1, _ := s.agent(t, "node1")
	node2, _ := s.agent(t, "node2")
	holder, late := s.run(t, "holder", "node1"), s.run(t, "latecomer", "node2")
	if err := node1.Acquire(t.Context(), "a", of("holder", holder, address(0x400))); err != nil {
		t.Fatal(err)
	}
	refused := func() {
		t.Helper()
		err := node2.Acquire(t.Context(), "b", of("latecomer", late, address(0x400)))
		if want := "2001:db8:200::400 is held by pod default/holder on node node1: choose another address, or wait until that pod has gone"; err == nil || err.Error() != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
	refused()
	s.remove(t, "holder", 30) // it has a grace period, and no kubelet that ends it
	refused()
	node1.Release("a") // detached
	s.becomes(t, address(0x400), "")
	if err := node2.Acquire(t.Context(), "b", of("latecomer", late, address(0x400))); err != nil {
		t.Error(err)
	}
}

func crash(t *testing.T, s *server) {
	crashed, kill := s.agent(t, "node1")
	stays, goes := s.run(t, "stays", "node1"), s.run(t, "goes", "node1")
	for name, uid := range map[string]string{"stays": stays, "goes": goes} {
		if err := crashed.Acquire(t.Context(), name, of(name, uid, map[string]netip.Addr{"stays": address(0x500), "goes": address(0x501)}[name])); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	s.remove(t, "goes", 0)
	k, _ := s.agent(t, "node1")
	s.becomes(t, address(0x501), "")
	if h := s.holder(t, address(0x500)); h != "stays" {
		t.Errorf("the claim of a pod that lives is %q's", h)
	}
	if err := k.Acquire(t.Context(), "again", of("stays", stays, address(0x500))); err != nil {
		t.Error(err)
	}
}

func events(t *testing.T, s *server) {
	api, err := NewClient(s.Agent("node1"))
	if err != nil {
		t.Fatal(err)
	}
	r := NewRecorder(api, "node1", slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	defer func() { cancel(); <-done }()
	web := pod.Ref{Namespace: "default", Name: "refused", UID: pod.UID(s.run(t, "refused", "node1"))}
	for range 3 {
		r.Event(web, Warning, "AddressRefused", "Attach", "2001:db8:200::7 is held by another pod"+strings.Repeat(".", 2*noteLimit))
	}
	var list eventsv1.EventList
	get := func() []eventsv1.Event {
		raw := s.Kubectl("", "get", "events.v1.events.k8s.io", "--field-selector=regarding.name=refused", "--output=json")
		list = eventsv1.EventList{}
		if err := json.Unmarshal([]byte(raw), &list); err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	for deadline := time.Now().Add(10 * time.Second); len(get()) == 0 && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
	}
	if len(list.Items) != 1 || list.Items[0].Regarding.UID != web.UID || list.Items[0].ReportingController != reportingController || list.Items[0].ReportingInstance != "node1" {
		t.Fatalf("events: %+v", list.Items)
	}
	if err := r.sink.patch(t.Context(), "default", list.Items[0].Name, eventsv1.EventSeries{Count: 3, LastObservedTime: metav1.NowMicro()}); err != nil {
		t.Fatal(err)
	}
	if e := get()[0]; e.Series == nil || e.Series.Count != 3 {
		t.Errorf("series %+v", e.Series)
	}
	if out := s.Kubectl("", "describe", "pod", "refused"); !strings.Contains(out, "AddressRefused") || !strings.Contains(out, "flock.fritzlab.net/agent") {
		t.Errorf("kubectl describe pod does not show the Event:\n%s", out)
	}
}

func outage(t *testing.T, s *server) {
	node1, _ := s.agent(t, "node1")
	node2, _ := s.agent(t, "node2")
	going, stays, late := s.run(t, "going", "node1"), s.run(t, "survivor", "node1"), s.run(t, "beginner", "node2")
	for pod, c := range map[string][]claim.Claim{"going": of("going", going, address(0x600)), "survivor": of("survivor", stays, address(0x601))} {
		if err := node1.Acquire(t.Context(), pod, c); err != nil {
			t.Fatal(err)
		}
	}
	s.remove(t, "going", 30)
	s.Down()
	node1.Release("going")
	if err := node2.Acquire(t.Context(), "b", of("beginner", late, address(0x600))); !errors.Is(err, claim.ErrUnavailable) {
		t.Errorf("a new address in an outage: %v", err)
	}
	node1.Release("survivor")
	if err := node1.Acquire(t.Context(), "second sandbox", of("survivor", stays, address(0x601))); err != nil {
		t.Errorf("the own address in an outage: %v", err)
	}
	s.Up()
	up := time.Now()
	s.becomes(t, address(0x600), "")
	t.Logf("given up %s after the outage", time.Since(up).Round(time.Millisecond))
	if h := s.holder(t, address(0x601)); h != "survivor" {
		t.Errorf("the survivor's address is held by %q", h)
	}
	if err := node2.Acquire(t.Context(), "b", of("beginner", late, address(0x600))); err != nil {
		t.Error(err)
	}
}
