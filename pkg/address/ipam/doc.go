// Package ipam decides which address of the node's own CIDRs a pod gets.
//
// It is pure: no clock, no file, no netlink. The time is an argument, randomness
// an io.Reader, and what must survive the process is the caller's to store: every
// address that Allocate returned is given back by Reserve at the next start. An
// address is free again only when the caller says so by Release, so the
// caller keeps an address from others by not releasing it while its link exists.
//
// Invariants: no address is held twice; none outside the CIDRs, excluded or kept
// back by a standard is handed out; an address that is held stays held whatever
// happens to the CIDRs, until Release; while a CIDR has an address to give,
// Allocate gives it.
//
// # How an address is chosen
//
// Every choice is the same search: the free address nearest to a wanted one, by
// the distance a XOR b. For IPv4 the wanted one is the lowest of the CIDR, for
// IPv6 a random one, or the one that the Request's Near computes (package embed).
// The first 16 nearest to an address that ends in a zero digit are those that
// differ from it in the last digit alone, the next 240 in the last two, and so on.
//
// An address just released is in quarantine for Config.Quarantine. IPv4 takes addresses never
// used before, then the one that was released first; IPv6 passes over those in
// quarantine, except that a workload's computed address may come back at once, as
// that is what it is computed for. When nothing but addresses in quarantine is
// left, the error says when the first of them is free.
//
// # Cost
//
// The state is a compressed binary trie of the addresses in use, quarantined or
// excluded, with aggregates for each prefix: every operation visits one path,
// O(log n), however full the CIDR is and however large. Memory is in proportion
// to the addresses in use and quarantined, not to the CIDR: about 420 bytes for one that
// stands alone, 26 each where all 16 of a last digit are known.
// Released IPv4 addresses are remembered beyond their quarantine for the sake of
// their order, at most 65,536 of them: in CIDRs up to /16 the order is exact, in
// larger ones no address comes back before that many others were released.
//
// An Allocator is not safe for concurrent use: one goroutine owns it.
package ipam
