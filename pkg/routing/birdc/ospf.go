package birdc

import (
	"context"
	"strings"
)

// OSPFNeighbor is a router that OSPF has heard on a link.
type OSPFNeighbor struct {
	Protocol  string // the instance, in BIRD's configuration: ospf6
	RouterID  string
	State     string // Full, 2-Way, ExStart, Init …
	Role      string // DR, BDR, Other, PtP
	Interface string
	Address   string
}

// ShowOSPFNeighbors asks for the neighbors of all instances of OSPF, of which
// there must be one.
func (c *Conn) ShowOSPFNeighbors(ctx context.Context) ([]OSPFNeighbor, error) {
	lines, err := c.Do(ctx, "show ospf neighbors")
	if err != nil {
		return nil, err
	}
	return parseOSPFNeighbors(lines), nil
}

// parseOSPFNeighbors reads "ospf6:", a heading, and lines of router ID, priority,
// state/role, time, interface and address.
func parseOSPFNeighbors(lines []Line) []OSPFNeighbor {
	var out []OSPFNeighbor
	instance := ""
	for _, l := range lines {
		f := strings.Fields(l.Text)
		switch {
		case l.Code != 1013:
		case len(f) == 1 && strings.HasSuffix(f[0], ":"):
			instance = strings.TrimSuffix(f[0], ":")
		case len(f) == 6:
			state, role, ok := strings.Cut(f[2], "/")
			if !ok {
				continue
			}
			out = append(out, OSPFNeighbor{Protocol: instance, RouterID: f[0], State: state, Role: role, Interface: f[4], Address: f[5]})
		}
	}
	return out
}
