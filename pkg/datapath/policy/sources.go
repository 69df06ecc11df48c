package policy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"
)

// NewSources returns the Sources of a node with the address and the credentials of
// config. It opens no connection.
func NewSources(config *rest.Config, node string) (Sources, error) {
	core, err := restClient(protobufConfig(config), "/api", corev1.SchemeGroupVersion, corev1.AddToScheme)
	if err != nil {
		return Sources{}, err
	}
	networking, err := restClient(protobufConfig(config), "/apis", networkingv1.SchemeGroupVersion, networkingv1.AddToScheme)
	if err != nil {
		return Sources{}, err
	}
	var served []cache.ListerWatcherWithContext
	for _, version := range []string{"v1beta1", "v1alpha2"} {
		gv := schema.GroupVersion{Group: policyv1beta1.GroupName, Version: version}
		client, err := restClient(config, "/apis", gv, func(s *runtime.Scheme) error {
			s.AddKnownTypes(gv, &policyv1beta1.ClusterNetworkPolicy{}, &policyv1beta1.ClusterNetworkPolicyList{})
			metav1.AddToGroupVersion(s, gv)
			return nil
		})
		if err != nil {
			return Sources{}, err
		}
		served = append(served, cache.NewListWatchFromClient(client, "clusternetworkpolicies", "", fields.Everything()))
	}
	crds, err := restClient(config, "/apis", schema.GroupVersion{Group: "apiextensions.k8s.io", Version: "v1"}, func(*runtime.Scheme) error { return nil })
	if err != nil {
		return Sources{}, err
	}
	return Sources{
		NetworkPolicies:        newStreamed(networking, "networkpolicies", fields.Everything(), &networkingv1.NetworkPolicy{}),
		ClusterNetworkPolicies: newVersions(served, crds, "clusternetworkpolicies."+policyv1beta1.GroupName),
		Pods:                   newStreamed(core, "pods", fields.Everything(), &corev1.Pod{}),
		NodePods:               newStreamed(core, "pods", fields.OneTermEqualSelector("spec.nodeName", node), &corev1.Pod{}),
		Namespaces:             newStreamed(core, "namespaces", fields.Everything(), &corev1.Namespace{}),
		Nodes:                  newStreamed(core, "nodes", fields.Everything(), &corev1.Node{}),
	}, nil
}

// versions is a kind of a CRD. It asks for the kind's versions in turn, until one is
// served.
type versions struct {
	cache.ListerWatcher
	crds rest.Interface
	crd  string // the name of the CRD
}

func newVersions(served []cache.ListerWatcherWithContext, crds rest.Interface, crd string) versions {
	return versions{crds: crds, crd: crd, ListerWatcher: &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (list runtime.Object, err error) {
			for _, v := range served {
				if list, err = v.ListWithContext(ctx, o); !apierrors.IsNotFound(err) {
					break
				}
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (w apiwatch.Interface, err error) {
			for _, v := range served {
				if w, err = v.WatchWithContext(ctx, o); !apierrors.IsNotFound(err) {
					break
				}
			}
			return w, err
		},
	}}
}

// await returns when the CRD may have come; after minutes, too, if it has not.
func (v versions) await(ctx context.Context) {
	const seconds = 300
	// From version 0 on, the API server answers from what it has: CRDs change so seldom
	// that its cache can be too far behind the store for a watch from now on.
	body, err := v.crds.Get().Resource("customresourcedefinitions").Param("watch", "true").Param("resourceVersion", "0").
		Param("fieldSelector", "metadata.name="+v.crd).Param("timeoutSeconds", strconv.Itoa(seconds+rand.IntN(seconds))).Stream(ctx)
	if err == nil {
		defer body.Close()
		err = awaitEvent(body)
	}
	if err != nil {
		pause(ctx, time.Minute+rand.N(time.Minute))
	}
}

// awaitEvent returns with the first event of a watch, or with its end.
func awaitEvent(watch io.Reader) error {
	var event struct {
		Type   string `json:"type"`
		Object struct {
			Message string `json:"message"` // of an error
		} `json:"object"`
	}
	switch err := json.NewDecoder(watch).Decode(&event); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	case event.Type == string(apiwatch.Error):
		return errors.New(event.Object.Message)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// protobufConfig asks for what is decoded many times faster than JSON. CRDs do not have it.
func protobufConfig(c *rest.Config) *rest.Config {
	c = rest.CopyConfig(c)
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return c
}

func restClient(c *rest.Config, path string, gv schema.GroupVersion, add func(*runtime.Scheme) error) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := add(scheme); err != nil {
		return nil, err
	}
	c = rest.CopyConfig(c)
	c.GroupVersion = &gv
	c.APIPath = path
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(c)
}
