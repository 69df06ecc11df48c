// Package kernel names what is flock's in a node's kernel: the marks that distinguish
// flock's objects from those of other programs. Each is defined only here; a test checks
// that. The package is pure.
package kernel

import "strings"

// Routes of flock are those of this protocol in the main table.
const (
	// RouteProtocol marks flock's routes, nexthops, addresses and neighbours
	// (rtm_protocol, rtnetlink(7)). It is unassigned in iproute2's rt_protos.
	RouteProtocol = 85

	// MetricLocal is the metric of routes that stay on the node: those to pods that a
	// summary covers, and what still delivers a withdrawn anycast address. The routing
	// daemon announces flock's routes of every other metric.
	MetricLocal = 1024
	// MetricStatic is the metric of routes to pods of this node that no summary covers.
	MetricStatic = 768
	// MetricService is the metric of announced routes to addresses of Services. They are
	// on ServiceLink.
	MetricService = 640
	// MetricAnnounced is the metric of summaries and of anycast addresses.
	MetricAnnounced = 512

	// MetricPod is the metric of the IPv6 default route inside a pod: the one that the kernel
	// gives a route where none is named.
	MetricPod = 1024
)

// Nexthops of flock have IDs from FirstNexthop to LastNexthop, and RouteProtocol. The
// kernel numbers nexthops without an ID from 1 on, FRR from 1 and from 2×10^8 on.
const (
	FirstNexthop = 0x85000000
	LastNexthop  = 0x85ffffff
)

// IsNexthop says whether a nexthop of that ID and protocol is flock's.
func IsNexthop(id uint32, protocol uint8) bool {
	return id >= FirstNexthop && id <= LastNexthop && protocol == RouteProtocol
}

// LinkPrefix begins the name of the host end of each pod's link; eight hexadecimal digits
// follow. No other link of the node may have such a name.
const LinkPrefix = "flock"

// IsLink says whether a link of that name is the host end of a pod's link.
func IsLink(name string) bool {
	digits, ok := strings.CutPrefix(name, LinkPrefix)
	return ok && len(digits) == 8 && strings.Trim(digits, "0123456789abcdef") == ""
}

// ServiceLink is the name of the link that the routes to addresses of Services are on. It
// leads nowhere, and IsLink is false of it. A node without such addresses has none.
const ServiceLink = "flock-service"

// Link groups (IFLA_GROUP) of flock: "flor" for links that were taken down for good, "flod"
// for those that are being deleted. No other link of the node may be in them: the latter is
// deleted as a whole.
const (
	GroupReleased = 0x666c6f72
	GroupDeleted  = 0x666c6f64
)

// IsReleased says whether a link of that group waits for its deletion.
func IsReleased(group uint32) bool { return group == GroupReleased || group == GroupDeleted }

// Table is the name of flock's nftables tables, in the families inet and arp.
const Table = "flock"

// PolicyTable is the name of the nftables table of family inet that enforces network
// policies.
const PolicyTable = "flock-policy"

// PolicyLogGroup is the nflog group of packets that network policies deny.
const PolicyLogGroup = 8585

// HostPortTable is the name of the nftables table of family inet that forwards ports of
// the node to pods. A node without such pods has none.
const HostPortTable = "flock-hostport"

// ServiceTable is the name of the nftables table of family inet that refuses what comes to
// ServiceLink. A node without addresses of Services has none.
const ServiceTable = "flock-service"

// NodeTable is the name of the nftables table of family inet that keeps pods from the
// node's own services and from its neighbor table.
const NodeTable = "flock-node"

// Tables are the names of all of flock's nftables tables. A table of one of these names is flock's
// as a whole.
var Tables = []string{Table, PolicyTable, HostPortTable, ServiceTable, NodeTable}

// MaxAlias is how many bytes of a link's alias the kernel keeps (IFALIASZ, less the final
// zero); MaxContainerID is how many of them a container ID may take.
const (
	MaxAlias       = 255
	MaxContainerID = 128
)

// Alias is the alias of a pod's host end: the pod ("shop/web-0"), which is for people and may
// be cut, a space, and the container ID, which is not cut.
func Alias(containerID, pod string) string {
	if room := MaxAlias - len(containerID) - len(" "); len(pod) > room {
		pod = strings.ToValidUTF8(pod[:room], "")
	}
	return pod + " " + containerID
}

// ParseAlias parses an alias. The container ID is empty in a link that was not completed.
func ParseAlias(s string) (containerID, pod string) {
	i := strings.LastIndexByte(s, ' ')
	if i < 0 {
		return "", s
	}
	return s[i+1:], s[:i]
}

// Sysctls of the node that flock sets, as paths below /proc/sys/net.
const (
	Forward4 = "ipv4/ip_forward"
	Forward6 = "ipv6/conf/all/forwarding"
	// HashPolicy4 and HashPolicy6 spread flows over a nexthop group by their ports too.
	// Only the kernel's default of 0 is changed.
	HashPolicy4 = "ipv4/fib_multipath_hash_policy"
	HashPolicy6 = "ipv6/fib_multipath_hash_policy"
)

// NodeSysctls are all of those, and LinkSysctls those that flock sets on pods' host ends, with
// the value that they shall have. net.ipv6.conf.LINK.accept_ra of an uplink is not among them:
// it is set only where the node lives on router advertisements.
var (
	NodeSysctls = map[string]string{Forward4: "1", Forward6: "1", HashPolicy4: "1", HashPolicy6: "1"}
	LinkSysctls = []struct{ Family, Name, Value string }{
		{"ipv4", "forwarding", "1"}, {"ipv4", "rp_filter", "0"}, {"ipv6", "accept_ra", "0"}, {"ipv6", "disable_ipv6", "0"},
	}
)

// LinkSysctl is a sysctl of one link; family is "ipv4" or "ipv6".
func LinkSysctl(family, link, name string) string { return family + "/conf/" + link + "/" + name }
