package survey

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/bpf"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/sysctl"
	"flock.fritzlab.net/flock/pkg/datapath/xtables"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// Surveyor reads the kernel of the network namespace that it was opened in. It is a
// [datapath.Feature] without state of its own: it never repairs, and its error is what breaks
// flock.
type Surveyor struct {
	netns  *os.File
	routes *rtnl.Conn
	tables *nft.Conn

	mu    sync.Mutex // guards risks
	risks []string
}

var _ datapath.Feature = (*Surveyor)(nil)

// Open takes the calling thread's network namespace for the node's.
func Open() (*Surveyor, error) {
	node, err := sys.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("node's network namespace: %w", err)
	}
	s := &Surveyor{netns: node}
	if s.routes, err = rtnl.Dial(); err == nil {
		s.tables, err = nft.Dial()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close gives the sockets up.
func (s *Surveyor) Close() {
	if s.routes != nil {
		s.routes.Close()
	}
	if s.tables != nil {
		s.tables.Close()
	}
	s.netns.Close()
}

// Name implements [datapath.Feature].
func (s *Surveyor) Name() string { return "survey" }

// Kinds implements [datapath.Feature].
func (s *Surveyor) Kinds() []kernel.Kind {
	return []kernel.Kind{kernel.Route, kernel.Sysctl, kernel.NFTables, kernel.Foreign}
}

// Sync implements [datapath.Feature]. Its error has one line for each finding that breaks flock.
func (s *Surveyor) Sync(context.Context) ([]datapath.Repair, error) {
	snapshot, err := s.Read()
	if err != nil {
		return nil, err
	}
	var errs []error
	var risks []string
	for _, f := range snapshot.Findings() {
		if f.Breaks {
			errs = append(errs, errors.New(f.String()))
		} else {
			risks = append(risks, f.String())
		}
	}
	s.mu.Lock()
	s.risks = risks
	s.mu.Unlock()
	return nil, errors.Join(errs...)
}

// Notes are the findings of the last Sync that break nothing, but may.
func (s *Surveyor) Notes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.risks
}

// Read reads what matters of the kernel.
func (s *Surveyor) Read() (Snapshot, error) {
	var snapshot Snapshot
	for _, read := range []func(*Snapshot) error{s.readLinks, s.readRoutes, s.readPolicy, s.readUplinks, s.readForward, s.readNamespace, s.readQdiscs, s.readPrograms} {
		if err := read(&snapshot); err != nil {
			return snapshot, err
		}
	}
	return snapshot, nil
}

func (s *Surveyor) readLinks(to *Snapshot) (err error) {
	if to.Links, err = s.routes.Links(""); err != nil {
		return err
	}
	to.Addrs, err = s.routes.Addrs(0)
	return err
}

// readRoutes asks for routes that lead nowhere by their type, and for others one by one: a
// routing daemon may have a hundred thousand, which are never listed.
func (s *Surveyor) readRoutes(to *Snapshot) (err error) {
	if to.Own, err = s.routes.Routes(rtnl.RouteFilter{Proto: kernel.RouteProtocol}); err != nil {
		return err
	}
	for _, t := range []rtnl.RouteType{rtnl.Unreachable, rtnl.Blackhole, rtnl.Prohibit} {
		routes, err := s.routes.Routes(rtnl.RouteFilter{Type: t})
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Proto != kernel.RouteProtocol {
				to.Foreign = append(to.Foreign, r)
			}
		}
	}
	for _, o := range routers {
		routes, err := s.routes.Routes(rtnl.RouteFilter{Proto: o.protocol})
		if err != nil {
			return err
		}
		to.Left = append(to.Left, routes...)
	}
	service := to.service()
	for _, own := range to.Own {
		if service != 0 && own.Link == service && own.Metric == kernel.MetricLocal {
			continue // where the node does not announce it, a router may know a node that does
		}
		// Of an address that is not in use, or of the pod, the lookup ends at a route to just
		// this prefix, or at one that is of no interest here.
		r, ok, err := s.routes.Lookup(own.Dst.Masked().Addr())
		if err == nil && ok && r.Dst == own.Dst && r.Proto != kernel.RouteProtocol {
			to.Foreign = append(to.Foreign, r)
		}
	}
	return nil
}

// readPolicy reads the routing policy, and asks where it leads packets to pods if it is not the
// kernel's own.
func (s *Surveyor) readPolicy(to *Snapshot) (err error) {
	to.Rules, err = s.routes.Rules()
	if errors.Is(err, unix.EOPNOTSUPP) { // the kernel has no policy routing
		return nil
	} else if err != nil {
		return err
	}
	if !slices.ContainsFunc(to.Rules, func(r rtnl.Rule) bool {
		return r.Table != unix.RT_TABLE_DEFAULT && r.Table != mainTable && r.Table != localTable
	}) {
		return nil
	}
	to.Tables = map[netip.Prefix]uint32{}
	for _, own := range to.Own {
		table, err := s.routes.LookupTable(own.Dst.Addr())
		if err == nil && table != mainTable && table != localTable {
			to.Tables[own.Dst] = table
		}
	}
	return nil
}

// plain are the queueing disciplines that the kernel itself puts on a link.
var plain = []string{"noqueue", "noop", "mq", "pfifo_fast", "fq_codel", "fq"}

// readQdiscs reads those of flock's links, and the hooks for programs on uplinks.
func (s *Surveyor) readQdiscs(to *Snapshot) error {
	ours := map[int]bool{}
	for _, l := range to.Links {
		ours[l.Index] = kernel.IsLink(l.Name)
	}
	all, err := s.routes.Qdiscs()
	for _, q := range all {
		if ours[q.Link] && !slices.Contains(plain, q.Kind) || to.Uplinks[q.Link] && q.Kind == "clsact" {
			to.Qdiscs = append(to.Qdiscs, q)
		}
	}
	return err
}

// cgroups are where the hierarchy of version 2 is, alone or beside that of version 1. A container
// sees its own group there, for which those above count too.
var cgroups = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// readPrograms asks for programs of BPF that are on no queueing discipline.
func (s *Surveyor) readPrograms(to *Snapshot) error {
	err := netns.Do(s.netns, func() error {
		for _, l := range to.Links {
			if !kernel.IsLink(l.Name) && !to.Uplinks[l.Index] {
				continue
			}
			if n, err := bpf.TCX(l.Index); err != nil {
				return fmt.Errorf("programs on %s: %w", l.Name, err)
			} else if n > 0 {
				to.Programs = append(to.Programs, l.Name)
			}
		}
		return nil
	})
	for _, dir := range cgroups {
		if n, err := bpf.Connect(dir); err == nil && n > 0 { // else it is not of version 2
			to.Connect = true
		}
	}
	return err
}

func (s *Surveyor) readUplinks(to *Snapshot) error {
	to.Uplinks = map[int]bool{}
	for _, l := range to.Links {
		if l.Loopback || !l.Up || kernel.IsLink(l.Name) {
			continue
		}
		uplink, err := s.routes.IsUplink(l.Index)
		if err != nil {
			return err
		}
		if uplink {
			to.Uplinks[l.Index] = true
		}
	}
	return nil
}

// forwardHooks are those that forwarded packets pass.
var forwardHooks = []uint32{unix.NF_INET_PRE_ROUTING, unix.NF_INET_FORWARD, unix.NF_INET_POST_ROUTING}

func (s *Surveyor) readForward(to *Snapshot) error {
	chains, err := s.tables.Chains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		if !c.Hooked {
			to.Chains = append(to.Chains, c.Chain)
			continue
		}
		onPods := c.Table.Family == nft.NetDev && slices.ContainsFunc(c.Devices, kernel.IsLink)
		sees := c.Table.Family != nft.NetDev && slices.Contains(forwardHooks, c.Hook) && !c.NAT && !slices.Contains(kernel.Tables, c.Table.Name)
		if !sees && !onPods {
			continue
		}
		rules, err := s.tables.Rules(c.Chain)
		if errors.Is(err, unix.ENOENT) {
			continue // it has gone meanwhile
		} else if err != nil {
			return err
		}
		chain := Chain{BaseChain: c, Rules: rules}
		if chain.drops() {
			table, err := s.tables.Contents(c.Chain.Table)
			if errors.Is(err, unix.ENOENT) {
				continue
			} else if err != nil {
				return err
			}
			for _, rules := range table.Rules {
				chain.All = append(chain.All, rules...)
			}
		}
		to.Forward = append(to.Forward, chain)
	}
	return nil
}

// readNamespace reads what has no socket of its own.
func (s *Surveyor) readNamespace(to *Snapshot) error {
	return netns.Do(s.netns, func() (err error) {
		if to.Legacy, err = xtables.Forward(); err != nil {
			return err
		}
		for _, c := range to.Legacy {
			chains, err := xtables.Chains(c.IPv6, c.Table)
			if err != nil {
				return err
			}
			for name := range chains {
				to.LegacyChains = append(to.LegacyChains, LegacyChain{c.Tool(), c.Table, name})
			}
		}
		slices.SortFunc(to.LegacyChains, func(a, b LegacyChain) int { return strings.Compare(a.String(), b.String()) })
		value, err := sysctl.Read("ipv4/conf/all/rp_filter")
		if err != nil {
			return err
		}
		to.RPFilterAll, err = strconv.Atoi(strings.TrimSpace(value))
		return err
	})
}
