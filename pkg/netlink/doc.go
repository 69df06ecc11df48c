// Package netlink is the wire format of netlink (RFC 3549, linux/netlink.h) and a
// socket connected to the kernel: how requests and their attributes are written
// and answers taken apart, and which answer is whose. What the messages say is the
// business of those who speak one of its protocols, pkg/wiring/rtnl and pkg/nft.
//
// An answer that was lost, cut off or does not parse is an error, never taken for
// success or for the end of a dump.
package netlink
