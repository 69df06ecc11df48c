package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/routing/startup"
)

// nodes are the one Node of an API server that knows no streaming lists.
type nodes struct {
	mu      sync.Mutex // guards below
	node    *corev1.Node
	version int
	changed chan struct{} // closed at the next change
	writes  int           // of the agent
	away    atomic.Bool   // it answers that it is not available
}

// register replaces the Node, as a kubelet does.
func (s *nodes) register(taints ...corev1.Taint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", UID: "n"}, Spec: corev1.NodeSpec{Taints: taints}})
}

// label makes these the Node's labels.
func (s *nodes) label(labels map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.node.DeepCopy()
	n.Labels = labels
	s.change(n)
}

// condition has somebody else write NetworkUnavailable.
func (s *nodes) condition(c corev1.NodeCondition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.node.DeepCopy()
	s.merge(n, c)
	s.change(n)
}

func (s *nodes) merge(n *corev1.Node, c corev1.NodeCondition) {
	n.Status.Conditions = append(slices.DeleteFunc(n.Status.Conditions, func(is corev1.NodeCondition) bool { return is.Type == c.Type }), c)
}

func (s *nodes) change(n *corev1.Node) {
	s.version++
	n.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
	n.ResourceVersion = strconv.Itoa(s.version)
	s.node = n
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = make(chan struct{})
}

// says waits for the Node to say status and a text, and to have only these taints.
func (s *nodes) says(n *node, status corev1.ConditionStatus, text string, taints ...string) {
	n.t.Helper()
	eventually(n.t, n.agentLog, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		var have []string
		for _, t := range s.node.Spec.Taints {
			have = append(have, t.Key)
		}
		for _, c := range s.node.Status.Conditions {
			if c.Type == corev1.NodeNetworkUnavailable && c.Status == status && strings.Contains(c.Reason+" "+c.Message, text) && slices.Equal(have, taints) {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v, taints %q; want %s with %q, and %q", s.node.Status.Conditions, have, status, text, taints)
	})
}

func (s *nodes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	version, changed := s.version, s.changed
	list := corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
	if s.node != nil {
		list.Items = append(list.Items, *s.node)
	}
	s.mu.Unlock()
	switch q := r.URL.Query(); {
	case s.away.Load():
		status(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
	case r.Method == http.MethodPatch:
		s.patch(w, r)
	case strings.HasSuffix(r.URL.Path, "/node1") && len(list.Items) == 1:
		json.NewEncoder(w).Encode(list.Items[0])
	case q.Get("sendInitialEvents") == "true":
		status(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case q.Get("watch") == "":
		json.NewEncoder(w).Encode(list)
	default: // what changes makes the client list again
		w.(http.Flusher).Flush()
		if q.Get("resourceVersion") == strconv.Itoa(version) {
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
		json.NewEncoder(w).Encode(map[string]any{"type": "ERROR", "object": metav1.Status{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: http.StatusGone, Reason: metav1.StatusReasonExpired,
		}})
	}
}

func (s *nodes) patch(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if s.node == nil {
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	n := s.node.DeepCopy()
	var merge corev1.Node
	var ops []struct{ Op, Path, Value string }
	switch {
	case strings.HasSuffix(r.URL.Path, "/node1/status") && json.Unmarshal(body, &merge) == nil && len(merge.Status.Conditions) == 1:
		s.merge(n, merge.Status.Conditions[0])
	case strings.HasSuffix(r.URL.Path, "/node1") && json.Unmarshal(body, &ops) == nil:
		for _, op := range ops {
			at, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(op.Path, "/spec/taints/"), "/key"))
			switch {
			case err != nil || at >= len(n.Spec.Taints) || op.Op == "test" && n.Spec.Taints[at].Key != op.Value:
				status(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
				return
			case op.Op == "remove":
				n.Spec.Taints = slices.Delete(n.Spec.Taints, at, at+1)
			}
		}
	default:
		status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	s.change(n)
	json.NewEncoder(w).Encode(n)
}

func status(w http.ResponseWriter, code int32, reason metav1.StatusReason) {
	w.WriteHeader(int(code))
	json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: code, Reason: reason})
}

const routedNodeConfig = `{"metadata":{"name":"node1","generation":3},"spec":{
	"podCIDRs":{"ipv6":["2001:db8:1::/64"],"ipv4":["10.1.0.0/24"],"quarantineSeconds":0},
	"defaults":{"ipv4":true},
	"bgp":{"localAS":64601,"routerID":"192.0.2.2","peers":[{"name":"tor","address":"2001:db8:ffff::1","remoteAS":64512}]}}}`

// startRouter runs the node's router until stop is called.
func (n *node) startRouter() (stop func()) {
	n.t.Helper()
	dir := n.t.TempDir()
	conf := filepath.Join(dir, "bird.conf")
	if err := os.WriteFile(conf, []byte(`
log stderr all;
router id 192.0.2.1;
protocol device {}
protocol kernel { ipv6 { import none; export all; }; }
protocol kernel { ipv4 { import none; export all; }; }
protocol bgp node {
	local as 64512;
	neighbor 2001:db8:ffff::2 as 64601;
	direct;
	connect delay time 1; connect retry time 1; error wait time 1, 1;
	ipv6 { import all; export none; };
	ipv4 { import all; export none; extended next hop; };
}
`), 0o600); err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("bird", "-f", "-c", conf, "-s", filepath.Join(dir, "bird.ctl"), "-P", filepath.Join(dir, "bird.pid"))
	var err error
	n.router.Run(func() { err = cmd.Start() })
	if err != nil {
		n.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	n.t.Cleanup(stop)
	return stop
}

// added is the answer of an ADD that was begun.
type added struct {
	addrs []netip.Addr
	err   error
}

func (s *sandbox) beginAdd() chan added {
	done := make(chan added, 1)
	go func() {
		addrs, err := s.add()
		done <- added{addrs, err}
	}()
	return done
}

func (n *node) readyz() (code int, body string) {
	n.t.Helper()
	return n.get("/readyz")
}

// get asks the agent's --health-address.
func (n *node) get(path string) (code int, body string) {
	n.t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		n.host.Run(func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, addr) })
		return conn, err
	}}}
	defer client.CloseIdleConnections()
	var answer *http.Response
	eventually(n.t, n.agentLog, func() (err error) { // the agent may be about to listen
		answer, err = client.Get("http://127.0.0.1:9479" + path)
		return err
	})
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return answer.StatusCode, string(b)
}

// A pod of a boot comes up when the router has the way to it, and not before; what
// the session does after that, and what the agent does, is no matter.
func TestPodsWaitForTheRouter(t *testing.T) {
	t.Parallel()
	n := newNode(t, routedNodeConfig)
	n.router.IP("route", "del", "2001:db8:1::/64")
	n.router.IP("route", "del", "10.1.0.0/24")
	other := corev1.Taint{Key: "dedicated", Effect: corev1.TaintEffectNoSchedule}
	starting := corev1.Taint{Key: startup.Taint, Effect: corev1.TaintEffectNoSchedule}
	api := n.serveAPI()
	api.nodes.register(starting, other)
	api.put("a", 3, routedNodeConfig)
	n.start()
	const down = "BGP peer tor is down"
	api.nodes.says(n, corev1.ConditionTrue, down, startup.Taint, "dedicated")
	api.says(n, "Ready", metav1.ConditionFalse, "WaitingForRouters ")
	api.says(n, "Ready", metav1.ConditionFalse, down)
	if code, body := n.readyz(); code != http.StatusServiceUnavailable || !strings.Contains(body, down) {
		t.Errorf("readyz: %d %s", code, body)
	}
	n.startBIRD()

	// The agent ends while a pod waits: the runtime gets an answer at once, with the reason.
	early := n.sandbox("early").beginAdd()
	eventually(t, n.agentLog, func() error {
		if len(early) > 0 {
			return fmt.Errorf("it did not wait: %+v", <-early)
		}
		if !strings.Contains(n.agentLog(), "a pod waits") {
			return fmt.Errorf("no call yet")
		}
		return nil
	})
	began := time.Now()
	n.agent.Process.Signal(os.Interrupt)
	n.agent.Wait()
	if got := <-early; got.err == nil || !strings.Contains(got.err.Error(), down) {
		t.Errorf("ADD of an agent that ends: %+v", got)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the agent took %s to end while a pod waited", took)
	}
	n.start()

	p := n.sandbox("p")
	waiting := p.beginAdd()
	stop := n.startRouter()
	got := <-waiting
	if got.err != nil {
		t.Fatalf("%v\n%s", got.err, n.agentLog())
	}
	// BIRD has sent the routes when the pod is answered; the router's BIRD still has to
	// put them into its kernel.
	for answered := time.Now(); time.Since(answered) < time.Second; {
		if slices.IndexFunc(got.addrs, func(a netip.Addr) bool { _, err := n.router.Try("ip", "route", "get", a.String()); return err != nil }) < 0 {
			break
		}
	}
	for _, addr := range got.addrs { // by the routes that the router learned
		n.reaches(n.router, p, addr)
	}
	api.nodes.says(n, corev1.ConditionFalse, startup.ReasonUp, "dedicated")
	api.says(n, "Ready", metav1.ConditionTrue, "")

	// From here on the gate stays open.
	stop()
	api.says(n, "SessionsUp", metav1.ConditionFalse, "tor")
	began = time.Now()
	n.sandbox("later").mustAdd()
	n.kill()
	n.start()
	n.sandbox("latest").mustAdd()
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("pods waited for a session that was lost: %s", took)
	}
	api.nodes.says(n, corev1.ConditionFalse, startup.ReasonUp, "dedicated")

	// Nobody else has the last word on the Node, a kubelet that registers it again
	// least of all.
	api.nodes.condition(corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated"})
	api.nodes.says(n, corev1.ConditionFalse, startup.ReasonUp, "dedicated")
	api.nodes.register(other, starting)
	api.nodes.says(n, corev1.ConditionFalse, startup.ReasonUp, "dedicated")
	api.nodes.mu.Lock()
	writes := api.nodes.writes
	api.nodes.mu.Unlock()
	if writes > 12 {
		t.Errorf("%d writes of the Node", writes)
	}

	// A reboot: the state directory is empty, but for what the test needs in it.
	n.kill()
	if err := os.Remove(filepath.Join(n.state, "taking-pods")); err != nil {
		t.Fatal(err)
	}
	n.start()
	api.nodes.says(n, corev1.ConditionTrue, down, "dedicated")
	n.reaches(n.host, p, got.addrs[0]) // who is there stays
	if code, _ := n.readyz(); code != http.StatusServiceUnavailable {
		t.Errorf("readyz: %d", code)
	}
	api.put("a", 4, strings.Replace(routedNodeConfig, `"spec":{`, `"spec":{"startup":{"sessions":"none"},`, 1))
	n.sandbox("unrouted").mustAdd()
	api.nodes.says(n, corev1.ConditionFalse, startup.ReasonUp, "dedicated")
}
