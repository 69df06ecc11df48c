package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// InTurn is the decision for the moment: current stays as it is until it is the node's turn
// in the template's roll-out. What cannot cut the node off does not wait: its first
// NodeConfig, a change of its own facts under the template that it follows already, and a
// change of the template that leaves the node's spec as it is.
func (v Decision) InTurn(current *v1alpha1.NodeConfig) Decision {
	if v.Action != Update || atOnce(v.Template) || follows(current, v.Template) || UpToDate(v, current) {
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

// follows says whether current was made from this generation of t.
func follows(current *v1alpha1.NodeConfig, t *v1alpha1.NodeConfigTemplate) bool {
	return current.Labels[v1alpha1.TemplateLabel] == t.Name &&
		current.Annotations[v1alpha1.TemplateGenerationAnnotation] == fmt.Sprint(t.Generation)
}

// InWave says whether turn, which may be nil, is one to follow this generation of t.
func InWave(turn *v1alpha1.TemplateTurn, t *v1alpha1.NodeConfigTemplate) bool {
	return turn != nil && turn.Template == t.Name && turn.Generation == t.Generation
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

// Member is a node of a template: its NodeConfig is made from it or will be.
type Member struct {
	Config *v1alpha1.NodeConfig
	// Updated: the spec is what the template says.
	Updated bool
	// Turn is the last that the node was given, or nil.
	Turn *v1alpha1.TemplateTurn
	// AvailableSince is since when the node is known to be available with the spec that it
	// has; zero: it is not.
	AvailableSince time.Time
}

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
	// Next are the nodes whose turn it is now.
	Next   []*v1alpha1.NodeConfig
	Reason RolloutReason
	// Message for the operator.
	Message string
	// Again is after how long time alone may change this; negative: never.
	Again time.Duration
}

// Next says whose turn it is. The nodes of one wave get it together; the next wave begins
// when all of them are available. The first wave of a generation has one node.
//
// A node that was unavailable before its turn proves nothing about the template, so it comes
// after all others, and no wave waits for it unless it is the first. A node that became
// unavailable when it followed an earlier generation comes first, with all that are like it:
// they wait for the remedy, and one that it does not help does not hold up the others.
func Next(t *v1alpha1.NodeConfigTemplate, members []Member, now time.Time) Rollout {
	stable := seconds(t.Spec.MinReadySeconds, 60)
	// A template that was written before the rule on both may have less.
	deadline := max(seconds(t.Spec.ProgressDeadlineSeconds, 180), stable+time.Second)
	r := Rollout{Nodes: len(members), Reason: RolloutProgressing, Again: -1}
	var pending, wave []Member
	proven := false
	for _, m := range members {
		inWave := InWave(m.Turn, t)
		if m.Updated {
			r.Updated++
		} else if !inWave {
			pending = append(pending, m)
		}
		if inWave {
			wave = append(wave, m)
			proven = proven || m.Updated && m.availableFor(stable, now)
		}
	}
	var late []string
	waiting := 0
	for _, m := range wave {
		excused := !m.available() && !m.brokenWithin(deadline) && (proven || len(pending) == 0)
		if m.Updated && (m.availableFor(stable, now) || excused) {
			continue
		}
		waiting++
		if left := m.Turn.Time.Add(deadline).Sub(now); left > 0 {
			r.again(left)
		} else if !m.Updated || m.AvailableSince.IsZero() {
			late = append(late, m.fault())
		}
		if !m.AvailableSince.IsZero() {
			r.again(max(0, m.AvailableSince.Add(stable).Sub(now)))
		}
	}
	progress := fmt.Sprintf("generation %d: %d of %d nodes are updated", t.Generation, r.Updated, r.Nodes)
	switch {
	case len(late) > 0:
		r.Reason = RolloutStopped
		r.Message = fmt.Sprintf("%s; stopped, as %d of the last wave are not available %s after it began: %s: fix the template, or set it back to what it was, and these nodes follow first; or repair the nodes, and the next wave begins",
			progress, len(late), deadline, list(late))
	case waiting > 0:
		r.Message = fmt.Sprintf("%s, and %d of the last wave must become available", progress, waiting)
	case len(pending) == 0:
		r.Reason, r.Message = RolloutComplete, progress
	default:
		r.Next = nextWave(t, pending, len(members), proven, deadline)
		r.Message = fmt.Sprintf("%s, and it is the turn of %d more", progress, len(r.Next))
	}
	return r
}

func (r *Rollout) again(after time.Duration) {
	if r.Again < 0 || after < r.Again {
		r.Again = after
	}
}

func nextWave(t *v1alpha1.NodeConfigTemplate, pending []Member, nodes int, proven bool, deadline time.Duration) (next []*v1alpha1.NodeConfig) {
	size := 1
	if proven || atOnce(t) {
		m := maxUnavailable(t)
		if n, err := intstr.GetScaledValueFromIntOrPercent(&m, nodes, true); err == nil {
			size = max(1, n)
		}
	}
	const broken, available, unavailable = 0, 1, 2
	rank := func(m Member) int {
		switch {
		case m.available():
			return available
		case m.brokenWithin(deadline):
			return broken
		}
		return unavailable
	}
	slices.SortFunc(pending, func(a, b Member) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Config.Name, b.Config.Name))
	})
	for _, m := range pending {
		switch first := rank(pending[0]); {
		case first == broken && rank(m) == broken: // all of them, whatever a wave may have
		case first == broken, len(next) == size, first != unavailable && rank(m) == unavailable:
			return next
		}
		next = append(next, m.Config)
	}
	return next
}

// availableFor says whether the node has been available that long.
func (m Member) availableFor(stable time.Duration, now time.Time) bool {
	return !m.AvailableSince.IsZero() && now.Sub(m.AvailableSince) >= stable
}

func (m Member) available() bool { return len(faults(m.Config)) == 0 }

// brokenWithin says whether the node became unavailable by its last turn: at most that long
// after it, or not seen to apply it.
func (m Member) brokenWithin(deadline time.Duration) bool {
	if m.Turn == nil {
		return false
	}
	for _, c := range faults(m.Config) {
		since := c.LastTransitionTime
		if since.IsZero() || !since.Time.Before(m.Turn.Time.Time) && since.Time.Before(m.Turn.Time.Add(deadline)) {
			return true
		}
	}
	return false
}

// fault is why the node is not available, with its name.
func (m Member) fault() string {
	name := m.Config.Name
	if !m.Updated {
		return fmt.Sprintf("%s has not followed: see the log of its agent", name)
	}
	for _, c := range faults(m.Config) {
		return fmt.Sprintf("%s: %s is %s: %s", name, c.Type, c.Status, cmp.Or(c.Message, c.Reason))
	}
	return name
}

// Available says whether a node serves its pods and is reached, as far as its agent has
// reported with the spec that it has now.
func Available(nc *v1alpha1.NodeConfig) bool { return len(faults(nc)) == 0 }

// faults are the conditions for which the node is unavailable. Ready says neither
// that the agent has taken the newest spec nor that routers know the way to the pods, so the
// conditions of these count too. A condition without a time stands for a spec that the agent
// has not reported about yet.
func faults(nc *v1alpha1.NodeConfig) (all []metav1.Condition) {
	ready := meta.FindStatusCondition(nc.Status.Conditions, "Ready")
	if ready == nil || nc.Status.ObservedGeneration != nc.Generation {
		return []metav1.Condition{{Type: "Ready", Status: metav1.ConditionUnknown, Message: fmt.Sprintf("its agent has not reported about generation %d of the NodeConfig: see its log", nc.Generation)}}
	}
	if ready.Status != metav1.ConditionTrue {
		all = append(all, *ready)
	}
	for _, kind := range []string{"Accepted", "RoutingConfigured", "SessionsUp"} {
		if c := meta.FindStatusCondition(nc.Status.Conditions, kind); c != nil && c.Status != metav1.ConditionTrue {
			all = append(all, *c)
		}
	}
	return all
}

// list is the first of what there is.
func list(all []string) string {
	const most = 3
	slices.Sort(all)
	if len(all) > most {
		return fmt.Sprintf("%s; and %d more", strings.Join(all[:most], "; "), len(all)-most)
	}
	return strings.Join(all, "; ")
}
