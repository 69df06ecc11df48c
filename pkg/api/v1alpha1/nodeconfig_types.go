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

// NodeConfigSpec is what the operator wants of the node.
//
// +kubebuilder:validation:XValidation:rule="!has(self.defaults) || !has(self.defaults.ipv6) || !self.defaults.ipv6 || size(self.podCIDRs.ipv6) > 0",message="defaults.ipv6: without a CIDR in podCIDRs.ipv6 no pod without annotations could start: name one there, or leave this out"
// +kubebuilder:validation:XValidation:rule="!has(self.defaults) || !has(self.defaults.ipv4) || !self.defaults.ipv4 || size(self.podCIDRs.ipv4) > 0",message="defaults.ipv4: without a CIDR in podCIDRs.ipv4 no pod without annotations could start: name one there, or leave this out"
// +kubebuilder:validation:XValidation:rule="!has(self.defaults) || (has(self.defaults.ipv6) ? self.defaults.ipv6 : size(self.podCIDRs.ipv6) > 0) || (has(self.defaults.ipv4) ? self.defaults.ipv4 : size(self.podCIDRs.ipv6) == 0)",message="leave at least one family on, or no pod without annotations can start"
// +kubebuilder:validation:XValidation:rule="!has(self.bgp) || !has(self.bgp.peers) || self.bgp.peers.all(p, !has(p.address) || !isIP(p.address) || (!has(self.podCIDRs.ipv6) || self.podCIDRs.ipv6.all(c, !isCIDR(c) || !cidr(c).containsIP(p.address))) && (!has(self.podCIDRs.ipv4) || self.podCIDRs.ipv4.all(c, !isCIDR(c) || !cidr(c).containsIP(p.address))))",message="a pod CIDR contains the address of a BGP peer: pods need prefixes in which no router is"
type NodeConfigSpec struct {
	// PodCIDRs are the prefixes that the node's pods get their addresses from.
	// Each is announced as one summary.
	PodCIDRs PodCIDRs `json:"podCIDRs"`

	NodeSettings `json:",inline"`

	// BGP announces the node's prefixes to its routers. Absent: no routing
	// daemon is configured; something else must route the prefixes here.
	// +optional
	BGP *BGP `json:"bgp,omitempty"`

	// OSPF announces the node's prefixes too, beside BGP or in its place.
	// +optional
	OSPF *OSPF `json:"ospf,omitempty"`
}

// NodeSettings are the part of a NodeConfig that can be the same on many nodes; a
// NodeConfigTemplate has them too.
type NodeSettings struct {
	// Defaults hold for pods that do not say otherwise by annotation.
	// +optional
	Defaults Defaults `json:"defaults,omitempty"`

	// MTU of the pods' links, in bytes. 0 or absent: the smallest MTU of the
	// interfaces that carry the node's default routes.
	// +kubebuilder:validation:XValidation:rule="self == 0 || (self >= 1280 && self <= 65535)",message="must be 0 (take the uplink's) or between 1280, the least that IPv6 works with (RFC 8200 section 5), and 65535"
	// +optional
	MTU int32 `json:"mtu,omitempty"`

	// Startup says when the node takes its first pods after a boot.
	// +optional
	Startup Startup `json:"startup,omitzero"`
}

// Startup is what a node waits for after a boot, before it takes pods.
type Startup struct {
	// Sessions tells which routers must know the way to the node's pods: none of
	// them; any, that is one for each address family of the pods; or all. Those are
	// meant that bgp and ospf name and that are not disabled. A session that is lost
	// later changes nothing. Default any.
	// +kubebuilder:validation:Enum=none;any;all
	// +optional
	Sessions StartupSessions `json:"sessions,omitempty"`
}

// StartupSessions is a number of routers, in a word.
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
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, isCIDR(a) && isCIDR(b) && (cidr(a).containsCIDR(b) || cidr(b).containsCIDR(a))) || !isCIDR(a))",message="two CIDRs overlap: each prefix may be listed once and must not contain another"
	// +listType=atomic
	// +optional
	// +kubebuilder:default={}
	IPv6 []CIDR `json:"ipv6"`

	// IPv4 prefixes, /8 to /30.
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || cidr(c).ip().family() == 4)",message="holds an IPv6 CIDR: put it under podCIDRs.ipv6"
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || cidr(c).ip().family() != 4 || (cidr(c).prefixLength() >= 8 && cidr(c).prefixLength() <= 30))",message="an IPv4 prefix length must be between /8 and /30"
	// +kubebuilder:validation:XValidation:rule="self.all(c, !isCIDR(c) || cidr(c).ip().isGlobalUnicast())",message="must be of global unicast or unique local addresses: link-local, loopback and multicast addresses cannot be routed to a pod"
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, isCIDR(a) && isCIDR(b) && (cidr(a).containsCIDR(b) || cidr(b).containsCIDR(a))) || !isCIDR(a))",message="two CIDRs overlap: each prefix may be listed once and must not contain another"
	// +listType=atomic
	// +optional
	// +kubebuilder:default={}
	IPv4 []CIDR `json:"ipv4"`

	PodCIDRSettings `json:",inline"`
}

// PodCIDRSettings say how addresses of the pod CIDRs are given.
type PodCIDRSettings struct {
	// Exclude lists ranges, or single addresses as /128 or /32, that no pod
	// is given: addresses that something else on the network holds.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Exclude []CIDR `json:"exclude,omitempty"`

	// QuarantineSeconds is how long an address rests after its pod has gone, so
	// that what is still on its way to the old pod does not reach a new one. An
	// IPv6 address that is made of the workload may come back at once. Default 60.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	// +optional
	QuarantineSeconds *int32 `json:"quarantineSeconds,omitempty"`
}

// Defaults are the answers to what a pod's annotations leave open.
//
// +kubebuilder:validation:XValidation:rule="!has(self.ipv6) || self.ipv6 || !has(self.ipv4) || self.ipv4",message="leave at least one family on, or no pod without annotations can start"
type Defaults struct {
	// IPv6 tells whether pods get an IPv6 address. Default: true if podCIDRs.ipv6
	// names any.
	// +optional
	IPv6 *bool `json:"ipv6,omitempty"`
	// IPv4 tells whether pods get an IPv4 address. Default: true if podCIDRs.ipv4
	// alone names any.
	// +optional
	IPv4 *bool `json:"ipv4,omitempty"`
	// IPAlgo is how the interface identifier of a pod's IPv6 address is made:
	// an ordered list of namespace, app and image. Empty: random.
	// +kubebuilder:validation:MaxItems=3
	// +listType=set
	// +optional
	IPAlgo []IPAlgo `json:"ipAlgo,omitempty"`
}

// IPAlgo names a field of the pod whose hash goes into its interface identifier.
//
// +kubebuilder:validation:Enum=namespace;app;image
type IPAlgo string

// NodeConfigStatus is what the agent of the node saw last.
type NodeConfigStatus struct {
	// Conditions: Accepted (the spec is in force, or which field is wrong), Ready
	// (pods are served, or why not) and RoutingConfigured (the routing daemon has
	// what the spec asks of it) and SessionsUp (with every router, or with which not);
	// where the NodeConfig is made from a template, Templated (it is what the template
	// says, or what is missing); and PodCIDRsUnique (no other NodeConfig had pod CIDRs
	// of this one when they changed last, or which has).
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the metadata.generation that the agent acted on last.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// PodSource is where the node's pods are learned from: kubelet, apiserver or,
	// while neither answers, none.
	// +optional
	PodSource string `json:"podSource,omitempty"`
	// ExitSource is how the end of a container is learned of: containerd (its
	// events), cri (the portable way) or none, at the kubelet's pace.
	// +optional
	ExitSource string `json:"exitSource,omitempty"`
	// RetiredCIDRs are not in spec.podCIDRs any more but stay routed, because
	// pods that run still have addresses of them.
	// +listType=atomic
	// +optional
	RetiredCIDRs []string `json:"retiredCIDRs,omitempty"`
	// Sessions with the routers, as the routing daemon said last. Counts of
	// routes are those of the last write, which waits for more than them to change.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +optional
	Sessions []SessionStatus `json:"sessions,omitempty"`
	// Anycast lists the pods of the node at their anycast addresses, announced or
	// not; at most 256, those not announced first.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	// +optional
	Anycast []AnycastStatus `json:"anycast,omitempty"`
}

// SessionStatus is what is between the node and one router.
type SessionStatus struct {
	// Protocol is bgp or ospf.
	Protocol string `json:"protocol"`
	// Peer is the peer's name in the spec; for OSPF the interface and the router.
	Peer string `json:"peer"`
	// +optional
	Router string `json:"router,omitempty"`
	// Up: routes flow. State is the routing daemon's word for it.
	Up    bool   `json:"up"`
	State string `json:"state"`
	// Since is when the session went up or down.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// Sent and Accepted are routes announced to the router and taken from it;
	// Rejected counts those that it announced and that were refused.
	Sent     int32 `json:"sent"`
	Accepted int32 `json:"accepted"`
	Rejected int32 `json:"rejected"`
	// LastError is why the session went down last, in the daemon's words.
	// +optional
	LastError string `json:"lastError,omitempty"`
}

// AnycastStatus is one pod at one anycast address.
type AnycastStatus struct {
	Address string `json:"address"`
	// Pod is namespace/name.
	Pod string `json:"pod"`
	// Announced tells whether the node announces the address on the pod's account.
	Announced bool `json:"announced"`
	// Reason is why, or why not, in one word; Message says more.
	Reason string `json:"reason"`
	// +optional
	Message string `json:"message,omitempty"`
	// Since is when the reason began to hold.
	Since metav1.Time `json:"since"`
}
