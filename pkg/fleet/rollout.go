package fleet

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// InTurn is the decision for the moment: current stays as it is until it is the node's turn
// in the template's roll-out. What no template has changed does not wait: the node's first
// NodeConfig, a change of its own facts under the template that it follows already, and a
// change of the template that leaves the node's spec as it is.
func (v Decision) InTurn(current *v1alpha1.NodeConfig) Decision {
	if v.Action != Update || atOnce(v.Template) || follows(current, v.Template) || UpToDate(v, current) || FactsOnly(v, current) {
		return v
	}
	if InWave(current.Status.TemplateTurn, v.Template) {
		return v
	}
	return Decision{Reason: WaitingForTurn, Template: v.Template, Message: fmt.Sprintf(
		"%s reaches the nodes in waves, and it is not the turn of this node yet: kubectl describe nodeconfigtemplate %s says how far it is; flock-controller gives the turns",
		v.Message, v.Template.Name)}
}

// UpToDate says whether the node's spec is what Decide has made of its template.
func UpToDate(v Decision, current *v1alpha1.NodeConfig) bool {
	return v.Reason == FromTemplate && (v.Action == Leave || v.Action == Update && equality.Semantic.DeepEqual(v.Object.Spec, current.Spec))
}

// FactsOnly says whether the node's spec differs from what Decide has made of its template in the
// node's pod CIDRs and addresses alone. Another AS may be the template's doing.
func FactsOnly(v Decision, current *v1alpha1.NodeConfig) bool {
	if v.Reason != FromTemplate || v.Action != Update {
		return false
	}
	spec := v.Object.Spec.DeepCopy()
	spec.PodCIDRs.IPv4, spec.PodCIDRs.IPv6 = current.Spec.PodCIDRs.IPv4, current.Spec.PodCIDRs.IPv6
	if spec.BGP != nil && current.Spec.BGP != nil {
		spec.BGP.RouterID = current.Spec.BGP.RouterID
	}
	if spec.OSPF != nil && current.Spec.OSPF != nil {
		spec.OSPF.RouterID = current.Spec.OSPF.RouterID
	}
	return !equality.Semantic.DeepEqual(v.Object.Spec, current.Spec) && equality.Semantic.DeepEqual(*spec, current.Spec)
}

// follows says whether current was made from this generation of t. Generations begin again
// when a template is deleted and made anew under its name, so the UID counts too.
func follows(current *v1alpha1.NodeConfig, t *v1alpha1.NodeConfigTemplate) bool {
	return current.Labels[v1alpha1.TemplateLabel] == t.Name &&
		current.Annotations[v1alpha1.TemplateUIDAnnotation] == string(t.UID) &&
		current.Annotations[v1alpha1.TemplateGenerationAnnotation] == fmt.Sprint(t.Generation)
}

// InWave says whether turn, which may be nil, is one to follow this generation of t now: a
// node that others take away from t and bring back waits for a turn of its own.
func InWave(turn *v1alpha1.TemplateTurn, t *v1alpha1.NodeConfigTemplate) bool {
	return given(turn, t) && turn.Generation == t.Generation && !turn.Withdrawn && !past(turn, t)
}

// past says whether turn is of a roll-out of t that was complete.
func past(turn *v1alpha1.TemplateTurn, t *v1alpha1.NodeConfigTemplate) bool {
	last := t.Status.LastCompleteTime
	return last != nil && given(turn, t) && !last.Before(&turn.Time)
}

// given says whether turn, which may be nil, is one to follow any generation of t.
func given(turn *v1alpha1.TemplateTurn, t *v1alpha1.NodeConfigTemplate) bool {
	return turn != nil && turn.Template == t.Name && turn.TemplateUID == t.UID
}

// atOnce says whether t goes without waves.
func atOnce(t *v1alpha1.NodeConfigTemplate) bool {
	m := maxUnavailable(t)
	return m.Type == intstr.String && m.StrVal == "100%"
}

func maxUnavailable(t *v1alpha1.NodeConfigTemplate) intstr.IntOrString {
	if m := t.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable; m != nil {
		return *m
	}
	return intstr.FromString("10%")
}

func seconds(given *int32, otherwise int32) time.Duration {
	if given != nil {
		otherwise = *given
	}
	return time.Duration(otherwise) * time.Second
}

// times are how long nodes of a wave must be available, and have to become so. A template that was
// written before the rule on both may have too little of the latter.
func times(t *v1alpha1.NodeConfigTemplate) (stable, deadline time.Duration) {
	stable = seconds(t.Spec.MinReadySeconds, 60)
	return stable, max(seconds(t.Spec.ProgressDeadlineSeconds, 180), 2*stable)
}

// Member is a node of a template: its NodeConfig is made from it or will be.
type Member struct {
	Config *v1alpha1.NodeConfig
	// Updated: the spec is what the template says.
	Updated bool
	// Facts: the spec is not, for the node's own pod CIDRs and addresses alone (see [FactsOnly]).
	Facts bool
	// Unfit is why the template makes no NodeConfig of the node; empty: it does.
	Unfit string
	// Turn is the last that the node was given, or nil. Began is when the caller has seen it
	// first: a clock that was wrong may have put the turn's own time into the future.
	Turn  *v1alpha1.TemplateTurn
	Began time.Time
	// Changes are when the caller has seen other generations of the NodeConfig.
	Changes Changes
	// Dead: nothing is heard of the node, whatever its conditions say.
	Dead bool
	// Seen is what the caller has seen of the node's availability.
	Seen Availability
	// Kept is what the caller has seen of a node that was not available at its turn and keeps
	// what it had then.
	Kept Availability
	// Refused is why the API server did not take a turn of the node; empty: it did, or nobody
	// has tried. Before Retry it is not worth another attempt.
	Refused string
	Retry   time.Time
}

// Availability is when a node was available last, without a break and with one spec, by the
// observer's clock: conditions have the times of the node's.
type Availability struct {
	Since, Until time.Time
	generation   int64
	now          bool
}

// See notes that a node with this generation of its NodeConfig is available, or is not.
func (a *Availability) See(available bool, generation int64, now time.Time) {
	if available && (!a.now || a.generation != generation) {
		a.Since, a.generation = now, generation
	}
	if available || a.now {
		a.Until = now
	}
	a.now = available
}

func (a Availability) lasted(stable time.Duration) bool {
	return !a.Since.IsZero() && a.Until.Sub(a.Since) >= stable
}

// Changes are when a NodeConfig has had another spec, by the observer's clock: the last time, and
// the first of those that have come one after the other.
type Changes struct {
	First, Last time.Time
	generation  int64
}

// See notes the generation of the NodeConfig. seen is what was seen of the node before. A series
// ends when the node has been available for as long as t says, or has not changed for so long as t
// gives it.
func (c *Changes) See(generation int64, seen Availability, t *v1alpha1.NodeConfigTemplate, now time.Time) {
	if c.generation == generation {
		return
	}
	stable, deadline := times(t)
	if c.First.IsZero() || seen.generation == c.generation && seen.lasted(stable) || now.Sub(c.Last) >= deadline {
		c.First = now
	}
	c.Last, c.generation = now, generation
}

// ConditionProgressing is the type of a template's condition that has a RolloutReason.
const ConditionProgressing = "Progressing"

// RolloutReason is the reason of a template's condition Progressing.
type RolloutReason string

// The reasons, as a Deployment has them.
const (
	RolloutProgressing RolloutReason = "Progressing"
	RolloutComplete    RolloutReason = "Complete"
	RolloutStopped     RolloutReason = "ProgressDeadlineExceeded"
)

// Rollout is how far a template has reached its nodes, and what is next.
type Rollout struct {
	Nodes, Updated int
	// Next are the nodes whose turn it is now, Withdrawn those whose turn ends now, unless they
	// have followed meanwhile.
	Next, Withdrawn []Turn

	// Failed are the first of the nodes that have followed and have stopped the waves.
	Failed []string

	Reason RolloutReason
	// Message for the operator.
	Message string
	// Again is after how long time alone may change this; negative: never.
	Again time.Duration
	// Completed is the time for the template's LastCompleteTime, if the reason is
	// RolloutComplete and turns are to become history.
	Completed *metav1.Time
}

// Turn is a turn for a node.
type Turn struct {
	Config *v1alpha1.NodeConfig
	Turn   v1alpha1.TemplateTurn
}

// rollout is a template's roll-out at a moment.
type rollout struct {
	template         *v1alpha1.NodeConfigTemplate
	stable, deadline time.Duration
	now              time.Time
	stopped          bool // as far as the template's status says
}

// Next says whose turn it is. The nodes of one wave get it together; the next wave begins
// when all of them are available. The first wave of a generation, and of nodes that other
// changes have moved to the template since it was complete, has one node.
//
// A node that was not available when it got its turn proves nothing if it stays so, as long as it
// keeps what it had: waves wait
// for it until the deadline at most, and for the stable time once another node has proven the
// change. Those that became unavailable when they followed an earlier turn come first: they wait
// for the remedy. When it has not helped the first, an available node tries it. The others come
// last.
//
// A node that has not followed at the deadline, as its agent does not work, says nothing about
// the change. Its turn is withdrawn, and another node has one: agents that work again together
// do not follow together. It keeps the turn if no other node waits for one.
func Next(t *v1alpha1.NodeConfigTemplate, members []Member, now time.Time) Rollout {
	ro := rollout{template: t, now: now}
	ro.stable, ro.deadline = times(t)
	was := meta.FindStatusCondition(t.Status.Conditions, ConditionProgressing)
	ro.stopped = was != nil && was.Reason == string(RolloutStopped) && was.ObservedGeneration == t.Generation
	r := Rollout{Nodes: len(members), Reason: RolloutProgressing, Again: -1}
	var pending, wave []Member
	var late, unhelped, behind, outdated, unfit []string
	held := 0 // turns that were not followed
	proven := false
	for _, m := range members {
		if m.Updated {
			r.Updated++
		}
		own := !m.Updated && m.followed(t) // facts have changed, for which it needs no turn
		switch {
		case m.Unfit != "" && !InWave(m.Turn, t):
			unfit = append(unfit, m.fault(t))
		case own:
			outdated = append(outdated, fmt.Sprintf("%s has not taken over what has changed of its Node: see the log of its agent", m.Config.Name))
		}
		switch {
		case InWave(m.Turn, t):
			wave = append(wave, m)
			proven = proven || ro.passes(m)
		case m.Updated, own:
			if m.carried(t) && !ro.passes(m) && (m.wasAvailable() || m.Worse(t)) {
				wave = append(wave, m)
			}
		case m.Unfit == "": // else no turn is of use to it
			pending = append(pending, m)
			if m.withdrawn(t) {
				behind = append(behind, m.fault(t))
			}
		}
	}
	waiting := 0
	var slow []string // that wait for longer than the deadline
	for _, m := range wave {
		left := ro.left(m)
		overdue, failed := left <= 0, ro.failed(m)
		followed := m.followed(t)
		up := followed && m.Available(t)
		worse := followed && (m.Worse(t) || ro.recovers(m))
		witness := m.wasAvailable() || worse
		if !witness && proven && followed {
			left -= ro.deadline - ro.stable
		}
		// A caller that has just begun to look knows of no node how long it has been available.
		// It does not say that waves stop until it can, unless they had stopped before: then what
		// is not available now is said, and what had stopped them. Others may be well.
		over := ro.stopped && (left <= 0 || failed)
		if !m.Began.IsZero() {
			left = max(left, m.Began.Add(ro.stable).Sub(now))
		}
		if followed && !m.Changes.Last.IsZero() { // late, or for what has changed of its Node, but not all the time
			left = max(left, min(m.Changes.Last.Add(ro.stable).Sub(now), m.Changes.First.Add(ro.deadline).Sub(now)))
		}
		switch {
		case ro.passes(m), witness && followed && ro.brokeLater(m), worse && ro.lostLater(m):
			continue
		case !followed && left <= 0 && (len(pending) > 0 || m.Dead) && !atOnce(t):
			end := *m.Turn
			end.Withdrawn = true
			r.Withdrawn = append(r.Withdrawn, Turn{m.Config, end})
			if proven {
				behind = append(behind, m.fault(t))
			}
			if proven || m.Dead { // nor does it do anything with another template
				waiting++
				continue
			}
		case !followed && left <= 0 && (proven || !witness):
			behind = append(behind, m.fault(t))
			held++
			continue
		case !witness && !up && left <= 0:
			unhelped = append(unhelped, m.fault(t))
			continue
		}
		waiting++
		switch {
		case !up && (left <= 0 || over && (witness || !followed)):
			late = append(late, m.fault(t))
			if followed {
				r.Failed = append(r.Failed, m.Config.Name)
			}
		case up && failed && witness: // one that comes and goes is not repaired
			late = append(late, ro.brief(m))
			r.Failed = append(r.Failed, m.Config.Name)
		case overdue && up:
			slow = append(slow, ro.brief(m))
		case overdue:
			slow = append(slow, m.fault(t))
		}
		if left > 0 {
			r.again(left)
		}
		if worse && !m.Worse(t) {
			r.again(max(0, m.Kept.Since.Add(ro.stable).Sub(now)))
		}
		if up {
			r.again(max(0, m.Seen.Since.Add(ro.stable).Sub(now)))
		}
	}
	vanished, back := ro.vanished(members)
	for _, m := range back {
		r.again(max(0, m.Seen.Since.Add(ro.stable).Sub(now)))
	}
	for name, why := range vanished {
		late, r.Failed = append(late, why), append(r.Failed, name)
	}
	r.Failed = ro.first(r.Failed)
	progress := fmt.Sprintf("generation %d: %d of %d nodes are updated", t.Generation, r.Updated, r.Nodes)
	switch {
	case len(late) > 0:
		r.Reason = RolloutStopped
		r.Message = fmt.Sprintf("%s; stopped, as %d of the last wave are not available %s after it began: %s: fix the template, or set it back to what it was, and these nodes follow first; or repair the nodes, and the next wave begins; or take a node out of the template: kubectl label nodeconfig NODE %s-",
			progress, len(late), ro.deadline, list(late), v1alpha1.TemplateLabel)
	case waiting > 0:
		r.Message = fmt.Sprintf("%s, and %d of the last wave must become available", progress, waiting)
		if len(slow) > 0 {
			r.Message += ": " + list(slow)
		}
	case len(pending) == 0 && held+len(outdated) > 0:
		r.Message = fmt.Sprintf("%s, and it waits for %d nodes whose agents do not answer", progress, held+len(outdated))
		if len(outdated) > 0 {
			r.Message += ": " + list(outdated)
		}
	case len(pending) == 0 && len(unfit) > 0:
		r.Message = progress
	case len(pending) == 0:
		r.Reason, r.Message = RolloutComplete, progress
		r.Completed = completed(t, wave, now)
		behind = append(behind, unhelped...)
	case atOnce(t):
		r.Message = progress + ", and the others need no turn"
	default:
		r.Next = ro.nextWave(pending, len(members), proven, len(unhelped))
		r.Message = fmt.Sprintf("%s, and it is the turn of %d more", progress, len(r.Next))
		if len(r.Next) == 0 && len(unhelped) > 1 && !proven {
			r.Message = progress + "; those that are left are not available either, and wait: repair one of the nodes, or fix the template, or set spec.updateStrategy.rollingUpdate.maxUnavailable to 100%"
		}
		for _, m := range pending {
			if left := m.Retry.Sub(now); m.Refused != "" && left > 0 {
				r.again(left)
			}
		}
		// Thousands of nodes are not tried one by one before it is said.
		const enough = 3
		if refused := refusals(pending); len(refused) == len(pending) || len(wave) == 0 && len(refused) >= enough {
			r.Reason = RolloutStopped
			r.Message = fmt.Sprintf("%s; stopped, as the API server does not take turns, which is tried again: %s", progress, list(refused))
		}
	}
	if r.Reason == RolloutProgressing && !proven {
		if len(unhelped) > 0 {
			r.Message += fmt.Sprintf("; it has not made available what was not before: %s", list(unhelped))
		}
		// One node that nothing repairs says little. Otherwise it may be that the template helps
		// none, or that none can follow it.
		if len(behind) > 0 || len(unhelped) > 1 {
			r.Reason = RolloutStopped
		}
	}
	if len(unfit) > 0 && len(late) == 0 {
		r.Message += fmt.Sprintf("; there are %d nodes that it does not fit: %s", len(unfit), list(unfit))
	}
	if len(behind) > 0 && len(late) == 0 {
		r.Message += "; " + list(behind)
	}
	return r
}

// failedNodes is how many a template's status has: each write of it goes to all agents.
const failedNodes = 10

// first are the failed nodes for the status, those before others that it has already: what is
// left out of it is forgotten when it is deleted.
func (ro rollout) first(failed []string) []string {
	slices.Sort(failed)
	old := func(name string) bool { return slices.Contains(ro.template.Status.FailedNodes, name) }
	slices.SortStableFunc(failed, func(a, b string) int {
		switch {
		case old(a) && !old(b):
			return -1
		case old(b) && !old(a):
			return 1
		}
		return 0
	})
	failed = failed[:min(len(failed), failedNodes)]
	slices.Sort(failed)
	return failed
}

// failed says whether the node has stopped the waves of this generation.
func (ro rollout) failed(m Member) bool {
	return ro.stopped && slices.Contains(ro.template.Status.FailedNodes, m.Config.Name)
}

// vanished are the nodes that have stopped the waves of this generation and are in no wave any
// more, with why they count still: those that are not there; those that are back without their turn, as
// they were deleted in between, and those whose own facts have changed, until they have been
// available for the stable time. back are those of them that are available.
func (ro rollout) vanished(members []Member) (why map[string]string, back []Member) {
	why = map[string]string{}
	if !ro.stopped || atOnce(ro.template) {
		return nil, nil
	}
	for _, name := range ro.template.Status.FailedNodes {
		why[name] = name + " is gone since it followed, or selected no more, which repairs nothing: change the template"
		i := slices.IndexFunc(members, func(m Member) bool { return m.Config.Name == name })
		if i < 0 {
			continue
		}
		m := members[i]
		available := m.Available(ro.template)
		switch {
		case m.InWave(ro.template), available && m.Seen.lasted(ro.stable):
			delete(why, name)
			continue
		case available:
			back = append(back, m)
		}
		if given(m.Turn, ro.template) {
			why[name] = m.fault(ro.template)
		}
	}
	return why, back
}

func (r *Rollout) again(after time.Duration) {
	if r.Again < 0 || after < r.Again {
		r.Again = after
	}
}

// completed makes the turns of the last wave history. No turn is later, whichever clock made it.
func completed(t *v1alpha1.NodeConfigTemplate, wave []Member, now time.Time) *metav1.Time {
	if len(wave) == 0 && t.Status.LastCompleteTime != nil {
		return nil
	}
	last := metav1.NewTime(now.Truncate(time.Second))
	for _, m := range wave {
		if last.Before(&m.Turn.Time) {
			last = m.Turn.Time
		}
	}
	return &last
}

// nextWave is of nodes that are alike. A generation that no node has proven goes to one alone;
// unhelped is for how many it was to no avail that were not available before: after two, no
// other of these has a turn.
func (ro rollout) nextWave(pending []Member, nodes int, proven bool, unhelped int) (next []Turn) {
	t := ro.template
	if unhelped > 1 && !proven {
		pending = slices.DeleteFunc(slices.Clone(pending), func(m Member) bool { return ro.state(m) != v1alpha1.NodeAvailable })
	}
	if len(pending) == 0 {
		return nil
	}
	size := 1
	if proven {
		m := maxUnavailable(t)
		if n, err := intstr.GetScaledValueFromIntOrPercent(&m, nodes, true); err == nil {
			size = max(1, n)
		}
	}
	at := metav1.NewTime(ro.now.Truncate(time.Second))
	if end := t.Status.LastCompleteTime; end != nil && !end.Before(&at) {
		at = metav1.NewTime(end.Add(time.Second)) // or the turn would be history already
		for _, m := range pending {               // or of those that were ignored none would be the last
			if given(m.Turn, t) && !m.Turn.Time.Before(&at) {
				at = metav1.NewTime(m.Turn.Time.Add(time.Second))
			}
		}
	}
	order := []v1alpha1.NodeState{v1alpha1.NodeBroken, v1alpha1.NodeAvailable, v1alpha1.NodeUnavailable}
	if unhelped > 0 && !proven { // or every broken node would have its deadline before the first that can prove it
		order[0], order[1] = order[1], order[0]
	}
	rank := func(m Member) int {
		if m.Refused != "" || ro.idle(m) {
			return len(order)
		}
		return slices.Index(order, ro.state(m))
	}
	// Of those that were refused or did not follow each is tried again before one is twice.
	last := func(m Member) (at time.Time) {
		switch {
		case m.Refused != "":
			at = m.Retry
		case ro.idle(m): // a clock that was wrong must not put it last for as long as it was wrong
			at = m.began()
		}
		return at
	}
	slices.SortFunc(pending, func(a, b Member) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), last(a).Compare(last(b)), cmp.Compare(a.Config.Name, b.Config.Name))
	})
	first, said := rank(pending[0]), digest(t)
	for _, m := range pending {
		if len(next) == size || rank(m) != first {
			return next
		}
		if m.Refused != "" && m.Retry.After(ro.now) {
			continue
		}
		next = append(next, Turn{m.Config, v1alpha1.TemplateTurn{
			Template: t.Name, TemplateUID: t.UID, Generation: t.Generation, Time: at,
			NodeState: ro.state(m), Digest: said, SessionsUp: sessionsUp(m.Config), NotTrue: m.notTrue(t),
		}})
	}
	return next
}

// recovers says whether a node that was not available at its turn, and that has stopped the
// waves as it lost what it had, has it again for less than the stable time.
func (ro rollout) recovers(m Member) bool {
	return ro.failed(m) && !m.wasAvailable() && !m.Kept.lasted(ro.stable)
}

// state is how a node is found that is about to get its turn.
func (ro rollout) state(m Member) v1alpha1.NodeState {
	switch {
	case m.Available(ro.template):
		return v1alpha1.NodeAvailable
	case m.Turn == nil, m.Turn.NodeState == v1alpha1.NodeUnavailable && !m.Worse(ro.template), past(m.Turn, ro.template), ro.brokeLater(m):
		return v1alpha1.NodeUnavailable
	case m.ignored(ro.template) && m.Turn.NodeState != v1alpha1.NodeBroken: // that turn is not the cause
		return v1alpha1.NodeUnavailable
	case m.lags() && (!given(m.Turn, ro.template) || ro.left(m) > 0): // its agent may be about to report
		return v1alpha1.NodeUnavailable
	}
	return v1alpha1.NodeBroken
}

// idle says whether the node had the time to follow its last turn and has not.
func (ro rollout) idle(m Member) bool {
	return m.withdrawn(ro.template) || m.Turn != nil && m.ignored(ro.template) && ro.left(m) <= 0
}

// passes says whether the node has followed, and has been available for long enough since.
func (ro rollout) passes(m Member) bool {
	return m.followed(ro.template) && m.Available(ro.template) && m.Seen.lasted(ro.stable)
}

// brief says that the node is available, and not for long enough.
func (ro rollout) brief(m Member) string {
	return fmt.Sprintf("%s has not been available for %s", m.Config.Name, ro.stable)
}

// brokeLater says whether the node was seen available so long after its turn that the change
// is not the cause of what is wrong now.
func (ro rollout) brokeLater(m Member) bool {
	return !m.Available(ro.template) && m.Seen.generation == m.Config.Generation && m.Seen.lasted(ro.stable) && !m.Seen.Until.Before(m.began().Add(ro.deadline))
}

// lostLater says so of a node that was not available, and of what it had.
func (ro rollout) lostLater(m Member) bool {
	return m.Kept.generation == m.Config.Generation && m.Kept.lasted(ro.stable) && !m.Kept.Until.Before(m.began().Add(ro.deadline))
}

// left is how long the node of a wave has to become available.
func (ro rollout) left(m Member) time.Duration { return m.began().Add(ro.deadline).Sub(ro.now) }

func (m Member) began() time.Time {
	if at := m.Turn.Time.Time; at.Before(m.Began) || m.Began.IsZero() {
		return at
	}
	return m.Began
}

// followed says whether the node has followed this generation of t, even if its own facts have
// changed since.
func (m Member) followed(t *v1alpha1.NodeConfigTemplate) bool {
	return m.Updated || m.Facts || follows(m.Config, t)
}

// withdrawn says whether the node's turn for this generation of t has ended.
func (m Member) withdrawn(t *v1alpha1.NodeConfigTemplate) bool {
	return given(m.Turn, t) && m.Turn.Generation == t.Generation && m.Turn.Withdrawn
}

// ignored says whether the node has not followed its last turn.
func (m Member) ignored(t *v1alpha1.NodeConfigTemplate) bool {
	made, err := strconv.ParseInt(m.Config.Annotations[v1alpha1.TemplateGenerationAnnotation], 10, 64)
	if err != nil || m.Config.Labels[v1alpha1.TemplateLabel] != m.Turn.Template {
		return false
	}
	if m.Config.Annotations[v1alpha1.TemplateUIDAnnotation] != string(m.Turn.TemplateUID) { // generations of two objects
		return given(m.Turn, t)
	}
	return made < m.Turn.Generation
}

// hasOf says whether a node that has what t says has it of its turn. Otherwise it did not follow that
// before t was set back. Turns of earlier builds have no digest.
func (m Member) hasOf(t *v1alpha1.NodeConfigTemplate) bool {
	if m.Turn.Digest == "" {
		return !m.ignored(t)
	}
	return m.Turn.Digest == digest(t)
}

// digest is short for what t says of its nodes.
func digest(t *v1alpha1.NodeConfigTemplate) string {
	said, _ := json.Marshal(t.Spec.Template) // plain fields: it cannot fail
	sum := sha256.Sum256(said)
	return hex.EncodeToString(sum[:8])
}

// InWave says whether the node is in a wave of t: by its turn for this generation, or as
// it has followed an earlier one to what the template says still.
func (m Member) InWave(t *v1alpha1.NodeConfigTemplate) bool {
	return InWave(m.Turn, t) || m.carried(t)
}

// carried says whether the node has followed an earlier generation of t to what this one says.
// That others of the template's fields change repairs no node, nor that its own facts do. A node
// that has what this one says because it has not followed says nothing about it.
func (m Member) carried(t *v1alpha1.NodeConfigTemplate) bool {
	return !atOnce(t) && m.followed(t) && given(m.Turn, t) && m.Turn.Generation < t.Generation && !m.Turn.Withdrawn && !past(m.Turn, t) && m.hasOf(t)
}

// wasAvailable says whether the node was when it got its turn.
func (m Member) wasAvailable() bool {
	return m.Turn.NodeState == v1alpha1.NodeAvailable || m.Turn.NodeState == ""
}

// Worse says whether a node that was not available when it got its turn has lost since what it
// had then: its last session, or a condition that was True.
func (m Member) Worse(t *v1alpha1.NodeConfigTemplate) bool {
	if m.Turn == nil || m.wasAvailable() || atOnce(t) {
		return false
	}
	if m.Turn.SessionsUp > 0 && (m.Dead || m.lags() || sessionsUp(m.Config) == 0) {
		return true
	}
	return len(m.Turn.NotTrue) > 0 && slices.ContainsFunc(m.faults(t), func(c metav1.Condition) bool { return !slices.Contains(m.Turn.NotTrue, c.Type) })
}

// notTrue are the types of the conditions that are not True, or of which nothing is known.
func (m Member) notTrue(t *v1alpha1.NodeConfigTemplate) (types []string) {
	if m.lags() {
		return slices.Clone(decisive)
	}
	for _, c := range m.faults(t) {
		types = append(types, c.Type)
	}
	return types
}

// lags says whether the node's agent has not reported with the spec that the node has now.
func (m Member) lags() bool {
	return m.Config.Status.ObservedGeneration != m.Config.Generation || meta.FindStatusCondition(m.Config.Status.Conditions, "Ready") == nil
}

// fault is why the node is not available, with its name.
func (m Member) fault(t *v1alpha1.NodeConfigTemplate) string {
	name := m.Config.Name
	if m.Unfit != "" && (!m.followed(t) || m.Available(t)) {
		return fmt.Sprintf("%s: %s", name, m.Unfit)
	}
	if !m.followed(t) {
		return fmt.Sprintf("%s has not followed: see the log of its agent", name)
	}
	for _, c := range m.faults(t) {
		return fmt.Sprintf("%s: %s is %s: %s", name, c.Type, c.Status, cmp.Or(c.Message, c.Reason))
	}
	return name
}

// Available says whether a node of t serves its pods and is reached, as far as its agent has
// reported with the spec that it has now.
func (m Member) Available(t *v1alpha1.NodeConfigTemplate) bool { return len(m.faults(t)) == 0 }

// decisive are the conditions that decide whether a node is available.
var decisive = []string{"Ready", "Accepted", "RoutingConfigured", "SessionsUp"}

// faults are the conditions for which the node is unavailable. Ready says neither
// that the agent has taken the newest spec nor that routers know the way to the pods, so the
// conditions of these count too. SessionsUp does not say that the sessions that were up
// before the turn are not asked for any more.
func (m Member) faults(t *v1alpha1.NodeConfigTemplate) (all []metav1.Condition) {
	nc := m.Config
	if m.lags() {
		return []metav1.Condition{{Type: "Ready", Status: metav1.ConditionUnknown, Message: fmt.Sprintf("its agent has not reported about generation %d of the NodeConfig: see its log", nc.Generation)}}
	}
	for _, kind := range decisive {
		if c := meta.FindStatusCondition(nc.Status.Conditions, kind); c != nil && c.Status != metav1.ConditionTrue {
			all = append(all, *c)
		}
	}
	if m.InWave(t) && !atOnce(t) && m.Turn.SessionsUp > 0 && sessionsUp(nc) == 0 {
		all = append(all, metav1.Condition{Type: "SessionsUp", Status: metav1.ConditionUnknown, Message: fmt.Sprintf(
			"the node had %d sessions up before its turn, and has none now; if that is meant, set spec.updateStrategy.rollingUpdate.maxUnavailable to 100%%", m.Turn.SessionsUp)})
	}
	if m.Dead && len(all) == 0 {
		all = append(all, metav1.Condition{Type: "Ready", Status: metav1.ConditionUnknown, Message: "nothing is heard of the node: see whether it works"})
	}
	return all
}

func sessionsUp(nc *v1alpha1.NodeConfig) (n int32) {
	for _, s := range nc.Status.Sessions {
		if s.Up {
			n++
		}
	}
	return n
}

// refusals are the errors of those whose turn the API server did not take.
func refusals(pending []Member) (all []string) {
	for _, m := range pending {
		if m.Refused != "" {
			all = append(all, fmt.Sprintf("%s: %s", m.Config.Name, m.Refused))
		}
	}
	return all
}

// list is the first of what there is, each shortened: a condition's message has an end.
func list(all []string) string {
	const most, longest = 3, 500
	slices.Sort(all)
	rest := ""
	if len(all) > most {
		rest = fmt.Sprintf("; and %d more", len(all)-most)
		all = all[:most]
	}
	all = slices.Clone(all)
	for i, text := range all {
		if len(text) > longest {
			all[i] = strings.ToValidUTF8(text[:longest], "") + "…"
		}
	}
	return strings.Join(all, "; ") + rest
}
