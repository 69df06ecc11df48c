package prove

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"flock.fritzlab.net/flock/lab/cgroup"
	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
	"flock.fritzlab.net/flock/lab/state"
)

//go:embed demo.yaml
var manifest string

// What the manifest calls things.
const (
	namespace = "demo"
	name      = "echo"
)

// demo is the Deployment and its Service as they run.
type demo struct {
	pods       []pod
	serviceIPs []netip.Addr
}

// pod is one of the Deployment's.
type pod struct {
	name, node string
	addrs      []netip.Addr
	// netns is the file of its network namespace.
	netns string
}

// addr is the pod's address of a family, invalid if it has none.
func (p pod) addr(ipv6 bool) netip.Addr {
	for _, a := range p.addrs {
		if a.Is6() == ipv6 {
			return a
		}
	}
	return netip.Addr{}
}

// deploy applies the manifest and waits until all pods are Ready.
func deploy(ctx context.Context, l *cluster.Lab) (*demo, error) {
	if _, err := l.Kubectl(ctx, manifest, "apply", "--filename=-"); err != nil {
		return nil, err
	}
	client, err := l.Client()
	if err != nil {
		return nil, err
	}
	var d *demo
	err = process.Await(ctx, "the demo's pods to be Ready", nil, func(ctx context.Context) error {
		if err := rolledOut(ctx, client); err != nil {
			return err
		}
		d, err = observe(ctx, client, l.Dir.Lab())
		return err
	})
	return d, err
}

func rolledOut(ctx context.Context, client kubernetes.Interface) error {
	d, err := client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	s := d.Status
	if s.ObservedGeneration < d.Generation || s.AvailableReplicas != *d.Spec.Replicas || s.UpdatedReplicas != s.Replicas || s.Replicas != *d.Spec.Replicas {
		return fmt.Errorf("deployment %s/%s: %d of %d pods available: see lab kubectl -n %s describe pods", namespace, name, s.AvailableReplicas, *d.Spec.Replicas, namespace)
	}
	return nil
}

func observe(ctx context.Context, client kubernetes.Interface, lab string) (*demo, error) {
	tree, err := cgroup.ForLab(lab)
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
	if err != nil {
		return nil, err
	}
	d := &demo{}
	for _, p := range list.Items {
		if p.DeletionTimestamp != nil {
			continue
		}
		seen := pod{name: p.Name, node: p.Spec.NodeName}
		for _, ip := range p.Status.PodIPs {
			addr, err := netip.ParseAddr(ip.IP)
			if err != nil {
				return nil, fmt.Errorf("pod %s: %w", p.Name, err)
			}
			seen.addrs = append(seen.addrs, addr)
		}
		if seen.netns, err = netns(tree, &p); err != nil {
			return nil, err
		}
		d.pods = append(d.pods, seen)
	}
	slices.SortFunc(d.pods, func(a, b pod) int { return strings.Compare(a.node+a.name, b.node+b.name) })
	service, err := client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for _, ip := range service.Spec.ClusterIPs {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", service.Name, err)
		}
		d.serviceIPs = append(d.serviceIPs, addr)
	}
	return d, nil
}

// netns finds the pod's network namespace by the processes of its container.
func netns(tree cgroup.Tree, p *corev1.Pod) (string, error) {
	for _, c := range p.Status.ContainerStatuses {
		id := strings.TrimPrefix(c.ContainerID, "containerd://")
		pids, err := tree.Container(p.Spec.NodeName, id)
		if err != nil {
			return "", err
		}
		if id != "" && len(pids) > 0 {
			return fmt.Sprintf("/proc/%d/ns/net", pids[0]), nil
		}
	}
	return "", fmt.Errorf("pod %s runs no process on %s", p.Name, p.Spec.NodeName)
}

func (d *demo) eachOther(ctx context.Context) proof {
	p := proof{statement: "every pod reaches every other, which sees its address"}
	for _, from := range d.pods {
		for _, to := range d.pods {
			if from.name == to.name {
				continue
			}
			for _, addr := range to.addrs {
				if own := from.addr(addr.Is6()); own.IsValid() {
					p.try(ask(ctx, from.name, from.netns, addr, own, to.name))
				}
			}
		}
	}
	return p
}

func (d *demo) toOutside(ctx context.Context) proof {
	p := proof{statement: "every pod reaches the outside host, which sees its address"}
	for _, from := range d.pods {
		for _, to := range plan.OutsideHost.All() {
			if own := from.addr(to.Addr().Is6()); own.IsValid() {
				p.try(ask(ctx, from.name, from.netns, to.Addr(), own, plan.Outside))
			}
		}
	}
	return p
}

func (d *demo) fromOutside(ctx context.Context, dir state.Dir) proof {
	p := proof{statement: "the outside host reaches every pod, which sees its address"}
	own := map[bool]netip.Addr{true: plan.OutsideHost.IPv6.Addr(), false: plan.OutsideHost.IPv4.Addr()}
	for _, to := range d.pods {
		for _, addr := range to.addrs {
			p.try(ask(ctx, plan.Outside, member.Of(dir, plan.Outside).NetNS(), addr, own[addr.Is6()], to.name))
		}
	}
	return p
}

// service checks only that some pod answers: any may, and a pod that reaches itself is
// seen with an address of its node.
func (d *demo) service(ctx context.Context) proof {
	p := proof{statement: "every pod reaches one through the Service's ClusterIPs"}
	d.awaitService(ctx)
	for _, from := range d.pods {
		for _, to := range d.serviceIPs {
			if from.addr(to.Is6()).IsValid() {
				p.try(ask(ctx, from.name, from.netns, to, netip.Addr{}, ""))
			}
		}
	}
	return p
}

// awaitService waits, for a while, until kube-proxy has the Service on each node:
// that pods are Ready does not say so. What it waited for in vain the proof shows.
func (d *demo) awaitService(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	process.Await(ctx, "kube-proxy to have the Service", nil, func(ctx context.Context) error {
		for _, from := range d.pods {
			for _, to := range d.serviceIPs {
				if from.addr(to.Is6()).IsValid() {
					if err := ask(ctx, from.name, from.netns, to, netip.Addr{}, ""); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

// answer is what an echo server says.
type answer struct {
	Pod    string     `json:"pod"`
	Client netip.Addr `json:"client"`
}

// ask asks the echo server at to from a network namespace. It must say that it is
// wantServer and saw wantClient, where those are given.
func ask(ctx context.Context, from, netns string, to, wantClient netip.Addr, wantServer string) error {
	says, err := get(ctx, netns, to)
	switch {
	case err != nil:
		return fmt.Errorf("from %s to %s: %w", from, to, err)
	case wantServer != "" && says.Pod != wantServer:
		return fmt.Errorf("from %s to %s: %s answered, want %s", from, to, says.Pod, wantServer)
	case wantClient.IsValid() && says.Client != wantClient:
		return fmt.Errorf("from %s to %s: it saw %s, want %s", from, to, says.Client, wantClient)
	case says.Pod == "":
		return fmt.Errorf("from %s to %s: the answer has no name", from, to)
	}
	return nil
}

func get(ctx context.Context, netns string, to netip.Addr) (answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Second, errors.New("no answer within 2 s"))
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return member.Dial(ctx, netns, network, address)
		},
	}
	url := "http://" + netip.AddrPortFrom(to, cluster.EchoPort).String() + "/"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer{}, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	var a answer
	if err := json.Unmarshal(body, &a); err != nil {
		return answer{}, fmt.Errorf("answer %q: %w", body, err)
	}
	return a, nil
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}
