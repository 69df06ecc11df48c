package v1alpha1

// BGP configures the node as a BGP speaker (RFC 4271).
type BGP struct {
	// LocalAS is the node's autonomous system number (RFC 6793).
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 4294967294 && self != 23456 && self != 65535",message="must be between 1 and 4294967294 and not 23456 or 65535: AS 0 (RFC 7607), 23456 (RFC 6793), 65535 and 4294967295 (RFC 7300) are reserved"
	LocalAS int64 `json:"localAS"`

	// RouterID is the BGP identifier in dotted decimal (RFC 6286), unique in
	// the AS. It need not be an address of the node.
	// +kubebuilder:validation:MaxLength=15
	// +kubebuilder:validation:XValidation:rule="isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'",message="must be four decimal numbers, as in 192.0.2.1, and not 0.0.0.0 (RFC 6286)"
	RouterID string `json:"routerID"`

	// Peers are the routers that the node announces its prefixes to.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=name
	Peers []BGPPeer `json:"peers"`
}

// BGPPeer is one router.
type BGPPeer struct {
	// Name tells the peers of a node apart, in BIRD's protocol names too.
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[a-z]([a-z0-9-]*[a-z0-9])?$`
	Name string `json:"name"`

	// Address of the router.
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="not an IP address: want one as in 2001:db8::1 or 192.0.2.1"
	Address string `json:"address"`

	// RemoteAS is the router's autonomous system number.
	// +kubebuilder:validation:XValidation:rule="self >= 1 && self <= 4294967294 && self != 23456 && self != 65535",message="must be between 1 and 4294967294 and not 23456 or 65535: AS 0 (RFC 7607), 23456 (RFC 6793), 65535 and 4294967295 (RFC 7300) are reserved"
	RemoteAS int64 `json:"remoteAS"`
}
