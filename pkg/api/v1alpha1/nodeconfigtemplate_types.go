package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NodeConfigTemplate is the template of the NodeConfigs of the nodes that it selects.
// The agent of each node writes the node's NodeConfig from the template with the highest
// priority, and with the pod CIDRs that the cluster's allocator has assigned to the
// node. It does not touch a NodeConfig that was written by hand. Pod CIDRs and router
// IDs differ from node to node, so a template does not have them.
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

// The marks of a NodeConfig that was made from a template. A NodeConfig without the
// label was written by hand, and no agent changes it.
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

// NodeConfigTemplateSpec is which nodes are configured, and how.
type NodeConfigTemplateSpec struct {
	// NodeSelector selects nodes by the labels of the Node objects. Empty ({}): all.
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))",message="an operator must be In or NotIn, with values, or Exists or DoesNotExist, without"
	NodeSelector metav1.LabelSelector `json:"nodeSelector"`

	// Priority among the templates that select a node: only the one with the highest
	// priority is used; of equal ones, the first name in alphabetical order. Default 0.
	// +optional
	Priority int32 `json:"priority,omitempty"`

	// Template of the NodeConfig's spec.
	Template NodeTemplate `json:"template"`
}

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
