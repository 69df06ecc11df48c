package service

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"flock.fritzlab.net/flock/pkg/config"
)

// Granting returns by which AddressPool each address of the Services that flock-controller
// serves was given: the pool for Services that decides about it now. Where none does any more,
// it is the one that did last, by before; an address that no pool ever had is left out.
//
// A Service outlives pools, so its address follows the pool that takes the place of another.
func Granting(in []*corev1.Service, pools []config.Pool, before map[netip.Addr]string) map[netip.Addr]string {
	now := map[netip.Addr]string{}
	admission := Admission{Pools: pools}
	for _, svc := range in {
		if !IsManaged(svc) {
			continue
		}
		for _, ingress := range svc.Status.LoadBalancer.Ingress {
			addr, err := netip.ParseAddr(ingress.IP)
			if err != nil {
				continue
			}
			if deciding := admission.deciding(addr); len(deciding) > 0 {
				now[addr] = deciding[0].Name
			} else if last := before[addr]; last != "" {
				now[addr] = last
			}
		}
	}
	return now
}
