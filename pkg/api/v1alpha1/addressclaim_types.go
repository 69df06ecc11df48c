package v1alpha1

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AddressClaim says which pod holds an address that more than one node could give:
// a static address from an AddressPool. Its name is made of the address, so the API
// server, which keeps one object of a name, keeps two pods from having it. flock's
// agents make and delete claims. One that was deleted by hand while its pod runs is
// made again within minutes, unless another pod has asked for the address before.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ac
// +kubebuilder:selectablefield:JSONPath=.spec.nodeName
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.podNamespace`
// +kubebuilder:printcolumn:name="Pod",type=string,JSONPath=`.spec.podName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!isIP(self.spec.address) || (ip(self.spec.address).family() == 4 ? self.metadata.name == self.spec.address : self.metadata.name.matches('^[0-9a-f]{4}(-[0-9a-f]{4}){7}$') && ip(self.metadata.name.replace('-', ':')) == ip(self.spec.address))",message="the name must be the address: an IPv4 address as it is, an IPv6 address with all its digits and dashes for colons, as in 2001-0db8-0200-0000-0000-0000-0000-0007"
type AddressClaim struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec never changes: an address changes hands by a new claim.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a claim does not change: an address is given to another pod by deleting the claim and making a new one"
	Spec AddressClaimSpec `json:"spec"`
}

// AddressClaimList is a list of AddressClaims.
//
// +kubebuilder:object:root=true
type AddressClaimList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AddressClaim `json:"items"`
}

// AddressClaimSpec is who holds what.
type AddressClaimSpec struct {
	// Address that is held, of either family.
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="not an IP address: want one as in 2001:db8::7 or 203.0.113.7"
	Address string `json:"address"`

	// PodNamespace is the namespace of the pod that holds it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	PodNamespace string `json:"podNamespace"`

	// PodName is the name of the pod that holds it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	PodName string `json:"podName"`

	// PodUID tells the pod from another one of the same name. For a static pod it
	// is the kubelet's, not that of the mirror pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	PodUID string `json:"podUID"`

	// NodeName is the node that the pod runs on, whose agent made the claim.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
}

// AddressClaimName is the name of the claim to addr.
func AddressClaimName(addr netip.Addr) string {
	return strings.ReplaceAll(addr.StringExpanded(), ":", "-")
}
