package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressPool holds addresses outside the nodes' pod CIDRs. It says which pods may
// request them by annotation, as static or anycast addresses, which Services get them,
// and how they are announced. No pod and no Service gets an address that no pool grants.
// Where pools overlap, the one with the longest prefix around an address decides, as in
// routing.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ap
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="CIDRs",type=string,JSONPath=`.spec.cidrs`
// +kubebuilder:printcolumn:name="Uses",type=string,JSONPath=`.spec.uses`
// +kubebuilder:printcolumn:name="Static",type=integer,JSONPath=`.status.static`
// +kubebuilder:printcolumn:name="Anycast",type=integer,JSONPath=`.status.anycast`
// +kubebuilder:printcolumn:name="Service",type=integer,JSONPath=`.status.service`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec AddressPoolSpec `json:"spec"`
	// +optional
	Status AddressPoolStatus `json:"status,omitempty"`
}

// AddressPoolList is a list of AddressPools.
//
// +kubebuilder:object:root=true
type AddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AddressPool `json:"items"`
}

// AddressPoolSpec is which addresses the pool grants, and to whom.
//
// +kubebuilder:validation:XValidation:rule="'service' in self.uses || !has(self.services)",message="services is for pools with the use service: add service to uses, or leave services out"
// +kubebuilder:validation:XValidation:rule="'service' in self.uses || !has(self.routing) || !has(self.routing.aggregate) || !self.routing.aggregate",message="routing.aggregate is for pools with the use service: add service to uses, or leave aggregate out"
type AddressPoolSpec struct {
	// CIDRs are the pool's prefixes, of either family; a single address is a /128
	// or /32. They must not overlap one another.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || (cidr(c).ip().isGlobalUnicast() && cidr(c).prefixLength() > 0))",message="must be of global unicast or unique local addresses: link-local, loopback and multicast addresses cannot be routed to a pod, and a default route is no pool"
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, isCIDR(a) && isCIDR(b) && (cidr(a).containsIP(cidr(b).ip()) || cidr(b).containsIP(cidr(a).ip()))) || !isCIDR(a))",message="two CIDRs overlap: each prefix may be listed once and must not contain another"
	// +listType=atomic
	CIDRs []CIDR `json:"cidrs"`

	// NamespaceSelector selects the namespaces in which pods may request addresses
	// of the pool, and Services get them, by the namespaces' labels. Empty ({}): all. Whoever may label
	// namespaces decides who gets addresses. The label
	// kubernetes.io/metadata.name is the namespace's name and cannot be changed.
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))",message="an operator must be In or NotIn, with values, or Exists or DoesNotExist, without"
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`

	// Uses that the pool allows: static (one pod at a time has the address), anycast
	// (several pods share it; a node announces it while a pod of it is Ready), and
	// service (flock-controller gives it to Services of type LoadBalancer).
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=3
	// +listType=set
	Uses []PoolUse `json:"uses"`

	// Services is how Services get addresses of the pool.
	// +optional
	Services *PoolServices `json:"services,omitempty"`

	// MaxAddressesPerNamespace is how many of the pool's addresses the pods of one
	// namespace may hold at a time: static ones in the whole cluster, anycast ones on
	// each node. The Services of the namespace may hold as many, too. Default: no limit.
	// +kubebuilder:validation:Minimum=1
	// +optional
	MaxAddressesPerNamespace int32 `json:"maxAddressesPerNamespace,omitempty"`

	// QuarantineSeconds is how long a static address stays claimed after its pod has ended,
	// so that packets to the old pod do not reach another one, wherever that runs. The pods
	// of the same workload may have it again at once. Default 60.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	// +optional
	QuarantineSeconds *int32 `json:"quarantineSeconds,omitempty"`

	// Routing is how the pool's addresses are announced, each as a /128 or /32 if not
	// aggregated.
	// +optional
	Routing PoolRouting `json:"routing,omitempty"`
}

// PoolUse is a use of a pool's addresses.
//
// +kubebuilder:validation:Enum=static;anycast;service
type PoolUse string

// The uses.
const (
	UseStatic  PoolUse = "static"
	UseAnycast PoolUse = "anycast"
	UseService PoolUse = "service"
)

// PoolServices is how Services get addresses of a pool.
type PoolServices struct {
	// AutoAssign: a Service that does not say which address or pool it wants may get one
	// of this pool. If false, only a Service with the annotation
	// flock.fritzlab.net/addresses or flock.fritzlab.net/pool gets one. Default true.
	// +optional
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// Sharing is which Services may have one address of the pool together, if they ask
	// for it by the annotation flock.fritzlab.net/shared-with and no port of one is a port
	// of the other. none: no two Services. namespace: Services of the same namespace, of
	// which one must name the other. pool: also Services of different namespaces that the
	// pool admits, if each names the other. Default namespace.
	// +kubebuilder:validation:Enum=none;namespace;pool
	// +optional
	Sharing ServiceSharing `json:"sharing,omitempty"`

	// ExternalIPs: addresses of the pool may also be in spec.externalIPs of Services in the
	// namespaces that the pool admits, and nodes announce them then. Whoever may write such
	// a Service chooses the address, so this is for namespaces that you trust with all
	// addresses of the pool. Default false.
	// +optional
	ExternalIPs bool `json:"externalIPs,omitempty"`
}

// ServiceSharing is which Services may share an address.
type ServiceSharing string

// The values of Sharing.
const (
	SharingNone      ServiceSharing = "none"
	SharingNamespace ServiceSharing = "namespace"
	SharingPool      ServiceSharing = "pool"
)

// PoolRouting holds the attributes of the routes to a pool's addresses. Communities
// are added to those that the peer has under export; other attributes replace the
// peer's. localPreference is for internal peers only, prepend for external ones.
type PoolRouting struct {
	BGPExport `json:",inline"`

	// Aggregate: a node that announces an address of a Service announces the CIDR of the
	// pool around it in its place. It announces the address itself only for a Service with
	// externalTrafficPolicy Local. Default false.
	// +optional
	Aggregate bool `json:"aggregate,omitempty"`

	// AnnounceDelay is how long a pod must have been Ready before the node announces
	// its anycast address, as in 500ms or 5s; at most 1h. It damps flapping and
	// never delays a withdrawal. Default 0s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) <= duration('1h')",message="must be at most 1h"
	// +optional
	AnnounceDelay *metav1.Duration `json:"announceDelay,omitempty"`
}

// AddressPoolStatus is who uses the pool, as flock-controller sees it. It is written at most
// every 10 seconds, because every agent watches all pools.
type AddressPoolStatus struct {
	// Static counts the addresses that pods have claimed as static ones.
	// +optional
	Static int32 `json:"static"`
	// Anycast counts the anycast addresses that pods have, each once.
	// +optional
	Anycast int32 `json:"anycast"`
	// Service counts the addresses that Services have, each once.
	// +optional
	Service int32 `json:"service"`
	// Users are the first 16 addresses in use, in order, with who has them.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +optional
	Users []PoolUser `json:"users,omitempty"`
}

// PoolUser is an address of a pool that is in use.
type PoolUser struct {
	Address string `json:"address"`
	// Use of the address.
	Use PoolUse `json:"use"`
	// By are the pods or Services, as namespace/name: at most 4, in order.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=4
	// +optional
	By []string `json:"by,omitempty"`
	// More counts those that are not in By.
	// +optional
	More int32 `json:"more,omitempty"`
}
