package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupName is flock's API group, and the prefix of its labels and annotations.
const GroupName = "flock.fritzlab.net"

// GroupVersion is the group and version of every type of this package.
var GroupVersion = schema.GroupVersion{Group: GroupName, Version: "v1alpha1"}

// AddToScheme registers the types of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&NodeConfig{}, &NodeConfigList{},
		&AddressPool{}, &AddressPoolList{},
		&AddressClaim{}, &AddressClaimList{},
		&NodeConfigTemplate{}, &NodeConfigTemplateList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
