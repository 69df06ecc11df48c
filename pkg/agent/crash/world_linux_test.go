package crash

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/internal/nettest"
	"flock.fritzlab.net/flock/pkg/datapath/proxy/proxytest"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// world is a node with an API server, BIRD, and pods of Kubernetes'.
type world struct {
	*node
	api apiServer

	any, claimed, victim *pod
	going                []*pod // claimed ones of which DEL was not answered yet
	made                 int
	claims               bool //  the claimed pod is there
	prober               *prober
	wanted               map[string]bool
}

// apiServer is the real one, or one in memory.
type apiServer interface {
	put(path, object string) error // by server-side apply
	get(path string) ([]byte, error)
	remove(path string) error
	serve(t testing.TB, ns *nettest.NS) // at port 1 of the node's loopback
	url() string
}

const (
	configsPath  = "/apis/flock.fritzlab.net/v1alpha1/nodeconfigs/node1"
	poolsPath    = "/apis/flock.fritzlab.net/v1alpha1/addresspools/"
	claimsPath   = "/apis/flock.fritzlab.net/v1alpha1/addressclaims"
	shopPath     = "/api/v1/namespaces/shop"
	policiesPath = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/victim"

	anycastAddr = "2001:db8:53::53"
	claimedAddr = "2001:db8:200::7"
	serviceAddr = "2001:db8:113::7"

	// Of the victim: one that no policy ever allows, and one that the policy allows sometimes.
	deniedPort, sometimesPort = 5301, 5302
)

// put makes an object what is said.
func (w *world) put(path, object string) {
	w.t.Helper()
	if err := w.api.put(path, object); err != nil {
		w.t.Fatalf("%s: %v", path, err)
	}
}

// named makes a pod at the API server, with an annotation if there is one.
func (w *world) named(name, annotation, value string) *pod {
	w.t.Helper()
	annotations := ""
	if annotation != "" {
		annotations = fmt.Sprintf(`"annotations":{"flock.fritzlab.net/%s":"%s"},`, annotation, value)
	}
	w.put(shopPath+"/pods/"+name, fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{%s"name":"%[2]s","labels":{"app":"%[2]s"}},
		"spec":{"nodeName":"node1","automountServiceAccountToken":false,"containers":[{"name":"c","image":"none"}]}}`, annotations, name))
	var object struct{ Metadata struct{ UID string } }
	raw, err := w.api.get(shopPath + "/pods/" + name)
	if err == nil {
		err = json.Unmarshal(raw, &object)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.made++
	p := w.sandbox(fmt.Sprint(name, "-", w.made), 0)
	p.args = fmt.Sprintf("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=%s;K8S_POD_UID=%s", name, object.Metadata.UID)
	return p
}

func newWorld(t testing.TB, api apiServer, env ...string) *world {
	w := &world{node: newNode(t), api: api, wanted: map[string]bool{}}
	w.prober = &prober{node: w.node, came: make(chan struct{}, 1)}
	w.env = env
	w.apart = []string{anycastAddr, serviceAddr}
	w.api.serve(t, w.host)
	os.Remove(filepath.Join(w.state, "nodeconfig.json"))
	w.write(w.kubeconfig(), `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":"`+api.url()+`","insecure-skip-tls-verify":true}}],
		"users":[{"name":"u","user":{"token":"admin","as":"system:serviceaccount:flock-system:flock",
			"as-groups":["system:serviceaccounts","system:serviceaccounts:flock-system","system:authenticated"],
			"as-user-extra":{"authentication.kubernetes.io/node-name":["node1"]}}}]}`)
	w.put("/api/v1/nodes/node1", `{"apiVersion":"v1","kind":"Node","metadata":{"name":"node1"}}`)
	w.put(shopPath, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}`)
	for name, spec := range map[string]string{"anycast": `"cidrs":["2001:db8:53::/64"],"uses":["anycast"]`, "static": `"cidrs":["2001:db8:200::/64"],"uses":["static"],"quarantineSeconds":0`} {
		w.put(poolsPath+name, fmt.Sprintf(`{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"AddressPool","metadata":{"name":"%s"},"spec":{"namespaceSelector":{},%s}}`, name, spec))
	}
	w.put("/apis/flock.fritzlab.net/v1alpha1/addresspools/service", `{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"AddressPool","metadata":{"name":"service"},
		"spec":{"namespaceSelector":{},"cidrs":["2001:db8:113::/64"],"uses":["service"]}}`)
	w.put(shopPath+"/services/web", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"type":"LoadBalancer","loadBalancerClass":"flock.fritzlab.net/bgp",
		"externalTrafficPolicy":"Local","ipFamilyPolicy":"SingleStack","ports":[{"port":80}]}}`)
	w.put("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web", `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web","labels":{"kubernetes.io/service-name":"web"}},
		"addressType":"IPv6","endpoints":[{"addresses":["2001:db8:1::9"],"nodeName":"node1","conditions":{"ready":true}}],"ports":[{"port":8080,"protocol":"TCP","name":""}]}`)
	for _, c := range changes {
		c.to(w, false)
	}
	w.start()
	w.startBIRD()
	w.any, w.victim = w.named("any", "anycast", anycastAddr), w.named("victim", "", "")
	for _, p := range []*pod{w.any, w.victim} {
		w.must("ADD", func() error { return w.add(p) })
	}
	return w
}

func (w *world) startBIRD() {
	w.t.Helper()
	dir := filepath.Join(w.state, "bird")
	w.eventually("BIRD's configuration", func() error { _, err := os.Stat(filepath.Join(dir, "bird.conf")); return err })
	cmd := exec.Command("bird", "-f", "-R", "-c", filepath.Join(dir, "bird.conf"), "-s", filepath.Join(dir, "bird.ctl"))
	var err error
	w.host.Run(func() { err = cmd.Start() })
	if err != nil {
		w.t.Fatal(err)
	}
	w.bird = cmd.Process
	w.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
}

// A change goes from off to on and back. is says in what the node differs.
type change struct {
	name string
	to   func(w *world, on bool)
	is   func(w *world, on bool) error
}

// want is an error unless got is what is wanted.
func want(got, on bool, what string) error {
	if got != on {
		return fmt.Errorf("%s: %t, want %t", what, got, on)
	}
	return nil
}

var changes = []change{
	{"anycast", func(w *world, on bool) {
		if w.any == nil {
			return
		}
		w.put(shopPath+"/pods/any/status", fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"any"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"%s"}],
			"containerStatuses":[{"name":"c","image":"none","imageID":"","ready":%t,"restartCount":0,"containerID":"containerd://%064d","state":{"running":{}}}]}}`, map[bool]string{true: "True", false: "False"}[on], on, 7))
	}, func(w *world, on bool) error {
		there, nexthops, err := w.routed(anycastAddr, 512)
		if err != nil {
			return err
		}
		if err := want(there, on, "anycast route"); err != nil {
			return err
		}
		if !on {
			return nil // nexthops stay for a while, for the connections that they have
		}
		return want(nexthops != "", on, "nexthops")
	}},
	{"policy", func(w *world, on bool) {
		ingress := ""
		if on {
			ingress = fmt.Sprintf(`{"ports":[{"port":%d,"protocol":"UDP"}]}`, sometimesPort)
		}
		w.put(policiesPath, fmt.Sprintf(`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"victim"},
			"spec":{"podSelector":{"matchLabels":{"app":"victim"}},"policyTypes":["Ingress"],"ingress":[%s]}}`, ingress))
	}, func(w *world, on bool) error {
		// Without its table the node lets everything through, as if the policy were on.
		if err := w.enforced(); err != nil {
			return err
		}
		return want(w.prober.passes(), on, "the policy lets packets through")
	}},
	{"claim", func(w *world, on bool) {
		if on { // a claim is released only with its pod
			if !w.claims {
				w.claimed, w.claims = w.named("claimed", "addresses", claimedAddr), true
			}
			w.add(w.claimed)
			return
		}
		if !w.claims {
			return
		}
		w.claims, w.going = false, append(w.going, w.claimed)
		if w.alive() {
			w.del(w.claimed)
		}
		w.forget(w.claimed)
		if err := w.api.remove(shopPath + "/pods/claimed"); err != nil {
			w.t.Fatal(err)
		}
	}, func(w *world, on bool) error {
		// The runtime tries until it succeeds.
		for w.alive() && len(w.going) > 0 {
			if err := w.del(w.going[0]); err != nil {
				return err
			}
			w.going = w.going[1:]
		}
		if on && w.alive() {
			if err := w.add(w.claimed); err != nil {
				return err
			}
		}
		raw, err := w.api.get(claimsPath)
		if err != nil {
			return err
		}
		return want(strings.Contains(string(raw), `"address":"`+claimedAddr+`"`), on, "claim "+string(raw))
	}},
	{"Service", func(w *world, on bool) {
		w.put(shopPath+"/services/web/status", fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"status":{"loadBalancer":{"ingress":[{"ip":"%s","ipMode":"VIP"}]}}}`, serviceAddr))
		p := proxytest.Port{Name: "shop/web:", Addr: netip.MustParseAddr(serviceAddr), Protocol: "tcp", Port: 80, Local: true}
		if on {
			p.Here = []netip.AddrPort{netip.MustParseAddrPort("[2001:db8:1::9]:8080")}
		}
		file := filepath.Join(w.dir, "kube-proxy")
		w.write(file, proxytest.NFTables(netip.MustParsePrefix("2001:db8:1::/64"), p))
		w.host.Exec("nft", "-f", file)
	}, func(w *world, on bool) error {
		is, _, err := w.routed(serviceAddr, 640)
		if err != nil || is == on {
			return err
		}
		raw, _ := w.api.get(configsPath)
		_, services, _ := strings.Cut(string(raw), `"services"`)
		return want(is, on, "route of the Service, of which the agent says "+services)
	}},
	{"reload", func(w *world, on bool) {
		spare := ""
		if on {
			spare = `,{"name":"spare","address":"192.0.2.9","remoteAS":64512}`
		}
		w.put(configsPath, `{"apiVersion":"flock.fritzlab.net/v1alpha1","kind":"NodeConfig","metadata":{"name":"node1"},"spec":{
			"podCIDRs":{"ipv6":["2001:db8:1::/64"],"ipv4":["10.1.0.0/28"],"quarantineSeconds":0},"defaults":{"ipv4":true},"startup":{"sessions":"none"},
			"bgp":{"localAS":64601,"routerID":"192.0.2.2","peers":[{"name":"tor","address":"192.0.2.1","remoteAS":64512}`+spare+`]}}}`)
	}, func(w *world, on bool) error {
		out, err := w.protocols()
		if err != nil {
			return err
		}
		if !strings.Contains(out, "peer_tor") {
			return fmt.Errorf("peer tor is not configured: %s", out)
		}
		return want(strings.Contains(out, "peer_spare"), on, "peer spare is configured")
	}},
}

// enforced says whether the table of policies has the victim.
func (w *world) enforced() error {
	has, err := w.kernel()
	if err != nil {
		return err
	}
	if w.victim != nil && !strings.Contains(has.tables, "flock-policy to-pod "+wiring.HostIfName(w.victim.id)+"\n") {
		return fmt.Errorf("no policy is enforced for the victim: %s", has.tables)
	}
	return nil
}

// protocols is what BIRD answers to "show protocols".
func (w *world) protocols() (answer string, err error) {
	conn, err := net.Dial("unix", filepath.Join(w.state, "bird", "bird.ctl"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(*patience)); err != nil {
		return "", err
	}
	fmt.Fprintln(conn, "show protocols")
	for in := bufio.NewScanner(conn); in.Scan(); {
		switch line := in.Text(); {
		case strings.HasPrefix(line, "0000"):
			return answer, nil
		case line > "8": // an error
			return "", errors.New(line)
		default:
			answer += line + "\n"
		}
	}
	return "", io.ErrUnexpectedEOF
}

// all is whether the node is what the API server, the runtime and kube-proxy say.
func (w *world) all() error {
	for _, c := range changes {
		if err := c.is(w, w.wanted[c.name]); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return w.settled()
}

// TestChanges makes each change, with an API server in memory.
func TestChanges(t *testing.T) {
	t.Parallel()
	m := newMemory()
	w := newWorld(t, m)
	bystand(w.node)
	w.eventually("at the start", w.all)
	w.probe(bystanders(w.node)[0], time.Millisecond)
	for _, c := range changes {
		for _, on := range []bool{true, false} {
			w.wanted[c.name] = on
			c.to(w, on)
			w.eventually(fmt.Sprintf("%s %t", c.name, on), w.all)
			if c.name == "policy" {
				m.forget()
			}
		}
	}
	w.prober.holds(t, "all changes")
}
