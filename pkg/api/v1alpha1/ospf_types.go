package v1alpha1

// OSPF configures the node as an OSPF router that announces its own prefixes and
// forwards nothing for others: OSPFv3 for IPv6 (RFC 5340), OSPFv2 for
// IPv4 (RFC 2328) or OSPFv3 for both (RFC 5838).
type OSPF struct {
	// RouterID in dotted decimal, unique among the routers of the domain. It
	// need not be an address of the node.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'",message="must be four decimal numbers, as in 192.0.2.1, and not 0.0.0.0 (RFC 2328 appendix C.1)"
	RouterID string `json:"routerID"`

	OSPFRouting `json:",inline"`
}

// OSPFRouting is the part of the OSPF configuration that many nodes can share.
//
// +kubebuilder:validation:XValidation:rule="!has(self.ipv4Version) || self.ipv4Version != 'v3' || !has(self.interfaces) || self.interfaces.all(i, !has(i.authentication) || !has(i.authentication.ipv4Algorithm) || i.authentication.ipv4Algorithm != 'md5')",message="OSPFv3 has no md5 (RFC 7166): leave out authentication.ipv4Algorithm, or set ipv4Version to v2"
type OSPFRouting struct {
	// Area of all interfaces, in dotted decimal. It must not be a stub area or an
	// NSSA: the node's routes are external ones. Default 0.0.0.0, the backbone.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="isIP(self) && ip(self).family() == 4",message="must be four decimal numbers: 0.0.0.0 for the backbone, 0.0.0.7 for area 7"
	// +optional
	Area string `json:"area,omitempty"`

	// IPv4Version: v2, or v3 for routers that speak RFC 5838. Default v2.
	// +kubebuilder:validation:Enum=v2;v3
	// +optional
	IPv4Version OSPFVersion `json:"ipv4Version,omitempty"`

	// Families that OSPF is spoken for. Default: both.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	// +optional
	Families []Family `json:"families,omitempty"`

	// Interfaces towards the routers.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=name
	Interfaces []OSPFInterface `json:"interfaces"`

	// Cost of the node's routes, which are external ones. Default 20.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 16777214",message="must be between 1 and 16777214 (RFC 2328 appendix A.4.5)"
	// +optional
	Cost *int32 `json:"cost,omitempty"`

	// MetricType of the node's routes: 1 adds the cost of the way to the node,
	// so that the nearest of several nodes with one anycast address is chosen;
	// 2 does not. Default 1.
	// +kubebuilder:validation:Enum=1;2
	// +optional
	MetricType int32 `json:"metricType,omitempty"`

	// SourceAddresses are the node's source addresses on routes learned by OSPF.
	// Absent: an address of the outgoing interface.
	// +optional
	SourceAddresses *SourceAddresses `json:"sourceAddresses,omitempty"`

	// Import is which routes the node accepts from OSPF. Absent: none.
	// +optional
	Import *Import `json:"import,omitempty"`
}

// OSPFVersion is a version of the protocol.
type OSPFVersion string

const (
	OSPFv2 OSPFVersion = "v2"
	OSPFv3 OSPFVersion = "v3"
)

// OSPFInterface is an interface that OSPF is spoken on. All routers of its link
// must agree on the intervals, the network type and the authentication.
//
// +kubebuilder:validation:XValidation:rule="(has(self.deadSeconds) ? self.deadSeconds : 40) >= 2 * (has(self.helloSeconds) ? self.helloSeconds : 10)",message="deadSeconds (default 40) must be at least twice helloSeconds (default 10), or one lost packet ends the adjacency; four times is usual (RFC 2328 appendix C.3)"
type OSPFInterface struct {
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$')",message="not the name of an interface: want letters, digits, dots, dashes and underscores, at most 15, as in eth0 or bond0.100"
	Name string `json:"name"`
	// Cost of sending over the interface. Default 65535, the highest: routers
	// send nothing through the node that has another way (RFC 6987).
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 65535",message="must be between 1 and 65535 (RFC 2328 appendix C.3)"
	// +optional
	Cost *int32 `json:"cost,omitempty"`
	// NetworkType: broadcast, or point-to-point on a link with one router.
	// Default broadcast.
	// +kubebuilder:validation:Enum=broadcast;point-to-point
	// +optional
	NetworkType OSPFNetworkType `json:"networkType,omitempty"`
	// Priority in the election of the designated router. Default 0: never the
	// node, which may be rebooted at any time.
	// +kubebuilder:validation:XValidation:rule="self >= 0 && self <= 255",message="must be between 0 (never) and 255"
	// +optional
	Priority int32 `json:"priority,omitempty"`
	// HelloSeconds between hellos. Default 10.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 65535",message="must be between 1 and 65535"
	// +optional
	HelloSeconds *int32 `json:"helloSeconds,omitempty"`
	// DeadSeconds without a hello end the adjacency. Default 40.
	// +kubebuilder:validation:XValidation:rule="self >= 2 && self <= 65535",message="must be between 2 and 65535"
	// +optional
	DeadSeconds *int32 `json:"deadSeconds,omitempty"`
	// BFD detects a dead neighbor within a fraction of a second (RFC 5881).
	// +optional
	BFD *BFD `json:"bfd,omitempty"`
	// Authentication of the packets (RFC 5709, RFC 7166). Absent: none.
	// +optional
	Authentication *OSPFAuthentication `json:"authentication,omitempty"`
}

// OSPFNetworkType is how a link looks to OSPF.
type OSPFNetworkType string

const (
	OSPFBroadcast    OSPFNetworkType = "broadcast"
	OSPFPointToPoint OSPFNetworkType = "point-to-point"
)

// OSPFAuthentication is a key that the routers of a link share.
type OSPFAuthentication struct {
	// PasswordSecretRef names the key: 1 to 64 printable ASCII characters without
	// a double quote, of which md5 uses 16. Without it OSPF is not spoken.
	PasswordSecretRef SecretKeyRef `json:"passwordSecretRef"`
	// Families that are authenticated. Default: all that OSPF is spoken for.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +listType=set
	// +optional
	Families []Family `json:"families,omitempty"`
	// KeyID that goes with the key. Default 1.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 255",message="must be between 1 and 255 (RFC 2328 appendix D.3)"
	// +optional
	KeyID int32 `json:"keyID,omitempty"`
	// Algorithm. Default hmac-sha-256.
	// +kubebuilder:validation:Enum=hmac-sha-256;hmac-sha-384;hmac-sha-512
	// +optional
	Algorithm OSPFAlgorithm `json:"algorithm,omitempty"`
	// IPv4Algorithm for OSPFv2, where its routers know only md5 (RFC 2328
	// appendix D). Default: algorithm.
	// +kubebuilder:validation:Enum=md5;hmac-sha-256;hmac-sha-384;hmac-sha-512
	// +optional
	IPv4Algorithm OSPFAlgorithm `json:"ipv4Algorithm,omitempty"`
}

// OSPFAlgorithm is a keyed hash.
type OSPFAlgorithm string

const (
	OSPFMD5    OSPFAlgorithm = "md5"
	OSPFSHA256 OSPFAlgorithm = "hmac-sha-256"
	OSPFSHA384 OSPFAlgorithm = "hmac-sha-384"
	OSPFSHA512 OSPFAlgorithm = "hmac-sha-512"
)
