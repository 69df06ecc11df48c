package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

const addressClaims = "addressclaims"

// Claims makes and deletes AddressClaims, and looks at the pods that they are of. It
// waits for nothing but the answer: a pod that is being started waits for it.
type Claims struct {
	flock, core rest.Interface
}

// NewClaims returns a client with the address and the credentials of c.
func NewClaims(c *rest.Config) (*Claims, error) {
	c = rest.CopyConfig(c)
	c.QPS = -1 // client-go's own limit is 5 a second; the API server has its own
	flock, err := restClient(c, "/apis", v1alpha1.GroupVersion, v1alpha1.AddToScheme)
	if err != nil {
		return nil, err
	}
	core, err := restClient(c, "/api", corev1.SchemeGroupVersion, corev1.AddToScheme)
	if err != nil {
		return nil, err
	}
	return &Claims{flock, core}, nil
}

// CreateClaim creates claim; that there is one of its name already is an error.
func (c *Claims) CreateClaim(ctx context.Context, claim *v1alpha1.AddressClaim) error {
	return c.flock.Post().Resource(addressClaims).Body(claim).Do(ctx).Error()
}

// GetClaim returns the claim of that name.
func (c *Claims) GetClaim(ctx context.Context, name string) (*v1alpha1.AddressClaim, error) {
	claim := &v1alpha1.AddressClaim{}
	return claim, c.flock.Get().Resource(addressClaims).Name(name).Do(ctx).Into(claim)
}

// DeleteClaim deletes the claim of that name if it has that UID; if it has another,
// the error is a conflict.
func (c *Claims) DeleteClaim(ctx context.Context, name string, uid types.UID) error {
	only := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
	return c.flock.Delete().Resource(addressClaims).Name(name).Body(only).Do(ctx).Error()
}

// ClaimsOf returns all claims of a node's pods.
func (c *Claims) ClaimsOf(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error) {
	list := &v1alpha1.AddressClaimList{}
	err := c.flock.Get().Resource(addressClaims).Param("fieldSelector", "spec.nodeName="+node).Do(ctx).Into(list)
	return list.Items, err
}

// GetPod returns a pod as it is now.
func (c *Claims) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	return pod, c.core.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(pod)
}
