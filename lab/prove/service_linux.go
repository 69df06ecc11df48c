package prove

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/fabric"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
	"flock.fritzlab.net/flock/lab/process"
)

//go:embed service.yaml
var serviceManifest string

// balancer is what the manifest calls the Service.
const balancer = "public"

// loadBalancer: the outside host reaches the Service's addresses, which flock-controller has
// given and nodes announce, and the pods see its own address. It asks often enough to come to
// each node.
func (d *demo) loadBalancer(ctx context.Context, l *cluster.Lab) (proof, error) {
	const tries = 8 // of each address
	p := proof{statement: "the outside host reaches a LoadBalancer Service, whose pods see its address"}
	manifest := fmt.Sprintf(serviceManifest, plan.LoadBalancers.IPv6, plan.LoadBalancers.IPv4)
	if _, err := l.Kubectl(ctx, manifest, "apply", "--filename=-"); err != nil {
		return p, err
	}
	addrs, err := announced(ctx, l)
	if err != nil {
		return p, err
	}
	own := map[bool]netip.Addr{true: plan.OutsideHost.IPv6.Addr(), false: plan.OutsideHost.IPv4.Addr()}
	for _, addr := range addrs {
		for range tries {
			p.try(ask(ctx, plan.Outside, member.Of(l.Dir, plan.Outside).NetNS(), addr, own[addr.Is6()], ""))
		}
	}
	return p, nil
}

// announced are the Service's addresses, one of each family of the cluster, once the router
// has routes to all.
func announced(ctx context.Context, l *cluster.Lab) (addrs []netip.Addr, err error) {
	client, err := l.Client()
	if err != nil {
		return nil, err
	}
	want := len(l.Families.Of(plan.Services))
	err = process.Await(ctx, "the router to know the Service's addresses", nil, func(ctx context.Context) error {
		svc, err := client.CoreV1().Services(namespace).Get(ctx, balancer, metav1.GetOptions{})
		if err != nil {
			return err
		}
		addrs = nil
		for _, in := range svc.Status.LoadBalancer.Ingress {
			addr, err := netip.ParseAddr(in.IP)
			if err != nil {
				return err
			}
			addrs = append(addrs, addr)
		}
		if len(addrs) != want {
			return fmt.Errorf("service %s/%s has the addresses %v, want %d: see lab kubectl -n %s describe service %s", namespace, balancer, addrs, want, namespace, balancer)
		}
		routes, err := fabric.Routes(l.Dir, plan.Nodes(l.Nodes))
		if err != nil {
			return err
		}
		for _, addr := range addrs {
			if !slices.ContainsFunc(routes, func(r fabric.Route) bool { return r.Prefix == netip.PrefixFrom(addr, addr.BitLen()) }) {
				return fmt.Errorf("no node announces %s: see bin/flockctl service %s/%s", addr, namespace, balancer)
			}
		}
		return nil
	})
	return addrs, err
}
