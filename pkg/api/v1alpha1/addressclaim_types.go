package v1alpha1

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AddressClaim says who has an address of an AddressPool that more than one node could
// give: a pod, by a static address, or Services. Its name is derived from the address. Since
// the API server has one object of a name, two pods, or a pod and a Service, cannot have the
// address. flock's agents create and delete the claims of pods, and flock-controller those of
// Services. A claim that was deleted by hand while its pod runs is created again within
// minutes, unless another pod has claimed the address in the meantime; that of a Service at
// once.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ac
// +kubebuilder:selectablefield:JSONPath=.spec.nodeName
// +kubebuilder:selectablefield:JSONPath=.spec.podNamespace
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.spec.address`
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.podNamespace`
// +kubebuilder:printcolumn:name="Pod",type=string,JSONPath=`.spec.podName`
// +kubebuilder:printcolumn:name="Service",type=string,JSONPath=`.spec.services[0].name`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Quarantined Until",type=string,JSONPath=`.spec.quarantinedUntil`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!isIP(self.spec.address) || (ip(self.spec.address).family() == 4 ? self.metadata.name == self.spec.address : self.metadata.name.matches('^[0-9a-f]{4}(-[0-9a-f]{4}){7}$') && ip(self.metadata.name.replace('-', ':')) == ip(self.spec.address))",message="the name must be the address: an IPv4 address as it is, an IPv6 address with all its digits and dashes for colons, as in 2001-0db8-0200-0000-0000-0000-0000-0007"
type AddressClaim struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec of a pod's claim changes only by its quarantine: it gets quarantinedUntil, and
	// then another pod of the same workload. Of one of Services, services changes.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf || self.address == oldSelf.address && (has(self.services) ? has(oldSelf.services) : has(self.quarantinedUntil) && !has(oldSelf.quarantinedUntil) && self.podUID == oldSelf.podUID && self.nodeName == oldSelf.nodeName && self.podNamespace == oldSelf.podNamespace && self.podName == oldSelf.podName && has(self.workload) == has(oldSelf.workload) && (!has(self.workload) || self.workload == oldSelf.workload) || has(oldSelf.quarantinedUntil) && !has(self.quarantinedUntil) && self.podNamespace == oldSelf.podNamespace && (self.podUID == oldSelf.podUID && self.nodeName == oldSelf.nodeName || has(self.workload) && has(oldSelf.workload) && self.workload == oldSelf.workload))",message="a claim is immutable but for its quarantine: delete it and create a new one to give the address to another pod"
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

// AddressClaimSpec is an address and who has it: either a pod or Services.
//
// +kubebuilder:validation:XValidation:rule="has(self.services) ? !has(self.podNamespace) && !has(self.podName) && !has(self.podUID) && !has(self.nodeName) && !has(self.workload) && !has(self.quarantinedUntil) : has(self.podNamespace) && has(self.podName) && has(self.podUID) && has(self.nodeName)",message="a claim is either that of a pod, with podNamespace, podName, podUID and nodeName, or that of services"
type AddressClaimSpec struct {
	// Address of either family.
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="not an IP address: want an address as in 2001:db8::7 or 203.0.113.7"
	Address string `json:"address"`

	// PodNamespace is the namespace of the pod that has the address.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +optional
	PodNamespace string `json:"podNamespace,omitempty"`

	// PodName is the name of the pod that has the address.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +optional
	PodName string `json:"podName,omitempty"`

	// PodUID is the pod's UID. For a static pod it is the kubelet's UID, not that of
	// the mirror pod.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +optional
	PodUID string `json:"podUID,omitempty"`

	// NodeName is the node on which the pod runs. Its agent has created the claim.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +optional
	NodeName string `json:"nodeName,omitempty"`

	// Workload is the name of what the pod belongs to in its namespace: a Deployment, say, or
	// the pod itself if it has no controller. Its pods may have the address again before the
	// end of its quarantine.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Workload string `json:"workload,omitempty"`

	// QuarantinedUntil: the pod does not have the address any more, and until then nobody
	// may have it but another pod of the same workload.
	// +optional
	QuarantinedUntil *metav1.Time `json:"quarantinedUntil,omitempty"`

	// Services that have the address, each for its ports.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=128
	// +listType=map
	// +listMapKey=uid
	// +optional
	Services []ServiceClaim `json:"services,omitempty"`
}

// ServiceClaim is a Service that has an address, and the ports for which it has it.
type ServiceClaim struct {
	// Namespace of the Service.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`

	// Name of the Service.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// UID of the Service.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	UID string `json:"uid"`

	// Ports as 80/TCP. No two Services have the same one.
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:MaxLength=16
	// +listType=atomic
	// +optional
	Ports []string `json:"ports,omitempty"`

	// ResourceVersion is that of the Service for which the address was claimed. A status
	// with the address is written over this version of the Service only.
	// +kubebuilder:validation:MaxLength=128
	// +optional
	ResourceVersion string `json:"resourceVersion,omitempty"`
}

// AddressClaimName is the name of the claim to addr.
func AddressClaimName(addr netip.Addr) string {
	return strings.ReplaceAll(addr.StringExpanded(), ":", "-")
}
