package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"flock.fritzlab.net/flock/pkg/netlink"
)

// Of linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = 0
	msgConfig = 1

	cfgCmd       = 1
	cfgMode      = 2
	cfgTimeout   = 4
	cfgThreshold = 5

	cmdBind    = 1
	copyPacket = 2

	attrIn      = 4
	attrOut     = 5
	attrPayload = 9
	attrPrefix  = 10
)

// A Packet is one that a rule has logged.
type Packet struct {
	// Prefix is the rule's.
	Prefix string
	// In and Out are the indexes of the interfaces; 0 if there is none.
	In, Out int
	// Payload begins with the IP header, and may be cut.
	Payload []byte
}

// A Log is the reader of one group. A network namespace has one for each group.
type Log struct {
	watch *netlink.Watch
	group uint16
}

// Open binds a group in the calling thread's network namespace, with so many bytes of
// each packet. The kernel sends each packet at once. EPERM says that another program
// reads the group, or that CAP_NET_ADMIN is missing.
func Open(group uint16, bytes uint32) (*Log, error) {
	w, err := netlink.Subscribe(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	l := &Log{watch: w, group: group}
	mode := append(binary.BigEndian.AppendUint32(nil, bytes), copyPacket, 0)
	for _, set := range []func(*netlink.Request){
		func(r *netlink.Request) { r.Bytes(cfgCmd, []byte{cmdBind}) },
		func(r *netlink.Request) {
			r.Bytes(cfgMode, mode)
			r.BE32(cfgThreshold, 1)
			r.BE32(cfgTimeout, 1)
		},
	} {
		var r netlink.Request
		r.Begin(unix.NFNL_SUBSYS_ULOG<<8|msgConfig, unix.NLM_F_ACK, unix.AF_UNSPEC, unix.NFNETLINK_V0, byte(group>>8), byte(group))
		set(&r)
		r.End(0)
		if err := w.Ask(r); err != nil {
			w.Close()
			remedy := ""
			switch {
			case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EPERM):
				remedy = ": another program may read this group"
			case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
				remedy = ": the kernel must have nfnetlink_log"
			}
			return nil, fmt.Errorf("nflog group %d: %w%s", group, err, remedy)
		}
	}
	return l, nil
}

// Close gives the group up. What is logged to it is lost from then on.
func (l *Log) Close() { l.watch.Close() }

// Run calls f with each packet until ctx ends, which is no error. lost is called when
// packets have been lost. f must not keep the payload.
func (l *Log) Run(ctx context.Context, f func(Packet), lost func()) error {
	var broken error
	err := l.watch.Run(ctx, func(m netlink.Message) {
		switch {
		case m.Type == 0:
			lost()
		case m.Type == unix.NFNL_SUBSYS_ULOG<<8|msgPacket:
			p, err := parse(m.Body)
			if err != nil {
				broken = err
				return
			}
			f(p)
		}
	})
	return errors.Join(err, broken)
}

const sizeofNfgenmsg = 4

func parse(body []byte) (p Packet, err error) {
	if len(body) < sizeofNfgenmsg {
		return p, netlink.ErrShort
	}
	index := func(v []byte) int {
		if len(v) != 4 {
			return 0
		}
		return int(binary.BigEndian.Uint32(v))
	}
	err = netlink.Attributes(body[sizeofNfgenmsg:], func(typ uint16, v []byte) error {
		switch typ {
		case attrIn:
			p.In = index(v)
		case attrOut:
			p.Out = index(v)
		case attrPrefix:
			p.Prefix = unix.ByteSliceToString(v)
		case attrPayload:
			p.Payload = v
		}
		return nil
	})
	return p, err
}
