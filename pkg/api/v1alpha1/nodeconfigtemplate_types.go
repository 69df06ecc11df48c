package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NodeConfigTemplate makes the NodeConfigs of the nodes that it selects: each
// node's agent writes its own from the best template, with the pod CIDRs that the
// cluster's allocator gave the node. A node whose NodeConfig somebody has written
// by hand is not concerned. What must differ from node to node has no place in a
// template: pod CIDRs and router IDs.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=nct
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=`.spec.priority`
// +kubebuilder:printcolumn:name="AS",type=integer,JSONPath=`.spec.template.bgp.localAS`
// +kubebuilder:printcolumn:name="AS-Label",type=string,JSONPath=`.spec.template.bgp.localASLabel`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="the name must be at most 63 characters long: it becomes the value of a label"
type NodeConfigTemplate struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec NodeConfigTemplateSpec `json:"spec"`
}

// The marks of a NodeConfig that was made from a template. Without the label a
// NodeConfig is somebody's own, and no agent touches it.
const (
	// TemplateLabel holds the template's name.
	TemplateLabel = "flock.fritzlab.net/template"
	// TemplateGenerationAnnotation holds the metadata.generation of the template.
	TemplateGenerationAnnotation = "flock.fritzlab.net/template-generation"
)

// NodeConfigTemplateList is a list of NodeConfigTemplates.
//
// +kubebuilder:object:root=true
type NodeConfigTemplateList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeConfigTemplate `json:"items"`
}

// NodeConfigTemplateSpec says which nodes are configured, and how.
type NodeConfigTemplateSpec struct {
	// NodeSelector selects nodes by the labels of the Node objects. Empty ({}): all.
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))",message="an operator must be In or NotIn, with values, or Exists or DoesNotExist, without"
	NodeSelector metav1.LabelSelector `json:"nodeSelector"`

	// Priority among the templates that select a node: the highest is taken, alone
	// and whole. Among equal ones the first name in alphabetical order. Default 0.
	// +optional
	Priority int32 `json:"priority,omitempty"`

	// Template of the NodeConfig's spec.
	Template NodeTemplate `json:"template"`
}

// NodeTemplate is the spec of a NodeConfig without what is the node's alone.
type NodeTemplate struct {
	// PodCIDRs say how addresses are given. The prefixes themselves are those of
	// Node.spec.podCIDRs, the cluster's own allocator's.
	// +optional
	PodCIDRs PodCIDRSettings `json:"podCIDRs,omitempty"`

	NodeSettings `json:",inline"`

	// BGP announces the node's prefixes to its routers, as in a NodeConfig.
	// +optional
	BGP *BGPTemplate `json:"bgp,omitempty"`

	// OSPF announces the node's prefixes too, as in a NodeConfig. The router ID is
	// made as that of BGP.
	// +optional
	OSPF *OSPFRouting `json:"ospf,omitempty"`
}

// BGPTemplate configures nodes as BGP speakers. The router ID of each is its IPv4
// InternalIP, or where it has none a hash of its name (RFC 6286).
//
// +kubebuilder:validation:XValidation:rule="has(self.localAS) != has(self.localASLabel)",message="set either localAS, one for all nodes that are selected, or localASLabel, the label of each Node that holds its AS"
type BGPTemplate struct {
	// LocalAS of all nodes that are selected: schemes with an AS for each rack.
	// +optional
	LocalAS ASNumber `json:"localAS,omitempty"`

	// LocalASLabel is the key of the label that holds a node's AS on its Node, in
	// plain decimal (RFC 5396 asplain): schemes with an AS for each node.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`
	// +optional
	LocalASLabel string `json:"localASLabel,omitempty"`

	BGPPeering `json:",inline"`
}
