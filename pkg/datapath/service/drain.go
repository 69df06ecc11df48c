package service

import (
	"slices"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// draining are those of a path's translations that stay though its address was just withdrawn:
// what routers still send here goes on to reach a pod that is Ready. The node is leaving, or the
// pod is being deleted; kube-proxy, which does not have the pod yet, would serve both so. They
// stay until routers can have followed, and no longer than they would have lasted.
func (s *State) draining(now time.Time, p *path) Interim {
	switch p.reason {
	case NodeDeparting, NodeExcluded, LocalEndpointTerminating:
	default:
		return nil
	}
	if !now.Before(p.drained()) || !p.service.translatable(p.address) {
		return nil
	}
	out := Interim{}
	for _, port := range p.service.Ports {
		key := p.service.key(port, p.address.Addr)
		t, ok := p.interim[key.Target]
		if !ok || s.clashes(p, port) {
			continue
		}
		for uid, candidate := range s.pods {
			if candidate.pod().Ready != pod.Ready || !slices.Contains(candidate.Addrs, t.To.Addr()) || !p.service.selects(candidate.Namespace, candidate.Labels) {
				continue
			}
			if until, is := s.isNew(uid, key); is {
				t.Until = earliest(until, p.drained()) // also if the agent is gone by then
				out[key.Target] = t
			}
		}
	}
	return out
}

// drained is when routers can have followed the last withdrawal of a path.
func (p *path) drained() time.Time { return p.withdrawn.Add(LingerTime) }

// tickDrain ends translations that have stayed long enough.
func (s *State) tickDrain(now time.Time) {
	for p := range s.translated {
		if !p.announced && !now.Before(p.drained()) {
			s.touched[p.service.Ref] = struct{}{}
		}
	}
}

// nextDrain is when tickDrain has something to do, or zero if never.
func (s *State) nextDrain() (next time.Time) {
	for p := range s.translated {
		if !p.announced {
			next = earliest(next, p.drained())
		}
	}
	return next
}
