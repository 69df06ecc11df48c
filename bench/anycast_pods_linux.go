package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/typed/core/v1"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

const (
	// anycastName is what the benches' namespace and pool are called.
	anycastName = "flock-bench-anycast"
	// anycastNode is where their pods are.
	anycastNode = "node1"
	// podPatience is for pods to come, to be Ready, or to go.
	podPatience = 90 * time.Second
)

// anycastPool is the pool of the benches' addresses.
var anycastPool = netip.MustParsePrefix("2001:db8:ac::/48")

// anycastAddr is an address of the pool.
func anycastAddr(group, i int) netip.Addr { return numbered(anycastPool, group, i) }

// numbered is an address of an IPv6 pool of 48 bits.
func numbered(pool netip.Prefix, group, i int) netip.Addr {
	a := pool.Addr().As16()
	a[6], a[7] = byte(group>>8), byte(group)
	a[14], a[15] = byte(i>>8), byte(i)
	return netip.AddrFrom16(a)
}

// ground is where the benches' pods live: a namespace and a pool that admits it.
type ground struct {
	lab    *cluster.Lab
	client kubernetes.Interface
	api    v1.PodInterface
}

// newGround creates both.
func newGround(ctx context.Context, l *cluster.Lab) (*ground, error) {
	if l.CNI != cluster.Flock {
		return nil, fmt.Errorf("lab %s runs %s: bring it up with --cni %s", l.Dir.Lab(), l.CNI, cluster.Flock)
	}
	client, err := l.Client()
	if err != nil {
		return nil, err
	}
	g := &ground{l, client, client.CoreV1().Pods(anycastName)}
	if err := g.remove(ctx); err != nil {
		return nil, err
	}
	_, err = l.Kubectl(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: flock.fritzlab.net/v1alpha1
kind: AddressPool
metadata: {name: %[1]s}
spec:
  cidrs: ["%[2]s"]
  uses: [anycast]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}
`, anycastName, anycastPool), "apply", "--filename=-")
	if err != nil {
		return nil, err
	}
	return g, process.Await(ctx, "the namespace's service account", nil, func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts(anycastName).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// remove takes all away, and waits for it.
func (g *ground) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), podPatience)
	defer cancel()
	if _, err := g.lab.Kubectl(ctx, "", "delete", "--ignore-not-found", "addresspool/"+anycastName); err != nil {
		return err
	}
	at := int64(0)
	err := g.client.CoreV1().Namespaces().Delete(ctx, anycastName, metav1.DeleteOptions{GracePeriodSeconds: &at})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return process.Await(ctx, "namespace "+anycastName+" to go", nil, func(ctx context.Context) error {
		_, err := g.client.CoreV1().Namespaces().Get(ctx, anycastName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("it is still there"))
	})
}

// podsAPI is the socket of the node's kubelet.
func (g *ground) podsAPI() string {
	return g.lab.Dir.Member(anycastNode, "kubelet", "pods-api", "pods-api.sock")
}

// runtime is the socket of the node's containerd, in the mount namespace that it is in.
func (g *ground) runtime() (string, error) {
	running, err := process.List(member.Of(g.lab.Dir, anycastNode))
	if err != nil {
		return "", err
	}
	for _, p := range running {
		if p.Name == "containerd" && p.Running() {
			return fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", p.PID), nil
		}
	}
	return "", fmt.Errorf("lab %s has no containerd that runs on %s: run lab up", g.lab.Dir.Lab(), anycastNode)
}

// create makes a pod with these anycast addresses.
func (g *ground) create(ctx context.Context, name string, addrs ...netip.Addr) error {
	return g.createOn(ctx, anycastNode, name, addrs...)
}

func (g *ground) createOn(ctx context.Context, node, name string, addrs ...netip.Addr) error {
	var list []string
	for _, a := range addrs {
		list = append(list, a.String())
	}
	meta := metav1.ObjectMeta{Name: name}
	if len(list) > 0 {
		meta.Annotations = map[string]string{anycastAnnotation: strings.Join(list, ",")}
	}
	grace, no := int64(5), false
	_, err := g.api.Create(ctx, &corev1.Pod{
		ObjectMeta: meta,
		Spec: corev1.PodSpec{
			NodeName:                      node,
			TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken:  &no,
			Containers: []corev1.Container{{
				Name: "echo", Image: "echo:dev", ImagePullPolicy: corev1.PullNever,
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(cluster.EchoPort)}},
					PeriodSeconds: 1, FailureThreshold: 1, TimeoutSeconds: 5,
				},
			}},
		},
	}, metav1.CreateOptions{})
	return err
}

// setReady changes what the pods answer to the kubelet's probes.
func (g *ground) setReady(ctx context.Context, pods []corev1.Pod, ready bool) error {
	ask := http.Client{Transport: &http.Transport{DialContext: member.Of(g.lab.Dir, plan.Outside).Dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	for _, p := range pods {
		at := netip.AddrPortFrom(netip.MustParseAddr(p.Status.PodIP), cluster.EchoPort)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://%s/ready?ok=%t", at, ready), nil)
		if err != nil {
			return err
		}
		resp, err := ask.Do(req)
		if err != nil {
			return fmt.Errorf("pod %s: %w", p.Name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			return fmt.Errorf("pod %s: %s says %s", p.Name, req.URL, resp.Status)
		}
	}
	return nil
}

// list are the pods as the API server has them.
func (g *ground) list(ctx context.Context) ([]corev1.Pod, error) {
	l, err := g.api.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return l.Items, nil
}

// kill ends the pod's container as a crash does, and returns when.
func (g *ground) kill(p *corev1.Pod) (at int64, err error) {
	tree, err := cgroup.ForLab(g.lab.Dir.Lab())
	if err != nil {
		return 0, err
	}
	if len(p.Status.ContainerStatuses) != 1 {
		return 0, fmt.Errorf("pod %s: %d containers, want 1", p.Name, len(p.Status.ContainerStatuses))
	}
	pids, err := tree.Container(anycastNode, strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://"))
	if err != nil {
		return 0, err
	}
	if len(pids) != 1 {
		return 0, fmt.Errorf("pod %s: %d processes, want 1", p.Name, len(pids))
	}
	process, err := os.FindProcess(pids[0])
	if err != nil {
		return 0, err
	}
	at = monotonic()
	return at, process.Kill()
}

// log opens what the pod's last container prints. It can be read when the kubelet
// has removed the file, too. The API server may not know of that container yet.
func (g *ground) log(p *corev1.Pod) (*os.File, error) {
	dir := g.lab.Dir.Member(anycastNode, "log", "pods", fmt.Sprintf("%s_%s_%s", p.Namespace, p.Name, p.UID), "echo")
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	last := -1 // earlier ones the kubelet removes
	for _, f := range files {
		if n, err := strconv.Atoi(strings.TrimSuffix(f.Name(), ".log")); err == nil {
			last = max(last, n)
		}
	}
	if last < 0 {
		return nil, fmt.Errorf("pod %s: no log in %s", p.Name, dir)
	}
	return os.Open(filepath.Join(dir, fmt.Sprintf("%d.log", last)))
}

// terminated finds in a container's log when its process has received SIGTERM.
func terminated(log []byte) (at int64, err error) {
	for line := range strings.Lines(string(log)) {
		// Time, stream, "F", and what was printed: the CRI's format.
		fields := strings.SplitN(line, " ", 4)
		var e struct {
			Event     string
			Monotonic int64
		}
		if len(fields) == 4 && json.Unmarshal([]byte(fields[3]), &e) == nil && e.Event == "terminating" {
			return e.Monotonic, nil
		}
	}
	return 0, fmt.Errorf("the log (%d bytes) has no SIGTERM: %w", len(log), fs.ErrNotExist)
}

// inParallel calls f for each of n, a few at a time.
func inParallel(n int, f func(i int) error) error {
	errs := make([]error, n)
	turns := make(chan struct{}, 8)
	var running sync.WaitGroup
	for i := range n {
		turns <- struct{}{}
		running.Go(func() {
			defer func() { <-turns }()
			errs[i] = f(i)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// gone returns when there are no pods.
func (g *ground) gone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	return process.Await(ctx, "deleted pods to go", nil, func(ctx context.Context) error {
		if left, err := g.list(ctx); err != nil || len(left) > 0 {
			return errors.Join(err, fmt.Errorf("%d are left", len(left)))
		}
		return nil
	})
}
