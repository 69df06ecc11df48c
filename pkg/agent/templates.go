//go:build linux

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/fleet"
	"flock.fritzlab.net/flock/pkg/kube"
)

// conditionTemplated: the NodeConfig is what its template says. One that is written
// by hand has no such condition.
const conditionTemplated = "Templated"

// templates creates and updates the NodeConfig of this node where it comes from a
// template, whenever the templates, the Node or the NodeConfig change. To apply the
// NodeConfig is another part's task.
type templates struct {
	nodeName    string
	api         *kube.Client
	configs     cell.Reader[observed]
	node        *kube.Cache[*corev1.Node]
	nodeChanged *cell.Topic
	templates   *kube.Cache[*v1alpha1.NodeConfigTemplate]
	changed     *cell.Topic // of templates
	log         *slog.Logger

	// What templates make of the node, without action and object. No reason: that is
	// not known yet.
	cell.Cell[fleet.Decision]
}

// Run follows the templates until ctx ends.
func (t *templates) Run(ctx context.Context) error {
	changed := cell.Signal()
	t.nodeChanged.Notify(changed)
	t.changed.Notify(changed)
	t.configs.Notify(changed)
	delay := backoff.Backoff{First: time.Second, Last: 30 * time.Second}
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		case <-changed:
		}
		config := t.configs.Get()
		if !t.node.Synced() || !t.templates.Synced() || !config.synced {
			continue // who knows half of it must not decide
		}
		v := t.decide(config.object)
		err := t.carryOut(ctx, v)
		switch {
		case err == nil:
			retry.Stop()
			delay.Reset()
		case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err):
			// Somebody was quicker. The API server is about to send what they wrote.
			retry.Reset(delay.Last)
			continue
		default:
			after := delay.Next()
			t.log.Warn("cannot write the NodeConfig from its template, will retry", "nodeConfig", t.nodeName, "error", err, "after", after)
			v = fleet.Decision{Reason: "NotWritten", Message: fmt.Sprintf("%s: %s", v.Message, err)}
			retry.Reset(after)
		}
		if t.Set(fleet.Decision{Reason: v.Reason, Message: v.Message}) && !settledBy(v) {
			t.log.Info("no template changes the NodeConfig", "nodeConfig", t.nodeName, "reason", v.Reason, "message", v.Message)
		}
	}
}

func (t *templates) decide(current *v1alpha1.NodeConfig) fleet.Decision {
	node, ok := t.node.Get(t.nodeName)
	if !ok && (current == nil || fleet.Templated(current)) {
		return fleet.Decision{Reason: fleet.NotApplicable, Message: fmt.Sprintf("there is no Node %s for a NodeConfigTemplate to select: see why the kubelet does not register it", t.nodeName)}
	}
	if !ok {
		return fleet.Decision{Reason: fleet.ByHand}
	}
	return fleet.Decide(fleet.NodeOf(node), current, t.templates.List()).InTurn(current)
}

func (t *templates) carryOut(ctx context.Context, v fleet.Decision) (err error) {
	switch v.Action {
	case fleet.Create:
		err = t.api.CreateNodeConfig(ctx, v.Object)
	case fleet.Update:
		err = t.api.UpdateNodeConfig(ctx, v.Object)
	case fleet.Leave:
		return nil
	}
	if err == nil {
		t.log.Info("wrote the NodeConfig from a template", "nodeConfig", v.Object.Name, "from", v.Message)
	}
	return err
}

// settledBy says whether v leaves the node with a NodeConfig that is as it should be.
func settledBy(v fleet.Decision) bool {
	return v.Reason == fleet.ByHand || v.Reason == fleet.FromTemplate
}

// withoutTemplate is why no template has made a NodeConfig, as the end of a sentence.
func withoutTemplate(v fleet.Decision) string {
	if v.Reason == "" || settledBy(v) { // not known yet, or about to be there
		return ""
	}
	return "; from a template it gets none: " + v.Message
}

// Conditions implements Conditioner.
func (t *templates) Conditions() []metav1.Condition {
	v := t.Get()
	c := metav1.Condition{Type: conditionTemplated, Status: metav1.ConditionFalse, Reason: string(v.Reason), Message: v.Message}
	switch v.Reason {
	case "":
		return nil
	case fleet.ByHand:
		c.Status = "" // there is no such condition
	case fleet.FromTemplate:
		c.Status = metav1.ConditionTrue
	}
	return []metav1.Condition{c}
}
