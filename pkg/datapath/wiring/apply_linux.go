package wiring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/datapath/sysctl"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

// apply carries changes out in order, those of one place in one batch.
func (w *wire) apply(cs []change) error {
	for len(cs) > 0 {
		if s, ok := cs[0].do.(setSysctl); ok {
			if err := w.sysctl(cs[0].where, s); err != nil {
				return err
			}
			cs = cs[1:]
			continue
		}
		n := 1
		for n < len(cs) && cs[n].where == cs[0].where && !isSysctl(cs[n]) {
			n++
		}
		if err := w.request(cs[:n]); err != nil {
			return err
		}
		cs = cs[n:]
	}
	return nil
}

func isSysctl(c change) bool {
	_, ok := c.do.(setSysctl)
	return ok
}

func (w *wire) sysctl(where place, s setSysctl) error {
	netns, link := w.h.netns, w.hostEnd
	if where == inPod {
		netns, link = w.netns, w.podEnd
	}
	return w.h.in(netns, func() error { return sysctl.Write(s.before+link.Name+s.after, s.value) })
}

func (w *wire) request(cs []change) error {
	conn, link := w.h.conn, w.hostEnd
	if cs[0].where == inPod {
		conn, link = w.pod, w.podEnd
	}
	ms := make([]rtnl.Message, len(cs))
	for i, c := range cs {
		ms[i] = message(c.do, link.Index)
	}
	errs := w.h.exec(conn, ms)
	var first error
	for i, c := range cs {
		if _, gone := c.do.(delAddr); gone && errs != nil {
			errs[i] = ignoreNotFound(errs[i])
		}
		if errs != nil && errs[i] != nil {
			if first == nil {
				first = w.explain(c, errs[i])
			}
		} else if r, ok := c.do.(addRoute); ok && c.where == onHost {
			w.routed = append(w.routed, r.route)
		}
	}
	return first
}

// message is the request of a change on a link.
func message(do any, index int) rtnl.Message {
	switch do := do.(type) {
	case loopbackUp:
		return rtnl.SetLink(loopbackIndex, rtnl.LinkChange{Up: ptr(true)})
	case setLink:
		return rtnl.SetLink(index, rtnl.LinkChange(do))
	case addAddr:
		return rtnl.NewAddr(do.on(index))
	case delAddr:
		return rtnl.DelAddr(do.on(index))
	case addNeigh:
		return rtnl.NewNeigh(rtnl.Neigh{Link: index, Addr: do.addr, MAC: do.mac, Proto: kernel.RouteProtocol})
	case addRoute:
		return rtnl.NewRoute(do.on(index))
	case delRoute:
		return rtnl.DelRoute(do.on(index))
	}
	panic(fmt.Sprintf("wiring: no request for %T", do))
}

// loopbackIndex is the same in every namespace (LOOPBACK_IFINDEX).
const loopbackIndex = 1

// explain finds the owner of the route that is in the way.
func (w *wire) explain(c change, err error) error {
	err = fmt.Errorf("%s of pod %s: %w", link(c.where, w.a), w.a.Alias, err)
	add, ok := c.do.(addRoute)
	if !ok || c.where != onHost || !errors.Is(err, unix.EEXIST) {
		return err
	}
	routes, listErr := w.h.looks.Routes(rtnl.RouteFilter{})
	if listErr != nil {
		return err
	}
	for _, r := range routes {
		if r.Dst != add.dst || r.Metric != add.metric {
			continue
		}
		if l, linkErr := w.h.conn.LinkByIndex(r.Link); linkErr == nil {
			e := &CollisionError{HostIf: l.Name, Addr: add.dst.Addr()}
			if kernel.IsLink(l.Name) {
				e.Owner, e.Alias = kernel.ParseAlias(l.Alias)
			}
			return e
		}
	}
	return err
}

func link(where place, a Attachment) string {
	if where == inPod {
		return "interface " + a.PodIf
	}
	return "host interface " + a.HostIf
}

// undo takes back what this call did. Everything hangs on the link, so a link
// that this call made takes all with it.
func (w *wire) undo() error {
	var ms []rtnl.Message
	switch {
	case w.made:
		l := w.hostEnd
		if l.Index == 0 {
			var err error
			if l, err = w.h.conn.LinkByName(w.a.HostIf); err != nil {
				return ignoreNotFound(err)
			}
		}
		ms = append(ms, rtnl.DelLink(l.Index))
	default:
		for _, r := range w.routed {
			ms = append(ms, rtnl.DelRoute(r.on(w.hostEnd.Index)))
		}
	}
	var errs []error
	for _, err := range w.h.exec(w.h.deletions, ms) {
		errs = append(errs, ignoreNotFound(err))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// ignoreNotFound is nil for the errors of deleting what is not there.
func ignoreNotFound(err error) error {
	for _, e := range []error{unix.ENODEV, unix.ESRCH, unix.ENOENT, unix.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}
