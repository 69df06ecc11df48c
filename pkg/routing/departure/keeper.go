package departure

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/internal/backoff"
	"flock.fritzlab.net/flock/internal/cell"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/routing/departure/stop"
)

// condition of the NodeConfig: the node announces its anycast addresses.
const condition = "Announcing"

// askWithin bounds the questions to the API server at the agent's end, during which BIRD
// waits for the answer (see package stop).
const askWithin = 1500 * time.Millisecond

// returnAfter is how long a node stays withdrawn after it was seen without its label. The
// DaemonSet's controller, which acts within a second, may have begun to delete flock's pod
// although the label is back: then nobody withdraws what ends on the node until the next
// agent is there.
const returnAfter = 5 * time.Second

// API is asked for what is not followed.
type API interface {
	GetNode(ctx context.Context, name string) (*corev1.Node, error)
	GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	GetDaemonSet(ctx context.Context, namespace, name string) (*appsv1.DaemonSet, error)
}

// Notifier wakes a channel when something has changed, see package cell.
type Notifier interface{ Notify(chan<- struct{}) }

// Config is what a Keeper needs.
type Config struct {
	NodeName string
	// Namespace and Pod are those of flock's pod on the node, whose controller is the
	// DaemonSet. An agent that is no pod has none.
	Namespace, Pod string
	API            API
	// Node and NodeConfig are the node's objects as followed; nil where there is none.
	// known: false while the API server has not sent them.
	Node       func() (n *corev1.Node, known bool)
	NodeConfig func() (nc *v1alpha1.NodeConfig, known bool)
	// Changed wake the Keeper when one of them may have changed.
	Changed []Notifier
	// Dir is the directory of BIRD's configuration.
	Dir string
	Log *slog.Logger
}

// Keeper keeps the decision up to date: in Decision, which the routing daemon's
// configuration follows, and in the file by which BIRD's container ends.
type Keeper struct {
	Config
	// Decision for now.
	Decision cell.Cell[Decision]

	// What Run has asked for last, and for which labels and cordon of the Node.
	daemonSet *appsv1.DaemonSet
	deleted   bool
	asked     *corev1.Node
	// retry is for what failed: the question, or the file.
	retry backoff.Backoff

	owner string // the DaemonSet's name; empty while it is not known

	unselected time.Time // when the DaemonSet did not select the node, last; zero: it is over
	ending     bool      // flock's pod is being deleted for that
}

// New returns a Keeper that does nothing until Run. Its decision is that of the agent
// before it: the start of an agent announces nothing that was withdrawn. So it is an error if
// that cannot be read.
func New(c Config) (*Keeper, error) {
	k := &Keeper{Config: c, retry: backoff.Backoff{First: time.Second, Last: time.Minute}}
	before, err := stop.Read(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read whether the node is withdrawn: %w", err)
	}
	k.Decision.Set(Decision{before.Withdraw, before.Leave, before.Reason})
	if before.Final { // the last of another agent
		k.write(false) // Run does it again
	}
	return k, nil
}

// Run decides until ctx ends, and then once more, by what the API server says at that
// moment: the kubelet ends BIRD's container at the same time.
func (k *Keeper) Run(ctx context.Context) error {
	changed := cell.Signal()
	for _, c := range k.Changed {
		c.Notify(changed)
	}
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return k.last(context.WithoutCancel(ctx))
		case <-changed:
		case <-again.C:
		}
		node, known := k.Node()
		config, configKnown := k.NodeConfig()
		if !known || !configKnown {
			continue
		}
		var asking error
		if k.asked == nil || node != nil && (!reflect.DeepEqual(node.Labels, k.asked.Labels) || node.Spec.Unschedulable != k.asked.Spec.Unschedulable) {
			if asking = k.ask(ctx); asking == nil {
				k.asked = node
			}
		}
		if k.returns(node) && !k.ending && time.Since(k.unselected) >= returnAfter {
			if k.ending = k.isEnding(ctx); !k.ending {
				k.unselected = time.Time{}
			}
		}
		var waits []time.Duration
		writing := k.decide(node, config, false)
		if writing != nil {
			k.Log.Error("cannot record how BIRD is to end, will retry", "error", writing)
		}
		if writing != nil || asking != nil {
			waits = append(waits, k.retry.Next())
		} else {
			k.retry.Reset()
		}
		if k.returns(node) && !k.ending {
			waits = append(waits, max(0, returnAfter-time.Since(k.unselected)))
		}
		if len(waits) > 0 {
			again.Reset(slices.Min(waits))
		}
	}
}

// returns reports whether the node has its label again, so soon that it is still withdrawn.
func (k *Keeper) returns(node *corev1.Node) bool {
	return !k.unselected.IsZero() && !unselected(node, k.daemonSet)
}

// isEnding asks whether flock's pod is being deleted. If the API server does not say, it is
// not.
func (k *Keeper) isEnding(ctx context.Context) bool {
	if k.Pod == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	p, err := k.API.GetPod(ctx, k.Namespace, k.Pod)
	return apierrors.IsNotFound(err) || err == nil && p.DeletionTimestamp != nil
}

// last decides at the end of the agent.
func (k *Keeper) last(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	node, known := k.Node()
	config, configKnown := k.NodeConfig()
	asked := make(chan struct{})
	go func() { defer close(asked); k.ask(ctx) }()
	if now, err := k.API.GetNode(ctx, k.NodeName); err == nil {
		node, known = now, true
	} else if apierrors.IsNotFound(err) {
		node, known = nil, true
	}
	<-asked
	if !known || !configKnown {
		return k.write(true)
	}
	if err := k.decide(node, config, true); err != nil {
		k.Log.Error("cannot record how BIRD is to end", "error", err)
	}
	return nil
}

// ask reads the DaemonSet. It logs its error.
func (k *Keeper) ask(ctx context.Context) error {
	if k.Pod == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	if err := k.findOwner(ctx); err != nil {
		k.Log.Warn("cannot find the DaemonSet of flock's pod; its deletion and its node selector are not noticed as a departure of the node", "namespace", k.Namespace, "pod", k.Pod, "error", err)
		return err
	}
	ds, err := k.API.GetDaemonSet(ctx, k.Namespace, k.owner)
	switch {
	case err == nil:
		k.daemonSet, k.deleted = ds, false
	case apierrors.IsNotFound(err):
		k.deleted = true // the pod had it
	default:
		k.Log.Warn("cannot read flock's DaemonSet; its deletion and its node selector are not noticed as a departure of the node", "namespace", k.Namespace, "daemonset", k.owner, "error", err)
		return err
	}
	return nil
}

// findOwner asks for the pod's controller, which is the same for as long as the pod exists.
func (k *Keeper) findOwner(ctx context.Context) error {
	if k.owner != "" {
		return nil
	}
	p, err := k.API.GetPod(ctx, k.Namespace, k.Pod)
	if err != nil {
		return err
	}
	c := metav1.GetControllerOf(p)
	if c == nil || c.Kind != "DaemonSet" {
		return fmt.Errorf("the pod has no DaemonSet as its controller (metadata.ownerReferences): %v", p.OwnerReferences)
	}
	k.owner = c.Name
	return nil
}

// decide makes the decision. The error is that of the file.
func (k *Keeper) decide(node *corev1.Node, config *v1alpha1.NodeConfig, final bool) error {
	d := Decide(Facts{k.NodeName, node, k.daemonSet, k.deleted, config})
	switch {
	case unselected(node, k.daemonSet):
		k.unselected, k.ending = time.Now(), false
	case k.returns(node) && !d.Withdraw:
		d.Withdraw = true
		d.Reason = cmp.Or(d.Reason, "the Node was without its label a moment ago, for which flock's pod may be deleted")
	}
	if d != k.Decision.Get() {
		switch {
		case d.Leave:
			k.Log.Info("this node is leaving the network", "reason", d.Reason, "anycastWithdrawn", d.Withdraw)
		case d.Withdraw:
			k.Log.Info("this node keeps its anycast addresses withdrawn", "reason", d.Reason)
		default:
			k.Log.Info("this node stays in the network")
		}
	}
	k.Decision.Set(d)
	return k.write(final)
}

func (k *Keeper) write(final bool) error {
	d := k.Decision.Get()
	return stop.Write(k.Dir, stop.Decision{Leave: d.Leave, Withdraw: d.Withdraw, Final: final, Reason: d.Reason})
}

// Notify wakes ch when the decision changes.
func (k *Keeper) Notify(ch chan<- struct{}) { k.Decision.Notify(ch) }

// Conditions are those of the NodeConfig.
func (k *Keeper) Conditions() []metav1.Condition {
	c := metav1.Condition{Type: condition, Status: metav1.ConditionTrue, Reason: "Announcing"}
	if d := k.Decision.Get(); d.Withdraw {
		c.Status, c.Reason = metav1.ConditionFalse, "Draining"
		c.Message = "anycast and Service addresses are withdrawn, and routers are asked to prefer other paths (RFC 8326): " + d.Reason
	}
	return []metav1.Condition{c}
}

// Report corrects what the node's status says of its anycast addresses: those that the
// kernel has are not announced while the node is drained.
func (k *Keeper) Report(_ context.Context, status *v1alpha1.NodeConfigStatus) {
	d := k.Decision.Get()
	for i := range status.Anycast {
		if a := &status.Anycast[i]; d.Withdraw && a.Announced {
			a.Announced, a.Reason, a.Message = false, "Draining", d.Reason
		}
	}
}
