package wiring

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/datapath/kernel"
	"flock.fritzlab.net/flock/pkg/netlink/rtnl"
)

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

// link makes both ends, or finds them if they are this attachment's.
func (w *wire) link() error {
	// Twice: a released link that is in the way is deleted.
	for range 2 {
		err := w.create()
		if err == nil || !errors.Is(err, unix.EEXIST) {
			return err
		}
		if again, err := w.adopt(); !again {
			return err
		}
	}
	return fmt.Errorf("host interface %s: another program creates it again each time flock deletes it", w.a.HostIf)
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
// that it was deleted instead, so that it can be created.
func (w *wire) adopt() (again bool, err error) {
	if w.hostEnd, err = w.h.conn.LinkByName(w.a.HostIf); errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("interface %s: network namespace %s has one already that is not flock's; give this network another interface name", w.a.PodIf, w.netns.Name())
	} else if err != nil {
		return false, err
	}
	is := listed(w.hostEnd)
	owner := is.ContainerID
	found, err := w.findPodEnd()
	if err != nil {
		return false, err
	}
	released := kernel.IsReleased(w.hostEnd.Group)
	switch {
	case !released && found && owner == w.a.ContainerID:
		return false, nil
	case !released && found && owner == "" && MAC(w.podEnd.MAC) == PodMAC(w.a.ContainerID):
		return false, nil // cut short before it had its alias, or another program overwrote it
	case released || owner == w.a.ContainerID:
		// It is released, or ours with its other end elsewhere.
		err := w.h.deletions.Do(rtnl.DelLink(w.hostEnd.Index))
		if err != nil && !errors.Is(err[0], unix.ENODEV) {
			return false, err[0]
		}
		return true, nil
	}
	return false, &CollisionError{HostIf: w.a.HostIf, Owner: owner, Alias: is.Alias}
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
		mac: l.MAC, mtu: l.MTU, up: l.Up, alias: l.Alias, master: l.Master, released: kernel.IsReleased(l.Group),
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
		// Before kernel 5.18 addresses do not say who added them.
		e.addrs = append(e.addrs, address{a.Prefix, a.Peer, a.Proto == kernel.RouteProtocol})
	}
	neighs, err := conn.Neighs(index)
	if err != nil {
		return err
	}
	for _, n := range neighs {
		e.neighs = append(e.neighs, neighbour{n.Addr, n.MAC})
	}
	routes, err := conn.Routes(rtnl.RouteFilter{Link: index, Proto: kernel.RouteProtocol})
	if err != nil {
		return err
	}
	for _, r := range routes {
		// On the host, routes of other metrics and those by nexthop objects have
		// other owners.
		if where == inPod || r.Nexthop == 0 && (r.Metric == kernel.MetricLocal || r.Metric == kernel.MetricStatic) {
			e.routes = append(e.routes, route{r.Dst, r.Gateway, r.Src, r.Metric, r.Extra})
		}
	}
	return nil
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
