package wiring

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath"
	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/sysctl"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

var _ datapath.Feature = (*Host)(nil)

// Name implements [datapath.Feature].
func (h *Host) Name() string { return "wiring" }

// Kinds implements [datapath.Feature].
func (h *Host) Kinds() []kernel.Kind {
	return []kernel.Kind{kernel.Link, kernel.Address, kernel.Neighbour, kernel.Route, kernel.Sysctl}
}

// Adopt takes over attachments that an earlier run of the agent wired, for the next Sync.
func (h *Host) Adopt(as ...Attachment) error {
	var errs []error
	for _, a := range as {
		if err := a.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("pod %s: %w", a.Alias, err))
			continue
		}
		p := h.desired.enter(a.ContainerID)
		h.desired.set(p, a, 0)
		h.desired.leave(a.ContainerID, p)
	}
	return errors.Join(errs...)
}

// Sync implements [datapath.Feature] for the host's side of all pods that Attach or Adopt were
// called for, for the node itself as of ApplyNode, and for all routes of flock's protocol that
// are on no nexthop object: one that neither asks for is deleted, unless it leads to a link of
// flock's that is not known here, or to the one of Services' addresses. One pod's failure does not keep the others from being
// repaired.
func (h *Host) Sync(context.Context) ([]datapath.Repair, error) {
	h.syncing.Lock()
	defer h.syncing.Unlock()
	want := h.desired.snapshot() // before the look: what is newer is not missed in it
	have, err := h.look()
	if err != nil {
		return nil, err
	}
	repairs, errs := have.renamed, []error{have.unnamed}
	// First what may be in the way of others.
	strays, err := h.deleteStrays(have.strays())
	repairs, errs = append(repairs, strays...), append(errs, err)
	if want.node != nil {
		changes, err := h.applyNode(*want.node, have.node)
		for _, c := range changes {
			repairs = append(repairs, c.repair())
		}
		errs = append(errs, err)
	}
	for _, p := range want.pods {
		rs, err := h.syncPod(p, have)
		repairs, errs = append(repairs, rs...), append(errs, err)
	}
	return repairs, errors.Join(errs...)
}

// actual is what the node's kernel has.
type actual struct {
	node   NodeActual
	links  map[string]rtnl.Link // flock's own, by name
	there  map[int]bool         // all links, by index
	addrs  map[int][]address    // by link, as are the others
	neighs map[int][]neighbour
	routes map[int][]rtnl.Route // unicast ones of flock's protocol, on no nexthop
	// renamed are links that got their names back in the look, and unnamed is what was in
	// the way of that.
	renamed []datapath.Repair
	unnamed error
}

// look reads all that the wiring is about, each table once.
func (h *Host) look() (actual, error) {
	have := actual{links: map[string]rtnl.Link{}, there: map[int]bool{}, addrs: map[int][]address{}, neighs: map[int][]neighbour{}, routes: map[int][]rtnl.Route{}}
	addrs, err := h.looks.Addrs(0)
	if err != nil {
		return have, err
	}
	neighs, err := h.looks.Neighs(0)
	if err != nil {
		return have, err
	}
	ours, err := h.looks.Routes(rtnl.RouteFilter{Proto: kernel.RouteProtocol})
	if err != nil {
		return have, err
	}
	advertised, err := h.looks.Routes(rtnl.RouteFilter{Proto: unix.RTPROT_RA, Family: unix.AF_INET6})
	if err != nil {
		return have, err
	}
	// Links come last: a route that was seen to a link of flock's is then never taken for a
	// stray, although the link was made during the look.
	links, err := h.looks.Links("")
	if err != nil {
		return have, err
	}
	for _, a := range addrs {
		// Before kernel 5.18 addresses do not say who added them.
		have.addrs[a.Link] = append(have.addrs[a.Link], address{a.Prefix, a.Peer, a.Proto == kernel.RouteProtocol})
	}
	for _, n := range neighs {
		have.neighs[n.Link] = append(have.neighs[n.Link], neighbour{n.Addr, n.MAC})
	}
	for _, r := range ours {
		switch {
		case r.Nexthop != 0:
		case r.Type == rtnl.Unicast:
			have.routes[r.Link] = append(have.routes[r.Link], r)
		case r.Type == rtnl.Unreachable && r.Metric == kernel.MetricAnnounced && !r.Extra:
			have.node.Summaries = append(have.node.Summaries, r.Dst)
		default:
			have.node.Strays = append(have.node.Strays, r)
		}
	}
	var unnamed []int
	have.renamed, unnamed, have.unnamed = h.restoreNames(links)
	for _, l := range links {
		have.there[l.Index] = true
		switch {
		case kernel.IsLink(l.Name):
			have.links[l.Name] = l
		case l.Name == kernel.ServiceLink, slices.Contains(unnamed, l.Index): // those of a pod's link are not strays under any name
			delete(have.routes, l.Index)
		}
	}
	have.node.Advertised = advertisedLinks(links, addrs, advertised)
	return have, h.readNodeSysctls(&have.node)
}

// syncPod repairs the host's side of one pod.
func (h *Host) syncPod(w wanted, have actual) ([]datapath.Repair, error) {
	a := w.attachment
	l, ok := have.links[a.HostIf]
	if !ok {
		if !have.there[w.index] { // else it has another name, and have.unnamed says so
			h.forgetGone(w)
		}
		return nil, nil
	}
	if is := listed(l); w.index != l.Index && !is.IsOf(a) {
		return nil, &CollisionError{HostIf: a.HostIf, Owner: is.ContainerID, Alias: is.Alias}
	}
	if w.index == 0 { // it was adopted
		h.desired.setIndex(&w, l.Index)
	}
	wire := wire{h: h, a: a, hostEnd: l}
	is := wire.end(l)
	is.addrs, is.neighs = have.addrs[l.Index], have.neighs[l.Index]
	for _, r := range have.routes[l.Index] {
		is.routes = append(is.routes, route{r.Dst, r.Gateway, r.Src, r.Metric, r.Extra})
	}
	changes := planEnd(onHost, w.host, is)
	if len(changes) == 0 || !h.desired.begin(w) {
		return nil, nil
	}
	defer w.pod.mu.Unlock()
	if err := wire.apply(changes); err != nil {
		return nil, err
	}
	repairs := make([]datapath.Repair, len(changes))
	for i, c := range changes {
		repairs[i] = c.repair(a)
	}
	return repairs, nil
}

// forgetGone forgets a pod whose link is gone. WatchGone reports it, also where the link had
// another name at its end.
func (h *Host) forgetGone(w wanted) {
	if !h.desired.begin(w) {
		return
	}
	h.desired.mu.Lock()
	w.pod.wired = false
	h.desired.mu.Unlock()
	h.desired.leave(w.attachment.ContainerID, w.pod)
	select {
	case h.missed <- struct{}{}:
	default:
	}
}

// strays are routes that neither the node nor a pod asks for. Those to flock's links are the
// pods' own, or those of pods that are not known here.
func (a actual) strays() []rtnl.Route {
	ours := map[int]bool{}
	for _, l := range a.links {
		ours[l.Index] = true
	}
	var strays []rtnl.Route
	for index, routes := range a.routes {
		if !ours[index] {
			strays = append(strays, routes...)
		}
	}
	slices.SortFunc(strays, func(a, b rtnl.Route) int { return cmp.Or(a.Dst.Compare(b.Dst), cmp.Compare(a.Metric, b.Metric)) })
	return strays
}

func (h *Host) deleteStrays(strays []rtnl.Route) ([]datapath.Repair, error) {
	ms := make([]rtnl.Message, len(strays))
	repairs := make([]datapath.Repair, len(strays))
	for i, r := range strays {
		ms[i] = rtnl.DelRoute(r)
		repairs[i] = datapath.Repair{Kind: kernel.Route, Object: routeObject(r), Found: datapath.Stray}
	}
	var errs []error
	for _, err := range h.exec(h.conn, ms) {
		errs = append(errs, ignoreNotFound(err))
	}
	return repairs, errors.Join(errs...)
}

// repair is a change of a pod's host side in words.
func (c change) repair(a Attachment) datapath.Repair {
	what, found, _ := strings.Cut(c.what.String(), ": ")
	kind := kernel.Link
	switch do := c.do.(type) {
	case addAddr, delAddr:
		kind = kernel.Address
	case addNeigh:
		kind = kernel.Neighbour
	case addRoute, delRoute:
		kind = kernel.Route
	case setSysctl:
		kind = kernel.Sysctl
	case setLink:
		if do.IPv4 != nil || do.AddrGenMode != nil {
			kind = kernel.Sysctl
		}
	}
	return datapath.Repair{Kind: kind, Object: fmt.Sprintf("%s dev %s (pod %s)", what, a.HostIf, a.Alias), Found: found}
}

func (c NodeChange) repair() datapath.Repair {
	switch {
	case c.Sysctl != "":
		return datapath.Repair{Kind: kernel.Sysctl, Object: sysctl.Name(c.Sysctl), Found: fmt.Sprintf("not %s", c.Value)}
	case c.Remove:
		return datapath.Repair{Kind: kernel.Route, Object: routeObject(c.Route), Found: datapath.Stray}
	}
	return datapath.Repair{Kind: kernel.Route, Object: routeObject(c.Route), Found: datapath.Missing}
}

func routeObject(r rtnl.Route) string {
	return fmt.Sprintf("%v proto %d metric %d", r, r.Proto, r.Metric)
}
