package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Chains are those of all tables that see IP packets, those on links too.
func (c *Conn) Chains() (all []BaseChain, err error) {
	for _, family := range []Family{Inet, IPv4, IPv6, NetDev} {
		chains, err := c.chainsOf(family)
		if family == NetDev && errors.Is(err, unix.EOPNOTSUPP) { // the kernel has no such tables
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, chains...)
	}
	return all, nil
}

const nftaHookDevs = 4 // NFTA_HOOK_DEVS of linux/netfilter/nf_tables.h

func (c *Conn) chainsOf(family Family) (chains []BaseChain, err error) {
	what := fmt.Sprintf("list chains of family %v", family)
	var r netlink.Request
	begin(&r, unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, family)
	r.End(0)
	for range dumpAttempts {
		chains = chains[:0]
		interrupted, err := c.ask(what, r, func(body []byte) error {
			chain := BaseChain{Chain: Chain{Table: Table{Family: family}}}
			err := netlink.Attributes(body, func(typ uint16, v []byte) error {
				switch typ {
				case unix.NFTA_CHAIN_TABLE:
					chain.Table.Name = unix.ByteSliceToString(v)
				case unix.NFTA_CHAIN_NAME:
					chain.Name = unix.ByteSliceToString(v)
				case unix.NFTA_CHAIN_TYPE:
					chain.NAT = unix.ByteSliceToString(v) == "nat"
				case unix.NFTA_CHAIN_POLICY:
					chain.Drops = be32(v) != policyAccept
				case unix.NFTA_CHAIN_HOOK:
					chain.Hooked = true
					return netlink.Attributes(v, func(typ uint16, v []byte) error {
						switch typ {
						case unix.NFTA_HOOK_HOOKNUM:
							chain.Hook = be32(v)
						case unix.NFTA_HOOK_DEV:
							chain.Devices = append(chain.Devices, unix.ByteSliceToString(v))
						case nftaHookDevs:
							return netlink.Attributes(v, func(_ uint16, v []byte) error {
								chain.Devices = append(chain.Devices, unix.ByteSliceToString(v))
								return nil
							})
						case unix.NFTA_HOOK_PRIORITY:
							chain.Priority = int32(be32(v))
						}
						return nil
					})
				}
				return nil
			})
			slices.Sort(chain.Devices)
			chain.Devices = slices.Compact(chain.Devices) // the kernel may say one twice
			chains = append(chains, chain)
			return err
		})
		if err != nil || !interrupted {
			return chains, err
		}
	}
	return nil, failed(what, netlink.ErrInterrupted)
}

// Rules are the rules of one chain, in order, as [Rule.Definition] writes them.
func (c *Conn) Rules(chain Chain) ([]string, error) { return listRules(c, chain, ruleDefinition) }

// Handles are the numbers that the kernel has given the rules of a chain, in order. One that is
// deleted and added again has another. An error that is ENOENT says that there is no such chain.
func (c *Conn) Handles(chain Chain) ([]uint64, error) {
	return dumpRules(c, chain, func(rule []byte) (uint64, error) {
		handle, err := within(rule, unix.NFTA_RULE_HANDLE)
		if err != nil || len(handle) != 8 {
			return 0, err
		}
		return binary.BigEndian.Uint64([]byte(handle)), nil
	})
}

// listRules returns what parse makes of the expressions of each rule of a chain, in order.
func listRules[T any](c *Conn, chain Chain, parse func(expressions []byte) (T, error)) (rules []T, err error) {
	return dumpRules(c, chain, func(rule []byte) (out T, err error) {
		expressions, err := within(rule, unix.NFTA_RULE_EXPRESSIONS)
		if err != nil {
			return out, err
		}
		return parse([]byte(expressions))
	})
}

// dumpRules returns what parse makes of each rule of a chain, in order.
func dumpRules[T any](c *Conn, chain Chain, parse func(rule []byte) (T, error)) (rules []T, err error) {
	what := "list rules of chain " + chain.String()
	var r netlink.Request
	begin(&r, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, chain.Table.Family)
	r.Str(unix.NFTA_RULE_TABLE, chain.Table.Name)
	r.Str(unix.NFTA_RULE_CHAIN, chain.Name)
	r.End(0)
	for range dumpAttempts {
		rules = rules[:0]
		interrupted, err := c.ask(what, r, func(body []byte) error {
			rule, err := parse(body)
			rules = append(rules, rule)
			return err
		})
		if err != nil || !interrupted {
			return rules, err
		}
	}
	return nil, failed(what, netlink.ErrInterrupted)
}
