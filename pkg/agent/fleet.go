//go:build linux

package agent

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/fleet"
)

// conditionTemplated: the NodeConfig is what its template says. One that is written
// by hand has no such condition.
const conditionTemplated = "Templated"

// followFleet makes and keeps the NodeConfig of this node where it comes from a
// template, whenever the templates, the Node or the NodeConfig change. That a
// NodeConfig is there, and applies, is followNode's.
func (a *Agent) followFleet(ctx context.Context) error {
	const firstRetry, lastRetry = time.Second, 30 * time.Second
	delay := firstRetry
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		case <-a.fleetDue:
		}
		// A world that is known by half decides nothing.
		if !a.ownNode.Synced() || !a.templates.Synced() || !a.nodeConfig.Synced() {
			continue
		}
		v := a.decideFleet()
		err := a.carryOut(ctx, v)
		switch {
		case err == nil:
			retry.Stop()
			delay = firstRetry
		case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err):
			// Somebody was quicker. What it is now is about to be told.
			retry.Reset(lastRetry)
			continue
		default:
			a.Log.Warn("the NodeConfig of a template is not written", "nodeconfig", a.NodeName, "error", err, "retry", delay)
			v = fleet.Verdict{Reason: "NotWritten", Message: fmt.Sprintf("%s: %s", v.Message, err)}
			retry.Reset(delay)
			delay = min(2*delay, lastRetry)
		}
		a.noteFleet(v)
	}
}

func (a *Agent) decideFleet() fleet.Verdict {
	current, _ := a.nodeConfig.Get(a.NodeName)
	node, ok := a.ownNode.Get(a.NodeName)
	if !ok && (current == nil || fleet.Templated(current)) {
		return fleet.Verdict{Reason: fleet.NotApplicable, Message: fmt.Sprintf("there is no Node %s for a NodeConfigTemplate to select: see why the kubelet does not register it", a.NodeName)}
	}
	if !ok {
		return fleet.Verdict{Reason: fleet.ByHand}
	}
	return fleet.Decide(fleet.NodeOf(node), current, a.templates.List())
}

func (a *Agent) carryOut(ctx context.Context, v fleet.Verdict) (err error) {
	switch v.Action {
	case fleet.Create:
		err = a.api.CreateNodeConfig(ctx, v.Object)
	case fleet.Update:
		err = a.api.UpdateNodeConfig(ctx, v.Object)
	case fleet.Leave:
		return nil
	}
	if err == nil {
		a.Log.Info("the NodeConfig is written from a template", "nodeconfig", v.Object.Name, "from", v.Message)
	}
	return err
}

// noteFleet has the verdict told: in the condition, and while there is no NodeConfig
// in what calls are answered.
func (a *Agent) noteFleet(v fleet.Verdict) {
	v.Action, v.Object = fleet.Leave, nil
	if was := a.fleet.Swap(&v); was != nil && *was == v {
		return
	}
	if v.Reason != fleet.ByHand && v.Reason != fleet.FromTemplate {
		a.Log.Info("no template changes the NodeConfig", "nodeconfig", a.NodeName, "reason", v.Reason, "message", v.Message)
	}
	a.changed()
	if a.serving.Load() == nil {
		a.nodeConfigChanged.give()
	}
}

// withoutTemplate is why no template has made a NodeConfig, as the end of a sentence.
func (a *Agent) withoutTemplate() string {
	v := a.fleet.Load()
	if v == nil || v.Reason == fleet.ByHand || v.Reason == fleet.FromTemplate { // not known yet, or about to be there
		return ""
	}
	return "; from a template it gets none: " + v.Message
}

func (a *Agent) setTemplated(generation int64, conditions *[]metav1.Condition) {
	v := a.fleet.Load()
	if v == nil {
		return // what was known before this agent's start still stands
	}
	if v.Reason == fleet.ByHand {
		meta.RemoveStatusCondition(conditions, conditionTemplated)
		return
	}
	c := metav1.Condition{
		Type: conditionTemplated, Status: metav1.ConditionFalse,
		Reason: string(v.Reason), Message: v.Message, ObservedGeneration: generation,
	}
	if v.Reason == fleet.FromTemplate {
		c.Status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(conditions, c)
}
