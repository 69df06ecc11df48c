//go:build cluster

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/state"
)

// podClient makes pods of the lab's echo server and looks at them from the API
// server, from inside, and from the outside host.
type podClient struct {
	kubernetes.Interface
	tree cgroup.Tree
}

func newPodClient(t *testing.T) *podClient {
	t.Helper()
	l, err := cluster.Load(labDir(t))
	if err != nil {
		t.Fatal(err)
	}
	client, err := l.Client()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := cgroup.ForLab(labName)
	if err != nil {
		t.Fatal(err)
	}
	return &podClient{client, tree}
}

func labDir(t *testing.T) state.Dir {
	t.Helper()
	dir, err := state.For(labName)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// echoPod is an echo server that the label app names, on that node.
func echoPod(app, node string, annotations map[string]string) corev1.PodTemplateSpec {
	var grace int64 = 1
	probe := &corev1.Probe{PeriodSeconds: 1}
	probe.HTTPGet = &corev1.HTTPGetAction{Path: "/readyz"}
	probe.HTTPGet.Port.IntVal = cluster.EchoPort
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}, Annotations: annotations},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "echo", Image: "echo:dev", ImagePullPolicy: corev1.PullNever, ReadinessProbe: probe,
			}},
		},
	}
}

// create makes a pod of that name.
func (c *podClient) create(t *testing.T, namespace, name, node string, annotations map[string]string) {
	t.Helper()
	template := echoPod(name, node, annotations)
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = name
	if _, err := c.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// ready waits until there are n pods of the app and all are Ready.
func (c *podClient) ready(t *testing.T, namespace, app string, n int) (pods []corev1.Pod) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		list, err := c.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		pods = slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return !isReady(p) })
		if len(pods) != n || len(list.Items) != n {
			return fmt.Errorf("%s/%s: %d pods, %d Ready, want %d\n%s", namespace, app, len(list.Items), len(pods), n, c.complaints(t, namespace, app))
		}
		return nil
	})
	return pods
}

func isReady(p corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// complaints returns the warnings about pods with this prefix in their names.
func (c *podClient) complaints(t *testing.T, namespace, pod string) string {
	list, err := c.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "type=Warning"})
	if err != nil {
		return err.Error()
	}
	return texts(slices.DeleteFunc(list.Items, func(e corev1.Event) bool { return !strings.HasPrefix(e.InvolvedObject.Name, pod) }))
}

// podIPs are the pod's status.podIPs, in their order.
func podIPs(t *testing.T, p corev1.Pod) (addrs []netip.Addr) {
	t.Helper()
	for _, ip := range p.Status.PodIPs {
		a, err := netip.ParseAddr(ip.IP)
		if err != nil {
			t.Fatalf("pod %s/%s: status.podIPs: %v", p.Namespace, p.Name, err)
		}
		addrs = append(addrs, a)
	}
	return addrs
}

// netns is the file of the pod's network namespace.
func (c *podClient) netns(t *testing.T, p corev1.Pod) string {
	t.Helper()
	id := strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
	pids, err := c.tree.Container(p.Spec.NodeName, id)
	if err != nil || len(pids) == 0 {
		t.Fatalf("pod %s/%s: processes %v: %v", p.Namespace, p.Name, pids, err)
	}
	return fmt.Sprintf("/proc/%d/ns/net", pids[0])
}

// eth0 are the addresses on the pod's eth0, less the link-local one.
func (c *podClient) eth0(t *testing.T, p corev1.Pod) (addrs []netip.Addr) {
	t.Helper()
	err := member.InNet(c.netns(t, p), func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		on, err := eth0.Addrs()
		for _, n := range on {
			a, ok := netip.AddrFromSlice(n.(*net.IPNet).IP)
			if a = a.Unmap(); ok && !a.IsLinkLocalUnicast() {
				addrs = append(addrs, a)
			}
		}
		return err
	})
	if err != nil {
		t.Fatalf("pod %s/%s: %v", p.Namespace, p.Name, err)
	}
	return addrs
}

// reached: the outside host gets the pod's own answer at each of the addresses, and
// sees the pod with the first of each family.
func (c *podClient) reached(t *testing.T, p corev1.Pod, addrs ...netip.Addr) {
	t.Helper()
	if len(addrs) == 0 {
		t.Errorf("pod %s/%s has no address to be reached at", p.Namespace, p.Name)
	}
	outside := member.Of(labDir(t), plan.Outside).NetNS()
	seen := map[bool]bool{}
	for _, a := range addrs {
		if got, err := askEcho(t, outside, a); err != nil || got.Pod != p.Name || got.Local != a {
			t.Errorf("outside asked pod %s/%s at %s: %+v, %v", p.Namespace, p.Name, a, got, err)
		}
		if seen[a.Is4()] {
			continue
		}
		seen[a.Is4()] = true
		host := plan.OutsideHost.IPv6.Addr()
		if a.Is4() {
			host = plan.OutsideHost.IPv4.Addr()
		}
		if got, err := askEcho(t, c.netns(t, p), host); err != nil || got.Client != a {
			t.Errorf("outside saw pod %s/%s with %+v, %v; want it with %s", p.Namespace, p.Name, got, err, a)
		}
	}
}

// echoAnswer is what an echo server says of itself and of the connection.
type echoAnswer struct {
	Pod           string
	Client, Local netip.Addr
}

func askEcho(t *testing.T, netns string, to netip.Addr) (a echoAnswer, err error) {
	body, err := getFrom(t, netns, echoURL(to))
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(body, &a)
}

// getFrom gets a URL from a network namespace.
func getFrom(t *testing.T, netns, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return member.Dial(ctx, netns, network, address)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

func echoURL(a netip.Addr) string {
	return "http://" + netip.AddrPortFrom(a, cluster.EchoPort).String() + "/"
}
