package policy_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	policyv1beta1 "sigs.k8s.io/network-policy-api/apis/v1beta1"

	"flock.fritzlab.net/flock/pkg/datapath/policy"
)

// A cluster that serves ClusterNetworkPolicies in an older version only is as good.
func TestSources(t *testing.T) {
	t.Parallel()
	served := "" // the version of ClusterNetworkPolicy
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/api/v1/pods":
			fmt.Fprint(w, `{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"web"}}]}`)
		case "/apis/policy.networking.k8s.io/" + served + "/clusternetworkpolicies":
			fmt.Fprintf(w, `{"kind":"ClusterNetworkPolicyList","apiVersion":"policy.networking.k8s.io/%s","items":[{"metadata":{"name":"deny"},"spec":{"tier":"Admin","priority":7,"subject":{"namespaces":{}}}}]}`, served)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		}
	}))
	defer server.Close()
	s, err := policy.NewSources(&rest.Config{Host: server.URL}, "node1")
	if err != nil {
		t.Fatal(err)
	}
	list := func(from cache.ListerWatcher) (any, error) {
		return cache.ToListerWatcherWithContext(from).ListWithContext(t.Context(), metav1.ListOptions{})
	}
	pods, err := list(s.Pods)
	if l, ok := pods.(*corev1.PodList); err != nil || !ok || len(l.Items) != 1 {
		t.Errorf("pods %v, %v", pods, err)
	}
	if _, err := list(s.ClusterNetworkPolicies); !apierrors.IsNotFound(err) {
		t.Errorf("got %v, want that there is no such kind", err)
	}
	for _, version := range []string{"v1alpha2", "v1beta1"} {
		mu.Lock()
		served = version
		mu.Unlock()
		cnps, err := list(s.ClusterNetworkPolicies)
		if l, ok := cnps.(*policyv1beta1.ClusterNetworkPolicyList); err != nil || !ok || len(l.Items) != 1 || l.Items[0].Spec.Priority != 7 {
			t.Errorf("%s: %v, %v", version, cnps, err)
		}
	}
}
