package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/metallb"
)

// The baseline of flock's Services: for each, MetalLB has one with the same pod. It is IPv4, as
// MetalLB's native mode has no IPv6.
const (
	metalLBClass  = "bench.flock.fritzlab.net/metallb"
	metalLBFormat = "metallb-" + serviceFormat
	// metalLBTryFor is how long its Services are tried.
	metalLBTryFor = 20 * time.Second
)

var (
	metalLBPool = netip.MustParsePrefix("10.99.0.0/16")
	// metalLBRoutes are those of its router.
	metalLBRoutes = routesOf{unix.RTNLGRP_IPV4_ROUTE, 32, metallb.Table}
)

// metalLBAddr is the address of MetalLB's Service that goes with flock's at addr.
func metalLBAddr(addr netip.Addr) netip.Addr {
	six, four := addr.As16(), metalLBPool.Addr().As4()
	four[2], four[3] = six[7], six[15]
	return netip.AddrFrom4(four)
}

// serviceOfMetalLB is the inverse of metalLBAddr.
func serviceOfMetalLB(addr netip.Addr) netip.Addr {
	four := addr.As4()
	return serviceAddr(int(four[2]), int(four[3]))
}

// ofMetalLB is the kind of sighting at MetalLB's Service.
func ofMetalLB(what string) string { return "metallb-" + what }

// installMetalLB has MetalLB's speaker run where the pods are.
func installMetalLB(ctx context.Context, l *cluster.Lab) error {
	return metallb.Install(ctx, l, metallb.Settings{Class: metalLBClass, Pool: metalLBPool, Node: anycastNode}, os.Stderr)
}

// createMetalLB makes MetalLB's Service for the pods that are selected.
func (g *ground) createMetalLB(ctx context.Context, number, i int, addr netip.Addr, selector map[string]string) error {
	class, no := metalLBClass, false
	_, err := g.client.CoreV1().Services(anycastName).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf(metalLBFormat, number, i), Annotations: map[string]string{"metallb.io/loadBalancerIPs": metalLBAddr(addr).String()}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, AllocateLoadBalancerNodePorts: &no,
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Selector: selector, Ports: []corev1.ServicePort{{Port: cluster.EchoPort}},
		},
	}, metav1.CreateOptions{})
	return err
}
