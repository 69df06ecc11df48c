package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
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
// NodeConfigs. All that it must remember is in the NodeConfigs: another instance goes on
// where this one ends.
type rollouts struct {
	world   *world
	api     *kube.Client
	events  *kube.Recorder
	log     *slog.Logger
	metrics *metrics

	members map[types.UID]*member // NodeConfigs
}

// member is what is known of a NodeConfig.
type member struct {
	of       madeOf
	template *v1alpha1.NodeConfigTemplate // nil: none applies
	updated  bool

	available struct { // since when, with which spec
		since      time.Time
		generation int64
	}
	given *v1alpha1.TemplateTurn // which the cache may not have yet
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
	conditionProgressing = "Progressing"
	rolloutsPause        = 500 * time.Millisecond // between two passes
	turnWriters          = 16                     // at a time
)

// Run works until ctx ends.
func (r *rollouts) Run(ctx context.Context) {
	r.members = map[types.UID]*member{}
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
		return delay
	})
}

// pass returns after how long it is worth another look though nothing has changed; negative:
// never.
func (r *rollouts) pass(ctx context.Context) (again time.Duration, failed error) {
	now := time.Now()
	seen := r.world.templatesSeen.Load() // first: a change meanwhile is looked at again
	templates := r.world.templates.List()
	of := r.observe(templates, seen, now)
	again = -1
	stopped := int64(0)
	for _, t := range templates {
		rollout := fleet.Next(t, of[t.Name], now)
		if rollout.Reason == fleet.RolloutStopped {
			stopped++
		}
		if rollout.Again >= 0 && (again < 0 || rollout.Again < again) {
			again = rollout.Again
		}
		if err := r.giveTurns(ctx, t, rollout.Next, now); err != nil {
			failed = err
		}
		if err := r.report(ctx, t, rollout, now); err != nil {
			failed = err
		}
	}
	r.metrics.stopped.Store(stopped)
	return again, failed
}

// observe looks at all NodeConfigs, and returns those that templates make, by template,
// without those of nodes of which nothing is heard. A node that has the turn counts whether it
// is heard or not: the change may have cut it off.
func (r *rollouts) observe(all []*v1alpha1.NodeConfigTemplate, seen int64, now time.Time) map[string][]fleet.Member {
	of := map[string][]fleet.Member{}
	there := map[types.UID]bool{}
	for _, nc := range r.world.configs.List() {
		there[nc.UID] = true
		m := r.members[nc.UID]
		if m == nil {
			m = &member{}
			r.members[nc.UID] = m
		}
		node, ok := r.world.nodes.Get(nc.Name)
		if !ok {
			continue
		}
		if made := (madeOf{nc.Generation, fleet.Templated(nc), node, seen}); m.of != made {
			v := fleet.Decide(fleet.NodeOf(node), nc, all)
			m.of, m.template, m.updated = made, v.Template, fleet.UpToDate(v, nc)
		}
		if generation := nc.Generation; !fleet.Available(nc) {
			m.available.since = time.Time{}
		} else if m.available.since.IsZero() || m.available.generation != generation {
			m.available.since, m.available.generation = now, generation
		}
		if m.template == nil {
			continue
		}
		turn := nc.Status.TemplateTurn
		if m.given != nil && (turn == nil || !m.given.Time.Before(&turn.Time)) {
			turn = m.given
		}
		if _, _, dead := silence(node); dead && !fleet.InWave(turn, m.template) {
			continue
		}
		of[m.template.Name] = append(of[m.template.Name], fleet.Member{Config: nc, Updated: m.updated, Turn: turn, AvailableSince: m.available.since})
	}
	maps.DeleteFunc(r.members, func(uid types.UID, _ *member) bool { return !there[uid] })
	return of
}

func (r *rollouts) giveTurns(ctx context.Context, t *v1alpha1.NodeConfigTemplate, next []*v1alpha1.NodeConfig, now time.Time) (failed error) {
	if len(next) == 0 {
		return nil
	}
	turn := v1alpha1.TemplateTurn{Template: t.Name, Generation: t.Generation, Time: metav1.NewTime(now.Truncate(time.Second))}
	var (
		mu      sync.Mutex // guards failed
		writers sync.WaitGroup
		slots   = make(chan struct{}, turnWriters)
	)
	for _, nc := range next {
		m := r.members[nc.UID]
		slots <- struct{}{}
		writers.Go(func() {
			defer func() { <-slots }()
			err := r.api.PatchTemplateTurn(ctx, nc, turn)
			switch {
			case err == nil:
				m.given = &turn
			case apierrors.IsNotFound(err), apierrors.IsConflict(err): // it is another object by now
			default:
				mu.Lock()
				defer mu.Unlock()
				failed = fmt.Errorf("NodeConfigTemplate %s: give node %s its turn: %w", t.Name, nc.Name, err)
			}
		})
	}
	writers.Wait()
	r.log.Info("gave nodes the turn to follow a template", "template", t.Name, "generation", t.Generation, "nodes", len(next), "first", next[0].Name)
	return failed
}

// report writes how far a template is, when a wave begins, stops or ends. Each write goes to
// all agents, so what changes in between is not worth one.
func (r *rollouts) report(ctx context.Context, t *v1alpha1.NodeConfigTemplate, rollout fleet.Rollout, now time.Time) error {
	was := meta.FindStatusCondition(t.Status.Conditions, conditionProgressing)
	reason := string(rollout.Reason)
	same := was != nil && was.Reason == reason && was.ObservedGeneration == t.Generation
	if same && len(rollout.Next) == 0 && (rollout.Reason != fleet.RolloutComplete || t.Status.Nodes == int32(rollout.Nodes)) {
		return nil
	}
	status := v1alpha1.NodeConfigTemplateStatus{
		ObservedGeneration: t.Generation, Nodes: int32(rollout.Nodes), UpdatedNodes: int32(rollout.Updated),
		Conditions: append([]metav1.Condition{}, t.Status.Conditions...),
	}
	c := metav1.Condition{Type: conditionProgressing, Status: metav1.ConditionTrue, Reason: reason, Message: rollout.Message, ObservedGeneration: t.Generation}
	if rollout.Reason == fleet.RolloutStopped {
		c.Status = metav1.ConditionFalse
	}
	c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	meta.SetStatusCondition(&status.Conditions, c)
	if err := r.api.PatchTemplateStatus(ctx, t, status); err != nil {
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // it is another object by now
			return nil
		}
		return fmt.Errorf("NodeConfigTemplate %s: write its status: %w", t.Name, err)
	}
	switch {
	case rollout.Reason == fleet.RolloutStopped:
		r.log.Error("the roll-out of a template stops", "template", t.Name, "message", rollout.Message)
		r.events.ObjectEvent(kube.NodeConfigTemplate, "", t.Name, t.UID, kube.Warning, "RolloutStopped", "RollOut", rollout.Message)
	case rollout.Reason == fleet.RolloutComplete && was != nil && was.ObservedGeneration == t.Generation && !same:
		r.events.ObjectEvent(kube.NodeConfigTemplate, "", t.Name, t.UID, kube.Normal, "RolloutComplete", "RollOut", rollout.Message)
	}
	return nil
}
