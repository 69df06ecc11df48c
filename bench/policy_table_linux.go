package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

// policyTable measures how long 10,000 policies take to be in force, and changes of
// them: from what is known to be so to the kernel having it. It needs no lab.
var policyTable = Bench{
	Name:  "policy.table",
	About: "10,000 policies with 99,000 elements from nothing, compiling included, against nft -f of the same table; a restart of the agent to a table that is verified, against nft list table; changes against one nft process that adds an element",
	Run: func(ctx context.Context, _ *cluster.Lab, n int) ([]Result, error) {
		return measureTable(ctx, n)
	},
}

// tableIn opens the table of a new namespace; close gives both up.
func tableIn(ns *netNS) (table *policy.Table, err error) {
	err = ns.Do(func() (err error) {
		table, err = policy.Open(policy.DefaultMark)
		return err
	})
	return table, err
}

// nft runs nft(8) in a namespace.
func nft(ns *netNS, stdin string, args ...string) (out []byte, took time.Duration, err error) {
	err = ns.Do(func() error {
		cmd := exec.Command("nft", args...)
		if stdin != "" {
			f, err := os.Open(stdin)
			if err != nil {
				return err
			}
			defer f.Close()
			cmd.Stdin = f
		}
		began := time.Now()
		if out, err = cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %.500s", err, out)
		}
		took = time.Since(began)
		return nil
	})
	return out, took, err
}

func measureTable(ctx context.Context, n int) (results []Result, err error) {
	dir, err := os.MkdirTemp("", "flock-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	l := policytest.NewLoad(100, false)
	own := policytest.NewLoad(100, true)
	var load, loadOwn, nftLoad, restart, nftList []time.Duration
	rounds := max(3, n/20)
	for range rounds {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for _, one := range []struct {
			load policytest.Load
			took *[]time.Duration
		}{{own, &loadOwn}, {l, &load}} {
			ns, err := newNetNS()
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			table, err := tableIn(ns)
			if err != nil {
				return nil, err
			}
			defer table.Close()
			began := time.Now()
			x := policy.NewIndex()
			one.load.Into(x)
			if err := table.Apply(x.Ruleset(), x.Flush()); err != nil {
				return nil, err
			}
			*one.took = append(*one.took, time.Since(began))
			if one.took == &loadOwn {
				continue
			}
			again, err := tableIn(ns)
			if err != nil {
				return nil, err
			}
			defer again.Close()
			began = time.Now()
			x = policy.NewIndex()
			l.Into(x)
			x.Flush()
			repairs, err := again.Sync(x.Ruleset(), func() {})
			if err != nil || len(repairs) > 0 {
				return nil, fmt.Errorf("a restarted agent finds %v, %w; want nothing", repairs, err)
			}
			restart = append(restart, time.Since(began))

			listing, took, err := nft(ns, "", "list", "table", "inet", "flock-policy")
			if err != nil {
				return nil, err
			}
			nftList = append(nftList, took)
			file := filepath.Join(dir, "table.nft")
			if err := os.WriteFile(file, listing, 0o600); err != nil {
				return nil, err
			}
			other, err := newNetNS()
			if err != nil {
				return nil, err
			}
			defer other.Close()
			if _, took, err = nft(other, file, "-f", "-"); err != nil {
				return nil, err
			}
			nftLoad = append(nftLoad, took)
		}
	}
	loadBase := &Result{Name: "nft.load", Unit: "ms", Figures: Milliseconds(nftLoad)}
	results = []Result{
		{Name: "policy.load", Unit: "ms", Figures: Milliseconds(load), Baseline: loadBase, Goal: &Goal{P50: 1000}},
		{Name: "policy.load.own-selectors", Unit: "ms", Figures: Milliseconds(loadOwn), Baseline: loadBase, Goal: &Goal{P50: 1000}},
		{Name: "policy.restart", Unit: "ms", Figures: Milliseconds(restart), Baseline: &Result{Name: "nft.list", Unit: "ms", Figures: Milliseconds(nftList)}, Goal: &Goal{P50: 1000}},
	}
	changes, err := measureChanges(ctx, l, n)
	return append(results, changes...), err
}

// A policyChange is a change and its undoing.
type policyChange struct {
	name     string
	do, undo func(x *policy.Index, i int)
}

func policyChanges(l policytest.Load) []policyChange {
	namespace := func(i int) string { return fmt.Sprint("ns", i%policytest.LoadNamespaces) }
	newPod := func(i int) policy.Pod {
		return policy.Pod{Namespace: namespace(i), Name: "new", UID: "new", Labels: map[string]string{"app": "web"}, Links: []string{"flock0000ffff"}}
	}
	newPolicy := func(i int) *networkingv1.NetworkPolicy {
		np := l.Policies[i%policytest.LoadNamespaces*100].DeepCopy()
		np.Name = "new"
		port := intstr.FromInt32(9999)
		np.Spec.Ingress[0].Ports[0].Port = &port
		return np
	}
	deletePod := func(x *policy.Index, p policy.Pod) { x.DeletePod(p.Namespace, p.Name, p.UID) }
	return []policyChange{
		{"peer-comes", func(x *policy.Index, i int) { x.SetPod(l.Peer(i)) }, func(x *policy.Index, i int) { deletePod(x, l.Peer(i)) }},
		{"peer-goes", func(x *policy.Index, i int) { deletePod(x, l.Peer(i)) }, func(x *policy.Index, i int) { x.SetPod(l.Peer(i + 1)) }},
		{"policy-comes", func(x *policy.Index, i int) { x.SetNetworkPolicy(newPolicy(i)) }, func(x *policy.Index, i int) {
			x.DeletePolicy(policy.PolicyRef{Namespace: namespace(i), Name: "new"})
		}},
		{"pod-comes", func(x *policy.Index, i int) { x.SetPod(newPod(i)) }, func(x *policy.Index, i int) { deletePod(x, newPod(i)) }},
	}
}

// measureChanges times changes of a table with 10,000 policies, from the event to when
// it is in force.
func measureChanges(ctx context.Context, l policytest.Load, n int) (results []Result, err error) {
	ns, err := newNetNS()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	table, err := tableIn(ns)
	if err != nil {
		return nil, err
	}
	defer table.Close()
	x := policy.NewIndex()
	l.Into(x)
	apply := func() error { return table.Apply(x.Ruleset(), x.Flush()) }
	if err := apply(); err != nil {
		return nil, err
	}
	changes := policyChanges(l)
	took := make([][]time.Duration, len(changes))
	var base []time.Duration
	const warmUp = 3
	for i := range warmUp + 3*n {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for j, c := range changes {
			if c.name == "peer-goes" { // the one before it took the peer away
				x.SetPod(l.Peer(i))
				if err := apply(); err != nil {
					return nil, err
				}
			}
			began := time.Now()
			c.do(x, i)
			if err := apply(); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			if i >= warmUp {
				took[j] = append(took[j], time.Since(began))
			}
			if c.name == "peer-goes" {
				continue
			}
			c.undo(x, i)
			if err := apply(); err != nil {
				return nil, fmt.Errorf("%s undone: %w", c.name, err)
			}
		}
		if i%10 == 0 {
			d, err := nftElement(ns)
			if err != nil {
				return nil, err
			}
			base = append(base, d)
		}
	}
	for j, c := range changes {
		results = append(results, Result{
			Name: "policy.change." + c.name, Unit: "ms", Figures: Milliseconds(took[j]),
			Baseline: &Result{Name: "nft.element", Unit: "ms", Figures: Milliseconds(base)},
		})
	}
	return results, nil
}

// nftElement is how long one nft process takes to add an element to a set of a table of
// its own, beside the policies' table.
func nftElement(ns *netNS) (time.Duration, error) {
	if _, _, err := nft(ns, "", "add table inet other; add set inet other peers { type ipv6_addr; }; flush set inet other peers"); err != nil {
		return 0, err
	}
	_, took, err := nft(ns, "", "add element inet other peers { fd00::1 }")
	return took, err
}
