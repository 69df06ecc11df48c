package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
)

// rollouts gives nodes the turns to follow changes of templates. The agents write the
// NodeConfigs. All that it must remember is in the objects: another instance goes on where
// this one ends. It then takes a node that is not available for one that its change broke.
type rollouts struct {
	world   *world
	api     *kube.Client
	events  *kube.Recorder
	log     *slog.Logger
	metrics *metrics

	members map[types.UID]*member   // NodeConfigs
	reports map[types.UID]*reported // NodeConfigTemplates
}

// member is what is known of a NodeConfig.
type member struct {
	of       madeOf
	template string // "": none selects the node
	updated  bool
	facts    bool   // see [fleet.Member]
	unfit    string // likewise

	turn    written[*v1alpha1.TemplateTurn]
	began   began
	changes fleet.Changes
	seen    fleet.Availability
	kept    fleet.Availability
	refused refusal
}

// refusal is why the API server did not take the node's turn, and when it is asked again.
type refusal struct {
	why      string
	conflict bool // the answer before was one
	again    time.Time
	pause    backoff.Backoff
}

// began is when this instance has seen a turn first.
type began struct {
	turn *v1alpha1.TemplateTurn
	at   time.Time
}

// reported is what was written of a template last, and when.
type reported struct {
	status written[v1alpha1.NodeConfigTemplateStatus]
	at     time.Time
}

// written is a value that was written: the cache may not have it yet.
type written[T any] struct {
	cached T  // what the cache had last
	value  *T // what was written since; nil: the cache has it
}

func (w *written[T]) set(value T) { w.value = &value }

// latest is the value at the API server, as far as it is known: what was written, until the
// cache has anything else than it had.
func (w *written[T]) latest(cached T) T {
	if w.value == nil || !equality.Semantic.DeepEqual(cached, w.cached) {
		*w = written[T]{cached: cached}
		return cached
	}
	return *w.value
}

// madeOf is all that decides which template a NodeConfig is made from, and whether it is
// what that says. To compute it for each change of a status would cost too much.
type madeOf struct {
	generation int64
	templated  bool
	node       *corev1.Node
	templates  int64
}

const (
	rolloutsPause = 500 * time.Millisecond // between two passes
	turnWriters   = 16                     // at a time
	// Each write of a template's status goes to all agents: one that says nothing new but
	// counts and reasons waits for so long after the last.
	reportPause = time.Minute
)

func newMember() *member {
	return &member{refused: refusal{pause: backoff.Backoff{First: time.Second, Last: 5 * time.Minute, Jitter: 0.2}}}
}

// decide notes which template the NodeConfig is, or would be, made from, and whether it is what that says.
func (m *member) decide(nc *v1alpha1.NodeConfig, node *corev1.Node, all []*v1alpha1.NodeConfigTemplate) {
	v := fleet.Decide(fleet.NodeOf(node), nc, all)
	m.updated, m.facts, m.template, m.unfit = fleet.UpToDate(v, nc), fleet.FactsOnly(v, nc), "", ""
	if v.Template != nil {
		m.template = v.Template.Name
	}
	if v.Reason == fleet.NotApplicable {
		m.unfit = v.Message
	}
}

// Run works until ctx ends.
func (r *rollouts) Run(ctx context.Context) {
	r.members, r.reports = map[types.UID]*member{}, map[types.UID]*reported{}
	changed := cell.Signal()
	r.world.heard.Notify(changed)
	retry := backoff.Backoff{First: 500 * time.Millisecond, Last: 30 * time.Second, Jitter: 0.2}
	follow(ctx, changed, rolloutsPause, func() time.Duration {
		again, err := r.pass(ctx)
		if err == nil || ctx.Err() != nil {
			retry.Reset()
			return again
		}
		delay := retry.Next()
		r.log.Warn("cannot roll out a NodeConfigTemplate, will retry", "error", err, "retry", delay)
		if again >= 0 {
			delay = min(delay, again) // the other nodes and templates do not wait for it
		}
		return delay
	})
}

// pass returns after how long it is worth another look though nothing has changed; negative:
// never.
func (r *rollouts) pass(ctx context.Context) (again time.Duration, failed error) {
	now := time.Now()
	seen := r.world.templatesSeen.Load() // first: a change meanwhile is looked at again
	templates := r.world.templates.List()
	there := map[types.UID]bool{}
	for i, t := range templates {
		there[t.UID] = true
		if r.reports[t.UID] == nil {
			r.reports[t.UID] = &reported{}
		}
		latest := *t
		latest.Status = r.reports[t.UID].status.latest(t.Status)
		templates[i] = &latest
	}
	maps.DeleteFunc(r.reports, func(uid types.UID, _ *reported) bool { return !there[uid] })
	of, following := r.observe(templates, seen, now)
	again = -1
	stopped := int64(0)
	for _, t := range templates {
		t.Status.FailedNodes = stillFailed(t.Status.FailedNodes, t.Name, following)
		rollout := fleet.Next(t, of[t.Name], now)
		if rollout.Reason == fleet.RolloutStopped {
			stopped++
		}
		given, err := r.giveTurns(ctx, t, rollout.Next)
		if err != nil {
			failed = err
		}
		if err := r.withdrawTurns(ctx, t, rollout.Withdrawn); err != nil {
			failed = err
		}
		wait, err := r.report(ctx, t, rollout, given > 0, now)
		if err != nil {
			failed = err
		}
		for _, after := range []time.Duration{rollout.Again, wait} {
			if after >= 0 && (again < 0 || after < again) {
				again = after
			}
		}
	}
	r.metrics.stopped.Store(stopped)
	return again, failed
}

// observe looks at all NodeConfigs, and returns those that templates make, by template,
// without those of nodes of which nothing is heard. A node that has the turn counts whether it
// is heard or not: the change may have cut it off. following has the template of which each NodeConfig of a
// node that is there was made, "" if of none.
func (r *rollouts) observe(all []*v1alpha1.NodeConfigTemplate, seen int64, now time.Time) (of map[string][]fleet.Member, following map[string]string) {
	byName := map[string]*v1alpha1.NodeConfigTemplate{}
	for _, t := range all {
		byName[t.Name] = t
	}
	of, following = map[string][]fleet.Member{}, map[string]string{}
	there := map[types.UID]bool{}
	for _, nc := range r.world.configs.List() {
		there[nc.UID] = true
		m := r.members[nc.UID]
		if m == nil {
			m = newMember()
			r.members[nc.UID] = m
		}
		node, ok := r.world.nodes.Get(nc.Name)
		if !ok {
			continue
		}
		if made := (madeOf{nc.Generation, fleet.Templated(nc), node, seen}); m.of != made {
			m.of = made
			m.decide(nc, node, all)
		}
		following[nc.Name] = nc.Labels[v1alpha1.TemplateLabel]
		t := byName[m.template]
		if t == nil {
			continue
		}
		turn := m.turn.latest(nc.Status.TemplateTurn)
		if !equality.Semantic.DeepEqual(m.began.turn, turn) {
			m.began = began{turn, now}
		}
		m.changes.See(nc.Generation, m.seen, t, now)
		is := fleet.Member{Config: nc, Updated: m.updated, Facts: m.facts, Unfit: m.unfit, Turn: turn, Began: m.began.at, Changes: m.changes, Refused: m.refused.why, Retry: m.refused.again}
		_, _, is.Dead = silence(node)
		m.seen.See(is.Available(t), nc.Generation, now)
		m.kept.See(!is.Worse(t), nc.Generation, now)
		is.Seen, is.Kept = m.seen, m.kept
		if is.Dead && !is.InWave(t) {
			continue
		}
		of[t.Name] = append(of[t.Name], is)
	}
	maps.DeleteFunc(r.members, func(uid types.UID, _ *member) bool { return !there[uid] })
	return of, following
}

// stillFailed are the nodes that stop waves of the template, without those that somebody has taken
// out of it: another template has made their NodeConfigs, or none has. What became of one that is gone is
// not known, and one that the template does not fit for a moment, or does not select, has what it had.
func stillFailed(failed []string, template string, following map[string]string) (names []string) {
	for _, name := range failed {
		if now, known := following[name]; !known || now == template {
			names = append(names, name)
		}
	}
	return names
}

// giveTurns returns how many nodes have got their turn.
func (r *rollouts) giveTurns(ctx context.Context, t *v1alpha1.NodeConfigTemplate, next []fleet.Turn) (given int, failed error) {
	var (
		mu      sync.Mutex // guards given and failed
		writers sync.WaitGroup
		slots   = make(chan struct{}, turnWriters)
	)
	for _, n := range next {
		m := r.members[n.Config.UID]
		slots <- struct{}{}
		writers.Go(func() {
			defer func() { <-slots }()
			err := r.api.PatchTemplateTurn(ctx, n.Config, n.Turn)
			mu.Lock()
			defer mu.Unlock()
			conflict := apierrors.IsConflict(err)
			again := conflict && m.refused.conflict // else it may be another object by now
			m.refused.why, m.refused.conflict = "", conflict
			if err != nil {
				if refused(err) || again {
					m.refused.why, m.refused.again = err.Error(), time.Now().Add(m.refused.pause.Next())
				}
				if !conflict || again {
					r.metrics.failures.Inc()
				}
				failed = fmt.Errorf("NodeConfigTemplate %s: give node %s its turn: %w", t.Name, n.Config.Name, err)
				return
			}
			m.refused.pause.Reset()
			m.turn.set(&n.Turn)
			given++
		})
	}
	writers.Wait()
	if given > 0 {
		r.log.Info("gave nodes the turn to follow a template", "template", t.Name, "generation", t.Generation, "nodes", given, "first", next[0].Config.Name)
	}
	return given, failed
}

// withdrawTurns ends turns that nodes have not followed.
func (r *rollouts) withdrawTurns(ctx context.Context, t *v1alpha1.NodeConfigTemplate, ended []fleet.Turn) (failed error) {
	for _, n := range ended {
		switch err := r.api.PatchTemplateTurn(ctx, n.Config, n.Turn); {
		case err != nil:
			r.failure(err)
			failed = fmt.Errorf("NodeConfigTemplate %s: withdraw the turn of node %s: %w", t.Name, n.Config.Name, err)
		default:
			r.members[n.Config.UID].turn.set(&n.Turn)
			r.log.Warn("withdrew the turn of a node that does not follow", "template", t.Name, "generation", t.Generation, "node", n.Config.Name)
		}
	}
	return failed
}

// failure counts a write that the API server has not taken, unless the object has changed.
func (r *rollouts) failure(err error) {
	if !apierrors.IsConflict(err) {
		r.metrics.failures.Inc()
	}
}

// refused says whether the API server will answer the same again, for this object at least. It
// calls it an internal error if an admission webhook does not answer, or does not answer itself
// for as long as that may take.
func refused(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err) || apierrors.IsInternalError(err) ||
		apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || errors.Is(err, context.DeadlineExceeded)
}

// report writes how far a template is: at once when a wave begins, stops or ends, and what
// changes in between when it is due. It returns after how long that is; negative: nothing is.
func (r *rollouts) report(ctx context.Context, t *v1alpha1.NodeConfigTemplate, rollout fleet.Rollout, began bool, now time.Time) (time.Duration, error) {
	was := meta.FindStatusCondition(t.Status.Conditions, fleet.ConditionProgressing)
	reason := string(rollout.Reason)
	same := was != nil && was.Reason == reason && was.ObservedGeneration == t.Generation
	status := *t.Status.DeepCopy()
	status.ObservedGeneration, status.Nodes, status.UpdatedNodes = t.Generation, int32(rollout.Nodes), int32(rollout.Updated)
	status.FailedNodes = rollout.Failed
	if rollout.Completed != nil {
		status.LastCompleteTime = rollout.Completed
	}
	c := metav1.Condition{Type: fleet.ConditionProgressing, Status: metav1.ConditionTrue, Reason: reason, Message: rollout.Message, ObservedGeneration: t.Generation}
	if rollout.Reason == fleet.RolloutStopped {
		c.Status = metav1.ConditionFalse
	}
	c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	meta.SetStatusCondition(&status.Conditions, c)
	if equality.Semantic.DeepEqual(status, t.Status) {
		return -1, nil
	}
	last := r.reports[t.UID]
	// A reason that others alternate with is paced: that waves stop or end is said at once, and
	// that they go on when one begins. A node that has stopped them is written before it can be deleted.
	more := slices.ContainsFunc(status.FailedNodes, func(name string) bool { return !slices.Contains(t.Status.FailedNodes, name) })
	prompt := began || more || !same && (rollout.Reason != fleet.RolloutProgressing || was == nil || was.ObservedGeneration != t.Generation)
	if wait := last.at.Add(reportPause).Sub(now); !prompt && wait > 0 {
		return wait, nil
	}
	if err := r.api.PatchTemplateStatus(ctx, t, status); err != nil {
		r.failure(err)
		return -1, fmt.Errorf("NodeConfigTemplate %s: write its status: %w", t.Name, err)
	}
	last.status.set(status)
	last.at = now
	switch {
	case rollout.Reason == fleet.RolloutStopped && !same:
		r.log.Error("the roll-out of a template stops", "template", t.Name, "message", rollout.Message)
		r.events.ObjectEvent(kube.NodeConfigTemplate, "", t.Name, t.UID, kube.Warning, "RolloutStopped", "RollOut", rollout.Message)
	case rollout.Reason == fleet.RolloutComplete && was != nil && was.ObservedGeneration == t.Generation && !same:
		r.events.ObjectEvent(kube.NodeConfigTemplate, "", t.Name, t.UID, kube.Normal, "RolloutComplete", "RollOut", rollout.Message)
	}
	return -1, nil
}
