package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Result is what ADD made, independent of the spec's versions.
type Result struct {
	HostIf Interface
	PodIf  Interface
	// MTU is the pod interface's in bytes, 0 for "not said". Runtimes see it
	// from spec version 1.1.0 on.
	MTU int
	// Sandbox is the path of the pod's network namespace. Empty means the one
	// that the call named.
	Sandbox string
	// Addresses are the pod's, the primary one first: Kubernetes takes the
	// first as the pod's IP.
	Addresses []Address
	Routes    []Route
}

// Interface is one end of the pod's link.
type Interface struct {
	Name string
	MAC  net.HardwareAddr
}

// Address is one of the pod's addresses.
type Address struct {
	Prefix  netip.Prefix // the address itself with its prefix length: not masked
	Gateway netip.Addr   // the zero Addr if there is none
}

// Route is one of the pod's routes.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr // the zero Addr for an on-link route
}

// The order of the interfaces in a result's JSON.
const (
	hostIfIndex = iota
	podIfIndex
)

// json renders r in the spec version cniVersion, which must be a supported one.
func (r *Result) json(cniVersion, netNSPath string) ([]byte, error) {
	full, err := r.types100(netNSPath)
	if err != nil {
		return nil, err
	}
	if cniVersion != latestVersion {
		// The conversion below does not drop what older versions don't have.
		full.Interfaces[podIfIndex].Mtu = 0
	}
	converted, err := full.GetAsVersion(cniVersion)
	if err != nil {
		return nil, fmt.Errorf("result in cniVersion %s: %w", cniVersion, err)
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(converted); err != nil {
		return nil, fmt.Errorf("result in cniVersion %s: %w", cniVersion, err)
	}
	return b.Bytes(), nil
}

func (r *Result) types100(netNSPath string) (*types100.Result, error) {
	sandbox := r.Sandbox
	if sandbox == "" {
		sandbox = netNSPath
	}
	out := &types100.Result{
		CNIVersion: latestVersion,
		Interfaces: []*types100.Interface{
			hostIfIndex: {Name: r.HostIf.Name, Mac: r.HostIf.MAC.String()},
			podIfIndex:  {Name: r.PodIf.Name, Mac: r.PodIf.MAC.String(), Mtu: r.MTU, Sandbox: sandbox},
		},
	}
	for _, a := range r.Addresses {
		if !a.Prefix.IsValid() {
			return nil, fmt.Errorf("result: pod address %v is not valid", a.Prefix)
		}
		out.IPs = append(out.IPs, &types100.IPConfig{
			Interface: types100.Int(podIfIndex),
			Address:   ipNet(a.Prefix),
			Gateway:   a.Gateway.AsSlice(),
		})
	}
	for _, route := range r.Routes {
		if !route.Dst.IsValid() {
			return nil, fmt.Errorf("result: route to %v is not valid", route.Dst)
		}
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(route.Dst), GW: route.Gateway.AsSlice()})
	}
	return out, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is ipNet's inverse; IPv4 in 16 bytes is IPv4.
func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	addr = addr.Unmap()
	if ones -= bits - addr.BitLen(); ones < 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, ones), true
}

// ComparePrevResult is the half of CHECK that needs no kernel: it says in what
// the result that the runtime remembers differs from want, the one that the
// attachment has. What other plugins of the list added is not looked at.
func (c *Call) ComparePrevResult(want *Result) error {
	prev := c.Config.PrevResult
	if prev == nil {
		return InvalidConfig("network configuration: prevResult is missing: CHECK needs what ADD returned")
	}
	var differs []string
	host := slices.IndexFunc(prev.Interfaces, func(i *types100.Interface) bool {
		return i.Sandbox == "" && i.Name == want.HostIf.Name
	})
	if host < 0 {
		differs = append(differs, fmt.Sprintf("host interface %s is not in it", want.HostIf.Name))
	} else if got := prev.Interfaces[host].Mac; !sameMAC(got, want.HostIf.MAC) {
		differs = append(differs, fmt.Sprintf("host interface %s has MAC %s, not %s", want.HostIf.Name, want.HostIf.MAC, got))
	}
	pod := slices.IndexFunc(prev.Interfaces, func(i *types100.Interface) bool {
		return i.Sandbox != "" && i.Name == want.PodIf.Name
	})
	if pod < 0 {
		differs = append(differs, fmt.Sprintf("pod interface %s is not in it", want.PodIf.Name))
	} else if got := prev.Interfaces[pod].Mac; !sameMAC(got, want.PodIf.MAC) {
		differs = append(differs, fmt.Sprintf("pod interface %s has MAC %s, not %s", want.PodIf.Name, want.PodIf.MAC, got))
	}
	remembered := map[netip.Prefix]bool{}
	for _, ip := range prev.IPs {
		// An address without an interface is the pod's own: older plugins
		// leave the index out.
		if ip.Interface != nil && *ip.Interface != pod {
			continue
		}
		if p, ok := prefixOf(ip.Address); ok {
			remembered[p] = true
		}
	}
	for _, a := range want.Addresses {
		if !remembered[a.Prefix] {
			differs = append(differs, fmt.Sprintf("pod address %s is not in it", a.Prefix))
		}
		delete(remembered, a.Prefix)
	}
	for p := range remembered {
		differs = append(differs, fmt.Sprintf("pod does not hold %s", p))
	}
	if len(differs) == 0 {
		return nil
	}
	slices.Sort(differs)
	return fmt.Errorf("container %s: prevResult is not what the pod has: %s", c.ContainerID, strings.Join(differs, ", "))
}

// sameMAC compares a MAC as written in JSON; one that is left out matches.
func sameMAC(written string, mac net.HardwareAddr) bool {
	if written == "" {
		return true
	}
	parsed, err := net.ParseMAC(written)
	return err == nil && bytes.Equal(parsed, mac)
}
