package ipam

import (
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"time"

	"flock.fritzlab.net/flock/pkg/address"
)

// HeldError says that an address is held already.
type HeldError struct{ Granted address.Granted }

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s is held already: choose another address, or wait until the pod that holds it has gone", e.Granted.Addr)
}

// NoCIDRError says that the node has no CIDR of the family.
type NoCIDRError struct {
	Family Family
	Node   string
}

func (e *NoCIDRError) Error() string {
	return fmt.Sprintf("node %s has no %s addresses for pods: ask the cluster's operator to add a CIDR to %s of nodeconfig %s, or turn %s off for the pod",
		e.Node, e.Family, fieldOf(e.Family), e.Node, e.Family)
}

// OutsideError says that a request is restricted to what the node does not have.
type OutsideError struct {
	Within netip.Prefix
	Family Family
	Node   string
	CIDRs  []netip.Prefix
}

func (e *OutsideError) Error() string {
	return fmt.Sprintf("%s is neither one of the %s CIDRs of node %s nor a part of one: choose from %s", e.Within, e.Family, e.Node, list(e.CIDRs))
}

// ExhaustedError says that no address is free where one was wanted.
type ExhaustedError struct {
	Family Family
	Node   string
	// Ranges are the CIDRs, or the part of one that the request was restricted to.
	Ranges []RangeUse
	// NextFree is when the first address leaves quarantine; zero if there is none in it.
	NextFree time.Time
	// Wait is how long that is from the time of the request.
	Wait time.Duration
}

// RangeUse accounts for each address of a range that has none free: those that
// are in no other column are excluded or kept back.
type RangeUse struct {
	Prefix            netip.Prefix
	Held, Quarantined int
}

func (e *ExhaustedError) Error() string {
	var uses []string
	for _, r := range e.Ranges {
		size := new(big.Int).Lsh(big.NewInt(1), uint(r.Prefix.Addr().BitLen()-r.Prefix.Bits()))
		excluded := new(big.Int).Sub(size, big.NewInt(int64(r.Held+r.Quarantined)))
		uses = append(uses, fmt.Sprintf("%s has %s addresses, of which %d are held, %d in quarantine and %s excluded",
			r.Prefix, size, r.Held, r.Quarantined, excluded))
	}
	remedy := fmt.Sprintf("delete pods on node %s, or ask the cluster's operator to add a CIDR to %s of nodeconfig %s", e.Node, fieldOf(e.Family), e.Node)
	if !e.NextFree.IsZero() {
		remedy = fmt.Sprintf("the first address leaves quarantine in %s; if that is not enough, %s", e.Wait.Round(time.Second), remedy)
	}
	return fmt.Sprintf("no %s address is free: %s: %s", e.Family, strings.Join(uses, "; "), remedy)
}

func (a *Allocator) exhausted(r Request, cidrs []candidate, first time.Duration, now time.Time) *ExhaustedError {
	e := &ExhaustedError{Family: r.Family, Node: a.cfg.Node}
	for _, c := range cidrs {
		u := a.usage(c.within)
		e.Ranges = append(e.Ranges, RangeUse{Prefix: c.within, Held: u.Held, Quarantined: u.Quarantined})
	}
	if first != never {
		e.NextFree = a.epoch.Add(first + a.cfg.Quarantine)
		e.Wait = e.NextFree.Sub(now)
	}
	return e
}

func fieldOf(f Family) string { return fmt.Sprintf("spec.podCIDRs.ipv%d", uint8(f)) }

func list(ps []netip.Prefix) string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}
