package service

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

// ExternalIP says whether a Service of a namespace with these labels may have addr in
// spec.externalIPs and nodes announce it: the pool that allows it, or why none does. Of
// overlapping pools the longest prefix decides alone. covered is false if the address is in
// no pool: it is nothing of flock's then.
//
// It does not say whether something else has the address.
func ExternalIP(addr netip.Addr, namespace string, set labels.Set, pools []config.Pool) (pool, why string, covered bool) {
	var against []string
	deciding := config.Deciding(pools, addr)
	for _, p := range deciding {
		switch {
		case !p.Admits(set):
			against = append(against, fmt.Sprintf("AddressPool %s admits only namespaces with %s", p.Name, config.Admission(p.Namespaces)))
		case !p.Service:
			against = append(against, fmt.Sprintf("AddressPool %s does not allow use %q", p.Name, v1alpha1.UseService))
		case !p.Services.ExternalIPs:
			against = append(against, fmt.Sprintf("AddressPool %s does not allow it (spec.services.externalIPs: true)", p.Name))
		default:
			return p.Name, "", true
		}
	}
	if len(deciding) == 0 {
		return "", "no AddressPool covers it", false
	}
	return "", fmt.Sprintf("no AddressPool lets namespace %s have it in spec.externalIPs: %s", namespace, strings.Join(against, "; ")), true
}

// ExternalIPs returns the addresses in spec.externalIPs of svc, as kube-proxy reads them.
func ExternalIPs(svc *corev1.Service) (addrs []netip.Addr) {
	for _, text := range svc.Spec.ExternalIPs {
		if a, err := netaddr.ParseLoosely(text); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
