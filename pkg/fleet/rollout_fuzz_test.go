package fleet

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// FuzzWaves: whatever the order in which nodes follow, report, fail and recover, in which
// flock-controller looks, gives way to another instance and is refused, and in which the
// template changes,
//
//   - a generation with which no node has been available for the stable time is at most with one
//     node that was available before, or allowed to it;
//   - a node that a generation has left broken holds up the waves of the next one too, if that is
//     the same for the nodes, whatever changes of the node itself, also if it is made again, and of no other: one that has
//     never followed holds up no remedy;
//   - no wave has more nodes than the template says, and none begins while a node that was
//     available before is broken since it followed;
//   - the nodes that a generation has left without a session are one while it is unproven, and a wave
//     otherwise;
//   - no more nodes than a wave has may follow a generation and have not;
//   - the roll-out is complete when all nodes have followed, and not before; all whose agents
//     work do, if one at least does.
func FuzzWaves(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		script := make([]byte, 20+random.IntN(600))
		for i := range script {
			script[i] = byte(random.Uint32())
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		w := newFleet(t, &script)
		for len(script) > 0 {
			w.step(take(&script), take(&script))
		}
		w.end()
	})
}

// take is the next byte of a script, or 0 at its end.
func take(script *[]byte) byte {
	if len(*script) == 0 {
		return 0
	}
	b := (*script)[0]
	*script = (*script)[1:]
	return b
}

const (
	fuzzStable   = 10 * time.Second
	fuzzDeadline = 30 * time.Second
)

// fleetOfNodes is a template and its nodes, as flock-controller sees them.
type fleetOfNodes struct {
	t        *testing.T
	template *v1alpha1.NodeConfigTemplate
	limit    int
	bad      map[int64]bool // generations that break nodes
	cuts     map[int64]bool // generations that end all sessions
	contents []int64        // the generations that have changed what it says
	content  int            // what the template says of the nodes
	proven   bool           // a node has been available with the generation for the stable time
	nodes    []*fleetNode
	now      time.Time
}

type fleetNode struct {
	Member
	idle, down bool      // its agent does not work; it is not available for reasons of its own
	degraded   bool      // one of its two sessions is down, for reasons of its own
	cut        bool      // it has no session since it followed
	content    int       // of what the template said, that it has
	facts      bool      // its own have changed since
	remade     int64     // the generation that it has stopped, and under which it was made again
	took       int64     // the generation of the turn with which it took that
	refuses    bool      // the API server refuses its turns
	stable     bool      // it has been seen available for the stable time with what it follows
	since      time.Time // when it was seen available, without a break
}

func newFleet(t *testing.T, script *[]byte) *fleetOfNodes {
	w := &fleetOfNodes{t: t, template: template(t, "all", everyNode), bad: map[int64]bool{}, cuts: map[int64]bool{}, contents: []int64{2, 3}, content: 1, now: noon}
	w.template.Spec.MinReadySeconds, w.template.Spec.ProgressDeadlineSeconds = new(int32(fuzzStable.Seconds())), new(int32(fuzzDeadline.Seconds()))
	w.say()
	n := 1 + int(take(script)%9)
	w.limit = 1 + int(take(script))%n
	limit := intstr.FromInt(w.limit)
	w.template.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &limit
	for i := range n {
		w.nodes = append(w.nodes, &fleetNode{Member: rolloutMember(t, fmt.Sprint("n", i), "made=2 sessions=2")})
	}
	return w
}

// act is what the node's agent does next: it follows if it may, else it reports.
func (w *fleetOfNodes) act(n *fleetNode) {
	if n.idle {
		return
	}
	if !n.Updated && (InWave(n.Turn, w.template) || follows(n.Config, w.template) || n.Facts) {
		n.Config.Generation++
		n.Config.Annotations[v1alpha1.TemplateGenerationAnnotation] = fmt.Sprint(w.template.Generation)
		if n.content != w.content {
			n.content, n.took = w.content, w.template.Generation
		}
		n.Updated, n.Facts, n.facts, n.stable, n.since, n.cut = true, false, false, false, time.Time{}, w.cuts[w.template.Generation]
		return
	}
	if n.Updated { // without another spec
		n.Config.Annotations[v1alpha1.TemplateGenerationAnnotation] = fmt.Sprint(w.template.Generation)
	}
	n.Config.Status.ObservedGeneration = n.Config.Generation
	c := &n.Config.Status.Conditions[0]
	c.Status = metav1.ConditionTrue
	if n.down || w.bad[w.contents[n.content]] {
		c.Status = metav1.ConditionFalse
	}
	up := 2
	sessions := metav1.Condition{Type: "SessionsUp", Status: metav1.ConditionTrue}
	if n.degraded {
		up, sessions.Status = 1, metav1.ConditionFalse
	}
	if n.cut {
		up = 0
	}
	n.Config.Status.Conditions = append(n.Config.Status.Conditions[:1], sessions)
	n.Config.Status.Sessions = slices.Repeat([]v1alpha1.SessionStatus{{Up: true}}, up)
}

func (w *fleetOfNodes) step(what, which byte) {
	n := w.nodes[int(which)%len(w.nodes)]
	switch what % 16 {
	case 0:
		n.idle = !n.idle
	case 1:
		n.down = !n.down
	case 2:
		n.refuses = !n.refuses
	case 3: // another instance of flock-controller
		for _, n := range w.nodes {
			n.Seen, n.Kept, n.Began, n.Refused, n.Changes = Availability{}, Availability{}, time.Time{}, "", Changes{}
		}
	case 4: // seldom: most changes should get somewhere
		if which%4 == 0 {
			w.change(which&16 != 0, which&32 != 0)
		} else if which%8 == 1 {
			w.edit()
		} else if which%8 == 2 && w.template.Generation > 3 {
			w.setBack()
		}
	case 5, 6:
		w.pass() // it looks at each change before time goes on
		w.now = w.now.Add(time.Duration(which%16) * time.Second)
	case 7, 8, 9, 10:
		w.pass()
	case 11:
		n.degraded = !n.degraded
	case 12: // its own facts change, or it is made again
		if which%4 == 3 {
			w.remake(n)
			return
		}
		n.facts = true
		n.Facts = n.Facts || n.Updated
		n.Updated = false
	default:
		w.act(n)
	}
}

// remake deletes the node. Its agent makes its NodeConfig again at once, whatever flock-controller says.
func (w *fleetOfNodes) remake(n *fleetNode) {
	status := w.template.Status
	stopped := len(status.Conditions) > 0 && status.Conditions[0].Reason == string(RolloutStopped) && status.Conditions[0].ObservedGeneration == w.template.Generation
	n.remade = 0
	if stopped && slices.Contains(status.FailedNodes, n.Config.Name) {
		n.remade = w.template.Generation
	}
	n.Member = rolloutMember(w.t, n.Config.Name, fmt.Sprintf("updated lag made=%d", w.template.Generation))
	n.Seen, n.content, n.took, n.facts, n.stable, n.since, n.cut = Availability{}, w.content, 0, false, false, time.Time{}, w.cuts[w.template.Generation]
}

// edit changes the template, and not what it says of the nodes.
func (w *fleetOfNodes) edit() {
	last := w.template.Generation
	w.template.Generation++
	w.bad[last+1], w.cuts[last+1] = w.bad[last], w.cuts[last]
	w.proven = false
}

func (w *fleetOfNodes) change(bad, cuts bool) {
	w.template.Generation++
	w.bad[w.template.Generation], w.cuts[w.template.Generation] = bad, cuts
	w.contents = append(w.contents, w.template.Generation)
	w.proven, w.content = false, len(w.contents)-1
	w.say()
	for _, n := range w.nodes {
		n.Updated, n.Facts = false, false
	}
}

// say makes the template say what its content is.
func (w *fleetOfNodes) say() { w.template.Spec.Template.MTU = int32(1400 + w.content) }

// setBack makes the template say what it said before the last change.
func (w *fleetOfNodes) setBack() {
	w.content = max(0, w.content-1)
	w.say()
	w.template.Generation++
	first := w.contents[w.content]
	w.bad[w.template.Generation], w.cuts[w.template.Generation] = w.bad[first], w.cuts[first]
	w.proven = false
	for _, n := range w.nodes {
		n.Facts = n.content == w.content && n.facts
		n.Updated = n.content == w.content && !n.facts
	}
}

// pass is a look of flock-controller, which may begin a wave.
func (w *fleetOfNodes) pass() Rollout {
	var members []Member
	exposed, broken := 0, ""
	for _, n := range w.nodes {
		available := n.Available(w.template)
		n.Changes.See(n.Config.Generation, n.Seen, w.template, w.now)
		n.Seen.See(available, n.Config.Generation, w.now)
		n.Kept.See(!n.Worse(w.template), n.Config.Generation, w.now)
		if n.Began.IsZero() {
			n.Began = w.now
		}
		followed := n.content == w.content && n.Turn != nil && n.took == n.Turn.Generation && !n.Turn.Withdrawn && !past(n.Turn, w.template)
		if !n.since.IsZero() && w.now.Sub(n.since) >= fuzzStable {
			n.stable = true // also if the template says something else meanwhile, and is set back
			w.proven = w.proven || followed && InWave(n.Turn, w.template)
		}
		if !available {
			n.since = time.Time{}
		} else if n.since.IsZero() {
			n.since = w.now
		}
		if n.remade == w.template.Generation && !n.since.IsZero() && w.now.Sub(n.since) >= fuzzStable {
			n.remade = 0
		}
		if n.remade == w.template.Generation && !available {
			broken = n.Config.Name
		}
		if followed && !available && !n.stable && n.Turn.NodeState == v1alpha1.NodeAvailable {
			broken = n.Config.Name
		}
		members = append(members, n.Member)
	}
	before := w.template.Status.FailedNodes
	r := Next(w.template, members, w.now)
	if len(r.Next) > w.limit || len(r.Next) > 1 && !w.proven {
		w.t.Fatalf("a wave of %d, the limit is %d, proven %t: %s", len(r.Next), w.limit, w.proven, r.Message)
	}
	if broken != "" && len(r.Next) > 0 {
		w.t.Fatalf("a wave begins while %s is broken: %s", broken, r.Message)
	}
	for _, turn := range append(r.Next, r.Withdrawn...) {
		n := w.node(turn.Config.Name)
		n.Refused = ""
		switch {
		case !turn.Turn.Withdrawn && n.refuses:
			n.Refused, n.Retry = "no", w.now.Add(5*time.Second)
		default:
			n.Turn, n.Began = &turn.Turn, w.now
		}
	}
	if r.Completed != nil {
		w.template.Status.LastCompleteTime = r.Completed
	}
	w.template.Status.FailedNodes = r.Failed
	w.template.Status.Conditions = []metav1.Condition{{Type: ConditionProgressing, Reason: string(r.Reason), ObservedGeneration: w.template.Generation}}
	for _, name := range r.Failed {
		if n := w.node(name); !slices.Contains(before, name) && (n.content != w.content || n.Turn == nil || n.took != n.Turn.Generation) {
			w.t.Fatalf("%s has failed, and has not followed: %s", name, r.Message)
		}
	}
	harmed, held, updated := 0, 0, 0
	for _, n := range w.nodes {
		inWave := InWave(n.Turn, w.template)
		if inWave && n.Turn.NodeState == v1alpha1.NodeAvailable {
			exposed++
		}
		if inWave && n.Updated && n.cut && n.Turn.SessionsUp > 0 {
			harmed++
		}
		if inWave && !n.Updated && !follows(n.Config, w.template) {
			held++
		}
		if n.Updated {
			updated++
		}
	}
	if harmed > w.limit || harmed > 1 && !w.proven {
		w.t.Fatalf("generation %d has left %d nodes without a session, the limit is %d, proven %t: %s", w.template.Generation, harmed, w.limit, w.proven, r.Message)
	}
	if held > w.limit {
		w.t.Fatalf("%d nodes may follow generation %d and have not, the limit is %d: %s", held, w.template.Generation, w.limit, r.Message)
	}
	if (r.Reason == RolloutComplete || r.Completed != nil) && (updated < len(w.nodes) || r.Updated < len(w.nodes)) {
		w.t.Fatalf("complete with %d of %d: %s", updated, len(w.nodes), r.Message)
	}
	if exposed > 1 && !w.proven {
		w.t.Fatalf("generation %d is unproven, and with %d nodes: %s", w.template.Generation, exposed, r.Message)
	}
	return r
}

func (w *fleetOfNodes) node(name string) *fleetNode {
	for _, n := range w.nodes {
		if n.Config.Name == name {
			return n
		}
	}
	w.t.Fatalf("there is no node %s", name)
	return nil
}

// end: a good generation, and all that has not failed by itself works.
func (w *fleetOfNodes) end() {
	w.change(false, false)
	w.nodes[0].idle = false
	for _, n := range w.nodes {
		n.down, n.degraded, n.refuses = false, false, false
	}
	working := 0
	for _, n := range w.nodes {
		if !n.idle {
			working++
		}
	}
	var r Rollout
	for range 20 * (len(w.nodes) + 1) {
		for _, n := range w.nodes {
			w.act(n)
			w.act(n)
		}
		if r = w.pass(); r.Updated >= working && r.Reason == RolloutComplete {
			break
		}
		w.now = w.now.Add(fuzzStable / 2)
	}
	want := RolloutComplete
	if r.Updated < len(w.nodes) {
		want = RolloutProgressing
	}
	if r.Reason != want || r.Updated < working {
		w.t.Fatalf("%d of %d agents work: %s: %s", working, len(w.nodes), r.Reason, r.Message)
	}
}
