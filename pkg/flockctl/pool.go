package flockctl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
)

var poolCommand = command{
	name: "pool", args: "[NAME]",
	short: "Show the AddressPools, or one of them: who uses their addresses",
	long: `Without a name there is a line for each AddressPool, and for each deleted one with
addresses still in use. With a name it shows the nodes with pods that use the pool, and
the first 8 pods of each, and the first 16 addresses that Services have. It shows what
the agents of the nodes wrote last, and of Services what flock-controller did.`,
	examples: `flockctl pool
flockctl pool dns
flockctl pools -o json | jq -r '.[] | select(.deleted) | .name'`,
	flags: []string{"output", "watch"}, max: 1,
	run: runPool,
}

// pool is an AddressPool and its use.
type pool struct {
	Name string `json:"name"`
	// Deleted: there is no such AddressPool any more.
	Deleted bool               `json:"deleted,omitempty"`
	CIDRs   []v1alpha1.CIDR    `json:"cidrs,omitempty"`
	Uses    []v1alpha1.PoolUse `json:"uses,omitempty"`
	// Addresses counts those that pods have, each once: pods on several nodes may share one.
	Addresses int32      `json:"addresses"`
	Nodes     []poolNode `json:"nodes,omitempty"`
	// Services counts the addresses that Services have, and ServiceUsers are the first.
	Services     int32               `json:"services,omitempty"`
	ServiceUsers []v1alpha1.PoolUser `json:"serviceUsers,omitempty"`
}

type poolNode struct {
	Node      string   `json:"node"`
	Addresses int32    `json:"addresses"`
	Retained  int32    `json:"retained,omitempty"`
	Pods      []string `json:"pods,omitempty"`
}

func runPool(ctx context.Context, s *session, args []string) error {
	c, err := s.connect()
	if err != nil {
		return err
	}
	objects, err := c.pools(ctx)
	if err != nil {
		return err
	}
	configs, err := c.nodeConfigs(ctx)
	if err != nil {
		return err
	}
	pools := poolsOf(objects, configs)
	if len(args) == 1 {
		pools = slices.DeleteFunc(pools, func(p pool) bool { return p.Name != args[0] })
		if len(pools) == 0 {
			return fmt.Errorf("there is no AddressPool %s, and no pod has an address of one: kubectl get addresspools shows those that there are", args[0])
		}
	}
	switch {
	case s.output != "":
		return s.structured(pools)
	case len(args) == 1:
		printPool(s.out, pools[0])
	default:
		printPools(s.out, pools)
	}
	return nil
}

// poolsOf are all pools, by name. Nodes count their addresses, and an anycast address is one of
// several nodes: what the nodes say of their pods at anycast addresses tells which.
func poolsOf(objects []v1alpha1.AddressPool, configs []v1alpha1.NodeConfig) []pool {
	pools := []pool{}
	for _, ap := range objects {
		p := pool{Name: ap.Name, CIDRs: ap.Spec.CIDRs, Uses: ap.Spec.Uses, Services: ap.Status.Service}
		for _, u := range ap.Status.Users {
			if u.Use == v1alpha1.UseService {
				p.ServiceUsers = append(p.ServiceUsers, u)
			}
		}
		pools = append(pools, p)
	}
	valid := validPools(objects)
	type shared struct {
		pool    string
		address netip.Addr
	}
	counted := map[shared]bool{}
	slices.SortFunc(configs, func(a, b v1alpha1.NodeConfig) int { return strings.Compare(a.Name, b.Name) })
	for _, nc := range configs {
		for _, use := range nc.Status.Pools {
			i := slices.IndexFunc(pools, func(p pool) bool { return p.Name == use.Name })
			if i < 0 {
				i = len(pools)
				pools = append(pools, pool{Name: use.Name, Deleted: true})
			}
			pools[i].Nodes = append(pools[i].Nodes, poolNode{nc.Name, use.Addresses, use.Retained, use.Pods})
			pools[i].Addresses += use.Addresses
			for _, addr := range anycastOf(nc, use.Name, valid) {
				if address := (shared{use.Name, addr}); counted[address] {
					pools[i].Addresses--
				} else {
					counted[address] = true
				}
			}
		}
	}
	slices.SortFunc(pools, func(a, b pool) int { return cmp.Compare(a.Name, b.Name) })
	return pools
}

// anycastOf are the anycast addresses that pods on a node have from a pool, each once. An address
// that would come from no pool in use there is of the one that has retained addresses, if
// that is one.
func anycastOf(nc v1alpha1.NodeConfig, name string, valid []config.Pool) (addrs []netip.Addr) {
	var inUse, retaining []string
	for _, use := range nc.Status.Pools {
		inUse = append(inUse, use.Name)
		if use.Retained > 0 {
			retaining = append(retaining, use.Name)
		}
	}
	for _, a := range nc.Status.Anycast {
		addr, err := netip.ParseAddr(a.Address)
		if err != nil || slices.Contains(addrs, addr) {
			continue
		}
		from := retaining
		if deciding := slices.DeleteFunc(config.Deciding(valid, addr), func(p config.Pool) bool { return !p.Anycast || !slices.Contains(inUse, p.Name) }); len(deciding) > 0 {
			from = []string{deciding[0].Name}
		}
		if len(from) == 1 && from[0] == name {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// validPools are the pools without a fault.
func validPools(objects []v1alpha1.AddressPool) (pools []config.Pool) {
	for i := range objects {
		if p, err := config.ParsePool(&objects[i]); err == nil {
			pools = append(pools, p)
		}
	}
	return pools
}

func (p pool) retained() (all int32) {
	for _, n := range p.Nodes {
		all += n.Retained
	}
	return all
}

func printPools(w io.Writer, pools []pool) {
	if len(pools) == 0 {
		fmt.Fprintln(w, "There is no AddressPool: see docs/addresses.md for what one is for.")
		return
	}
	rows := [][]string{{"POOL", "CIDRS", "USES", "IN USE", "NODES", "RETAINED"}}
	for _, p := range pools {
		cidrs := join(p.CIDRs, " ")
		if p.Deleted {
			cidrs = "(deleted)"
		}
		rows = append(rows, []string{p.Name, cidrs, or(join(p.Uses, " "), none), fmt.Sprint(p.Addresses + p.Services), fmt.Sprint(len(p.Nodes)), fmt.Sprint(p.retained())})
	}
	table(w, "", rows)
}

func printPool(w io.Writer, p pool) {
	retained := p.retained()
	rows := [][]string{{"Pool", p.Name}}
	if p.Deleted {
		rows[0][1] += " (deleted)"
	} else {
		rows = append(rows, []string{"CIDRs", join(p.CIDRs, " ")}, []string{"Uses", join(p.Uses, " ")})
	}
	rows = append(rows, []string{"In use", fmt.Sprint(p.Addresses + p.Services)})
	if p.Services > 0 {
		rows = append(rows, []string{"Services", fmt.Sprintf("%d of them", p.Services)})
	}
	if retained > 0 {
		rows = append(rows, []string{"Retained", fmt.Sprintf("%d: no longer covered; their routes keep the pool's attributes until their pods are gone", retained)})
	}
	table(w, "", rows)
	if len(p.ServiceUsers) > 0 {
		fmt.Fprintln(w)
		rows = [][]string{{"ADDRESS", "SERVICES"}}
		for _, u := range p.ServiceUsers {
			by := strings.Join(u.By, ", ")
			if u.More > 0 {
				by += fmt.Sprintf(" and %d more", u.More)
			}
			rows = append(rows, []string{u.Address, by})
		}
		table(w, "", rows)
	}
	if len(p.Nodes) == 0 {
		return
	}
	fmt.Fprintln(w)
	rows = [][]string{{"NODE", "ADDRESSES", "RETAINED", "PODS"}}
	for _, n := range p.Nodes {
		rows = append(rows, []string{n.Node, fmt.Sprint(n.Addresses), fmt.Sprint(n.Retained), strings.Join(n.Pods, ", ")})
	}
	table(w, "", rows)
}
