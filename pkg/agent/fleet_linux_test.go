package agent_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// fleetServer is an apiServer with templates, with the Node of the node, and with the
// rules that a NodeConfig is written by.
type fleetServer struct {
	*apiServer
	mu     sync.Mutex        // guards below; not held with apiServer's
	others map[string]string // path → the one object that there is, as JSON
	told   map[string]chan struct{}
	refuse bool // to write NodeConfigs
	writes int
}

const (
	nodesPath     = "/api/v1/nodes"
	templatesPath = "/apis/flock.fritzlab.net/v1alpha1/nodeconfigtemplates"
	configsPath   = "/apis/flock.fritzlab.net/v1alpha1/nodeconfigs"
)

const (
	theNode = `{"apiVersion":"v1","kind":"Node","metadata":{"name":"node1","uid":"n","resourceVersion":"%d","labels":{"rack":"r1"}},
		"spec":{%s},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"}]}}`
	podCIDRs    = `"podCIDRs":["2001:db8:1::/64","10.1.0.0/24"]`
	theTemplate = `{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplate","metadata":{"name":"rack1","uid":"r1","generation":%[1]d,"resourceVersion":"%[1]d"},
		"spec":{"nodeSelector":{"matchLabels":{"rack":"r1"}},"template":{"podCIDRs":{"quarantineSeconds":0},"defaults":{"ipv4":true},"mtu":%[2]d}}}`
)

func (n *node) serveFleet() *fleetServer {
	n.t.Helper()
	s := &fleetServer{
		apiServer: newAPIServer(n.t),
		others:    map[string]string{},
		told:      map[string]chan struct{}{nodesPath: make(chan struct{}), templatesPath: make(chan struct{})},
	}
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

// set makes object the one at path.
func (s *fleetServer) set(path, object string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.others[path] = object
	close(s.told[path])
	s.told[path] = make(chan struct{})
}

func (s *fleetServer) refuseWrites(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

func (s *fleetServer) written() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

func (s *fleetServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch _, other := s.told[r.URL.Path]; {
	case other && r.URL.Query().Get("sendInitialEvents") != "true":
		s.serveOther(w, r)
	case r.Method == http.MethodPost && r.URL.Path == configsPath, r.Method == http.MethodPut && r.URL.Path == configsPath+"/node1":
		s.write(w, r)
	default:
		s.apiServer.ServeHTTP(w, r)
	}
}

// serveOther lists the object at a path, or tells of its next change.
func (s *fleetServer) serveOther(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	now := func() (object string, changed chan struct{}) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.others[r.URL.Path], s.told[r.URL.Path]
	}
	object, changed := now()
	version := func(object string) string {
		var o metav1.PartialObjectMetadata
		if object != "" && json.Unmarshal([]byte(object), &o) != nil {
			s.t.Errorf("no object: %s", object)
		}
		return o.ResourceVersion
	}
	if r.URL.Query().Get("watch") == "" {
		kind := map[string]string{nodesPath: `"v1","kind":"NodeList"`, templatesPath: `"flock.fritzlab.net/v1alpha1","kind":"NodeConfigTemplateList"`}[r.URL.Path]
		fmt.Fprintf(w, `{"apiVersion":%s,"metadata":{"resourceVersion":"%s"},"items":[%s]}`, kind, version(object), object)
		return
	}
	w.(http.Flusher).Flush()
	for seen := r.URL.Query().Get("resourceVersion"); ; object, changed = now() {
		if v := version(object); v != "" && v != seen {
			kind := "MODIFIED"
			if seen == "" || seen == "0" {
				kind = "ADDED"
			}
			fmt.Fprintf(w, `{"type":%q,"object":%s}`, kind, object)
			w.(http.Flusher).Flush()
			seen = v
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (s *fleetServer) write(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	object := &v1alpha1.NodeConfig{}
	if err := json.NewDecoder(r.Body).Decode(object); err != nil {
		s.t.Error(err)
	}
	s.mu.Lock()
	s.writes++
	refuse := s.refuse
	s.mu.Unlock()
	s.apiServer.mu.Lock()
	defer s.apiServer.mu.Unlock()
	was := s.object
	switch {
	case refuse:
		s.apiServer.refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden)
		return
	case r.Method == http.MethodPost && was != nil:
		s.apiServer.refuse(w, http.StatusConflict, metav1.StatusReasonAlreadyExists)
		return
	case r.Method == http.MethodPost:
		object.UID, object.Generation = "made", 1
	case was == nil:
		s.apiServer.refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	case object.ResourceVersion != was.ResourceVersion:
		s.apiServer.refuse(w, http.StatusConflict, metav1.StatusReasonConflict)
		return
	default:
		object.Generation++
		object.Status = was.Status
	}
	s.change(object)
	json.NewEncoder(w).Encode(object)
}

// giveTurn is what flock-controller writes when it is the node's turn.
func (s *fleetServer) giveTurn(generation int64) {
	s.apiServer.mu.Lock()
	defer s.apiServer.mu.Unlock()
	object := s.object.DeepCopy()
	object.Status.TemplateTurn = &v1alpha1.TemplateTurn{Template: "rack1", TemplateUID: "r1", Generation: generation}
	s.change(object)
}

// templated waits for the condition Templated.
func (s *fleetServer) templated(n *node, want metav1.ConditionStatus, reason, message string) {
	s.t.Helper()
	eventually(s.t, n.agentLog, func() error {
		s.apiServer.mu.Lock()
		defer s.apiServer.mu.Unlock()
		if s.object == nil {
			return fmt.Errorf("there is no NodeConfig")
		}
		c := meta.FindStatusCondition(s.object.Status.Conditions, "Templated")
		if c == nil && want == "" {
			return nil
		}
		if c == nil || c.Status != want || c.Reason != reason || !strings.Contains(c.Message, message) {
			return fmt.Errorf("conditions %+v, want Templated=%s %s %q", s.object.Status.Conditions, want, reason, message)
		}
		return nil
	})
}

// A node without a NodeConfig says what it is missing until a template gives it one,
// and follows that.
func TestNodeConfigFromTemplate(t *testing.T) {
	t.Parallel()
	n := newNode(t, "")
	api := n.serveFleet()
	n.start()
	says := func(words string) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			if _, err := n.status(); err == nil || !strings.Contains(err.Error(), "create NodeConfig node1 with spec.podCIDRs; from a template it gets none: "+words) {
				return fmt.Errorf("STATUS says %v, want %q", err, words)
			}
			return nil
		})
	}
	says("there is no Node node1")
	api.set(nodesPath, fmt.Sprintf(theNode, 1, ""))
	says("there is no NodeConfigTemplate: create one that selects node node1")
	api.set(templatesPath, fmt.Sprintf(theTemplate, 1, 1400))
	says("NodeConfigTemplate rack1: node node1 has no spec.podCIDRs yet: ")
	api.refuseWrites(true)
	api.set(nodesPath, fmt.Sprintf(theNode, 2, podCIDRs))
	says("NodeConfigTemplate rack1, generation 1: ")
	api.refuseWrites(false)
	api.templated(n, metav1.ConditionTrue, "FromTemplate", "NodeConfigTemplate rack1, generation 1")
	api.accepted(n, 1, metav1.ConditionTrue, "")
	a := n.sandbox("a")
	for _, addr := range a.mustAdd() {
		n.reaches(n.router, a, addr)
	}

	// A change waits for the node's turn.
	writes := api.written()
	api.set(templatesPath, fmt.Sprintf(theTemplate, 2, 1410))
	api.templated(n, metav1.ConditionFalse, "WaitingForTurn", "NodeConfigTemplate rack1, generation 2 reaches the nodes in waves")
	if now := api.written(); now != writes {
		t.Errorf("the agent wrote the NodeConfig %d times before its turn", now-writes)
	}
	api.giveTurn(2)
	api.templated(n, metav1.ConditionTrue, "FromTemplate", "generation 2")
	api.accepted(n, 2, metav1.ConditionTrue, "")
	b := n.sandbox("b")
	b.mustAdd()
	if link := b.ns.IP("link", "show", "eth0"); !strings.Contains(link, "mtu 1410") {
		t.Errorf("the second generation is not in force: %s", link)
	}

	// What cannot be applied changes nothing but the condition.
	api.set(templatesPath, fmt.Sprintf(theTemplate, 3, 1))
	api.templated(n, metav1.ConditionFalse, "NotApplicable", "spec.mtu: Invalid value: 1")
	api.accepted(n, 2, metav1.ConditionTrue, "")
	n.sandbox("c").mustAdd()
	writes = api.written()
	decided := strings.Count(n.agentLog(), "no template changes the NodeConfig")
	n.kill()
	n.start()
	eventually(t, n.agentLog, func() error {
		if strings.Count(n.agentLog(), "no template changes the NodeConfig") == decided {
			return fmt.Errorf("the new agent has not decided")
		}
		return nil
	})
	api.templated(n, metav1.ConditionFalse, "NotApplicable", "spec.mtu: Invalid value: 1")
	if api.written() != writes {
		t.Errorf("a restart of the agent wrote the NodeConfig %d times", api.written()-writes)
	}
}

// flock-controller finds that another node has prefixes of this one, and the node reports it until
// flock-controller finds that it has not, or the node has those prefixes no more. What one before
// this agent has reported does not stand beside what flock-controller says.
func TestPodCIDRsOfAnotherNode(t *testing.T) {
	t.Parallel()
	n := newNode(t, "")
	api := n.serveFleet()
	api.put("a", 1, nodeConfig)
	becomes := func(want string) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			status, got := api.status(), ""
			if c := meta.FindStatusCondition(status.Conditions, "PodCIDRsUnique"); c != nil {
				got = fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message)
			}
			if status.ObservedGeneration == 0 || got != want {
				return fmt.Errorf("PodCIDRsUnique is %q, want %q; conditions %+v", got, want, status.Conditions)
			}
			return nil
		})
	}
	found := func(overlaps ...v1alpha1.PodCIDROverlap) {
		api.apiServer.mu.Lock()
		defer api.apiServer.mu.Unlock()
		object := api.object.DeepCopy()
		object.Status.PodCIDROverlaps = overlaps
		api.change(object)
	}
	api.apiServer.mu.Lock()
	api.object.Status.Conditions = []metav1.Condition{{Type: "PodCIDRsUnique", Status: metav1.ConditionTrue, Reason: "NoOverlap"}}
	api.apiServer.mu.Unlock()
	n.start()
	becomes("")
	overlap := v1alpha1.PodCIDROverlap{CIDR: "10.1.0.0/24", NodeConfig: "node2", OtherCIDR: "10.1.0.0/16"}
	found(overlap, v1alpha1.PodCIDROverlap{CIDR: "10.1.0.0/24", NodeConfig: "node3", OtherCIDR: "10.1.0.0/24"}, v1alpha1.PodCIDROverlap{CIDR: "?"})
	becomes("False Overlap 10.1.0.0/24 overlaps 10.1.0.0/16 of NodeConfig node2: give each node pod CIDRs of its own" +
		"; 10.1.0.0/24 overlaps 10.1.0.0/24 of NodeConfig node3: give each node pod CIDRs of its own")
	found()
	becomes("")
	found(overlap)
	becomes("False Overlap 10.1.0.0/24 overlaps 10.1.0.0/16 of NodeConfig node2: give each node pod CIDRs of its own")
	api.apiServer.mu.Lock()
	object := api.object.DeepCopy()
	object.Generation, object.Spec.PodCIDRs.IPv4 = 2, []v1alpha1.CIDR{"10.2.0.0/24"}
	api.change(object)
	api.apiServer.mu.Unlock()
	becomes("")
	api.accepted(n, 2, metav1.ConditionTrue, "")
}

// Whoever takes the label off has the NodeConfig alone, also where the agent was just
// about to write it.
func TestNodeConfigTakenOver(t *testing.T) {
	t.Parallel()
	n := newNode(t, "")
	api := n.serveFleet()
	api.set(nodesPath, fmt.Sprintf(theNode, 1, podCIDRs))
	api.set(templatesPath, fmt.Sprintf(theTemplate, 1, 1400))
	n.start()
	api.templated(n, metav1.ConditionTrue, "FromTemplate", "generation 1")

	api.giveTurn(2)

	// The edit is there, but the agent has not been told when it writes.
	api.apiServer.mu.Lock()
	watchers := api.watchers
	api.watchers = nil
	theirs := api.object.DeepCopy()
	theirs.Labels, theirs.Spec.MTU, theirs.Generation = nil, 1420, 2
	api.change(theirs)
	api.watchers = watchers
	api.apiServer.mu.Unlock()
	writes := api.written()
	api.set(templatesPath, fmt.Sprintf(theTemplate, 2, 1410))
	eventually(t, n.agentLog, func() error {
		if api.written() == writes {
			return fmt.Errorf("the agent has not tried")
		}
		return nil
	})
	api.apiServer.mu.Lock()
	api.tell("MODIFIED")
	api.apiServer.mu.Unlock()
	api.templated(n, "", "", "")
	api.accepted(n, 2, metav1.ConditionTrue, "")
	p := n.sandbox("a")
	p.mustAdd()
	if link := p.ns.IP("link", "show", "eth0"); !strings.Contains(link, "mtu 1420") {
		t.Errorf("what was written by hand is not in force: %s", link)
	}
}
