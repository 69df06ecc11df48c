// Package netlink is the wire format of netlink (RFC 3549, linux/netlink.h) and a
// socket connected to the kernel: it writes requests and their attributes, parses
// answers, and matches each answer with its request. The meaning of the messages
// belongs to the packages of its protocols, pkg/netlink/rtnl and pkg/netlink/nft.
//
// An answer that was lost, cut off or does not parse is an error, never taken for
// success or for the end of a dump.
package netlink
