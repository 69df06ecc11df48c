package cni

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

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

// A result as the spec has it. The types of the spec's library come to the same, but write the
// JSON, read it and write it again for each part, and an ADD's runtime waits for that.
type (
	resultJSON struct {
		CNIVersion string           `json:"cniVersion"`
		Interfaces [2]interfaceJSON `json:"interfaces"`
		IPs        []ipJSON         `json:"ips,omitempty"`
		Routes     []routeJSON      `json:"routes,omitempty"`
	}
	interfaceJSON struct {
		Name    string `json:"name"`
		MAC     string `json:"mac,omitempty"`
		MTU     int    `json:"mtu,omitempty"` // from 1.1.0 on
		Sandbox string `json:"sandbox,omitempty"`
	}
	ipJSON struct {
		Version   string       `json:"version,omitempty"` // before 1.0.0: 4 or 6
		Interface int          `json:"interface"`
		Address   netip.Prefix `json:"address"`
		Gateway   netip.Addr   `json:"gateway,omitzero"`
	}
	routeJSON struct {
		Dst netip.Prefix `json:"dst"`
		GW  netip.Addr   `json:"gw,omitzero"`
	}
)

// json renders r in the spec version cniVersion, which must be a supported one.
func (r *Result) json(cniVersion, netNSPath string) ([]byte, error) {
	out := resultJSON{
		CNIVersion: cniVersion,
		Interfaces: [...]interfaceJSON{
			hostIfIndex: {Name: r.HostIf.Name, MAC: r.HostIf.MAC.String()},
			podIfIndex:  {Name: r.PodIf.Name, MAC: r.PodIf.MAC.String(), Sandbox: cmp.Or(r.Sandbox, netNSPath)},
		},
		IPs:    make([]ipJSON, 0, len(r.Addresses)),
		Routes: make([]routeJSON, 0, len(r.Routes)),
	}
	if cniVersion == latestVersion {
		out.Interfaces[podIfIndex].MTU = r.MTU
	}
	for _, a := range r.Addresses {
		if !a.Prefix.IsValid() {
			return nil, fmt.Errorf("result: pod address %v is not valid", a.Prefix)
		}
		ip := ipJSON{Interface: podIfIndex, Address: a.Prefix, Gateway: a.Gateway}
		if strings.HasPrefix(cniVersion, "0.") {
			ip.Version = "6"
			if a.Prefix.Addr().Is4() {
				ip.Version = "4"
			}
		}
		out.IPs = append(out.IPs, ip)
	}
	for _, route := range r.Routes {
		if !route.Dst.IsValid() {
			return nil, fmt.Errorf("result: route to %v is not valid", route.Dst)
		}
		out.Routes = append(out.Routes, routeJSON{route.Dst, route.Gateway})
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(out); err != nil {
		return nil, fmt.Errorf("result in cniVersion %s: %w", cniVersion, err)
	}
	return b.Bytes(), nil
}

// prefixOf is the prefix that the library's type holds; IPv4 in 16 bytes is IPv4.
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
