package fleet

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// rolloutMember is a node in words: "updated", "turn=GENERATION@SECONDS" before noon, "lag" (its agent
// has not reported), "CONDITION=False@SECONDS", "since=SECONDS" (available, default 60; 0 for a
// node that is not).
func rolloutMember(t *testing.T, name, words string) Member {
	t.Helper()
	m := Member{Config: &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 7}}}
	m.Config.Status.ObservedGeneration = 7
	ago := func(s string) metav1.Time {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return metav1.NewTime(noon.Add(-time.Duration(n) * time.Second))
	}
	conditions := map[string]metav1.Condition{"Ready": {Type: "Ready", Status: metav1.ConditionTrue, LastTransitionTime: ago("1000")}}
	since := "60"
	for _, w := range strings.Fields(words) {
		key, value, _ := strings.Cut(w, "=")
		value, at, _ := strings.Cut(value, "@")
		switch key {
		case "updated":
			m.Updated = true
		case "lag":
			m.Config.Status.ObservedGeneration = 6
		case "turn":
			g, _ := strconv.ParseInt(value, 10, 64)
			m.Turn = &v1alpha1.TemplateTurn{Template: "all", Generation: g, Time: ago(at)}
		case "since":
			since = value
		default:
			conditions[key] = metav1.Condition{Type: key, Status: metav1.ConditionStatus(value), Message: "why", LastTransitionTime: ago(at)}
		}
	}
	for _, c := range conditions {
		m.Config.Status.Conditions = append(m.Config.Status.Conditions, c)
	}
	if Available(m.Config) {
		m.AvailableSince = ago(since).Time
	}
	return m
}

func TestNextWave(t *testing.T) {
	for _, tc := range []struct {
		name    string
		max     string // maxUnavailable; default 2
		members []string
		next    string
		reason  RolloutReason
		message string
		again   time.Duration
	}{
		{name: "one node first", members: []string{"", "", "", ""}, next: "n0", reason: RolloutProgressing, message: "generation 3: 0 of 4 nodes are updated, and it is the turn of 1 more", again: -1},
		{name: "nothing to do", members: []string{"updated", "updated"}, reason: RolloutComplete, message: "2 of 2", again: -1},
		{name: "no nodes", reason: RolloutComplete, message: "0 of 0", again: -1},
		{name: "the first has not followed", members: []string{"turn=3@5", "", ""}, reason: RolloutProgressing, message: "1 of the last wave must become available", again: 0},
		{name: "its agent has not reported", members: []string{"updated turn=3@5 lag", "", ""}, reason: RolloutProgressing, message: "must become available", again: 115 * time.Second},
		{name: "not available for long enough", members: []string{"updated turn=3@5 since=4", "", ""}, reason: RolloutProgressing, again: 6 * time.Second},
		{name: "the second wave", members: []string{"updated turn=3@20", "", "", ""}, next: "n1 n2", reason: RolloutProgressing, again: -1},
		{name: "a percentage is rounded up", max: "34%", members: []string{"updated turn=3@20", "", "", ""}, next: "n1 n2", reason: RolloutProgressing, again: -1},
		{name: "a small percentage", max: "1%", members: []string{"updated turn=3@20", "", "", ""}, next: "n1", reason: RolloutProgressing, again: -1},
		{name: "all at once", max: "100%", members: []string{"", "", ""}, next: "n0 n1 n2", reason: RolloutProgressing, again: -1},
		{name: "a wave waits for all", members: []string{"updated turn=3@30", "updated turn=3@15", "updated turn=3@15 Ready=False@14", ""}, reason: RolloutProgressing, again: 105 * time.Second},
		{name: "a wave fails", members: []string{"updated turn=3@230", "updated turn=3@121", "updated turn=3@121 SessionsUp=False@120", ""}, reason: RolloutStopped,
			message: "1 of the last wave are not available 2m0s after it began: n2: SessionsUp is False: why: fix the template, or set it back", again: -1},
		{name: "refused by its agent", members: []string{"updated turn=3@121 Accepted=False@120", ""}, reason: RolloutStopped, message: "n0: Accepted is False: why", again: -1},
		{name: "BIRD refuses it", members: []string{"updated turn=3@121 RoutingConfigured=False@120", ""}, reason: RolloutStopped, message: "n0: RoutingConfigured is False: why", again: -1},
		{name: "an agent that does not follow", members: []string{"turn=3@121", ""}, reason: RolloutStopped, message: "n0 has not followed: see the log of its agent"},
		{name: "an agent that does not report", members: []string{"updated turn=3@121 lag", ""}, reason: RolloutStopped, message: "n0: Ready is Unknown: its agent has not reported about generation 7", again: -1},
		{name: "many fail", members: []string{"updated turn=3@121 lag", "updated turn=3@121 lag", "updated turn=3@121 lag", "updated turn=3@121 lag", "updated turn=3@121 lag"}, reason: RolloutStopped, message: "; and 2 more", again: -1},
		{name: "the failed wave is repaired", members: []string{"updated turn=3@600", "updated turn=3@500 since=11", ""}, next: "n2", reason: RolloutProgressing, again: -1},
		{name: "back after the deadline, not for long", members: []string{"updated turn=3@500 since=3", ""}, reason: RolloutProgressing, again: 7 * time.Second},
		{name: "the remedy begins where it broke", members: []string{"", "turn=2@50 Ready=False@40", "turn=2@50 Ready=False@40"}, next: "n1 n2", reason: RolloutProgressing, again: -1},
		{name: "all that it broke, and no other", max: "1", members: []string{"turn=2@50 Ready=False@40", "", "turn=2@50 Ready=False@40", "turn=2@50 lag"}, next: "n0 n2 n3", reason: RolloutProgressing, again: -1},
		{name: "one that the remedy does not help", members: []string{"updated turn=3@20 Ready=False@40", "updated turn=3@20", ""}, next: "n2", reason: RolloutProgressing, again: -1},
		{name: "what was broken before comes last", members: []string{"Ready=False@999", "", ""}, next: "n1", reason: RolloutProgressing, again: -1},
		{name: "and in a wave of its own", members: []string{"Ready=False@999", "updated turn=3@20", ""}, next: "n2", reason: RolloutProgressing, again: -1},
		{name: "and is not waited for", members: []string{"updated turn=3@20 Ready=False@999", "updated turn=3@20", "", "Ready=False@999"}, next: "n2", reason: RolloutProgressing, again: -1},
		{name: "broken long after an earlier turn", members: []string{"turn=2@5000 Ready=False@40", ""}, next: "n1", reason: RolloutProgressing, again: -1},
		{name: "all are broken", members: []string{"Ready=False@999", "Ready=False@999", "Ready=False@999"}, next: "n0", reason: RolloutProgressing, again: -1},
		{name: "all are broken, and the first remains so", members: []string{"updated turn=3@121 Ready=False@999", "Ready=False@999"}, reason: RolloutStopped, message: "n0: Ready is False", again: -1},
		{name: "broken long after all was done", members: []string{"updated turn=3@5000 Ready=False@40"}, reason: RolloutComplete, message: "1 of 1", again: -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			nct := template(t, "all", everyNode)
			limit := intstr.Parse("2")
			if tc.max != "" {
				limit = intstr.Parse(tc.max)
			}
			nct.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &limit
			nct.Spec.MinReadySeconds, nct.Spec.ProgressDeadlineSeconds = new(int32(10)), new(int32(120))
			var members []Member
			for i, words := range tc.members {
				members = append(members, rolloutMember(t, fmt.Sprint("n", i), words))
			}
			slices.Reverse(members) // the order must not count
			got := Next(nct, members, noon)
			var next []string
			for _, nc := range got.Next {
				next = append(next, nc.Name)
			}
			if n := strings.Join(next, " "); n != tc.next || got.Reason != tc.reason || !strings.Contains(got.Message, tc.message) || tc.again != 0 && got.Again != tc.again {
				t.Errorf("next %q, %+v\nwant next %q %s %q again %s", n, got, tc.next, tc.reason, tc.message, tc.again)
			}
		})
	}
}

// A roll-out that everybody follows ends after a known number of waves, and never has more
// nodes in flight than a wave may have.
func TestWavesOfAFleet(t *testing.T) {
	for nodes, want := range map[int]int{1: 1, 2: 2, 10: 10, 100: 11, 5000: 11} {
		nct := template(t, "all", everyNode)
		nct.Spec.MinReadySeconds = new(int32(10))
		members := make([]Member, nodes)
		byName := map[string]*Member{}
		for i := range members {
			members[i] = rolloutMember(t, fmt.Sprintf("n%04d", i), "since=60")
			byName[members[i].Config.Name] = &members[i]
		}
		now, waves := noon, 0
		for {
			r := Next(nct, members, now)
			if r.Reason == RolloutComplete {
				break
			}
			if waves++; waves > 2*want || len(r.Next) == 0 || len(r.Next) > max(1, (nodes+9)/10) {
				t.Fatalf("%d nodes, wave %d: %+v", nodes, waves, r)
			}
			for _, nc := range r.Next {
				m := byName[nc.Name]
				m.Updated, m.AvailableSince = true, now
				m.Turn = &v1alpha1.TemplateTurn{Template: "all", Generation: nct.Generation, Time: metav1.NewTime(now)}
			}
			if r := Next(nct, members, now); len(r.Next) > 0 {
				t.Fatalf("%d nodes: the wave after %d begins at once", nodes, waves)
			}
			now = now.Add(10 * time.Second)
		}
		if waves != want {
			t.Errorf("%d nodes take %d waves, want %d", nodes, waves, want)
		}
	}
}

func TestInTurn(t *testing.T) {
	old := template(t, "all", everyNode)
	made := Decide(node7(), nil, []*v1alpha1.NodeConfigTemplate{old}).Object
	changed := template(t, "all", strings.Replace(everyNode, "9000", "1400", 1))
	changed.Generation = 4
	noWaves := changed.DeepCopy()
	everything := intstr.FromString("100%")
	noWaves.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &everything
	marksOnly := old.DeepCopy()
	marksOnly.Generation = 4
	higher := changed.DeepCopy()
	higher.Name, higher.Spec.Priority, higher.Generation = "other", 1, 3
	moved := node7()
	moved.PodCIDRs[0] = "10.244.8.0/24"
	turn := func(name string, generation int64) *v1alpha1.TemplateTurn {
		return &v1alpha1.TemplateTurn{Template: name, Generation: generation}
	}
	for _, tc := range []struct {
		name     string
		node     Node
		current  *v1alpha1.NodeConfig
		template *v1alpha1.NodeConfigTemplate
		turn     *v1alpha1.TemplateTurn
		action   Action
		reason   Reason
	}{
		{"the first", node7(), nil, changed, nil, Create, FromTemplate},
		{"as it is", node7(), made, old, nil, Leave, FromTemplate},
		{"changed", node7(), made, changed, nil, Leave, WaitingForTurn},
		{"an earlier turn", node7(), made, changed, turn("all", 3), Leave, WaitingForTurn},
		{"another template's turn", node7(), made, changed, turn("other", 4), Leave, WaitingForTurn},
		{"its turn", node7(), made, changed, turn("all", 4), Update, FromTemplate},
		{"another template", node7(), made, higher, nil, Leave, WaitingForTurn},
		{"another template's turn, and that is it", node7(), made, higher, turn("other", 3), Update, FromTemplate},
		{"nothing for the node has changed", node7(), made, marksOnly, nil, Update, FromTemplate},
		{"the node has changed", moved, made, old, nil, Update, FromTemplate},
		{"both", moved, made, changed, nil, Leave, WaitingForTurn},
		{"no waves", node7(), made, noWaves, nil, Update, FromTemplate},
	} {
		t.Run(tc.name, func(t *testing.T) {
			current := tc.current.DeepCopy()
			if tc.turn != nil {
				current.Status.TemplateTurn = tc.turn
			}
			v := Decide(tc.node, current, []*v1alpha1.NodeConfigTemplate{tc.template}).InTurn(current)
			if v.Action != tc.action || v.Reason != tc.reason || v.Reason == WaitingForTurn && (v.Object != nil || !strings.Contains(v.Message, "kubectl describe nodeconfigtemplate "+tc.template.Name)) {
				t.Errorf("%+v", v)
			}
		})
	}
}
