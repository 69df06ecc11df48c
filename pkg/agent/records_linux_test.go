package agent_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"flock.fritzlab.net/flock/pkg/address/annotation"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// records is the directory of the attachments' records.
func (n *node) records() string { return filepath.Join(n.state, "attachments") }

// rewrite changes the file of each record.
func (n *node) rewrite(change func(path string, content []byte) error) {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.records(), "*.json"))
	if err != nil || len(files) == 0 {
		n.t.Fatalf("records: %v, %v", files, err)
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err == nil {
			err = change(path, content)
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
}

// stream sends a packet every 10 ms to addr. The function that it returns ends it, and
// fails the test if one of them was not answered.
func (n *node) stream(addr netip.Addr) (end func()) {
	n.t.Helper()
	var out bytes.Buffer
	ping := exec.Command("ping", "-i", "0.01", "-q", addr.String())
	ping.Stdout = &out
	var err error
	n.router.Run(func() { err = ping.Start() })
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { ping.Process.Kill() })
	return func() {
		n.t.Helper()
		ping.Process.Signal(syscall.SIGINT)
		ping.Wait()
		var sent, received int
		for line := range strings.Lines(out.String()) {
			fmt.Sscanf(line, "%d packets transmitted, %d received", &sent, &received)
		}
		if sent < 3 || received < sent-1 { // the last may be under way
			n.t.Errorf("%v answered %d of %d packets:\n%s", addr, received, sent, out.String())
		}
	}
}

// Records may be lost or unreadable, pods may not: whatever becomes of the records,
// running pods keep their links and answer all the time, and their addresses are not
// given out again.
func TestPodsOutliveTheirRecords(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(n *node){
		"none":        func(n *node) {},
		"gone":        func(n *node) { os.RemoveAll(n.records()) },
		"truncated":   func(n *node) { n.rewrite(func(p string, b []byte) error { return os.Truncate(p, int64(len(b)/2)) }) },
		"zero length": func(n *node) { n.rewrite(func(p string, b []byte) error { return os.Truncate(p, 0) }) },
		"newer version": func(n *node) {
			n.rewrite(func(p string, b []byte) error {
				return os.WriteFile(p, bytes.Replace(b, []byte(`"version":1`), []byte(`"version":2`), 1), 0o600)
			})
		},
		"newer version, unreadable": func(n *node) {
			n.rewrite(func(p string, b []byte) error { return os.WriteFile(p, []byte(`{"version":3,"addrs":7}`), 0o600) })
		},
		"unknown state": func(n *node) {
			n.rewrite(func(p string, b []byte) error {
				return os.WriteFile(p, bytes.Replace(b, []byte(`"committed"`), []byte(`"migrating"`), 1), 0o600)
			})
		},
		"a directory in its place": func(n *node) {
			n.rewrite(func(p string, b []byte) error {
				return os.Remove(p)
			})
			for _, id := range []string{"a", "b"} {
				os.MkdirAll(filepath.Join(n.records(), id+"@eth0.json", "x"), 0o700)
			}
		},
		"the boot's file is empty": func(n *node) { os.Truncate(filepath.Join(n.records(), ".boot"), 0) },
		"gone, on a full disk": func(n *node) {
			os.RemoveAll(n.records())
			os.Mkdir(n.records(), 0o700)
			n.fill()
		},
		"aliases were changed": func(n *node) {
			n.host.IP("link", "set", wiring.HostIfName("a"), "alias", "renamed by hand")
			n.host.IP("link", "set", wiring.HostIfName("b"), "alias", "")
		},
		"gone, and the routes with them": nil, // its packets are lost until the agent is back
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, strings.Replace(nodeConfig, "10.1.0.0/24", "10.1.0.0/28", 1))
			n.start()
			a, b := n.sandbox("a"), n.sandbox("b")
			a.portMappings = []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "TCP"}}
			held := slices.Concat(a.mustAdd(), b.mustAdd())
			n.kill()
			var ends []func()
			if fault == nil {
				os.RemoveAll(n.records())
				for _, addr := range held {
					n.host.IP("route", "del", addr.String())
				}
			} else {
				for _, addr := range held {
					ends = append(ends, n.stream(addr))
				}
				fault(n)
			}
			for range 2 { // a second start finds what the first has made of it
				n.start()
				for _, addr := range held {
					n.reaches(n.router, a, addr)
				}
				for _, addr := range held[:2] {
					if ruleset := n.host.Exec("nft", "list", "ruleset"); !strings.Contains(ruleset, addr.String()+" . 80") {
						t.Errorf("port 8080 of the node does not lead to %v in\n%s", addr, ruleset)
					}
				}
				n.kill()
			}
			n.start()
			if full := strings.Contains(name, "full"); !full {
				for i := range 6 {
					later := n.sandbox(fmt.Sprint("later", i))
					for _, addr := range later.mustAdd() {
						if slices.Contains(held, addr) {
							t.Errorf("%v is given to %s too", addr, later.id)
						}
						n.reaches(n.router, later, addr)
					}
				}
			}
			for _, end := range ends {
				end()
			}
			if t.Failed() {
				t.Log(n.agentLog())
			}
			a.mustDel()
			b.mustDel()
			eventually(t, n.agentLog, func() error {
				if links := n.links(); slices.Contains(links, wiring.HostIfName("a")) || slices.Contains(links, wiring.HostIfName("b")) {
					return fmt.Errorf("after DEL there are %v", links)
				}
				return nil
			})
		})
	}
}

// fill puts a full tmpfs of a few pages over the records' directory.
func (n *node) fill() {
	n.t.Helper()
	if err := unix.Mount("tmpfs", n.records(), "tmpfs", 0, "size=16k"); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { unix.Unmount(n.records(), unix.MNT_DETACH) })
	for i := range 64 {
		if err := os.WriteFile(filepath.Join(n.records(), fmt.Sprint("filler", i)), make([]byte, 4096), 0o600); err != nil {
			return
		}
	}
	n.t.Fatal("16 KiB have room for 256")
}

// Where nothing can be written any more, pods can still end, and the agent start.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	if err := os.Mkdir(n.records(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", n.records(), "tmpfs", 0, "size=40k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(n.records(), unix.MNT_DETACH) })
	n.start()
	a, b := n.sandbox("a"), n.sandbox("b")
	aAddrs, bAddrs := a.mustAdd(), b.mustAdd()
	fillers := 0
	for os.WriteFile(filepath.Join(n.records(), fmt.Sprint("filler", fillers)), make([]byte, 4096), 0o600) == nil {
		fillers++
	}
	late := n.sandbox("late")
	if _, err := late.add(); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("ADD: %v; want an error that says why", err)
	}
	a.mustDel()
	for _, addr := range aAddrs {
		if slices.Contains(n.routes(), addr) {
			t.Errorf("after DEL %v is still routed", addr)
		}
	}
	n.kill()
	n.start()
	for _, addr := range bAddrs {
		n.reaches(n.router, b, addr)
	}
	b.mustDel()
	eventually(t, n.agentLog, func() error {
		if links := n.links(); len(links) != 0 {
			return fmt.Errorf("after DEL there are %v", links)
		}
		return nil
	})
	n.kill() // in the middle of it, perhaps
	n.start()
	for i := range fillers + 1 {
		os.Remove(filepath.Join(n.records(), fmt.Sprint("filler", i)))
	}
	for _, addr := range late.mustAdd() {
		n.reaches(n.router, late, addr)
	}
}

// The same where all of /run is full: the cached configurations, BIRD's configuration and
// the sockets are in the same place.
func TestFullRun(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	kubeconfig, err := os.ReadFile(filepath.Join(n.state, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", n.state, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(n.state, unix.MNT_DETACH) })
	n.write("kubeconfig", string(kubeconfig))
	n.write("nodeconfig.json", nodeConfig)
	n.start()
	p := n.sandbox("a")
	addrs := p.mustAdd()
	filler, err := os.Create(filepath.Join(n.state, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	filler.Close()
	n.kill()
	n.start()
	for _, addr := range addrs {
		n.reaches(n.router, p, addr)
	}
	p.mustDel()
	eventually(t, n.agentLog, func() error {
		if links := n.links(); len(links) != 0 {
			return fmt.Errorf("after DEL there are %v", links)
		}
		return nil
	})
	os.Remove(filler.Name())
	late := n.sandbox("late")
	for _, addr := range late.mustAdd() {
		n.reaches(n.router, late, addr)
	}
}

// The networks of a node do not touch each other's pods.
func TestNetworksAreApart(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	a, b := n.sandbox("a"), n.sandbox("b")
	aAddrs := a.mustAdd()
	runtime, _ := n.network()
	second, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"second","plugins":[{"type":"flock","agentSocket":%q}]}`, n.socket()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.AddNetworkList(t.Context(), second, b.conf()); err != nil {
		t.Fatal(err)
	}
	if err := runtime.DelNetworkList(t.Context(), second, a.conf()); err != nil {
		t.Errorf("DEL of what the network has not: %v", err)
	}
	if err := runtime.GCNetworkList(t.Context(), second, &libcni.GCArgs{}); err != nil {
		t.Errorf("GC: %v", err)
	}
	for _, addr := range aAddrs {
		n.reaches(n.router, a, addr)
	}
	if err := a.check(); err != nil {
		t.Error(err)
	}
	eventually(t, n.agentLog, func() error {
		if links := n.links(); len(links) != 1 {
			return fmt.Errorf("after GC of the second network there are %v", links)
		}
		return nil
	})
}

// A pod's next sandbox has the pod's static address, whatever became of the DEL of the
// last one.
func TestStaticAddressAtThePodsNextSandbox(t *testing.T) {
	t.Parallel()
	nodeConfig := strings.Replace(nodeConfig, `"podCIDRs":{`, `"podCIDRs":{"static":{"namespaceSelector":{}},`, 1)
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	addrs := []netip.Addr{netip.MustParseAddr("2001:db8:1::7"), netip.MustParseAddr("10.1.0.7")}
	for _, name := range []string{"web-0", "web-1"} {
		api.pods.Store("/api/v1/namespaces/shop/pods/"+name, corev1.Pod{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Annotations: map[string]string{annotation.Addresses: "2001:db8:1::7,10.1.0.7"}},
		})
	}
	n.start()
	add := func(p *sandbox, name string) error {
		conf := p.conf()
		conf.Args = [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", name}}
		runtime, list := n.network()
		_, err := runtime.AddNetworkList(t.Context(), list, conf)
		return err
	}
	p := n.sandbox("first")
	for _, next := range []string{"second", "third"} {
		if err := add(p, "web-0"); err != nil {
			t.Fatalf("%v\n%s", err, n.agentLog())
		}
		for _, addr := range addrs {
			n.reaches(n.router, p, addr)
		}
		if err := add(n.sandbox("other"+next), "web-1"); err == nil || !strings.Contains(err.Error(), "is held by pod shop/web-0") {
			t.Errorf("another pod has the address: %v", err)
		}
		p = n.sandbox(next)
	}
	eventually(t, n.agentLog, func() error {
		if links := n.links(); len(links) != 1 {
			return fmt.Errorf("the pod has the links %v", links)
		}
		return nil
	})
}

// An anycast address stays announced while its record is rebuilt: the pod's UID, by which
// readiness is known, comes from the source of pods.
func TestAnycastOutlivesItsRecord(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	api := n.serveAPI()
	api.put("a", 3, nodeConfig)
	api.pods.Store("/api/v1/namespaces/shop/pods/web-0", corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-0", UID: "u1", ResourceVersion: "1"},
		Spec:       corev1.PodSpec{NodeName: "node1"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{
			Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
		}}},
	})
	n.start()
	p := n.sandbox("a")
	conf := p.conf()
	conf.Args = [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_UID", "u1"}}
	runtime, list := n.network()
	if _, err := runtime.AddNetworkList(t.Context(), list, conf); err != nil {
		t.Fatalf("%v\n%s", err, n.agentLog())
	}
	n.kill()
	n.rewrite(func(path string, b []byte) error { // as if it had asked for it
		return os.WriteFile(path, bytes.Replace(b, []byte(`"hostIf"`), []byte(`"anycast":[{"addr":"2001:db8:53::53","pool":"dns"}],"hostIf"`), 1), 0o600)
	})
	announced := func() error {
		if routes := n.host.IP("-6", "route", "show", "proto", "85"); !strings.Contains(routes, "2001:db8:53::53") {
			return fmt.Errorf("the address is not announced among\n%s", routes)
		}
		return nil
	}
	n.start()
	eventually(t, n.agentLog, announced)
	n.kill()
	changes := n.monitorRoutes()
	if err := os.RemoveAll(n.records()); err != nil {
		t.Fatal(err)
	}
	n.start()
	// Only with the UID it stays, once the source of pods has listed them all.
	eventually(t, n.agentLog, func() error {
		record, err := os.ReadFile(filepath.Join(n.records(), "a@eth0.json"))
		if err != nil || !bytes.Contains(record, []byte(`"podUID":"u1"`)) {
			return fmt.Errorf("record %s, %v", record, err)
		}
		for _, a := range api.status().Anycast {
			if a.Address == "2001:db8:53::53" && a.Pod == "shop/web-0" && a.Reason == "Ready" {
				return announced()
			}
		}
		return fmt.Errorf("status says %+v", api.status().Anycast)
	})
	if seen := changes(); seen != "" {
		t.Errorf("routes were changed:\n%s", seen)
	}
}
