package watch

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Offsets in a netlink message: of its type and its maker's port ID, and of the protocol in a
// route (struct rtmsg).
const (
	offType     = 4
	offPort     = 12
	offProtocol = unix.SizeofNlMsghdr + 5
)

// program is a classic BPF program over the first message of a datagram. BPF loads in network
// byte order what netlink writes in the machine's.
type program []unix.SockFilter

func (p *program) add(code uint16, k uint32, jt, jf uint8) {
	*p = append(*p, unix.SockFilter{Code: code, Jt: jt, Jf: jf, K: k})
}

const (
	loadByte, loadHalf, loadWord = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	jumpEqual                    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ret                          = unix.BPF_RET | unix.BPF_K
	accept, drop                 = 1 << 20, 0
)

// half is a type as BPF loads it.
func half(typ uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, typ)))
}

// daemons are protocols of routes that change in large numbers: those of routing daemons, and the
// kernel's own, which follow addresses (iproute2's rt_protos).
var daemons = []uint32{unix.RTPROT_KERNEL, unix.RTPROT_ZEBRA, unix.RTPROT_BIRD, unix.RTPROT_BABEL,
	unix.RTPROT_BGP, unix.RTPROT_ISIS, unix.RTPROT_OSPF, unix.RTPROT_RIP, unix.RTPROT_EIGRP}

// withoutNoise drops what comes in floods: routes of routing daemons, which change a hundred
// thousand at a time, what the kernel itself does to neighbours, and the moves of flows within a
// nexthop group. A route of a daemon that is in flock's way is found at the next look.
func withoutNoise() []unix.SockFilter {
	const newNexthopBucket = 0x74 // RTM_NEWNEXTHOPBUCKET
	var p program
	n := uint8(len(daemons))
	// Jumps are counted from the next instruction. The last two are drop and accept.
	p.add(loadHalf, offType, 0, 0)
	p.add(jumpEqual, half(unix.RTM_NEWROUTE), 4, 0)
	p.add(jumpEqual, half(unix.RTM_DELROUTE), 3, 0)
	p.add(jumpEqual, half(newNexthopBucket), 6+n, 0)  // to drop
	p.add(jumpEqual, half(unix.RTM_NEWNEIGH), 3+n, 0) // to the port
	p.add(ret, accept, 0, 0)
	p.add(loadByte, offProtocol, 0, 0)
	for i, d := range daemons {
		p.add(jumpEqual, d, n-uint8(i)+2, 0) // to drop
	}
	p.add(ret, accept, 0, 0)
	p.add(loadWord, offPort, 0, 0)
	p.add(jumpEqual, 0, 0, 1) // to drop or accept
	p.add(ret, drop, 0, 0)
	p.add(ret, accept, 0, 0)
	return p
}
