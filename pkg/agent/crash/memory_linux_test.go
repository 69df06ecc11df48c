package crash

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"flock.fritzlab.net/flock/internal/nettest"
)

// memory is as much of an API server as the agent needs, without etcd, for random scripts that
// take minutes with the real one. It validates nothing. TestAPIServer is the same changes with the
// real one.
type memory struct {
	mu      sync.Mutex // guards all below
	objects map[string]object
	version int
	log     []event       // since the version at which it was forgotten last
	oldest  int           // a watch from before it is refused
	changed chan struct{} // closed with each event, and when watches are to end
	watches int           // of which generation those are that go on
	away    bool
}

type object = map[string]any

type event struct {
	key, kind string
	version   int
	object    json.RawMessage
}

// address is what a path names: /apis/GROUP/VERSION/namespaces/NAMESPACE/RESOURCE/NAME/SUBRESOURCE.
type address struct{ group, namespace, resource, name, sub string }

func parse(path string) (a address, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	n := map[string]int{"api": 2, "apis": 3}[parts[0]]
	if n == 0 || len(parts) <= n {
		return a, false
	}
	a.group, parts = strings.Join(parts[:n], "/"), parts[n:]
	if parts[0] == "namespaces" && len(parts) > 2 {
		a.namespace, parts = parts[1], parts[2:]
	}
	parts = append(parts, "", "")
	a.resource, a.name, a.sub = parts[0], parts[1], parts[2]
	return a, true
}

func (a address) key() string {
	return strings.Join([]string{a.group, a.resource, a.namespace, a.name}, " ")
}

// has says whether a list or watch of a's has the object of that key.
func (a address) has(key string) bool {
	k := strings.Split(key, " ")
	return k[0] == a.group && k[1] == a.resource && (a.namespace == "" || a.namespace == k[2])
}

func newMemory() *memory {
	return &memory{objects: map[string]object{}, changed: make(chan struct{})}
}

func (m *memory) url() string { return "http://127.0.0.1:1" }

func (m *memory) serve(t testing.TB, ns *nettest.NS) {
	var listener net.Listener
	var err error
	ns.Run(func() { listener, err = net.Listen("tcp", "127.0.0.1:1") })
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: m}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}

// put makes the fields of object, but for its status, those of the object at path; or the status,
// where the path says so.
func (m *memory) put(path, text string) error {
	a, ok := parse(path)
	var o object
	if err := json.Unmarshal([]byte(text), &o); err != nil || !ok {
		return fmt.Errorf("%s: %t, %v", path, ok, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.objects[a.key()]
	now := maps.Clone(o)
	if a.sub != "" {
		if was == nil {
			return fmt.Errorf("%s: there is none", path)
		}
		now = maps.Clone(was)
		now[a.sub] = o[a.sub]
	} else if was != nil && was["status"] != nil {
		now["status"] = was["status"]
	}
	m.store(a, was, now)
	return nil
}

// store is called with the lock held.
func (m *memory) store(a address, was, now object) {
	m.version++
	metadata := object{"name": a.name, "uid": fmt.Sprint("uid-", m.version), "generation": 1.0, "creationTimestamp": "2026-01-01T00:00:00Z"}
	if a.namespace != "" {
		metadata["namespace"] = a.namespace
	}
	kind := "ADDED"
	if was != nil {
		kind = "MODIFIED"
		old := was["metadata"].(object)
		metadata["uid"], metadata["generation"], metadata["creationTimestamp"] = old["uid"], old["generation"], old["creationTimestamp"]
		if fmt.Sprint(was["spec"]) != fmt.Sprint(now["spec"]) {
			metadata["generation"] = old["generation"].(float64) + 1
		}
	}
	given, _ := now["metadata"].(object)
	for _, field := range []string{"annotations", "labels"} {
		if given[field] != nil {
			metadata[field] = given[field]
		}
	}
	metadata["resourceVersion"] = strconv.Itoa(m.version)
	now["metadata"] = metadata
	m.objects[a.key()] = now
	m.tell(a.key(), kind, now)
}

func (m *memory) tell(key, kind string, o object) {
	raw, _ := json.Marshal(o)
	m.log = append(m.log, event{key, kind, m.version, raw})
	m.wake()
}

func (m *memory) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *memory) get(path string) ([]byte, error) {
	a, _ := parse(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.name == "" {
		return json.Marshal(m.list(a, "", false))
	}
	if m.objects[a.key()] == nil {
		return nil, fmt.Errorf("%s: there is none", path)
	}
	return json.Marshal(m.objects[a.key()])
}

func (m *memory) remove(path string) error {
	a, _ := parse(path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.objects[a.key()] == nil {
		return fmt.Errorf("%s: there is none", path)
	}
	m.drop(a)
	return nil
}

func (m *memory) drop(a address) {
	m.version++
	gone := maps.Clone(m.objects[a.key()])
	metadata := maps.Clone(gone["metadata"].(object))
	metadata["resourceVersion"] = strconv.Itoa(m.version)
	gone["metadata"] = metadata
	delete(m.objects, a.key())
	m.tell(a.key(), "DELETED", gone)
}

// setAway has it answer to nobody, or answer again.
func (m *memory) setAway(away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away = away; away {
		m.watches++
		m.wake()
	}
}

// forget ends all watches, and refuses those from before, as after a compaction.
func (m *memory) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version++
	m.log, m.oldest = nil, m.version
	m.watches++
	m.wake()
}

// list is called with the lock held.
func (m *memory) list(a address, selector string, partial bool) object {
	items := []object{}
	for _, key := range slices.Sorted(maps.Keys(m.objects)) {
		if o := m.objects[key]; a.has(key) && selected(o, selector) {
			items = append(items, as(o, partial))
		}
	}
	kind := "List"
	version := strings.TrimPrefix(strings.TrimPrefix(a.group, "apis/"), "api/")
	if partial {
		kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
	} else if k := kinds[a.resource]; k != "" {
		kind = k + "List"
	}
	return object{"kind": kind, "apiVersion": version, "metadata": object{"resourceVersion": strconv.Itoa(m.version)}, "items": items}
}

var kinds = map[string]string{
	"pods": "Pod", "nodes": "Node", "namespaces": "Namespace", "services": "Service", "secrets": "Secret", "endpointslices": "EndpointSlice",
	"networkpolicies": "NetworkPolicy", "clusternetworkpolicies": "ClusterNetworkPolicy",
	"nodeconfigs": "NodeConfig", "nodeconfigtemplates": "NodeConfigTemplate", "addresspools": "AddressPool", "addressclaims": "AddressClaim",
}

// as is an object as a client wants it: all of it, or its metadata.
func as(o object, partial bool) object {
	if !partial {
		return o
	}
	return object{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": o["metadata"]}
}

// selected is for field selectors of the kind a.b=c.
func selected(o object, selector string) bool {
	for term := range strings.SplitSeq(selector, ",") {
		path, want, ok := strings.Cut(term, "=")
		if !ok {
			continue
		}
		var at any = o
		for field := range strings.SplitSeq(path, ".") {
			in, _ := at.(object)
			at = in[field]
		}
		if got, _ := at.(string); got != want {
			return false
		}
	}
	return true
}

func (m *memory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := parse(r.URL.Path)
	q := r.URL.Query()
	partial := strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
	w.Header().Set("Content-Type", "application/json")
	there := m.objects[a.key()]
	answer := func(code int, o any) {
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(o)
	}
	refuse := func(code int, reason string) {
		answer(code, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
	}
	var o object
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/") && !strings.Contains(r.Header.Get("Content-Type"), "protobuf") {
		json.Unmarshal(body, &o)
	}
	given, _ := o["metadata"].(object)
	is, _ := there["metadata"].(object)
	switch {
	case m.away:
		refuse(http.StatusServiceUnavailable, "ServiceUnavailable")
	case r.URL.Path == "/version":
		answer(http.StatusOK, object{"major": "1", "minor": "37", "gitVersion": "v1.37.2"})
	case a.resource == "events": // nobody reads them
		answer(http.StatusCreated, object{"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": object{"name": "e", "namespace": a.namespace}})
	case !ok:
		refuse(http.StatusNotFound, "NotFound")
	case r.Method == http.MethodGet && a.name == "" && q.Get("sendInitialEvents") == "true":
		refuse(http.StatusUnprocessableEntity, "Invalid") // as one that is older
	case r.Method == http.MethodGet && a.name == "" && q.Get("watch") != "":
		m.watch(w, r, a, partial)
	case r.Method == http.MethodGet && a.name == "":
		answer(http.StatusOK, m.list(a, q.Get("fieldSelector"), partial))
	case r.Method == http.MethodPost && a.name == "":
		a.name, _ = given["name"].(string)
		if m.objects[a.key()] != nil {
			refuse(http.StatusConflict, "AlreadyExists")
			return
		}
		m.store(a, nil, o)
		answer(http.StatusCreated, o)
	case there == nil:
		refuse(http.StatusNotFound, "NotFound")
	case r.Method == http.MethodGet:
		answer(http.StatusOK, as(there, partial))
	case differs(given, is, "uid") || differs(given, is, "resourceVersion"):
		refuse(http.StatusConflict, "Conflict")
	case r.Method == http.MethodPut:
		m.store(a, there, o)
		answer(http.StatusOK, o)
	case r.Method == http.MethodPatch:
		if o == nil { // a JSON patch
			refuse(http.StatusUnprocessableEntity, "Invalid")
			return
		}
		now := merged(there, o).(object)
		m.store(a, there, now)
		answer(http.StatusOK, now)
	case r.Method == http.MethodDelete:
		if only, _ := o["preconditions"].(object); differs(only, is, "uid") || differs(only, is, "resourceVersion") {
			refuse(http.StatusConflict, "Conflict")
			return
		}
		m.drop(a)
		answer(http.StatusOK, object{"kind": "Status", "apiVersion": "v1", "status": "Success"})
	default:
		refuse(http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}

func differs(given, is object, field string) bool {
	return given[field] != nil && given[field] != "" && given[field] != is[field]
}

// merged is a JSON merge patch.
func merged(was, patch any) any {
	p, ok := patch.(object)
	if !ok {
		return patch
	}
	w, _ := was.(object)
	now := maps.Clone(w)
	if now == nil {
		now = object{}
	}
	for field, value := range p {
		if value == nil {
			delete(now, field)
		} else {
			now[field] = merged(now[field], value)
		}
	}
	return now
}

// watch is called with the lock held.
func (m *memory) watch(w http.ResponseWriter, r *http.Request, a address, partial bool) {
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if since < m.oldest {
		w.WriteHeader(http.StatusGone)
		json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": http.StatusGone, "reason": "Expired", "message": "too old"})
		return
	}
	selector, mine := r.URL.Query().Get("fieldSelector"), m.watches
	for m.watches == mine {
		for _, e := range m.log {
			if e.version <= since || !a.has(e.key) {
				continue
			}
			var o object
			json.Unmarshal(e.object, &o)
			if selected(o, selector) {
				json.NewEncoder(w).Encode(object{"type": e.kind, "object": as(o, partial)})
			}
		}
		since = m.version
		w.(http.Flusher).Flush()
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		m.mu.Lock()
		if r.Context().Err() != nil {
			return
		}
	}
}
