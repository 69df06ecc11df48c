package v1alpha1

// BGP configures the node as a BGP speaker (RFC 4271). Its defaults are those of
// a data centre fabric (RFC 7938), not of an internet router.
type BGP struct {
	// LocalAS is the node's autonomous system number (RFC 6793).
	LocalAS ASNumber `json:"localAS"`

	// RouterID is the BGP identifier in dotted decimal (RFC 6286), unique in
	// the AS. It need not be an address of the node.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'",message="must be four decimal numbers, as in 192.0.2.1, and not 0.0.0.0 (RFC 6286)"
	RouterID string `json:"routerID"`

	BGPPeering `json:",inline"`
}

// BGPPeering is the part of the BGP configuration that many nodes can share.
//
// +kubebuilder:validation:XValidation:rule="!has(self.peers) || self.peers.all(p, !has(p.export) || !has(p.export.localPreference) || (has(p.peerType) ? p.peerType == 'internal' : (has(p.remoteAS) && (has(p.localAS) ? p.remoteAS == p.localAS : !has(self.localAS) || p.remoteAS == self.localAS))))",message="a peer has export.localPreference and another AS: it is for peers of one's own AS only (RFC 4271 section 5.1.5); use export.med or export.prepend towards others"
// +kubebuilder:validation:XValidation:rule="!has(self.peers) || self.peers.all(p, !has(p.export) || !has(p.export.prepend) || p.export.prepend == 0 || !(has(p.peerType) ? p.peerType == 'internal' : (has(p.remoteAS) && (has(p.localAS) ? p.remoteAS == p.localAS : has(self.localAS) && p.remoteAS == self.localAS))))",message="a peer of one's own AS has export.prepend: it would take the path for a loop (RFC 4271 section 9.1.2); use export.localPreference towards it"
type BGPPeering struct {
	// Peers are the routers that the node announces its prefixes to.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=name
	Peers []BGPPeer `json:"peers"`

	// ListenPort is the TCP port on which the node waits for its peers. Set it
	// where another BGP speaker on the node has port 179: routers that open the
	// session must then use this port too. Default 179 (RFC 4271).
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 65535",message="must be between 1 and 65535"
	// +optional
	ListenPort int32 `json:"listenPort,omitempty"`

	// Multipath is the number of equal routes of different peers that traffic is
	// spread over (RFC 7938 section 6). 1: only the best. Default 16.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 64",message="must be between 1 (only the best route) and 64"
	// +optional
	Multipath *int32 `json:"multipath,omitempty"`

	// SourceAddresses are the node's source addresses on routes learned from peers.
	// Absent: an address of the outgoing interface. Set them where the interfaces
	// towards the routers have no global address of a family.
	// +optional
	SourceAddresses *SourceAddresses `json:"sourceAddresses,omitempty"`

	// GracefulShutdown asks all peers to prefer other paths, ahead of a planned
	// stop of the node (RFC 8326). Default false.
	// +optional
	GracefulShutdown bool `json:"gracefulShutdown,omitempty"`
}

// ASNumber is the number of an autonomous system (RFC 6793).
//
// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 4294967294 && self != 23456 && self != 65535",message="must be between 1 and 4294967294 and not 23456 or 65535: AS 0 (RFC 7607), 23456 (RFC 6793), 65535 and 4294967295 (RFC 7300) are reserved"
type ASNumber int64

// SourceAddresses are addresses of the node, one for each family.
type SourceAddresses struct {
	// IPv6 source address.
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self) && ip(self).family() == 6 && ip(self).isGlobalUnicast()",message="must be an IPv6 address of the node that others can reach, as in 2001:db8::11"
	// +optional
	IPv6 string `json:"ipv6,omitempty"`
	// IPv4 source address.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="isIP(self) && ip(self).family() == 4 && ip(self).isGlobalUnicast()",message="must be an IPv4 address of the node that others can reach, as in 192.0.2.11"
	// +optional
	IPv4 string `json:"ipv4,omitempty"`
}

// BGPPeer is a router. One session with it carries both address families.
//
// +kubebuilder:validation:XValidation:rule="has(self.address) || has(self.interface)",message="name the router's address, or for unnumbered peering the interface towards it"
// +kubebuilder:validation:XValidation:rule="has(self.remoteAS) != has(self.peerType)",message="set either remoteAS, or peerType to external or internal where any such AS will do"
// +kubebuilder:validation:XValidation:rule="!has(self.address) || !isIP(self.address) || ip(self.address).family() != 6 || !ip(self.address).isLinkLocalUnicast() || has(self.interface)",message="a link-local address needs its interface: set interface too"
// +kubebuilder:validation:XValidation:rule="!has(self.multihop) || (has(self.address) && !has(self.interface))",message="multihop is for a router behind other routers: it needs address, and neither interface nor a link-local address"
// +kubebuilder:validation:XValidation:rule="!has(self.multihop) || !has(self.bfd) || has(self.sourceAddress)",message="bfd over several hops needs sourceAddress (RFC 5883)"
// +kubebuilder:validation:XValidation:rule="!has(self.allowASIn) || self.allowASIn == 0 || has(self.import)",message="without import the node takes no route from this router: set import too, or leave allowASIn out"
// +kubebuilder:validation:XValidation:rule="!has(self.sourceAddress) || !has(self.address) || !isIP(self.address) || !isIP(self.sourceAddress) || ip(self.address).family() == ip(self.sourceAddress).family()",message="sourceAddress must be of the same family as address"
// +kubebuilder:validation:XValidation:rule="has(self.address) || (!has(self.port) && !has(self.sourceAddress))",message="without address the session is between the link-local addresses and the router opens it: leave out port and sourceAddress"
type BGPPeer struct {
	// Name of the peer, unique on the node. BIRD's protocol is named after it.
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[a-z]([a-z0-9-]*[a-z0-9])?$`
	Name string `json:"name"`

	// Address of the router. Absent: unnumbered peering over interface.
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self) && (ip(self).isGlobalUnicast() || ip(self).isLinkLocalUnicast())",message="not an IP address of a router: want an address as in 2001:db8::1 or 192.0.2.1; for a link-local one set interface in place of a %zone"
	// +optional
	Address string `json:"address,omitempty"`

	// Interface towards the router: with a link-local address, or without address for
	// unnumbered peering. For the latter the node advertises its link-local address
	// on the interface (RFC 4861) and waits for the router to open the session.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$')",message="not the name of an interface: want letters, digits, dots, dashes and underscores, at most 15, as in eth0 or bond0.100"
	// +optional
	Interface string `json:"interface,omitempty"`

	// RemoteAS is the router's autonomous system number.
	// +optional
	RemoteAS ASNumber `json:"remoteAS,omitempty"`

	// PeerType in place of remoteAS: external for a router of any other AS, internal for
	// one of the node's AS.
	// +kubebuilder:validation:Enum=external;internal
	// +optional
	PeerType BGPPeerType `json:"peerType,omitempty"`

	// LocalAS is the node's AS towards this router. Default: bgp.localAS.
	// +optional
	LocalAS ASNumber `json:"localAS,omitempty"`

	// SourceAddress of the session on the node. Default: the node's InternalIP if it is
	// in the router's subnet, otherwise any address of the interface.
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self) && (ip(self).isGlobalUnicast() || ip(self).isLinkLocalUnicast())",message="not an address of the node: want an address as in 2001:db8::11"
	// +optional
	SourceAddress string `json:"sourceAddress,omitempty"`

	// Port of the router. Default 179 (RFC 4271).
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 65535",message="must be between 1 and 65535"
	// +optional
	Port int32 `json:"port,omitempty"`

	// Multihop is the number of hops to a router that is not on a link of the
	// node: 2 with one router in between. The node uses routes of such a peer only if
	// their next hop is on a link of the node. Absent: the router is on the link.
	// +kubebuilder:validation:XValidation:rule="self >= 2 && self <= 255",message="must be between 2 (one router in between) and 255; leave it out for a router on the link"
	// +optional
	Multihop int32 `json:"multihop,omitempty"`

	// TTLSecurity drops packets of the session that have passed more hops than the
	// router is away (GTSM, RFC 5082). Set it on the router too. Default false.
	// +optional
	TTLSecurity bool `json:"ttlSecurity,omitempty"`

	// PasswordSecretRef names the TCP MD5 password (RFC 2385): a key of a Secret
	// in flock's namespace, with 1 to 80 printable ASCII characters and no double
	// quote. While the Secret is missing, the session stays down.
	// +optional
	PasswordSecretRef *SecretKeyRef `json:"passwordSecretRef,omitempty"`

	// Families that the session carries (RFC 4760). Default: both. If the session is
	// between IPv6 addresses, IPv4 routes have IPv6 next hops (RFC 8950).
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	// +optional
	Families []Family `json:"families,omitempty"`

	// Timers of the session.
	// +optional
	Timers *BGPTimers `json:"timers,omitempty"`

	// BFD detects a dead path within a fraction of a second (RFC 5880, 5881). Set it on
	// the router too. Absent: off.
	// +optional
	BFD *BFD `json:"bfd,omitempty"`

	// GracefulRestart keeps routes while BIRD or the router's daemon restarts.
	// +optional
	GracefulRestart *BGPGracefulRestart `json:"gracefulRestart,omitempty"`

	// GracefulShutdown asks this router to prefer other paths, ahead of planned
	// work on the link or the node (RFC 8326). Default false.
	// +optional
	GracefulShutdown bool `json:"gracefulShutdown,omitempty"`

	// Export is the attributes of the routes that the node announces to the router.
	// +optional
	Export *BGPExport `json:"export,omitempty"`

	// Import is which routes the node accepts from the router. Absent: none.
	// +optional
	Import *Import `json:"import,omitempty"`

	// AllowASIn is how often the node's AS may stand in the AS path of a route from this
	// router (allowas-in; RFC 4271 section 9.1.2 would take it for a loop). It is for
	// clusters in which all nodes have one AS, and the node is to import other nodes'
	// prefixes. Default 0: such routes are dropped.
	// +kubebuilder:validation:XValidation:rule="self >= 0 && self <= 10",message="must be between 0 (routes with the node's own AS are dropped) and 10"
	// +optional
	AllowASIn int32 `json:"allowASIn,omitempty"`

	// AddPaths: send several paths of one prefix, receive them, or both (RFC 7911).
	// Default off.
	// +kubebuilder:validation:Enum=off;receive;send;both
	// +optional
	AddPaths AddPaths `json:"addPaths,omitempty"`

	// Passive: the node waits for the router to open the session. Default false.
	// +optional
	Passive bool `json:"passive,omitempty"`

	// Disabled: the session is closed with a Cease (RFC 4486) and stays down. Default
	// false.
	// +optional
	Disabled bool `json:"disabled,omitempty"`
}

// BGPPeerType is external or internal, where the AS number does not matter.
type BGPPeerType string

const (
	PeerExternal BGPPeerType = "external"
	PeerInternal BGPPeerType = "internal"
)

// Family is an address family.
//
// +kubebuilder:validation:Enum=ipv6;ipv4
type Family string

const (
	FamilyIPv6 Family = "ipv6"
	FamilyIPv4 Family = "ipv4"
)

// AddPaths is the direction in which several paths of a prefix may go.
type AddPaths string

const (
	AddPathsOff     AddPaths = "off"
	AddPathsReceive AddPaths = "receive"
	AddPathsSend    AddPaths = "send"
	AddPathsBoth    AddPaths = "both"
)

// SecretKeyRef names a key of a Secret in the namespace of flock.
type SecretKeyRef struct {
	// Name of the Secret.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`
	Name string `json:"name"`
	// Key in the Secret's data.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9._-]+$`
	Key string `json:"key"`
}

// BGPTimers of a session.
//
// +kubebuilder:validation:XValidation:rule="!has(self.keepaliveSeconds) || self.keepaliveSeconds * 2 <= (has(self.holdSeconds) ? self.holdSeconds : 9)",message="keepaliveSeconds must be at most half of holdSeconds (default 9), or one lost message ends the session; a third is usual (RFC 4271 section 4.4)"
type BGPTimers struct {
	// HoldSeconds without a message after which the session ends. The lower of this and
	// the router's value is used (RFC 4271 section 4.2). Default 9.
	// +kubebuilder:validation:XValidation:rule="self >= 3 && self <= 65535",message="must be between 3 and 65535 (RFC 4271 section 4.2); 0, which would never notice a dead router, is not supported"
	// +optional
	HoldSeconds *int32 `json:"holdSeconds,omitempty"`
	// KeepaliveSeconds between messages. Default: a third of holdSeconds.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 32767",message="must be between 1 and 32767"
	// +optional
	KeepaliveSeconds *int32 `json:"keepaliveSeconds,omitempty"`
	// ConnectRetrySeconds between attempts to connect to the router. Default 5.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 3600",message="must be between 1 and 3600"
	// +optional
	ConnectRetrySeconds *int32 `json:"connectRetrySeconds,omitempty"`
}

// BFD intervals. A path is dead after multiplier intervals without a packet. The
// slower interval of both ends is used. By default that takes 300 ms.
type BFD struct {
	// ReceiveMilliseconds between packets from the router. Default 100.
	// +kubebuilder:validation:XValidation:rule="self >= 10 && self <= 60000",message="must be between 10 and 60000 milliseconds"
	// +optional
	ReceiveMilliseconds *int32 `json:"receiveMilliseconds,omitempty"`
	// TransmitMilliseconds between packets to the router. Default 100.
	// +kubebuilder:validation:XValidation:rule="self >= 10 && self <= 60000",message="must be between 10 and 60000 milliseconds"
	// +optional
	TransmitMilliseconds *int32 `json:"transmitMilliseconds,omitempty"`
	// Multiplier is the number of intervals without a packet. Default 3.
	// +kubebuilder:validation:XValidation:rule="self >= 2 && self <= 255",message="must be between 2 and 255: one lost packet is no failure"
	// +optional
	Multiplier *int32 `json:"multiplier,omitempty"`
}

// BGPGracefulRestart keeps traffic flowing while BIRD or the router's daemon
// restarts (RFC 4724).
//
// +kubebuilder:validation:XValidation:rule="!has(self.longLivedStaleSeconds) || !has(self.mode) || self.mode == 'enabled'",message="longLivedStaleSeconds needs mode enabled (RFC 9494 builds on RFC 4724)"
type BGPGracefulRestart struct {
	// Mode: enabled (the router keeps the node's routes while BIRD restarts, and the
	// node keeps the router's routes while the router's daemon restarts), aware (only
	// the node keeps routes), or disabled. Default enabled.
	// +kubebuilder:validation:Enum=enabled;aware;disabled
	// +optional
	Mode GracefulRestartMode `json:"mode,omitempty"`
	// RestartSeconds that the router keeps the node's routes. Default 120.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 4095",message="must be between 1 and 4095, what the capability has room for (RFC 4724 section 3)"
	// +optional
	RestartSeconds *int32 `json:"restartSeconds,omitempty"`
	// LongLivedStaleSeconds that the router then keeps the node's routes as a last
	// resort (RFC 9494). Absent: it does not.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 16777215",message="must be between 1 and 16777215, what the capability has room for (RFC 9494 section 3)"
	// +optional
	LongLivedStaleSeconds *int32 `json:"longLivedStaleSeconds,omitempty"`
}

// GracefulRestartMode is enabled, aware or disabled.
type GracefulRestartMode string

const (
	GracefulRestartEnabled  GracefulRestartMode = "enabled"
	GracefulRestartAware    GracefulRestartMode = "aware"
	GracefulRestartDisabled GracefulRestartMode = "disabled"
)

// BGPExport is the attributes of routes that are announced to a peer.
type BGPExport struct {
	// Communities (RFC 1997), as 64512:100 or the name of a well-known one.
	// +kubebuilder:validation:MaxItems=16
	// +listType=set
	// +optional
	Communities []Community `json:"communities,omitempty"`
	// LargeCommunities (RFC 8092), as 4200000001:1:100.
	// +kubebuilder:validation:MaxItems=16
	// +listType=set
	// +optional
	LargeCommunities []LargeCommunity `json:"largeCommunities,omitempty"`
	// LocalPreference (RFC 4271 section 5.1.5), for internal peers only. The highest
	// value wins. Default 100.
	// +kubebuilder:validation:XValidation:rule="self >= 0 && self <= 4294967295",message="must be between 0 and 4294967295"
	// +optional
	LocalPreference *int64 `json:"localPreference,omitempty"`
	// MED (RFC 4271 section 5.1.4): among several links to one AS the lowest value
	// wins. Absent: no MED is sent.
	// +kubebuilder:validation:XValidation:rule="self >= 0 && self <= 4294967295",message="must be between 0 and 4294967295"
	// +optional
	MED *int64 `json:"med,omitempty"`
	// Prepend is how many times the local AS is added to the path, which makes it
	// less preferred; for external peers only. Default 0.
	// +kubebuilder:validation:XValidation:rule="self >= 0 && self <= 16",message="must be between 0 and 16"
	// +optional
	Prepend int32 `json:"prepend,omitempty"`
}

// Community is a BGP community (RFC 1997): two numbers of 16 bits, or the name of
// a well-known one.
//
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:XValidation:rule="self in ['no-export', 'no-advertise', 'no-export-subconfed', 'no-peer', 'blackhole', 'graceful-shutdown'] || (self.matches('^[0-9]{1,5}:[0-9]{1,5}$') && self.split(':').all(n, int(n) <= 65535))",message="not a community: want two numbers up to 65535, as in 64512:100, or one of no-export, no-advertise, no-export-subconfed, no-peer, blackhole, graceful-shutdown; for larger numbers use largeCommunities"
type Community string

// LargeCommunity is a large BGP community (RFC 8092): three numbers of 32 bits.
//
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:XValidation:rule="self.matches('^[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$') && self.split(':').all(n, int(n) <= 4294967295)",message="not a large community: want three numbers up to 4294967295, as in 4200000001:1:100"
type LargeCommunity string

// Import is which routes a node accepts from a router. Always rejected are the
// node's own pod CIDRs, the subnets of its links, all that is more specific than
// these, and addresses that are not routed (loopback, link-local, multicast).
//
// +kubebuilder:validation:XValidation:rule="(self.policy == 'prefixes') == (has(self.prefixes) && size(self.prefixes) > 0)",message="prefixes and policy go together: list prefixes with policy prefixes, and only then"
type Import struct {
	// Policy: none, default (only the default routes), all, or prefixes (those listed
	// under prefixes).
	// +kubebuilder:validation:Enum=none;default;all;prefixes
	Policy ImportPolicy `json:"policy"`
	// Prefixes to accept with policy prefixes.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Prefixes []PrefixMatch `json:"prefixes,omitempty"`
	// MaxPrefixes is how many prefixes of each family are accepted (RFC 7454 section 8).
	// Default 10000.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 10000000",message="must be between 1 and 10000000"
	// +optional
	MaxPrefixes *int32 `json:"maxPrefixes,omitempty"`
	// MaxPrefixesAction if there are more: block (accept no more), warn (in BIRD's log,
	// and accept them), restart the session (RFC 4486), or disable it. Default block.
	// Only for BGP.
	// +kubebuilder:validation:Enum=block;warn;restart;disable
	// +optional
	MaxPrefixesAction MaxPrefixesAction `json:"maxPrefixesAction,omitempty"`
}

// ImportPolicy is which routes a node accepts.
type ImportPolicy string

const (
	ImportNone     ImportPolicy = "none"
	ImportDefault  ImportPolicy = "default"
	ImportAll      ImportPolicy = "all"
	ImportPrefixes ImportPolicy = "prefixes"
)

// MaxPrefixesAction is what happens to a session with too many routes.
type MaxPrefixesAction string

const (
	MaxPrefixesBlock   MaxPrefixesAction = "block"
	MaxPrefixesWarn    MaxPrefixesAction = "warn"
	MaxPrefixesRestart MaxPrefixesAction = "restart"
	MaxPrefixesDisable MaxPrefixesAction = "disable"
)

// PrefixMatch matches a prefix, and with ge or le also more specific ones.
//
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.prefix) || ((!has(self.ge) || self.ge >= cidr(self.prefix).prefixLength()) && (!has(self.le) || self.le >= cidr(self.prefix).prefixLength()) && (!has(self.ge) || !has(self.le) || self.ge <= self.le))",message="want prefix length <= ge <= le, as in prefix: 2001:db8::/32, ge: 40, le: 64"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.prefix) || cidr(self.prefix).ip().family() == 6 || ((!has(self.ge) || self.ge <= 32) && (!has(self.le) || self.le <= 32))",message="ge and le of an IPv4 prefix are at most 32"
type PrefixMatch struct {
	// Prefix that routes must be equal to, or part of.
	Prefix CIDR `json:"prefix"`
	// GE is the shortest prefix length that matches.
	// +kubebuilder:validation:XValidation:rule="self >= 0 && self <= 128",message="must be between 0 and 128"
	// +optional
	GE *int32 `json:"ge,omitempty"`
	// LE is the longest prefix length that matches. Default: the length of prefix; with
	// ge, the length of an address.
	// +kubebuilder:validation:XValidation:rule="self >= 0 && self <= 128",message="must be between 0 and 128"
	// +optional
	LE *int32 `json:"le,omitempty"`
}
