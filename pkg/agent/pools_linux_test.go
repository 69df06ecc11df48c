package agent_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// pools are the AddressPools of an API server that knows no streaming lists.
type pools struct {
	mu      sync.Mutex // guards below
	all     []v1alpha1.AddressPool
	version int
	changed chan struct{} // closed at the next change
}

// set makes all the pools.
func (s *pools) set(all ...v1alpha1.AddressPool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = all
	s.version++
	if s.changed != nil {
		close(s.changed)
	}
	s.changed = make(chan struct{})
}

func (s *pools) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	version, changed := s.version, s.changed
	list := v1alpha1.AddressPoolList{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "AddressPoolList"},
		ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}, Items: s.all,
	}
	s.mu.Unlock()
	switch {
	case r.URL.Query().Get("sendInitialEvents") == "true":
		w.WriteHeader(http.StatusUnprocessableEntity)
		json.NewEncoder(w).Encode(metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid})
	case r.URL.Query().Get("watch") == "":
		json.NewEncoder(w).Encode(list)
	default: // what changes makes the client list again
		w.(http.Flusher).Flush()
		if r.URL.Query().Get("resourceVersion") == strconv.Itoa(version) {
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

func pool(name, cidr string, communities ...v1alpha1.Community) v1alpha1.AddressPool {
	p := v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "x"}}
	p.Spec.CIDRs = []v1alpha1.CIDR{v1alpha1.CIDR(cidr)}
	p.Spec.Uses = []v1alpha1.PoolUse{v1alpha1.UseAnycast}
	p.Spec.Routing.Communities = communities
	return p
}

// startBIRD runs BIRD as the DaemonSet does and returns what it logged.
func (n *node) startBIRD() (log func() string) {
	n.t.Helper()
	dir := filepath.Join(n.state, "bird")
	out, err := os.Create(filepath.Join(n.state, "bird.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("bird", "-f", "-R", "-c", filepath.Join(dir, "bird.conf"), "-s", filepath.Join(dir, "bird.ctl"))
	cmd.Stderr = out
	n.host.Run(func() { err = cmd.Start() })
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return func() string {
		b, _ := os.ReadFile(out.Name())
		return string(b)
	}
}

// A change of the pools is one change of BIRD's configuration, if it is any, and
// the start of an agent is none, whether the API server is there or not.
func TestPoolsReachBIRD(t *testing.T) {
	t.Parallel()
	config := strings.Replace(nodeConfig, `"spec":{`, `"spec":{"startup":{"sessions":"none"},"bgp":{"localAS":64601,"routerID":"192.0.2.2","peers":[{"name":"tor","address":"192.0.2.1","remoteAS":64512}]},`, 1)
	n := newNode(t, config)
	api := n.serveAPI()
	api.put("a", 3, config)
	api.pools.set()
	n.start()
	conf := func() string {
		b, _ := os.ReadFile(filepath.Join(n.state, "bird", "bird.conf"))
		return string(b)
	}
	eventually(t, n.agentLog, func() error {
		if !strings.Contains(conf(), "peer_tor") {
			return fmt.Errorf("no configuration of BIRD")
		}
		return nil
	})
	log := n.startBIRD()
	reconfigured := func() int { return strings.Count(log(), "<INFO> Reconfigured") }
	loads := 0
	wants := func(what string) {
		t.Helper()
		eventually(t, func() string { return n.agentLog() + conf() + log() }, func() error {
			if !strings.Contains(conf(), what) || reconfigured() != loads {
				return fmt.Errorf("BIRD was reconfigured %d times, want %d and %q", reconfigured(), loads, what)
			}
			return nil
		})
	}

	plain := pool("plain", "2001:db8:aaaa::/48")
	api.pools.set(plain) // nothing to do
	api.pools.set(plain, pool("a", "2001:db8:a::/48", "64512:10"), pool("b", "2001:db8:b::/48", "64512:11"), pool("c", "203.0.113.0/24", "64512:12"))
	loads++
	wants("(64512,12)")
	if !strings.Contains(conf(), "(64512,10)") || !strings.Contains(conf(), "(64512,11)") || strings.Contains(conf(), "2001:db8:aaaa") {
		t.Errorf("want the three pools with attributes, and not the one without:\n%s", conf())
	}
	with := conf()

	n.kill()
	n.start()
	api.accepted(n, 3, metav1.ConditionTrue, "")

	n.kill()
	api.away.Store(true)
	n.start()
	n.sandbox("pod").mustAdd()
	if conf() != with {
		t.Errorf("without the API server an agent's start changed the configuration of BIRD to\n%s", conf())
	}
	api.away.Store(false)

	api.pools.set(plain, pool("a", "2001:db8:a::/48", "64512:20"))
	loads++
	wants("(64512,20)")
}

// A pool that is deleted or narrowed does not take the attributes off the routes of those
// who use it: they keep them until the last user is gone, also over a start of the agent.
func TestPoolInUseIsDeleted(t *testing.T) {
	t.Parallel()
	config := strings.Replace(nodeConfig, `"spec":{`, `"spec":{"startup":{"sessions":"none"},"bgp":{"localAS":64601,"routerID":"192.0.2.2","peers":[{"name":"tor","address":"192.0.2.1","remoteAS":64512}]},`, 1)
	n := newNode(t, config)
	api := n.serveAPI()
	api.put("a", 3, config)
	a := pool("a", "2001:db8:a::/48", "64512:10")
	api.pools.set(a)
	n.start()
	p := n.sandbox("pod")
	p.mustAdd()
	n.kill()
	n.rewrite(func(path string, b []byte) error { // as if it had asked for it
		return os.WriteFile(path, bytes.Replace(b, []byte(`"hostIf"`), []byte(`"anycast":[{"addr":"2001:db8:a::53","pool":"a"}],"podNamespace":"shop","podName":"web-0","hostIf"`), 1), 0o600)
	})
	n.start()
	conf := func() string {
		b, _ := os.ReadFile(filepath.Join(n.state, "bird", "bird.conf"))
		return string(b)
	}
	wants := func(when string, retained int32, some, none string) {
		t.Helper()
		eventually(t, func() string { return n.agentLog() + conf() }, func() error {
			if !strings.Contains(conf(), some) || none != "" && strings.Contains(conf(), none) {
				return fmt.Errorf("%s: want %q and no %q in BIRD's configuration", when, some, none)
			}
			want := []v1alpha1.PoolStatus{{Name: "a", Addresses: 1, Pods: []string{"shop/web-0"}, Retained: retained}}
			if got := api.status().Pools; !reflect.DeepEqual(got, want) {
				return fmt.Errorf("%s: status says %+v, want %+v", when, got, want)
			}
			return nil
		})
	}
	wants("covered", 0, "(64512,10)", "2001:db8:a::53")

	narrowed := pool("a", "2001:db8:a:1::/64", "64512:11")
	api.pools.set(narrowed)
	wants("narrowed", 1, "2001:db8:a::53/128", "(64512,10)")
	api.pools.set(a)
	wants("wide again", 0, "(64512,10)", "2001:db8:a::53")
	wide := pool("wide", "2001:db8::/32", "64512:12")
	api.pools.set(wide)
	wants("deleted", 1, "(64512,10)", "2001:db8:a::/48")
	n.kill()
	n.start()
	wants("deleted, and the agent has started again", 1, "(64512,10)", "2001:db8:a::/48")

	p.mustDel()
	eventually(t, func() string { return n.agentLog() + conf() }, func() error {
		if strings.Contains(conf(), "(64512,10)") || len(api.status().Pools) != 0 {
			return fmt.Errorf("without users the attributes are still there, status says %+v", api.status().Pools)
		}
		return nil
	})
}

// The addresses of Services keep the attributes of a pool that is deleted or narrowed, too,
// also over a start of the agent, until the Service is gone or another pool for Services has
// them.
func TestPoolOfServiceIsDeleted(t *testing.T) {
	t.Parallel()
	config := strings.Replace(nodeConfig, `"spec":{`, `"spec":{"startup":{"sessions":"none"},"bgp":{"localAS":64601,"routerID":"192.0.2.2","peers":[{"name":"tor","address":"192.0.2.1","remoteAS":64512}]},`, 1)
	n := newNode(t, config)
	api := n.serveAPI()
	api.put("a", 3, config)
	forServices := func(name, cidr string, communities ...v1alpha1.Community) v1alpha1.AddressPool {
		p := pool(name, cidr, communities...)
		p.Spec.Uses = []v1alpha1.PoolUse{v1alpha1.UseService}
		return p
	}
	a := forServices("a", "2001:db8:a::/48", "64512:10")
	api.pools.set(a)
	class := v1alpha1.LoadBalancerClass
	api.services.put("web", corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "web"},
		Spec:   corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, Ports: []corev1.ServicePort{{Port: 80}}},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "2001:db8:a::53"}}}},
	})
	n.start()
	conf := func() string {
		b, _ := os.ReadFile(filepath.Join(n.state, "bird", "bird.conf"))
		return string(b)
	}
	wants := func(when, some, none string) {
		t.Helper()
		eventually(t, func() string { return n.agentLog() + conf() }, func() error {
			if !strings.Contains(conf(), some) || none != "" && strings.Contains(conf(), none) {
				return fmt.Errorf("%s: want %q and no %q in BIRD's configuration", when, some, none)
			}
			return nil
		})
	}
	recorded := func(want string) {
		t.Helper()
		eventually(t, n.agentLog, func() error {
			if b, _ := os.ReadFile(filepath.Join(n.state, "services-pools.json")); string(b) != want {
				return fmt.Errorf("services-pools.json holds %s, want %s", b, want)
			}
			return nil
		})
	}
	wants("covered", "(64512,10)", "2001:db8:a::53")
	recorded(`{"2001:db8:a::53":"a"}`)

	api.pools.set(forServices("a", "2001:db8:a:1::/64", "64512:11"))
	wants("narrowed", "2001:db8:a::53/128", "(64512,10)")
	api.pools.set(a)
	wants("wide again", "(64512,10)", "2001:db8:a::53")
	pods := pool("pods", "2001:db8::/32", "64512:12")
	api.pools.set(pods)
	wants("deleted, inside of a pool for pods", "(64512,10)", "2001:db8:a::/48")
	n.kill()
	api.away.Store(true)
	n.start()
	wants("deleted, and the agent has started again", "(64512,10)", "2001:db8:a::/48")
	api.away.Store(false)

	api.pools.set(pods, forServices("b", "2001:db8:a::/56", "64512:13"))
	wants("another pool in its place", "(64512,13)", "(64512,10)")
	api.pools.set(pods)
	wants("deleted again", "2001:db8:a::53/128", "2001:db8:a::/56")
	api.services.put("web", nil)
	wants("without the Service", "(64512,12)", "2001:db8:a::53")
	recorded(`{}`)
}
