package rtnl

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Of linux/if_addr.h and linux/neighbour.h.
const (
	ifaProto    = 11
	ndaProtocol = 12
)

// NewAddr adds an address, without duplicate address detection, or changes the
// one that is there.
func NewAddr(a Addr) Message {
	m := addrMessage("add", unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, a)
	m.b.U32(unix.IFA_FLAGS, unix.IFA_F_NODAD)
	if a.Proto != 0 {
		m.b.U8(ifaProto, a.Proto)
	}
	return m
}

// DelAddr deletes an address; EADDRNOTAVAIL if it is not there.
func DelAddr(a Addr) Message { return addrMessage("delete", unix.RTM_DELADDR, 0, a) }

func addrMessage(verb string, typ, flags uint16, a Addr) Message {
	ip := a.Prefix.Addr()
	header := make([]byte, unix.SizeofIfAddrmsg)
	header[0] = family(ip)
	header[1] = uint8(a.Prefix.Bits())
	header[2] = unix.IFA_F_NODAD
	if ip.IsLinkLocalUnicast() {
		header[3] = unix.RT_SCOPE_LINK
	}
	native.PutUint32(header[4:], uint32(a.Link))
	m := newMessage(fmt.Sprintf("%s address %v", verb, a.Prefix), typ, flags, header)
	m.addr(unix.IFA_LOCAL, ip)
	if a.Peer.IsValid() {
		ip = a.Peer
	}
	m.addr(unix.IFA_ADDRESS, ip)
	return m
}

// Addrs are the addresses of a link, or of all links for 0.
func (c *Conn) Addrs(link int) ([]Addr, error) {
	var addrs []Addr
	for _, fam := range []uint8{unix.AF_INET6, unix.AF_INET} {
		header := make([]byte, unix.SizeofIfAddrmsg)
		header[0] = fam
		native.PutUint32(header[4:], uint32(link))
		bodies, err := c.dump(newMessage("list addresses", unix.RTM_GETADDR, 0, header))
		if err != nil {
			return nil, err
		}
		for _, b := range bodies {
			a, err := parseAddr(b)
			if err != nil {
				return nil, err
			}
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

func parseAddr(b []byte) (Addr, error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return Addr{}, netlink.ErrShort
	}
	a := Addr{Link: int(native.Uint32(b[4:])), Tentative: b[2]&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0}
	var local, peer netip.Addr
	err := netlink.Attributes(b[unix.SizeofIfAddrmsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.IFA_LOCAL:
			local = getAddr(v)
		case unix.IFA_ADDRESS:
			peer = getAddr(v)
		case ifaProto:
			a.Proto = getU8(v)
		}
		return nil
	})
	if !local.IsValid() { // IPv6 says it only where there is a peer
		local = peer
	}
	if local != peer {
		a.Peer = peer
	}
	a.Prefix = netip.PrefixFrom(local, int(b[1]))
	return a, err
}

// NewNeigh adds a permanent neighbour or changes the one that is there.
func NewNeigh(n Neigh) Message {
	header := make([]byte, unix.SizeofNdMsg)
	header[0] = family(n.Addr)
	native.PutUint32(header[4:], uint32(n.Link))
	native.PutUint16(header[8:], unix.NUD_PERMANENT)
	m := newMessage(fmt.Sprintf("add neighbour %v", n.Addr), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, header)
	m.addr(unix.NDA_DST, n.Addr)
	m.b.Bytes(unix.NDA_LLADDR, n.MAC[:])
	if n.Proto != 0 {
		m.b.U8(ndaProtocol, n.Proto)
	}
	return m
}

// Neighs are the permanent neighbours of a link, or of all links for 0.
func (c *Conn) Neighs(link int) ([]Neigh, error) {
	var neighs []Neigh
	for _, fam := range []uint8{unix.AF_INET6, unix.AF_INET} {
		header := make([]byte, unix.SizeofNdMsg)
		header[0] = fam
		m := newMessage("list neighbours", unix.RTM_GETNEIGH, 0, header)
		if link != 0 {
			m.b.U32(unix.NDA_IFINDEX, uint32(link))
		}
		bodies, err := c.dump(m)
		if err != nil {
			return nil, err
		}
		for _, b := range bodies {
			n, state, err := parseNeigh(b)
			if err != nil {
				return nil, err
			}
			if (link == 0 || n.Link == link) && state&unix.NUD_PERMANENT != 0 {
				neighs = append(neighs, n)
			}
		}
	}
	return neighs, nil
}

func parseNeigh(b []byte) (n Neigh, state uint16, err error) {
	if len(b) < unix.SizeofNdMsg {
		return Neigh{}, 0, netlink.ErrShort
	}
	n.Link = int(native.Uint32(b[4:]))
	err = netlink.Attributes(b[unix.SizeofNdMsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.NDA_DST:
			n.Addr = getAddr(v)
		case unix.NDA_LLADDR:
			n.MAC = getMAC(v)
		case ndaProtocol:
			n.Proto = getU8(v)
		}
		return nil
	})
	return n, native.Uint16(b[8:]), err
}
