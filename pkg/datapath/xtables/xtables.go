// Package xtables reads the kernel's tables of iptables-legacy and ip6tables-legacy, which are not
// nftables' and which no netlink request shows. It changes nothing, and it does not make the
// kernel create a table: it asks only for those that there are.
package xtables

import (
	"fmt"
	"net/netip"
)

// Chain is the built-in chain FORWARD of one table.
type Chain struct {
	IPv6  bool
	Table string // "filter", "mangle", …
	// Drops: what no rule decides on is dropped, by the policy or by a last rule that
	// drops or rejects all.
	Drops bool
	// Rules are those of all chains of the table, to which FORWARD may jump.
	Rules []Rule
}

// Tool is the program that changes the chain's family.
func (c Chain) Tool() string {
	if c.IPv6 {
		return "ip6tables-legacy"
	}
	return "iptables-legacy"
}

func (c Chain) String() string { return fmt.Sprintf("%s -t %s FORWARD", c.Tool(), c.Table) }

// Rule is what a rule says of links and addresses. What it says the opposite of is left out.
type Rule struct {
	// In and Out are names of links, with "+" at the end of those that only begin so;
	// empty: any.
	In, Out string
	// Src and Dst are invalid where any address matches.
	Src, Dst netip.Prefix
}
