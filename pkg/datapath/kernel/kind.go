package kernel

// A Kind is a kind of object that flock has in the kernel.
type Kind string

// Kinds are all of them. What is added here is covered by the tests that take everything
// away, which go through this list, and counted in flock_kernel_repairs_total by its name.
var Kinds = []Kind{Link, Address, Neighbour, Route, Nexthop, Sysctl, NFTables}

const (
	// Link is a pod's host end, with its MAC, MTU, alias and being up, or ServiceLink.
	Link Kind = "link"
	// Address is an address on a pod's host end.
	Address Kind = "address"
	// Neighbour is a permanent neighbour entry on a pod's host end.
	Neighbour Kind = "neighbour"
	// Route is a route of RouteProtocol.
	Route Kind = "route"
	// Nexthop is a nexthop or a nexthop group of an anycast address.
	Nexthop Kind = "nexthop"
	// Sysctl is a setting below /proc/sys/net, of the node or of a link.
	Sysctl Kind = "sysctl"
	// NFTables is anything in one of Tables.
	NFTables Kind = "nftables"

	// Foreign stands for routes, addresses and settings of other programs. It is none of
	// Kinds: a feature that names it is called when they change.
	Foreign Kind = "foreign"
)
