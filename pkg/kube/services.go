package kube

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// AnnouncedServices follows the Services that a node may announce, of which only what
// decides about that is kept: those of type LoadBalancer, or all. The API server selects by
// type, so that a node that announces nothing but load balancers costs it nothing for the
// others. Heard is called with true when the API server answers, and with false when it does not.
func (c *Client) AnnouncedServices(all bool, changed func(), heard func(bool)) *Cache[*corev1.Service] {
	which := fields.OneTermEqualSelector("spec.type", string(corev1.ServiceTypeLoadBalancer))
	if all {
		which = fields.Everything()
	}
	from := cache.NewListWatchFromClient(c.core, "services", "", which)
	list, watching := from.ListWithContextFunc, from.WatchFuncWithContext
	from.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		all, err := list(ctx, o)
		answers(ctx, err, heard)
		return all, err
	}
	from.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		w, err := watching(ctx, o)
		answers(ctx, err, heard)
		return w, err
	}
	return newCacheFrom[*corev1.Service](from, &corev1.Service{}, trimService, changed)
}

// answers says what came of a request.
func answers(ctx context.Context, err error, heard func(bool)) {
	if ctx.Err() == nil {
		heard(isAnswer(err))
	}
}

// isAnswer says whether the API server has answered. A refusal is an answer, too, but not an
// error of the server's, or of one between.
func isAnswer(err error) bool {
	var status apierrors.APIStatus
	return err == nil || errors.As(err, &status) && status.Status().Code > 0 && status.Status().Code < http.StatusInternalServerError
}

// Answers asks the API server for a node's Node, as it is stored now, and says whether it answers
// within patience.
func (c *Client) Answers(ctx context.Context, node string, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// An answer to come again later is one.
	return isAnswer(c.core.Get().Resource(nodes).Name(node).MaxRetries(0).Do(ctx).Error())
}

func trimService(obj any) (any, error) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return obj, nil
	}
	var labels map[string]string
	if name, ok := svc.Labels[v1alpha1.ServiceProxyNameLabel]; ok {
		labels = map[string]string{v1alpha1.ServiceProxyNameLabel: name}
	}
	svc.ObjectMeta = metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name, UID: svc.UID, ResourceVersion: svc.ResourceVersion, Labels: labels}
	var ports []corev1.ServicePort
	for _, p := range svc.Spec.Ports {
		ports = append(ports, corev1.ServicePort{Name: p.Name, Protocol: p.Protocol, Port: p.Port, TargetPort: p.TargetPort})
	}
	svc.Spec = corev1.ServiceSpec{
		Type: svc.Spec.Type, LoadBalancerClass: svc.Spec.LoadBalancerClass, Ports: ports, Selector: svc.Spec.Selector,
		ClusterIPs: svc.Spec.ClusterIPs, ExternalIPs: svc.Spec.ExternalIPs,
		ExternalTrafficPolicy: svc.Spec.ExternalTrafficPolicy, InternalTrafficPolicy: svc.Spec.InternalTrafficPolicy,
		PublishNotReadyAddresses: svc.Spec.PublishNotReadyAddresses,
		SessionAffinity:          svc.Spec.SessionAffinity, LoadBalancerSourceRanges: svc.Spec.LoadBalancerSourceRanges,
	}
	var conditions []metav1.Condition
	for _, cond := range svc.Status.Conditions {
		if cond.Type == v1alpha1.ServiceAddressAssigned {
			conditions = append(conditions, metav1.Condition{Type: cond.Type})
		}
	}
	svc.Status = corev1.ServiceStatus{LoadBalancer: svc.Status.LoadBalancer, Conditions: conditions}
	return svc, nil
}

// EndpointSlices follows the EndpointSlices of Services of these names, in any namespace; of all
// Services if names is nil. Only what decides about readiness is kept.
func (c *Client) EndpointSlices(names []string, changed func()) *Cache[*discoveryv1.EndpointSlice] {
	from := cache.NewFilteredListWatchFromClient(c.discovery, "endpointslices", "", func(o *metav1.ListOptions) {
		if names != nil {
			o.LabelSelector = discoveryv1.LabelServiceName + " in (" + strings.Join(names, ",") + ")"
		}
	})
	return newCacheFrom[*discoveryv1.EndpointSlice](from, &discoveryv1.EndpointSlice{}, trimSlice, changed)
}

func trimSlice(obj any) (any, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return obj, nil
	}
	s.ObjectMeta = metav1.ObjectMeta{
		Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion,
		Labels: map[string]string{discoveryv1.LabelServiceName: s.Labels[discoveryv1.LabelServiceName]},
	}
	for i, p := range s.Ports {
		s.Ports[i] = discoveryv1.EndpointPort{Name: p.Name}
	}
	for i, e := range s.Endpoints {
		kept := discoveryv1.Endpoint{Addresses: e.Addresses, Conditions: discoveryv1.EndpointConditions{Ready: e.Conditions.Ready}, NodeName: e.NodeName}
		if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
			kept.TargetRef = &corev1.ObjectReference{Kind: "Pod", UID: e.TargetRef.UID}
		}
		s.Endpoints[i] = kept
	}
	return s, nil
}
