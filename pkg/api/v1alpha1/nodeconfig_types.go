package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NodeConfig is the network configuration of the node of the same name: which
// addresses its pods get and to which routers it announces them.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=nc
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="IPv6",type=string,JSONPath=`.spec.podCIDRs.ipv6`
// +kubebuilder:printcolumn:name="IPv4",type=string,JSONPath=`.spec.podCIDRs.ipv4`
// +kubebuilder:printcolumn:name="AS",type=integer,JSONPath=`.spec.bgp.localAS`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Template",type=string,JSONPath=`.metadata.labels.flock\.fritzlab\.net/template`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodeConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec NodeConfigSpec `json:"spec"`
	// +optional
	Status NodeConfigStatus `json:"status,omitempty"`
}

// DrainAnnotation on a NodeConfig, with any value, has the node withdraw its anycast
// addresses and ask routers to prefer other paths (RFC 8326). flockctl drain sets it.
const DrainAnnotation = "flock.fritzlab.net/drain"

// ReasonNodeUnknown is the reason of conditions that flock-controller has turned to Unknown,
// because nothing is known of the node any more.
const ReasonNodeUnknown = "NodeUnknown"

// NodeConfigList is a list of NodeConfigs.
//
// +kubebuilder:object:root=true
type NodeConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeConfig `json:"items"`
}

// CIDR is a prefix in CIDR notation (RFC 4632, RFC 4291 section 2.3) without
// host bits: 2001:db8:1::/64, not 2001:db8:1::7/64.
//
// +kubebuilder:validation:MaxLength=43
// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="not a CIDR: want an address, a slash and a prefix length, as in 2001:db8:1::/64 or 10.1.0.0/24"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self).masked() == cidr(self)",message="has bits set behind the prefix length: want the network's own address, as in 2001:db8:1::/64 or 10.1.0.0/24"
type CIDR string

// NodeConfigSpec is the desired configuration of the node.
//
// +kubebuilder:validation:XValidation:rule="!has(self.defaults) || !has(self.defaults.ipv6) || !self.defaults.ipv6 || size(self.podCIDRs.ipv6) > 0",message="defaults.ipv6: without a CIDR in podCIDRs.ipv6 no pod without annotations could start: name one there, or leave this out"
// +kubebuilder:validation:XValidation:rule="!has(self.defaults) || !has(self.defaults.ipv4) || !self.defaults.ipv4 || size(self.podCIDRs.ipv4) > 0",message="defaults.ipv4: without a CIDR in podCIDRs.ipv4 no pod without annotations could start: name one there, or leave this out"
// +kubebuilder:validation:XValidation:rule="!has(self.defaults) || (has(self.defaults.ipv6) ? self.defaults.ipv6 : size(self.podCIDRs.ipv6) > 0) || (has(self.defaults.ipv4) ? self.defaults.ipv4 : size(self.podCIDRs.ipv6) == 0)",message="leave at least one family on, or no pod without annotations can start"
// +kubebuilder:validation:XValidation:rule="!has(self.bgp) || !has(self.bgp.peers) || self.bgp.peers.all(p, !has(p.address) || !isIP(p.address) || (!has(self.podCIDRs.ipv6) || self.podCIDRs.ipv6.all(c, !isCIDR(c) || !cidr(c).containsIP(p.address))) && (!has(self.podCIDRs.ipv4) || self.podCIDRs.ipv4.all(c, !isCIDR(c) || !cidr(c).containsIP(p.address))))",message="a pod CIDR contains the address of a BGP peer: pods need prefixes in which no router is"
type NodeConfigSpec struct {
	// PodCIDRs are the prefixes from which the node's pods get their addresses.
	// The node announces each as one route.
	PodCIDRs PodCIDRs `json:"podCIDRs"`

	NodeSettings `json:",inline"`

	// BGP announces the node's prefixes to its routers. Without bgp and ospf the
	// node announces nothing: something else must route its prefixes to it.
	// +optional
	BGP *BGP `json:"bgp,omitempty"`

	// OSPF announces the node's prefixes by OSPF, in addition to BGP or in its place.
	// +optional
	OSPF *OSPF `json:"ospf,omitempty"`
}

// NodeSettings are the part of a NodeConfig that can be the same on many nodes; a
// NodeConfigTemplate has them too.
type NodeSettings struct {
	// Defaults apply to pods without the annotation in question.
	// +optional
	Defaults Defaults `json:"defaults,omitempty"`

	// MTU of the pods' interfaces, in bytes. Default: 0, the smallest MTU of the
	// interfaces with the node's default routes.
	// +kubebuilder:validation:XValidation:rule="self == 0 || (self >= 1280 && self <= 65535)",message="must be 0 (take the uplink's) or between 1280, the least that IPv6 works with (RFC 8200 section 5), and 65535"
	// +optional
	MTU int32 `json:"mtu,omitempty"`

	// Startup says when the node takes its first pods after a boot.
	// +optional
	Startup Startup `json:"startup,omitzero"`

	// Services is which addresses of Services the node announces.
	// +optional
	Services Services `json:"services,omitzero"`

	// MaxAddressesPerPod is how many addresses a pod may have in all: allocated,
	// static and anycast. It bounds what one pod can make a node do. Default 8.
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=1024
	// +optional
	MaxAddressesPerPod int32 `json:"maxAddressesPerPod,omitempty"`
}

// Services is which addresses of Services a node announces.
type Services struct {
	// Announce lists the kinds of addresses that the node announces: LoadBalancer (in
	// status.loadBalancer, of the class flock.fritzlab.net/bgp), ExternalIP (in
	// spec.externalIPs, if an AddressPool allows it), and ClusterIP (in spec.clusterIPs).
	// Empty ([]): none. Default: LoadBalancer and ExternalIP.
	// +kubebuilder:validation:MaxItems=3
	// +listType=set
	// +optional
	Announce []ServiceAddress `json:"announce,omitzero"`
}

// ServiceAddress is a kind of addresses of Services.
//
// +kubebuilder:validation:Enum=LoadBalancer;ExternalIP;ClusterIP
type ServiceAddress string

// The kinds.
const (
	ServiceLoadBalancer ServiceAddress = "LoadBalancer"
	ServiceExternalIP   ServiceAddress = "ExternalIP"
	ServiceClusterIP    ServiceAddress = "ClusterIP"
)

// Startup is what a node waits for after a boot before it takes pods.
type Startup struct {
	// Sessions is the number of routers that must have the routes to the node's pods
	// before the node takes pods after a boot: none; any, which is one for each
	// address family of the pods; or all. Counted are the peers and interfaces under
	// bgp and ospf that are not disabled. A session that goes down later changes
	// nothing. Default any.
	// +kubebuilder:validation:Enum=none;any;all
	// +optional
	Sessions StartupSessions `json:"sessions,omitempty"`
}

// StartupSessions is none, any or all routers.
type StartupSessions string

// The numbers.
const (
	StartupNone StartupSessions = "none"
	StartupAny  StartupSessions = "any"
	StartupAll  StartupSessions = "all"
)

// PodCIDRs are a node's pod prefixes by family. A prefix must not overlap another
// of the same node.
//
// +kubebuilder:validation:XValidation:rule="size(self.ipv6) + size(self.ipv4) > 0",message="name at least one CIDR under ipv6 or ipv4"
type PodCIDRs struct {
	// IPv6 prefixes, /48 to /120.
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || cidr(c).ip().family() == 6)",message="holds an IPv4 CIDR: put it under podCIDRs.ipv4"
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || cidr(c).ip().family() != 6 || (cidr(c).prefixLength() >= 48 && cidr(c).prefixLength() <= 120))",message="an IPv6 prefix length must be between /48 and /120"
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || cidr(c).ip().isGlobalUnicast())",message="must be of global unicast or unique local addresses: link-local, loopback and multicast addresses cannot be routed to a pod"
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, isCIDR(a) && isCIDR(b) && (cidr(a).containsIP(cidr(b).ip()) || cidr(b).containsIP(cidr(a).ip()))) || !isCIDR(a))",message="two CIDRs overlap: each prefix may be listed once and must not contain another"
	// +listType=atomic
	// +optional
	// +kubebuilder:default={}
	IPv6 []CIDR `json:"ipv6"`

	// IPv4 prefixes, /8 to /30.
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || cidr(c).ip().family() == 4)",message="holds an IPv6 CIDR: put it under podCIDRs.ipv6"
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || cidr(c).ip().family() != 4 || (cidr(c).prefixLength() >= 8 && cidr(c).prefixLength() <= 30))",message="an IPv4 prefix length must be between /8 and /30"
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || cidr(c).ip().isGlobalUnicast())",message="must be of global unicast or unique local addresses: link-local, loopback and multicast addresses cannot be routed to a pod"
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, isCIDR(a) && isCIDR(b) && (cidr(a).containsIP(cidr(b).ip()) || cidr(b).containsIP(cidr(a).ip()))) || !isCIDR(a))",message="two CIDRs overlap: each prefix may be listed once and must not contain another"
	// +listType=atomic
	// +optional
	// +kubebuilder:default={}
	IPv4 []CIDR `json:"ipv4"`

	PodCIDRSettings `json:",inline"`
}

// PodCIDRSettings control how pods get addresses from the pod CIDRs.
type PodCIDRSettings struct {
	// Exclude lists ranges from which no pod gets an address, because something
	// else on the network has them. A single address is a /128 or /32.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Exclude []CIDR `json:"exclude,omitempty"`

	// Static says whose pods may request addresses of the pod CIDRs by name: with the
	// annotation addresses, or with a cidr4 or cidr6 of fewer than 16 addresses.
	// Default: nobody's. Addresses that the pod CIDRs do not contain are granted by
	// AddressPools.
	// +optional
	Static *StaticGrant `json:"static,omitempty"`

	// QuarantineSeconds is how long an address stays unused after its pod has ended,
	// so that packets to the old pod do not reach a new one. The pods of the same
	// workload may have it again at once, if they ask for it by name or if ipAlgo
	// derives it from the workload. Default 60.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	// +optional
	QuarantineSeconds *int32 `json:"quarantineSeconds,omitempty"`
}

// StaticGrant grants addresses of a node's pod CIDRs to pods that request them by name.
type StaticGrant struct {
	// NamespaceSelector selects the namespaces of these pods by the namespaces' labels.
	// Empty ({}): all. Whoever may label namespaces decides who gets addresses. The
	// label kubernetes.io/metadata.name is the namespace's name and cannot be changed.
	// +kubebuilder:validation:XValidation:rule="!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))",message="an operator must be In or NotIn, with values, or Exists or DoesNotExist, without"
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`

	// MaxAddressesPerNamespace is how many addresses of the node the pods of one
	// namespace may hold by name at a time. Default: no limit.
	// +kubebuilder:validation:Minimum=1
	// +optional
	MaxAddressesPerNamespace int32 `json:"maxAddressesPerNamespace,omitempty"`
}

// Defaults are the values that a pod's annotations override.
//
// +kubebuilder:validation:XValidation:rule="!has(self.ipv6) || self.ipv6 || !has(self.ipv4) || self.ipv4",message="leave at least one family on, or no pod without annotations can start"
type Defaults struct {
	// IPv6: pods get an IPv6 address. Default: true if podCIDRs.ipv6 is not empty.
	// +optional
	IPv6 *bool `json:"ipv6,omitempty"`
	// IPv4: pods get an IPv4 address. Default: true if podCIDRs.ipv4 is not empty and
	// podCIDRs.ipv6 is.
	// +optional
	IPv4 *bool `json:"ipv4,omitempty"`
	// IPAlgo lists, in order, the fields of the workload from which the interface
	// identifier of a pod's IPv6 address is derived: namespace, app, image. Empty: the
	// identifier is random.
	// +kubebuilder:validation:MaxItems=3
	// +listType=set
	// +optional
	IPAlgo []IPAlgo `json:"ipAlgo,omitempty"`
}

// IPAlgo is a field of the workload. Its hash becomes part of the interface
// identifier.
//
// +kubebuilder:validation:Enum=namespace;app;image
type IPAlgo string

// NodeConfigStatus is what the agent of the node has reported.
type NodeConfigStatus struct {
	// Conditions of the node. Accepted: the spec is valid and in force. Ready: pods
	// are served. RoutingConfigured: BIRD runs what the spec asks for. SessionsUp:
	// every session with a router is up. Announcing: the node announces its anycast
	// addresses. KernelInSync: flock's state in the kernel is what it should be, and
	// nothing is in its way. PoliciesEnforced: the kernel has what network policies say
	// about the node's pods. Templated: the NodeConfig is what its template makes of
	// it. PodCIDRsUnique: only while it is False, as flock-controller has found
	// podCIDROverlaps. Supported: kernel, runtime, Kubernetes and BIRD have what flock needs;
	// the message names what is missing that it can do without. MetricsServed: only while it
	// is False. Where one is not True, its message says why.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the metadata.generation that the agent has applied last.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// PodSource is where the agent gets the node's pods from: kubelet, apiserver, or
	// none while neither answers.
	// +optional
	PodSource string `json:"podSource,omitempty"`
	// ExitSource is where the agent gets the exits of containers from: containerd (its
	// events), cri (the events of the runtime's CRI), or none: then the kubelet's status
	// is what shows them, up to a second later.
	// +optional
	ExitSource string `json:"exitSource,omitempty"`
	// RetiredCIDRs have been removed from spec.podCIDRs but stay routed while
	// running pods have addresses of them: at most 64.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +optional
	RetiredCIDRs []string `json:"retiredCIDRs,omitempty"`
	// Sessions with the routers, as BIRD reports them. The counts of routes may be a
	// minute old.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +optional
	Sessions []SessionStatus `json:"sessions,omitempty"`
	// Anycast lists the anycast addresses of the node's pods, announced or not: at most
	// 256, those that are not announced first.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	// +optional
	Anycast []AnycastStatus `json:"anycast,omitempty"`
	// Services lists the addresses of Services, announced by the node or not: at most 256,
	// those that are not announced first.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	// +optional
	Services []ServiceStatus `json:"services,omitempty"`
	// Pools are the AddressPools from which pods of the node have addresses: at most 64,
	// first those that would not grant some of these any more.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +optional
	Pools []PoolStatus `json:"pools,omitempty"`
	// PasswordKey is the node's public key for the passwords that it shares with routers:
	// X25519 (RFC 7748), base64. The agent makes another one after each boot.
	// +kubebuilder:validation:Pattern=`^([A-Za-z0-9+/]{43}=)?$`
	// +optional
	PasswordKey string `json:"passwordKey,omitempty"`
	// Passwords are those that the node shares with routers, encrypted for it alone.
	// flock-controller writes them; an agent may not.
	// +optional
	Passwords *SealedPasswords `json:"passwords,omitempty"`
	// TemplateTurn is the change of a template that the node may follow, as it is in the wave
	// of it. flock-controller writes it.
	// +optional
	TemplateTurn *TemplateTurn `json:"templateTurn,omitempty"`
	// PodCIDROverlaps are pod CIDRs of the node that other NodeConfigs have as well, or have
	// a part of: at most 5. flock-controller writes them.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=5
	// +optional
	PodCIDROverlaps []PodCIDROverlap `json:"podCIDROverlaps,omitempty"`
}

// PodCIDROverlap is a pod CIDR of a node that overlaps one of another.
type PodCIDROverlap struct {
	// CIDR of the node: in spec.podCIDRs or status.retiredCIDRs.
	CIDR string `json:"cidr"`
	// NodeConfig of the other node, and its CIDR.
	NodeConfig string `json:"nodeConfig"`
	OtherCIDR  string `json:"otherCIDR"`
}

// SealedPasswords are passwords that one node can decrypt.
type SealedPasswords struct {
	// Recipient is the passwordKey for which they are encrypted.
	Recipient string `json:"recipient"`
	// Items has each key of a Secret that the node's configuration refers to.
	// +listType=map
	// +listMapKey=secret
	// +listMapKey=key
	// +kubebuilder:validation:MaxItems=256
	Items []SealedPassword `json:"items"`
}

// SealedPassword is a password that one node can decrypt, or why there is none.
type SealedPassword struct {
	// Secret in flock's namespace, and the key in it.
	Secret string `json:"secret"`
	Key    string `json:"key"`
	// Ciphertext is the password, encrypted by HPKE (RFC 9180): base64 of the encapsulated
	// key and the ciphertext. Node, Secret and key are bound to it.
	// +optional
	Ciphertext string `json:"ciphertext,omitempty"`
	// Version of the Secret from which it was made: its UID and resourceVersion.
	// +optional
	Version string `json:"version,omitempty"`
	// Message says why there is no password.
	// +optional
	Message string `json:"message,omitempty"`
}

// ServiceStatus is an address of a Service on one node.
type ServiceStatus struct {
	// Service is namespace/name.
	Service string `json:"service"`
	Address string `json:"address"`
	// Announced: the node announces the address.
	Announced bool `json:"announced"`
	// Prefix is what is announced in place of the address, if its pool is aggregated.
	// +optional
	Prefix string `json:"prefix,omitempty"`
	// Reason in one word; Message has the details.
	Reason string `json:"reason"`
	// +optional
	Message string `json:"message,omitempty"`
	// Since is when the reason last changed.
	Since metav1.Time `json:"since"`
}

// PoolStatus is the use of an AddressPool on one node.
type PoolStatus struct {
	// Name of the AddressPool.
	Name string `json:"name"`
	// Addresses counts the addresses that pods on the node have from the pool, each once:
	// two pods may share an anycast address.
	Addresses int32 `json:"addresses"`
	// Pods are namespace/name of the first 8 pods that have them, in order.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	// +optional
	Pods []string `json:"pods,omitempty"`
	// Retained counts those of the addresses that the pool does not cover any more: it
	// was deleted, narrowed, or is invalid. They stay announced with the routing that the
	// pool has, or had last, until their pods are gone.
	// +optional
	Retained int32 `json:"retained,omitempty"`
}

// SessionStatus is a session of the node with one router.
type SessionStatus struct {
	// Protocol is bgp or ospf.
	Protocol string `json:"protocol"`
	// Peer is the peer's name in the spec; for OSPF the interface and the router's ID.
	Peer string `json:"peer"`
	// Router is the router's address.
	// +optional
	Router string `json:"router,omitempty"`
	// Up: the session is established, or the adjacency full.
	Up bool `json:"up"`
	// State as BIRD calls it: Established, Active, Idle, Full …
	State string `json:"state"`
	// Since is when the session went up or down.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// Sent and Accepted are routes announced to the router and taken from it;
	// Rejected counts those that it announced and that were refused.
	Sent     int32 `json:"sent"`
	Accepted int32 `json:"accepted"`
	Rejected int32 `json:"rejected"`
	// LastError is why the session is down, or went down last: what the agent finds wrong
	// on the node, with the remedy, or else BIRD's words.
	// +optional
	LastError string `json:"lastError,omitempty"`
}

// AnycastStatus is one pod at one anycast address.
type AnycastStatus struct {
	Address string `json:"address"`
	// Pod is namespace/name.
	Pod string `json:"pod"`
	// Announced: the node announces the address for this pod.
	Announced bool `json:"announced"`
	// Reason in one word; Message has the details.
	Reason string `json:"reason"`
	// +optional
	Message string `json:"message,omitempty"`
	// Since is when the reason last changed.
	Since metav1.Time `json:"since"`
}
