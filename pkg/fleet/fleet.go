package fleet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Node is what a template takes from the node.
type Node struct {
	Name   string
	UID    types.UID
	Labels map[string]string
	// PodCIDRs are what the cluster's allocator gave the node; none yet: empty.
	PodCIDRs []v1alpha1.CIDR
	// InternalIPs in the order of Node.status.addresses.
	InternalIPs []netip.Addr
}

// NodeOf takes the facts from the Node object.
func NodeOf(n *corev1.Node) Node {
	node := Node{Name: n.Name, UID: n.UID, Labels: n.Labels}
	for _, c := range n.Spec.PodCIDRs {
		node.PodCIDRs = append(node.PodCIDRs, v1alpha1.CIDR(c))
	}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			node.InternalIPs = append(node.InternalIPs, ip)
		}
	}
	return node
}

// Action is what is to be done with the node's NodeConfig.
type Action int

// The actions.
const (
	Leave  Action = iota
	Create        // there is none
	Update        // the one that Decide was given, and no later one
)

// Reason is why, in one word.
type Reason string

// The reasons. Only FromTemplate comes with Create and Update.
const (
	// ByHand: the NodeConfig is somebody's own.
	ByHand Reason = "ByHand"
	// FromTemplate: the NodeConfig is, or will be, what a template says.
	FromTemplate Reason = "FromTemplate"
	// NoTemplate selects the node.
	NoTemplate Reason = "NoTemplate"
	// NotApplicable: the node's template makes no NodeConfig of it.
	NotApplicable Reason = "NotApplicable"
	// WaitingForTurn: the NodeConfig differs from what the template says, and the node is not
	// in a wave of it yet.
	WaitingForTurn Reason = "WaitingForTurn"
)

// A Decision is what to do with the NodeConfig of a node.
type Decision struct {
	Action Action
	// Object to be created, or to replace the one that there is.
	Object *v1alpha1.NodeConfig
	Reason Reason
	// Message for the operator: which template, or what is missing and the remedy.
	Message string
	// Template that is the node's, where there is one, also if the reason is NotApplicable.
	Template *v1alpha1.NodeConfigTemplate
}

// Decide says what the NodeConfig of the node should be, current being the one that
// there is, or nil, when it is the node's turn (see [Decision.InTurn]). It changes none of
// its arguments. The decision does not depend on the order of templates, and after it was
// carried out the next one is Leave.
func Decide(node Node, current *v1alpha1.NodeConfig, templates []*v1alpha1.NodeConfigTemplate) Decision {
	if current != nil && !Templated(current) {
		return Decision{Reason: ByHand}
	}
	best, err := choose(node, templates)
	if err != nil {
		return Decision{Reason: NotApplicable, Message: err.Error(), Template: best}
	}
	if best == nil {
		return Decision{Reason: NoTemplate, Message: noTemplate(node, len(templates))}
	}
	spec, err := fill(node, best)
	if err != nil {
		return Decision{Reason: NotApplicable, Message: err.Error(), Template: best}
	}
	v := Decision{Action: Create, Reason: FromTemplate, Template: best, Message: fmt.Sprintf("NodeConfigTemplate %s, generation %d", best.Name, best.Generation)}
	v.Object = &v1alpha1.NodeConfig{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}
	if current != nil {
		v.Action, v.Object = Update, current.DeepCopy()
	}
	v.Object.Spec = spec
	mark(&v.Object.ObjectMeta, node, best)
	if current != nil && equality.Semantic.DeepEqual(v.Object, current) {
		return Decision{Action: Leave, Reason: v.Reason, Message: v.Message, Template: best}
	}
	return v
}

// Templated reports whether nc was made from a template and may be changed.
func Templated(nc *v1alpha1.NodeConfig) bool {
	_, ok := nc.Labels[v1alpha1.TemplateLabel]
	return ok
}

// choose returns the best template that selects the node, or nil. A template with an
// unreadable selector might be meant for the node. If it would be the best one, choose
// returns it with an error and does not use the next best.
func choose(node Node, templates []*v1alpha1.NodeConfigTemplate) (*v1alpha1.NodeConfigTemplate, error) {
	ranked := slices.SortedFunc(slices.Values(templates), func(a, b *v1alpha1.NodeConfigTemplate) int {
		return cmp.Or(cmp.Compare(b.Spec.Priority, a.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	for _, t := range ranked {
		selector, err := metav1.LabelSelectorAsSelector(&t.Spec.NodeSelector)
		if err != nil {
			return t, fmt.Errorf("NodeConfigTemplate %s: spec.nodeSelector is not a label selector: %w: fix it; until then neither it nor a template of lower priority is used", t.Name, err)
		}
		if selector.Matches(labels.Set(node.Labels)) {
			return t, nil
		}
	}
	return nil, nil
}

func noTemplate(node Node, templates int) string {
	if templates == 0 {
		return fmt.Sprintf("there is no NodeConfigTemplate: create one that selects node %s", node.Name)
	}
	return fmt.Sprintf("none of the %d NodeConfigTemplates selects node %s: compare their spec.nodeSelector with the node's labels", templates, node.Name)
}

// mark says on the object where it comes from, and that it goes with its Node. What
// others have put there stays.
func mark(m *metav1.ObjectMeta, node Node, t *v1alpha1.NodeConfigTemplate) {
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[v1alpha1.TemplateLabel] = t.Name
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[v1alpha1.TemplateGenerationAnnotation] = strconv.FormatInt(t.Generation, 10)
	m.Annotations[v1alpha1.TemplateUIDAnnotation] = string(t.UID)

	owner := metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}
	if slices.Contains(m.OwnerReferences, owner) {
		return
	}
	m.OwnerReferences = slices.DeleteFunc(m.OwnerReferences, func(o metav1.OwnerReference) bool {
		return o.APIVersion == owner.APIVersion && o.Kind == owner.Kind
	})
	m.OwnerReferences = append(m.OwnerReferences, owner)
}
