package hostport

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink/nft"
	"flock.fritzlab.net/flock/pkg/pod"
)

// Observed returns the ports that the kernel forwards to each address, for attachments
// without a record. It has to be called before Reset.
func (p *Ports) Observed() (map[netip.Addr][]pod.HostPort, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ports := map[netip.Addr][]pod.HostPort{}
	for _, f := range families {
		for _, s := range []nft.Set{f.withIP, f.anyIP} {
			elements, err := p.conn.Elements(s)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return nil, err
			}
			for _, e := range elements {
				if addr, port, ok := f.decode(e); ok {
					ports[addr] = append(ports[addr], port)
				}
			}
		}
	}
	return ports, nil
}

// decode is the inverse of what desired makes of a port and an address. A port without
// a host address comes back as one of all addresses of the family.
func (f family) decode(e nft.Element) (addr netip.Addr, p pod.HostPort, ok bool) {
	n := f.addr.Len()
	if len(e.Data) != n+4 || len(e.Key) != 8 && len(e.Key) != n+8 {
		return addr, p, false
	}
	addr, _ = netip.AddrFromSlice([]byte(e.Data[:n]))
	p.HostIP = netip.IPv6Unspecified()
	if addr.Is4() {
		p.HostIP = netip.IPv4Unspecified()
	}
	if len(e.Key) > 8 {
		p.HostIP, _ = netip.AddrFromSlice([]byte(e.Key[:n]))
	}
	port := func(s string) uint16 { return binary.BigEndian.Uint16([]byte(s)) }
	at := len(e.Key) - 8
	p.HostPort, p.ContainerPort = port(e.Key[at+4:]), port(e.Data[n:])
	for name, number := range pod.Protocols {
		if number == e.Key[at] {
			p.Protocol = name
		}
	}
	return addr, p, p.Protocol != ""
}
