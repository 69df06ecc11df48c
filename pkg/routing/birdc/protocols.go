package birdc

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Protocol is one of BIRD's protocols: a routing session, or a source or sink of
// routes.
type Protocol struct {
	Name  string // in BIRD's configuration: peer_tor
	Kind  string // BGP, OSPF, Kernel, Device …
	State string // up, start, down, stop, flush
	// Since is when State was entered, by this host's clock; zero if unknown.
	Since time.Time
	// Info is BIRD's remark: for BGP the session's state, Established or Connect,
	// with the last error behind it.
	Info string

	// BGP is nil for other kinds.
	BGP *BGP
	// Channels in BIRD's order, one for each address family.
	Channels []Channel
}

// BGP is what BIRD says of a session.
type BGP struct {
	State          string // Established, Active, Connect, OpenSent, Idle, Down …
	Neighbor       string // address, with %interface where it is link-local
	NeighborAS     uint32
	LastError      string // "Received: Administrative shutdown"; "" if none
	RestartingPeer bool   // the neighbor restarts and its routes are kept (RFC 4724)
}

// Channel is one address family of a Protocol.
type Channel struct {
	Name  string // ipv6, ipv4
	State string // UP, DOWN …
	// Routes by what became of them: in the table, and announced.
	Imported, Exported int
	// Counted since the channel came up: announcements of the peer, and those
	// that BIRD found invalid or the import filter refused.
	Received, Invalid, Filtered int
	// LimitHit: the peer announced more than allowed and BIRD acted on it.
	LimitHit bool
	// After a start of BIRD as a restart (RFC 4724 section 4.1): the peer has not
	// sent all of its routes, or not come back; and BIRD announces and withdraws
	// nothing until all have.
	RecoveryPending, RecoveryWaiting bool
}

// ShowProtocols asks for all of BIRD's protocols, in the order of its
// configuration reversed or not, as BIRD keeps them.
func (c *Conn) ShowProtocols(ctx context.Context) ([]Protocol, error) {
	status, err := c.ShowStatus(ctx)
	if err != nil {
		return nil, err
	}
	lines, err := c.Do(ctx, "show protocols all")
	if err != nil {
		return nil, err
	}
	return parseProtocols(lines, status)
}

func parseProtocols(lines []Line, status Status) ([]Protocol, error) {
	var ps []Protocol
	for _, l := range lines {
		switch l.Code {
		case 1002:
			p, err := parseProtocol(l.Text, status)
			if err != nil {
				return nil, err
			}
			ps = append(ps, p)
		case 1006:
			if len(ps) > 0 {
				ps[len(ps)-1].detail(l.Text)
			}
		}
	}
	return ps, nil
}

// parseProtocol reads a line of the table: name, protocol, table, state, since,
// info. The time has a space in it.
func parseProtocol(text string, status Status) (Protocol, error) {
	f := strings.Fields(text)
	if len(f) < 5 {
		return Protocol{}, fmt.Errorf("bird's list of protocols has a line with %d columns: %q", len(f), text)
	}
	p := Protocol{Name: f[0], Kind: f[1], State: f[3]}
	rest := f[4:]
	if len(f) > 5 {
		if t, err := time.Parse(timeLayout, f[4]+" "+f[5]); err == nil {
			p.Since = status.clock(t)
			rest = f[5:]
		}
	}
	p.Info = strings.Join(rest[1:], " ")
	if p.Kind == "BGP" {
		p.BGP = new(BGP)
	}
	return p, nil
}

// detail takes up one line of what "show protocols all" prints below the table's
// line: "  Channel ipv6", or "    Name:   value".
func (p *Protocol) detail(text string) {
	key, value, _ := strings.Cut(strings.TrimSpace(text), ":")
	value = strings.TrimSpace(value)
	if name, ok := strings.CutPrefix(key, "Channel "); ok {
		p.Channels = append(p.Channels, Channel{Name: name})
		return
	}
	if n := len(p.Channels); n > 0 {
		p.Channels[n-1].detail(key, value)
		return
	}
	if p.BGP != nil {
		p.BGP.detail(key, value)
	}
}

func (b *BGP) detail(key, value string) {
	switch key {
	case "BGP state":
		b.State = value
	case "Neighbor address":
		b.Neighbor = value
	case "Neighbor AS":
		b.NeighborAS = parseAS(value)
	case "Last error":
		b.LastError = value
	case "Neighbor graceful restart active":
		b.RestartingPeer = true
	}
}

func (c *Channel) detail(key, value string) {
	switch key {
	case "State":
		c.State = value
	case "GR recovery":
		c.RecoveryPending = strings.Contains(value, "pending")
		c.RecoveryWaiting = strings.Contains(value, "waiting")
	case "Routes":
		for _, part := range strings.Split(value, ",") {
			count, what, _ := strings.Cut(strings.TrimSpace(part), " ")
			n, _ := strconv.Atoi(count)
			switch what {
			case "imported":
				c.Imported = n
			case "exported":
				c.Exported = n
			}
		}
	case "Import updates":
		if f := strings.Fields(value); len(f) >= 5 { // BIRD 3 has further columns
			c.Received, _ = strconv.Atoi(f[0])
			c.Invalid, _ = strconv.Atoi(f[1])
			c.Filtered, _ = strconv.Atoi(f[2])
		}
	case "Receive limit", "Import limit":
		c.LimitHit = c.LimitHit || strings.Contains(value, "[HIT]")
	}
}

func parseAS(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32)
	return uint32(n)
}
