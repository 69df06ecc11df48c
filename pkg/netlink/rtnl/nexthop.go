package rtnl

import "time"

// A Nexthop is a nexthop object (kernel 5.3 and newer): a link that packets leave
// by, or a group of such.
type Nexthop struct {
	ID    uint32
	Proto uint8 // RTPROT_…
	// Link and IPv6 are of a single nexthop: its link, and its family.
	Link int
	IPv6 bool
	// Via says that it has a gateway, which flock's have not. It is only read.
	Via bool
	// Blackhole, in place of a link, drops packets.
	Blackhole bool
	// Group holds the members if it is one.
	Group []NexthopMember
	// Resilient makes it a resilient group (kernel 5.13 and newer), in which
	// a change of members moves only the flows of members that leave. If it is nil,
	// the group hashes all flows again over its members.
	Resilient *Resilient
}

// NexthopMember is a single nexthop in a group, with its weight of 1 to 255.
type NexthopMember struct {
	ID     uint32
	Weight int
}

// Resilient are the settings of a resilient group. The kernel keeps times in
// hundredths of a second.
type Resilient struct {
	// Buckets that the flows are hashed over; it cannot change. 0, in a change,
	// leaves it.
	Buckets uint16
	// Idle is how long a bucket has seen no packet when it may be given to a
	// member that has too few.
	Idle time.Duration
	// Unbalanced is after what time of members having too few buckets are given
	// to them that are not idle; 0: never.
	Unbalanced time.Duration
}
