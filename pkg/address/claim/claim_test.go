package claim_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/address/claim/claimtest"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	pods "flock.fritzlab.net/flock/pkg/pod"
)

var (
	six  = netip.MustParseAddr("2001:db8:200::7")
	four = netip.MustParseAddr("203.0.113.7")
	next = netip.MustParseAddr("2001:db8:200::8")
)

func keeper(node string, api claim.API) *claim.Keeper {
	return claim.New(claim.Config{Node: node, API: api, Log: slog.New(slog.DiscardHandler)})
}

// of is what pod shop/NAME with UID NAME asks for.
func of(pod string, addrs ...netip.Addr) (claims []claim.Claim) {
	for _, a := range addrs {
		claims = append(claims, claim.Claim{Addr: a, Pod: pods.Ref{Namespace: "shop", Name: pod, UID: types.UID(pod)}})
	}
	return claims
}

func pod(name string, as ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)}}
	for _, f := range as {
		f(p)
	}
	return p
}

func terminating(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} }

func phase(to corev1.PodPhase) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.Phase = to }
}

func uid(u types.UID) func(*corev1.Pod) { return func(p *corev1.Pod) { p.UID = u } }

func mirrorOf(u string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.UID, p.Annotations = "mirror", map[string]string{corev1.MirrorPodAnnotationKey: u}
	}
}

// holder returns the pod that the claim on addr names, or "" if there is no claim.
func holder(t *testing.T, api claim.API, addr netip.Addr) string {
	t.Helper()
	c, err := api.GetClaim(t.Context(), v1alpha1.AddressClaimName(addr))
	if apierrors.IsNotFound(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return c.Spec.PodName
}

func acquire(t *testing.T, k *claim.Keeper, attachment string, claims []claim.Claim) {
	t.Helper()
	if err := k.Acquire(t.Context(), attachment, claims); err != nil {
		t.Fatal(err)
	}
}

func refused(t *testing.T, k *claim.Keeper, attachment string, claims []claim.Claim, by claim.HeldError) {
	t.Helper()
	var held *claim.HeldError
	if err := k.Acquire(t.Context(), attachment, claims); !errors.As(err, &held) || *held != by {
		t.Errorf("%v, want that %s on %s holds %s", err, by.Pod, by.Node, by.Addr)
	}
}

// run has k do what it leaves for later until the test ends, or stop is called.
func run(t *testing.T, k *claim.Keeper) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// collect has flock-controller end claims of nodes that are not heard of, until the test
// ends. It must be in a bubble of synctest.
func collect(t *testing.T, api *claimtest.Fake, heard ...string) {
	c := claim.Collector{
		API: api, Log: slog.New(slog.DiscardHandler),
		Lives: func(*v1alpha1.AddressClaim) bool { return false },
		Heard: func(node string) bool { return slices.Contains(heard, node) },
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if _, _, err := c.Collect(ctx, api.All()); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			time.Sleep(300 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func TestFakeKeepsTheContract(t *testing.T) {
	api := claimtest.NewFake()
	api.SetPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "contract", UID: "u"}})
	claimtest.Contract(t, api)
}

// Whose pod is gone loses the address, and nobody else: on its own node at once, on another
// if nothing is heard of its node any more.
func TestWhoMayTakeOver(t *testing.T) {
	for _, c := range []struct {
		name     string
		pod      *corev1.Pod // nil if its object is gone
		detached bool        // on the holder's node
		// another node takes the claim, the same node does
		elsewhere, here bool
	}{
		{"running", pod("web", phase(corev1.PodRunning)), false, false, false},
		{"between two sandboxes", pod("web", phase(corev1.PodRunning)), true, false, false},
		{"within its grace period", pod("web", terminating), false, false, false},
		{"detached, being deleted", pod("web", terminating), true, false, true},
		{"succeeded, attached still", pod("web", phase(corev1.PodSucceeded)), false, false, false},
		{"succeeded and detached", pod("web", phase(corev1.PodSucceeded)), true, false, true},
		{"failed and detached", pod("web", phase(corev1.PodFailed)), true, false, true},
		{"gone", nil, true, true, true},
		{"deleted by force", nil, false, true, true},
		{"another of its name", pod("web", uid("younger")), false, true, true},
		{"a static pod", pod("web", mirrorOf("web")), false, false, false},
		{"a static pod that was changed", pod("web", mirrorOf("younger")), false, true, true},
	} {
		for node, takes := range map[string]bool{"node1": c.here, "node2": c.elsewhere} {
			t.Run(c.name+", seen from "+node, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					api := claimtest.NewFake()
					api.SetPod(pod("web"))
					api.SetPod(pod("late"))
					node1 := keeper("node1", api)
					acquire(t, node1, "a", of("web", six))
					if c.detached {
						node1.Release("a")
					}
					api.RemovePod("shop", "web")
					if c.pod != nil {
						api.SetPod(c.pod)
					}
					by := claim.HeldError{Addr: six, Pod: "shop/web", Node: "node1"}
					if node == "node1" {
						if takes {
							acquire(t, node1, "b", of("late", six))
						} else {
							refused(t, node1, "b", of("late", six), by)
						}
						return
					}
					asking := keeper(node, api)
					held := by
					held.Gone = takes
					refused(t, asking, "b", of("late", six), held) // nobody has released it
					collect(t, api, "node1")
					refused(t, asking, "b", of("late", six), held) // node1 is heard of
					collect(t, api)
					if !takes {
						refused(t, asking, "b", of("late", six), by)
						return
					}
					acquire(t, asking, "b", of("late", six))
					if h := holder(t, api, six); h != "late" {
						t.Errorf("held by %q", h)
					}
				})
			})
		}
	}
}

// A pod does not get the address of a Service, whose claim nobody but flock-controller ends.
func TestServiceKeepsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.SetPod(pod("web"))
		services := &v1alpha1.AddressClaim{Spec: v1alpha1.AddressClaimSpec{Address: six.String(), Services: []v1alpha1.ServiceClaim{{Namespace: "shop", Name: "front", UID: "u"}}}}
		services.Name = v1alpha1.AddressClaimName(six)
		if err := api.CreateClaim(t.Context(), services); err != nil {
			t.Fatal(err)
		}
		collect(t, api)
		k := keeper("node1", api)
		run(t, k)
		refused(t, k, "a", of("web", six), claim.HeldError{Addr: six, Service: "shop/front"})
		time.Sleep(time.Hour)
		if _, err := api.GetClaim(t.Context(), services.Name); err != nil {
			t.Error(err)
		}
	})
}

func TestHeldSaysByWhom(t *testing.T) {
	err := &claim.HeldError{Addr: six, Pod: "shop/web-0", Node: "node2"}
	if got, want := err.Error(), "2001:db8:200::7 is held by pod shop/web-0 on node node2: choose another address, or wait until that pod has gone"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A pod that gets not all gets none, though it lives on and asks again: or two pods
// that want the same two could wait for each other for good.
func TestAllOrNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		for _, name := range []string{"first", "second", "third"} {
			api.SetPod(pod(name))
		}
		node1, node2 := keeper("node1", api), keeper("node2", api)
		run(t, node1)
		run(t, node2)
		acquire(t, node1, "a", of("first", next))
		refused(t, node2, "b", of("second", next, six, four), claim.HeldError{Addr: next, Pod: "shop/first", Node: "node1"})
		synctest.Wait()
		acquire(t, node1, "c", of("third", six, four))

		// What an earlier sandbox of the pod was given is not undone with it.
		refused(t, node1, "e", of("first", next, six), claim.HeldError{Addr: six, Pod: "shop/third", Node: "node1"})
		node1.Release("a")
		synctest.Wait()
		if h := holder(t, api, next); h != "first" {
			t.Errorf("%s is held by %q", next, h)
		}
		if err := node2.Acquire(t.Context(), "d", []claim.Claim{{Addr: netip.MustParseAddr("2001:db8:200::9"), Pod: pods.Ref{Name: "x"}}}); err == nil || !strings.Contains(err.Error(), "UID") {
			t.Errorf("without a UID: %v", err)
		}
	})
}

// A rebuilt record does not say which pod it is. As long as the attachment stands, the
// claim on its address is not released, though the pod is to go.
func TestAttachmentWithoutAUID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.SetPod(pod("web"))
		before := keeper("node1", api)
		acquire(t, before, "a", of("web", six))

		api.SetPod(pod("web", terminating))
		k := keeper("node1", api)
		rebuilt := of("web", six)
		rebuilt[0].Pod.UID = ""
		k.Restore("a", rebuilt)
		run(t, k)
		time.Sleep(time.Hour) // compared and looked at many times
		if h := holder(t, api, six); h != "web" {
			t.Errorf("while the attachment stands the claim is %q's", h)
		}
		k.Release("a")
		time.Sleep(2 * time.Minute)
		if h := holder(t, api, six); h != "" {
			t.Errorf("after it the claim is %q's", h)
		}
	})
}

// lagging is an API server whose cache has stopped. It counts the lists that it reads from its
// store.
type lagging struct {
	*claimtest.Fake
	cached []v1alpha1.AddressClaim
	lists  atomic.Int64
}

func (l *lagging) CachedClaimsOf(context.Context, string) ([]v1alpha1.AddressClaim, error) {
	return l.cached, nil
}

func (l *lagging) ClaimsOf(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error) {
	l.lists.Add(1)
	return l.Fake.ClaimsOf(ctx, node)
}

// While the API server's cache agrees with the attachments, it reads no list from its store. If
// its cache is behind, nothing is made, released or complained about for that.
func TestCompareWithACacheThatIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		api := &lagging{Fake: claimtest.NewFake()}
		api.SetPod(pod("web"))
		k := claim.New(claim.Config{Node: "node1", API: api, Log: slog.New(slog.NewTextHandler(&log, nil))})
		stop := run(t, k)
		time.Sleep(time.Hour)
		if n := api.lists.Load(); n != 0 {
			t.Errorf("a node without claims: %d lists from the store", n)
		}
		acquire(t, k, "a", of("web", six)) // which the cache does not have
		time.Sleep(time.Hour)
		if n := api.lists.Load(); n < 5 {
			t.Errorf("a claim that the cache lacks: %d lists from the store", n)
		}
		api.cached, _ = api.Fake.ClaimsOf(t.Context(), "node1")
		time.Sleep(time.Hour)
		before := api.lists.Load()
		time.Sleep(time.Hour)
		if n := api.lists.Load() - before; n != 0 {
			t.Errorf("the cache agrees: %d lists from the store", n)
		}
		api.RemovePod("shop", "web")
		k.Release("a")
		time.Sleep(time.Hour) // the cache still has it
		if h := holder(t, api, six); h != "" {
			t.Errorf("the claim is %q's", h)
		}
		stop()
		if strings.Contains(log.String(), "WARN") || strings.Contains(log.String(), "ERROR") {
			t.Errorf("log:\n%s", &log)
		}
	})
}

var errNoAnswer = errors.New("connection refused")

// An outage of the API server: whoever has a claim keeps it, from one sandbox of the
// pod to the next and over a restart of the agent; nobody gets a new one.
func TestOutage(t *testing.T) {
	for name, outage := range map[string]error{
		"no connection":  errNoAnswer,
		"etcd is away":   apierrors.NewInternalError(errors.New("etcdserver: request timed out")),
		"overload":       apierrors.NewTooManyRequests("slow down", 1),
		"hangs":          context.DeadlineExceeded,
		"being replaced": apierrors.NewServiceUnavailable("shutting down"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := claimtest.NewFake()
				api.SetPod(pod("web"))
				var away atomic.Bool
				api.Before = func(ctx context.Context, _ string) error {
					if away.Load() && outage == context.DeadlineExceeded {
						<-ctx.Done()
					} else if away.Load() {
						return outage
					}
					return nil
				}
				k := keeper("node1", api)
				kill := run(t, k)
				acquire(t, k, "a", of("web", six, four))
				synctest.Wait()

				away.Store(true)
				k.Release("a")
				acquire(t, k, "b", of("web", six, four))
				if err := k.Acquire(t.Context(), "c", of("late", next)); !errors.Is(err, claim.ErrUnavailable) {
					t.Errorf("a new address in an outage: %v", err)
				}
				if err := k.Acquire(t.Context(), "b", of("web", next, six, four)); !errors.Is(err, claim.ErrUnavailable) {
					t.Errorf("one more in an outage: %v", err)
				}
				kill()
				restarted := keeper("node1", api)
				restarted.Restore("b", of("web", six, four))
				run(t, restarted)
				acquire(t, restarted, "c", of("web", six, four))

				restarted.Release("b")
				restarted.Release("c")
				api.SetPod(pod("web", terminating))
				time.Sleep(time.Hour)
				synctest.Wait()
				away.Store(false)
				time.Sleep(20 * time.Second)
				synctest.Wait()
				if h := holder(t, api, six) + holder(t, api, four); h != "" {
					t.Errorf("after the outage still held by %s", h)
				}
			})
		})
	}
}

// A refusal is not an outage: it says what is to be mended.
func TestWhatTheAPIServerRefuses(t *testing.T) {
	resource := schema.GroupResource{Group: "flock.fritzlab.net", Resource: "addressclaims"}
	for _, c := range []struct {
		err  error
		want string
	}{
		{apierrors.NewForbidden(resource, "x", errors.New("no role")), "forbidden"},
		{apierrors.NewGenericServerResponse(404, "create", resource, "", "no such resource", 0, false), "apply flock's CRDs (deploy/chart/base/crds)"},
	} {
		api := claimtest.NewFake()
		api.Before = func(context.Context, string) error { return c.err }
		err := keeper("node1", api).Acquire(t.Context(), "a", of("web", six))
		if err == nil || errors.Is(err, claim.ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// Release returns while the API server hangs; so does an Acquire that comes upon a
// release that hangs, and its claim outlives that release however late it is done.
func TestReleaseThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.SetPod(pod("web"))
		k := keeper("node1", api)
		run(t, k)
		acquire(t, k, "a", of("web", six))
		synctest.Wait()
		before, _ := api.GetClaim(t.Context(), v1alpha1.AddressClaimName(six))

		api.SetPod(pod("web", terminating))
		var hang atomic.Bool
		hang.Store(true)
		api.Before = func(ctx context.Context, request string) error {
			if hang.Load() && strings.HasPrefix(request, "delete") {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		start := time.Now()
		k.Release("a")
		synctest.Wait()
		hang.Store(false)
		acquire(t, k, "b", of("web", six)) // the kubelet had not seen the deletion
		if took := time.Since(start); took > 0 {
			t.Errorf("Release and Acquire took %s", took)
		}
		if err := api.DropClaim(t.Context(), before); !apierrors.IsConflict(err) {
			t.Errorf("the old deletion is done after all, and hits the new claim: %v", err)
		}
		if h := holder(t, api, six); h != "web" {
			t.Errorf("held by %q", h)
		}
	})
}

// Each answer in turn is lost: the request was done, and nobody knows.
func TestLostAnswers(t *testing.T) {
	for _, request := range []string{"create", "get", "delete", "pod", "list"} {
		t.Run(request, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := claimtest.NewFake()
				api.SetPod(pod("web"))
				k := keeper("node1", api)
				var lost atomic.Int32
				api.After = func(_ context.Context, r string) error {
					if strings.HasPrefix(r, request) && lost.Add(1) <= 2 {
						return errNoAnswer
					}
					return nil
				}
				run(t, k)
				for k.Acquire(t.Context(), "a", of("web", six)) != nil {
					k.Release("a")
				}
				api.SetPod(pod("web", terminating))
				k.Release("a")
				time.Sleep(time.Minute)
				synctest.Wait()
				if lost.Load() == 0 {
					t.Fatal("no answer was lost")
				}
				if h := holder(t, api, six); h != "" {
					t.Errorf("held by %q", h)
				}
				api.SetPod(pod("late"))
				acquire(t, keeper("node2", api), "b", of("late", six))
			})
		})
	}
}

// A claim is the pod's: it stays from one sandbox to the next, and goes when the pod
// does, at whichever the API server hears of first.
func TestClaimLivesAsLongAsThePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.SetPod(pod("web", phase(corev1.PodRunning)))
		k := keeper("node1", api)
		run(t, k)
		held := func(want string) {
			t.Helper()
			synctest.Wait()
			if h := holder(t, api, six); h != want {
				t.Errorf("held by %q, want %q", h, want)
			}
		}
		acquire(t, k, "old", of("web", six))
		acquire(t, k, "new", of("web", six)) // before the old link is gone
		k.Release("old")
		api.SetPod(pod("web", terminating))
		time.Sleep(time.Hour)
		held("web") // attached for as long as its grace period is
		k.Release("new")
		held("")

		api.SetPod(pod("web", uid("web"), phase(corev1.PodRunning)))
		acquire(t, k, "a", of("web", six))
		k.Release("a")
		k.Release("a") // as DEL is repeated
		time.Sleep(time.Hour)
		held("web") // no sandbox, but there may be one again
		api.SetPod(pod("web", phase(corev1.PodSucceeded)))
		time.Sleep(time.Minute)
		held("")

		// Another's claim is not touched, even of a pod of the same name.
		acquire(t, k, "a", of("web", six))
		api.SetPod(pod("web", uid("younger")))
		c, _ := api.GetClaim(t.Context(), v1alpha1.AddressClaimName(six))
		if err := api.DropClaim(t.Context(), c); err != nil { // by hand
			t.Fatal(err)
		}
		other := keeper("node2", api)
		acquire(t, other, "b", []claim.Claim{{Addr: six, Pod: pods.Ref{Namespace: "shop", Name: "web", UID: "younger"}}})
		k.Release("a")
		time.Sleep(time.Hour)
		held("web")
	})
}

// The agent is killed between Acquire and the record: nothing that it knows tells of
// the claim, the API server does.
func TestCrashBeforeTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.SetPod(pod("web"))
		api.SetPod(pod("gone"))
		crashed := keeper("node1", api)
		acquire(t, crashed, "a", of("web", six))
		acquire(t, crashed, "b", of("gone", four))
		acquire(t, keeper("node2", api), "c", of("other", next))
		api.RemovePod("shop", "gone")

		k := keeper("node1", api)
		run(t, k)
		synctest.Wait()
		if h := holder(t, api, four); h != "" {
			t.Errorf("%s is held by %q, which is gone", four, h)
		}
		if h := holder(t, api, next); h != "other" {
			t.Errorf("%s of another node is held by %q", next, h)
		}
		acquire(t, k, "d", of("web", six)) // the kubelet asks again
		k.Release("d")
		api.RemovePod("shop", "web")
		time.Sleep(time.Minute)
		synctest.Wait()
		if h := holder(t, api, six); h != "" {
			t.Errorf("%s is held by %q, which is gone", six, h)
		}
	})
}

// TestLimit: what the pods of a namespace claim of a pool is counted on all nodes.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		lists := 0
		api.Before = func(_ context.Context, request string) error {
			if strings.HasPrefix(request, "list in") {
				lists++
			}
			return nil
		}
		pools := []config.Pool{
			{Name: "shop", CIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:200::/64")}, Static: true, MaxPerNamespace: 2},
			{Name: "free", CIDRs: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, Static: true},
			{Name: "carved", CIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:200::100/120")}, Static: true, MaxPerNamespace: 9},
		}
		carved := netip.MustParseAddr("2001:db8:200::101")
		node1, node2 := keeper("node1", api), keeper("node2", api)
		run(t, node1)
		run(t, node2)
		try := func(k *claim.Keeper, attachment string, claims []claim.Claim) error {
			return k.Acquire(t.Context(), attachment, claims, claim.LimitsOf(claims, pools)...)
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
		}
		for _, p := range []string{"a", "b", "c"} {
			api.SetPod(pod(p))
		}
		must(try(node1, "a", of("a", six)))
		must(try(node1, "a", of("a", six, four, carved)))
		must(try(node2, "b", of("b", next)))
		third := netip.MustParseAddr("2001:db8:200::9")
		var over *claim.LimitError
		if err := try(node2, "c", of("c", third, netip.MustParseAddr("203.0.113.9"))); !errors.As(err, &over) || over.Pool != "shop" || over.Claimed != 3 {
			t.Errorf("the third of two: %v, want a *LimitError", err)
		}
		time.Sleep(time.Minute)
		if h := holder(t, api, third); h != "" {
			t.Errorf("what was refused stays claimed by %s", h)
		}
		elsewhere := []claim.Claim{{Addr: third, Pod: pods.Ref{Namespace: "dns", Name: "c", UID: "c"}}}
		must(try(node2, "c", elsewhere))
		if lists != 5 {
			t.Errorf("%d lists, want one for each Acquire with a claim that comes under a limit", lists)
		}
		must(try(node1, "a", of("a", six))) // a retry
		if lists != 5 {
			t.Error("what was granted is counted again")
		}

		api.Before = func(_ context.Context, request string) error {
			if strings.HasPrefix(request, "list in") {
				return errors.New("connection refused")
			}
			return nil
		}
		must(try(node1, "a-again", of("a", six))) // the pod's next sandbox
		if err := try(node2, "b", of("b", next, netip.MustParseAddr("2001:db8:200::a"))); !errors.Is(err, claim.ErrUnavailable) {
			t.Errorf("while the API server does not answer: %v", err)
		}
	})
}

// A claim that somebody deleted comes back while its pod runs.
func TestMissingClaimIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.SetPod(pod("web"))
		k := keeper("node1", api)
		k.Restore("a", of("web", six, four))
		api.SetPod(pod("thief"))
		acquire(t, keeper("node2", api), "b", of("thief", four))
		run(t, k)
		synctest.Wait()
		if h := holder(t, api, six); h != "web" {
			t.Errorf("held by %q", h)
		}
		if h := holder(t, api, four); h != "thief" {
			t.Errorf("held by %q", h)
		}
		c, _ := api.GetClaim(t.Context(), v1alpha1.AddressClaimName(six))
		if err := api.DropClaim(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		if h := holder(t, api, six); h != "web" {
			t.Errorf("ten minutes after it was deleted: held by %q", h)
		}
	})
}
