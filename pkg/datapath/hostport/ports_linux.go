package hostport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/internal/netns"
	"flock.fritzlab.net/flock/internal/sys"
	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/sysctl"
	"flock.fritzlab.net/flock/pkg/netlink/nft"
)

var _ datapath.Feature = (*Ports)(nil)

// Ports keeps the kernel's part. Its methods may be called from several goroutines.
type Ports struct {
	conn  *nft.Conn
	netns *os.File // the node's network namespace
	log   *slog.Logger

	deciding sync.Mutex // held while the kernel's flows are looked through; taken before mu

	mu       sync.Mutex // guards what follows, and is held while the table is written
	known    bool       // Reset was called
	stale    []Binding  // those of a change that the kernel refused
	bindings []Binding  // from the oldest to the newest
	// undecided are the UDP ports with flows that the kernel has to decide again.
	undecided map[uint16]bool
}

// sendBuffer is for all ports of a node of both families and all protocols, which are
// written in one transaction: some 40 bytes each.
const sendBuffer = 32 << 20

// Open takes the calling thread's network namespace for the node's. It changes nothing.
func Open(log *slog.Logger) (*Ports, error) {
	own, err := sys.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	conn, err := nft.Dial()
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	if err := conn.SetSendBuffer(sendBuffer); err != nil {
		conn.Close()
		return nil, errors.Join(err, own.Close())
	}
	return &Ports{conn: conn, netns: own, log: log, undecided: map[uint16]bool{}}, nil
}

// Close gives the socket up. The ports stay forwarded.
func (p *Ports) Close() {
	p.conn.Close()
	p.netns.Close()
}

// Reset makes these, from the oldest to the newest, all the bindings that there are.
func (p *Ports) Reset(all []Binding) error {
	return p.change(func() (bool, error) {
		p.known = true
		p.bindings = slices.DeleteFunc(slices.Clone(all), func(b Binding) bool { return len(b.Ports) == 0 })
		_, flows, err := p.converge()
		return flows, err
	})
}

// Set adds a binding, or replaces the one of the same link. The link has to exist. A
// binding without ports costs nothing.
func (p *Ports) Set(b Binding) error {
	return p.change(func() (bool, error) {
		changed := p.remove(b.HostIf)
		if len(b.Ports) > 0 {
			p.bindings = append(p.bindings, b)
			changed = append(changed, b)
		}
		return p.apply(changed)
	})
}

// Remove removes the binding of a link. It is no error if there is none.
func (p *Ports) Remove(hostIf string) error {
	return p.change(func() (bool, error) { return p.apply(p.remove(hostIf)) })
}

// change makes a change, which says whether there are flows to decide again. It does not fail
// because of them.
func (p *Ports) change(f func() (flows bool, err error)) error {
	p.mu.Lock()
	flows, err := f()
	p.mu.Unlock()
	if !flows {
		return err
	}
	if err := p.decideFlows(); err != nil {
		p.log.Warn("cannot delete conntrack entries of UDP host ports, will retry; until then clients that keep sending are not forwarded", "error", err)
	}
	return err
}

func (p *Ports) remove(hostIf string) (removed []Binding) {
	p.bindings = slices.DeleteFunc(p.bindings, func(b Binding) bool {
		if b.HostIf == hostIf {
			removed = append(removed, b)
		}
		return b.HostIf == hostIf
	})
	return removed
}

func (p *Ports) apply(changed []Binding) (flows bool, err error) {
	// A change that was refused is still to be made when it is asked for again.
	changed = append(p.stale, changed...)
	if len(changed) == 0 {
		return false, nil
	}
	flows, err = p.replace(desired(p.bindings), changed)
	if err != nil {
		p.stale = changed
		return false, err
	}
	p.stale = nil
	_, err = p.setSysctls()
	return flows, err
}

// replace writes the table. Changed are the bindings with flows to decide again.
func (p *Ports) replace(want map[string][]nft.Element, changed []Binding) (flows bool, err error) {
	var b nft.Batch
	replace(&b, want)
	if err := p.conn.Commit(&b); err != nil {
		return false, err
	}
	return p.noteFlows(changed), nil
}

// Name implements [datapath.Feature].
func (p *Ports) Name() string { return "host ports" }

// Kinds implements [datapath.Feature].
func (p *Ports) Kinds() []kernel.Kind { return []kernel.Kind{kernel.NFTables, kernel.Sysctl} }

// Sync implements [datapath.Feature].
func (p *Ports) Sync(context.Context) ([]datapath.Repair, error) {
	repairs, err := func() ([]datapath.Repair, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.known {
			return nil, nil
		}
		repairs, _, err := p.converge()
		return repairs, err
	}()
	return repairs, errors.Join(err, p.decideFlows())
}

// converge writes the table again if the kernel has another.
func (p *Ports) converge() (repairs []datapath.Repair, flows bool, err error) {
	want := desired(p.bindings)
	repairs, err = p.differs(want)
	if err != nil {
		return nil, false, err
	}
	if len(repairs) > 0 {
		if flows, err = p.replace(want, p.bindings); err != nil {
			return nil, false, err
		}
	}
	more, err := p.setSysctls()
	return append(repairs, more...), flows, err
}

// differs says which objects of the kernel's table differ from the one with these elements. An
// object that is fought for is told from the others by its name.
func (p *Ports) differs(want map[string][]nft.Element) (found []datapath.Repair, err error) {
	differs := func(what string, object fmt.Stringer, is string) {
		found = append(found, datapath.Repair{Kind: kernel.NFTables, Object: what + " " + object.String(), Found: is})
	}
	have, err := p.conn.Contents(table)
	switch {
	case errors.Is(err, unix.ENOENT):
		if len(want) > 0 {
			differs("table", table, datapath.Missing)
		}
		return found, nil
	case err != nil:
		return nil, err
	case len(want) == 0:
		differs("table", table, datapath.Stray)
		return found, nil
	case have.Dormant:
		differs("table", table, "dormant")
	}
	all := chains()
	known := map[string]bool{}
	for _, r := range all {
		known[r.chain.Name] = true
		var rules []string
		for _, rule := range r.rules {
			rules = append(rules, rule.Definition())
		}
		switch is := have.Chains[r.chain.Name]; {
		case is == "":
			differs("chain", r.chain, datapath.Missing)
		case is != r.chain.Definition():
			differs("chain", r.chain, is+", want "+r.chain.Definition())
		case !slices.Equal(have.Rules[r.chain.Name], rules):
			differs("chain", r.chain, fmt.Sprintf("other rules (%d, want %d)", len(have.Rules[r.chain.Name]), len(rules)))
		}
	}
	for _, f := range families {
		for _, s := range []nft.Set{f.withIP, f.anyIP, f.self} {
			known[s.Name] = true
			switch is := have.Sets[s.Name]; {
			case is == "":
				differs("set", s, datapath.Missing)
				continue
			case is != s.Definition():
				differs("set", s, "another type")
				continue
			}
			elements, err := p.conn.Elements(s)
			if err != nil {
				return nil, err
			}
			if !slices.Equal(elements, want[s.Name]) {
				differs("set", s, fmt.Sprintf("other elements (%d, want %d)", len(elements), len(want[s.Name])))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.Chains)) {
		if !known[name] {
			differs("chain", nft.Chain{Table: table, Name: name}, datapath.Stray)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.Sets)) {
		if !known[name] {
			differs("set", nft.Set{Table: table, Name: name}, datapath.Stray)
		}
	}
	return found, nil
}

// setSysctls lets a process of the node reach pods from 127.0.0.1.
func (p *Ports) setSysctls() (repairs []datapath.Repair, err error) {
	if len(p.bindings) == 0 {
		return nil, nil
	}
	err = netns.Do(p.netns, func() error {
		var errs []error
		for _, b := range p.bindings {
			name := kernel.LinkSysctl("ipv4", b.HostIf, "route_localnet")
			value, err := sysctl.Read(name)
			switch {
			case errors.Is(err, fs.ErrNotExist): // the link is about to go
			case err != nil:
				errs = append(errs, err)
			case value != "1":
				errs = append(errs, sysctl.Write(name, "1"))
				repairs = append(repairs, datapath.Repair{Kind: kernel.Sysctl, Object: sysctl.Name(name) + "=1", Found: value})
			}
		}
		return errors.Join(errs...)
	})
	return repairs, err
}
