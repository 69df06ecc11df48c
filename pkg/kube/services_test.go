package kube

import (
	"context"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// What decides about a Service's addresses is kept, and nothing else.
func TestTrimService(t *testing.T) {
	t.Parallel()
	class, internal, mode := v1alpha1.LoadBalancerClass, corev1.ServiceInternalTrafficPolicyLocal, corev1.LoadBalancerIPModeVIP
	kept := corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u", ResourceVersion: "7", Labels: map[string]string{"service.kubernetes.io/service-proxy-name": ""}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, Selector: map[string]string{"app": "web"},
			Ports:      []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromString("http")}},
			ClusterIPs: []string{"10.96.0.7"}, ExternalIPs: []string{"198.51.100.1"},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, InternalTrafficPolicy: &internal,
			PublishNotReadyAddresses: true, SessionAffinity: corev1.ServiceAffinityClientIP, LoadBalancerSourceRanges: []string{"192.0.2.0/24"},
		},
		Status: corev1.ServiceStatus{
			LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "203.0.113.7", IPMode: &mode}}},
			Conditions:   []metav1.Condition{{Type: v1alpha1.ServiceAddressAssigned}},
		},
	}
	in := kept.DeepCopy()
	in.Labels["app"], in.Annotations = "web", map[string]string{"a": "b"}
	in.Spec.Ports[0].NodePort, in.Spec.ClusterIP = 30080, "10.96.0.7"
	in.Status.Conditions[0].Message = "long"
	in.Status.Conditions = append(in.Status.Conditions, metav1.Condition{Type: "other"})
	got, err := trimService(in)
	if err != nil || !reflect.DeepEqual(got, &kept) {
		t.Errorf("kept %+v, %v; want %+v", got, err, &kept)
	}
}

// A server that refuses answers; one that has failed, is silent or is gone does not.
func TestAnswers(t *testing.T) {
	t.Parallel()
	silence, cancel := context.WithCancel(t.Context())
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for what, c := range map[string]struct {
		answer http.HandlerFunc
		want   bool
	}{
		"a Node": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"node1"}}`))
		}, true},
		"forbidden": {status(http.StatusForbidden), true},
		"not found": {status(http.StatusNotFound), true},
		"too many requests": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		}, true},
		"no etcd":     {status(http.StatusInternalServerError), false},
		"of a proxy":  {status(http.StatusBadGateway), false},
		"unavailable": {status(http.StatusServiceUnavailable), false},
		"silent":      {func(http.ResponseWriter, *http.Request) { <-silence.Done() }, false},
		"gone":        {nil, false},
	} {
		s := httptest.NewServer(c.answer)
		client, err := NewClient(&rest.Config{Host: s.URL})
		if err != nil {
			t.Fatal(err)
		}
		if c.answer == nil {
			s.Close()
		} else {
			defer s.Close()
		}
		if got := client.Answers(t.Context(), "node1", 300*time.Millisecond); got != c.want {
			t.Errorf("%s: answers %t, want %t", what, got, c.want)
		}
	}
	cancel()
}
