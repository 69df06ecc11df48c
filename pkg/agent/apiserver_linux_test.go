package agent_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// apiServer is as much of an API server as an agent needs to follow the NodeConfig
// of its node and to write its status.
type apiServer struct {
	t                                             *testing.T
	mu                                            sync.Mutex // guards below
	object                                        *v1alpha1.NodeConfig
	version                                       int // of the object
	watchers                                      map[chan []byte]bool
	pools                                         pools
	nodes                                         nodes
	events                                        []eventsv1.Event
	lost                                          chan struct{} // one for each status of a NodeConfig that is not there
	away                                          atomic.Bool   // it answers that it is not available
	pods                                          sync.Map      // by the path at which they are asked for
	policies, clusterPolicies, namespaces, claims *relisted
	services                                      *relisted
}

func newAPIServer(t *testing.T) *apiServer {
	return &apiServer{
		t: t, watchers: map[chan []byte]bool{}, lost: make(chan struct{}, 1000),
		policies:        newRelisted("networking.k8s.io/v1", "NetworkPolicy"),
		clusterPolicies: newRelisted("policy.networking.k8s.io/v1beta1", "ClusterNetworkPolicy"),
		namespaces:      newRelisted("v1", "Namespace"),
		services:        newRelisted("v1", "Service"),
		claims:          newRelisted(v1alpha1.GroupVersion.String(), "AddressClaim"),
	}
}

// serveAPI makes the node's API server be there.
func (n *node) serveAPI() *apiServer {
	n.t.Helper()
	s := newAPIServer(n.t)
	var listener net.Listener
	var err error
	n.host.Run(func() { listener, err = net.Listen("tcp", "127.0.0.1:1") })
	if err != nil {
		n.t.Fatal(err)
	}
	server := &http.Server{Handler: s}
	go server.Serve(listener)
	n.t.Cleanup(func() { server.Close() })
	return s
}

// put makes nc the NodeConfig, an object of its own if its UID is new.
func (s *apiServer) put(uid types.UID, generation int64, nc string) {
	s.t.Helper()
	object := &v1alpha1.NodeConfig{}
	if err := json.Unmarshal([]byte(nc), object); err != nil {
		s.t.Fatal(err)
	}
	object.UID, object.Generation = uid, generation
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.object == nil:
	case s.object.UID == uid:
		object.Status = s.object.Status
	default:
		s.tell("DELETED")
		s.object = nil
	}
	s.change(object)
}

// remove deletes the NodeConfig.
func (s *apiServer) remove() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.object.ResourceVersion = strconv.Itoa(s.version)
	s.tell("DELETED")
	s.object = nil
}

func (s *apiServer) change(object *v1alpha1.NodeConfig) {
	kind := "MODIFIED"
	if s.object == nil {
		kind = "ADDED"
	}
	s.version++
	object.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "NodeConfig"}
	object.ResourceVersion = strconv.Itoa(s.version)
	s.object = object
	s.tell(kind)
}

func (s *apiServer) tell(kind string) {
	event, err := json.Marshal(map[string]any{"type": kind, "object": s.object})
	if err != nil {
		s.t.Error(err)
	}
	for w := range s.watchers {
		w <- event
	}
}

func (s *apiServer) status() v1alpha1.NodeConfigStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.object.Status.DeepCopy()
}

// accepted waits for the condition Accepted of a generation.
func (s *apiServer) accepted(n *node, generation int64, want metav1.ConditionStatus, message string) {
	s.t.Helper()
	eventually(s.t, n.agentLog, func() error {
		got := s.status()
		c := meta.FindStatusCondition(got.Conditions, "Accepted")
		if c == nil || got.ObservedGeneration != generation || c.ObservedGeneration != generation || c.Status != want || !strings.Contains(c.Reason+" "+c.Message, message) {
			return fmt.Errorf("status is %+v; want Accepted=%s of generation %d with %q", got, want, generation, message)
		}
		return nil
	})
}

// says waits for a condition of the NodeConfig, with message in its reason or message.
func (s *apiServer) says(n *node, condition string, want metav1.ConditionStatus, message string) {
	s.t.Helper()
	eventually(s.t, n.agentLog, func() error {
		got := s.status()
		c := meta.FindStatusCondition(got.Conditions, condition)
		if c == nil || c.Status != want || !strings.Contains(c.Reason+" "+c.Message, message) {
			return fmt.Errorf("conditions are %+v; want %s=%s with %q", got.Conditions, condition, want, message)
		}
		return nil
	})
}

// reported waits for an Event about an object of namespace shop.
func (s *apiServer) reported(n *node, kind, name, reason, note string) {
	s.t.Helper()
	eventually(s.t, n.agentLog, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.events {
			about := e.Regarding
			if about.Kind == kind && about.Namespace == "shop" && about.Name == name && e.Reason == reason && strings.Contains(e.Note, note) && e.Type == corev1.EventTypeWarning && e.ReportingInstance == "node1" {
				return nil
			}
		}
		return fmt.Errorf("Events are %+v; want %s of %s shop/%s with %q", s.events, reason, kind, name, note)
	})
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	const objects = "/apis/flock.fritzlab.net/v1alpha1/nodeconfigs"
	switch {
	case s.away.Load():
		s.refuse(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
	case r.URL.Path == "/apis/flock.fritzlab.net/v1alpha1/addresspools":
		s.pools.ServeHTTP(w, r)
	case r.URL.Path == "/apis/networking.k8s.io/v1/networkpolicies":
		s.policies.ServeHTTP(w, r)
	case r.URL.Path == "/apis/policy.networking.k8s.io/v1beta1/clusternetworkpolicies":
		s.clusterPolicies.ServeHTTP(w, r)
	case r.URL.Path == "/api/v1/namespaces":
		s.namespaces.ServeHTTP(w, r)
	case r.URL.Path == "/api/v1/services":
		s.services.ServeHTTP(w, r)
	case r.URL.Path == "/apis/flock.fritzlab.net/v1alpha1/addressclaims" && r.Method == http.MethodGet && r.URL.Query().Get("fieldSelector") == "":
		s.claims.ServeHTTP(w, r)
	case strings.HasPrefix(r.URL.Path, "/apis/flock.fritzlab.net/v1alpha1/addressclaims/") && r.Method == http.MethodGet:
		switch claim := s.claims.get(path.Base(r.URL.Path)); {
		case s.claims.away.Load():
			s.refuse(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
		case claim == nil:
			s.refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		default:
			json.NewEncoder(w).Encode(claim)
		}
	case r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/apis/events.k8s.io/v1/namespaces/"):
		body, err := io.ReadAll(r.Body)
		var event eventsv1.Event
		if err == nil {
			_, _, err = scheme.Codecs.UniversalDeserializer().Decode(body, nil, &event) // protobuf
		}
		if err != nil {
			s.t.Error(err)
		}
		s.mu.Lock()
		s.events = append(s.events, event)
		s.mu.Unlock()
		json.NewEncoder(w).Encode(event)
	case strings.Contains(r.URL.Path, "/secrets"):
		s.t.Error("an agent asks for Secrets")
		s.refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden)
	case r.URL.Path == "/api/v1/pods" && r.URL.Query().Get("sendInitialEvents") == "true":
		s.refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case r.URL.Path == "/api/v1/pods" && r.URL.Query().Get("watch") != "": // pods do not change
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case r.URL.Path == "/api/v1/pods":
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
		s.pods.Range(func(_, p any) bool {
			if on := r.URL.Query().Get("fieldSelector"); on == "" || on == "spec.nodeName="+p.(corev1.Pod).Spec.NodeName {
				list.Items = append(list.Items, p.(corev1.Pod))
			}
			return true
		})
		json.NewEncoder(w).Encode(list)
	case strings.Contains(r.URL.Path, "/pods/") && r.Method == http.MethodGet:
		if p, ok := s.pods.Load(r.URL.Path); ok {
			json.NewEncoder(w).Encode(p)
		} else {
			s.refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		}
	case strings.HasPrefix(r.URL.Path, "/api/v1/nodes"):
		s.nodes.ServeHTTP(w, r)
	case r.Method == http.MethodGet && r.URL.Path == objects && r.URL.Query().Get("sendInitialEvents") == "true":
		s.refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid) // as one that is older
	case r.Method == http.MethodGet && r.URL.Path == objects && r.URL.Query().Get("watch") != "":
		s.watch(w, r)
	case r.Method == http.MethodGet && r.URL.Path == objects:
		s.mu.Lock()
		defer s.mu.Unlock()
		list := v1alpha1.NodeConfigList{
			TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "NodeConfigList"},
			ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)},
		}
		if s.object != nil {
			list.Items = append(list.Items, *s.object)
		}
		json.NewEncoder(w).Encode(list)
	case r.Method == http.MethodPatch && r.URL.Path == objects+"/node1/status":
		patch := v1alpha1.NodeConfig{}
		if err := json.NewDecoder(r.Body).Decode(&patch); err != nil {
			s.t.Error(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.object == nil {
			s.lost <- struct{}{}
			s.refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
			return
		}
		object := s.object.DeepCopy()
		patch.Status.Passwords, patch.Status.PodCIDROverlaps = object.Status.Passwords, object.Status.PodCIDROverlaps // which no agent writes
		object.Status = patch.Status
		s.change(object)
		json.NewEncoder(w).Encode(object)
	default:
		s.refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	}
}

// watch sends the object as it is, if the client does not have that, and each change.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	events := make(chan []byte, 1000)
	s.mu.Lock()
	s.watchers[events] = true
	if s.object != nil && r.URL.Query().Get("resourceVersion") != s.object.ResourceVersion {
		event, _ := json.Marshal(map[string]any{"type": "ADDED", "object": s.object})
		events <- event
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, events)
	}()
	for {
		w.(http.Flusher).Flush()
		select {
		case e := <-events:
			w.Write(e)
		case <-r.Context().Done():
			return
		}
	}
}

func (s *apiServer) refuse(w http.ResponseWriter, code int32, reason metav1.StatusReason) {
	w.WriteHeader(int(code))
	json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: code, Reason: reason,
	})
}
