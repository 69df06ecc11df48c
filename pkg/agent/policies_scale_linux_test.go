//go:build apiserver

package agent_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"flock.fritzlab.net/flock/pkg/kube/kubetest"
)

var (
	clusterPods     = flag.Int("cluster-pods", 0, "pods of the cluster in TestAgentInALargeCluster, 100000 for the figures; 0 skips it")
	clusterPolicies = flag.Int("cluster-policies", 10000, "policies that select pods of the node in TestAgentInALargeCluster")
)

// etcd puts objects into an API server's store, many times faster than through it.
type etcd struct {
	t       *testing.T
	client  http.Client
	encoder runtime.Encoder
	ops     []any
}

func newEtcd(t *testing.T, s *kubetest.Server) *etcd {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, networkingv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return &etcd{
		t: t, encoder: protobuf.NewSerializer(scheme, scheme),
		client: http.Client{Transport: &http.Transport{DialContext: s.Admin().Dial}},
	}
}

func (e *etcd) put(key string, kind string, o runtime.Object) {
	e.t.Helper()
	gv := corev1.SchemeGroupVersion
	if kind == "NetworkPolicy" {
		gv = networkingv1.SchemeGroupVersion
	}
	o.GetObjectKind().SetGroupVersionKind(gv.WithKind(kind))
	var b bytes.Buffer
	if err := e.encoder.Encode(o, &b); err != nil {
		e.t.Fatal(err)
	}
	e.ops = append(e.ops, map[string]any{"requestPut": map[string]string{
		"key": base64.StdEncoding.EncodeToString([]byte("/registry/" + key)), "value": base64.StdEncoding.EncodeToString(b.Bytes()),
	}})
	if len(e.ops) == 100 {
		e.flush()
	}
}

func (e *etcd) flush() {
	e.t.Helper()
	if len(e.ops) == 0 {
		return
	}
	body, err := json.Marshal(map[string]any{"success": e.ops})
	if err != nil {
		e.t.Fatal(err)
	}
	e.ops = nil
	answer, err := e.client.Post("http://127.0.0.1:2379/v3/kv/txn", "application/json", bytes.NewReader(body))
	if err != nil {
		e.t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		e.t.Fatalf("etcd: %s: %s", answer.Status, text)
	}
}

// forward has connections to the node's 127.0.0.1:1 end at the API server.
func (n *node) forward(s *kubetest.Server) {
	n.t.Helper()
	var listener net.Listener
	var err error
	n.host.Run(func() { listener, err = net.Listen("tcp", "127.0.0.1:1") })
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := s.Admin().Dial(context.Background(), "tcp", "127.0.0.1:6443")
				if err != nil {
					return
				}
				defer out.Close()
				go func() { io.Copy(out, in); out.Close() }()
				io.Copy(in, out)
			}()
		}
	}()
	n.write("kubeconfig", `{"apiVersion":"v1","kind":"Config","current-context":"c",
		"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1","insecure-skip-tls-verify":true}}],"users":[{"name":"u","user":{"token":"admin"}}]}`)
}

// usage is the agent's resident memory in MiB, now and at most, and its CPU time.
func (n *node) usage() (rss, most float64, cpu time.Duration) {
	n.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.agent.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	field := func(name string) float64 {
		m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(status)
		kB, _ := strconv.ParseFloat(string(m[1]), 64)
		return kB / 1024
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.agent.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return field("VmRSS"), field("VmHWM"), time.Duration(user+system) * 10 * time.Millisecond
}

// TestAgentInALargeCluster is what policies cost an agent: its memory with all pods of a
// large cluster, its CPU while pods change, and its restart with many policies. For its
// figures; with a real API server.
func TestAgentInALargeCluster(t *testing.T) {
	if *clusterPods == 0 {
		t.Skip("-cluster-pods is not set")
	}
	const namespaces, local = 100, 100
	s := kubetest.Start(t, "../../deploy")
	store := newEtcd(t, s)
	created := metav1.Now()
	labels := func(ns, i int) map[string]string { // ten pods have the same: those of a Deployment
		app := i / 10 % 100
		return map[string]string{
			"app.kubernetes.io/name": fmt.Sprint("app-", app), "app.kubernetes.io/instance": fmt.Sprintf("team-%d-app-%d", ns, app),
			"app.kubernetes.io/part-of": fmt.Sprint("team-", ns), "tier": []string{"front", "back", "data"}[app%3],
			"pod-template-hash": fmt.Sprintf("%010x", uint32(ns*7919+app)), "peers": fmt.Sprint("of-", app),
		}
	}
	pod := func(ns, i int, node string, ips ...string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprint("team-", ns), Name: fmt.Sprintf("app-%d-%010x-%05x", i/10%100, ns*7919+i/10%100, i), UID: types.UID(fmt.Sprintf("00000000-0000-4000-8000-%04x%08x", ns, i)),
			Labels: labels(ns, i), CreationTimestamp: created, Annotations: map[string]string{"kubernetes.io/config.seen": "2026-01-01T00:00:00Z", "checksum/config": strings.Repeat("0123456789abcdef", 4)},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet", Operation: "Update", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:status":{` + strings.Repeat(`"f:conditions":{".":{},"k:{\"type\":\"Ready\"}":{".":{},"f:status":{}}},`, 10) + `"f:x":{}}}`)}},
		}}
		p.Spec.NodeName = node
		p.Spec.Containers = []corev1.Container{{
			Name: "app", Image: "registry.example/team/app:v1.2.3", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
			Env: []corev1.EnvVar{{Name: "A", Value: strings.Repeat("x", 100)}, {Name: "B", Value: strings.Repeat("y", 100)}},
		}}
		p.Status.Phase = corev1.PodRunning
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
		if len(ips) > 0 {
			p.Status.PodIP = ips[0]
		}
		return p
	}
	podKey := func(p *corev1.Pod) string { return "pods/" + p.Namespace + "/" + p.Name }
	began := time.Now()
	for ns := range namespaces {
		name := fmt.Sprint("team-", ns)
		store.put("namespaces/"+name, "Namespace", &corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{"kubernetes.io/metadata.name": name, "team": name}, CreationTimestamp: created},
			Status:     corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
		})
	}
	for i := range *clusterPods {
		ns, k := i%namespaces, i/namespaces
		p := pod(ns, k, fmt.Sprint("node-", i%1000), fmt.Sprintf("2001:db8:f:%x::%x", i%1000, i/1000+1), fmt.Sprintf("10.%d.%d.%d", 100+i>>16, i>>8&255, i&255))
		store.put(podKey(p), "Pod", p)
	}
	var locals []*corev1.Pod
	for i := range local {
		p := pod(i, 1<<20+i, "node1")
		p.Name, p.UID, p.Labels = "web", types.UID(fmt.Sprint("web-", i)), map[string]string{"app": "web"}
		p.Status.PodIPs, p.Status.PodIP = nil, ""
		locals = append(locals, p)
		store.put(podKey(p), "Pod", p)
	}
	tcp, port := corev1.ProtocolTCP, intstr.FromInt32(8080)
	for i := range *clusterPolicies {
		ns := i % namespaces
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("team-", ns), Name: fmt.Sprint("policy-", i/namespaces), UID: types.UID(fmt.Sprint("policy-", i)), CreationTimestamp: created}}
		np.Spec.PodSelector.MatchLabels = map[string]string{"app": "web"}
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
			From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"peers": fmt.Sprint("of-", i/namespaces%100)}}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprint("team-", ns)}}}},
			Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}},
		}}
		store.put("networkpolicies/"+np.Namespace+"/"+np.Name, "NetworkPolicy", np)
	}
	store.flush()
	s.Kubectl("", "wait", "--for=jsonpath={.metadata.name}=web", "--namespace=team-99", "pod/web", "--timeout=60s")
	t.Logf("%d pods, %d policies in %s", *clusterPods, *clusterPolicies, time.Since(began).Round(time.Second))

	n := newNode(t, nodeConfig)
	n.forward(s)
	n.start()
	boxes := make([]*sandbox, local)
	began = time.Now()
	for i, p := range locals {
		boxes[i] = n.sandbox(fmt.Sprint("web-", i))
		conf := boxes[i].conf()
		conf.Args = [][2]string{{"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name}, {"K8S_POD_UID", string(p.UID)}}
		runtime, list := n.network()
		if _, err := runtime.AddNetworkList(t.Context(), list, conf); err != nil {
			t.Fatalf("%v\n%s", err, n.agentLog())
		}
	}
	t.Logf("%d pods started in %s", local, time.Since(began).Round(time.Millisecond))
	metric := func(name string) float64 {
		_, body := n.get("/metrics")
		m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` ([-+.e\d]+)$`).FindStringSubmatch(body)
		if m == nil {
			return -1
		}
		v, _ := strconv.ParseFloat(m[1], 64)
		return v
	}
	known := func() error {
		if pods := metric(`flock_policy_objects{kind="pods"}`); pods < float64(*clusterPods) {
			return fmt.Errorf("the agent knows %.0f pods", pods)
		}
		return nil
	}
	patiently(t, n.agentLog, known)
	report := func(what string) {
		rss, most, cpu := n.usage()
		info, err := os.Stat(n.state + "/policies")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: RSS %.0f MiB, at most %.0f MiB, CPU %s; heap in use %.0f MiB; the file has %.1f MiB", what, rss, most, cpu, metric("go_memstats_heap_inuse_bytes")/(1<<20), float64(info.Size())/(1<<20))
	}
	report("all is known")
	time.Sleep(20 * time.Second)
	report("20 s later")

	// Pods change: half of them are peers of a policy.
	const changes, rate = 600, 20
	_, _, before := n.usage()
	began = time.Now()
	for i := range changes {
		p := pod(i%namespaces, 1<<21+i, fmt.Sprint("node-", i%1000), fmt.Sprintf("2001:db8:e:%x::%x", i%1000, i+1), fmt.Sprintf("10.99.%d.%d", i>>8&255, i&255))
		store.put(podKey(p), "Pod", p)
		store.flush()
		time.Sleep(time.Until(began.Add(time.Duration(i+1) * time.Second / rate)))
	}
	_, _, after := n.usage()
	t.Logf("%d pods a second: %.1f %% of a CPU", rate, 100*(after-before).Seconds()/time.Since(began).Seconds())
	report("after the changes")

	// A restart, until the whole table has been compared.
	for range 3 {
		n.kill()
		elements := strings.Count(n.host.Exec("nft", "list", "table", "inet", "flock-policy"), " . ")
		if err := os.Truncate(n.state+"/agent.log", 0); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		n.start()
		patiently(t, n.agentLog, func() error {
			if !strings.Contains(n.agentLog(), "network policies are in force") {
				return fmt.Errorf("not in force")
			}
			return nil
		})
		took := time.Since(began)
		line := regexp.MustCompile(`.*network policies are in force.*`).FindString(n.agentLog())
		t.Logf("restarted with %d elements in %s: %s", elements, took.Round(time.Millisecond), line)
		patiently(t, n.agentLog, known)
		report("after the restart")
	}
}

func patiently(t *testing.T, log func() string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, log())
		}
	}
}
