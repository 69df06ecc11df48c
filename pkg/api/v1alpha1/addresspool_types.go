package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressPool holds addresses outside the nodes' pod CIDRs and says who may ask for
// them by annotation, as static or anycast addresses, and how they are announced.
// An address that no pool grants is given to no pod. Where pools overlap, the one
// with the longest prefix around an address decides alone, as in routing.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ap
// +kubebuilder:printcolumn:name="CIDRs",type=string,JSONPath=`.spec.cidrs`
// +kubebuilder:printcolumn:name="Uses",type=string,JSONPath=`.spec.uses`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec AddressPoolSpec `json:"spec"`
}

// AddressPoolList is a list of AddressPools.
//
// +kubebuilder:object:root=true
type AddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AddressPool `json:"items"`
}

// AddressPoolSpec is what the operator grants.
type AddressPoolSpec struct {
	// CIDRs are the pool's prefixes, of either family; a single address is a /128
	// or /32. They must not overlap one another.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || (cidr(c).ip().isGlobalUnicast() && cidr(c).prefixLength() > 0))",message="must be of global unicast or unique local addresses: link-local, loopback and multicast addresses cannot be routed to a pod, and a default route is no pool"
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, isCIDR(a) && isCIDR(b) && (cidr(a).containsCIDR(b) || cidr(b).containsCIDR(a))) || !isCIDR(a))",message="two CIDRs overlap: each prefix may be listed once and must not contain another"
	// +listType=atomic
	CIDRs []CIDR `json:"cidrs"`

	// NamespaceSelector selects the namespaces whose pods may ask for addresses
	// of the pool, by the namespaces' labels. Empty ({}): all. Who may label
	// namespaces decides who gets addresses; the label
	// kubernetes.io/metadata.name names a namespace and cannot be forged.
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))",message="an operator must be In or NotIn, with values, or Exists or DoesNotExist, without"
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`

	// Uses are what the addresses may be asked for as: static (held by one pod at
	// a time) or anycast (shared by pods, announced while they are Ready).
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	Uses []PoolUse `json:"uses"`

	// Routing is how the pool's addresses are announced, each as a /128 or /32.
	// +optional
	Routing PoolRouting `json:"routing,omitempty"`
}

// PoolUse is what a pool's addresses may be asked for as.
//
// +kubebuilder:validation:Enum=static;anycast
type PoolUse string

// The uses.
const (
	UseStatic  PoolUse = "static"
	UseAnycast PoolUse = "anycast"
)

// PoolRouting holds the attributes of the routes to a pool's addresses. Those of
// BGP are in addition to, or where there can be only one in place of, what the peer
// has under export; localPreference is for internal peers only, prepend for external
// ones.
type PoolRouting struct {
	BGPExport `json:",inline"`

	// AnnounceDelay is how long a pod must have been Ready before its anycast
	// address is announced, as in 500ms or 5s; up to 1h. It damps flapping and
	// never delays a withdrawal. Default 0s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('1h')",message="must be at most 1h"
	// +optional
	AnnounceDelay *metav1.Duration `json:"announceDelay,omitempty"`
}
