package wiring

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/internal/netaddr"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
)

// The pod's gateways. They are the same on every node and for every pod.
var (
	Gateway6 = netip.MustParseAddr("fe80::1")
	Gateway4 = netip.MustParseAddr("169.254.1.1")
)

// HostMAC is the address of every host end: "flock" in ASCII after the octet
// that says "locally administered" (IEEE 802, U/L bit).
var HostMAC = MAC{0x02, 'f', 'l', 'o', 'c', 'k'}

// MAC is an EUI-48 address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Attachment is one sandbox's connection to the node, as it shall be.
type Attachment struct {
	// ContainerID is the sandbox's ID as the runtime says it.
	ContainerID string
	// HostIf is the host end's name; use [HostIfName].
	HostIf string
	// PodIf is the pod end's name, usually eth0.
	PodIf string
	// Alias names the pod for people ("shop/web-0"). The kernel keeps it, with
	// the container ID, as the host end's alias; a long one is cut.
	Alias string
	// MTU of both ends in bytes; 0 leaves the kernel's default of 1500.
	MTU int
	// Addrs are all addresses on the pod's link, as /128 and /32. The first of
	// each family is the source of what the pod itself starts.
	Addrs []netip.Addr
	// Routed is the subset of Addrs that gets host routes of [kernel.MetricLocal] to the
	// link, and Announced the one that gets those of [kernel.MetricStatic], because no
	// summary covers it. The routes of the rest, such as anycast addresses, are
	// their owner's.
	Routed, Announced []netip.Addr
}

// Attached is what an attachment got in the kernel.
type Attached struct {
	HostIfIndex int
	HostMAC     MAC
	PodMAC      MAC
}

// Link is a host end that is in the kernel.
type Link struct {
	HostIf  string
	IfIndex int
	// ContainerID and Alias are as they were attached (Alias perhaps cut).
	// ContainerID is empty if the agent stopped while it made the link, or if another
	// program has overwritten the link's alias.
	ContainerID string
	Alias       string
	MTU         int
	// Released: [Host.TakeDown] was called, so nothing flows and the link waits for
	// the [Reaper].
	Released bool
}

// IsOf says whether the link is a's and was not released. The name alone decides where
// the alias names no container.
func (l Link) IsOf(a Attachment) bool {
	return !l.Released && l.HostIf == a.HostIf && l.mayBeOf(a.ContainerID)
}

// mayBeOf says whether a link with the name of a container's link is the container's: it
// is not another's with the same name.
func (l Link) mayBeOf(containerID string) bool {
	return l.ContainerID == containerID || l.ContainerID == ""
}

// HostIfName is the host end's name for a container: "flock" and the FNV-1a-32
// of its ID in hexadecimal. Two IDs may collide; [Host.Attach] detects it.
func HostIfName(containerID string) string {
	h := fnv.New32a()
	h.Write([]byte(containerID))
	return fmt.Sprintf("%s%08x", kernel.LinkPrefix, h.Sum32())
}

// PodMAC is the pod end's address: 46 bits of the FNV-1a-64 of the container ID,
// locally administered, unicast. It is the same after an agent's restart.
func PodMAC(containerID string) MAC {
	h := fnv.New64a()
	h.Write([]byte(containerID))
	sum := h.Sum(nil)
	m := MAC(sum[2:8])
	m[0] = m[0]&^0x01 | 0x02
	return m
}

// LinkLocal is the address that the modified EUI-64 of m gives (RFC 4291,
// appendix A).
func LinkLocal(m MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80,
		8: m[0] ^ 0x02, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5],
	})
}

// Validate says what of the attachment the kernel or this package could not
// take, all of it at once.
func (a Attachment) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if a.ContainerID == "" || len(a.ContainerID) > kernel.MaxContainerID || strings.ContainsFunc(a.ContainerID, notGraphic) {
		bad("container ID %q: want 1 to %d printable ASCII characters without space", a.ContainerID, kernel.MaxContainerID)
	}
	if !kernel.IsLink(a.HostIf) {
		bad("host interface %q: want %q and 8 hexadecimal digits", a.HostIf, kernel.LinkPrefix)
	}
	if a.PodIf == "" || len(a.PodIf) > 15 || a.PodIf == "." || a.PodIf == ".." ||
		strings.ContainsAny(a.PodIf, "/:") || strings.ContainsFunc(a.PodIf, notGraphic) {
		bad("interface name %q: want 1 to 15 printable characters without space, / and :", a.PodIf)
	}
	if a.MTU != 0 && (a.MTU < 68 || a.MTU > 65535) {
		bad("mtu %d: want 68 to 65535 bytes", a.MTU)
	}
	if len(a.Addrs) == 0 {
		bad("no address: a pod needs at least one")
	}
	for i, addr := range a.Addrs {
		switch {
		case netaddr.UnroutableReason(addr) != "":
			bad("address %v: %s, which cannot be routed to a pod", addr, netaddr.UnroutableReason(addr))
		case addr.Is6() && a.MTU != 0 && a.MTU < 1280:
			bad("mtu %d with address %v: IPv6 needs 1280 bytes (RFC 8200, section 5)", a.MTU, addr)
		case slices.Contains(a.Addrs[:i], addr):
			bad("address %v: named twice", addr)
		}
	}
	routed := slices.Concat(a.Routed, a.Announced)
	for i, addr := range routed {
		if !slices.Contains(a.Addrs, addr) {
			bad("routed address %v: not among the pod's addresses", addr)
		}
		if slices.Contains(routed[:i], addr) {
			bad("routed address %v: named twice", addr)
		}
	}
	return errors.Join(errs...)
}

func notGraphic(r rune) bool { return r <= ' ' || r > '~' }
