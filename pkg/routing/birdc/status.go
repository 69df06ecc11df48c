package birdc

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// timeLayout is BIRD's "iso long ms", which the rendered configuration asks for.
// It has no zone: BIRD prints the time of the zone that it runs in.
const timeLayout = "2006-01-02 15:04:05.000"

// Status is BIRD's own condition.
type Status struct {
	Version  string // "2.0.12"
	RouterID string
	// Boot and Loaded are when BIRD was started and when it took its
	// configuration, by this host's clock; zero if BIRD prints another format.
	Boot, Loaded time.Time
	// GracefulRestart: BIRD is recovering from a restart and waits for its peers.
	GracefulRestart bool
	// State in BIRD's words: "Daemon is up and running".
	State string

	// zone is what BIRD's clock is behind UTC. BIRD runs on this host.
	zone  time.Duration
	known bool // whether zone is
}

// ShowStatus asks for BIRD's condition.
func (c *Conn) ShowStatus(ctx context.Context) (Status, error) {
	lines, err := c.Do(ctx, "show status")
	if err != nil {
		return Status{}, err
	}
	return parseStatus(lines, time.Now())
}

func parseStatus(lines []Line, now time.Time) (Status, error) {
	var s Status
	var boot, loaded time.Time
	for _, l := range lines {
		switch l.Code {
		case 1000:
			s.Version = strings.TrimPrefix(l.Text, "BIRD ")
		case 1011:
			if id, ok := strings.CutPrefix(l.Text, "Router ID is "); ok {
				s.RouterID = id
			} else if t, ok := strings.CutPrefix(l.Text, "Current server time is "); ok {
				if t, err := time.Parse(timeLayout, t); err == nil {
					// Zones differ by quarters of an hour; the rest is how long
					// the reply took, and would make each answer another time.
					s.zone, s.known = now.Sub(t).Round(15*time.Minute), true
				}
			} else if t, ok := strings.CutPrefix(l.Text, "Last reboot on "); ok {
				boot, _ = time.Parse(timeLayout, t)
			} else if t, ok := strings.CutPrefix(l.Text, "Last reconfiguration on "); ok {
				loaded, _ = time.Parse(timeLayout, t)
			}
		case 24:
			s.GracefulRestart = true
		case 13:
			s.State = l.Text
		}
	}
	if s.Version == "" {
		return s, fmt.Errorf("bird's status has no version in it: %v", lines)
	}
	s.Boot, s.Loaded = s.clock(boot), s.clock(loaded)
	return s, nil
}

// clock turns a time that BIRD printed into one of this host.
func (s Status) clock(t time.Time) time.Time {
	if t.IsZero() || !s.known {
		return time.Time{}
	}
	return t.Add(s.zone).UTC()
}
