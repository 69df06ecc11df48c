package xtables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Entry is a rule of any chain: what it matches of the destination, and what follows.
type Entry struct {
	Dst      netip.Prefix // invalid: any address, or all but one
	Protocol byte         // 0: any
	DstPort  uint16       // 0: any, or several
	// Always: it matches all packets.
	Always bool
	// Jump is the chain that it goes on in; empty if none.
	Jump string
	// Target is the extension that decides, "DNAT" or the like, with its revision and its
	// own data.
	Target   string
	Revision uint8
	Info     []byte
}

// Chains are the rules of all chains of a table of the calling thread's network namespace that
// users have made, by name. There is none if the table is not there.
func Chains(ipv6 bool, table string) (map[string][]Entry, error) {
	l := layouts[0]
	if ipv6 {
		l = layouts[1]
	}
	names, err := l.tables()
	if err != nil || !slices.Contains(names, table) {
		return nil, err
	}
	_, b, err := l.read(table)
	if errors.Is(err, unix.ENOENT) { // gone meanwhile
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("table %s of iptables-legacy: %w", table, err)
	}
	return l.chains(b)
}

// Offsets in struct xt_entry_match and xt_entry_target, which are the same.
const (
	extSize, extName, extRevision, extData = 0, 2, 31, 32
	errorTarget                            = "ERROR"
)

// chains reads a table's entries. A chain of users' begins behind an entry with the target
// ERROR, which has its name.
func (l layout) chains(b []byte) (map[string][]Entry, error) {
	type raw struct {
		chain string
		Entry
		jump int // the offset of a chain's first entry; -1: none
	}
	var all []raw
	begins := map[int]string{} // by offset
	chain := ""
	for at := 0; at < len(b); {
		e := b[at:]
		if len(e) < l.size {
			return nil, errMalformed
		}
		target, next := int(native.Uint16(e[l.target:])), int(native.Uint16(e[l.next:]))
		if target < l.size || next < target+extData || next > len(e) {
			return nil, errMalformed
		}
		e = e[:next]
		at += next
		name := unix.ByteSliceToString(e[target+extName : target+extRevision])
		if name == errorTarget {
			chain = unix.ByteSliceToString(e[target+extData:])
			begins[at] = chain
			continue
		}
		r := raw{chain: chain, jump: -1}
		r.Dst, r.Protocol = l.rule(e).Dst, byte(native.Uint16(e[l.protocol:]))
		r.Always = l.size == target && !slices.ContainsFunc(e[:l.protocol+2], func(b byte) bool { return b != 0 })
		for m := l.size; m+extData <= target; {
			size := int(native.Uint16(e[m+extSize:]))
			if size < extData || m+size > target {
				return nil, errMalformed
			}
			if port, ok := DstPort(unix.ByteSliceToString(e[m+extName:m+extRevision]), e[m+extData:m+size]); ok {
				r.DstPort = port
			}
			m += size
		}
		if name == "" {
			if v := verdict(e[target:]); v > 0 {
				r.jump = int(v)
			}
		} else {
			r.Target, r.Revision, r.Info = name, e[target+extRevision], e[target+extData:]
		}
		all = append(all, r)
	}
	chains := map[string][]Entry{}
	for _, r := range all {
		if r.chain == "" {
			continue
		}
		r.Jump = begins[r.jump]
		chains[r.chain] = append(chains[r.chain], r.Entry)
	}
	for name, entries := range chains {
		chains[name] = entries[:len(entries)-1] // the last returns, and is no rule
	}
	return chains, nil
}

// DstPort is the destination port that the match "tcp", "udp" or "sctp" is about; false if it
// is about none or about several. The kernel has ports there in the machine's byte order.
func DstPort(match string, info []byte) (port uint16, ok bool) {
	at := 4 // struct xt_tcp, xt_udp
	switch match {
	case "tcp", "udp":
	case "sctp":
		at = 0 // struct xt_sctp_info
	default:
		return 0, false
	}
	if len(info) < at+4 {
		return 0, false
	}
	first, last := binary.NativeEndian.Uint16(info[at:]), binary.NativeEndian.Uint16(info[at+2:])
	if first != last {
		return 0, false
	}
	return first, true
}
