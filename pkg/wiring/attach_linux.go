package wiring

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/wiring/rtnl"
)

// Attach wires a sandbox to the node. Over what an earlier call left, whole or
// cut short, it ends in the same state; what it finds right it does not touch.
// If it fails it undoes what it did: a link that it made is gone, routes that it
// added to a link which was there before are.
//
// A name or a routed address that is another container's is a [CollisionError].
func (h *Host) Attach(netns *os.File, a Attachment) (Attached, error) {
	if err := a.Validate(); err != nil {
		return Attached{}, err
	}
	h.slots <- struct{}{}
	defer func() { <-h.slots }()
	pod, err := h.dial(netns)
	if err != nil {
		return Attached{}, err
	}
	defer pod.Close()

	w := wire{h: h, a: a, netns: netns, pod: pod}
	if err := w.link(); err != nil {
		return Attached{}, errors.Join(err, w.undo())
	}
	have := w.fresh()
	if !w.made {
		if have, err = w.actual(); err != nil {
			return Attached{}, err
		}
	}
	err = w.apply(plan(desired(a), have))
	if err == nil {
		err = w.awaitReady()
	}
	if err != nil {
		return Attached{}, errors.Join(err, w.undo())
	}
	return Attached{HostIfIndex: w.hostEnd.Index, HostMAC: HostMAC, PodMAC: PodMAC(a.ContainerID)}, nil
}

// Restore puts the host's side of an attachment right that was wired before; the
// pod's namespace is not needed for that. It returns what was not as it should be.
func (h *Host) Restore(a Attachment) (mended []string, err error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	w := wire{h: h, a: a}
	if w.hostEnd, err = h.conn.LinkByName(a.HostIf); err != nil {
		return nil, fmt.Errorf("host interface %s of pod %s: %w", a.HostIf, a.Alias, err)
	}
	if owner, alias := parseLinkAlias(w.hostEnd.Alias); owner != a.ContainerID {
		return nil, &CollisionError{HostIf: a.HostIf, Owner: owner, Alias: alias}
	}
	have := w.end(w.hostEnd)
	if err := w.read(h.conn, w.hostEnd.Index, &have, onHost); err != nil {
		return nil, err
	}
	changes := planEnd(onHost, desired(a).host, have)
	for _, c := range changes {
		mended = append(mended, c.what)
	}
	return mended, w.apply(changes)
}

// Check says what of the attachment's wiring is not as [Host.Attach] would leave
// it, all of it at once; nil if nothing (CNI 1.1, CHECK). Addresses and routes
// that others added to the pod are none of its business.
func (h *Host) Check(netns *os.File, a Attachment) error {
	if err := a.Validate(); err != nil {
		return err
	}
	pod, err := h.dial(netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	w := wire{h: h, a: a, netns: netns, pod: pod}
	if w.hostEnd, err = h.conn.LinkByName(a.HostIf); err != nil {
		return fmt.Errorf("host interface %s of pod %s: %w", a.HostIf, a.Alias, err)
	}
	if owner, alias := parseLinkAlias(w.hostEnd.Alias); owner != a.ContainerID {
		return &CollisionError{HostIf: a.HostIf, Owner: owner, Alias: alias}
	}
	if found, err := w.findPodEnd(); err != nil {
		return err
	} else if !found {
		return fmt.Errorf("interface %s: the other end of %s is not in network namespace %s under that name", a.PodIf, a.HostIf, netns.Name())
	}
	have, err := w.actual()
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range plan(desired(a), have) {
		name := a.HostIf
		if c.where == inPod {
			name = "pod's " + a.PodIf
		}
		errs = append(errs, fmt.Errorf("%s: %s", name, c.what))
	}
	return errors.Join(errs...)
}

// wire is one attachment being wired.
type wire struct {
	h     *Host
	a     Attachment
	netns *os.File
	pod   *rtnl.Conn

	hostEnd, podEnd rtnl.Link
	made            bool    // the link is this call's
	routed          []route // host routes that this call added
}

// link sees to both ends: made now, or found and this attachment's.
func (w *wire) link() error {
	// Twice: what is in the way may be a released link, which is removed.
	for range 2 {
		err := w.create()
		if err == nil || !errors.Is(err, unix.EEXIST) {
			return err
		}
		if again, err := w.adopt(); !again {
			return err
		}
	}
	return fmt.Errorf("host interface %s: comes back each time it is deleted; who else makes it?", w.a.HostIf)
}

func (w *wire) create() error {
	m := rtnl.NewVeth(rtnl.VethPair{
		Name: w.a.HostIf, PeerName: w.a.PodIf,
		MAC: HostMAC, PeerMAC: PodMAC(w.a.ContainerID),
		MTU: w.a.MTU, PeerNetns: w.netns,
	})
	if errs := w.h.exec(w.h.conn, []rtnl.Message{m}); errs != nil {
		return errs[0]
	}
	w.made = true
	var err error
	if w.hostEnd, err = w.h.conn.LinkByName(w.a.HostIf); err != nil {
		return fmt.Errorf("host interface just made: %w", err)
	}
	if w.podEnd, err = w.pod.LinkByIndex(w.hostEnd.Peer); err != nil {
		return fmt.Errorf("pod's interface just made: %w", err)
	}
	return nil
}

// adopt takes the link that has the name, if it is this container's. again says
// that it was removed instead and can be made anew.
func (w *wire) adopt() (again bool, err error) {
	if w.hostEnd, err = w.h.conn.LinkByName(w.a.HostIf); errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("interface %s: network namespace %s has one already that is not flock's; give this network another interface name", w.a.PodIf, w.netns.Name())
	} else if err != nil {
		return false, err
	}
	owner, alias := parseLinkAlias(w.hostEnd.Alias)
	found, err := w.findPodEnd()
	if err != nil {
		return false, err
	}
	released := isReleased(w.hostEnd)
	switch {
	case owner == w.a.ContainerID && found && !released:
		return false, nil
	case owner == "" && found && MAC(w.podEnd.MAC) == PodMAC(w.a.ContainerID):
		return false, nil // cut short before it had its alias
	case owner == w.a.ContainerID || released:
		// Ours with its other end elsewhere, or nobody's any more.
		err := w.h.deletions.Do(rtnl.DelLink(w.hostEnd.Index))
		if err != nil && !errors.Is(err[0], unix.ENODEV) {
			return false, err[0]
		}
		return true, nil
	}
	return false, &CollisionError{HostIf: w.a.HostIf, Owner: owner, Alias: alias}
}

// findPodEnd looks whether the host end's other end is in the pod's namespace,
// under the attachment's name.
func (w *wire) findPodEnd() (bool, error) {
	l, err := w.pod.LinkByName(w.a.PodIf)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	w.podEnd = l
	// Indices are per namespace, so both must point at each other.
	return err == nil && l.Kind == "veth" && l.Index == w.hostEnd.Peer && l.Peer == w.hostEnd.Index, err
}

// fresh is the state of a link that was made just now: what the kernel said of
// the ends, and nothing on them.
func (w *wire) fresh() state {
	return state{host: w.end(w.hostEnd), pod: w.end(w.podEnd)}
}

func (w *wire) end(l rtnl.Link) end {
	return end{
		mac: l.MAC, mtu: l.MTU, up: l.Up, alias: l.Alias,
		forwarding: l.IPv4.Forwarding != 0, rpFilter: l.IPv4.RPFilter,
		hasIPv6: l.HasIPv6, autoLL: l.AddrGenMode != rtnl.AddrGenNone,
		disableIPv6: l.HasIPv6 && l.IPv6.DisableIPv6 != 0,
		acceptsRA:   l.HasIPv6 && (l.IPv6.AcceptRA >= 2 || l.IPv6.AcceptRA == 1 && l.IPv6.Forwarding == 0),
	}
}

// actual reads the whole state from the kernel.
func (w *wire) actual() (s state, err error) {
	s = w.fresh()
	if err := w.read(w.h.conn, w.hostEnd.Index, &s.host, onHost); err != nil {
		return s, err
	}
	if err := w.read(w.pod, w.podEnd.Index, &s.pod, inPod); err != nil {
		return s, err
	}
	lo, err := w.pod.LinkByIndex(loopbackIndex)
	s.loopbackUp = lo.Up
	return s, err
}

// read adds to an end what hangs on its link.
func (w *wire) read(conn *rtnl.Conn, index int, e *end, where place) error {
	addrs, err := conn.Addrs(index)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		// Before kernel 5.18 addresses say nothing of whose they are.
		e.addrs = append(e.addrs, address{a.Prefix, a.Proto == RouteProtocol})
	}
	neighs, err := conn.Neighs(index)
	if err != nil {
		return err
	}
	for _, n := range neighs {
		e.neighs = append(e.neighs, neighbour{n.Addr, n.MAC})
	}
	routes, err := conn.Routes(rtnl.RouteFilter{Link: index, Proto: RouteProtocol})
	if err != nil {
		return err
	}
	for _, r := range routes {
		// On the host, routes of other metrics and those by nexthop objects have
		// other owners.
		if where == inPod || r.Nexthop == 0 && (r.Metric == MetricLocal || r.Metric == MetricStatic) {
			e.routes = append(e.routes, route{r.Dst, r.Gateway, r.Src, r.Metric})
		}
	}
	return nil
}

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
	return w.h.in(netns, func() error { return writeSysctl(s.before+link.Name+s.after, s.value) })
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

// awaitReady returns when packets flow. Two things the kernel leaves to its
// workers: an end that was up before its peer drops what it is given until the
// link watch has put a queueing discipline in place, and an IPv6 address is not
// delivered to until it has been through the (empty) duplicate detection.
func (w *wire) awaitReady() error {
	var unready error
	for deadline := time.Now().Add(w.h.readyTimeout); time.Now().Before(deadline); {
		var err error
		if unready, err = w.unready(); unready == nil || err != nil {
			return err
		}
		// Mostly the workers have been quicker. If not, they want this CPU, and
		// time.Sleep would be a whole millisecond.
		pause := unix.NsecToTimespec(readyPoll.Nanoseconds())
		unix.Nanosleep(&pause, nil)
	}
	return fmt.Errorf("pod %s: not ready after %v: %w", w.a.Alias, w.h.readyTimeout, unready)
}

const readyPoll = 50 * time.Microsecond

func (w *wire) unready() (unready, err error) {
	for _, end := range []struct {
		conn *rtnl.Conn
		link rtnl.Link
	}{{w.pod, w.podEnd}, {w.h.conn, w.hostEnd}} {
		// Since Linux 6.8 asking does the link watch's work at once.
		l, err := end.conn.LinkByIndex(end.link.Index)
		if err != nil {
			return nil, fmt.Errorf("interface %s of pod %s: gone while it was being wired: %w", end.link.Name, w.a.Alias, err)
		}
		if !l.Running {
			return fmt.Errorf("interface %s has no carrier; is its other end up?", end.link.Name), nil
		}
	}
	local, err := w.pod.Local(w.a.Addrs)
	if err == nil && !local {
		unready = fmt.Errorf("not all of %v are local to the pod", w.a.Addrs)
	}
	return unready, err
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
		return rtnl.NewNeigh(rtnl.Neigh{Link: index, Addr: do.addr, MAC: do.mac})
	case addRoute:
		return rtnl.NewRoute(do.on(index))
	case delRoute:
		return rtnl.DelRoute(do.on(index))
	}
	panic(fmt.Sprintf("wiring: no request for %T", do))
}

// loopbackIndex is the same in every namespace (LOOPBACK_IFINDEX).
const loopbackIndex = 1

// explain finds out whose the route is that is in the way.
func (w *wire) explain(c change, err error) error {
	err = fmt.Errorf("%s of pod %s: %w", link(c.where, w.a), w.a.Alias, err)
	add, ok := c.do.(addRoute)
	if !ok || c.where != onHost || !errors.Is(err, unix.EEXIST) {
		return err
	}
	routes, listErr := w.h.conn.Routes(rtnl.RouteFilter{})
	if listErr != nil {
		return err
	}
	for _, r := range routes {
		if r.Dst != add.dst || r.Metric != add.metric {
			continue
		}
		if l, linkErr := w.h.conn.LinkByIndex(r.Link); linkErr == nil {
			e := &CollisionError{HostIf: l.Name, Addr: add.dst.Addr()}
			if isHostIf(l.Name) {
				e.Owner, e.Alias = parseLinkAlias(l.Alias)
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
				return gone(err)
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
		errs = append(errs, gone(err))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}

// gone is nil for the errors of deleting what is not there.
func gone(err error) error {
	for _, e := range []error{unix.ENODEV, unix.ESRCH, unix.ENOENT, unix.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}
