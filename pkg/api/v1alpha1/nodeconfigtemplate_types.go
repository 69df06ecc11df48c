package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// NodeConfigTemplate is the template of the NodeConfigs of the nodes that it selects.
// The agent of each node writes the node's NodeConfig from the template with the highest
// priority, and with the pod CIDRs that the cluster's allocator has assigned to the
// node. It does not touch a NodeConfig that was written by hand. Pod CIDRs and router
// IDs differ from node to node, so a template does not have them.
//
// A node without a NodeConfig gets one at once. A change of what nodes have already reaches
// them in waves, for which flock-controller gives the turns: first one node, then
// spec.updateStrategy.rollingUpdate.maxUnavailable nodes at a time. The next wave begins when
// all nodes of the one before are available.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nct
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=`.spec.priority`
// +kubebuilder:printcolumn:name="AS",type=integer,JSONPath=`.spec.template.bgp.localAS`
// +kubebuilder:printcolumn:name="AS-Label",type=string,JSONPath=`.spec.template.bgp.localASLabel`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Updated",type=integer,JSONPath=`.status.updatedNodes`
// +kubebuilder:printcolumn:name="Progressing",type=string,JSONPath=`.status.conditions[?(@.type=="Progressing")].reason`
// +kubebuilder:printcolumn:name="Generation",type=integer,JSONPath=`.metadata.generation`
// +kubebuilder:printcolumn:name="Observed",type=integer,JSONPath=`.status.observedGeneration`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="the name must be at most 63 characters long: it becomes the value of a label"
type NodeConfigTemplate struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec NodeConfigTemplateSpec `json:"spec"`
	// +optional
	Status NodeConfigTemplateStatus `json:"status,omitempty"`
}

// The marks of a NodeConfig that was made from a template. A NodeConfig without the
// label was written by hand, and no agent changes it.
const (
	// TemplateLabel holds the template's name.
	TemplateLabel = "flock.fritzlab.net/template"
	// TemplateGenerationAnnotation holds the metadata.generation of the template.
	TemplateGenerationAnnotation = "flock.fritzlab.net/template-generation"
	// TemplateUIDAnnotation holds the metadata.uid of the template: a template that is deleted
	// and made again under its name begins at generation 1 again.
	TemplateUIDAnnotation = "flock.fritzlab.net/template-uid"
)

// NodeConfigTemplateList is a list of NodeConfigTemplates.
//
// +kubebuilder:object:root=true
type NodeConfigTemplateList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeConfigTemplate `json:"items"`
}

// NodeConfigTemplateSpec is which nodes are configured, and how.
//
// +kubebuilder:validation:XValidation:rule="!has(self.minReadySeconds) || !has(self.progressDeadlineSeconds) || self.progressDeadlineSeconds >= 2 * self.minReadySeconds",message="progressDeadlineSeconds must be at least twice minReadySeconds"
type NodeConfigTemplateSpec struct {
	// NodeSelector selects nodes by the labels of the Node objects. Empty ({}): all.
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))",message="an operator must be In or NotIn, with values, or Exists or DoesNotExist, without"
	NodeSelector metav1.LabelSelector `json:"nodeSelector"`

	// Priority among the templates that select a node: only the one with the highest
	// priority is used; of equal ones, the first name in alphabetical order. Default 0.
	// +optional
	Priority int32 `json:"priority,omitempty"`

	// UpdateStrategy is how a change reaches the nodes that have a NodeConfig already.
	// +optional
	UpdateStrategy TemplateUpdateStrategy `json:"updateStrategy,omitempty"`

	// MinReadySeconds is how long a node must be available with the new configuration before
	// its wave is complete. The default is longer than what the API server takes to miss a
	// kubelet (some 50 seconds), and than the default hold time of BGP sessions (9 seconds),
	// so that a node that the change has cut off is noticed.
	// +kubebuilder:default=60
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=3600
	// +optional
	MinReadySeconds *int32 `json:"minReadySeconds,omitempty"`

	// ProgressDeadlineSeconds is how long after a wave began its nodes must be available. Then
	// the condition Progressing turns False. No further wave begins as long as a node of the
	// last one is not available, before the deadline or after. It must be at least twice
	// MinReadySeconds: what breaks a node after the deadline, if it was available for
	// MinReadySeconds before, is not taken for the change.
	// +kubebuilder:default=180
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	// +optional
	ProgressDeadlineSeconds *int32 `json:"progressDeadlineSeconds,omitempty"`

	// Template of the NodeConfig's spec.
	Template NodeTemplate `json:"template"`
}

// TemplateUpdateStrategy is how a change of a template reaches nodes, as that of a DaemonSet.
type TemplateUpdateStrategy struct {
	// +optional
	RollingUpdate RollingTemplateUpdate `json:"rollingUpdate,omitempty"`
}

// RollingTemplateUpdate bounds a wave.
type RollingTemplateUpdate struct {
	// MaxUnavailable is how many nodes a wave has: a number, or a percentage of the nodes of
	// the template, rounded up. The first wave has one node. The default of 10% loses a tenth
	// of the nodes at most to a fault that the first node did not show, and needs 11 waves
	// whatever the size of the cluster; 1, a DaemonSet's default, would need hours for
	// thousands of nodes. With 100% all nodes change at once, without a first node and without
	// flock-controller.
	// +kubebuilder:default="10%"
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 : self.matches('^([1-9][0-9]?|100)%$')",message="must be a number from 1, or a percentage from 1% to 100%"
	// +optional
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
}

// NodeConfigTemplateStatus is how far the template has reached its nodes. It is written when a
// wave begins, stops or ends, and otherwise once a minute at most: each write goes to all
// agents.
type NodeConfigTemplateStatus struct {
	// ObservedGeneration is the metadata.generation that flock-controller has seen last.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Nodes whose NodeConfig is made from the template, or will be when it is their turn,
	// without nodes of which nothing is heard and that have no turn to follow it.
	// +optional
	Nodes int32 `json:"nodes,omitempty"`
	// UpdatedNodes are those of them whose NodeConfig is what the template says.
	// +optional
	UpdatedNodes int32 `json:"updatedNodes,omitempty"`
	// LastCompleteTime is when all nodes had followed last, by the clock that gives the turns:
	// turns up to then are history.
	// +optional
	LastCompleteTime *metav1.Time `json:"lastCompleteTime,omitempty"`
	// FailedNodes are the first of the nodes that have followed and have stopped the waves of
	// observedGeneration. One that is deleted stops them still.
	// +listType=set
	// +kubebuilder:validation:MaxItems=10
	// +optional
	FailedNodes []string `json:"failedNodes,omitempty"`
	// Conditions: Progressing is True while waves go on (reason Progressing) and when all
	// nodes are updated (Complete), and False when a wave has not followed or not become
	// available in time, or the API server refuses all turns that are left (ProgressDeadlineExceeded); the message
	// names nodes, reasons and the remedy.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// TemplateTurn is flock-controller's permission for a node to follow a template.
type TemplateTurn struct {
	// Template and Generation that the node may follow.
	Template   string `json:"template"`
	Generation int64  `json:"generation"`
	// TemplateUID is the template's metadata.uid. A template that is deleted and made again
	// under its name has another, and its nodes need new turns.
	// +optional
	TemplateUID types.UID `json:"templateUID,omitempty"`
	// Time at which flock-controller gave the turn.
	Time metav1.Time `json:"time"`
	// NodeState is how flock-controller found the node when it gave the turn. Only a node that
	// was Available, as one is without this field, or that has lost since what it had then,
	// can stop the waves after its own.
	// +optional
	NodeState NodeState `json:"nodeState,omitempty"`
	// Digest is of the template's spec.template. A node that has what another generation says, and
	// not this, has not followed the turn, and needs not.
	// +optional
	Digest string `json:"digest,omitempty"`
	// SessionsUp is how many sessions with routers the node had up then. A change after which
	// it has none has cut it off, though none is missed.
	// +optional
	SessionsUp int32 `json:"sessionsUp,omitempty"`
	// NotTrue are the conditions for which the node was not Available then.
	// +listType=set
	// +kubebuilder:validation:MaxItems=8
	// +optional
	NotTrue []string `json:"notTrue,omitempty"`
	// Withdrawn: the node has not followed before the deadline, and may not any more. It gets
	// another turn after the other nodes.
	// +optional
	Withdrawn bool `json:"withdrawn,omitempty"`
}

// NodeState is a node's state when it gets a turn. Available: it served its pods and was
// reached. Broken: it has not been available since an earlier turn. Unavailable: it was not
// available for another reason.
//
// +kubebuilder:validation:Enum=Available;Broken;Unavailable
type NodeState string

// The states.
const (
	NodeAvailable   NodeState = "Available"
	NodeBroken      NodeState = "Broken"
	NodeUnavailable NodeState = "Unavailable"
)

// NodeTemplate is the spec of a NodeConfig without what differs from node to node.
type NodeTemplate struct {
	// PodCIDRs control how pods get addresses. The prefixes themselves come from
	// Node.spec.podCIDRs, which the cluster's allocator sets.
	// +optional
	PodCIDRs PodCIDRSettings `json:"podCIDRs,omitempty"`

	NodeSettings `json:",inline"`

	// BGP announces the node's prefixes to its routers, as in a NodeConfig.
	// +optional
	BGP *BGPTemplate `json:"bgp,omitempty"`

	// OSPF announces the node's prefixes by OSPF, as in a NodeConfig. The router ID is
	// the same as for BGP.
	// +optional
	OSPF *OSPFRouting `json:"ospf,omitempty"`
}

// BGPTemplate configures nodes as BGP speakers. A node's router ID is its IPv4
// InternalIP, or a hash of its name if it has none (RFC 6286).
//
// +kubebuilder:validation:XValidation:rule="has(self.localAS) != has(self.localASLabel)",message="set either localAS, one for all nodes that are selected, or localASLabel, the label of each Node that holds its AS"
type BGPTemplate struct {
	// LocalAS of all selected nodes, for an AS per rack.
	// +optional
	LocalAS ASNumber `json:"localAS,omitempty"`

	// LocalASLabel is the key of the Node's label that holds the node's AS as a decimal
	// number (asplain, RFC 5396), for an AS per node.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`
	// +optional
	LocalASLabel string `json:"localASLabel,omitempty"`

	BGPPeering `json:",inline"`
}
