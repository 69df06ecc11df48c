//go:build linux

package agent

import (
	"cmp"
	"net/netip"

	"flock.fritzlab.net/flock/pkg/address"
	"flock.fritzlab.net/flock/pkg/address/ledger"
	"flock.fritzlab.net/flock/pkg/cni"
	"flock.fritzlab.net/flock/pkg/datapath/hostport"
	"flock.fritzlab.net/flock/pkg/datapath/sourceguard"
	"flock.fritzlab.net/flock/pkg/datapath/wiring"
)

// A record in the words of those that act on it.

func id(c *cni.Call) ledger.ID {
	return ledger.ID{Network: c.Config.Name, ContainerID: c.ContainerID, IfName: c.IfName}
}

// addrs are the pod's primary addresses, at most one of each family.
func addrs(r ledger.Record) []netip.Addr { return address.Addrs(r.Primary) }

func attachment(r ledger.Record) wiring.Attachment {
	w := wiring.Attachment{
		ContainerID: r.ContainerID,
		HostIf:      r.HostIf,
		PodIf:       r.IfName,
		Alias:       r.Pod.String(),
		MTU:         r.MTU,
		Addrs:       r.All(),
	}
	for _, a := range r.Held() {
		if a.FromPool() {
			w.Announced = append(w.Announced, a.Addr)
		} else {
			w.Routed = append(w.Routed, a.Addr)
		}
	}
	return w
}

// binding is what r's pod may send from.
func binding(r ledger.Record) sourceguard.Binding {
	return sourceguard.Binding{
		HostIf:    r.HostIf,
		LinkLocal: wiring.LinkLocal(wiring.PodMAC(r.ContainerID)),
		Sources:   r.All(),
	}
}

// hostPorts are the node's ports that lead to r's pod.
func hostPorts(r ledger.Record) hostport.Binding {
	return hostport.Binding{HostIf: r.HostIf, Addrs: addrs(r), Ports: r.HostPorts}
}

// result is the same for every call about r: a retried ADD must not differ.
func result(r ledger.Record, attached wiring.Attached) *cni.Result {
	out := &cni.Result{
		HostIf: cni.Interface{Name: r.HostIf, MAC: attached.HostMAC[:]},
		PodIf:  cni.Interface{Name: r.IfName, MAC: attached.PodMAC[:]},
		MTU:    r.MTU,
	}
	for _, addr := range addrs(r) {
		gateway := wiring.Gateway6
		if addr.Is4() {
			gateway = wiring.Gateway4
		}
		out.Addresses = append(out.Addresses, cni.Address{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Gateway: gateway})
		out.Routes = append(out.Routes, cni.Route{Dst: netip.PrefixFrom(unspecified(addr), 0), Gateway: gateway})
	}
	return out
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// compareAddrs is how people read addresses: IPv6 before IPv4, then by number.
func compareAddrs(a, b netip.Addr) int {
	return cmp.Or(cmp.Compare(b.BitLen(), a.BitLen()), a.Compare(b))
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(compareAddrs(a.Addr(), b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
