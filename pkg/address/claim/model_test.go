package claim_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flock.fritzlab.net/flock/pkg/address/claim"
	"flock.fritzlab.net/flock/pkg/address/claim/claimtest"
)

// Pods come, get new sandboxes and go on three nodes, all of them after the same few
// addresses, while agents crash and requests or their answers are lost at random. No
// address is ever two attached pods', or another workload's in its quarantine, and in the end
// no claim is left.
func TestModel(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				model(t, rand.New(rand.NewPCG(seed, 0)), []time.Duration{0, 3 * time.Second, time.Minute}[seed%3])
			})
		})
	}
}

func model(t *testing.T, rnd *rand.Rand, rest time.Duration) {
	addrs := []netip.Addr{six, four, next}
	var mu sync.Mutex // guards below
	chance := func(percent int) bool { mu.Lock(); defer mu.Unlock(); return rnd.IntN(100) < percent }
	pick := func(n int) int { mu.Lock(); defer mu.Unlock(); return rnd.IntN(n) }
	attached := map[netip.Addr]string{} // to the pod that has it
	type end struct {
		workload string
		at       time.Time
	}
	detached := map[netip.Addr]end{}
	keeper := func(node string, api claim.API) *claim.Keeper { return resting(node, api, rest) }
	faults := true

	api := claimtest.NewFake()
	trouble := func(ctx context.Context, _ string) error {
		time.Sleep(time.Duration(1+pick(20)) * time.Millisecond)
		if mu.Lock(); !faults {
			mu.Unlock()
			return nil
		}
		mu.Unlock()
		if chance(10) {
			return errNoAnswer
		}
		if chance(2) {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	api.Before, api.After = trouble, trouble

	var nodes sync.WaitGroup
	for n := range 3 {
		nodes.Go(func() {
			node := fmt.Sprint("node", n)
			k := keeper(node, api)
			stop := run(t, k)
			for i := range 8 {
				name := fmt.Sprint(node, "-", i)
				workload := fmt.Sprint("app", pick(3))
				wanted := ofWorkload(workload, name, addrs[:1+pick(len(addrs))]...)
				api.SetPod(pod(name))
				var old string
				for sandbox := range 1 + pick(3) {
					attachment := fmt.Sprint(name, "-", sandbox)
					if err := k.Acquire(t.Context(), attachment, wanted); err != nil {
						k.Release(attachment)
						time.Sleep(time.Duration(pick(3000)) * time.Millisecond)
						continue
					}
					mu.Lock()
					for _, c := range wanted {
						if other := attached[c.Addr]; other != "" && other != name {
							t.Errorf("%s is %s's and %s's", c.Addr, other, name)
						}
						attached[c.Addr] = name
						if last, ok := detached[c.Addr]; ok && last.workload != workload && time.Since(last.at) < rest {
							t.Errorf("%s is that of %s %s after %s had it, want %s", c.Addr, workload, time.Since(last.at), last.workload, rest)
						}
					}
					mu.Unlock()
					if old != "" {
						k.Release(old)
					}
					old = attachment
					if chance(20) { // the agent crashes; what it has recorded it knows
						stop()
						k = keeper(node, api)
						k.Restore(attachment, wanted)
						stop = run(t, k)
					}
					time.Sleep(time.Duration(pick(5000)) * time.Millisecond)
				}
				api.SetPod(pod(name, terminating))
				time.Sleep(time.Duration(pick(1000)) * time.Millisecond)
				mu.Lock()
				for a, by := range attached {
					if by == name {
						delete(attached, a)
						detached[a] = end{workload, time.Now()}
					}
				}
				mu.Unlock()
				k.Release(old)
				if chance(50) {
					api.RemovePod("shop", name)
				}
			}
		})
	}
	nodes.Wait()
	mu.Lock()
	faults = false
	mu.Unlock()
	time.Sleep(15 * time.Minute)
	synctest.Wait()
	for _, a := range addrs {
		if h := holder(t, api, a); h != "" {
			t.Errorf("%s is held by %s, which went", a, h)
		}
	}
}
