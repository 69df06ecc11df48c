package kube

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

const addressClaims = "addressclaims"

// CreateClaim creates claim; that there is one of its name already is an error.
func (c *Client) CreateClaim(ctx context.Context, claim *v1alpha1.AddressClaim) error {
	return c.flock.Post().Resource(addressClaims).Body(claim).Do(ctx).Error()
}

// GetClaim returns the claim of that name.
func (c *Client) GetClaim(ctx context.Context, name string) (*v1alpha1.AddressClaim, error) {
	claim := &v1alpha1.AddressClaim{}
	return claim, c.flock.Get().Resource(addressClaims).Name(name).Do(ctx).Into(claim)
}

// AddressClaims follows all claims of the cluster.
func (c *Client) AddressClaims(changed func()) *Cache[*v1alpha1.AddressClaim] {
	onlySpec := func(obj any) (any, error) {
		if claim, ok := obj.(*v1alpha1.AddressClaim); ok {
			claim.ObjectMeta = metav1.ObjectMeta{Name: claim.Name, ResourceVersion: claim.ResourceVersion}
		}
		return obj, nil
	}
	return newCache[*v1alpha1.AddressClaim](c.flock, addressClaims, &v1alpha1.AddressClaim{}, fields.Everything(), onlySpec, changed)
}

// ClaimsOf returns all claims of a node's pods.
func (c *Client) ClaimsOf(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error) {
	return c.claimsOf(ctx, node, "")
}

// CachedClaimsOf is ClaimsOf as the API server's cache has them, which may be a moment behind.
// The API server does not read and decode the claims of all nodes from etcd for it.
func (c *Client) CachedClaimsOf(ctx context.Context, node string) ([]v1alpha1.AddressClaim, error) {
	return c.claimsOf(ctx, node, "0")
}

func (c *Client) claimsOf(ctx context.Context, node, version string) ([]v1alpha1.AddressClaim, error) {
	list := &v1alpha1.AddressClaimList{}
	err := c.flock.Get().Resource(addressClaims).Param("fieldSelector", "spec.nodeName="+node).Param("resourceVersion", version).Do(ctx).Into(list)
	return list.Items, err
}

// ClaimsIn returns all claims of the pods of a namespace.
func (c *Client) ClaimsIn(ctx context.Context, namespace string) ([]v1alpha1.AddressClaim, error) {
	list := &v1alpha1.AddressClaimList{}
	err := c.flock.Get().Resource(addressClaims).Param("fieldSelector", "spec.podNamespace="+namespace).Do(ctx).Into(list)
	return list.Items, err
}

// GetPod returns a pod as it is now.
func (c *Client) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	return pod, c.core.Get().Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(pod)
}
