package wiring

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"
)

const (
	// RouteProtocol marks flock's routes in the kernel (rtm_protocol). It is
	// unassigned in iproute2's rt_protos.
	RouteProtocol = 85
	// MetricLocal is the metric of routes to pods of this node that are covered
	// by a summary: the routing daemon must not announce them.
	MetricLocal = 1024
	// MetricStatic is the metric of routes to pods of this node that no summary
	// covers: the routing daemon announces them.
	MetricStatic = 768
	// MetricAnnounced is the metric of the other routes that it announces:
	// summaries and anycast addresses.
	MetricAnnounced = 512
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
	// Routed is the subset of Addrs that gets host routes of MetricLocal to the
	// link, and Announced the one that gets those of MetricStatic, because no
	// summary covers it. The routes of the rest, such as anycast addresses, are
	// their owner's.
	Routed, Announced []netip.Addr
}

// Attached is what the kernel chose, or was told, for an attachment.
type Attached struct {
	HostIfIndex int
	HostMAC     MAC
	PodMAC      MAC
}

// Link is a host end that is in the kernel.
type Link struct {
	HostIf  string
	IfIndex int
	// ContainerID and Alias are as they were attached (Alias perhaps cut). A
	// link without ContainerID is one whose making was cut short.
	ContainerID string
	Alias       string
	MTU         int
	// Released says that [Host.Unroute] was called: nothing flows, the link
	// waits for the [Reaper].
	Released bool
}

// HostIfName is the host end's name for a container: "flock" and the FNV-1a-32
// of its ID in hexadecimal. Two IDs may collide; [Host.Attach] detects it.
func HostIfName(containerID string) string {
	h := fnv.New32a()
	h.Write([]byte(containerID))
	return fmt.Sprintf("%s%08x", hostIfPrefix, h.Sum32())
}

const hostIfPrefix = "flock"

// isHostIf says whether HostIfName could have made the name.
func isHostIf(name string) bool {
	digits, ok := strings.CutPrefix(name, hostIfPrefix)
	return ok && len(digits) == 8 && strings.Trim(digits, "0123456789abcdef") == ""
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
	if a.ContainerID == "" || len(a.ContainerID) > maxContainerID || strings.ContainsFunc(a.ContainerID, notGraphic) {
		bad("container ID %q: want 1 to %d printable ASCII characters without space", a.ContainerID, maxContainerID)
	}
	if !isHostIf(a.HostIf) {
		bad("host interface %q: want %q and 8 hexadecimal digits", a.HostIf, hostIfPrefix)
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
		case !addr.IsValid() || addr.Zone() != "" || addr.Is4In6() || addr.IsUnspecified() ||
			addr.IsMulticast() || addr.IsLoopback() || addr.IsLinkLocalUnicast():
			bad("address %v: not one that a pod can be reached by", addr)
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

// The kernel keeps 255 bytes of alias (IFALIASZ, one less for the final zero).
const (
	maxAlias       = 255
	maxContainerID = 128
)

func notGraphic(r rune) bool { return r <= ' ' || r > '~' }

// linkAlias is what the kernel keeps: the pod for people, then the container ID,
// which is what [parseLinkAlias] trusts. The container ID is never cut.
func linkAlias(containerID, alias string) string {
	if room := maxAlias - len(containerID) - len(" "); len(alias) > room {
		alias = strings.ToValidUTF8(alias[:room], "")
	}
	return alias + " " + containerID
}

func parseLinkAlias(s string) (containerID, alias string) {
	i := strings.LastIndexByte(s, ' ')
	if i < 0 {
		return "", s
	}
	return s[i+1:], s[:i]
}
