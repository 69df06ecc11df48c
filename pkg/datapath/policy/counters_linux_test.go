package policy_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
	"flock.fritzlab.net/flock/pkg/datapath/policy/policytest"
)

// counted is what has been counted since the last call, of a trial whose rules have not
// changed since.
func (tr *trial) counted(t *testing.T) (series map[policy.Series]uint64, denied map[string]uint64) {
	t.Helper()
	now, err := tr.table.Counts()
	if err != nil {
		t.Fatal(err)
	}
	for name := range tr.x.Ruleset().Counters {
		if _, there := now.Counters[name]; !there {
			t.Fatalf("counter %s is not in the kernel", name)
		}
	}
	var tally policy.Tally
	tally.Take(tr.x.Ruleset().Counters, tr.counts.Counters)
	before := maps.Clone(tally.Totals())
	tally.Take(tr.x.Ruleset().Counters, now.Counters)
	series, denied = map[policy.Series]uint64{}, map[string]uint64{}
	for s, n := range tally.Totals() {
		if n > before[s] {
			series[s] = n - before[s]
		}
	}
	for link, n := range now.DeniedIn {
		if d := n - tr.counts.DeniedIn[link]; d > 0 {
			denied["in "+link] = d
		}
	}
	for link, n := range now.DeniedOut {
		if d := n - tr.counts.DeniedOut[link]; d > 0 {
			denied["out "+link] = d
		}
	}
	tr.counts = now
	return series, denied
}

// What is counted for each packet of a new connection is what the policies decide, in
// random worlds: for the right policy, direction and verdict, once.
func TestCountersAreTrue(t *testing.T) {
	m := maker(t)
	seen := map[string]int{}
	for world := range 6 {
		t.Run(fmt.Sprint("world", world), func(t *testing.T) {
			tr := newTrial(t, m)
			for range slots - 2 {
				tr.addPod(true)
			}
			for range 6 {
				tr.addPod(false)
			}
			for range 12 {
				tr.addPolicy()
			}
			tr.fill()
			tr.apply(t)
			for range 20 {
				for range 1 + m.IntN(3) {
					tr.change()
				}
				tr.apply(t)
				tr.counts = policy.Counts{}
				tr.counted(t)
				for range 5 {
					p := tr.probePacket()
					if p.Port == 0 { // without ports, two packets between the same addresses are one flow
						tr.lab.node.Exec("conntrack", "-F")
					}
					s := segment{src: p.Src, dst: p.Dst, proto: p.Protocol, sport: tr.newPort(), dport: p.Port, flags: syn}
					tr.lab.send(port(p.From), s)
					tr.lab.settled()
					series, denied := tr.counted(t)
					tr.wantCounted(t, p, series, denied, seen)
				}
			}
		})
		if t.Failed() {
			return
		}
	}
	t.Log(seen)
	if seen["allow"] == 0 || seen["deny"]+seen["deny-shared"] == 0 {
		t.Errorf("counted %v, want something that is allowed and something that is denied", seen)
	}
}

// wantCounted holds what a packet has added to the counters against what is explained.
func (tr *trial) wantCounted(t *testing.T, p policytest.Packet, series map[policy.Series]uint64, denied map[string]uint64, seen map[string]int) {
	t.Helper()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("packet %+v counted %v and denied %v: %s", p, series, denied, fmt.Sprintf(format, args...))
	}
	take := func(s policy.Series) {
		t.Helper()
		if series[s] != 1 {
			fail("want one of %v", s)
		}
		delete(series, s)
		seen[s.Verdict]++
	}
	side := func(pod *policy.Pod, d policy.Direction, v policy.Verdict) bool {
		if v.Passed != nil {
			take(policy.Series{Policy: v.Passed.Policy, Direction: d, Verdict: "pass"})
		}
		switch {
		case !v.Allowed:
			key := strings.TrimSuffix(string(d), "gress") + " " + pod.Links[0]
			key = strings.Replace(key, "e ", "out ", 1)
			if denied[key] != 1 {
				fail("want one denied %s", key)
			}
			delete(denied, key)
			if len(v.By) > 0 {
				take(policy.Series{Policy: v.By[0].Policy, Direction: d, Verdict: "deny"})
				return false
			}
			verdict := "deny"
			if len(v.Isolating) > 1 {
				verdict = "deny-shared"
			}
			for _, ref := range v.Isolating {
				take(policy.Series{Policy: ref, Direction: d, Verdict: verdict})
			}
			return false
		case len(v.By) > 0 && v.By[0].Tier != "":
			verdict := map[string]string{"Accept": "allow", "Pass": "pass"}[v.By[0].Action]
			take(policy.Series{Policy: v.By[0].Policy, Direction: d, Verdict: verdict})
		case len(v.By) > 0:
			var by, shared []policy.PolicyRef
			for _, r := range v.By {
				by = append(by, r.Policy)
			}
			for s := range series {
				if s.Direction != d || s.Verdict != "allow" && s.Verdict != "allow-shared" {
					continue
				}
				if shared = append(shared, s.Policy); s.Verdict == "allow" && !slices.Contains(by, s.Policy) {
					fail("it was allowed by %v", by)
				}
			}
			if !slices.ContainsFunc(shared, func(ref policy.PolicyRef) bool { return slices.Contains(by, ref) }) {
				fail("it was allowed by %v", by)
			}
			verdict := "allow"
			if len(shared) > 1 {
				verdict = "allow-shared"
			}
			for _, ref := range shared {
				take(policy.Series{Policy: ref, Direction: d, Verdict: verdict})
			}
		}
		return true
	}
	_, why := tr.explain(p)
	passes := true
	if p.From != nil && p.From != p.To {
		passes = side(p.From, policy.Egress, why[0])
		why = why[1:]
	}
	if passes && p.To != nil && p.From != p.To {
		side(p.To, policy.Ingress, why[0])
	}
	if len(series)+len(denied) > 0 {
		fail("want nothing more")
	}
}

// Packets of a connection that is allowed are counted once; after a change that may
// revoke it once more.
func TestCountsFirstPackets(t *testing.T) {
	st := newStage(t)
	st.x.SetNetworkPolicy(ingressPolicy("client", "server", "client"))
	st.apply(t)
	send := func(n int) {
		for range n {
			st.lab.send(firstSlot, segment{src: st.client.Addrs[0], dst: st.server.Addrs[0], proto: unix.IPPROTO_UDP, sport: 99, dport: 99})
			st.lab.send(firstSlot+1, segment{src: st.server.Addrs[0], dst: st.client.Addrs[0], proto: unix.IPPROTO_UDP, sport: 99, dport: 99})
		}
		st.lab.settled()
	}
	want := func(name string, want uint64) {
		t.Helper()
		counts, err := st.table.Counts()
		if err != nil {
			t.Fatal(err)
		}
		var tally policy.Tally
		tally.Take(st.x.Ruleset().Counters, counts.Counters)
		for s, n := range tally.Totals() {
			if s.Verdict == name {
				want -= n
			}
		}
		if want != 0 {
			t.Errorf("%s: %v, want %d more", name, tally.Totals(), want)
		}
	}
	send(10)
	want("allow", 1)
	st.x.SetNetworkPolicy(ingressPolicy("other", "client", "server"))
	st.apply(t)
	send(10)
	want("allow", 2)
	// Every packet that is denied counts.
	st.x.SetNetworkPolicy(ingressPolicy("client", "server", "nobody"))
	st.apply(t)
	send(10)
	want("allow", 2)
	want("deny", 20)
}

// Of several policies that a pod is selected by, what they allow is shared only if it
// cannot be told apart.
func TestCounterPolicies(t *testing.T) {
	x := policy.NewIndex()
	x.SetPod(policy.Pod{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}, Links: []string{"flock1"}})
	x.SetNetworkPolicy(ingressPolicy("deny", "web", ""))
	x.SetNetworkPolicy(ingressPolicy("one", "web", "one"))
	of := func() string {
		x.Flush()
		var out []string
		for _, c := range x.Ruleset().Counters {
			out = append(out, fmt.Sprint(c.Policies()))
		}
		slices.Sort(out)
		return strings.Join(slices.Compact(out), " ")
	}
	if got, want := of(), "[NetworkPolicy shop/deny NetworkPolicy shop/one] [NetworkPolicy shop/one]"; got != want {
		t.Errorf("counters are of %s, want %s", got, want)
	}
	// Both allow pods without ports: their addresses are in one set.
	x.SetNetworkPolicy(ingressPolicy("two", "web", "two"))
	if got, want := of(), "[NetworkPolicy shop/deny NetworkPolicy shop/one NetworkPolicy shop/two] [NetworkPolicy shop/one NetworkPolicy shop/two]"; got != want {
		t.Errorf("counters are of %s, want %s", got, want)
	}
}

// A tally goes on when counters come and go, and is not misled by one that was reset.
func TestTally(t *testing.T) {
	t.Parallel()
	x := policy.NewIndex()
	x.SetPod(policy.Pod{Namespace: "shop", Name: "web", Links: []string{"flock1"}})
	x.SetNetworkPolicy(ingressPolicy("deny", "web", ""))
	x.SetPod(policy.Pod{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}, Links: []string{"flock1"}})
	x.Flush()
	counters := x.Ruleset().Counters
	name := slices.Collect(maps.Keys(counters))[0]
	var tally policy.Tally
	want := func(want uint64) {
		t.Helper()
		if got := tally.Totals()[policy.Series{Policy: policy.PolicyRef{Namespace: "shop", Name: "deny"}, Direction: policy.Ingress, Verdict: "deny"}]; got != want {
			t.Errorf("%d packets, want %d", got, want)
		}
	}
	tally.Take(counters, map[string]uint64{name: 5, "stray": 7})
	want(5)
	tally.Take(counters, map[string]uint64{name: 8})
	want(8)
	tally.Take(counters, map[string]uint64{name: 2}) // reset by another hand
	want(10)
	tally.Forget([]*policy.Counter{counters[name]})
	tally.Take(counters, map[string]uint64{name: 3})
	want(13)
	tally.ForgetPolicies(func(policy.PolicyRef) bool { return false })
	want(0)
}
