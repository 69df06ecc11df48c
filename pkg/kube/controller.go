package kube

import (
	"context"
	"encoding/json"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// What flock-controller follows and writes. Each of its writes of a status or a claim names
// the version that it is made from; if the object has changed since, the error is a conflict.

// Services follows all Services. Their managed fields are not kept.
func (c *Client) Services(changed func()) *Cache[*corev1.Service] {
	return newCache[*corev1.Service](c.core, "services", &corev1.Service{}, fields.Everything(), withoutManagedFields, changed)
}

// WholeClaims follows all AddressClaims, as they are: those of AddressClaims cannot be
// written.
func (c *Client) WholeClaims(changed func()) *Cache[*v1alpha1.AddressClaim] {
	return newCache[*v1alpha1.AddressClaim](c.flock, addressClaims, &v1alpha1.AddressClaim{}, fields.Everything(), nil, changed)
}

// NodeConfigs follows all NodeConfigs. Their managed fields are not kept.
func (c *Client) NodeConfigs(changed func()) *Cache[*v1alpha1.NodeConfig] {
	return newCache[*v1alpha1.NodeConfig](c.flock, nodeConfigs, &v1alpha1.NodeConfig{}, fields.Everything(), withoutManagedFields, changed)
}

// AllNamespaces follows all namespaces, of which only name and labels are kept.
func (c *Client) AllNamespaces(changed func()) *Cache[*corev1.Namespace] {
	return newCache[*corev1.Namespace](c.core, "namespaces", &corev1.Namespace{}, fields.Everything(), onlyNeeded, changed)
}

// Nodes follows all Nodes, of which only name, UID, labels, pod CIDRs, taints, addresses and
// conditions are kept.
func (c *Client) Nodes(changed func()) *Cache[*corev1.Node] {
	only := func(obj any) (any, error) {
		if n, ok := obj.(*corev1.Node); ok {
			n.ObjectMeta = metav1.ObjectMeta{Name: n.Name, UID: n.UID, Labels: n.Labels, ResourceVersion: n.ResourceVersion}
			n.Spec = corev1.NodeSpec{PodCIDRs: n.Spec.PodCIDRs, Taints: n.Spec.Taints}
			n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: n.Status.Conditions}
		}
		return obj, nil
	}
	return newCache[*corev1.Node](c.core, nodes, &corev1.Node{}, fields.Everything(), only, changed)
}

// Secrets follows the Secrets of a namespace, but for Helm's, each of which is a release of
// up to a megabyte. Only names, UID, version and data are kept.
func (c *Client) Secrets(namespace string, changed func()) *Cache[*corev1.Secret] {
	only := func(obj any) (any, error) {
		if s, ok := obj.(*corev1.Secret); ok {
			s.ObjectMeta = metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion}
		}
		return obj, nil
	}
	which := fields.OneTermNotEqualSelector("type", "helm.sh/release.v1")
	return newCacheFrom(cache.NewListWatchFromClient(c.core, "secrets", namespace, which), &corev1.Secret{}, only, changed)
}

const daemonSets = "daemonsets"

// DaemonSets follows the DaemonSets of a namespace. Their managed fields are not kept.
func (c *Client) DaemonSets(namespace string, changed func()) *Cache[*appsv1.DaemonSet] {
	return newCacheFrom(cache.NewListWatchFromClient(c.apps, daemonSets, namespace, fields.Everything()), &appsv1.DaemonSet{}, withoutManagedFields, changed)
}

// Pods follows the metadata of all pods, of which only names, UID and these annotations are
// kept.
func (c *Client) Pods(annotations []string, changed func()) *Cache[*metav1.PartialObjectMetadata] {
	only := func(obj any) (any, error) {
		if p, ok := obj.(*metav1.PartialObjectMetadata); ok {
			kept := metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}
			for _, a := range annotations {
				if v, ok := p.Annotations[a]; ok {
					metav1.SetMetaDataAnnotation(&kept, a, v)
				}
			}
			p.ObjectMeta = kept
		}
		return obj, nil
	}
	pods := c.metadata.Resource(corev1.SchemeGroupVersion.WithResource("pods"))
	from := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return pods.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return pods.Watch(ctx, o)
		},
	}
	return newCacheFrom(from, &metav1.PartialObjectMetadata{}, only, changed)
}

func withoutManagedFields(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

// GetService reads a Service.
func (c *Client) GetService(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	svc := &corev1.Service{}
	return svc, c.core.Get().Namespace(namespace).Resource("services").Name(name).Do(ctx).Into(svc)
}

// PatchServiceStatus makes these the addresses and the conditions in the status of a
// Service that is as svc is, and returns its new version.
func (c *Client) PatchServiceStatus(ctx context.Context, svc *corev1.Service, ingress []corev1.LoadBalancerIngress, conditions []metav1.Condition) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": svc.UID, "resourceVersion": svc.ResourceVersion},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": ingress}, "conditions": conditions},
	})
	if err != nil {
		return "", err
	}
	out := &corev1.Service{}
	err = c.core.Patch(types.MergePatchType).Namespace(svc.Namespace).Resource("services").Name(svc.Name).SubResource("status").Body(patch).Do(ctx).Into(out)
	return out.ResourceVersion, err
}

// UpdateClaim replaces the claim, and returns it as it is then.
func (c *Client) UpdateClaim(ctx context.Context, claim *v1alpha1.AddressClaim) (*v1alpha1.AddressClaim, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	out := &v1alpha1.AddressClaim{}
	return out, c.flock.Put().Resource(addressClaims).Name(claim.Name).Body(claim).Do(ctx).Into(out)
}

// MakeClaim creates the claim, and returns it as it is then.
func (c *Client) MakeClaim(ctx context.Context, claim *v1alpha1.AddressClaim) (*v1alpha1.AddressClaim, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	out := &v1alpha1.AddressClaim{}
	return out, c.flock.Post().Resource(addressClaims).Body(claim).Do(ctx).Into(out)
}

// DropClaim deletes the claim if it is as it is here.
func (c *Client) DropClaim(ctx context.Context, claim *v1alpha1.AddressClaim) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	only := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &claim.UID, ResourceVersion: &claim.ResourceVersion}}
	return c.flock.Delete().Resource(addressClaims).Name(claim.Name).Body(only).Do(ctx).Error()
}

// PatchConditions makes these the conditions of a NodeConfig that is as nc is.
func (c *Client) PatchConditions(ctx context.Context, nc *v1alpha1.NodeConfig, conditions []metav1.Condition) error {
	return c.patchFlockStatus(ctx, nodeConfigs, nc.ObjectMeta, map[string]any{"conditions": conditions})
}

// PatchPasswords makes these the passwords in the status of a NodeConfig, nil: none, whatever
// version it has: they are flock-controller's alone.
func (c *Client) PatchPasswords(ctx context.Context, nc *v1alpha1.NodeConfig, passwords *v1alpha1.SealedPasswords) error {
	of := nc.ObjectMeta
	of.ResourceVersion = ""
	return c.patchFlockStatus(ctx, nodeConfigs, of, map[string]any{"passwords": passwords})
}

// PatchTemplateTurn makes turn that of a NodeConfig, whatever version it has. One that is
// withdrawn is that of the version of nc alone: in another, the node may have followed.
func (c *Client) PatchTemplateTurn(ctx context.Context, nc *v1alpha1.NodeConfig, turn v1alpha1.TemplateTurn) error {
	of := nc.ObjectMeta
	if !turn.Withdrawn {
		of.ResourceVersion = ""
	}
	return c.patchFlockStatus(ctx, nodeConfigs, of, map[string]any{"templateTurn": allFields(turn)})
}

// PatchPodCIDROverlaps makes overlaps those in the status of a NodeConfig, nil: none, whatever
// version it has: they are flock-controller's alone.
func (c *Client) PatchPodCIDROverlaps(ctx context.Context, nc *v1alpha1.NodeConfig, overlaps []v1alpha1.PodCIDROverlap) error {
	of := nc.ObjectMeta
	of.ResourceVersion = ""
	return c.patchFlockStatus(ctx, nodeConfigs, of, map[string]any{"podCIDROverlaps": overlaps})
}

// PatchTemplateStatus makes status that of a NodeConfigTemplate, whatever version it has.
func (c *Client) PatchTemplateStatus(ctx context.Context, t *v1alpha1.NodeConfigTemplate, status v1alpha1.NodeConfigTemplateStatus) error {
	of := t.ObjectMeta
	of.ResourceVersion = ""
	return c.patchFlockStatus(ctx, "nodeconfigtemplates", of, allFields(status))
}

// PatchPoolStatus makes status that of an AddressPool, whatever version it has.
func (c *Client) PatchPoolStatus(ctx context.Context, ap *v1alpha1.AddressPool, status v1alpha1.AddressPoolStatus) error {
	of := ap.ObjectMeta
	of.ResourceVersion = ""
	return c.patchFlockStatus(ctx, "addresspools", of, map[string]any{
		"static": status.Static, "anycast": status.Anycast, "service": status.Service, "users": status.Users,
	})
}

func (c *Client) patchFlockStatus(ctx context.Context, resource string, of metav1.ObjectMeta, status any) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	metadata := map[string]any{"uid": of.UID}
	if of.ResourceVersion != "" {
		metadata["resourceVersion"] = of.ResourceVersion
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata, "status": status})
	if err != nil {
		return err
	}
	return c.flock.Patch(types.MergePatchType).Resource(resource).Name(of.Name).SubResource("status").Body(patch).Do(ctx).Error()
}
