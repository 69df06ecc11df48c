package claim_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/address/claim/claimtest"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// resting is a keeper whose addresses rest for so long.
func resting(node string, api claim.API, rest time.Duration) *claim.Keeper {
	return claim.New(claim.Config{Node: node, API: api, Quarantine: func(netip.Addr) time.Duration { return rest }, Log: slog.New(slog.DiscardHandler)})
}

// ofWorkload is what a pod of a workload asks for.
func ofWorkload(workload, pod string, addrs ...netip.Addr) []claim.Claim {
	claims := of(pod, addrs...)
	for i := range claims {
		claims[i].Workload = workload
	}
	return claims
}

// awaits waits until somebody may have the address, and returns since when.
func awaits(t *testing.T, k *claim.Keeper, attachment string, claims []claim.Claim) (after time.Duration) {
	t.Helper()
	began := time.Now()
	for time.Since(began) < time.Hour {
		err := k.Acquire(t.Context(), attachment, claims)
		if err == nil {
			return time.Since(began)
		}
		if held := (*claim.HeldError)(nil); !errors.As(err, &held) {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("in vain for an hour")
	return 0
}

const rest = time.Minute

// between says that a duration is the quarantine, but for the seconds that it is counted in.
func between(t *testing.T, what string, took time.Duration) {
	t.Helper()
	if took < rest || took > rest+5*time.Second {
		t.Errorf("%s: after %s, want %s", what, took, rest)
	}
}

// TestQuarantineAcrossNodes: an address that a pod has left is for its own workload at once, on
// any node, and for others after the quarantine.
func TestQuarantineAcrossNodes(t *testing.T) {
	for _, node := range []string{"node1", "node2"} {
		t.Run("the next is on "+node, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := claimtest.NewFake()
				node1 := resting("node1", api, rest)
				run(t, node1)
				next := node1
				if node != "node1" {
					next = resting(node, api, rest)
					run(t, next)
				}
				leaves := func(attachment, pod string, from *claim.Keeper) {
					api.RemovePod("shop", pod)
					from.Release(attachment)
					synctest.Wait()
				}
				api.SetPod(pod("web-0"))
				acquire(t, node1, "a", ofWorkload("web", "web-0", six))
				leaves("a", "web-0", node1)

				api.SetPod(pod("late"))
				var held *claim.HeldError
				err := next.Acquire(t.Context(), "b", ofWorkload("other", "late", six))
				if !errors.As(err, &held) || held.Until.IsZero() || !strings.Contains(err.Error(), "is in quarantine until") {
					t.Errorf("another workload: %v", err)
				}
				between(t, "another workload", awaits(t, next, "b", ofWorkload("other", "late", six)))
				leaves("b", "late", next)

				// The same workload, and then another pod of it, take it over at once.
				api.SetPod(pod("late-1"))
				acquire(t, next, "c", ofWorkload("other", "late-1", six))
				if h := holder(t, api, six); h != "late-1" {
					t.Errorf("held by %q", h)
				}
				time.Sleep(time.Hour) // the quarantine of before does not end it
				if h := holder(t, api, six); h != "late-1" {
					t.Errorf("an hour later held by %q", h)
				}
				leaves("c", "late-1", next)
				time.Sleep(rest + 2*time.Second)
				if h := holder(t, api, six); h != "" {
					t.Errorf("after the quarantine held by %q", h)
				}
			})
		})
	}
}

// A workload is one in its namespace, and one that nobody knows is nobody's.
func TestWhoInherits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			was, is, namespace string
			inherits           bool
		}{{"web", "web", "shop", true}, {"web", "web", "evil", false}, {"", "", "shop", false}, {"web", "", "shop", false}, {"", "web", "shop", false}} {
			api := claimtest.NewFake()
			k := resting("node1", api, rest)
			stop := run(t, k)
			acquire(t, k, "a", ofWorkload(c.was, "web-0", six))
			k.Release("a")
			synctest.Wait()
			wants := ofWorkload(c.is, "web-1", six)
			wants[0].Pod.Namespace = c.namespace
			if err := resting("node2", api, rest).Acquire(t.Context(), "b", wants); (err == nil) != c.inherits {
				t.Errorf("%+v: %v", c, err)
			}
			stop()
		}
	})
}

// The agent is killed within the quarantine, or before it has begun. The next one goes on.
func TestQuarantineOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		began := time.Now()
		k := resting("node1", api, rest)
		stop := run(t, k)
		acquire(t, k, "a", ofWorkload("web", "web-0", six, four))
		k.Release("a")
		synctest.Wait()
		stop()
		time.Sleep(20 * time.Second)
		k = resting("node1", api, rest)
		stop = run(t, k)
		synctest.Wait()
		stop()
		time.Sleep(20 * time.Second)
		run(t, resting("node1", api, rest))
		other := resting("node2", api, rest)
		awaits(t, other, "b", ofWorkload("other", "late", six))
		between(t, "two restarts", time.Since(began))
	})
}

// The same pod gets its next sandbox within the quarantine, as of a kubelet that has not seen
// the pod's end, while the requests of the release hang.
func TestQuarantineIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		k := resting("node1", api, rest)
		stop := run(t, k)
		acquire(t, k, "a", ofWorkload("web", "web-0", six))
		k.Release("a")
		synctest.Wait()
		old, _ := api.GetClaim(t.Context(), v1alpha1.AddressClaimName(six))
		if old.Spec.QuarantinedUntil == nil {
			t.Fatal("it is not in quarantine")
		}
		api.SetPod(pod("web-0"))
		acquire(t, k, "b", ofWorkload("web", "web-0", six))
		if err := api.DropClaim(t.Context(), old); err == nil {
			t.Error("a deletion of before ends the claim of now")
		}
		time.Sleep(time.Hour)
		if c, err := api.GetClaim(t.Context(), v1alpha1.AddressClaimName(six)); err != nil || c.Spec.QuarantinedUntil != nil {
			t.Errorf("%+v, %v: want it to be the pod's", c, err)
		}
		stop()
	})
}

// What is taken over in its quarantine and then not used rests again: the ADD failed because of
// another address.
func TestQuarantineAfterAFailedAcquire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.SetPod(pod("thief"))
		k := resting("node1", api, rest)
		run(t, k)
		acquire(t, k, "a", ofWorkload("web", "web-0", four))
		k.Release("a")
		synctest.Wait()
		acquire(t, k, "t", ofWorkload("thief", "thief", six)) // the address that comes after it
		heir := resting("node2", api, rest)
		run(t, heir)
		api.SetPod(pod("web-1"))
		if err := heir.Acquire(t.Context(), "b", ofWorkload("web", "web-1", four, six)); err == nil {
			t.Fatal("it has an address of another pod")
		}
		began := time.Now()
		awaits(t, resting("node3", api, rest), "c", ofWorkload("other", "late", four))
		between(t, "after the failed one", time.Since(began))
	})
}

// Of a lost node flock-controller begins the quarantine when the pod's object is gone, and ends
// the claim after it. It also ends one that an agent has left behind.
func TestQuarantineOfALostNode(t *testing.T) {
	collect := func(t *testing.T, api *claimtest.Fake, heard ...string) {
		c := claim.Collector{
			API: api, Log: slog.New(slog.DiscardHandler), Quarantine: func(netip.Addr) time.Duration { return rest },
			Lives: func(*v1alpha1.AddressClaim) bool { return false },
			Heard: func(node string) bool { return slices.Contains(heard, node) },
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ctx.Err() == nil {
				_, again, err := c.Collect(ctx, api.All())
				if err != nil {
					t.Error(err)
				}
				if again < 0 || again > 10*time.Second {
					again = 10 * time.Second // other changes
				}
				select {
				case <-ctx.Done():
				case <-time.After(max(again, time.Millisecond)):
				}
			}
		}()
		t.Cleanup(func() { cancel(); <-done })
	}
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.SetPod(pod("web-0"))
		acquire(t, resting("node1", api, rest), "a", ofWorkload("web", "web-0", six, four)) // and is never heard of again
		collect(t, api)
		time.Sleep(time.Hour)
		if h := holder(t, api, six); h != "web-0" {
			t.Fatalf("while the pod's object is there, the address is that of %q", h)
		}
		api.RemovePod("shop", "web-0")
		began := time.Now()
		node2 := resting("node2", api, rest)
		if took := awaits(t, node2, "b", ofWorkload("web", "web-1", four)); took > 15*time.Second {
			t.Errorf("its own workload waits %s", took)
		}
		awaits(t, node2, "c", ofWorkload("other", "late", six))
		if took := time.Since(began); took < rest || took > rest+15*time.Second {
			t.Errorf("another workload has it after %s, want %s", took, rest)
		}
	})
	for name, until := range map[string]time.Duration{"left behind": rest, "by a clock that is wrong": 1000 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			api := claimtest.NewFake()
			c := &v1alpha1.AddressClaim{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AddressClaimName(six)}}
			c.Spec = v1alpha1.AddressClaimSpec{Address: six.String(), PodNamespace: "shop", PodName: "web-0", PodUID: "u", NodeName: "node1", QuarantinedUntil: &metav1.Time{Time: time.Now().Add(until)}}
			if err := api.CreateClaim(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			collect(t, api, "node1") // which is up, without flock
			time.Sleep(20 * time.Minute)
			synctest.Wait()
			if h := holder(t, api, six); h != "" {
				t.Errorf("%s: it is still that of %q", name, h)
			}
		})
	}
}

// With CRDs of an earlier version there is no quarantine, and no claim is left.
func TestQuarantineThatTheCRDDoesNotKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.Old = true
		k := resting("node1", api, rest)
		run(t, k)
		acquire(t, k, "a", ofWorkload("web", "web-0", six, four))
		acquire(t, k, "b", ofWorkload("web", "web-0", four))
		k.Release("a")
		synctest.Wait()
		if h := holder(t, api, six); h != "" {
			t.Errorf("held by %q", h)
		}
		k.Release("b")
		acquire(t, k, "c", ofWorkload("other", "late", four))
		if h := holder(t, api, four); h != "late" {
			t.Errorf("held by %q", h)
		}
	})
}

// An address in quarantine is none that the pods of its namespace hold.
func TestQuarantineIsNotInTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := claimtest.NewFake()
		api.SetPod(pod("web-1", func(p *corev1.Pod) {}))
		k := resting("node1", api, rest)
		run(t, k)
		acquire(t, k, "a", ofWorkload("web", "web-0", six))
		k.Release("a")
		synctest.Wait()
		limit := claim.Limit{Pool: "p", Most: 1, Of: func(netip.Addr) bool { return true }}
		if err := k.Acquire(t.Context(), "b", ofWorkload("web", "web-1", four), limit); err != nil {
			t.Error(err)
		}
	})
}

func TestQuarantineOfAPool(t *testing.T) {
	pools := []config.Pool{
		{Name: "wide", CIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:200::/48")}, Static: true, Quarantine: time.Hour},
		{Name: "narrow", CIDRs: []netip.Prefix{netip.MustParsePrefix("2001:db8:200::/64")}, Static: true},
	}
	for addr, want := range map[string]time.Duration{"2001:db8:200::7": 0, "2001:db8:200:1::7": time.Hour, "203.0.113.7": config.DefaultQuarantine} {
		if got := claim.Quarantine(netip.MustParseAddr(addr), pools); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}
