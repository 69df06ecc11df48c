//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
	"flock.fritzlab.net/flock/pkg/config"
	"flock.fritzlab.net/flock/pkg/ipam"
	"flock.fritzlab.net/flock/pkg/kube"
	"flock.fritzlab.net/flock/pkg/routing"
	"flock.fritzlab.net/flock/pkg/routing/bird"
	"flock.fritzlab.net/flock/pkg/wiring"
)

// followNode applies the NodeConfig, first the copy kept on the node, then what
// the API server says, and again whenever it or the CIDRs in use change.
func (a *Agent) followNode(ctx context.Context) error {
	kept := filepath.Join(a.StateDir, "nodeconfig.json")
	current, err := kube.Load[v1alpha1.NodeConfig](kept)
	if err != nil {
		a.Log.Warn("the copy of the NodeConfig on this node is of no use", "error", err)
	}
	if current != nil && current.Name != a.NodeName {
		a.Log.Warn("the copy of a NodeConfig on this node is another node's, and is not used", "nodeconfig", current.Name, "node", a.NodeName)
		current = nil
	}
	if current == nil {
		a.wait("flock's agent on node %s waits for the API server to tell it NodeConfig %s", a.NodeName, a.NodeName)
	}

	const (
		firstRetry, lastRetry = 200 * time.Millisecond, 10 * time.Second
		secretsEvery          = time.Minute // for passwords that were changed
		poolsSettle           = 100 * time.Millisecond
		linksSettle           = time.Second // for an interface that is set up anew
	)
	delay := firstRetry
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	pools, links := settling{after: poolsSettle}, settling{after: linksSettle}
	newest := current // the last that was seen: current, or one that is refused
	for {
		if current != nil {
			err := a.apply(ctx, current)
			if err != nil {
				a.Log.Warn("the node's configuration is not in force", "error", err, "retry", delay)
				if a.serving.Load() == nil {
					a.wait("flock's agent on node %s could not put the NodeConfig in force: %s", a.NodeName, err)
				}
				retry.Reset(delay)
				delay = min(2*delay, lastRetry)
			} else {
				retry.Stop()
				delay = firstRetry
				if a.usesSecrets {
					retry.Reset(secretsEvery)
				}
			}
			if newest == current { // or the refusal would not be seen
				if errors.As(err, new(*notRouted)) {
					err = nil // that is RoutingConfigured's to tell
				}
				a.note(current, err)
			}
		}
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return nil
			case <-retry.C:
				due = true
			case <-a.cidrsChanged:
				due = true
			case <-a.poolRoutesChanged: // many at once are one change of BIRD's configuration
				pools.begin()
			case <-pools.over:
				pools.over = nil
				due = true
			case <-a.linksChanged:
				links.begin()
			case <-links.over:
				links.over = nil
				now, err := a.look()
				due = err != nil || !reflect.DeepEqual(now, a.surroundings)
			case <-a.nodeConfigChanged:
				nc, ok := a.nodeConfig.Get(a.NodeName)
				if !ok {
					a.noNodeConfig()
					continue
				}
				if newest != nil && nc.UID == newest.UID && nc.Generation == newest.Generation {
					continue // its status, or what is kept here already
				}
				newest = nc
				if _, err := config.ParseNode(nc); err != nil {
					a.reject(nc, err)
					continue
				}
				current, due = nc, true
				if err := kube.Save(kept, nc); err != nil {
					a.Log.Warn("the NodeConfig is not kept for a start without the API server", "error", err)
				}
			}
		}
	}
}

// settling makes one of the events that come within a time after the first. It does
// not wait for them to end: they may never.
type settling struct {
	after time.Duration
	over  <-chan time.Time // nil while there was none
}

func (s *settling) begin() {
	if s.over == nil {
		s.over = time.After(s.after)
	}
}

// noNodeConfig leaves what is in force: deleting an object must not take pods
// off the network.
func (a *Agent) noNodeConfig() {
	if a.serving.Load() != nil {
		a.Log.Warn("the NodeConfig was deleted; the last one stays in force until the agent is taken off this node", "nodeconfig", a.NodeName)
		return
	}
	a.Log.Info("waiting for a NodeConfig", "nodeconfig", a.NodeName)
	a.wait("node %s has no NodeConfig: create NodeConfig %s with spec.podCIDRs%s", a.NodeName, a.NodeName, a.withoutTemplate())
}

func (a *Agent) reject(nc *v1alpha1.NodeConfig, err error) {
	a.Log.Error("the NodeConfig is refused", "error", err)
	a.note(nc, err)
	if a.serving.Load() == nil {
		a.wait("%s: mend the object", err)
	}
}

// apply brings the node to nc. Everything in it is convergent: after an error it
// is called again with the same or a newer one.
func (a *Agent) apply(ctx context.Context, nc *v1alpha1.NodeConfig) error {
	node, err := config.ParseNode(nc)
	if err != nil {
		return err
	}
	around, err := a.look()
	if err != nil {
		return err
	}
	exclude := slices.Clone(node.Exclude)
	for _, addr := range around.addrs {
		exclude = append(exclude, netip.PrefixFrom(addr, addr.BitLen()))
	}
	a.ledger.Configure(ipam.Config{
		Node: nc.Name, IPv6: node.IPv6, IPv4: node.IPv4, Exclude: exclude, Quarantine: node.Quarantine,
	})
	summaries := slices.Concat(node.Summaries(), a.ledger.Retired())
	if _, err := a.host.ApplyNode(wiring.NodeState{Summaries: summaries}); err != nil {
		return err
	}
	mtu := node.MTU
	if mtu == 0 {
		if around.mtuErr != nil {
			return around.mtuErr
		}
		mtu = around.mtu
	}
	if a.serving.Swap(&serving{node: node, nodeAddrs: around.addrs, mtu: mtu}) == nil {
		a.Log.Info("serving pods", "ipv6", node.IPv6, "ipv4", node.IPv4, "mtu", mtu)
	}
	a.surroundings = around
	a.changed()
	err = a.applyRouting(ctx, node, around)
	a.unrouted.Store(&err)
	a.changed()
	if err != nil {
		return &notRouted{err}
	}
	return nil
}

// surroundings are what the configuration in force takes from the node's own links.
type surroundings struct {
	addrs  []netip.Addr
	onLink []netip.Prefix
	mtu    int // of the uplinks, in bytes
	mtuErr error
}

func (a *Agent) look() (s surroundings, err error) {
	if s.addrs, err = a.host.Addrs(); err != nil {
		return s, err
	}
	slices.SortFunc(s.addrs, netip.Addr.Compare)
	links, err := net.InterfaceAddrs()
	if err != nil {
		return s, err
	}
	s.onLink = routing.OnLink(links)
	s.mtu, s.mtuErr = a.host.UplinkMTU()
	return s, nil
}

// followUplinks has the follower of the node look at what its links have become.
func (a *Agent) followUplinks(ctx context.Context) error {
	return a.host.WatchUplinks(ctx, a.linksChanged.give)
}

// notRouted: the configuration is in force on the node, but the routing daemon has
// not been told all of it.
type notRouted struct{ error }

func (e *notRouted) Unwrap() error { return e.error }

// applyRouting brings the routing daemon to what node says. While a password
// cannot be read the daemon keeps what it has: without it a session would end.
func (a *Agent) applyRouting(ctx context.Context, node config.Node, around surroundings) error {
	intent := routing.IntentOf(node)
	intent.OnLink = around.onLink
	intent.Addresses = a.NodeAddresses
	intent.Pools = a.poolRoutes()
	var missing error
	refs := intent.Secrets()
	a.usesSecrets = len(refs) > 0
	for _, ref := range refs {
		value, err := a.api.SecretKey(ctx, a.Namespace, ref.Name, ref.Key)
		if err != nil && !errors.Is(err, kube.ErrNoSecret) {
			return err
		}
		var password routing.Password
		if err == nil {
			password, err = routing.ParsePassword(value)
		}
		if err != nil {
			missing = errors.Join(missing, fmt.Errorf("secret %s/%s, key %s: %w; the sessions that need it stay down", a.Namespace, ref.Name, ref.Key, err))
			continue
		}
		if intent.Passwords == nil {
			intent.Passwords = map[config.SecretRef]routing.Password{}
		}
		intent.Passwords[ref] = password
	}
	a.bird.Set(bird.Render(intent))
	return missing
}
